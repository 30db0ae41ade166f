"""Inverted dropout on a GPU: the definition of ``reference.py``, one thread for four elements."""

from numba import float32, int64, uint64

from ..common.cuda import FLOATS, Kernel, blocks_for, cuda, device, flat, row_distance
from ..common.philox import MASK, SHIFT, philox4x32
from .reference import keep_threshold

THREADS = 128

_philox = device(philox4x32)


def _dropout(y, y_row, rows, columns, threshold, scale, seed, layer, step):
    block = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    row = cuda.blockIdx.y
    if 4 * block >= columns:
        return
    words = _philox(uint64(block), uint64(row), step & MASK, step >> SHIFT, seed, layer)
    at, count = row * y_row + 4 * block, columns - 4 * block
    zero = float32(0)
    y[at] = y[at] * scale if words[0] >= threshold else zero
    if count > 1:
        y[at + 1] = y[at + 1] * scale if words[1] >= threshold else zero
    if count > 2:
        y[at + 2] = y[at + 2] * scale if words[2] >= threshold else zero
    if count > 3:
        y[at + 3] = y[at + 3] * scale if words[3] >= threshold else zero


_kernel = Kernel(
    _dropout,
    *(FLOATS, int64, int64, int64, uint64, float32, uint64, uint64, uint64),
    threads=THREADS,
    name="dropout",
)


def dropout(y, p, key, step):
    """y = y / (1 - p) where kept, 0 where dropped; each element is dropped with probability p.

    Which elements those are says :func:`.reference.dropout`: the same on every backend.

    Shapes: y [B, O]; its rows may be apart. Dtypes: float32.
    ``p`` is in 0 ≤ p < 1; ``key`` two integers below 2**32; ``step`` an integer below 2**64.
    Writes: y, in place. Errors: ValueError for numbers outside of these ranges.
    Cost: one Philox block for four elements; two memory accesses an element.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be in 0 ≤ p < 1, got {p}")
    if not all(0 <= word < 2**32 for word in key) or not 0 <= step < 2**64:
        raise ValueError(f"key must be two integers below 2**32, step one below 2**64: got {key}, {step}")
    rows, columns = y.shape
    blocks = blocks_for(blocks_for(columns, 4), THREADS), rows
    _kernel(blocks, flat(y), row_distance(y), rows, columns, keep_threshold(p), 1 / (1 - p), *key, step)
