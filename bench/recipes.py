"""Trainings that reach a figure, each in a file: repeated by one command, with other seeds too.

    python -m fastdigit.bench.recipes elastic-800 [--seeds 0] [--backend NAME] [--pages]

A recipe is a TOML file in ``bench/recipes``: ``title``, ``source``, ``[train]``, settings as of ``fastdigit
train``, and a part for each figure of :mod:`.measures` that it is measured by, such as ``[accuracy]``: what
is ``asked`` and the ``aim``, if anything is, ``against`` which other recipe, if it is a comparison. The
result, one row for each seed (0 to 4, unless others are named), is written to
``bench/results/recipe_NAME.json`` after each seed; ``--pages`` brings the tables of :mod:`.recipe_tables` up
to date.
"""

import argparse
import tomllib
from dataclasses import asdict
from pathlib import Path

import fastdigit as fd
from fastdigit.errors import ConfigError
from fastdigit.runs import Settings, training_data

from . import machine, measures

HERE = Path(__file__).resolve().parent
FOLDER, RESULTS = HERE / "recipes", HERE / "results"
NEEDED, ASKED = {"title", "source", "train"}, {"asked", "aim", "against"}


def read(name):
    """The recipe of that name. Errors: ConfigError for one that is not there or not sound."""
    file = FOLDER / f"{name}.toml"
    if not file.exists():
        raise ConfigError(f"there is no recipe {name!r}: choose one of {', '.join(names())}")
    recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    if missing := NEEDED - set(recipe):
        raise ConfigError(f"{file} lacks {', '.join(sorted(missing))}")
    for figure in figures(recipe):
        if figure not in measures.FIGURES:
            raise ConfigError(f"{file}: there is no figure {figure!r} in {', '.join(measures.FIGURES)}")
        if unknown := set(recipe[figure]) - ASKED:
            raise ConfigError(f"{file}: [{figure}] has no {', '.join(sorted(unknown))}")
    return recipe


def names():
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def figures(recipe):
    """The names of the figures that a recipe is measured by, in its order."""
    return [name for name in recipe if name not in NEEDED]


def settings_of(recipe, seed, backend, images):
    """What ``fastdigit train`` would train with."""
    chosen = {"data": "mnist", "classes": list(range(10)), "backend": backend, **recipe["train"]}
    return Settings.complete(images, **{**chosen, "seed": seed})


def trained(settings, data, asked):
    """Train by settings and test, by the measures ``asked`` too: a row of the result."""
    networks = settings.networks(data.train.images[0].size)
    prepared, options = settings.prepare(networks[0], data), settings.fit_options()
    logs = [fd.fit(net, prepared, seed=net.seed, **options) for net in networks]
    model = fd.Committee(networks) if len(networks) > 1 else networks[0]
    evaluation = fd.evaluate(model, data.test)
    return {
        "seed": settings.seed,
        "backend": networks[0].backend.name,
        "correct": evaluation.correct,
        "accuracy": evaluation.accuracy,
        "members": [fd.evaluate(net, data.test).accuracy for net in networks] if len(networks) > 1 else None,
        "training_accuracy": logs[-1].epochs[-1].accuracy,
        "epochs": sum(len(log.epochs) for log in logs),
        "seconds": sum(epoch.seconds for log in logs for epoch in log.epochs),
        **{measure.__name__: measure(model, data, prepared) for measure in asked},
    }


def run(name, seeds, backend="auto", data=None, out=None):
    """Train and test a recipe with each seed; the results, also written to ``out`` after each."""
    recipe = read(name)
    data = training_data("mnist") if data is None else data
    asked, rows = measures.of(figures(recipe)), []
    for seed in seeds:
        settings = settings_of(recipe, seed, backend, len(data.train))
        rows.append(trained(settings, data, asked))
        found = ", ".join(
            f"{measures.FIGURES[each].what} {measures.FIGURES[each].value(rows[-1]):.2%}"
            for each in figures(recipe)
        )
        print(f"{name}, seed {seed}: {found}, in {rows[-1]['seconds']:.0f} s", flush=True)
        results = {"recipe": name, "settings": asdict(settings), "seeds": rows}
        if out is not None:
            machine.write(out, **results)
    return results


def _seeds(text):
    return [int(seed) for seed in text.split(",")]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--seeds", type=_seeds, default="0,1,2,3,4", help="such as 0; by default 0 to 4")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--pages", action="store_true", help="bring the tables of all results up to date")
    options = parser.parse_args(arguments)
    for name in options.recipes:  # all of them before hours of training
        try:
            read(name)
        except ConfigError as error:
            parser.error(str(error))
    for name in options.recipes:
        out = RESULTS / f"recipe_{name}.json"
        run(name, options.seeds, options.backend, out=out)
    if options.pages:
        from . import recipe_tables

        recipe_tables.write()


if __name__ == "__main__":
    main()
