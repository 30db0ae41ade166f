"""ReLU and its gradient on a GPU, element by element: for embedding in other code. Networks use it
fused into the matrix products."""

from numba import float32, int64

from ..common.cuda import (
    FLOATS,
    MOST_BELOW,
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

THREADS = 256


@device
def _rectified(value):
    return float32(0) if value < float32(0) else value


def _relu(x, x_row, y, y_row, columns, vectors):
    column, row = 4 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x), cuda.blockIdx.y
    if column < columns:
        count = columns - column
        v = read4(x, row * x_row + column, count, vectors)
        found = _rectified(v[0]), _rectified(v[1]), _rectified(v[2]), _rectified(v[3])
        write4(y, row * y_row + column, count, vectors, found)


@device
def _where_positive(y, slope):
    return slope if y > float32(0) else float32(0)


def _relu_grad(y, y_row, dy, dy_row, dx, dx_row, columns, vectors):
    column, row = 4 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x), cuda.blockIdx.y
    if column < columns:
        count = columns - column
        v = read4(y, row * y_row + column, count, vectors)
        s = read4(dy, row * dy_row + column, count, vectors)
        first, second = _where_positive(v[0], s[0]), _where_positive(v[1], s[1])
        found = first, second, _where_positive(v[2], s[2]), _where_positive(v[3], s[3])
        write4(dx, row * dx_row + column, count, vectors, found)


_forward = Kernel(_relu, *[FLOATS, int64] * 2, int64, int64, threads=THREADS, name="relu")
_backward = Kernel(_relu_grad, *[FLOATS, int64] * 3, int64, int64, threads=THREADS, name="relu_grad")


def _run(kernel, *arrays):
    """Four numbers to a thread. What is without gaps counts as one row."""
    if all(a.ndim < 2 or row_distance(a) == a.shape[1] for a in arrays):
        arrays = [flat(a).reshape(1, -1) for a in arrays]
    rows, columns = arrays[0].shape
    for first in range(0, rows, MOST_BELOW):
        parts = [a[first : first + MOST_BELOW] for a in arrays]
        vectors = all(address_of(a) % 16 == 0 for a in parts)
        vectors = vectors and (rows == 1 or all(row_distance(a) % 4 == 0 for a in parts))
        each = (part for a in parts for part in (flat(a), row_distance(a)))
        kernel((blocks_for(columns, 4 * THREADS), len(parts[0])), *each, columns, vectors)


@for_any_array
def relu(x, y):
    """y = max(x, 0). NaN stays NaN.

    Shapes: x and y alike, [N] or [R, C], rows may be apart. Dtypes: float32. Writes: y, which may be x.
    Cost: two memory accesses an element.
    """
    _run(_forward, x, y)


@for_any_array
def relu_grad(y, dy, dx):
    """dx = dy where y > 0, else 0. ``y`` is what :func:`relu` wrote, or its input.

    Shapes: y, dy and dx alike, [N] or [R, C], rows may be apart. Dtypes: float32. Writes: dx, which may
    be dy. Cost: three memory accesses an element.
    """
    _run(_backward, y, dy, dx)
