"""How many of MNIST's test images a plain network reads when they are corrupted.

    python -m fastdigit.bench.robustness [--json FILE] [--page LIMITS.md] [--png FILE]

784-256-10, trained on the 60,000 images as they are, from three seeds; ``fd.corruption_robustness`` on the
10,000.
"""

import argparse
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import acceptance, machine, tables
from .bias import EPOCHS, LAYERS, SEEDS, train

NAME = "corruptions"


def table(results):
    """A row for each corruption: the means over the seeds."""
    found = results["seeds"]
    strengths = found[0]["strengths"]
    made = tables.Table(NAME, "Corruptions", ("corruption", *map(str, strengths), "mean"))
    for name in found[0]["accuracy"]:
        values = np.mean([seed["accuracy"][name] for seed in found], axis=0)
        made.rows.append((name, *(f"{value:.1%}" for value in values), f"{values.mean():.1%}"))
    clean, mean = (np.mean([seed[name] for seed in found]) for name in ("clean", "mean"))
    made.rows.append((f"all (as they are: {clean:.2%})", *[""] * len(strengths), f"{mean:.1%}"))
    return made


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args(arguments)
    data, found = fd.load_mnist(), []
    for seed in SEEDS:
        net = train(data.train, seed)
        found.append(fd.corruption_robustness(net, data.test))
        print(f"seed {seed}: {found[-1].clean:.2%} clean, {found[-1].mean:.2%} corrupted", flush=True)
    results = {"network": LAYERS, "epochs": EPOCHS, "seeds": [each.as_dict() for each in found]}
    print(tables.markdown(table(results)))
    if options.json:
        machine.write(options.json, **results)
    if options.page:
        acceptance.put_between_marks(options.page, NAME, tables.markdown(table(results)))
    if options.png:
        from fastdigit import plots_limits

        plots_limits.robustness(found[0], data.test.images, options.png)


if __name__ == "__main__":
    main()
