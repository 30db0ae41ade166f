"""What several lanes of a warp hold, put together: they exchange it, without shared memory or barriers.

All lanes of a warp have to take part. A group of lanes is 2, 4, 8, 16 or 32 that follow each other, and each
of them gets the same result.
"""

import numpy as np

from .cuda import SIMULATED, cuda, device

ALL = 0xFFFFFFFF  # the lanes of a warp
MOST_THREADS = 1024  # of a block

if SIMULATED:
    _held = np.zeros(MOST_THREADS)  # for all blocks, which run one after the other

    @device
    def exchanged(value, distance):
        """The value of the lane whose number differs by the bit ``distance``."""
        _held[cuda.threadIdx.x] = value
        cuda.syncthreads()
        found = type(value)(_held[cuda.threadIdx.x ^ distance])
        cuda.syncthreads()
        return found

else:

    @device
    def exchanged(value, distance):
        return cuda.shfl_xor_sync(ALL, value, distance)


def _distances(lanes):
    return tuple(1 << bit for bit in reversed(range(lanes.bit_length() - 1)))


def summing(lanes):
    """A device function ``(value)``: the sum of the values of so many lanes."""
    distances = _distances(lanes)

    @device
    def sum_of(value):
        for distance in distances:
            value += exchanged(value, distance)
        return value

    return sum_of


def choosing(lanes):
    """A device function ``(value, place)``: the largest value of so many lanes, a NaN if there is one, and
    the smallest place that goes with it (int32)."""
    distances = _distances(lanes)

    @device
    def first_largest(value, place):
        for distance in distances:
            other, there = exchanged(value, distance), exchanged(place, distance)
            before = there < place
            if value != value:
                better = other != other and before
            else:
                better = other != other or other > value or (other == value and before)
            if better:
                value, place = other, there
        return value, place

    return first_largest
