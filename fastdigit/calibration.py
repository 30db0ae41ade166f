"""How far the probabilities of a network can be trusted, and when it had better not answer.

All functions take an :class:`~fastdigit.evaluation.Evaluation`; the *confidence* of an answer is the
probability of the most probable class.

Errors of all functions: DataError for an evaluation without images or with logits that are not finite.
"""

import math
from dataclasses import dataclass

import numpy as np

from .errors import DataError, check_count, check_number
from .probabilities import log_softmax


def fit_temperature(evaluation):
    """The temperature T > 0 that minimises the mean cross-entropy of softmax(logits / T): a float.

    ``evaluation`` must be of images that the network was **not** trained on. Set the result as
    ``net.temperature``. No answer changes, only how sure of it the network says it is.

    With sharpness s = 1/T the mean loss is convex in s, with the slope

        mean_i (Σ_c p_ic z_ic - z_it),   p_i = softmax(s · z_i)

    and the temperature is where that is 0.
    Errors: DataError where no temperature is the best: every image is read correctly (the smaller, the
    better), or images are read no better than by chance (the larger, the better).
    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017), section 4.2.
    """
    from scipy.optimize import brentq

    _check(evaluation)
    logits = np.asarray(evaluation.logits, np.float64)
    z = logits - logits.max(axis=1, keepdims=True)
    scale = -z.mean() or 1.0  # so that the sharpness is looked for around 1, however large the logits are
    z /= scale
    target = z[np.arange(len(z)), evaluation.targets]

    def slope(sharpness):
        p = np.exp(log_softmax(z * sharpness))
        return ((p * z).sum(axis=1) - target).mean()

    if slope(0.0) >= 0:
        raise DataError(
            "these images are read no better than by chance: no temperature helps, train the network"
        )
    if not target.any():
        raise DataError(
            f"all {len(target):,} images are read correctly, which says nothing about how sure the network "
            "may be: fit the temperature on more images"
        )
    high = 1.0
    while slope(high) < 0:
        high *= 2
    return float(scale / brentq(slope, 0.0, high))


