"""A transposed copy of a matrix of float32 on a GPU, for products that read their operands along k alone.

A block turns one square by way of shared memory, so that rows are read and written in whole lines. Numbers of
a column are then an odd distance apart: each warp's accesses meet every bank at most twice.
"""

import numpy as np
from numba import float32, int64

from ..common import ptx
from ..common.cuda import FLOATS, Kernel, blocks_for, check_float32, cuda, flat, row_distance
from ..common.fours import read4_of, write4
from .cuda_epilogue import in_fours

SIDE = 64  # of a square
FOURS = SIDE // 4
THREADS = 256
APART = THREADS // FOURS  # rows, of fours that a thread copies
PITCH = SIDE + 1
NUMBERS = SIDE * PITCH


def _transpose(a, a_row, rows, columns, vectors, out, out_row, across):
    """``across``: squares beside each other in a row; all are numbered through. ``vectors``: of ``a``, whose
    fours may be read by one access; those of ``out`` always are."""
    ptx.launch_dependents()
    ptx.wait_for_launches()
    square = cuda.shared.array(NUMBERS, float32)
    top, left = cuda.blockIdx.x // across * SIDE, cuda.blockIdx.x % across * SIDE
    four, first = cuda.threadIdx.x % FOURS * 4, cuda.threadIdx.x // FOURS
    for row in range(first, SIDE, APART):
        found = read4_of(a, top + row, a_row, left + four, rows, columns, vectors)
        for i in range(4):
            square[(four + i) * PITCH + row] = found[i]
    cuda.syncthreads()
    for row in range(first, SIDE, APART):
        at, count = row * PITCH + four, rows - (top + four)
        if left + row < columns and count > 0:
            values = square[at], square[at + 1], square[at + 2], square[at + 3]
            write4(out, (left + row) * out_row + top + four, count, True, values)


_kernel = Kernel(
    _transpose,
    *(FLOATS, int64, int64, int64, int64, FLOATS, int64, int64),
    threads=THREADS,
    resident=5,
    name="transpose",
    dependent=True,
)


def transposed(a):
    """A copy of a [R, C] as [C, R], in rows that begin at multiples of 16 bytes.

    Dtype: float32; rows may be further apart than they are long. The copy is in the memory that ``a`` is in.
    Errors: TypeError for another dtype. Cost: reads and writes 4 · R · C bytes.
    """
    check_float32(a=a)
    rows, columns = a.shape
    empty = np.empty if isinstance(a, np.ndarray) else type(a)
    whole = empty((columns, 4 * blocks_for(rows, 4)), np.float32)
    across = blocks_for(columns, SIDE)
    _kernel(
        blocks_for(rows, SIDE) * across,
        *(flat(a), row_distance(a), rows, columns, in_fours([a])),
        *(flat(whole), row_distance(whole), across),
    )
    return whole[:, :rows]
