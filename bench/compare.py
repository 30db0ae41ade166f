"""Two files of results held against each other: what became slower, by more than the noise.

Speeds are first divided by the processor's limit as it was in their own run, those of training turn by turn: a
machine that runs at another clock, or shares its cores with a neighbour, is no regression. The noise of a row
is half the distance of its quartiles, of both files together, relative to the median. A row is slower where it
lost more than the threshold and more than its noise.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """What the second file has of the first one's speed; ``noise`` is relative."""

    name: str
    ratio: float
    noise: float

    def slower(self, threshold):
        return self.ratio < 1 - max(threshold, self.noise)

    def faster(self, threshold):
        return self.ratio > 1 + max(threshold, self.noise)


def compare(first, second, parts=None):
    """A :class:`Row` for everything that both files have a time for."""
    before, after = speeds(first, parts), speeds(second, parts)
    return [
        Row(name, after[name][0] / before[name][0], math.hypot(before[name][1], after[name][1]))
        for name in before
        if name in after
    ]


def missing(first, second, parts=None):
    """The names that only the first file has a time for."""
    after = speeds(second, parts)
    return [name for name in speeds(first, parts) if name not in after]


def speeds(results, parts=None):
    """{name: (speed as a share of the run's limit, noise)} of all rows with a time."""
    limit, found = results["limits"]["gflops"], {}
    for part, rows in (
        ("train", _train),
        ("kernels", _kernels),
        ("predict", _predict),
        ("scaling", _scaling),
    ):
        content = results.get(part)
        if content is None or "no_time" in content or (parts and part not in parts):
            continue
        for name, share, noise in rows(content, limit):
            found[f"{part} {name}"] = share, noise
    return found


def _spread(low, middle, high):
    return (high - low) / middle / 2


def _train(networks, limit):
    for network in networks:
        for row in network["rows"]:
            if "no_time" not in row:
                shares = np.divide(row["turns"], network["limits"] or limit)
                low, middle, high = np.percentile(shares, [25, 50, 75]).tolist()
                yield f"{network['name']} {row['side']}", middle, _spread(low, middle, high)


def _kernels(content, limit):
    limit = content["limits"]["gflops"]
    for row in content["rows"]:
        if "no_time" not in row:
            low, high = row["microseconds_quartiles"]
            time = row["microseconds"]
            name = f"{row['operation']} {row['shape']} {row['backend']}"
            yield name, 1 / time / limit, _spread(low, time, high)


def _predict(rows, limit):
    for row in rows:
        if "no_time" not in row:
            for what in ("label", "probabilities"):
                time, (low, high) = row[f"microseconds_{what}"], row[f"microseconds_{what}_quartiles"]
                yield f"{what} {row['side']}", 1 / time / limit, _spread(low, time, high)


def _scaling(rows, limit):
    for row in rows:
        low, high = row["quartiles"]
        speed = row["images_per_second"]
        yield f"{row['axis']} {row['value']}", speed / limit, _spread(low, speed, high)
