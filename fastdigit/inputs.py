"""Checking and converting what users pass as images and labels, once, before any arithmetic.

Conversions that cannot change the meaning are made; everything else is an error that names the
row at fault. (FAULTS: no wrong answer given in silence.)
"""

import hashlib
import math
import sys
import warnings
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np

from .errors import ConfigError, DataError
from .streams import SPLIT, random_stream

MOST_IN_TABLE = 2**16  # distance of classes


def as_inputs(images, size, *, what="images", dtype="float32", pixels=True):
    """``images`` as a C-contiguous [N, size] array, uint8 or floating point.

    uint8 stays uint8 (it is scaled by 1/255 where a batch is gathered). Other integers become
    uint8 if they all lie in 0 … 255. Booleans become 0.0 and 1.0. Floats become ``dtype`` and are
    taken as they are; with ``pixels`` they should lie in 0 … 1, and whole numbers beyond 1 give a
    warning, because they look like pixels that nobody scaled.

    Shapes: [N, size] or [N, …] with the same number of values each; one image alone ([size], or
    [28, 28] for 784) is taken as N = 1.
    Errors: DataError for another shape, a dtype that is not numeric, NaN or infinity (with the
    row), integers outside 0 … 255.
    """
    ready = type(images) is np.ndarray and images.dtype == np.uint8 and images.flags.c_contiguous
    if ready and (images.shape == (size,) or images.shape[1:] == (size,)):
        return images.reshape(-1, size)  # nothing to check: one image shall not wait for it
    array = _as_array(images, what)
    if array.ndim >= 1 and array.size == size and array.shape[1:] != (size,):
        array = array.reshape(1, size)
    if array.ndim < 2 or math.prod(array.shape[1:]) != size:
        side = math.isqrt(size)
        square = f" or [N, {side}, {side}]" if side * side == size else ""
        raise DataError(f"{what} have shape {list(array.shape)}, expected [N, {size}]{square}")
    array = array.reshape(len(array), size)
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        outside = (array < 0) | (array > 255)
        if outside.any():
            row = int(outside.any(axis=1).argmax())
            value = array[row][outside[row]][0]
            raise DataError(f"{what}: row {row} holds {value}, integer pixels must lie in 0 … 255")
        array = array.astype(np.uint8)
    if array.dtype.kind in "bf":
        with np.errstate(over="ignore"):  # what overflows float32 is found just below
            array = array.astype(dtype, copy=False)
        finite = np.isfinite(array).all(axis=1)
        if not finite.all():
            row = int((~finite).argmax())
            raise DataError(f"{what}: row {row} holds NaN, infinity or a value too large for {dtype}")
        if pixels and array.size and array.max() > 1 and np.array_equal(array, np.rint(array)):
            warnings.warn(
                f"{what} are floats with whole values up to {array.max():g}: pass uint8 pixels, or "
                "divide by 255 to bring them to 0 … 1",
                stacklevel=_levels_to_the_caller(),
            )
    return np.ascontiguousarray(array)


def _as_array(values, what):
    """``values`` as an array of booleans, integers or floats."""
    if np.ma.is_masked(values):
        raise DataError(f"{what} have masked entries: fill them first")
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{what} are no array: {error}") from error
    if array.dtype.kind not in "buif":
        raise DataError(f"{what} must be numbers, got dtype {array.dtype}")
    return array


