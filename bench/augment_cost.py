"""What deforming images costs an epoch of 784-800-10. Nothing else should run meanwhile.

python -m fastdigit.bench.augment_cost [--json FILE] [--backend NAME]
"""

import argparse
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import acceptance, machine, tables
from .recipes import read

NAME = "augment_cost"
LAYERS, PLAIN = [784, 800, 10], "as they are"


def measure(backend="auto", rounds=7):
    """Epochs on deformed images over those on images as they are, in turns, one after the other."""
    data = fd.load_mnist()
    strengths = {
        PLAIN: None,
        "affine": "rotation=10,scale=0.1,shear=0.1,shift=1",
        "standard": str(fd.Augment.standard()),
        "unusual": read("unusual-800")["train"]["augment"],
    }
    kinds = {name: text and fd.Augment.parse(text) for name, text in strengths.items()}
    seconds = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, augment in kinds.items():
            log = fd.fit(fd.Network(LAYERS, backend=backend), data.train, epochs=1, augment=augment)
            seconds[name].append(log.epochs[0].seconds)
    seconds = {name: each[1:] for name, each in seconds.items()}  # the first ones compile
    ratios = {name: np.divide(each, seconds[PLAIN]) for name, each in seconds.items()}
    quartiles = {name: np.quantile(ratio, (0.25, 0.5, 0.75)).tolist() for name, ratio in ratios.items()}
    return {"network": LAYERS, "strengths": strengths, "seconds": seconds, "ratio_quartiles": quartiles}


def table(results):
    """A row for each kind: medians."""
    made = tables.Table(NAME, "Cost", ("images", "an epoch takes", "times as long", "quartiles"))
    for name, strengths in results["strengths"].items():
        low, middle, high = results["ratio_quartiles"][name]
        seconds = f"{np.median(results['seconds'][name]):.2f} s"
        ratio = ("", "") if name == PLAIN else (f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
        made.rows.append((f"{name}: {strengths}" if strengths else name, seconds, *ratio))
    return made


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    results = measure(options.backend)
    print(tables.markdown(table(results)))
    if options.json:
        machine.write(options.json, **results)
    if options.page:
        acceptance.put_between_marks(options.page, NAME, tables.markdown(table(results)))


if __name__ == "__main__":
    main()
