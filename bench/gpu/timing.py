"""Time by the GPU's own clock: of calls in turns, so many in a row that they fill SECONDS."""

import time
from functools import cache

import numpy as np

from .. import checks, turns

REPEAT = 7
SECONDS = 0.02
MOST_CALLS = 150  # in a row: the driver lets about a thousand launches wait
BARRIER_SECONDS = 4e-7  # of the whole GPU, at least: 0.6 to 0.97 µs on an H200
TRIES = 3  # more, of a series that the GPU was too quick for


@cache
def _counter():
    """What barriers of the whole GPU count in."""
    import cupy

    return cupy.zeros(1, np.uint32)


def barriers(blocks, count):
    """Have the GPU do nothing but meet so often."""
    from fastdigit.kernels.epoch import cuda as persistent

    persistent.barriers(blocks, count, _counter())


def seconds_on_gpu(*calls):
    """Of one call of each of these functions: REPEAT for each, of series between two events, in turns.

    The host may take longer to ask for a call than the GPU to make it. So the GPU is kept busy with barriers
    until all of a series has been asked for. Where that did not suffice, the series is made again with twice
    as many; checks.Rejected where it does not suffice after TRIES more.
    """
    import cupy

    from fastdigit.kernels.common import cuda

    here, stream = cuda.limits(), cupy.cuda.get_current_stream()

    def series(call, count, plug):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        stream.synchronize()
        if plug:
            barriers(here.multiprocessors, plug)
        begin.record()
        asked = time.perf_counter()
        for _ in range(count):
            call()
        asked, late = time.perf_counter() - asked, bool(plug and begin.done)
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1e3, asked, late

    def ready(call):
        series(call, 3, 0)
        alone, asked, _ = series(call, 3, 0)
        count = min(MOST_CALLS, max(3, int(3 * SECONDS / max(alone, 1e-6))))
        slow = alone > 4 * asked or here is None
        return [call, count, 0 if slow else int(1.5 * count / 3 * asked / BARRIER_SECONDS) + 1000]

    def tried(kind):
        for _ in range(1 + TRIES):
            seconds, _, late = series(*kind)
            if not late:
                return seconds / kind[1]
            kind[2] *= 2  # of the series that come after it too
        raise checks.Rejected("the host asks for calls too slowly to measure them")

    kinds, found = [ready(call) for call in calls], [[] for _ in calls]
    for number in range(REPEAT):
        for place in turns.in_order(number, range(len(calls))):
            found[place].append(tried(kinds[place]))
    return found


def quartiles(values):
    """(lower, median, upper)"""
    return np.percentile(values, [25, 50, 75]).tolist()


def beside(seconds, other):
    """What a table says of times in turns with those of something else: the median in microseconds, its
    quartiles, whether these are far apart, and how much of the other's speed it is, turn by turn."""
    low, middle, high = quartiles(seconds)
    slow, share, fast = quartiles(np.divide(other, seconds))
    return {
        "microseconds": 1e6 * middle,
        "microseconds_quartiles": [1e6 * low, 1e6 * high],
        "noisy": high - low > turns.NOISY * middle,
        "share": share,
        "share_quartiles": [slow, fast],
    }
