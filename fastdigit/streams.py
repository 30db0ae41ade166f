"""Independent streams of random numbers under one seed.

A stream and its counters (an epoch, say) determine the numbers, so there is no generator state to
carry, save or restore.
"""

import numpy as np

INITIALISATION, ORDER, SPLIT = 0, 1, 2


def random_stream(seed, stream, *counters):
    """A NumPy generator that depends on nothing but these integers."""
    return np.random.default_rng([seed, stream, *counters])
