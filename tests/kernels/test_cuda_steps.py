"""Trainings of any depth as a graph of steps, run by the interpreter of PTX."""

import inspect
import itertools
import math

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import training
from fastdigit.kernels.common.cuda import Limits
from fastdigit.kernels.epoch import cuda_steps
from fastdigit.streams import ORDER, random_stream

from ..ptx.device import PTXError
from ..ptx.emulated import backend, emulated, with_faulty_epochs
from ..ptx.faults import with_fault
from .test_cuda import from_bfloat16, to_bfloat16, to_tf32

AUGMENT = fd.Augment(rotation=20, scale=0.2, elastic=0.8, smoothness=2, thickness=0.4, erase=3)
AMPERE, HOPPER = Limits((8, 0), 4, 100_000), Limits((9, 0), 4, 200_000)


@pytest.fixture(autouse=True)
def long_stretches(monkeypatch):
    """Several steps at once, as on a GPU: the interpreter is too slow to be given more than one."""
    monkeypatch.setattr(training, "STRETCH_SECONDS", 1e9)


def pictures(count=40, pixels=36, classes=5):
    random = np.random.default_rng(3)
    shape = (6, pixels // 6) if pixels % 6 == 0 else (pixels, 1)
    images = random.integers(0, 256, (count, *shape)).astype(np.uint8)
    return fd.Images(images, random.integers(0, classes, count).astype(np.uint8))


def trained(side, images, sizes=(36, 20, 12, 5), precision="float32", network=(), **options):
    net = fd.Network(list(sizes), backend=side, seed=3, precision=precision, **dict(network))
    log = fd.fit(net, images, **{"epochs": 2, "batch_size": 16, "seed": 1, **options})
    for tensor in net.layout.tensors:
        assert not tensor.padding(net._parameters).any(), f"padding of {tensor.name}"
    return net.get_parameters(), log


@pytest.mark.parametrize(
    ("optimizer", "network", "options"),
    [
        (fd.SGD(0.1), {}, {"max_norm": 1.2, "average": fd.WeightAverage(0.5)}),
        (fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01), {"dropout": 0.2}, {"clip_norm": 0.5}),
        (
            fd.SGD(0.1, momentum=0.9),
            {"input_dropout": 0.1},
            {"sample_weight": np.linspace(0.5, 2, 40), "label_smoothing": 0.2, "augment": AUGMENT},
        ),
        (fd.Adam(0.01), {"dropout": 0.3, "input_dropout": 0.2}, {}),
        (fd.AdamW(0.01, weight_decay=0.1), {}, {"clip_norm": 0.1}),
    ],
    ids=[
        "sgd, max-norm, averaged",
        "nesterov, L2, dropout, clipped",
        "momentum, weighted, smoothed, deformed, dropout of inputs",
        "adam, dropout of inputs too",
        "adamw, clipped",
    ],
)
def test_weights_as_of_the_reference(optimizer, network, options):
    images = pictures()
    with emulated() as emulator:
        found, log = trained(backend(AMPERE), images, network=network, optimizer=optimizer, **options)
    expected, reference = trained("numpy", images, network=network, optimizer=optimizer, **options)
    assert log.path.startswith("epoch: a graph of steps")
    assert {kernel.name.partition(":")[0].partition(" ")[0] for kernel, _ in emulator.reports} <= {
        *("step", "matmul_simt", "column", "clip_norm,", "max_norm")
    }
    np.testing.assert_allclose(log.step_losses, reference.step_losses, rtol=1e-5)
    assert [e.accuracy for e in log.epochs] == [e.accuracy for e in reference.epochs]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


