"""The persistent kernel of a whole epoch, run by the interpreter of PTX as one cooperative launch."""

from types import SimpleNamespace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import training
from fastdigit.kernels.common.cuda import Limits
from fastdigit.kernels.epoch import cuda as persistent

from ..ptx.device import PTXError
from ..ptx.emulated import backend, emulated, with_faulty_epochs
from ..ptx.faults import with_fault

BLOCKS, SHARED = 4, 200_000
AUGMENT = fd.Augment(rotation=20, elastic=1, thickness=0.5, erase=5, faint=0.5)


@pytest.fixture(autouse=True)
def long_stretches(monkeypatch):
    """Several steps at once, as on a GPU: the interpreter is too slow to be given more than one."""
    monkeypatch.setattr(training, "STRETCH_SECONDS", 1e9)


NAMES = {(8, 0): "epoch, persistent", (9, 0): "epoch, persistent, bulk copies"}


def with_persistent_epochs(shared=SHARED, capability=(9, 0)):
    """The emulated backend of a GPU with so much shared memory for each block."""
    return backend(Limits(capability, BLOCKS, shared))


@pytest.mark.parametrize(
    ("optimizer", "shared", "capability", "weighted", "more"),
    [
        (fd.SGD(0.1), SHARED, (8, 0), False, {}),
        (
            fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            SHARED,
            (9, 0),
            True,
            {"label_smoothing": 0.2},
        ),
        (fd.SGD(0.1, momentum=0.9), 9_000, (9, 0), False, {"augment": AUGMENT}),
        (fd.Adam(0.01), 9_000, (8, 0), False, {}),
        (fd.AdamW(0.01, weight_decay=0.1), SHARED, (9, 0), False, {"batch_size": 12}),
    ],
    ids=[
        *("sgd", "nesterov, L2, weighted, smoothed", "momentum, one buffer, deformed"),
        *("adam, one buffer", "adamw, odd messages"),
    ],
)
def test_weights_as_of_the_reference(optimizer, shared, capability, weighted, more):
    random = np.random.default_rng(5)
    images = fd.Images(
        random.integers(0, 256, (37, 8, 8)).astype(np.uint8), random.integers(0, 5, 37).astype(np.uint8)
    )
    weight = random.uniform(0.5, 2, 37) if weighted else None
    options = {"epochs": 2, "batch_size": 16, "seed": 1, "sample_weight": weight, **more}
    weights, losses, paths = [], [], []
    with emulated() as emulator:
        for each in (with_persistent_epochs(shared, capability), "numpy"):
            net = fd.Network([64, 10, 5], backend=each, seed=3)
            log = fd.fit(net, images, optimizer=optimizer, **options)
            weights.append(net.get_parameters())
            losses.append([entry.loss for entry in log.epochs])
            paths.append(log.path)
    assert paths[0] == "epoch: one persistent kernel"
    used = {NAMES[capability]} | ({"augment, steps"} if "augment" in more else set())
    assert {kernel.name for kernel, _ in emulator.reports} == used
    whole = [report for kernel, report in emulator.reports if kernel.name == NAMES[capability]]
    arrived = sum(report.instructions["atom"] for report in whole)
    assert arrived == BLOCKS * len(whole)  # blocks meet at the end of each launch, and never before
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for name, expected in weights[1].items():
        np.testing.assert_allclose(weights[0][name], expected, atol=1e-5, err_msg=name)


