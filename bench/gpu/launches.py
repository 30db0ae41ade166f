"""What it takes to have a GPU do something at all: a launch, a node of a graph, a barrier."""

import time
from functools import partial

import numpy as np

from .timing import barriers, seconds_on_gpu

MANY = 1000


def launches(seconds=seconds_on_gpu):
    """Microseconds of the smallest launch one by one, and as a node of a graph; of a barrier of a block on
    each multiprocessor."""
    import cupy

    from fastdigit.kernels.common import cuda
    from fastdigit.kernels.epoch import cuda_steps

    position = cupy.zeros(cuda_steps.POSITION, np.int64)
    with cuda.recorded() as written:
        cuda_steps._tick(1, position)
    one = cuda.prepared(*written[0])
    one()
    cupy.cuda.get_current_stream().synchronize()
    begun = time.perf_counter()
    for _ in range(MANY):
        one()
    on_host = (time.perf_counter() - begun) / MANY
    replay = cuda.graph([one] * MANY)
    blocks = cuda.limits().multiprocessors
    meet = [partial(barriers, blocks, count) for count in (0, MANY)]
    none, many, launch, nodes = (np.median(each) for each in seconds(*meet, one, replay))
    return {
        "barrier_microseconds": float(1e6 * (many - none) / MANY),
        "launch_on_host_microseconds": 1e6 * on_host,
        "launch_microseconds": float(1e6 * launch),
        "graph_node_microseconds": float(1e6 * nodes / MANY),
        "counted": int(position[cuda_steps.STEP]) > MANY,
    }
