"""Two files of results held against each other: what became slower, by more than the noise.

Speeds are first divided by the processor's limit as it was in their own run, those of training turn by turn:
a machine that runs at another clock, or shares its cores with a neighbour, is no regression. The noise of a
row is half the distance of its quartiles, of both files together, relative to the median. A row is slower
where it lost more than the threshold and more than its noise. Trainings whose threads were near each other in
one run and far apart in the other (``bench.train``) are not compared.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastdigit.errors import ConfigError

from . import train

LIMITED = ("predict", "scaling")  # parts without a limit of their own: it is measured before each


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
    """A :class:`Row` for everything that both files have a time for, measured in the same state.

    Errors: ConfigError for files of different data, or of other backends."""
    for what, one, other in (
        ("data", first["data"], second["data"]),
        ("backends", *(", ".join(results["settings"]["backends"]) for results in (first, second))),
    ):
        if one != other:
            raise ConfigError(f"these two cannot be compared: {what} {one} in one, {other} in the other")
    before, after = speeds(first, parts), speeds(second, parts)
    return [
        Row(name, after[name].share / before[name].share, math.hypot(before[name].noise, after[name].noise))
        for name in before
        if name in after and not _apart(before[name], after[name])
    ]


def missing(first, second, parts=None):
    """The names that only the first file has a time for, of parts that both files have."""
    common = set(first) & set(second) & set(first if parts is None else parts)
    after = speeds(second, common)
    return [name for name in speeds(first, common) if name not in after]


def apart(first, second, parts=None):
    """The names of trainings whose threads met quickly in one file and slowly in the other."""
    before, after = speeds(first, parts), speeds(second, parts)
    return [name for name in before if name in after and _apart(before[name], after[name])]


def _apart(one, other):
    if one.meeting is None or other.meeting is None:
        return False
    near, far = sorted((one.meeting, other.meeting))
    return far > train.FAR * near


class Speed(NamedTuple):
    """As a share of the run's limit; noise as in :class:`Row`; nanoseconds in which the threads met."""

    share: float
    noise: float
    meeting: float | None = None


def speeds(results, parts=None):
    """{name: :class:`Speed`} of all rows with a time."""
    limit, found = results["limits"]["gflops"], {}
    for part, rows in (
        ("train", _train),
        ("kernels", _kernels),
        ("predict", _predict),
        ("scaling", _scaling),
    ):
        content = results.get(part)
        if content is None or "no_time" in content or (parts is not None and part not in parts):
            continue
        for name, *speed in rows(content, results["limits"].get(part, limit)):
            found[f"{part} {name}"] = Speed(*speed)
    return found


def _spread(low, middle, high):
    return (high - low) / middle / 2


def _train(networks, limit):
    for network in networks:
        chosen = network["rounds_that_count"]
        meeting = float(np.median(np.array(network["meetings"])[chosen]))
        for row in network["rows"]:
            if "no_time" not in row:
                limits = row.get("limits", network["limits"])  # older files have only those of the rounds
                shares = np.divide(row["turns"], limits)[chosen]
                low, middle, high = np.percentile(shares, [25, 50, 75]).tolist()
                yield f"{network['name']} {row['side']}", middle, _spread(low, middle, high), meeting


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
