"""Each operation of a backend at the shapes of the networks, beside another: microseconds of one call.

An operation is first checked against float64 (``bench.checks``, the checks of the tests); one that fails
gets no time. The sides take turns (``bench.turns``), in each with all operations of a network. Beside a time
stands what the processor would need at least: the flops of the operation at its limit, or the bytes that must
be read and written at the speed of a copy, whichever takes longer (``bench.ceilings``, measured in the same
run). A share above 100 % means that the bytes come from a cache.
"""

import itertools
import sys
from dataclasses import dataclass

import numpy as np

import fastdigit as fd
from fastdigit.augmentation import Augment
from fastdigit.kernels.augment.reference import ARRAYS
from fastdigit.layout import Layout, row_distance

from . import cases, ceilings, checks, turns

FLOAT = 4  # bytes
SECONDS = 0.004  # of one measurement
COMMAND = (sys.executable, "-m", "fastdigit.bench.kernels")


@dataclass(frozen=True)
class Case:
    """One line of the table. ``make(backend)`` gives the call that is timed; ``flops`` and ``bytes`` are what
    every implementation has to do."""

    operation: str
    shape: str
    flops: int
    bytes: int
    make: object
    checked: tuple = ()  # cases of the operation's first check; () for all of ``checks.CHECKS``

    def __str__(self):
        return f"{self.operation} {self.shape}"


def _matrix(backend, rows, columns, seed, positive=False):
    """Random numbers on the backend, in rows padded as those of networks are."""
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    padded = np.zeros((rows, row_distance(columns, backend.row_align)), np.float32)
    padded[:, :columns] = np.maximum(values, 0) if positive else values
    return backend.to_device(padded)[:, :columns]


def _vector(backend, count, seed=0, scale=1.0):
    values = scale * np.random.default_rng(seed).standard_normal(count)
    return backend.to_device(values.astype(np.float32))


def _dense_cases(layer, first):
    """The three products of a layer. The first layer has no gradient of its input."""
    batch, inputs, outputs = layer.batch, layer.inputs, layer.outputs

    def forward(backend):
        x, w = _matrix(backend, batch, inputs, 0, True), _matrix(backend, inputs, outputs, 1)
        b, y = _vector(backend, outputs), _matrix(backend, batch, outputs, 2)
        return lambda: backend.dense(x, w, b, y, True)

    def grad_input(backend):
        dy, w = _matrix(backend, batch, outputs, 0), _matrix(backend, inputs, outputs, 1)
        y_below, dx = _matrix(backend, batch, inputs, 2, True), _matrix(backend, batch, inputs, 3)
        return lambda: backend.dense_grad_input(dy, w, y_below, dx, 1.0)

    def grad_weight(backend):
        x, dy = _matrix(backend, batch, inputs, 0, True), _matrix(backend, batch, outputs, 1)
        dw, db = _matrix(backend, inputs, outputs, 2), _vector(backend, outputs)
        return lambda: backend.dense_grad_weight(x, dy, dw, db)

    sizes = batch * inputs, inputs * outputs, batch * outputs
    moved = FLOAT * sum(sizes)
    yield Case("dense", str(layer), layer.flops, moved, forward, (layer,))
    if not first:
        moved_in = moved + FLOAT * sizes[0]  # the mask
        yield Case("dense_grad_input", str(layer), layer.flops, moved_in, grad_input, (layer,))
    yield Case("dense_grad_weight", str(layer), layer.flops, moved, grad_weight, (layer,))