def test_many_steps_are_asked_for_at_a_time(monkeypatch):
    images, asked = pictures(), []

    def graph(launches):
        return lambda: asked.append(len(launches)) or [launch() for launch in launches]

    with emulated(), monkeypatch.context() as patch:
        patch.setattr(cuda_steps.gpu, "graph", graph)
        patch.setattr(cuda_steps, "MANY", 3)
        found, log = trained(backend(AMPERE), images, (36, 5), batch_size=4)
    expected, _ = trained("numpy", images, (36, 5), batch_size=4)
    of_a_step = asked[-1]
    # Two epochs of ten steps, in stretches of 1, 4, 5 and 10. The very first is made by single launches.
    assert [size / of_a_step for size in asked] == [*[3, 1], *[3, 1, 1], *[3, 3, 3, 1]]
    assert len(log.step_losses) == 20
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("sizes", "batch", "floats", "network", "options"),
    [
        ((36, 5), 16, False, {}, {"optimizer": fd.SGD(0.1)}),
        (
            (36, 20, 12, 5),
            64,
            False,
            {},
            {"optimizer": fd.SGD(0.1, momentum=0.5, nesterov=True, weight_decay=0.01)},
        ),
        ((36, 20, 12, 5), 16, True, {}, {"optimizer": fd.SGD(0.1), "clip_norm": 0.5}),
        ((35, 7, 9, 3), 7, False, {"dropout": 0.3}, {"optimizer": fd.SGD(0.1, momentum=0.5)}),
    ],
    ids=["no hidden layer", "fewer images than a batch", "images of float32, clipped", "odd sizes, dropout"],
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_other_shapes(sizes, batch, floats, network, options, precision):
    images = pictures(40, sizes[0], sizes[-1])
    if floats:
        images = images.images.astype(np.float32) / 255, images.labels
    how = {"sizes": sizes, "batch_size": batch, "network": network, **options}
    with emulated():
        found, log = trained(backend(AMPERE), images, precision=precision, **how)
    expected, _ = trained("numpy", images, **how)
    assert len(log.step_losses) == 2 * -(-40 // batch)
    for name, values in expected.items():
        close = 1e-5 if precision == "float32" else 5e-3
        np.testing.assert_allclose(found[name], values, atol=close, err_msg=name)


def rounded_to_bfloat16(x):
    return from_bfloat16(to_bfloat16(np.ascontiguousarray(x, np.float32))).astype(np.float64)


def cut_to_tf32(x):
    return to_tf32(np.ascontiguousarray(x, np.float32)).astype(np.float64)


def by_the_book(images, parameters, rate, seen, batch=16):
    """Weights after plain gradient descent in float64 on images deformed by AUGMENT, where ``seen(x)`` is
    what products see of x. In bfloat16 what products see is all that is kept of outputs and their gradients.
    """
    layers = [[parameters[f"{kind}{i}"].astype(np.float64) for kind in "wb"] for i in (1, 2, 3)]
    keep = seen if seen is rounded_to_bfloat16 else lambda x: x
    steps = itertools.count()
    for epoch in range(2):
        order = random_stream(1, ORDER, epoch).permutation(len(images))
        for chosen in (order[i : i + batch] for i in range(0, len(order), batch)):
            deformed = AUGMENT.apply(images.images, seed=3, step=next(steps))[chosen]
            y = [keep(deformed.reshape(len(chosen), -1) * np.float64(np.float32(1 / 255)))]
            for w, b in layers:
                y.append(seen(y[-1]) @ seen(w) + b)
                if w is not layers[-1][0]:
                    y[-1] = keep(np.maximum(y[-1], 0))
            power = np.exp(y[-1] - y[-1].max(axis=1, keepdims=True))
            dy = power / power.sum(axis=1, keepdims=True)
            dy[np.arange(len(chosen)), images.labels[chosen]] -= 1
            dy = keep(dy / len(chosen))
            for below, layer in zip(y[-2::-1], reversed(layers), strict=True):
                dw, db = seen(below).T @ seen(dy), seen(dy).sum(axis=0)  # biases come from the same product
                dy = keep((seen(dy) @ seen(layer[0]).T) * (below > 0))
                layer[0], layer[1] = layer[0] - rate * dw, layer[1] - rate * db
    return {f"{kind}{i}": x for i, layer in enumerate(layers, 1) for kind, x in zip("wb", layer, strict=True)}


@pytest.mark.parametrize(
    ("precision", "seen"), [("tf32", cut_to_tf32), ("bf16", rounded_to_bfloat16), ("float32", lambda x: x)]
)
def test_each_precision_sees_what_it_should(precision, seen):
    images, sizes, rate = pictures(), (36, 20, 12, 5), 0.5
    start = fd.Network(list(sizes), backend="numpy", seed=3).get_parameters()
    with emulated() as emulator:
        options = {"optimizer": fd.SGD(rate), "schedule": fd.Constant(), "augment": AUGMENT}
        found, _ = trained(backend(AMPERE), images, sizes, precision, **options)
    products = {kernel.name.split(" ")[0] for kernel, _ in emulator.reports if "matmul" in kernel.name}
    assert products == {"matmul_simt" if precision == "float32" else "matmul_mma"}

    def distance(seen):
        expected = by_the_book(images, start, rate, seen)
        return math.sqrt(sum(np.square(found[name] - expected[name]).sum() for name in found))

    own = distance(seen)
    assert own < 1e-4
    for other in (cut_to_tf32, rounded_to_bfloat16, lambda x: x):
        assert other.__name__ == seen.__name__ or distance(other) > 4 * own


def test_bfloat16_on_hopper_takes_its_tensor_cores_for_large_layers():
    images, options = pictures(128, 64), {"optimizer": fd.SGD(0.1), "schedule": fd.Constant()}
    weights = []
    for limits in (HOPPER, AMPERE):
        with emulated() as emulator:
            net = fd.Network([64, 128, 128, 5], backend=backend(limits), seed=3, precision="bf16")
            fd.fit(net, images, epochs=1, batch_size=128, seed=1, **options)
            weights.append(net.get_parameters())
        names = {kernel.name.split(" ")[0] for kernel, _ in emulator.reports if "matmul" in kernel.name}
        # But for the gradient of the first layer's 64 weights a unit.
        assert names == ({"matmul_wgmma", "matmul_mma"} if limits is HOPPER else {"matmul_mma"})
    for name, values in weights[0].items():
        np.testing.assert_allclose(values, weights[1][name], atol=2e-5, err_msg=name)


def test_the_same_steps_serve_all_epochs_and_changed_weights_are_seen():
    """Launches are made ready once for a training; bfloat16 copies of weights are renewed."""
    images, made = pictures(), []
    options = {"optimizer": fd.SGD(0.1), "schedule": fd.Constant(), "batch_size": 16, "seed": 1}
    side = backend(AMPERE)
    with emulated(), pytest.MonkeyPatch.context() as patch:
        original = cuda_steps.Steps.__init__
        patch.setattr(
            cuda_steps.Steps,
            "__init__",
            lambda self, *arguments: (made.append(1), original(self, *arguments))[1],
        )
        net = fd.Network([36, 20, 12, 5], backend=side, seed=3, precision="bf16")
        first = net.get_parameters()
        back = [lambda net, log: net.set_parameters(first)]
        log = fd.fit(net, images, epochs=3, **options, callbacks=back)
    assert made == [1]
    # The same weights at each start: the losses of an epoch differ by its order alone.
    starts = log.step_losses[::3]
    assert max(starts) - min(starts) < 0.3
    assert len(set(starts)) == 3


def test_a_precision_of_the_whole_epoch_is_refused_step_by_step():
    net = fd.Network([36, 20, 12, 5], backend=backend(AMPERE), precision="tf32")
    with pytest.raises(fd.ConfigError, match="precision 'tf32' is for the whole-epoch kernel alone"):
        fd.fit(net, pictures(), path="step")
    with pytest.raises(fd.ConfigError, match="does not offer precision 'tf32', only float32"):
        fd.Network([36, 20, 5], backend=backend(), precision="tf32")


def test_parameters_are_those_of_the_networks_backend_afterwards():
    """A network trained so predicts, is saved and copied as any other."""
    images = pictures()
    with emulated():
        net = fd.Network([36, 20, 12, 5], backend=backend(AMPERE), seed=3, precision="bf16")
        fd.fit(net, images, epochs=1, batch_size=16)
        found = net.predict_proba(images.images)
    other = fd.Network([36, 20, 12, 5], backend="numpy", seed=3)
    other.set_parameters(net.get_parameters())
    np.testing.assert_allclose(found, other.predict_proba(images.images), atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    ptx.wait_for_launches()\n    if cuda.thr", "    if cuda.thr", "step: count never waits"),
        (
            "    ptx.wait_for_launches()\n    if cuda.threadIdx.x == 0:\n",
            "    if cuda.threadIdx.x == 0:\n        position[STEP] += 1\n        ptx.wait_for_launches()\n",
            "global memory before griddepcontrol.wait",
        ),
        (
            "    ptx.wait_for_launches()\n    if cuda.threadIdx.x == 0:\n",
            "    if position.size == 0:\n        ptx.wait_for_launches()\n    if False:\n",
            "none of its threads has waited",
        ),
    ],
    ids=["never", "too late", "not here"],
)
def test_launches_that_begin_early_and_do_not_wait_are_found(old, new, message):
    tick = with_fault(cuda_steps, old, new)._tick
    with emulated(), pytest.raises(PTXError, match=message):
        tick(1, np.zeros(cuda_steps.POSITION, np.int64))


