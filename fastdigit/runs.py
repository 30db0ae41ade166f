"""Runs of ``fastdigit train``: a folder each, which holds all that is needed to go on or look back.

===========================  ================================================================
``settings.json``            what was asked for, with the defaults filled in; written first
``checkpoint.safetensors``   the state to resume from
``log.jsonl``                the loss of every step, the figures of every epoch
``model.safetensors``        the network, once the training is complete
``evaluation.json``          its result on the test images; written last
===========================  ================================================================

The run of a committee has ``checkpoint-1.safetensors`` and ``log-1.jsonl`` … for its members.
"""

import difflib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np

from .attacks import FGSM, PGD
from .augmentation import Augment
from .checkpoint import training_digest
from .datasets import Dataset, load_digits, load_folder, load_mnist, load_writers
from .datasets.mnist import find_mnist
from .errors import CheckpointError, ConfigError, DataError, check_count, check_number
from .files import atomic_write
from .groups import balanced_sample, balanced_weights, read_groups
from .inputs import TrainingData
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
BALANCES, WAYS_TO_BALANCE = ("series", "writer", "class"), ("weight", "resample")
ADVERSARIES = ("fgsm", "pgd")
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


def training_data(name, classes=None, series=None):
    """The data set ``name`` with these classes alone, by default all that it has images to train on.

    With a ``series`` only images of its writers are there to train on; those to test on are everybody's.
    Errors: as :func:`load_data`, DataError for a class or series that it lacks, and as :func:`writers_of`.
    """
    data = load_data(name)
    train = data.train
    if series is not None:
        train = train.take(of_series(writers_of(name, "train", train.labels), series))
    if classes is None:
        classes = np.unique(train.labels).tolist()
    return Dataset(data.name, train.subset(classes), only_classes(data.test, classes))


def writers_of(name, split, labels=None):
    """The :class:`~fastdigit.datasets.Writers` of a data set's "train" or "test" images.

    Errors: ConfigError unless the data set is MNIST; DataError and DownloadError as :func:`load_writers`.
    """
    check_has_writers(name)
    return load_writers(split, labels)


def check_has_writers(name):
    """ConfigError for data other than MNIST."""
    if name != "mnist":
        raise ConfigError(
            f"who wrote the images of {name} is not known, only who wrote MNIST's: --data mnist"
        )


def of_series(writers, series):
    """Indices of the images of a series. Errors: DataError if there are none."""
    found = np.flatnonzero(writers.series == series)
    if not len(found):
        known = " and ".join(map(str, np.unique(writers.series)))
        raise DataError(f"no image is of series {series}: there are {known}")
    return found


def groups_of(by, name, split, labels):
    """The group of each image, [N]: "series", "writer", or the file that holds one value for each.

    ``labels`` are those of all images of the split. Errors: as :func:`writers_of`; DataError as
    :func:`~fastdigit.groups.read_groups`.
    """
    if by in ("series", "writer"):
        return getattr(writers_of(name, split, labels), by)
    return read_groups(by, len(labels))


def balanced(dataset, settings):
    """(data set, weights of its training images or None) with what ``settings`` ask for by ``balance``.

    Errors: as :func:`writers_of`.
    """
    train = dataset.train
    if settings.balance is None:
        return dataset, None
    if settings.balance == "class":
        groups = train.labels
    else:
        writers = writers_of(settings.data, "train")
        kept = np.isin(writers.digit, settings.classes)
        if settings.series is not None:
            kept &= writers.series == settings.series
        writers = writers.take(np.flatnonzero(kept))
        writers.check(train.labels)
        groups = getattr(writers, settings.balance)
    if settings.balance_by == "weight":
        return dataset, balanced_weights(groups)
    return replace(dataset, train=train.take(balanced_sample(groups, settings.seed))), None


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
    augment: str | None = None
    input_dropout: float = 0.0
    label_smoothing: float = 0.0
    max_norm: float | None = None
    average: float | None = None
    clip_norm: float | None = None
    adversary: str | None = None
    epsilon: float | None = None
    adversary_steps: int | None = None
    adversary_step: float | None = None
    clean_share: float = 0.0
    validation: float | None = None
    early_stopping: int | None = None
    seed: int = 0
    backend: str
    precision: str = "float32"
    checkpoint_every: int | None = None
    series: int | None = None
    balance: str | None = None
    balance_by: str | None = None
    members: int = 1

    def __post_init__(self):
        named = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("adversary", ADVERSARIES))
        for name, known in named:
            value = getattr(self, name)
            if value not in known and not (name == "adversary" and value is None):
                raise ConfigError(f"there is no {name} {value!r}: choose one of {', '.join(known)}")
        self._check_groups()
        check_count("members", self.members)

    def _check_groups(self):
        """Errors: ConfigError for a balance that cannot be had."""
        for name, known in (("balance", BALANCES), ("balance_by", WAYS_TO_BALANCE)):
            value = getattr(self, name)
            if value not in (None, *known):
                raise ConfigError(f"there is no {name} {value!r}: choose one of {', '.join(known)}")
        if (self.balance is None) != (self.balance_by is None):
            raise ConfigError("--balance-by says how to --balance: name what to balance too, such as class")
        if self.series is not None or self.balance in ("series", "writer"):
            check_has_writers(self.data)
        if self.balance_by == "resample" and self.validation is not None:
            raise ConfigError(
                "--balance-by resample takes images several times, and some would be trained on and "
                "held back for validation too: choose --balance-by weight"
            )

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
        if "balance" in chosen:
            defaults["balance_by"] = "weight"
        small = images < SMALL
        defaults.update(SMALL_DEFAULTS if small else {"batch_size": 128})
        if optimizer == "sgd":
            if small:
                defaults["weight_decay"] = SMALL_WEIGHT_DECAY
            if chosen.get("batch_size", defaults["batch_size"]) < 128:
                defaults["learning_rate"] /= 2
        defaults.update(_adversary_defaults(chosen))
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

    def networks(self, pixels):
        """The new network, or one for each member, for images of so many pixels. Errors: as :class:`Network`.

        A member differs from the others in its seed alone, which is that of its shuffling too.
        """
        return [
            Network(
                [pixels, *self.hidden, len(self.classes)],
                backend=self.backend,
                seed=self.seed + member,
                dropout=self.dropout,
                input_dropout=self.input_dropout,
                precision=self.precision,
                classes=self.classes,
            )
            for member in range(self.members)
        ]

    def prepare(self, net, dataset):
        """What the run trains on and what it holds back, of its data set: :class:`TrainingData`.

        Members share it. Errors: as :func:`balanced` and :meth:`TrainingData.of`.
        """
        dataset, weight = balanced(dataset, self)
        return TrainingData.of(net, dataset.train, self.validation, weight, self.seed)

    def fit_options(self):
        """The arguments of :func:`fastdigit.fit` that follow from the settings, but for data and seed.

        Errors: ConfigError.
        """
        optimizer, names = OPTIMIZERS[self.optimizer]
        patience = self.early_stopping
        return {
            "optimizer": optimizer(**{name: getattr(self, name) for name in names}),
            "schedule": SCHEDULES[self.schedule](),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "augment": None if self.augment is None else Augment.parse(self.augment),
            "early_stopping": None if patience is None else EarlyStopping(patience),
            "label_smoothing": self.label_smoothing,
            "max_norm": self.max_norm,
            "average": None if self.average is None else WeightAverage(self.average),
            "clip_norm": self.clip_norm,
            "adversary": self._adversary(),
            "clean_share": self.clean_share,
            "checkpoint_every": self.checkpoint_every,
        }

    def _adversary(self):
        if self.adversary == "pgd":
            return PGD(self.epsilon, step=self.adversary_step, steps=self.adversary_steps)
        return None if self.adversary is None else FGSM(self.epsilon)


