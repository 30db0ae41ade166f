"""What a training is asked to do, checked before anything is computed."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .attacks import FGSM, PGD
from .augmentation import Augment
from .errors import ConfigError, check_count, check_number
from .optimizers import SGD, Adam

# Steps of an epoch between which max-norm and averaging have their turn; and at the epoch's end. So many
# that whole-epoch kernels are seldom left, so few that weights do not get far in between.
UPKEEP_EVERY = 16


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after ``patience`` epochs without a higher validation accuracy, and go back to the
    weights of the best epoch."""

    patience: int = 5

    def __post_init__(self):
        check_count("patience", self.patience)

    @staticmethod
    def best_epoch(log):
        """The number of the best epoch so far (from 1); the first of equals; 0 if there is none."""
        return max(log.epochs, key=lambda e: (e.validation_accuracy, -e.epoch)).epoch if log.epochs else 0

    def reason(self, log):
        """Why to stop now, or None."""
        waited = len(log.epochs) - self.best_epoch(log)
        return f"no better validation accuracy in {waited} epochs" if waited >= self.patience else None


@dataclass(frozen=True)
class WeightAverage:
    """Validate with, and end with, a running mean of the weights: m ← d·m + (1 - d)·w after a step.

    ``decay``, in (0, 1): the mean remembers about the last 1 / (1 - decay) steps. At the start it
    remembers fewer: after t steps d = min(decay, (1 + t) / (10 + t)), so that the weights of the
    beginning do not stay in it. It looks at the weights every UPKEEP_EVERY steps, with d to the power
    of the steps in between. Source: Polyak, Juditsky, SIAM J. Control Optim. 30 (1992).
    """

    decay: float = 0.999

    def __post_init__(self):
        check_number("decay", self.decay, "(0, 1)")
        object.__setattr__(self, "decay", float(self.decay))

    def kept(self, steps, since):
        """What the mean keeps of itself after ``steps`` steps, ``since`` of them since it last looked."""
        return min(self.decay, (1 + steps) / (10 + steps)) ** since


@dataclass
class OptimizerState:
    """What an optimizer remembers from one call of :func:`fastdigit.fit` to the next, on the host.

    Pass the same object again, with the same kind of optimizer and network, and momentum, Adam's
    moments and its bias correction (and the numbering of dropout masks) go on where they were. It is
    the state after the last step, also where early stopping has gone back to earlier weights.
    """

    updates: int = 0
    # name of the state -> name of the parameter -> array
    tensors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def check(self, optimizer, layout):
        """ConfigError unless this is the state of such an optimizer for such a network."""
        if not self.updates:
            return
        shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
        if set(self.tensors) != set(optimizer.state_names):
            raise ConfigError(
                f"optimizer_state holds {sorted(self.tensors)}, but {optimizer} needs "
                f"{sorted(optimizer.state_names)}: pass a fresh OptimizerState()"
            )
        for named in self.tensors.values():
            if {name: value.shape for name, value in named.items()} != shapes:
                raise ConfigError("optimizer_state belongs to another network: pass a fresh OptimizerState()")


