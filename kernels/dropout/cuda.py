"""Inverted dropout on a GPU: the definition of ``reference.py``, one thread for four elements; alone, or in
the kernel of the product whose output it is about."""

from numba import float32, int64, uint64

from ..common.cuda import (
    FLOATS,
    LONGS,
    Kernel,
    address_of,
    blocks_for,
    cuda,
    device,
    flat,
    for_any_array,
    row_distance,
    types,
)
from ..common.fours import NOTHING_BESIDE, Epilogue, Then, check_counter, read4, write4
from ..common.philox import MASK, SHIFT, philox4x32
from .reference import keep_threshold

THREADS = 128

_philox = device(philox4x32)


@device
def _thinned(four, row, column, numbers, step):
    """Four elements beside each other, the first of which is in a column that is a multiple of 4."""
    threshold, scale, seed, layer = numbers
    words = _philox(uint64(column) // uint64(4), uint64(row), step & MASK, step >> SHIFT, seed, layer)
    zero = float32(0)
    return (
        four[0] * scale if words[0] >= threshold else zero,
        four[1] * scale if words[1] >= threshold else zero,
        four[2] * scale if words[2] >= threshold else zero,
        four[3] * scale if words[3] >= threshold else zero,
    )


def _dropout(y, y_row, columns, vectors, numbers, step):
    column, row = 4 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x), cuda.blockIdx.y
    if column < columns:
        at, count = row * y_row + column, columns - column
        four = read4(y, at, count, vectors)
        write4(y, at, count, vectors, _thinned(four, row, column, numbers, step))


@device
def _step(numbers):
    return uint64(numbers[1][0])


@device
def _change(four, place, beside, step, numbers):
    return _thinned(four, place[0], place[1], numbers[0], step)


_NUMBERS = types.Tuple((uint64, float32, uint64, uint64))
_kernel = Kernel(_dropout, FLOATS, *[int64] * 3, _NUMBERS, uint64, threads=THREADS, name="dropout")
DROPOUT = Epilogue("dropout", _change, types.Tuple((_NUMBERS, LONGS)), _step, *NOTHING_BESIDE)


def _numbers(p, key):
    if not 0 <= p < 1:
        raise ValueError(f"p must be in 0 ≤ p < 1, got {p}")
    if not all(0 <= word < 2**32 for word in key):
        raise ValueError(f"key must be two integers below 2**32, got {key}")
    return keep_threshold(p), 1 / (1 - p), *key


@for_any_array
def dropout(y, p, key, step):
    """y = y / (1 - p) where kept, 0 where dropped; each element is dropped with probability p.

    Which elements those are says :func:`.reference.dropout`: the same on every backend.

    Shapes: y [B, O]; its rows may be apart. Dtypes: float32.
    ``p`` is in 0 ≤ p < 1; ``key`` two integers below 2**32; ``step`` an integer below 2**64.
    Writes: y, in place. Errors: ValueError for numbers outside of these ranges.
    Cost: one Philox block for four elements; two memory accesses an element.
    """
    numbers = _numbers(p, key)
    if not 0 <= step < 2**64:
        raise ValueError(f"step must be an integer below 2**64, got {step}")
    (rows, columns), distance = y.shape, row_distance(y)
    vectors = distance % 4 == 0 and address_of(y) % 16 == 0
    blocks = blocks_for(blocks_for(columns, 4), THREADS), rows
    _kernel(blocks, flat(y), distance, columns, vectors, numbers, step)


def dropping(p, key, step):
    """:func:`dropout` of a product's output in the product's kernel: for the ``then`` of products.

    ``multiply(x, w, y, bias=b, relu=True, then=dropping(0.5, (seed, layer), step))``

    ``step``: a vector of int64 on the GPU, whose first number is read when the kernel runs: the same launch
    serves all steps. Errors: ValueError for ``p`` or ``key`` out of range, TypeError for another ``step``.
    Cost: one Philox block for four elements; no access of memory for an element.
    """
    check_counter(step)
    return Then(DROPOUT, (_numbers(p, key), step), None)