def test_memory_is_kept_from_epoch_to_epoch_and_made_anew_for_another_training(monkeypatch):
    made, init = [], persistent.Persistent.__init__
    monkeypatch.setattr(
        persistent.Persistent,
        "__init__",
        lambda self, *a, **how: (made.append(self), init(self, *a, **how))[1],
    )
    random = np.random.default_rng(5)
    pixels, labels = random.integers(0, 256, (20, 8, 8)).astype(np.uint8), random.integers(0, 5, 20)
    trainings = [
        (20, {"batch_size": 8, "epochs": 3}),
        (20, {"batch_size": 8, "epochs": 1, "optimizer": fd.SGD(0.05, momentum=0.9, nesterov=True)}),
        (20, {"batch_size": 8, "epochs": 1, "sample_weight": np.linspace(1, 2, 20)}),
        (20, {"batch_size": 16, "epochs": 1}),
        (9, {"batch_size": 16, "epochs": 1}),
        (9, {"batch_size": 16, "epochs": 1, "optimizer": fd.Adam(0.01)}),
    ]
    with emulated():
        nets = [fd.Network([64, 10, 5], backend=side, seed=3) for side in (with_persistent_epochs(), "numpy")]
        for (count, options), number in zip(trainings, (1, 1, 1, 2, 3, 4), strict=True):
            for net in nets:
                images = fd.Images(pixels[:count], labels[:count].astype(np.uint8))
                fd.fit(net, images, **{"optimizer": fd.SGD(0.1, momentum=0.9), "seed": 1, **options})
            assert len(made) == number
            for name, expected in nets[1].get_parameters().items():
                np.testing.assert_allclose(nets[0].get_parameters()[name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "options", "reason"),
    [
        ((64, 10, 9, 5), {}, "one hidden layer, there are 2"),
        ((64, 10, 5), {"input_dropout": 0.5}, "no dropout"),
        ((36, 10, 5), {}, "multiple of 16 pixels, there are 36"),
        ((64, 10, 40), {}, "at most 31 classes, there are 40"),
        ((64, 10, 5), {}, "do not fit in 5,000 bytes"),
    ],
)
def test_what_the_kernel_cannot_do_is_done_by_a_graph_of_steps_and_said(sizes, options, reason):
    images = fd.Images(np.zeros((4, sizes[0], 1), np.uint8), np.zeros(4, np.uint8))
    with emulated():
        side = with_persistent_epochs(5_000 if "5,000 bytes" in reason else SHARED)
        net = fd.Network(sizes, backend=side, seed=0, **options)
        path = fd.fit(net, images, epochs=1, batch_size=4, path="epoch").path
    assert path.startswith("epoch: a graph of steps")
    assert reason in path


H200, A100 = Limits((9, 0), 132, 232_448), Limits((8, 0), 108, 166_912)


@pytest.mark.parametrize(
    ("limits", "hidden", "batch", "buffers"),
    [
        (H200, 128, 64, 2),
        (H200, 128, 128, 2),
        (H200, 128, 256, 1),
        (H200, 128, 512, None),
        (H200, 1024, 128, 1),
        (H200, 1024, 256, None),
        (A100, 128, 64, 2),
        (A100, 128, 128, 1),
        (A100, 1024, 64, 1),
    ],
)
def test_networks_of_real_size_fit_or_are_told_why_not(limits, hidden, batch, buffers):
    """With momentum. A batch of 128 images of 784 pixels takes 104 KB, and twice that with two buffers."""
    layout, images = fd.Layout([784, hidden, 10], 64), np.zeros((1000, 784), np.uint8)
    plan = SimpleNamespace(layout=layout, batch_size=batch, precision="float32", state=(None,))
    plan.dropout, plan.input_dropout, plan.clip_norm = (0,), 0, None
    reason = persistent.unsuited(plan, images, limits)
    if buffers is None:
        assert "do not fit" in reason
        return
    assert reason is None
    words = persistent._layout(tuple(layout.layer_sizes), batch, 1, limits)
    assert words[persistent.X_BUFFERS] == buffers
    assert 4 * words[persistent.SHARED_WORDS] <= limits.shared


def test_barriers_for_the_benchmark():
    counter = np.zeros(1, np.uint32)
    with emulated() as emulator:
        for _ in range(2):  # the second finds it as the first has left it
            persistent.barriers(3, 5, counter)
    assert [report.instructions["atom"] for _, report in emulator.reports] == [3 * 5] * 2
    assert counter[0] & 0x7FFFFFFF == 0


def test_digits_follow_weights_that_grow():
    """From almost nothing, by a lot: in units of the first step they would not fit."""
    random = np.random.default_rng(5)
    images = fd.Images(
        random.integers(0, 256, (40, 8, 8)).astype(np.uint8), random.integers(0, 5, 40).astype(np.uint8)
    )

    def trained(side):
        net = fd.Network([64, 10, 5], backend=side, seed=3)
        first = net.get_parameters()
        net.set_parameters({**first, "w1": first["w1"] / 1000})
        fd.fit(net, images, optimizer=fd.SGD(0.5, momentum=0.9), epochs=2, batch_size=8, seed=1)
        return net.get_parameters()

    expected = trained("numpy")
    assert np.abs(expected["w1"]).max() > 0.01
    unchanged = with_fault(
        persistent, "if _bits_of(scale * float32(1 / 255)) != words", "if uint32(0) == words"
    )
    with emulated():
        for name, values in trained(with_persistent_epochs()).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)
        wrong = trained(with_faulty_epochs(Limits((9, 0), BLOCKS, SHARED), cuda=unchanged))
    largest = {name: np.abs(values - expected[name]).max() for name, values in wrong.items()}
    assert max(largest.values()) > 1e-3


