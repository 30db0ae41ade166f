"""Where the time of one training step goes, operation by operation.

The step is taken apart: each operation of the backend is called and timed on its own, in the order and with
the arrays of a training (``fd.fit(path="step")``). Beside the sum stands the same step as it is trained, in
one call for a stretch of steps where the backend has that: what fusing, skipping of zeros and no Python in
between gain.
"""

import time
from collections import defaultdict
from dataclasses import replace

import numpy as np

import fastdigit as fd

from . import ceilings, kernels, turns

STEPS, WARM = 60, 10


def _rows_by_columns(a, *more):
    return "x".join(map(str, (*a.shape, *more)))


# What an operation's arguments say about its shape, in the words of bench.kernels.
SHAPES = {
    "gather": lambda images, order, start, out: _rows_by_columns(out),
    "gather_values": lambda values, order, start, out: f"{len(out)}",
    "dense": lambda x, w, b, y, relu: _rows_by_columns(x, w.shape[1]),
    "dense_grad_input": lambda dy, w, y_below, dx, scale: _rows_by_columns(dx, dy.shape[1]),
    "dense_grad_weight": lambda x, dy, dw, db: _rows_by_columns(x, dy.shape[1]),
    "softmax_xent": lambda z, *rest: _rows_by_columns(z),
}


class Recorder:
    """A backend whose operations note how long each call took."""

    def __init__(self, backend, name):
        self.seconds = defaultdict(list)  # (operation, shape), in the order of the step
        self.backend = replace(
            backend,
            train_epoch=None,
            **{operation: self._timed(backend, operation, shape) for operation, shape in SHAPES.items()},
            sgd=self._timed(backend, "sgd", lambda *arguments: name),
        )

    def _timed(self, backend, operation, shape):
        function = getattr(backend, operation)

        def timed(*arguments):
            begun = time.perf_counter()
            function(*arguments)
            backend.synchronize()
            self.seconds[operation, shape(*arguments)].append(time.perf_counter() - begun)

        return timed


def measure(network, data, backend="auto"):
    """The rows of a step's operations, and the seconds of a step: in pieces, and as it is trained."""
    backend, name = fd.get_backend(backend), "-".join(map(str, network.layer_sizes))
    recorder = Recorder(backend, name)
    count = (STEPS + WARM) * network.batch
    images, labels = (np.resize(a, (count, *a.shape[1:])) for a in (data.images, data.labels))
    whole = _step_of(network, backend, images, labels, "auto")
    pieces = _step_of(network, recorder.backend, images, labels, "step")
    limits = {"gflops": ceilings.multiply_add(), "copy": ceilings.copy()}
    known, rows = kernels.cases_of(network), []
    for (operation, shape), seconds in recorder.seconds.items():
        # Two layers of the same shape are one row.
        calls = round(len(seconds) / (STEPS + WARM) / EPOCHS)
        low, middle, high = np.percentile(seconds[WARM * calls :], [25, 50, 75]).tolist()
        row = {
            "operation": operation,
            "shape": shape,
            "calls": calls,
            "microseconds": 1e6 * middle * calls,
            "noisy": high - low > turns.NOISY * middle,
            "share_of_step": middle * calls / pieces,
        }
        case = known.get(f"{operation} {shape}")
        if case is not None:
            least = max(case.flops / limits["gflops"], case.bytes / limits["copy"]) / 1e9
            row |= {"flops": case.flops, "bytes": case.bytes, "share_of_ceiling": least / middle}
        rows.append(row)
    return {
        "network": str(network),
        "backend": backend.name,
        "limits": limits,
        "microseconds_in_pieces": 1e6 * pieces,
        "microseconds_as_trained": 1e6 * whole,
        "rows": rows,
    }


EPOCHS = 2  # the first one also loads compiled code


def _step_of(network, backend, images, labels, path):
    """Seconds of a step, of the last epoch."""
    net = fd.Network(network.layer_sizes, backend=backend, seed=0)
    log = fd.fit(
        net,
        (images, labels),
        optimizer=fd.SGD(0.01, momentum=0.9, nesterov=True),
        schedule=fd.Constant(),
        epochs=EPOCHS,
        batch_size=network.batch,
        path=path,
    )
    return network.batch / log.epochs[-1].images_per_second
