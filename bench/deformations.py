"""What a training on deformed images is worth where handwriting is unusual, measured on MNIST.

    python -m fastdigit.bench.deformations [--json FILE] [--page LIMITS.md]
    python -m fastdigit.bench.deformations --cost FILE

784-800-10, thirty epochs, trained on the images as they are, deformed by the standard strengths, and by
stronger ones with noise: read right as they are and corrupted (``fd.corruption_robustness``), and misread of
the worst tenth of writers (``bench.bias``). ``--cost`` measures what deforming costs an epoch instead, for
which nothing else should run.
"""

import argparse
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import acceptance, machine, tables

NAME = "deformations"
LAYERS, EPOCHS, SEEDS = [784, 800, 10], 30, range(2)
STRENGTHS = {
    "as they are": None,
    "standard": "standard",
    "stronger, with noise": "rotation=15,scale=0.2,shear=0.15,shift=2.5,elastic=1,thickness=0.5,noise=200",
}


def measure(strengths, seed, data, writers):
    net = fd.Network(LAYERS, seed=seed)
    augment = None if strengths is None else fd.Augment.parse(strengths)
    optimizer = fd.SGD(0.2, momentum=0.9, nesterov=True)
    log = fd.fit(net, data.train, optimizer=optimizer, epochs=EPOCHS, augment=augment, seed=seed)
    evaluation, robustness = fd.evaluate(net, data.test), fd.corruption_robustness(net, data.test)
    return {
        "accuracy": evaluation.accuracy,
        "corrupted": robustness.mean,
        "corruptions": robustness.as_dict(),
        "worst_decile": fd.accuracy_by(evaluation, writers.writer).worst_decile(),
        "seconds_of_an_epoch": min(epoch.seconds for epoch in log.epochs),
    }


def cost(rounds=7):
    """Epochs of LAYERS on deformed images over those on images as they are, in turns, one after the other."""
    data = fd.load_mnist()
    affine = fd.Augment(rotation=10, scale=0.1, shear=0.1, shift=1)
    kinds = {"as they are": None, "affine": affine, "standard": fd.Augment.standard()}
    seconds = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, augment in kinds.items():
            log = fd.fit(fd.Network(LAYERS), data.train, epochs=1, augment=augment)
            seconds[name].append(log.epochs[0].seconds)
    seconds = {name: each[1:] for name, each in seconds.items()}  # the first ones compile
    ratios = {name: np.divide(each, seconds["as they are"]) for name, each in seconds.items()}
    quartiles = {name: np.quantile(ratio, (0.25, 0.5, 0.75)).tolist() for name, ratio in ratios.items()}
    return {"network": LAYERS, "seconds": seconds, "ratio_quartiles": quartiles}


def table(results):
    """A row for each training: means over the seeds."""
    columns = ("trained on images", "read as they are", "corrupted, on average", "points more")
    made = tables.Table(NAME, "Deformations", (*columns, "worst tenth of writers misread", "cut by"))

    def mean(row, of):
        return sum(map(of, row["seeds"])) / len(row["seeds"])

    plain = results["rows"][0]
    corrupted, worst = (
        [mean(row, of) for row in (plain, *results["rows"])]
        for of in (lambda seed: seed["corrupted"], lambda seed: seed["worst_decile"]["error"])
    )
    for row, points, error in zip(results["rows"], corrupted[1:], worst[1:], strict=True):
        more = f"{100 * (points - corrupted[0]):+.1f}" if row is not plain else ""
        cut = f"{1 - error / worst[0]:.0%}" if row is not plain else ""
        strengths = f"deformed: {row['strengths']}" if row["strengths"] else row["name"]
        accuracy = f"{mean(row, lambda seed: seed['accuracy']):.2%}"
        made.rows.append((strengths, accuracy, f"{points:.1%}", more, f"{error:.1%}", cut))
    return made


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--cost", type=Path)
    options = parser.parse_args(arguments)
    if options.cost:
        machine.write(options.cost, **cost())
        return
    data, rows = fd.load_mnist(), []
    writers = fd.load_writers("test", data.test.labels)
    for name, strengths in STRENGTHS.items():
        rows.append({"name": name, "strengths": strengths, "seeds": []})
        for seed in SEEDS:
            found = measure(strengths, seed, data, writers)
            rows[-1]["seeds"].append(found)
            print(f"{name}, {seed}: {found['accuracy']:.2%}, {found['corrupted']:.2%} corrupted", flush=True)
    results = {"network": LAYERS, "epochs": EPOCHS, "rows": rows}
    print(tables.markdown(table(results)))
    if options.json:
        machine.write(options.json, **results)
    if options.page:
        acceptance.put_between_marks(options.page, NAME, tables.markdown(table(results)))


if __name__ == "__main__":
    main()