def _adversary_defaults(chosen):
    """What an adversary needs that was not chosen. Errors: ConfigError for choices that do not fit."""
    options = ("epsilon", "adversary_steps", "adversary_step", "clean_share")
    given = [f"--{name.replace('_', '-')}" for name in options if name in chosen]
    adversary = chosen.get("adversary")
    if adversary is None and given:
        raise ConfigError(f"{', '.join(given)}: only with --adversary fgsm or pgd")
    if adversary is not None and "epsilon" not in chosen:
        raise ConfigError(f"--adversary {adversary} needs an --epsilon, such as 0.1")
    if adversary == "fgsm" and ("adversary_steps" in chosen or "adversary_step" in chosen):
        raise ConfigError("--adversary-steps and --adversary-step belong to pgd: leave them out with fgsm")
    return {"adversary_steps": 7} if adversary == "pgd" else {}


# Settings that files of older versions lack; without them a training is what it was.
LATER = (
    *("series", "balance", "balance_by", "augment", "members"),
    *("adversary", "epsilon", "adversary_steps", "adversary_step", "clean_share"),
    *("input_dropout", "label_smoothing", "max_norm", "average", "precision"),
)


def with_later(settings):
    """Settings of an older version (by name) as this version writes them."""
    return {**{name: getattr(Settings, name) for name in LATER}, **settings}


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
            files = [path for path in vars(run).values() if path != run.folder]
            if any(path.exists() for path in [*files, *chain(*run.trainings(settings.members))]):
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

    def trainings(self, members):
        """(checkpoint, log) of the training of the network, or of each member of a committee."""
        if members == 1:
            return [(self.checkpoint, self.log)]
        return [
            (self.folder / f"checkpoint-{member}.safetensors", self.folder / f"log-{member}.jsonl")
            for member in range(1, members + 1)
        ]

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
            settings = with_later(settings)
        problem = mismatch(settings, _schema(), "settings")
        if problem:
            raise CheckpointError(f"{file}: {problem}: start a new training")
        try:
            return Settings(**settings)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def held_back(self, net):
        """(inputs, labels) that the training of ``net`` did not see, split off once more; None if it saw all.

        Errors: as :meth:`read_settings` and :func:`training_data`; DataError if the data is no longer that of
        the training.
        """
        settings = self.read_settings()
        if settings.validation is None:
            return None
        data = settings.prepare(net, training_data(settings.data, settings.classes, settings.series))
        for checkpoint, _ in self.trainings(settings.members):
            if checkpoint.exists() and training_digest(checkpoint) != data.digest():
                raise DataError(
                    f"{settings.data} has changed since {self.folder} was trained on it, and what was held "
                    "back cannot be told any more: name other images with --data"
                )
        return data.validation

    def discard(self, members):
        """Delete what a training that never began has written, and the folder if nothing else is in it."""
        for file in (self.settings_file, *chain(*self.trainings(members))):
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
            begun = Run(path).settings_file.exists()
            way = (
                f"go on with 'fastdigit train --resume {path}'"
                if begun
                else "train one with 'fastdigit train'"
            )
            raise CheckpointError(f"there is no network in {path}: {way}")
    else:
        model = Path(path)
    run = Run(model.parent)
    return model, run if run.settings_file.exists() else None


def _model_in(run):
    return next((file for file in (run.model, run.checkpoint) if file.exists()), None)