def _row_cases(batch, classes, hidden):
    """What a step does with a batch besides products."""

    def softmax_xent(backend):
        z, dz = _matrix(backend, batch, classes, 0), _matrix(backend, batch, classes, 1)
        t = backend.to_device(np.random.default_rng(0).integers(classes, size=batch).astype(np.int32))
        loss, correct = _vector(backend, batch), backend.zeros((batch,), "uint8")
        return lambda: backend.softmax_xent(z, t, None, loss, correct, dz)

    def softmax(backend):
        z, p = _matrix(backend, batch, classes, 0), _matrix(backend, batch, classes, 1)
        return lambda: backend.softmax(z, p)

    def dropout(backend):
        y, fresh = (_matrix(backend, batch, hidden, 0, True) for _ in range(2))
        calls = itertools.count(1)

        def call():
            if not next(calls) % 100:  # what is kept grows by a quarter each time
                y[...] = fresh
            backend.dropout(y, 0.2, (0, 0), 0)

        return call

    def batches(backend):
        """Arguments of gather: another batch each time, as images come from memory in an epoch."""
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (60_000, 784), dtype=np.uint8)
        images[random.random(images.shape) < 0.81] = 0  # paper, as in MNIST
        images, order = backend.to_device(images), backend.to_device(random.permutation(60_000))
        return ((images, order, step * batch % (60_000 - batch)) for step in range(10**9))

    def gather_values(backend):
        random = np.random.default_rng(0)
        values = backend.to_device(random.integers(10, size=60_000).astype(np.int32))
        order, out = backend.to_device(random.permutation(60_000)), backend.zeros((batch,), "int32")
        return lambda: backend.gather_values(values, order, 0, out)

    def gather(backend):
        out, arguments = _matrix(backend, batch, 784, 0), batches(backend)
        return lambda: backend.gather(*next(arguments), out)

    def augment(backend):
        deformation = Augment.standard().deformation(784)
        arrays = {name: backend.to_device(getattr(deformation, name)) for name in ARRAYS}
        out, how = _matrix(backend, batch, 784, 0), (deformation._replace(**arrays), (0, 0), 0)
        arguments = batches(backend)
        return lambda: backend.augment(*next(arguments), *how, out)

    logits = batch * classes
    # An exponential counts as one flop; with the maximum, the sum, the division and the gradient five.
    yield Case(
        "softmax_xent",
        f"{batch}x{classes}",
        5 * logits,
        FLOAT * 2 * logits + 9 * batch,
        softmax_xent,
        (cases.Logits(batch, classes),),
    )
    yield Case("softmax", f"{batch}x{classes}", 4 * logits, FLOAT * 2 * logits, softmax)
    units = batch * hidden
    yield Case("dropout", f"{batch}x{hidden}", units, 2 * FLOAT * units, dropout)
    yield Case("gather_values", f"{batch}", batch, 16 * batch, gather_values)
    moved = 5 * batch * 784 + 8 * batch
    yield Case("gather", f"{batch}x784", batch * 784, moved, gather)
    # Two sums over seven knots each, and some 40 other operations on whole numbers, for each pixel.
    yield Case("augment", f"{batch}x784", (4 * 7 + 40) * batch * 784, moved, augment)


def _attack_cases(batch, pixels, classes):
    """What an attack on a batch does besides going through the network and back."""
    step, epsilon = 0.01, 0.1

    def log_odds(backend):
        z, dz = _matrix(backend, batch, classes, 0), _matrix(backend, batch, classes, 1)
        t = backend.to_device(np.random.default_rng(0).integers(classes, size=batch).astype(np.int32))
        loss, correct = _vector(backend, batch), backend.zeros((batch,), "uint8")
        return lambda: backend.log_odds(z, t, loss, correct, dz)

    def ascend(backend):
        x, dx, origin = (_matrix(backend, batch, pixels, seed, True) for seed in range(3))
        return lambda: backend.ascend(x, dx, origin, step, epsilon, "linf")

    def add_noise(backend):
        x, order = _matrix(backend, batch, pixels, 0, True), backend.to_device(np.arange(batch))
        return lambda: backend.add_noise(x, order, 0, epsilon, (0, 0), 0)

    logits, numbers = batch * classes, batch * pixels
    yield Case("log_odds", f"{batch}x{classes}", 5 * logits, FLOAT * 2 * logits + 9 * batch, log_odds)
    yield Case("ascend", f"{batch}x{pixels}", 6 * numbers, 4 * FLOAT * numbers, ascend)
    # Twenty multiplications of a block of Philox give four numbers.
    yield Case("add_noise", f"{batch}x{pixels}", 7 * numbers, 2 * FLOAT * numbers, add_noise)


def _ever_less(length):
    """Limits for what is shortened in each call: the next is less than what the last call has left."""
    return (length * 0.9999**call for call in itertools.count(1))


def _update_cases(sizes):
    """Updates of all parameters of a network."""
    name = "-".join(map(str, sizes))

    def buffers(backend, count):
        size = Layout(sizes, backend.row_align).size
        return [_vector(backend, size, seed, scale=1e-3) for seed in range(count)], size

    def sgd(backend):
        (p, g, v), _ = buffers(backend, 3)
        return lambda: backend.sgd(p, g, v, 1e-4, 0.9, 0.0, True, False)

    def adam(backend):
        (p, g, m), size = buffers(backend, 3)
        v = backend.zeros((size,), "float32")
        return lambda: backend.adam(p, g, m, v, 10, 1e-4, 0.9, 0.999, 1e-8, 0.0, False)

    def clip_norm(backend):
        (g,), _ = buffers(backend, 1)
        length = float(np.linalg.norm(backend.to_host(g)))
        limits = _ever_less(length)
        return lambda: backend.clip_norm(g, next(limits))

    def max_norm(backend):
        w = _matrix(backend, *sizes[:2], 0)
        limits = _ever_less(float(np.linalg.norm(backend.to_host(w), axis=0).min()))
        return lambda: backend.max_norm(w, next(limits))

    size = Layout(sizes, 1).size
    yield Case("sgd", name, 6 * size, 5 * FLOAT * size, sgd)
    yield Case("adam", name, 12 * size, 7 * FLOAT * size, adam)
    yield Case("clip_norm", name, 3 * size, 3 * FLOAT * size, clip_norm)
    first = sizes[0] * sizes[1]
    yield Case("max_norm", f"{sizes[0]}x{sizes[1]}", 3 * first, 3 * FLOAT * first, max_norm)


