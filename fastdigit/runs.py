"""Runs of ``fastdigit train``: a folder each, which holds all that is needed to go on or look back.

===========================  ================================================================
``settings.json``            what was asked for, with the defaults filled in; written first
``checkpoint.safetensors``   the state to resume from
``log.jsonl``                the loss of every step, the figures of every epoch
``model.safetensors``        the network, once the training is complete
``evaluation.json``          its result on the test images; written last
===========================  ================================================================
"""

import difflib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np

from .datasets import Dataset, load_digits, load_folder, load_mnist
from .datasets.mnist import find_mnist
from .errors import CheckpointError, ConfigError, DataError, check_number
from .files import atomic_write
from .network import Network
from .optimizers import SGD, Adam, AdamW
from .options import EarlyStopping, WeightAverage
from .schedules import Constant, Cosine, OneCycle, Step
from .schema import mismatch

RUNS = Path("runs")  # where runs go, and are looked for, unless a folder is named

OPTIMIZERS = {
    "sgd": (SGD, {"learning_rate": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}),
    "adam": (Adam, {"learning_rate": 0.005, "weight_decay": 0.0}),
    "adamw": (AdamW, {"learning_rate": 0.005, "weight_decay": 0.01}),
}
DATA = {"digits": load_digits, "mnist": load_mnist}
SCHEDULES = {"constant": Constant, "step": Step, "cosine": Cosine, "onecycle": OneCycle}

# Fewer images than SMALL are trained on in smaller batches and more steps, with dropout and weight decay
# against overfitting. Chosen on three splits of the embedded digits; what they do on other splits is in
# bench/results/small_data_defaults.json.
SMALL = 10_000
SMALL_DEFAULTS = {"batch_size": 32, "dropout": 0.3}
SMALL_WEIGHT_DECAY = 1e-3  # of sgd
MIN_EPOCHS, MIN_STEPS, SMALL_MIN_STEPS = 6, 700, 2700


def load_data(name):
    """The data set "digits" or "mnist", or the one in a folder of four idx files.

    Errors: ConfigError for a name that is neither; DataError, DownloadError as the loaders raise.
    """
    if name == "mnist" and not (found := find_mnist())[1] and not os.environ.get("FASTDIGIT_DATA"):
        print(f"MNIST is downloaded once, 11 MB, into {found[0]}", file=sys.stderr)
    if name in DATA:
        return DATA[name]()
    if not Path(name).exists():
        close = difflib.get_close_matches(name, DATA, n=1)
        hint = f"did you mean {close[0]}?" if close else "choose digits, mnist, or a folder of four idx files"
        raise ConfigError(f"there is no data and no folder {name!r}: {hint}")
    return load_folder(name, Path(name).name)


def only_classes(images, classes):
    """Those of ``images`` whose label is one of ``classes``. Errors: DataError if there are none."""
    kept = np.flatnonzero(np.isin(images.labels, classes))
    if not len(kept):
        raise DataError(f"no image here shows a {' or '.join(map(str, classes))}: choose other data")
    return images if len(kept) == len(images) else images.take(kept)


