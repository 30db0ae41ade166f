"""Philox4x32-10: random numbers that are a pure function of a counter and a key.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. There is no
state to carry, so element (row, column) of step s gets the same number on every backend, for any
number of threads and any launch shape.

The code is plain integer arithmetic on uint64 values that hold 32 bits each: it runs on NumPy and
CuPy arrays, on scalars, and inside Numba kernels without a change.
"""

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = np.uint64(0x9E3779B9)  # golden ratio
WEYL_1 = np.uint64(0xBB67AE85)  # sqrt(3) - 1


def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox on the counter ``(c0, c1, c2, c3)`` under the key ``(k0, k1)``.

    Shapes: anything that broadcasts together.
    Dtypes: uint64 values below 2**32, in and out.
    Returns: four words, each uniform on 0 … 2**32 - 1.
    Cost: 20 multiplications and 40 other integer operations for each four words.
    """
    for _ in range(10):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0 = (product_1 >> SHIFT) ^ c1 ^ k0
        c1 = product_1 & MASK
        c2 = (product_0 >> SHIFT) ^ c3 ^ k1
        c3 = product_0 & MASK
        k0 = (k0 + WEYL_0) & MASK
        k1 = (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3
