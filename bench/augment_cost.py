"""What deforming images costs an epoch of 784-800-10. Nothing else should run meanwhile.

python -m fastdigit.bench.augment_cost [--json FILE] [--backend NAME]
"""

import argparse
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import machine
from .recipes import read

LAYERS = [784, 800, 10]


def measure(backend="auto", rounds=7):
    """Epochs on deformed images over those on images as they are, in turns, one after the other."""
    data = fd.load_mnist()
    kinds = {
        "as they are": None,
        "affine": fd.Augment(rotation=10, scale=0.1, shear=0.1, shift=1),
        "standard": fd.Augment.standard(),
        "unusual": fd.Augment.parse(read("unusual-800")["train"]["augment"]),
    }
    seconds = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, augment in kinds.items():
            log = fd.fit(fd.Network(LAYERS, backend=backend), data.train, epochs=1, augment=augment)
            seconds[name].append(log.epochs[0].seconds)
    seconds = {name: each[1:] for name, each in seconds.items()}  # the first ones compile
    ratios = {name: np.divide(each, seconds["as they are"]) for name, each in seconds.items()}
    quartiles = {name: np.quantile(ratio, (0.25, 0.5, 0.75)).tolist() for name, ratio in ratios.items()}
    return {"network": LAYERS, "seconds": seconds, "ratio_quartiles": quartiles}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    results = measure(options.backend)
    for name, (low, middle, high) in results["ratio_quartiles"].items():
        print(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f}) times an epoch on images as they are")
    if options.json:
        machine.write(options.json, **results)


if __name__ == "__main__":
    main()
