"""What a recipe's network can be asked for besides its accuracy, and the figures that come of it.

A measure is a function of ``(net, data, training)``, the network, the data set and what it was trained on,
and gives what the file of results keeps; a :class:`Figure` is one number of that.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import fastdigit as fd
from fastdigit.robust import substitute

PGD_40 = fd.PGD(0.1, step=0.01, steps=40)
FGSM_25 = fd.FGSM(0.25)


def attacks(net, data, training):
    """What is left right under PGD and FGSM, with checks; how long an attack takes."""
    other = substitute(data.train, net.classes, seed=net.seed + 1)
    pgd = fd.adversarial_robustness(net, data.test, PGD_40, (0.05, 0.1, 0.2), other=other, seed=net.seed)
    begun, worked = time.perf_counter(), time.process_time()
    fd.attack(net, data.test.images, data.test.labels, PGD_40)
    took = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - worked}
    fgsm = fd.adversarial_robustness(net, data.test, FGSM_25, (0.1, 0.25), other=other, seed=net.seed)
    return {
        "pgd": pgd.as_dict(),
        "fgsm": fgsm.as_dict(),
        "all_test_images_attacked_by_pgd_40_in": took,
    }


def calibration(net, data, training):
    """Temperature of the images held back; calibration and the reject option on the test images."""
    before = fd.evaluate(net, data.test)
    after = replace(before, temperature=fd.fit_temperature(fd.evaluate(net, training.validation)))
    curve = fd.risk_coverage(after)
    at_99 = curve.at(curve.threshold_for_coverage(0.99))
    return {
        "temperature": after.temperature,
        "error_before": fd.reliability(before).error,
        "error": fd.reliability(after).error,
        "coverage": at_99.coverage,
        "error_at_99": at_99.error,
    }


def corruptions(net, data, training):
    """What is read right of corrupted test images."""
    return fd.corruption_robustness(net, data.test).as_dict()


def writers(net, data, training):
    """What is misread of the worst tenth of those who wrote the test images."""
    known = fd.load_writers("test", data.test.labels)
    return fd.accuracy_by(fd.evaluate(net, data.test), known.writer).worst_decile()


def left_right(row, method, epsilon):
    """The accuracy under an attack within ``epsilon``, of a seed's results."""
    (found,) = (each["accuracy"] for each in row["attacks"][method]["attacked"] if each["epsilon"] == epsilon)
    return found


@dataclass(frozen=True)
class Figure:
    """A number of a seed's results. ``change(value, against)``: what is asked for, where it is asked in
    comparison with another recipe's mean; ``changed`` says what that is."""

    what: str
    value: Callable[[dict], float]
    measure: Callable | None = None
    less_is_better: bool = False
    change: Callable[[float, float], float] | None = None
    changed: str = ""


FIGURES = {
    "accuracy": Figure("read right", lambda row: row["accuracy"]),
    "pgd": Figure("read right, PGD-40 within 0.1", lambda row: left_right(row, "pgd", 0.1), attacks),
    "fgsm": Figure("read right, FGSM within 0.25", lambda row: left_right(row, "fgsm", 0.25), attacks),
    "calibration_error": Figure(
        "expected calibration error", lambda row: row["calibration"]["error"], calibration, True
    ),
    "error_at_99": Figure(
        "misread of the 99 % it is surest of",
        lambda row: row["calibration"]["error_at_99"],
        calibration,
        True,
    ),
    "corrupted": Figure(
        "read right, corrupted",
        lambda row: row["corruptions"]["mean"],
        corruptions,
        change=lambda value, against: value - against,
        changed="more of the corrupted images read right than",
    ),
    "worst_writers": Figure(
        "misread, worst tenth of writers",
        lambda row: row["writers"]["error"],
        writers,
        True,
        change=lambda value, against: 1 - value / against,
        changed="less misread of the worst tenth of writers than",
    ),
}


def of(figures):
    """The measures that these figures need, each once."""
    return list(dict.fromkeys(m for name in figures if (m := FIGURES[name].measure) is not None))
