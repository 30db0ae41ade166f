"""Independent streams of random numbers under one seed.

A stream and its counters (an epoch, say) determine the numbers, so there is no generator state to
carry, save or restore.
"""

import numpy as np

INITIALISATION, ORDER, SPLIT = 1, 2, 3
CORRUPTION, RESAMPLING, CHANCE = 20, 21, 22

# Sets these streams apart from default_rng(seed), which users draw their own data from.
_TAG = 0xFA57D161


def random_stream(seed, stream, *counters):
    """A NumPy generator that depends on nothing but these integers."""
    return np.random.default_rng([_TAG, stream, seed, *counters])