@dataclass(frozen=True, eq=False)
class Reliability:
    """Answers in bins of their confidence: what they claim and what they keep.

    One entry for each bin that holds an answer: confidences above ``low``, up to ``high``, how many answers
    (``count``), their mean ``confidence``, and their ``accuracy``.
    """

    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self):
        """The expected calibration error: the mean of |accuracy - confidence| over the answers."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))

    def as_dict(self):
        names = ("low", "high", "count", "confidence", "accuracy")
        rows = zip(*(getattr(self, name).tolist() for name in names), strict=True)
        return {
            "expected_calibration_error": self.error,
            "bins": [dict(zip(names, row, strict=True)) for row in rows],
        }


def reliability(evaluation, bins=15, equal_mass=False):
    """The :class:`Reliability` of answers, in bins of equal width or (about) equally many answers.

    Errors: also ConfigError for ``bins`` below 1.
    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017), section 2.
    """
    check_count("bins", bins)
    _check(evaluation)
    confidence, right = evaluation.confidence, evaluation.predicted == evaluation.targets
    shares = np.linspace(0, 1, bins + 1)
    edges = np.quantile(confidence, shares) if equal_mass else shares
    bin_of = np.searchsorted(edges[1:-1], confidence)  # a confidence on an edge belongs below it
    count = np.bincount(bin_of, minlength=bins)
    filled = count > 0

    def mean(values):
        return np.bincount(bin_of, values, bins)[filled] / count[filled]

    return Reliability(edges[:-1][filled], edges[1:][filled], count[filled], mean(confidence), mean(right))


@dataclass(frozen=True)
class Answered:
    """What becomes of ``count`` images if only answers of confidence ``threshold`` or more are given."""

    threshold: float
    count: int
    answered: int
    wrong: int  # of those answered

    @property
    def rejected(self):
        return self.count - self.answered

    @property
    def coverage(self):
        """The share of the images that is answered."""
        return self.answered / self.count

    @property
    def error(self):
        """The share of wrong answers among those given; None if none is given."""
        return self.wrong / self.answered if self.answered else None

    def as_dict(self):
        names = ("threshold", "coverage", "error", "answered", "rejected", "wrong")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """How many answers are wrong when the least confident are withheld, for every threshold that matters.

    ``threshold`` [K] falls; ``answered`` [K] images have at least that confidence, ``wrong`` [K] of them are
    misread.
    """

    threshold: np.ndarray
    answered: np.ndarray
    wrong: np.ndarray

    @property
    def count(self):
        return int(self.answered[-1])

    @property
    def coverage(self):
        """The share of the images that is answered [K]."""
        return self.answered / self.count

    @property
    def error(self):
        """The share of wrong answers among those given [K]."""
        return self.wrong / self.answered

    def at(self, threshold):
        """What this threshold does: :class:`Answered`. Errors: ConfigError outside 0 … 1."""
        check_number("threshold", threshold, "[0, 1]")
        reached = int((self.threshold >= threshold).sum())
        answered, wrong = (self.answered[reached - 1], self.wrong[reached - 1]) if reached else (0, 0)
        return Answered(float(threshold), self.count, int(answered), int(wrong))

    def threshold_for_coverage(self, share):
        """The highest threshold with which at least this share of the images is answered.

        Errors: ConfigError outside (0, 1].
        """
        check_number("coverage", share, "(0, 1]")
        wanted = math.ceil(round(share * self.count, 6))  # 0.07 · 100 is 7, not 8
        return float(self.threshold[np.searchsorted(self.answered, wanted)])

    def threshold_for_error(self, rate):
        """The lowest threshold with which at most this share of the answers is wrong.

        Errors: ConfigError outside [0, 1]; DataError if no threshold does that.
        """
        check_number("error rate", rate, "[0, 1]")
        reached = np.flatnonzero(self.error <= rate)
        if not len(reached):
            raise DataError(
                f"no threshold brings the error down to {100 * rate:g} %: at best it is "
                f"{100 * self.error.min():.2f} %, ask for no less"
            )
        return float(self.threshold[reached[-1]])

    def as_dict(self):
        """The curve at 1 %, 2 % … 100 % answered, as far as confidences differ."""
        thresholds = dict.fromkeys(self.threshold_for_coverage(share / 100) for share in range(1, 101))
        return {"images": self.count, "curve": [self.at(threshold).as_dict() for threshold in thresholds]}


def risk_coverage(evaluation):
    """The :class:`RiskCoverage` of answers, ordered by their confidence.

    Source: El-Yaniv, Wiener, *On the Foundations of Noise-free Selective Classification* (JMLR 11, 2010);
    Geifman, El-Yaniv, *Selective Classification for Deep Neural Networks* (NeurIPS 2017).
    """
    _check(evaluation)
    order = np.argsort(-evaluation.confidence, kind="stable")
    confidence = evaluation.confidence[order]
    wrong = np.cumsum((evaluation.predicted != evaluation.targets)[order])
    last = np.append(confidence[1:] != confidence[:-1], True)  # equals are answered together or not at all
    return RiskCoverage(confidence[last], np.flatnonzero(last) + 1, wrong[last])


def log_loss(evaluation):
    """The mean cross-entropy of ``evaluation.probabilities``, with their temperature."""
    _check(evaluation)
    log_p = log_softmax(evaluation.logits, evaluation.temperature)
    return float(-log_p[np.arange(len(log_p)), evaluation.targets].mean())


def _check(evaluation):
    if not evaluation.count:
        raise DataError("there are no images to look at the confidence of")
    finite = np.isfinite(evaluation.logits).all(axis=1)
    if not finite.all():
        raise DataError(f"logits: row {int((~finite).argmax())} holds NaN or infinity")
