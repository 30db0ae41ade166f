"""Networks and trainings on disk: safetensors files, written atomically, checked before use.

A file holds the parameters as ``w1``, ``b1``, ``w2`` … and one metadata entry, ``fastdigit``: JSON
of a closed schema (exactly the fields below, of exactly these types). The file of a committee holds
its members as ``member1.w1`` …, ``member2.w1`` …, each with its description. A checkpoint of a training
is the file of a network with more in it, so it can be used as a network too:

- ``state.<name>.w1`` …: the optimizer's state
- ``average.w1`` …: the running mean of the weights, where there is one (the parameters are those that
  are being trained)
- ``best.w1`` …: the best parameters so far, where early stopping keeps them
- ``log.step_losses`` [steps so far], and in an unfinished epoch ``epoch.loss`` and
  ``epoch.correct`` [images so far]
- in the metadata the position (epochs done, steps done in the next one), the settings, a digest of
  the training data, and the log of the epochs.

Random numbers need no state: each is a function of the seed and of this position. Nothing in a
file is ever executed. Format of the container: https://github.com/huggingface/safetensors.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import CheckpointError, ConfigError
from .files import atomic_write
from .layout import Layout
from .log import Epoch, TrainingLog
from .schema import mismatch

FORMAT = 2  # 1 had no temperature
METADATA_KEY = "fastdigit"

NETWORK_SCHEMA = {
    "format": int,
    "layer_sizes": [int],
    "classes": [int],
    "dropout": [float],
    "input_dropout": float,
    "precision": str,
    "seed": int,
    "pixels": bool,
    "temperature": float,
}
COMMITTEE_SCHEMA = {"temperature": float, "members": [NETWORK_SCHEMA]}
# What files of the first format do not say of their network, and what it was.
NETWORK_BEFORE = {"temperature": 1.0, "input_dropout": 0.0}
TRAINING_SCHEMA = {
    "epochs_done": int,
    "steps_done": int,
    "settings": {str: (str, int, float, bool, type(None))},
    "data_digest": str,
    "stopped": (str, type(None)),
    "epochs": [
        {
            "epoch": int,
            "loss": float,
            "accuracy": float,
            "learning_rate": float,
            "seconds": float,
            "images_per_second": float,
            "validation_loss": (float, type(None)),
            "validation_accuracy": (float, type(None)),
        }
    ],
}


@dataclass
class TrainingState:
    """A training between two steps: all that is needed to go on as if nothing had happened.

    ``parameters``, ``state`` (by name of the state), ``average`` and ``best`` hold named host tensors;
    ``average`` is None without one, ``best`` without early stopping.
    ``epoch_loss`` and ``epoch_correct`` cover the images of the unfinished epoch so far.
    """

    epochs_done: int
    steps_done: int
    settings: dict
    data_digest: str
    log: TrainingLog
    parameters: dict[str, np.ndarray]
    state: dict[str, dict[str, np.ndarray]]
    average: dict[str, np.ndarray] | None = None
    best: dict[str, np.ndarray] | None = None
    epoch_loss: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    epoch_correct: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))


def save_network(path, net):
    """Write the network alone. Errors: OSError; the file that stood there is then intact."""
    _write(path, dict(net.get_parameters()), {"network": _describe(net)})


def save_committee(path, committee):
    """Write all members into one file. Errors: as :func:`save_network`."""
    tensors = {
        f"member{number}.{name}": value
        for number, net in enumerate(committee.networks, 1)
        for name, value in net.get_parameters().items()
    }
    members = [_describe(net) for net in committee.networks]
    _write(path, tensors, {"committee": {"temperature": committee.temperature, "members": members}})


def save_checkpoint(path, net, training):
    """Write the network and a :class:`TrainingState`. Errors: as :func:`save_network`."""
    tensors = dict(training.parameters)
    for state, named in training.state.items():
        tensors.update({f"state.{state}.{name}": value for name, value in named.items()})
    for kind, named in (("average", training.average), ("best", training.best)):
        tensors.update({f"{kind}.{name}": value for name, value in (named or {}).items()})
    tensors["log.step_losses"] = np.asarray(training.log.step_losses, np.float64)
    tensors["epoch.loss"] = training.epoch_loss
    tensors["epoch.correct"] = training.epoch_correct
    metadata = {
        "epochs_done": training.epochs_done,
        "steps_done": training.steps_done,
        "settings": training.settings,
        "data_digest": training.data_digest,
        "stopped": training.log.stopped,
        "epochs": [vars(epoch) for epoch in training.log.epochs],
    }
    _write(path, tensors, {"network": _describe(net), "training": metadata})


def load_network(path, *, backend="auto"):
    """The network in a file of :func:`save_network` or :func:`save_checkpoint`.

    Errors: CheckpointError for a file that is missing, damaged, foreign, of a newer format, or
    whose tensors do not fit its own description. Memory stays within the size of the file.
    """
    with _open(path) as file:
        metadata = _metadata(path, file)
        if "committee" in metadata:
            raise CheckpointError(f"{path} holds a committee, not a single network: use fastdigit.load_model")
        return _network(path, file, "", metadata["network"], backend)


def load_model(path, *, backend="auto"):
    """The Network or the Committee in a file.

    Errors: as :func:`load_network`; a committee whose members do not fit together counts as damaged.
    """
    from .committee import Committee

    with _open(path) as file:
        metadata = _metadata(path, file)
        if "network" in metadata:
            return _network(path, file, "", metadata["network"], backend)
        described = metadata["committee"]
        members = enumerate(described["members"], 1)
        networks = [_network(path, file, f"member{number}.", one, backend) for number, one in members]
    try:
        return Committee(networks, temperature=described["temperature"])
    except ConfigError as error:
        raise CheckpointError(f"{path} describes no usable committee: {error}") from error


def training_digest(path):
    """The digest of the data of the training in a file; None for one that holds no training.

    Errors: as :func:`load_network`.
    """
    with _open(path) as file:
        training = _metadata(path, file).get("training")
    return training and training["data_digest"]


def _network(path, file, prefix, described, backend):
    """The network whose tensors begin with ``prefix``, in a precision that the backend offers."""
    from .backend import get_backend
    from .network import Network, offered_precision

    try:
        backend = get_backend(backend)
        # Held against the tensors first: a description alone must not make us allocate.
        layout = Layout(tuple(described["layer_sizes"]))
        _compare(path, file, prefix, layout)
        options = {name: described[name] for name in described.keys() - {"format", "layer_sizes"}}
        options["precision"] = offered_precision(options["precision"], backend)
        net = Network(described["layer_sizes"], backend=backend, **options)
    except ConfigError as error:
        raise CheckpointError(f"{path} describes no usable network: {error}") from error
    net.set_parameters(_named(path, file, prefix, net))
    return net


def load_checkpoint(path, net):
    """The :class:`TrainingState` in a file of :func:`save_checkpoint`, for a network like ``net``.

    Errors: CheckpointError as :func:`load_network`, also for a file without a training, and for
    another architecture, listing the tensors that differ. ``net`` is not changed.
    """
    with _open(path) as file:
        metadata = _metadata(path, file)
        training = metadata.get("training")
        if training is None:
            raise CheckpointError(f"{path} holds a network but no training to resume")
        parameters = _named(path, file, "", net)
        described, wanted = metadata["network"], _describe(net)
        differing = [
            f"{name} was {described[name]}, now {wanted[name]}"
            for name in wanted
            # The temperature comes after training and has no part in it.
            if described[name] != wanted[name] and name != "temperature"
        ]
        if differing:
            raise CheckpointError(f"{path} belongs to another network: {'; '.join(differing)}")
        states = sorted({name.split(".")[1] for name in file.keys() if name.startswith("state.")})  # noqa: SIM118
        state = {name: _named(path, file, f"state.{name}.", net) for name in states}
        kinds = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
        average, best = (
            _named(path, file, f"{kind}.", net) if kind in kinds else None for kind in ("average", "best")
        )
        log = TrainingLog(
            epochs=[Epoch(**epoch) for epoch in training["epochs"]],
            step_losses=_tensor(path, file, "log.step_losses", "float64", vector=True).tolist(),
            stopped=training["stopped"],
        )
        return TrainingState(
            epochs_done=training["epochs_done"],
            steps_done=training["steps_done"],
            settings=training["settings"],
            data_digest=training["data_digest"],
            log=log,
            parameters=parameters,
            state=state,
            average=average,
            best=best,
            epoch_loss=_tensor(path, file, "epoch.loss", net.dtype, vector=True),
            epoch_correct=_tensor(path, file, "epoch.correct", "uint8", vector=True),
        )


def _describe(net):
    return {
        "format": FORMAT,
        "layer_sizes": list(net.layer_sizes),
        "classes": net.classes.tolist(),
        "dropout": list(net.dropout),
        "input_dropout": net.input_dropout,
        "precision": net.precision,
        "seed": net.seed,
        "pixels": net.pixels,
        "temperature": net.temperature,
    }


def _write(path, tensors, metadata):
    from safetensors.numpy import save

    text = json.dumps(metadata, allow_nan=False)
    atomic_write(path, save(tensors, {METADATA_KEY: text}))


def _open(path):
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        hint = "is a folder: name the .safetensors file in it" if path.is_dir() else "is not there"
        raise CheckpointError(f"{path} {hint}")
    try:
        path.open("rb").close()  # for the system's own word on what is wrong
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _metadata(path, file):
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but not one of fastdigit's")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata is not a JSON object")
    for described in _descriptions(metadata):
        found = described.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise CheckpointError(
                f"{path} has format {found}, this version reads up to {FORMAT}: upgrade fastdigit"
            )
        if type(found) is int and found == 1:
            described.update({**NETWORK_BEFORE, **described, "format": FORMAT})
    schema = {"committee": COMMITTEE_SCHEMA} if "committee" in metadata else {"network": NETWORK_SCHEMA}
    if "training" in metadata:
        schema["training"] = TRAINING_SCHEMA
    problem = mismatch(metadata, schema, "metadata")
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return metadata


def _descriptions(metadata):
    """The descriptions of networks in metadata that nobody has checked yet."""
    committee = metadata.get("committee")
    members = committee.get("members") if isinstance(committee, dict) else None
    candidates = [metadata.get("network"), *(members if isinstance(members, list) else [])]
    return [described for described in candidates if isinstance(described, dict)]


def _named(path, file, prefix, net):
    """The tensors ``prefix + name`` for all parameters; all shapes are compared before any is read."""
    _compare(path, file, prefix, net.layout)
    return {
        tensor.name: _tensor(path, file, prefix + tensor.name, net.dtype) for tensor in net.layout.tensors
    }


def _compare(path, file, prefix, layout):
    """CheckpointError unless the tensors under ``prefix`` are exactly those of ``layout``."""
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    found = {
        name.removeprefix(prefix): tuple(file.get_slice(name).get_shape())
        for name in file.keys()  # noqa: SIM118 (not a dict)
        if name.startswith(prefix) and name.count(".") == prefix.count(".")
    }
    if found != shapes:
        names = sorted(name for name in {**shapes, **found} if found.get(name) != shapes.get(name))
        details = "; ".join(
            f"{prefix}{name} is {_shape(found.get(name))}, expected {_shape(shapes.get(name))}"
            for name in names
        )
        raise CheckpointError(f"{path} does not fit this network: {details}")


def _shape(shape):
    return "absent" if shape is None else "×".join(map(str, shape))


def _tensor(path, file, name, dtype, vector=False):
    from safetensors import SafetensorError

    try:
        value = file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: tensor {name} cannot be read: {error}") from error
    if value.dtype != dtype or (vector and value.ndim != 1):
        raise CheckpointError(
            f"{path}: tensor {name} is {value.dtype} {_shape(value.shape)}, expected {dtype}"
        )
    if not np.isfinite(value).all():
        raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity")
    return value
