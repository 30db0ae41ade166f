"""Who is read worse, and what training can do about it, measured on MNIST with its writers.

    python -m fastdigit.bench.bias [--json FILE] [--page LIMITS.md] [--png FILE]

784-256-10 from three seeds, six epochs each, trained on

- all 60,000 images as they are, and with every series or writer counting alike;
- 29,050 images of employees (series 0), of students (series 4), or of half of each;
- 29,050 images of which one in ten is a student's, as they are and with both series counting alike.

Tested on all 10,000: none of their writers has written what a network was trained on.
"""

import argparse
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import acceptance, machine, tables

NAME = "bias"
LAYERS, EPOCHS, SEEDS = [784, 256, 10], 6, range(3)
EMPLOYEES, STUDENTS = 0, 4


def train(images, seed, sample_weight=None):
    """A network trained on these images."""
    net = fd.Network(LAYERS, seed=seed)
    optimizer = fd.SGD(0.2, momentum=0.9, nesterov=True)
    fd.fit(net, images, optimizer=optimizer, epochs=EPOCHS, seed=seed, sample_weight=sample_weight)
    return net


def draw(series, employees, students, seed):
    """Indices of so many images of each series, drawn by chance, without repetition."""
    random = np.random.default_rng(seed)
    counts = {EMPLOYEES: employees, STUDENTS: students}
    return np.concatenate(
        [random.choice(np.flatnonzero(series == of), count, replace=False) for of, count in counts.items()]
    )


def trainings(writers, seed):
    """(name, indices of the images to train on, their weights or None), one training after the other."""
    everything = np.arange(len(writers))
    yield "all", everything, None
    for by in ("series", "writer"):
        groups = getattr(writers, by)
        yield f"all, by {by}: weight", everything, fd.balanced_weights(groups)
        yield f"all, by {by}: resample", fd.balanced_sample(groups, seed), None

    count = int(min((writers.series == of).sum() for of in (EMPLOYEES, STUDENTS)))
    tenth = count // 10
    for name, employees in (("employees", count), ("students", 0), ("half of each", count - count // 2)):
        yield f"{count:,}: {name}", draw(writers.series, employees, count - employees, seed), None
    few = draw(writers.series, count - tenth, tenth, seed)
    groups, name = writers.series[few], f"{count:,}: one in ten a student's"
    yield name, few, None
    yield f"{name}, by series: weight", few, fd.balanced_weights(groups)
    yield f"{name}, by series: resample", few[fd.balanced_sample(groups, seed)], None


def measure(data, writers, seeds):
    """(rows, the evaluation of the first): for each training a row with a list over the seeds of what its
    network does on the test images."""
    rows, first = {}, None
    for seed in seeds:
        for name, indices, weight in trainings(writers["train"], seed):
            evaluation = fd.evaluate(train(data.train.take(indices), seed, weight), data.test)
            first = first or evaluation
            by_series = fd.accuracy_by(evaluation, writers["test"].series)
            accuracy = {row["group"]: row["accuracy"] for row in by_series.rows()}
            row = rows.setdefault(name, {"training": name, "images": len(indices), "seeds": []})
            row["seeds"].append(
                {
                    "accuracy": evaluation.accuracy,
                    "employees": accuracy[EMPLOYEES],
                    "students": accuracy[STUDENTS],
                    "gap": by_series.gap(),
                    "worst_decile": fd.accuracy_by(evaluation, writers["test"].writer).worst_decile(),
                }
            )
            print(f"seed {seed}, {name}: {evaluation.accuracy:.2%}", flush=True)
    return list(rows.values()), first


def table(results):
    """A row for each training: mean and range over the seeds."""
    columns = (
        "trained on",
        "all right",
        "employees right",
        "students right",
        "points between",
        "worst tenth of writers misread",
        "by chance",
    )
    made = tables.Table(NAME, "Bias", columns)
    for row in results["rows"]:
        seeds = row["seeds"]
        accuracies = [[seed[who] for seed in seeds] for who in ("accuracy", "employees", "students")]
        gaps = [100 * (seed["employees"] - seed["students"]) for seed in seeds]
        worst = [seed["worst_decile"] for seed in seeds]
        made.rows.append(
            (
                row["training"],
                *(_spread(values, "{:.2%}") for values in accuracies),
                _spread(gaps, "{:.2f}"),
                _spread([decile["error"] for decile in worst], "{:.1%}"),
                f"{np.mean([decile['chance'] for decile in worst]):.1%}",
            )
        )
    return made


def _spread(values, form):
    """The mean, in brackets the range."""
    low, high, mean = (form.format(number) for number in (min(values), max(values), np.mean(values)))
    return f"{mean} ({low} to {high})"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args(arguments)
    data = fd.load_mnist()
    writers = {split: fd.load_writers(split, getattr(data, split).labels) for split in ("train", "test")}
    rows, first = measure(data, writers, SEEDS)
    results = {"network": LAYERS, "epochs": EPOCHS, "rows": rows}
    print(tables.markdown(table(results)))
    if options.json:
        machine.write(options.json, **results)
    if options.page:
        acceptance.put_between_marks(options.page, NAME, tables.markdown(table(results)))
    if options.png:
        from fastdigit import plots_limits

        plots_limits.groups(fd.accuracy_by(first, writers["test"].writer), "writer", options.png)


if __name__ == "__main__":
    main()