SOURCE = inspect.getsource(cuda_steps)
TO_INPUT, TO_WEIGHTS, END = map(
    SOURCE.index, ("            if layer:  # before", "            self._to_weights(", "    def _to_weights")
)
FAULTS = [
    ("position[STEP] += 1", "position[STEP] += 0"),
    ("position[STEP_OF_EPOCH] += 1", "position[STEP_OF_EPOCH] += 0"),
    ("position[UPDATE_NUMBER] += 1", "position[UPDATE_NUMBER] += 0"),
    ("live = place < order.size", "live = place < order.size + 1"),
    ("live = row < batch and place < order.size", "live = row < batch"),
    ("min(batch, order.size - _place(position, batch, 0))", "batch"),
    (
        'how = {"turned": (False, True), "y_below": y[layer], "scale": scale}',
        'how = {"turned": (False, True)}',
    ),
    ("(plan.seed, layer), step)", "(plan.seed, layer + 1), step)"),
    ("= ONE if self.halves else 1", "= 0"),
    (SOURCE[TO_INPUT:END], SOURCE[TO_WEIGHTS:END].rstrip() + "\n" + SOURCE[TO_INPUT:TO_WEIGHTS] + "\n"),
]


def test_biases_of_odd_layers_in_bfloat16_need_sums_of_their_own():
    side = with_faulty_epochs(AMPERE, cuda_steps=with_fault(cuda_steps, "or size % 2 == 0", "or True"))
    how = {"sizes": (35, 7, 9, 3), "optimizer": fd.SGD(0.1)}
    images = pictures(40, 35, 3)
    expected, _ = trained("numpy", images, **how)
    with emulated():
        right, _ = trained(backend(AMPERE), images, precision="bf16", **how)
        wrong, _ = trained(side, images, precision="bf16", **how)
    for name in "b1", "b2", "b3":
        assert abs(right[name] - expected[name]).max() < 5e-3 < abs(wrong[name] - expected[name]).max(), name


@pytest.mark.parametrize(
    ("old", "new"), FAULTS, ids=[*(old for old, _ in FAULTS[:-1]), "weights updated before they are read"]
)
def test_faults_are_found(old, new):
    images, options = pictures(), {"optimizer": fd.SGD(0.1), "network": {"dropout": 0.2}}
    side = with_faulty_epochs(AMPERE, cuda_steps=with_fault(cuda_steps, old, new))
    expected, _ = trained("numpy", images, **options)

    def compare():
        found, _ = trained(side, images, **options)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)

    with emulated(), pytest.raises((PTXError, AssertionError)):
        compare()