def training_data(name, classes=None):
    """The data set ``name`` with these classes alone, by default all that it has images to train on.

    Errors: as :func:`load_data`, and DataError for a class that it lacks.
    """
    data = load_data(name)
    if classes is None:
        classes = np.unique(data.train.labels).tolist()
    return Dataset(data.name, data.train.subset(classes), only_classes(data.test, classes))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a training. :meth:`complete` makes one, a :class:`Run` keeps it.

    Errors: ConfigError for an unknown optimizer or schedule; the other values are checked where
    they are used.
    """

    data: str
    classes: list[int]
    hidden: list[int] = field(default_factory=lambda: [128])
    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    learning_rate: float
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float
    schedule: str = "onecycle"
    dropout: float = 0.0
    input_dropout: float = 0.0
    label_smoothing: float = 0.0
    max_norm: float | None = None
    average: float | None = None
    clip_norm: float | None = None
    validation: float | None = None
    early_stopping: int | None = None
    seed: int = 0
    backend: str
    checkpoint_every: int | None = None

    def __post_init__(self):
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"there is no {name} {value!r}: choose one of {', '.join(known)}")

    @classmethod
    def complete(cls, images, **chosen):
        """The settings that were ``chosen`` (by name), the others as is good for so many images.

        Errors: ConfigError for choices that do not go together.
        """
        optimizer = chosen.get("optimizer", cls.optimizer)
        defaults = dict(OPTIMIZERS[optimizer][1])
        for name in ("momentum", "nesterov"):
            if name in chosen and name not in defaults:
                raise ConfigError(f"--{name} belongs to sgd: leave it out with --optimizer {optimizer}")
        if chosen.get("momentum") == 0:
            defaults["nesterov"] = False
        if "early_stopping" in chosen:
            defaults["validation"] = 0.1
        small = images < SMALL
        defaults.update(SMALL_DEFAULTS if small else {"batch_size": 128})
        if optimizer == "sgd":
            if small:
                defaults["weight_decay"] = SMALL_WEIGHT_DECAY
            if chosen.get("batch_size", defaults["batch_size"]) < 128:
                defaults["learning_rate"] /= 2
        settings = {**defaults, **chosen}
        if settings.get("validation") is not None:
            check_number("--validation", settings["validation"], "(0, 1)")
        if settings.get("average") is not None:
            check_number("--average", settings["average"], "(0, 1)")
        if "epochs" not in settings:
            trained = images * (1 - settings.get("validation", 0))
            steps = max(1, math.ceil(trained / settings["batch_size"]))
            wanted = SMALL_MIN_STEPS if small else MIN_STEPS
            settings["epochs"] = max(MIN_EPOCHS, math.ceil(wanted / steps))
        return cls(**settings)

    def network(self, pixels):
        """A new network for images of so many pixels. Errors: as :class:`Network`."""
        return Network(
            [pixels, *self.hidden, len(self.classes)],
            backend=self.backend,
            seed=self.seed,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            classes=self.classes,
        )

    def fit_options(self):
        """The arguments of :func:`fastdigit.fit` that follow from the settings. Errors: ConfigError."""
        optimizer, names = OPTIMIZERS[self.optimizer]
        patience = self.early_stopping
        return {
            "optimizer": optimizer(**{name: getattr(self, name) for name in names}),
            "schedule": SCHEDULES[self.schedule](),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "validation": self.validation,
            "early_stopping": None if patience is None else EarlyStopping(patience),
            "label_smoothing": self.label_smoothing,
            "max_norm": self.max_norm,
            "average": None if self.average is None else WeightAverage(self.average),
            "clip_norm": self.clip_norm,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
        }


# What settings of earlier versions do not say: it was as it is by default.
NOT_SAID_BEFORE = ("input_dropout", "label_smoothing", "max_norm", "average")


def _schema():
    """What settings.json must look like, for ``mismatch``; it follows from the fields of Settings."""
    schema = {}
    for name, hint in get_type_hints(Settings).items():
        schema[name] = list(get_args(hint)) if get_origin(hint) is list else get_args(hint) or hint
    return schema


class Run:
    """The folder of one training and the files in it; see the table on top of this module."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.settings_file = self.folder / "settings.json"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.log = self.folder / "log.jsonl"
        self.model = self.folder / "model.safetensors"
        self.result = self.folder / "evaluation.json"

    @classmethod
    def create(cls, settings, folder=None):
        """A new run in ``folder``, or in the next free of runs/001, runs/002 …

        Errors: ConfigError if ``folder`` holds a run already; OSError if it cannot be written.
        """
        try:
            run = cls(_next_free() if folder is None else folder)
            run.folder.mkdir(parents=True, exist_ok=True)
            if any(path.exists() for path in vars(run).values() if path != run.folder):
                raise ConfigError(
                    f"{folder} holds a run already: go on with --resume {folder}, or choose another --out"
                )
            run.write_settings(settings)
        except OSError as error:
            # The same error, with the folder that was meant and the way out.
            reason = f"{error.strerror}; choose another folder with --out"
            raise OSError(error.errno, reason, str(folder or RUNS)) from error
        return run

    @property
    def complete(self):
        return self.model.exists() and self.result.exists()

    def write_settings(self, settings):
        text = json.dumps(asdict(settings), indent=2) + "\n"
        atomic_write(self.settings_file, text.encode())

    def read_settings(self):
        """The :class:`Settings` of the run.

        Errors: ConfigError if the folder holds no run; CheckpointError for a damaged file.
        """
        file = self.settings_file
        if not file.exists():
            raise ConfigError(f"{self.folder} holds no run: it has no {file.name}")
        try:
            settings = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is damaged ({error}): start a new training") from error
        if isinstance(settings, dict):
            settings = {**{name: getattr(Settings, name) for name in NOT_SAID_BEFORE}, **settings}
        problem = mismatch(settings, _schema(), "settings")
        if problem:
            raise CheckpointError(f"{file}: {problem}: start a new training")
        try:
            return Settings(**settings)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def discard(self):
        """Delete what a training that never began has written, and the folder if nothing else is in it."""
        for file in (self.settings_file, self.checkpoint, self.log):
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _next_free():
    """A new folder runs/001, runs/002 …; made here, so that no other process takes it too."""
    taken = [int(path.name) for path in RUNS.glob("*") if path.name.isdecimal()]
    number = max(taken, default=0) + 1
    while True:
        folder = RUNS / f"{number:03}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def find_model(path=None):
    """The file of a network and the :class:`Run` it belongs to, or None for a file that stands alone.

    ``path`` is a safetensors file or the folder of a run; by default the newest complete run in
    ./runs. A run that is named and not complete yet has its checkpoint for a network.
    Errors: CheckpointError if there is none.
    """
    if path is None:
        found = [run.model for run in map(Run, RUNS.glob("*")) if run.model.exists()]
        if not found:
            raise CheckpointError(
                f"there is no trained network in {RUNS}/: train one with 'fastdigit train', or name its file"
            )
        model = max(found, key=lambda model: model.stat().st_mtime_ns)
    elif Path(path).is_dir():
        model = _model_in(Run(path))
        if model is None:
            raise CheckpointError(f"there is no network in {path}: train one with 'fastdigit train'")
    else:
        model = Path(path)
    run = Run(model.parent)
    return model, run if run.settings_file.exists() else None


def _model_in(run):
    return next((file for file in (run.model, run.checkpoint) if file.exists()), None)
