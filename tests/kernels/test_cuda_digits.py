"""Products of bytes with numbers as digits, in the interpreter of PTX, against float64."""

import numpy as np
import pytest
from numba import int32

from fastdigit.kernels.common import digits, ptx
from fastdigit.kernels.common.cuda import FLOATS, KERNELS, WORDS, Kernel, cuda

from ..ptx.emulated import emulated

BYTES, VECTORS = 32, digits.TILE


def _numbers(values, of, per_unit_of, sizes):
    """Four numbers of a thread as digits, with the unit of the largest."""
    at = 4 * cuda.threadIdx.x
    largest = ptx.larger(digits.size_of(values[at]), digits.size_of(values[at + 1]))
    largest = ptx.larger(largest, ptx.larger(digits.size_of(values[at + 2]), digits.size_of(values[at + 3])))
    sizes[cuda.threadIdx.x] = ptx.largest_of_warp(largest)
    per_unit, unit = digits.unit_of(largest)
    per_unit_of[2 * cuda.threadIdx.x], per_unit_of[2 * cuda.threadIdx.x + 1] = per_unit, unit
    found = digits.digits_of(values[at], values[at + 1], values[at + 2], values[at + 3], per_unit)
    of[at], of[at + 1], of[at + 2], of[at + 3] = found


def _product(a, b, sums):
    """16 × 32 bytes times the digits of two vectors: what each lane gets of their 16 × 2 sums."""
    lane = int32(cuda.threadIdx.x)
    row, k = lane // 4, lane % 4
    words = a[8 * row + k], a[8 * (row + 8) + k], a[8 * row + k + 4], a[8 * (row + 8) + k + 4]
    found = ptx.byte_sums(words, b[8 * row + k], b[8 * row + k + 4], digits.no_sums())
    sums[lane] = digits.total_of(found, lane)


def kernel_of(function, *kinds):
    known = len(KERNELS)
    kernel = Kernel(function, *kinds, threads=32, name=function.__name__, simulated=False)
    del KERNELS[known:]
    return kernel


def as_digits(values):
    """(digits [32, 4 numbers, 4 digits], 1 / unit and unit [32, 2], the warp's largest size)"""
    of, units, sizes = np.zeros(128, np.uint32), np.zeros(64, np.float32), np.zeros(32, np.uint32)
    with emulated():
        kernel_of(_numbers, FLOATS, WORDS, FLOATS, WORDS)(1, values.ravel(), of, units, sizes)
    return of.view(np.int8).reshape(32, 4, 4).swapaxes(1, 2), units.reshape(32, 2), sizes


@pytest.mark.parametrize("scale", [1, 1e-9, 3e30, 1e-38])
def test_digits_are_those_of_the_numbers(scale):
    random = np.random.default_rng(0)
    values = (scale * random.standard_normal((32, 4))).astype(np.float32)
    values[0, :3], values[1], values[2] = 0, 0, values[2, 0]
    found, units, sizes = as_digits(values)
    assert (units[:, 0].astype(np.float64) * units[:, 1] == 1).all()
    restored = (found @ 256.0 ** np.arange(4)) * units[:, 1:].astype(np.float64)
    # Rounded to a multiple of the unit, which is a power of two and suits the largest of the four.
    assert (abs(restored - values) <= units[:, 1:] / 2).all()
    least = 2.0 ** (digits.LEAST - 156)
    assert (units[:, 1] <= np.maximum(abs(values).max(1) * 2.0**-29, least)).all()
    assert (sizes.view(np.float32) == abs(values).max()).all()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_make_the_unit_nan(special):
    values = np.ones((32, 4), np.float32)
    values[3, 2] = special
    _, units, sizes = as_digits(values)
    assert np.isnan(units[3, 1])
    assert np.isfinite(np.delete(units, 3, 0)).all()
    assert (sizes.view(np.float32)[0] == np.inf) or np.isnan(sizes.view(np.float32)[0])


def test_sums_of_products_are_rounded_but_four_times():
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (16, BYTES)).astype(np.uint8)
    whole = random.integers(-(2**30), 2**30, (VECTORS, BYTES))
    whole[:, ::3] >>= 20  # small ones, of low digits alone
    own, low = np.zeros((VECTORS, 4, BYTES), np.int8), whole.copy()
    for digit in range(4):
        own[:, digit] = low.astype(np.int8)
        low = (low - own[:, digit]) >> 8
    assert not low.any()
    sums = np.zeros(32, np.float32)
    with emulated():
        kernel_of(_product, WORDS, WORDS, FLOATS)(
            1, images.view(np.uint32).ravel(), own.reshape(-1).view(np.uint32), sums
        )
    exact = images.astype(np.int64) @ whole.T
    for lane in range(32):
        row, vector = lane // 4 + 8 * (lane % 2), lane // 2 % 2
        # Each of the four parts is rounded, the highest by at most 2⁻²⁴ of the sum of its digits' products.
        most = 2.0**-22 * np.abs(images[row].astype(np.float64) @ np.abs(whole[vector]))
        assert abs(sums[lane] - exact[row, vector]) <= most