def cases_of(network):
    """The cases of one network, by name."""
    found = [*_row_cases(network.batch, network.layer_sizes[-1], network.layer_sizes[1])]
    for i, layer in enumerate(network.layers):
        found += _dense_cases(layer, first=i == 0)
    found += _attack_cases(network.batch, network.layer_sizes[0], network.layer_sizes[-1])
    found += _update_cases(network.layer_sizes)
    return {str(case): case for case in found}


# --- in the processes of the sides --------------------------------------------------------------


class Answers:
    """A backend's answers: to operations of a network the seconds of each, or why one has no time.

    The first time it is asked for them it checks and compiles them, and answers nothing.
    """

    def __init__(self, name):
        self.name, self.asked, self.calls, self.no_time = name, None, {}, {}

    def __call__(self, question):
        if question == "ceilings":
            return {"gflops": ceilings.multiply_add(), "copy": ceilings.copy()}
        if question != self.asked:
            self.asked, self.calls, self.no_time = question, {}, {}
            return self._get_ready(*question)
        turns.settle(self.calls.values())
        return {
            "seconds": {name: turns.seconds_of(call, SECONDS) for name, call in self.calls.items()},
            "no_times": self.no_time,
        }

    def _get_ready(self, layer_sizes, batch, names):
        known = cases_of(cases.Network(tuple(layer_sizes), batch))
        for name in names:
            try:
                backend = fd.get_backend(self.name)
                check(known[name], backend)
                self.calls[name] = call_of(known[name], backend)
            except checks.Rejected as error:
                self.no_time[name] = f"refused: {error}"
            except fd.BackendError as error:
                self.no_time[name] = str(error)
        return {}


def check(case, backend):
    """Against float64, at the very shape where the check takes one; checks.Rejected if it is wrong."""
    checked, of_check = checks.CHECKS[case.operation][0]
    for one in case.checked or of_check:
        checked(getattr(backend, case.operation), backend, one)


def call_of(case, backend):
    """The call that is timed, on a GPU with the wait for its end; called once, which may compile."""
    once = case.make(backend)

    def call():
        once()
        backend.synchronize()

    call()
    return call


# --- in the process that compares ---------------------------------------------------------------


def measure(backends, networks, rounds, baseline="numpy"):
    """(the limits, a row for each backend and case of these networks), with ratios to the baseline."""
    names, rows, done = list(dict.fromkeys([baseline, *backends])), [], set()
    with turns.Turns() as sides:
        for name in names:
            sides.start(name, [*COMMAND, name])
        limits = sides.ask(names[-1], "ceilings")
        if "no_time" in limits:
            raise RuntimeError(limits["no_time"])
        for network in networks:
            chosen = {name: case for name, case in cases_of(network).items() if name not in done}
            done |= set(chosen)
            answers = sides.ask_all([list(network.layer_sizes), network.batch, list(chosen)], rounds)
            rows += [
                row_of(case, side, answers, limits, baseline) for case in chosen.values() for side in names
            ]
    return limits, rows


def _of_case(answers, name):
    """(the seconds of one case in all answers of a side, or None; why there are none)."""
    for answer in answers:
        no_time = answer.get("no_time") or answer["no_times"].get(name)
        if no_time:
            return None, no_time
    return np.array([answer["seconds"][name] for answer in answers]), None


def row_of(case, side, answers, limits, baseline):
    row = {"operation": case.operation, "shape": case.shape, "backend": side}
    seconds, no_time = _of_case(answers[side], str(case))
    if no_time:
        return {**row, "no_time": no_time}
    low, middle, high = np.percentile(seconds, [25, 50, 75]).tolist()
    at_least = max(case.flops / limits["gflops"], case.bytes / limits["copy"]) / 1e9
    row |= {
        "microseconds": 1e6 * middle,
        "microseconds_quartiles": [1e6 * low, 1e6 * high],
        "noisy": high - low > turns.NOISY * middle,
        "gflops": case.flops / middle / 1e9,
        "gigabytes_per_second": case.bytes / middle / 1e9,
        "flops_per_byte": case.flops / case.bytes,
        "share_of_ceiling": at_least / middle,
    }
    of_baseline, _ = _of_case(answers[baseline], str(case))
    if side != baseline and of_baseline is not None:
        ratios = of_baseline / seconds
        low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
        row |= {"ratio_to": baseline, "ratio": middle, "ratio_quartiles": [low, high]}
    return row


if __name__ == "__main__":
    turns.answer_all(Answers(sys.argv[1]))
