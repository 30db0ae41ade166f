"""Four numbers of a row at a time, on a GPU: how they are read and written, and what else may become of those
of a product on their way to memory.

``vectors``: whether four may be one access, as each fourth number of a row is at a multiple of their size.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import float32, uint32, uint64

from . import ptx
from .cuda import check_float32, check_shapes, device, row_distance, types
from .ptx import load2_words, load4, store2_words, store4

ONE, TWO, THREE = np.uint64(1), np.uint64(2), np.uint64(3)


@device
def read4(vector, at, count, vectors):
    """Four numbers from ``at`` on, of which there are ``count`` (at least 1); zeros for those behind."""
    if vectors and count >= 4:
        return load4(vector, at)
    at, zero = uint64(at), float32(0)  # without a sign: Numba then does not ask whether to count from the end
    return (
        vector[at],
        vector[at + ONE] if count > 1 else zero,
        vector[at + TWO] if count > 2 else zero,
        vector[at + THREE] if count > 3 else zero,
    )


@device
def nothing4():
    """Four zeros."""
    zero = float32(0)
    return zero, zero, zero, zero


@device
def read4_of(vector, row, row_distance, column, rows, columns, vectors):
    """Four numbers of a row of a matrix, zeros where it has none."""
    if row >= rows or column >= columns:
        return nothing4()
    return read4(vector, row * row_distance + column, columns - column, vectors)


@device
def write4(vector, at, count, vectors, values):
    """The first ``count`` of four values, or all."""
    if vectors and count >= 4:
        store4(vector, at, values)
        return
    at = uint64(at)
    vector[at] = values[0]
    if count > 1:
        vector[at + ONE] = values[1]
    if count > 2:
        vector[at + TWO] = values[2]
    if count > 3:
        vector[at + THREE] = values[3]


@device
def read4_halves(words, at, count, vectors):
    """As :func:`read4`, of bfloat16, in 64 bits if ``vectors``; rows begin at whole words, and so does
    ``at``."""
    zero = float32(0)
    if vectors and count >= 4:
        pair = load2_words(words, at >> 1)
        return ptx.low_half(pair[0]), ptx.high_half(pair[0]), ptx.low_half(pair[1]), ptx.high_half(pair[1])
    at = uint64(at // 2)
    first = words[at]
    second = words[at + ONE] if count > 2 else uint32(0)
    return (
        ptx.low_half(first),
        ptx.high_half(first) if count > 1 else zero,
        ptx.low_half(second),
        ptx.high_half(second) if count > 3 else zero,
    )


@device
def write4_halves(words, at, count, vectors, values):
    """As :func:`write4`, rounded to bfloat16. The number behind an odd last one becomes zero."""
    zero = float32(0)
    if vectors and count >= 4:
        pair = ptx.bfloat16_pair(values[0], values[1]), ptx.bfloat16_pair(values[2], values[3])
        store2_words(words, at >> 1, pair)
        return
    at = uint64(at // 2)
    words[at] = ptx.bfloat16_pair(values[0], values[1] if count > 1 else zero)
    if count > 2:
        words[at + ONE] = ptx.bfloat16_pair(values[2], values[3] if count > 3 else zero)


# --- what follows a product -----------------------------------------------------------------------


class Epilogue(NamedTuple):
    """What else may become of the numbers of an output. Kernels are compiled for each, on demand, so that
    none pays for what it does not do.

    Device functions: ``change(four, place, beside, shared, numbers)`` goes from four numbers beside each
    other to those that are written. ``place`` is (row, column, at, count, vectors): row and column of the
    first, a multiple of 4; where it is in the vector ``c``; how many there are from it to the end of the row,
    none if not above 0; whether accesses may be of 128 bits. ``numbers`` are those of the launch, a tuple of
    ``kinds``.

    ``beside = read(place, c, numbers)`` is what memory has at the place, and ``shared = begin(numbers)`` what
    it has for all places: apart from ``change``, so that one four need not wait until another is written.
    ``expect(c, at, count, numbers)``: what ``read`` will ask for from ``at`` on may be brought nearer.
    ``reads``: how many fours it reads beside each.
    """

    name: str
    change: Any
    kinds: types.BaseTuple
    begin: Any
    read: Any
    expect: Any
    reads: int

    @property
    def suffix(self):
        """Of the names of kernels that have it."""
        return self.name and f", {self.name}"


class Then(NamedTuple):
    """An epilogue with its numbers, for the ``then`` of products. ``beside``: the matrices that it reads and
    writes at the places of the output, besides the output itself; None if it does not read the output."""

    epilogue: Epilogue
    numbers: tuple
    beside: tuple | None


@device
def _as_they_are(four, place, beside, shared, numbers):
    return four


@device
def begin_with_nothing(numbers):
    return ()


@device
def read_nothing(place, c, numbers):
    return ()


@device
def expect_nothing(c, at, count, numbers):
    pass


NOTHING_BESIDE = read_nothing, expect_nothing, 0
AS_IT_IS = Then(Epilogue("", _as_they_are, types.Tuple(()), begin_with_nothing, *NOTHING_BESIDE), (), None)


def check_counter(step):
    """TypeError unless it is a vector of int64 with a number."""
    if step.dtype != np.int64 or step.ndim != 1 or not step.size:
        raise TypeError(f"step must be a vector of int64, got {step.dtype} of shape {step.shape}")


def check_beside(output, then):
    """ValueError unless what an epilogue reads and writes besides an output lies as the output does."""
    if then.beside is None:
        return
    if output is None:
        raise ValueError(f"{then.epilogue.name!r} changes an output of float32 that is there already: give c")
    for array in then.beside:
        check_float32(state=array)
        check_shapes(state=(array.shape, output.shape))
        if array.ndim > 1 and row_distance(array) != row_distance(output):
            raise ValueError(
                "the rows of state must be as far apart as those of the output that it belongs to"
            )
