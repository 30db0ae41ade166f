"""Seconds of training until MNIST's test images are read so well: a recipe for each accuracy.

The seconds are those of the whole ``fd.fit`` in a process that has compiled before. Every recipe is trained
from several seeds; the accuracy of a recipe is their median.
"""

import time
from dataclasses import dataclass

import numpy as np

import fastdigit as fd


@dataclass(frozen=True)
class Recipe:
    """What reaches an accuracy: SGD with Nesterov's momentum, one cycle of the learning rate."""

    target: float
    layer_sizes: tuple[int, ...]
    epochs: int
    batch: int = 128
    rate: float = 0.2
    dropout: float = 0.0

    def __str__(self):
        drop = f", dropout {self.dropout:g}" if self.dropout else ""
        return f"{'-'.join(map(str, self.layer_sizes))}, {self.epochs} epochs, batch {self.batch}{drop}"


RECIPES = (
    Recipe(0.97, (784, 128, 10), 2),
    Recipe(0.98, (784, 128, 10), 6),
    Recipe(0.985, (784, 512, 256, 10), 8, dropout=0.2),
    Recipe(0.99, (784, 1000, 1000, 10), 40, dropout=0.4),
)


def train(recipe, data, seed, backend):
    """(seconds, accuracy of the test images)."""
    net = fd.Network(recipe.layer_sizes, backend=backend, dropout=recipe.dropout, seed=seed)
    begun = time.perf_counter()
    fd.fit(
        net,
        data.train,
        optimizer=fd.SGD(recipe.rate, momentum=0.9, nesterov=True),
        schedule=fd.OneCycle(),
        epochs=recipe.epochs,
        batch_size=recipe.batch,
        seed=seed,
    )
    return time.perf_counter() - begun, fd.evaluate(net, data.test).accuracy


def measure(data, backend="auto", seeds=5, most=0.99):
    """A row for each recipe up to an accuracy."""
    rows = []
    for recipe in RECIPES:
        if recipe.target > most:
            continue
        warm = fd.Network(recipe.layer_sizes, backend=backend, dropout=recipe.dropout, seed=0)
        fd.fit(warm, (data.train.images[:256], data.train.labels[:256]), epochs=1)  # loads compiled code
        seconds, accuracies = np.array([train(recipe, data, seed, backend) for seed in range(1, seeds + 1)]).T
        rows.append(
            {
                "target": recipe.target,
                "recipe": str(recipe),
                "seconds": float(np.median(seconds)),
                "seconds_range": [float(seconds.min()), float(seconds.max())],
                "accuracy": float(np.median(accuracies)),
                "accuracy_range": [float(accuracies.min()), float(accuracies.max())],
                "seeds": seeds,
                "reached": bool(np.median(accuracies) >= recipe.target),
            }
        )
    return rows
