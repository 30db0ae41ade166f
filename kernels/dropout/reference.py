"""Inverted dropout, written once for any array module ``xp`` (NumPy, CuPy).

Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15 (2014); kept values
are scaled up while training, so that nothing is to be done at prediction.
"""

import math

from ..common.philox import philox4x32

# The layer of the key for the inputs of a network: hidden layers count from 0, however many there are.
INPUT_LAYER = 2**32 - 1


def keep_threshold(p):
    """The smallest 32-bit word that keeps an element when it is dropped with probability ``p``."""
    return math.floor(p * 2**32)


def dropout(xp, y, p, key, step):
    """y = y / (1 - p) where kept, 0 where dropped; each element is dropped with probability p.

    Element (r, c) looks at word c % 4 of Philox4x32-10 with the counter (c // 4, r, step's low
    word, step's high word) under the key (seed, layer), and is kept if that word is at least
    ⌊p · 2³²⌋: the same elements on every backend.

    Shapes: y [B, O]. Dtypes: float32 (the reference also runs in float64).
    Writes: y, in place.
    ``p`` is in 0 ≤ p < 1; ``key`` two integers below 2**32; ``step`` an integer below 2**64.
    Cost: one Philox block for four elements, two memory accesses an element.
    The gradient: :func:`fastdigit.kernels.matmul.reference.dense_grad_input` with its ``scale``.
    """
    rows, columns = y.shape
    uint64 = xp.uint64
    words = philox4x32(
        xp.arange((columns + 3) // 4, dtype=uint64)[None, :],
        xp.arange(rows, dtype=uint64)[:, None],
        uint64(step & 0xFFFFFFFF),
        uint64(step >> 32),
        uint64(key[0]),
        uint64(key[1]),
    )
    words = xp.stack(words, axis=2).reshape(rows, -1)[:, :columns]
    xp.multiply(y, 1 / (1 - p), out=y)
    xp.copyto(y, 0, where=words < keep_threshold(p))
