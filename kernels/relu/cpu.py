"""ReLU and its gradient on the CPU: :mod:`.reference` in loops that LLVM turns into vectors."""

import numpy as np

from ..common.compiling import inner, jit
from ..common.memory import ints, matrix, matrix_address, row, share
from ..common.team import Kernel, thread_count

# Elements a thread: so many take some 5 µs, less than it takes to wake a thread that sleeps.
SHARE = 32_768

ZERO = np.float32(0)


@inner
def _copy(source, target):
    """The numbers of ``source`` into ``target``, which may be ``source`` itself.

    Afterwards a loop needs ``target`` alone. LLVM's vectors are for arrays that do not overlap; where
    source and target were the same, a loop over both would go number by number.
    """
    if source.ctypes.data != target.ctypes.data:
        for c in range(target.size):
            target[c] = source[c]


@jit
def relu_rows(x, y, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`relu`."""
    for r in range(first, last):
        target = row(y, r)
        _copy(row(x, r), target)
        for c in range(target.size):
            target[c] = ZERO if target[c] <= ZERO else target[c]  # a NaN is not ≤ 0


@jit
def relu_grad_rows(y, dy, dx, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`relu_grad`."""
    for r in range(first, last):
        mask, target = row(y, r), row(dx, r)
        _copy(row(dy, r), target)
        for c in range(target.size):
            gradient = target[c]
            target[c] = gradient if mask[c] > ZERO else ZERO


@Kernel
def _relu(thread, threads, barrier, arguments):
    words = ints(arguments, 6)
    rows, columns = words[0], words[1]
    x, y = matrix(words[2], words[3], rows, columns), matrix(words[4], words[5], rows, columns)
    first, last = share(rows, thread, threads)
    relu_rows(x, y, first, last)


@Kernel
def _relu_grad(thread, threads, barrier, arguments):
    words = ints(arguments, 8)
    rows, columns = words[0], words[1]
    y, dy = matrix(words[2], words[3], rows, columns), matrix(words[4], words[5], rows, columns)
    dx = matrix(words[6], words[7], rows, columns)
    first, last = share(rows, thread, threads)
    relu_grad_rows(y, dy, dx, first, last)


def relu(x, y, threads=None):
    """y = max(x, 0), element by element. NaN stays NaN.

    Shapes: x and y [B, O]; their rows may be apart. Dtypes: float32.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: y, which may be x itself.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: one comparison and two memory accesses an element.
    """
    source = matrix_address("x", x, np.float32)
    target = matrix_address("y", y, np.float32, x.shape, written=True)
    _relu([*x.shape, *source, *target], min(thread_count(threads), max(1, x.size // SHARE)))


def relu_grad(y, dy, dx, threads=None):
    """dx = dy where y > 0, else 0. ``y`` is what :func:`relu` wrote (or its input: same sign).

    Shapes: y, dy and dx [B, O]; their rows may be apart. Dtypes: float32.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: dx, which may be dy itself.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: one comparison and three memory accesses an element.
    """
    mask = matrix_address("y", y, np.float32)
    source = matrix_address("dy", dy, np.float32, y.shape)
    target = matrix_address("dx", dx, np.float32, y.shape, written=True)
    words = [*y.shape, *mask, *source, *target]
    _relu_grad(words, min(thread_count(threads), max(1, y.size // SHARE)))
