"""ReLU and its gradient on a GPU, element by element: for embedding in other code. Networks use it
fused into the matrix products."""

from numba import float32, int64

from ..common.cuda import (
    FLOATS,
    Kernel,
    blocks_for,
    cuda,
    device,
    flat,
    for_any_array,
    row_distance,
)

THREADS = 256


@device
def _place(i, columns, distance):
    """Of the i-th number of a matrix."""
    return i // columns * distance + i % columns


def _relu(x, x_row, y, y_row, count, columns):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < count:
        value = x[_place(i, columns, x_row)]
        y[_place(i, columns, y_row)] = float32(0) if value < float32(0) else value


def _relu_grad(y, y_row, dy, dy_row, dx, dx_row, count, columns):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < count:
        slope = dy[_place(i, columns, dy_row)]
        dx[_place(i, columns, dx_row)] = slope if y[_place(i, columns, y_row)] > float32(0) else float32(0)


_forward = Kernel(_relu, *[FLOATS, int64] * 2, int64, int64, threads=THREADS, name="relu")
_backward = Kernel(_relu_grad, *[FLOATS, int64] * 3, int64, int64, threads=THREADS, name="relu_grad")


def _run(kernel, *arrays):
    """Vectors count as one row."""
    count, matrices = arrays[0].size, arrays[0].ndim > 1
    columns = arrays[0].shape[1] if matrices else count
    each = (part for a in arrays for part in (flat(a), row_distance(a) if matrices else count))
    kernel(blocks_for(count, THREADS), *each, count, columns)


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
