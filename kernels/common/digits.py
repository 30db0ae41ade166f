"""Products of float32 and bytes on tensor cores that multiply bytes, with sums that are exact.

The numbers of a vector become whole numbers of 31 bits, of a unit that is a power of two and goes by the
largest that there can be, and these four digits of 8 bits each, -128 to 127. Tensor cores multiply each digit
with bytes (pixels) and add up in int32: four sums, which become one float32.

Where K sums of float32 are rounded, here each number is, by 2⁻³¹ of that largest at most, and four sums. NaN
and infinities make the whole result NaN.
"""

import numpy as np
from numba import float32, int32, uint32

from . import ptx
from .cuda import cuda, device
from .lanes import ALL

TILE = 2  # vectors in a tile: of eight columns, four digits each
LEAST, MOST = 30, 254  # exponents of float32 for which the unit and its inverse are one, too
SIGN, LOW, NAN = 0x80000000, 0x00808080, 0x7FC00000
_ZEROS = (np.int32(0),) * 4

_bits_of, _float_of, _rounded, _larger = ptx.bits_of, ptx.float_of, ptx.rounded, ptx.larger


@device
def size_of(number):
    """The bits of its absolute value: as whole numbers, those of larger numbers are larger, and NaN's."""
    return uint32(_bits_of(number) & uint32(~SIGN))


@device
def unit_of(largest):
    """(1 / unit, unit) for numbers of which the largest has this :func:`size_of`."""
    exponent = int32(largest >> uint32(23))
    unit = _float_of(uint32(NAN))
    if exponent <= MOST:
        exponent = int32(max(exponent, LEAST))
        unit = _float_of(uint32((exponent - 29) << 23))
    return _float_of(uint32((283 - min(exponent, MOST)) << 23)), unit


@device
def in_digits(number, per_unit):
    """A number's digits, one to a byte, the lowest first: those below the highest counted from -128 on."""
    return uint32((uint32(_rounded(number * per_unit)) + uint32(LOW)) ^ uint32(LOW))


@device
def digits_of(a, b, c, d, per_unit):
    """Four words: the lowest digits of four numbers, the next ones, and so on."""
    return ptx.turned_bytes(
        in_digits(a, per_unit), in_digits(b, per_unit), in_digits(c, per_unit), in_digits(d, per_unit)
    )


@device
def no_sums():
    """Four sums for ``ptx.byte_sums``."""
    return _ZEROS


@device
def total_of(sums, lane):
    """Of the sums of ``ptx.byte_sums``, whose columns are the digits of a tile's vectors: the one number that
    a lane gets, in units. Even lanes have row ``lane // 4``, odd ones row ``lane // 4 + 8``, and lanes 2 and
    3 of four the second vector."""
    odd = lane & 1 == 1
    got_0 = cuda.shfl_xor_sync(ALL, sums[0] if odd else sums[2], 1)
    got_1 = cuda.shfl_xor_sync(ALL, sums[1] if odd else sums[3], 1)
    s_0, s_1 = (got_0, got_1) if odd else (sums[0], sums[1])
    s_2, s_3 = (sums[2], sums[3]) if odd else (got_0, got_1)
    base = float32(256)
    return ((float32(s_3) * base + float32(s_2)) * base + float32(s_1)) * base + float32(s_0)