@dataclass(frozen=True)
class FitOptions:
    """The arguments of :func:`fastdigit.fit` but for network and data. Errors: ConfigError."""

    optimizer: Any
    schedule: Any
    epochs: int
    batch_size: int
    augment: Augment | None
    early_stopping: EarlyStopping | None
    label_smoothing: float
    max_norm: float | None
    average: WeightAverage | None
    clip_norm: float | None
    adversary: FGSM | PGD | None
    clean_share: float
    seed: int
    optimizer_state: OptimizerState
    checkpoint: Path | None
    checkpoint_every: int | None
    log_file: Path | None
    resume: bool
    callbacks: tuple
    progress: Any
    path: str
    threads: int | None
    sparse_input: bool | None
    sparse_hidden: bool | None

    def __post_init__(self):
        def need(name, ok, what):
            if not ok:
                raise ConfigError(f"{name} must be {what}, got {getattr(self, name)!r}")

        need("optimizer", isinstance(self.optimizer, SGD | Adam), "an SGD or Adam record")
        usable = callable(self.schedule) and not isinstance(self.schedule, type)
        need(
            "schedule",
            usable,
            "a schedule such as OneCycle(), or a function",
        )
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_count("seed", self.seed, 0)
        need("augment", isinstance(self.augment, Augment | None), "Augment(rotation=10, …), True or None")
        need(
            "early_stopping", isinstance(self.early_stopping, EarlyStopping | None), "EarlyStopping(patience)"
        )
        check_number("label_smoothing", self.label_smoothing, "[0, 1)")
        if self.max_norm is not None:
            check_number("max_norm", self.max_norm, "(0, inf)")
        need("average", isinstance(self.average, WeightAverage | None), "WeightAverage(decay)")
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, "(0, inf)")
        self._check_adversary(need)
        need("optimizer_state", isinstance(self.optimizer_state, OptimizerState), "an OptimizerState")
        need("callbacks", all(map(callable, self.callbacks)), "functions of (net, log)")
        methods = ("begin", "steps", "epoch", "close")
        observes = all(callable(getattr(self.progress, name, None)) for name in methods)
        need("progress", self.progress is None or observes, "None or like Progress()")
        need("path", self.path in ("auto", "step", "epoch"), "'auto', 'step' or 'epoch'")
        if self.threads is not None:
            check_count("threads", self.threads)
        for name in ("sparse_input", "sparse_hidden"):
            need(name, getattr(self, name) in (None, True, False), "True, False or None")
        if self.resume and self.checkpoint is None:
            raise ConfigError("resume=True needs the checkpoint to resume from")
        if self.checkpoint_every is not None:
            check_count("checkpoint_every", self.checkpoint_every)
            if self.checkpoint is None:
                raise ConfigError("checkpoint_every needs a checkpoint file")
        if self.checkpoint is not None and self.optimizer_state.updates:
            raise ConfigError("a checkpoint covers a training from its start: pass a fresh optimizer_state")
        for name in ("checkpoint", "log_file"):
            file = getattr(self, name)
            if file is not None and file.exists() and not self.resume:
                raise ConfigError(f"{file} exists already: pass resume=True to go on from it, or delete it")
        if self.checkpoint is not None and self.checkpoint == self.log_file:
            raise ConfigError(f"checkpoint and log_file are the same file {self.checkpoint}")

    def _check_adversary(self, need):
        need(
            "adversary", isinstance(self.adversary, FGSM | PGD | None), "FGSM(0.1) or PGD(0.1, steps=7), say"
        )
        check_number("clean_share", self.clean_share, "[0, 1)")
        if self.adversary is None:
            need("clean_share", self.clean_share == 0, "0 without an adversary")
        elif self.adversary.targeted or self.adversary.restarts > 1:
            raise ConfigError(f"in a training an adversary has neither target nor restarts: {self.adversary}")

    @property
    def only_steps(self):
        """Why no whole-epoch kernel can do what is asked for, or None."""
        return None if self.adversary is None else "an adversary attacks each batch by single operations"

    @property
    def upkeep_every(self):
        """After how many steps of an epoch weights are shortened or averaged; None: never."""
        return None if self.max_norm is None and self.average is None else UPKEEP_EVERY

    def settings(self):
        """What a resumed training must agree on, readable in the file."""
        return {
            "optimizer": repr(self.optimizer),
            "schedule": _name_of(self.schedule),
            "epochs": int(self.epochs),
            "batch_size": int(self.batch_size),
            **({} if self.augment is None else {"augment": str(self.augment)}),
            # None for 0: checkpoints from before there was any say the same.
            "label_smoothing": float(self.label_smoothing) or None,
            "max_norm": None if self.max_norm is None else float(self.max_norm),
            "average": None if self.average is None else repr(self.average),
            "clip_norm": None if self.clip_norm is None else float(self.clip_norm),
            "adversary": self.adversary and f"{self.adversary}, clean share {self.clean_share:g}",
            "early_stopping": None if self.early_stopping is None else repr(self.early_stopping),
            "seed": int(self.seed),
        }


def as_path(name, value):
    """``value`` as a Path; None stays None. Errors: ConfigError for what is no path."""
    try:
        return None if value is None else Path(value)
    except TypeError:
        raise ConfigError(f"{name} must be a file name, got {value!r}") from None


def _name_of(schedule):
    """The same text for the same schedule in every process: a record's numbers, a function's name."""
    if dataclasses.is_dataclass(schedule):
        return repr(schedule)
    named = schedule if hasattr(schedule, "__qualname__") else type(schedule)
    return f"{named.__module__}.{named.__qualname__}"
