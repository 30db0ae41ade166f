"""Checking and converting what users pass as images and labels, once, before any arithmetic.

Conversions that cannot change the meaning are made; everything else is an error that names the
row at fault. (FAULTS: no wrong answer given in silence.)
"""

import math
import warnings

import numpy as np

from .errors import DataError


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
    array = np.asarray(images)
    if array.dtype.kind not in "buif":
        raise DataError(f"{what} must be numbers, got dtype {array.dtype}")
    if array.ndim >= 1 and array.size == size and array.shape[0] != 1 and array.shape[1:] != (size,):
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
                stacklevel=3,
            )
    return np.ascontiguousarray(array)


def as_targets(labels, classes, count):
    """Labels as int32 indices into ``classes`` (a sorted or unsorted sequence of integers).

    Errors: DataError where the number differs from ``count``, or for a label that is not one of
    the classes, naming its row.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(f"{count} images need {count} labels, got an array of shape {list(labels.shape)}")
    if labels.dtype.kind not in "bui" and not (
        labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels))
    ):
        raise DataError(f"labels must be whole numbers, got dtype {labels.dtype}")
    classes = np.asarray(classes)
    order = np.argsort(classes)
    position = np.searchsorted(classes, labels, sorter=order).clip(max=len(classes) - 1)
    targets = order[position]
    wrong = classes[targets] != labels
    if wrong.any():
        row = int(wrong.argmax())
        known = ", ".join(map(str, classes.tolist()))
        raise DataError(f"label {labels[row]} of row {row} is not one of the network's classes ({known})")
    return targets.astype(np.int32)


def as_weights(weights, count):
    """Weights of the images as float32, scaled so that their mean is 1; None stays None.

    Errors: DataError for another count, a weight that is negative or not finite (with its row),
    or a sum of zero.
    """
    if weights is None:
        return None
    weights = np.asarray(weights, np.float64)
    if weights.shape != (count,):
        raise DataError(f"{count} images need {count} weights, got an array of shape {list(weights.shape)}")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"sample weight {weights[row]} of row {row} must be finite and not negative")
    total = weights.sum()
    if total == 0:
        raise DataError("the sample weights are all zero")
    return (weights * (count / total)).astype(np.float32)
