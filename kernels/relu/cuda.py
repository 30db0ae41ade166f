"""ReLU and its gradient on a GPU, element by element: for embedding in other code. Networks use it
fused into the matrix products."""

from numba import float32, int64

from ..common.cuda import (
    FLOATS,
    Kernel,
    blocks_for,
    cuda,
    flat,
    for_any_array,
)

THREADS = 256


def _relu(x, y, count):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < count:
        y[i] = float32(0) if x[i] < float32(0) else x[i]


def _relu_grad(y, dy, dx, count):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < count:
        dx[i] = dy[i] if y[i] > float32(0) else float32(0)


_forward = Kernel(_relu, FLOATS, FLOATS, int64, threads=THREADS, name="relu")
_backward = Kernel(_relu_grad, FLOATS, FLOATS, FLOATS, int64, threads=THREADS, name="relu_grad")


@for_any_array
def relu(x, y):
    """y = max(x, 0). NaN stays NaN.

    Shapes: x and y alike, contiguous. Dtypes: float32. Writes: y, which may be x itself.
    Cost: two memory accesses an element.
    """
    _forward(blocks_for(x.size, THREADS), flat(x.reshape(-1)), flat(y.reshape(-1)), x.size)


@for_any_array
def relu_grad(y, dy, dx):
    """dx = dy where y > 0, else 0. ``y`` is what :func:`relu` wrote, or its input.

    Shapes: y, dy and dx alike, contiguous. Dtypes: float32. Writes: dx, which may be dy itself.
    Cost: three memory accesses an element.
    """
    vectors = (flat(array.reshape(-1)) for array in (y, dy, dx))
    _backward(blocks_for(y.size, THREADS), *vectors, y.size)
