"""Max-norm on a GPU: a block for ACROSS columns, whose rows are summed in DOWN parts of a fixed order."""

import math

from numba import float32, float64, int64

from ..common.cuda import (
    FLOATS,
    Kernel,
    blocks_for,
    cuda,
    flat,
    for_any_array,
    row_distance,
)

THREADS = 256
ACROSS = 16  # two pieces of 32 bytes of the GPU's memory in each row
DOWN = THREADS // ACROSS


def _max_norm(w, w_row, rows, columns, limit):
    parts = cuda.shared.array(THREADS, float64)
    lane, part = cuda.threadIdx.x % ACROSS, cuda.threadIdx.x // ACROSS
    column = cuda.blockIdx.x * ACROSS + lane
    total = float64(0)
    if column < columns:
        for row in range(part, rows, DOWN):
            value = float64(w[row * w_row + column])
            total += value * value
    parts[cuda.threadIdx.x] = total
    cuda.syncthreads()
    total = parts[lane]
    for other in range(1, DOWN):
        total += parts[other * ACROSS + lane]
    norm = math.sqrt(total)
    if column >= columns or norm <= limit:
        return
    factor = limit / norm  # of NaN: NaN, so that the loss shows it
    for row in range(part, rows, DOWN):
        at = row * w_row + column
        w[at] = float32(float64(w[at]) * factor)


_kernel = Kernel(_max_norm, FLOATS, int64, int64, int64, float64, threads=THREADS, name="max_norm")


@for_any_array
def max_norm(w, limit):
    """w_o ← w_o · min(1, limit / |w_o|) for each column w_o: what comes in to one unit.

    Shapes: w [I, O]; its rows may be apart. Dtypes: float32; limit is a number > 0.
    Writes: w; a column that is short enough keeps its bits, one that is not finite becomes NaN.
    Cost: reads w twice, writes it where it is too long; the norms never visit the host.
    """
    rows, columns = w.shape
    _kernel(blocks_for(columns, ACROSS), flat(w), row_distance(w), rows, columns, limit)
