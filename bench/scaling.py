"""How the cost of training grows: with threads, batch size, width and depth.

One process; the points of an axis take turns, so that all meet alike whatever else the machine does. Images
per second are the log's, of the steps alone.
"""

import numpy as np

import fastdigit as fd

from . import cases, peers

FLOPS = 2e10  # of one epoch of a point, about 0.1 to 0.2 s
ROUNDS = 5


def axes(threads):
    """{axis: {value: (network, options of fit)}}."""
    at = cases.Network
    return {
        "threads": {n: (at(cases.MEDIUM, 128), {"threads": n}) for n in sorted({1, *_powers(threads)})},
        "batch": {n: (at(cases.MEDIUM, n), {}) for n in (16, 32, 64, 128, 256, 512, 1024)},
        "width": {n: (at((784, n, 10), 128), {}) for n in (32, 64, 128, 256, 512, 1024, 2048)},
        "depth": {n: (at((784, *[256] * n, 10), 128), {}) for n in (1, 2, 3, 4, 6, 8)},
    }


def _powers(threads):
    return {*(2**i for i in range(threads.bit_length()) if 2**i <= threads), threads}


def measure(data, backend="auto", rounds=ROUNDS, chosen=None):
    """A row for each point: its axis, value, images and GFLOP/s."""
    backend, rows = fd.get_backend(backend), []
    for axis, points in axes(peers.cores()).items():
        if chosen is not None and axis not in chosen:
            continue
        if axis == "threads" and backend.train_epoch is None:
            continue  # others take as many threads as their library likes
        speeds = {value: [] for value in points}
        nets = {v: fd.Network(n.layer_sizes, backend=backend, seed=0) for v, (n, _) in points.items()}
        for _ in range(rounds + 1):  # the first also loads compiled code
            for value, (network, options) in points.items():
                speeds[value].append(_speed(nets[value], network, data, options))
        for value, (network, _) in points.items():
            low, middle, high = np.percentile(speeds[value][1:], [25, 50, 75]).tolist()
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "network": str(network),
                    "images_per_second": middle,
                    "quartiles": [low, high],
                    "gflops": middle * network.flops_per_image / 1e9,
                }
            )
    return rows


def _speed(net, network, data, options):
    count = max(4, int(FLOPS / network.flops_per_image / network.batch)) * network.batch
    images, labels = (np.resize(a, (count, *a.shape[1:])) for a in (data.images, data.labels))
    log = fd.fit(
        net,
        (images, labels),
        optimizer=fd.SGD(0.01),
        schedule=fd.Constant(),
        epochs=1,
        batch_size=network.batch,
        **options,
    )
    return log.epochs[0].images_per_second
