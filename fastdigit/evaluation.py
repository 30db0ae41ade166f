"""How good a network is: accuracy with its uncertainty, per class, and what is confused with what."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .errors import DataError
from .inputs import as_targets, unpack
from .kernels.softmax_xent.reference import softmax_xent
from .probabilities import log_softmax


def wilson_interval(correct, count, z=1.959963984540054):
    """The 95 % confidence interval (low, high) of a proportion: Wilson, JASA 22 (1927).

    Unlike the normal approximation it stays inside 0 … 1 and is right near both ends.
    """
    p = correct / count
    centre = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of a network for labelled images, and what follows from them.

    ``classes`` [C], ``targets`` [N] (indices into classes), ``logits`` [N, C] and the ``temperature``
    that turns them into probabilities (see :attr:`Network.temperature`).
    """

    classes: np.ndarray
    targets: np.ndarray
    logits: np.ndarray = field(repr=False)
    temperature: float = 1.0

    def __repr__(self):
        return f"<Evaluation {self.correct:,} of {self.count:,} right, {self.accuracy:.2%}>"

    @cached_property
    def probabilities(self):
        """The probability of each class [N, C], float64."""
        return np.exp(log_softmax(self.logits, self.temperature))

    @cached_property
    def confidence(self):
        """The probability of the most probable class of each image [N]."""
        return self.probabilities.max(axis=1)

    @cached_property
    def margin(self):
        """How far the most probable class of each image is ahead of the next [N]; 1 if there is no other."""
        if len(self.classes) == 1:
            return self.confidence
        second, best = np.partition(self.probabilities, -2, axis=1)[:, -2:].T
        return best - second

    @cached_property
    def predicted(self):
        """Index of the most probable class of each image [N]."""
        return self.logits.argmax(axis=1)

    @property
    def count(self):
        return len(self.targets)

    @property
    def correct(self):
        """How many images are classified correctly."""
        return int((self.predicted == self.targets).sum())

    @property
    def accuracy(self):
        return self.correct / self.count

    @property
    def interval(self):
        """The 95 % confidence interval (low, high) of the accuracy."""
        return wilson_interval(self.correct, self.count)

    @property
    def loss(self):
        """Mean cross-entropy of the logits, as :meth:`Network.loss` has it; the temperature plays no part."""
        loss = np.empty(self.count, self.logits.dtype)
        correct, gradient = np.empty(self.count, np.uint8), np.empty_like(self.logits)
        softmax_xent(np, self.logits, self.targets, None, loss, correct, gradient)
        return float(loss.mean(dtype=np.float64))

    @cached_property
    def confusion(self):
        """Images of class r taken for class c [C, C]."""
        size = len(self.classes)
        return np.bincount(size * self.targets + self.predicted, minlength=size * size).reshape(size, size)

    @cached_property
    def per_class(self):
        """``[{"label", "precision", "recall", "f1", "count"}, …]``, 0 where nothing was predicted."""
        from sklearn.metrics import precision_recall_fscore_support

        columns = precision_recall_fscore_support(
            self.targets, self.predicted, labels=np.arange(len(self.classes)), zero_division=0
        )
        return [
            {"label": int(label), "precision": float(p), "recall": float(r), "f1": float(f), "count": int(n)}
            for label, p, r, f, n in zip(self.classes, *columns, strict=True)
        ]

    def as_dict(self):
        """Everything but the single predictions, ready for JSON."""
        return {
            "images": self.count,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
            "loss": self.loss,
            "per_class": self.per_class,
            "classes": self.classes.tolist(),
            "confusion": self.confusion.tolist(),
        }


def evaluate(net, data):
    """Classify labelled images with a Network or a Committee and compare: an :class:`Evaluation`.

    ``data`` has ``images`` and ``labels`` (as ``dataset.test``), or is a pair of them.
    Errors: DataError for images or labels that do not fit the network, or none at all.
    """
    images, labels = unpack(data)
    inputs = net.as_inputs(images)
    if not len(inputs):
        raise DataError("there are no images to evaluate")
    targets = as_targets(labels, net.classes, len(inputs))
    return Evaluation(net.classes, targets, net.logits(inputs), net.temperature)
