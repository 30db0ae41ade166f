"""The pieces of an attack on a GPU: the definitions of ``reference.py``."""

import math

from numba import float32, float64, int32, int64, uint8, uint64

from ..common import lanes
from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    LONGS,
    Kernel,
    address_of,
    blocks_for,
    cuda,
    device,
    flat,
    for_any_array,
    row_distance,
)
from ..common.fours import read4, write4
from ..common.philox import MASK, SHIFT, philox4x32
from .reference import NORMS

THREADS = 128
LANES = 16  # of a row of logits
ROWS = THREADS // LANES  # of a block
UNIT, UNUSED_BITS = float32(2.0**-23), uint64(8)

_philox = device(philox4x32)
_sum_of, _first_largest = lanes.summing(LANES), lanes.choosing(LANES)


# --- the loss -----------------------------------------------------------------------------------


def _log_odds(z, z_row, t, loss, correct, dz, dz_row, rows, classes):
    """LANES lanes of a warp for each row, as in kernels/softmax_xent."""
    row, lane = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES
    at, there = row * z_row, classes if row < rows else 0
    target = t[row] if row < rows else int32(0)
    lowest = float32(-math.inf)
    first = z[at + lane] if lane < there else lowest  # read once; what follows it again
    best, place = first, int32(lane)
    largest, of_target = lowest, float32(0)
    for c in range(lane, there, LANES):
        logit = first if c == lane else z[at + c]
        if not logit <= best and best == best:
            best, place = logit, int32(c)
        if c == target:
            of_target = logit
        elif not logit <= largest and largest == largest:
            largest = logit
    best, place = _first_largest(best, place)
    largest, _ = _first_largest(largest, int32(lane))
    of_target, total = _sum_of(of_target), float32(0)
    for c in range(lane, there, LANES):
        if c != target:
            total += math.exp((first if c == lane else z[at + c]) - largest)
    total = _sum_of(total)
    for c in range(lane, there, LANES):
        p = math.exp((first if c == lane else z[at + c]) - largest) / total
        dz[row * dz_row + c] = p if c != target else float32(-1)
    if lane == 0 and row < rows:
        loss[row] = math.log(total) + (largest - of_target)
        correct[row] = uint8(1) if place == target else uint8(0)


# --- a step -------------------------------------------------------------------------------------


@device
def _clipped(x, low, high):
    """x in low … high; a NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x


def _ascend_linf(x, x_row, dx, dx_row, origin, origin_row, columns, step, epsilon):
    """A block for each row (y) and each THREADS of its pixels (x)."""
    column, row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.blockIdx.y
    if column < columns:
        slope, centre = dx[row * dx_row + column], origin[row * origin_row + column]
        move = step if slope > float32(0) else slope
        move = -step if slope < float32(0) else move  # else 0 or NaN
        moved = _clipped(x[row * x_row + column] + move, centre - epsilon, centre + epsilon)
        x[row * x_row + column] = _clipped(moved, float32(0), float32(1))


@device
def _root_of_sum(own, shared):
    """The root of the sum of all threads' numbers, in a fixed order, for each of them."""
    thread = cuda.threadIdx.x
    cuda.syncthreads()  # all have read the one before
    shared[thread] = own
    cuda.syncthreads()
    width = THREADS // 2
    while width > 0:
        if thread < width:
            shared[thread] += shared[thread + width]
        cuda.syncthreads()
        width //= 2
    return math.sqrt(shared[0])


def _ascend_l2(x, x_row, dx, dx_row, origin, origin_row, columns, step, epsilon):
    """A block for each row; sums in float64, where no square of a float32 vanishes."""
    shared = cuda.shared.array(THREADS, float64)
    row, thread = cuda.blockIdx.x, cuda.threadIdx.x
    total = float64(0)
    for c in range(thread, columns, THREADS):
        slope = float64(dx[row * dx_row + c])
        total += slope * slope
    length = _root_of_sum(total, shared)
    scale = float32(step / length) if length != float64(0) else float32(0)
    total = float64(0)
    for c in range(thread, columns, THREADS):
        far = x[row * x_row + c] - origin[row * origin_row + c] + dx[row * dx_row + c] * scale
        x[row * x_row + c] = far
        total += float64(far) * float64(far)
    length = _root_of_sum(total, shared)
    shorter = float32(epsilon / length) if length > epsilon else float32(1)
    for c in range(thread, columns, THREADS):
        moved = origin[row * origin_row + c] + x[row * x_row + c] * shorter
        x[row * x_row + c] = _clipped(moved, float32(0), float32(1))