def test_a_training_that_diverges_ends():
    """Weights that are no numbers have a unit that is none."""
    random = np.random.default_rng(5)
    images = fd.Images(
        random.integers(0, 256, (24, 8, 8)).astype(np.uint8), random.integers(0, 5, 24).astype(np.uint8)
    )
    with emulated():
        net = fd.Network([64, 10, 5], backend=with_persistent_epochs(), seed=3)
        with pytest.raises(fd.TrainingDivergedError, match="the loss became nan in step 2"):
            fd.fit(net, images, optimizer=fd.SGD(1e30), epochs=1, batch_size=8, seed=1)


SHARED_RACE = "race: shared word .* was|nothing has written"
FAULTS = [
    ("return found[1] == tag and found[3] == tag", "return True", "Not equal"),
    ("return found[1] == tag and found[3] == tag", "return found[3] == tag", "Not equal"),
    ("int32(cuda.gridDim.x) + other)", "int32(cuda.gridDim.x))", "Not equal"),
    ("            wait_for_images(plan, base, step, int32(step - first))\n", "", SHARED_RACE),
    (
        "            _arrived()\n            cuda.syncthreads()\n            _tell",
        "            _tell",
        SHARED_RACE,
    ),
    (
        "                cuda.syncthreads()\n                if words",
        "                if words",
        f"{SHARED_RACE}|deadlock",
    ),
    (
        "                cuda.syncthreads()  # as always in the first step, and seldom later\n",
        "",
        SHARED_RACE,
    ),
    ("            cuda.syncthreads()\n            _slopes(", "            _slopes(", SHARED_RACE),
    (
        "                _digits_of_weights(plan, memory, words)\n                cuda.syncthreads()\n",
        "                _digits_of_weights(plan, memory, words)\n",
        SHARED_RACE,
    ),
    ("            cuda.syncthreads()\n            _update_small(", "            _update_small(", SHARED_RACE),
    ("        grid.wait(met, grid.arrive(met))\n", "", "race: global memory .* was"),
    ("int32(step - first), numbers)", "int32(0), numbers)", "Not equal"),
    ("int32(base + 4 * row + 16 * _lane())", "int32(base + 4 * row + 16 * _lane() + 4)", "misaligned"),
    ("_ask_for_places(plan, base, int32(step + plan[X_BUFFERS]), last, order)", "pass", "Not equal"),
    ("flat, int32(state), back)", "flat, int32(0), back)", "Not equal"),
    ("while block < blocks:", "while block + 1 < blocks:", "Not equal"),
    ("(lane & 6) + (lane >> 4)", "(lane & 6) + (lane >> 3 & 1)", "Not equal|two threads write"),
    ("byte = int32((lane & 1) + (lane >> 2 & 2))", "byte = int32(lane & 1)", "Not equal|two threads write"),
    ("uint32(at + further), uint32(at + 64 - further)", "uint32(at), uint32(at + 64)", "Not equal"),
    ("4 * (lane >> 3) + (lane & 1))", "4 * (lane >> 3))", "Not equal|two threads write"),
    ("_float_of(words[uint32(plan[LARGEST] + units)]) * weights", "weights * float32(1e-3)", "Not equal"),
]
BULK_FAULTS = [
    ("    _barriers_visible()\n", "", "no fence.proxy.async since"),
    ("uint32(count * pixels))", "uint32((count - 1) * pixels))", "race|arrivals|deadlock"),
    ("    parity = uint32(turn", "    return\n    parity = uint32(turn", SHARED_RACE),
    ("(row + image * plan[X_ROW])), source", "(row + image * plan[X_ROW]) + 4), source", "misaligned"),
]


@pytest.mark.parametrize(
    ("old", "new", "said", "capability"),
    [(*fault, (8, 0)) for fault in FAULTS] + [(*fault, (9, 0)) for fault in BULK_FAULTS],
    ids=[old.strip() for old, *_ in FAULTS + BULK_FAULTS],
)
def test_faults_are_found(old, new, said, capability):
    random, batch = np.random.default_rng(5), 12  # so that two blocks tell numbers that are heard at once
    images = random.integers(0, 256, (3 * batch + 5, 8, 8)).astype(np.uint8)
    images = fd.Images(images, random.integers(0, 5, len(images)).astype(np.uint8))

    def trained(side, epochs):
        net = fd.Network([64, 10, 5], backend=side, seed=3)
        fd.fit(net, images, optimizer=fd.SGD(0.1, momentum=0.9), epochs=epochs, batch_size=batch, seed=1)
        return net.get_parameters()

    faulty = with_fault(persistent, old, new)
    side = with_faulty_epochs(Limits(capability, BLOCKS, SHARED), cuda=faulty)

    def compare():
        for epochs in 1, 2:  # most show in the first
            expected = trained("numpy", epochs)
            for name, values in trained(side, epochs).items():
                np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)

    with emulated(), pytest.raises((PTXError, AssertionError), match=said):
        compare()
