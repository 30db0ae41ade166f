"""What happened in a training: a record for each epoch, the loss of each step."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .files import atomic_write

SMOOTHED = 5  # epochs whose mean loss is compared, so that a single one does not count
NOISE_EPOCHS = 20  # at least, where there are: the latest, whose ups and downs say how noisy a loss is
NOISY = 3  # times its noise is what a validation loss must rise by
LEAST_RISE = 0.05  # of a validation loss: less is not worth a word


@dataclass(frozen=True)
class Epoch:
    """One epoch. ``loss`` and ``accuracy`` are means over the training images as they were
    visited (with dropout, and while the weights changed); the validation figures are taken at the
    end. ``seconds`` counts the training steps alone."""

    epoch: int  # from 1
    loss: float
    accuracy: float
    learning_rate: float  # of the last step
    seconds: float
    images_per_second: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass
class TrainingLog:
    """``epochs``: an :class:`Epoch` each; ``step_losses``: the mean loss of every step.

    ``best_epoch`` is the epoch (from 1) whose weights early stopping kept, else None;
    ``stopped`` says why training ended before its last epoch, else None. ``path`` says how the last
    steps were computed: "step", "epoch", "step, as …" with what asked for it, or "epoch: …" with the way
    that the backend took and why.
    """

    epochs: list[Epoch] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list, repr=False)
    best_epoch: int | None = None
    stopped: str | None = None
    path: str | None = field(default=None, compare=False)

    @property
    def loss(self):
        """The mean training loss of the last epoch."""
        return self.epochs[-1].loss

    @property
    def accuracy(self):
        """The training accuracy of the last epoch."""
        return self.epochs[-1].accuracy

    @property
    def overfitting(self):
        """The epoch (from 1) since which the network has learnt its training images by heart: the
        validation loss has risen since, while the training loss fell. None if it is not so, or if too
        few epochs or no validation images can tell.

        Means of SMOOTHED epochs are compared, the last with the lowest. The rise must be NOISY times the
        noise, and LEAST_RISE of the loss; the fall must be more than the noise. Noise is the standard
        deviation of the changes from one epoch to the next, since the lowest.
        """
        count = len(self.epochs)
        if count < 2 * SMOOTHED or self.epochs[0].validation_loss is None:
            return None
        losses, validation = np.array([(e.loss, e.validation_loss) for e in self.epochs]).T
        window = np.full(SMOOTHED, 1 / SMOOTHED)
        means, validation_means = (np.convolve(each, window, "valid") for each in (losses, validation))
        best = validation_means.argmin()
        if best + SMOOTHED >= len(means):
            return None
        fall, rise = means[best] - means[-1], validation_means[-1] - validation_means[best]
        noise = np.diff(losses[best:]).std()
        validation_noise = np.diff(validation[max(0, min(best, count - NOISE_EPOCHS)) :]).std()
        if fall <= noise or rise <= max(NOISY * validation_noise, LEAST_RISE * validation_means[best]):
            return None
        return self.epochs[best + validation[best : best + SMOOTHED].argmin()].epoch


class JsonLines:
    """The log as a file of JSON lines, one for each step and one for each epoch, as they happen.

    ``{"kind": "step", "step": 1, "loss": …}`` and ``{"kind": "epoch", "epoch": 1, "loss": …, …}``.
    A resumed training first rewrites the file from what its checkpoint knows, so that no line is
    missing, doubled or cut.
    """

    def __init__(self, path, log, steps_per_epoch):
        self.path = Path(path)
        lines, start = [], 0
        for epoch in log.epochs:
            lines += self._steps(start, log.step_losses[start : start + steps_per_epoch])
            lines.append(self._line({"kind": "epoch", **asdict(epoch)}))
            start += steps_per_epoch
        lines += self._steps(start, log.step_losses[start:])
        atomic_write(self.path, "".join(lines).encode())
        self.file = self.path.open("a", encoding="utf-8")

    def steps(self, start, losses):
        """Append the losses of steps ``start``, ``start + 1`` … (from 0)."""
        self.file.writelines(self._steps(start, losses))
        self.file.flush()

    def epoch(self, epoch):
        """Append an :class:`Epoch`."""
        self.file.write(self._line({"kind": "epoch", **asdict(epoch)}))
        self.file.flush()

    def close(self):
        self.file.close()

    @staticmethod
    def _line(record):
        return json.dumps(record, allow_nan=False) + "\n"

    @classmethod
    def _steps(cls, start, losses):
        return [
            cls._line({"kind": "step", "step": step, "loss": float(loss)})
            for step, loss in enumerate(losses, start + 1)
        ]