# --- noise --------------------------------------------------------------------------------------


def _add_noise(x, x_row, vectors, order, start, columns, size, seed, stream, step):
    """A thread for four pixels of a row."""
    block, row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.blockIdx.y
    if 4 * block >= columns:
        return
    image = uint64(order[start + row]) & MASK
    words = _philox(uint64(block), image, step & MASK, step >> SHIFT, seed, stream)
    at, count = row * x_row + 4 * block, columns - 4 * block
    four = read4(x, at, count, vectors)
    noisy = (
        four[0] + size * _uniform(words[0]),
        four[1] + size * _uniform(words[1]),
        four[2] + size * _uniform(words[2]),
        four[3] + size * _uniform(words[3]),
    )
    write4(x, at, count, vectors, noisy)


@device
def _uniform(word):
    """-1 ≤ u < 1 from 24 bits."""
    return float32(int64(word >> UNUSED_BITS)) * UNIT - float32(1)


# --- launches -----------------------------------------------------------------------------------

_loss = Kernel(
    _log_odds,
    *(FLOATS, int64, INTS, FLOATS, BYTES, FLOATS, int64, int64, int64),
    threads=THREADS,
    name="log_odds",
)
_MATRICES = [FLOATS, int64] * 3
_steps = {
    "linf": Kernel(_ascend_linf, *_MATRICES, int64, float32, float32, threads=THREADS, name="ascend, linf"),
    "l2": Kernel(_ascend_l2, *_MATRICES, int64, float64, float64, threads=THREADS, name="ascend, l2"),
}
_noise = Kernel(
    _add_noise,
    *(FLOATS, int64, int64, LONGS, int64, int64, float32, uint64, uint64, uint64),
    threads=THREADS,
    name="add_noise",
)


@for_any_array
def log_odds(z, t, loss, correct, dz):
    """The odds against the target, whether its (first) largest logit is the target's, the gradient.

    loss = log Σ_{k≠t} exp(z_k) - z_t = log((1 - p_t) / p_t) and dz = ∂loss/∂z.

    Shapes: z and dz [B, C] with C ≥ 2, rows may be apart; t, loss and correct [B].
    Dtypes: t int32, in 0 … C - 1 (not checked), correct uint8, the rest float32.
    Writes: loss, correct, dz (which may be z itself).
    Cost: one exponential and about five flops an element.
    """
    blocks = blocks_for(len(z), ROWS)
    matrices = flat(z), row_distance(z), flat(t), flat(loss), flat(correct), flat(dz), row_distance(dz)
    _loss(blocks, *matrices, *z.shape)


@for_any_array
def ascend(x, dx, origin, step, epsilon, norm):
    """One step of x along dx, then back into the ball around ``origin``, then into 0 … 1.

    Shapes: x, dx and origin [B, I], rows may be apart. Dtypes: float32; step and ε > 0 are numbers,
    ``norm`` is "linf" or "l2". Writes: x, which must be neither of the others.
    Errors: ValueError for another norm.
    Cost: 6 or 9 flops an element; reads 3·B·I numbers, writes B·I; "l2" reads x and dx twice.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    rows, columns = x.shape
    blocks = rows if norm == "l2" else (blocks_for(columns, THREADS), rows)
    matrices = (part for matrix in (x, dx, origin) for part in (flat(matrix), row_distance(matrix)))
    _steps[norm](blocks, *matrices, columns, step, epsilon)


@for_any_array
def add_noise(x, order, start, size, key, step):
    """x_rc + size·u_rc, with u uniform in -1 ≤ u < 1, a function of key, step, order[start + r] and c.

    Shapes: x [B, I], rows may be apart, order [N] with start + B ≤ N. Dtypes: x float32, order int64
    with elements in 0 … 2**32 - 1. ``key`` two integers below 2**32, ``step`` an integer below 2**64.
    Writes: x. Errors: ValueError for numbers outside of these ranges.
    Cost: one Philox block for four elements; two memory accesses an element.
    """
    if not all(0 <= word < 2**32 for word in key) or not 0 <= step < 2**64:
        raise ValueError(f"key must be two integers below 2**32, step one below 2**64: got {key}, {step}")
    rows, columns = x.shape
    blocks = blocks_for(blocks_for(columns, 4), THREADS), rows
    vectors = row_distance(x) % 4 == 0 and address_of(x) % 16 == 0
    _noise(blocks, flat(x), row_distance(x), vectors, flat(order), start, columns, size, *key, step)
