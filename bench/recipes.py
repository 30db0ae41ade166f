"""Trainings that reach a figure, each in a file: repeated by one command, with other seeds too.

    python -m fastdigit.bench.recipes elastic-800 [--seeds 0,1,2,3,4] [--backend NAME] [--readme]

A recipe is a TOML file in ``bench/recipes``: ``title``, ``asked`` and ``aim`` (shares of MNIST's test
images), ``source``, and ``[train]``, settings as of ``fastdigit train``. The result, one line for each seed,
is written to ``bench/results/recipe_NAME.json`` after each seed; ``--readme`` brings the table of all results
in ``bench/recipes/README.md`` up to date.
"""

import argparse
import json
import statistics
import tomllib
from dataclasses import asdict
from pathlib import Path

import fastdigit as fd
from fastdigit.errors import ConfigError
from fastdigit.files import atomic_write
from fastdigit.runs import Settings, training_data

from . import machine

HERE = Path(__file__).resolve().parent
FOLDER, RESULTS = HERE / "recipes", HERE / "results"
PAGE = FOLDER / "README.md"
BEGIN, END = "<!-- table: recipes -->", "<!-- end of table -->"


def read(name):
    """The recipe of that name. Errors: ConfigError for one that is not there or not sound."""
    file = FOLDER / f"{name}.toml"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))
        raise ConfigError(f"there is no recipe {name!r}: choose one of {known}")
    recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    missing = {"title", "asked", "aim", "source", "train"} - set(recipe)
    if missing:
        raise ConfigError(f"{file} lacks {', '.join(sorted(missing))}")
    return recipe


def settings_of(recipe, seed, backend, images):
    """What ``fastdigit train`` would train with."""
    chosen = {"data": "mnist", "classes": list(range(10)), "backend": backend, **recipe["train"]}
    return Settings.complete(images, **{**chosen, "seed": seed})


def trained(settings, data):
    """Train by settings and test: a line of the result."""
    networks = settings.networks(data.train.images[0].size)
    prepared, options = settings.prepare(networks[0], data), settings.fit_options()
    logs = [fd.fit(net, prepared, seed=net.seed, **options) for net in networks]
    evaluation = fd.evaluate(fd.Committee(networks) if len(networks) > 1 else networks[0], data.test)
    return {
        "seed": settings.seed,
        "backend": networks[0].backend.name,
        "correct": evaluation.correct,
        "accuracy": evaluation.accuracy,
        "members": [fd.evaluate(net, data.test).accuracy for net in networks] if len(networks) > 1 else None,
        "training_accuracy": logs[-1].epochs[-1].accuracy,
        "epochs": sum(len(log.epochs) for log in logs),
        "seconds": sum(epoch.seconds for log in logs for epoch in log.epochs),
    }


def summary(rows):
    """Mean and range of the accuracy over seeds."""
    found = [row["accuracy"] for row in rows]
    return {"mean": statistics.fmean(found), "least": min(found), "most": max(found)}


def run(name, seeds, backend="auto", data=None, out=None):
    """Train and test a recipe with each seed; the results, also written to ``out`` after each."""
    recipe = read(name)
    data = training_data("mnist") if data is None else data
    rows = []
    for seed in seeds:
        settings = settings_of(recipe, seed, backend, len(data.train))
        rows.append(trained(settings, data))
        print(f"{name}, seed {seed}: {rows[-1]['accuracy']:.2%} in {rows[-1]['seconds']:.0f} s", flush=True)
        results = {"recipe": name, "settings": asdict(settings), "seeds": rows, "accuracy": summary(rows)}
        if out is not None:
            machine.write(out, **results)
    return results


def markdown():
    """The table of all recipes, those without a result too."""
    lines = ["| recipe | asked | aim | reached, mean (range) | seeds | what |"]
    lines.append("| --- | --: | --: | --: | --: | --- |")
    for file in sorted(FOLDER.glob("*.toml")):
        recipe, found = read(file.stem), RESULTS / f"recipe_{file.stem}.json"
        reached = seeds = "–"
        if found.exists():
            results = json.loads(found.read_text())
            of = results["accuracy"]
            reached = f"{of['mean']:.2%} ({of['least']:.2%} to {of['most']:.2%})"
            seeds = len(results["seeds"])
        name = f"[{file.stem}]({file.name})"
        asked = f"{recipe['asked']:.2%} | {recipe['aim']:.2%}"
        lines.append(f"| {name} | {asked} | {reached} | {seeds} | {recipe['title']} |")
    return "\n".join(lines)


def filled(text):
    """The page with the table as the files have it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2; by default 0")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--readme", action="store_true", help="bring the table of all results up to date")
    options = parser.parse_args(arguments)
    for name in options.recipes:
        out = RESULTS / f"recipe_{name}.json"
        run(name, [int(seed) for seed in options.seeds.split(",")], options.backend, out=out)
    if options.readme:
        atomic_write(PAGE, filled(PAGE.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
