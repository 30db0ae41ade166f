"""Learning-rate schedules: a factor on the optimizer's learning rate for every step.

A schedule is called with the step (from 0), the number of steps in the whole training and the
number of steps in an epoch, and returns the factor. It is computed in float64 on the host, so it
is the same number on every backend. Any function of that signature will do.
"""

import math
from dataclasses import dataclass

from .errors import check_count, check_number


def _cosine(start, end, progress):
    """From ``start`` (progress 0) to ``end`` (progress 1) along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Constant:
    """The learning rate as it is."""

    def __call__(self, step, steps, steps_per_epoch):
        return 1.0


@dataclass(frozen=True)
class Step:
    """Multiplied by ``factor`` after every ``epochs`` epochs."""

    epochs: int = 10
    factor: float = 0.1

    def __post_init__(self):
        check_count("Step's epochs", self.epochs)
        check_number("Step's factor", self.factor, "(0, 1]")

    def __call__(self, step, steps, steps_per_epoch):
        return self.factor ** (step // (self.epochs * steps_per_epoch))


@dataclass(frozen=True)
class Cosine:
    """A linear rise over ``warmup`` epochs, then half a cosine down to the factor ``final``.

    Source: Loshchilov, Hutter, "SGDR", ICLR 2017 (one period, no restart).
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self):
        check_number("Cosine's warmup", self.warmup, "[0, inf)")
        check_number("Cosine's final", self.final, "[0, 1]")

    def __call__(self, step, steps, steps_per_epoch):
        warmup = min(round(self.warmup * steps_per_epoch), steps)
        if step < warmup:
            return (step + 1) / warmup
        return _cosine(1.0, self.final, (step - warmup) / max(1, steps - warmup))


@dataclass(frozen=True)
class OneCycle:
    """Up from 1/``start_divisor`` to 1 over the first ``rise`` of all steps, then down to
    1/(``start_divisor`` · ``final_divisor``), both along half a cosine.

    The optimizer's learning rate is the peak; its momentum stays as it is.
    Source: Smith, Topin, "Super-convergence", 2018; the numbers are the customary ones.
    """

    rise: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self):
        check_number("OneCycle's rise", self.rise, "(0, 1)")
        check_number("OneCycle's start_divisor", self.start_divisor, "[1, inf)")
        check_number("OneCycle's final_divisor", self.final_divisor, "[1, inf)")

    def __call__(self, step, steps, steps_per_epoch):
        if steps == 1:  # neither a rise nor a fall
            return 1.0
        start = 1 / self.start_divisor
        peak = self.rise * steps - 1
        if step < peak:
            return _cosine(start, 1.0, step / peak)
        last = steps - 1
        return _cosine(1.0, start / self.final_divisor, (step - peak) / (last - peak))


# What they say depends on nothing but their numbers: they may be asked at any time.
BUILT_IN = Constant, Step, Cosine, OneCycle