def _levels_to_the_caller():
    """The ``stacklevel`` with which a warning points at the line that called this package."""
    package = str(Path(__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def as_targets(labels, classes, count):
    """Labels as int32 indices into ``classes`` (a sorted or unsorted sequence of integers).

    Errors: DataError where the number differs from ``count``, or for a label that is not one of
    the classes, naming its row.
    """
    labels = _as_array(labels, "labels")
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(f"{count} images need {count} labels, got an array of shape {list(labels.shape)}")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise DataError(f"labels must be whole numbers, got dtype {labels.dtype}")
    classes = np.asarray(classes)
    least, most = int(classes.min()), int(classes.max())
    if labels.dtype.kind in "ui" and most - least < MOST_IN_TABLE:  # looked up: several times as fast
        table = np.full(most - least + 1, -1, np.int32)
        table[classes - least] = np.arange(len(classes))
        wrong = (labels < least) | (labels > most)
        targets = table[np.where(wrong, 0, labels.astype(np.int64) - least)]
        wrong |= targets < 0
    else:
        order = np.argsort(classes)
        targets = order[np.searchsorted(classes, labels, sorter=order).clip(max=len(classes) - 1)]
        wrong = classes[targets] != labels
    if wrong.any():
        row = int(wrong.argmax())
        known = ", ".join(map(str, classes.tolist()))
        raise DataError(f"label {labels[row]} of row {row} is not one of the network's classes ({known})")
    return targets.astype(np.int32, copy=False)


def as_weights(weights, count):
    """Weights of the images as float64, scaled so that their mean is 1; None stays None.

    Errors: DataError for another count, a weight that is negative or not finite (with its row),
    or a sum of zero.
    """
    if weights is None:
        return None
    weights = _as_array(weights, "sample weights").astype(np.float64)
    if weights.shape != (count,):
        raise DataError(f"{count} images need {count} weights, got an array of shape {list(weights.shape)}")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"sample weight {weights[row]} of row {row} must be finite and not negative")
    if count == 0:
        return weights
    largest = weights.max()
    if largest == 0:
        raise DataError("the sample weights are all zero")
    weights = weights / largest  # the sum of the largest numbers would overflow
    return weights / weights.mean()


def unpack(data):
    """(images, labels) of an object that has both, or of a pair."""
    if hasattr(data, "images") and hasattr(data, "labels"):
        return data.images, data.labels
    if isinstance(data, tuple) and len(data) == 2:
        return data
    raise DataError("data must have images and labels (as dataset.train), or be a pair (images, labels)")


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training and validation data, checked, converted and split, on the host.

    ``fastdigit.fit`` takes it in place of plain data, so that several networks can be trained on the same: it
    is then split once, and copied to the device once. What is not split is the caller's array, if it is
    C-contiguous and of a dtype that networks take: leave it as it is as long as the TrainingData is used.
    """

    inputs: np.ndarray
    targets: np.ndarray  # indices into classes
    weight: np.ndarray | None
    validation: tuple[np.ndarray, np.ndarray] | None  # inputs and labels
    classes: np.ndarray
    shape: tuple[int, int] | None  # height and width of the images, where they are given
    _arrays: dict = field(default_factory=dict, init=False, repr=False)  # of backends

    @classmethod
    def of(cls, net, train, validation=None, sample_weight=None, seed=0):
        """``train`` for networks like ``net``; the arguments are those of :func:`fastdigit.fit`.

        Errors: DataError, ConfigError.
        """
        if isinstance(train, cls):
            train._check(net, validation, sample_weight)
            return train
        images, labels = unpack(train)
        shape = np.shape(images)[1:3] if np.ndim(images) >= 3 else None
        inputs = net.as_inputs(images)
        targets = as_targets(labels, net.classes, len(inputs))
        weight = as_weights(sample_weight, len(inputs))
        if not len(inputs):
            raise DataError("there are no images to train on")
        if validation is None:
            return cls(inputs, targets, weight, None, net.classes, shape)
        if not isinstance(validation, Real):
            images, labels = unpack(validation)
            if not len(images):
                raise DataError("there are no images to validate with")
            held_back = net.as_inputs(images), np.asarray(labels)
            as_targets(held_back[1], net.classes, len(held_back[0]))
            return cls(inputs, targets, weight, held_back, net.classes, shape)
        if not 0 < validation < 1:
            raise ConfigError(f"validation must be a fraction between 0 and 1, or data, got {validation!r}")
        kept, held = _split(targets, validation, seed)
        return cls(
            inputs[kept],
            targets[kept],
            None if weight is None else as_weights(weight[kept], len(kept)),
            (inputs[held], net.classes[targets[held]]),
            net.classes,
            shape,
        )

    def _check(self, net, validation, sample_weight):
        if validation is not None or sample_weight is not None:
            raise ConfigError(
                "TrainingData has its validation and weights already: give them to TrainingData.of"
            )
        fits = self.inputs.shape[1] == net.layer_sizes[0] and self.inputs.dtype in (np.uint8, net.dtype)
        if not (fits and np.array_equal(self.classes, net.classes)):
            raise ConfigError(f"this TrainingData was made for another network than {net}: make it anew")

    def on(self, backend, dtype):
        """(inputs, targets, weight) as arrays of the backend, copied there once, if that is not the host."""
        key = backend, dtype
        if key not in self._arrays:
            arrays = self.inputs, self.targets, None if self.weight is None else self.weight.astype(dtype)
            if not backend.on_host:
                arrays = [None if a is None else backend.to_device(a) for a in arrays]
            self._arrays[key] = tuple(arrays)
        return self._arrays[key]

    def digest(self):
        """Tells whether a checkpoint was made with the same data."""
        digest = hashlib.blake2b(digest_size=16)
        parts = [self.inputs, self.targets, self.weight, *(self.validation or ())]
        for part in parts:
            if part is not None:
                digest.update(f"{part.dtype.str}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()


def _split(targets, fraction, seed):
    """Indices (kept, held back), both sorted, stratified by class."""
    from sklearn.model_selection import train_test_split

    state = int(random_stream(seed, SPLIT).integers(2**31))
    try:
        kept, held = train_test_split(
            np.arange(len(targets)), test_size=fraction, stratify=targets, random_state=state
        )
    except ValueError as error:
        raise DataError(
            f"validation={fraction:g} cannot be split off {len(targets)} images: {error}"
        ) from error
    return np.sort(kept), np.sort(held)
