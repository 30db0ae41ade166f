"""What lanes exchange, in the interpreter of PTX, against NumPy."""

import numpy as np
import pytest
from numba import int32

from fastdigit.kernels.common import lanes
from fastdigit.kernels.common.cuda import FLOATS, INTS, KERNELS, Kernel, cuda

from ..ptx.emulated import emulated

THREADS = 64


def kernel_for(count):
    sum_of, first_largest = lanes.summing(count), lanes.choosing(count)

    def together(values, places, sums, largest, chosen):
        at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        sums[at] = sum_of(values[at])
        value, place = first_largest(values[at], int32(places[at]))
        largest[at], chosen[at] = value, place

    known = len(KERNELS)
    kernel = Kernel(together, FLOATS, INTS, FLOATS, FLOATS, INTS, threads=THREADS, name=f"together, {count}")
    del KERNELS[known:]
    return kernel


def values_with(special):
    random = np.random.default_rng(0)
    values = random.integers(-3, 4, 2 * THREADS).astype(np.float32)  # many are equal
    values[random.choice(2 * THREADS, 24, replace=False)] = special
    return values


@pytest.mark.parametrize("special", [3, -np.inf, np.inf, np.nan])
@pytest.mark.parametrize("count", [2, 16, 32])
def test_sum_and_first_largest_of_lanes(count, special):
    values = values_with(special)
    places = np.random.default_rng(1).permutation(2 * THREADS).astype(np.int32)
    sums, largest = np.zeros_like(values), np.zeros_like(values)
    chosen = np.zeros_like(places)
    with np.errstate(invalid="ignore"), emulated():
        kernel_for(count)(2, values, places, sums, largest, chosen)
    for group in range(0, 2 * THREADS, count):
        own = slice(group, group + count)
        in_order = np.argsort(places[own])
        best = in_order[np.argmax(values[own][in_order])]  # the first, or a NaN
        with np.errstate(invalid="ignore"):
            total = values[own].sum(dtype=np.float64)
        np.testing.assert_array_equal(sums[own], np.full(count, total, np.float32))
        np.testing.assert_array_equal(largest[own], np.full(count, values[own][best]))
        np.testing.assert_array_equal(chosen[own], np.full(count, places[own][best]))
