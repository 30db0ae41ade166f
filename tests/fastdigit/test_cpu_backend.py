"""The cpu backend's whole-epoch kernel and its predictions, against its own single operations, against
the numpy backend, and against itself with other numbers of threads: bit for bit where sums have one order."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.kernels.matmul import cpu as matmul

PROJECT = Path(__file__).resolve().parents[2]
COUNT, PIXELS = 301, 90


def pictures(ink, count=COUNT, pixels=PIXELS, dtype=np.uint8):
    """Random pictures, about ``ink`` of whose pixels are not zero, and labels that depend on them."""
    random = np.random.default_rng(5)
    images = random.integers(1, 256, (count, pixels)) * (random.random((count, pixels)) < ink)
    labels = images[:, :4].sum(axis=1) % 5
    if dtype == np.uint8:
        return images.astype(np.uint8), labels
    return (images / 255).astype(dtype), labels


def train(data, sizes=(PIXELS, 40, 5), *, network=None, **options):
    """Parameters, optimizer state, losses and correct counts after a short training, as bytes."""
    settings = {"backend": "cpu", "seed": 2, "pixels": False, **(network or {})}
    net, state = fd.Network(list(sizes), **settings), fd.OptimizerState()
    options = {"epochs": 2, "batch_size": 64, "optimizer": fd.SGD(0.05), "seed": 1, **options}
    log = fd.fit(net, data, optimizer_state=state, **options)
    numbers = [net.get_parameters(), *(state.tensors[name] for name in sorted(state.tensors))]
    found = [named[name].tobytes() for named in numbers for name in sorted(named)]
    assert padding_is_zero(net)
    return found, log.step_losses, [(e.loss, e.accuracy) for e in log.epochs]


def padding_is_zero(net):
    flat = np.array(net.backend.to_host(net._parameters))
    for view in net.layout.views(flat).values():
        view[...] = 0
    return not flat.any()


OPTIONS = {
    "sgd": {},
    "momentum": {"optimizer": fd.SGD(0.05, momentum=0.9)},
    "nesterov with decay": {"optimizer": fd.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)},
    "decoupled decay": {"optimizer": fd.SGD(0.05, weight_decay=1e-2, decoupled=True)},
    "adam": {"optimizer": fd.Adam(0.01)},
    "adamw": {"optimizer": fd.AdamW(0.01)},
    "clipped": {"clip_norm": 0.1},
    "clipped adam": {"clip_norm": 0.1, "optimizer": fd.Adam(0.01)},
    "weighted": {"sample_weight": np.linspace(0, 2, COUNT)},
    "dropout": {"network": {"dropout": 0.4}},
    "dropout of inputs": {"network": {"dropout": 0.4, "input_dropout": 0.2}, "batch_size": 33},
    "smoothed labels": {"label_smoothing": 0.1, "sample_weight": np.linspace(0, 2, COUNT)},
    "max-norm, averaged": {"max_norm": 0.8, "average": fd.WeightAverage(0.9), "batch_size": 7},
    "batch of 1": {"batch_size": 1, "epochs": 1},
    "batch of 7": {"batch_size": 7},
    "one batch": {"batch_size": 1000},
    "no hidden layer": {"sizes": (PIXELS, 5)},
    "narrow": {"sizes": (PIXELS, 1, 3, 5)},
    "three hidden layers": {"sizes": (PIXELS, 70, 33, 17, 5), "network": {"dropout": (0.1, 0.0, 0.5)}},
    "wide": {"sizes": (PIXELS, 300, 5)},
}


@pytest.mark.parametrize("ink", [0.15, 0.9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=["uint8", "float32"])
@pytest.mark.parametrize("name", OPTIONS)
def test_whole_epochs_and_single_operations_agree_bit_for_bit(name, dtype, ink):
    data = pictures(ink, dtype=dtype)
    assert train(data, path="epoch", **OPTIONS[name]) == train(data, path="step", **OPTIONS[name])


@pytest.mark.parametrize(
    "name", ["nesterov with decay", "adam", "clipped", "three hidden layers", "wide", "dropout of inputs"]
)
def test_neither_threads_nor_skipped_zeros_change_a_bit(name):
    data = pictures(0.15)
    expected = train(data, threads=1, sparse_input=False, **OPTIONS[name])
    for threads in (1, 2, 3, 7):
        for sparse in (None, True, False):
            assert train(data, threads=threads, sparse_input=sparse, **OPTIONS[name]) == expected


HIDDEN = {"sizes": (PIXELS, 150, 133, 129, 5), "batch_size": 200}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": fd.SGD(0.05, momentum=0.9)},
        {"optimizer": fd.Adam(0.01), "network": {"dropout": (0.5, 0.0, 0.2)}},
        {"clip_norm": 0.1},
        {"batch_size": 7},
        {"batch_size": 600, "epochs": 1},
        {"sizes": (PIXELS, 1, 3, 5)},
        {"sizes": (PIXELS, 600, 130, 5)},
        {"sizes": (PIXELS, 1016, 5), "batch_size": 512, "epochs": 6},  # rows a page apart, if barely
    ],
    ids=str,
)
def test_skipping_the_zeros_of_hidden_layers_changes_no_bit(options):
    data, options = pictures(0.15, count=650), {**HIDDEN, **options}
    expected = train(data, path="step", **options)
    for hidden in (None, True, False):
        for threads in (1, 2, 3):
            assert train(data, threads=threads, sparse_hidden=hidden, **options) == expected


def test_a_batch_beyond_one_block_of_the_products():
    data = pictures(0.15, count=1300)
    expected = train(data, batch_size=700, path="step")
    assert train(data, batch_size=700) == expected
    assert train(data, batch_size=700, threads=1, sparse_input=False) == expected


@pytest.mark.parametrize("name", OPTIONS)
def test_as_the_numpy_backend(name):
    """Other roundings, the same training."""
    data = pictures(0.15)
    _, mine, _ = train(data, **OPTIONS[name])
    options = {**OPTIONS[name], "network": {**OPTIONS[name].get("network", {}), "backend": "numpy"}}
    _, theirs, _ = train(data, **options)
    np.testing.assert_allclose(mine, theirs, rtol=2e-3)


def test_an_epoch_of_mnist_ends_with_the_numpy_backends_loss(mnist_root):
    data = fd.load_mnist(mnist_root).train
    some = data.images[:12_800], data.labels[:12_800]
    losses = []
    for backend in ("cpu", "numpy"):
        net = fd.Network([784, 128, 10], backend=backend, seed=0)
        losses.append(fd.fit(net, some, epochs=1, optimizer=fd.SGD(0.1)).epochs[0].loss)
        losses.append(fd.evaluate(net, some).loss)
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-4)


def test_gradients_left_by_a_whole_epoch_do_not_disturb_single_steps():
    """Its panels lie in the gradients' memory; a later clipped training adds all of that to weights."""
    data, results = pictures(0.15), []
    for first in ("epoch", "step"):
        net = fd.Network([PIXELS, 70, 5], backend="cpu", seed=2, pixels=False)
        for path, clip in ((first, None), ("step", None), ("epoch", 0.1)):
            fd.fit(net, data, epochs=1, optimizer=fd.SGD(0.05, momentum=0.9), clip_norm=clip, path=path)
        assert padding_is_zero(net)
        results.append({name: value.tobytes() for name, value in net.get_parameters().items()})
    assert results[0] == results[1]


def test_another_number_of_threads_may_resume(tmp_path):
    data, file = pictures(0.15), tmp_path / "checkpoint.safetensors"
    options = {"optimizer": fd.Adam(0.01), "batch_size": 32, "seed": 1}
    whole = fd.Network([PIXELS, 40, 5], backend="cpu", seed=2, pixels=False)
    fd.fit(whole, data, epochs=3, threads=1, **options)

    class Stop(Exception):
        pass

    def stop(net, log):
        if len(log.epochs) == 2:
            raise Stop

    part = fd.Network([PIXELS, 40, 5], backend="cpu", seed=2, pixels=False)
    with pytest.raises(Stop):
        fd.fit(
            part, data, epochs=3, threads=2, checkpoint=file, checkpoint_every=3, callbacks=stop, **options
        )
    resumed = fd.Network([PIXELS, 40, 5], backend="cpu", seed=2, pixels=False)
    fd.fit(resumed, data, epochs=3, threads=3, checkpoint=file, checkpoint_every=3, resume=True, **options)
    for name, value in whole.get_parameters().items():
        assert value.tobytes() == resumed.get_parameters()[name].tobytes(), name


def test_a_training_that_diverges_is_stopped():
    net = fd.Network([PIXELS, 40, 5], backend="cpu", seed=2, pixels=False)
    before = {name: value.tobytes() for name, value in net.get_parameters().items()}
    with pytest.raises(fd.TrainingDivergedError):
        fd.fit(net, pictures(0.15), epochs=3, optimizer=fd.SGD(1e30))
    assert {name: value.tobytes() for name, value in net.get_parameters().items()} == before


def test_two_networks_trained_at_once():
    """One of them has the team of threads, the other trains alone: the same bits as one by one."""
    data = pictures(0.15)
    expected = train(data, epochs=8)
    results = [None] * 4

    def work(i):
        results[i] = train(data, epochs=8)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert results == [expected] * 4


# --- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("ink", [0.0, 0.15, 0.9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=["uint8", "float32"])
def test_predictions_of_any_number_of_images(count, ink, dtype):
    images, _ = pictures(ink, count=count, dtype=dtype)
    mine = fd.Network([PIXELS, 70, 33, 5], backend="cpu", seed=2, pixels=False)
    theirs = fd.Network([PIXELS, 70, 33, 5], backend="numpy", seed=2, pixels=False)
    np.testing.assert_allclose(mine.logits(images), theirs.logits(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine.predict_proba(images), theirs.predict_proba(images), atol=1e-6)
    one_by_one = [mine.logits(image)[0] for image in images[:20]]
    np.testing.assert_array_equal(mine.logits(images)[: len(one_by_one)].reshape(-1), np.ravel(one_by_one))


def test_predictions_see_new_weights():
    net = fd.Network([PIXELS, 40, 5], backend="cpu", seed=2, pixels=False)
    images, _ = pictures(0.15)
    before = net.logits(images)
    net.parameters()["b2"][...] += 1
    np.testing.assert_allclose(net.logits(images), before + 1, rtol=1e-5, atol=1e-5)


# --- bfloat16 -------------------------------------------------------------------------------------

needs_bfloat16 = pytest.mark.skipif(not matmul.HALF, reason="the processor has no AVX-512 BF16")


def rounded(x):
    """float32 numbers rounded to bfloat16 (nearest, ties to even), by their bits."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


@needs_bfloat16
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 4, 5), (14, 32, 32), (37, 101, 53), (64, 1027, 65), (9, 2, 40)]
)
@pytest.mark.parametrize("kind", ["nn", "nt", "tn", "strided"])
def test_bfloat16_products(shape, kind):
    m, k, n = shape
    random = np.random.default_rng(3)
    a, b = random.standard_normal((m, k), np.float32), random.standard_normal((k, n), np.float32)
    left, right = {
        "nn": (a, b),
        "nt": (a, np.ascontiguousarray(b.T).T),
        "tn": (np.ascontiguousarray(a.T).T, b),
        "strided": (np.repeat(a, 2, axis=1)[:, ::2], np.repeat(b, 2, axis=1)[:, ::2]),
    }[kind]
    exact = rounded(a).astype(np.float64) @ rounded(b).astype(np.float64)
    bound = k * 2.0**-23 * (np.abs(rounded(a)).astype(np.float64) @ np.abs(rounded(b)))
    for threads in (1, 2):
        out = np.full((m, n), np.nan, np.float32)
        matmul.matmul(left, right, out=out, threads=threads, precision="bf16")
        assert (np.abs(out - exact) <= bound).all()


@needs_bfloat16
@pytest.mark.parametrize("optimizer", [fd.SGD(0.05), fd.SGD(0.05, momentum=0.9), fd.Adam(0.01)], ids=repr)
def test_gradients_in_bfloat16_used_up_or_stored(optimizer):
    """Where gradients are clipped they are stored first: with the same bits, if nothing is cut off."""
    options = {"sizes": (PIXELS, 70, 133, 5), "network": {"precision": "bf16"}, "optimizer": optimizer}
    data = pictures(0.4)
    for threads in (1, 2):
        used_up = train(data, threads=threads, **options)
        assert used_up == train(data, threads=threads, clip_norm=1e9, **options)


@needs_bfloat16
def test_training_in_bfloat16():
    data = pictures(0.15)
    options = {"sizes": (PIXELS, 70, 64, 5), "network": {"precision": "bf16", "dropout": 0.2}}
    found = train(data, threads=1, **options)
    assert found == train(data, threads=2, **options)
    reference = train(data, sizes=options["sizes"], network={"dropout": 0.2})
    np.testing.assert_allclose(found[1], reference[1], rtol=0.05)
    assert found[1] != reference[1]
    with pytest.raises(fd.ConfigError, match="whole-epoch kernel alone"):
        train(data, path="step", **options)


@pytest.mark.skipif(not matmul.AMX, reason="the processor has no tiles of bfloat16 (AMX)")
@pytest.mark.parametrize(("dtype", "dropped"), [(np.uint8, 0.0), (np.uint8, 0.3), (np.float32, 0.0)], ids=str)
def test_training_by_three_pieces_of_bfloat16(dtype, dropped):
    """As near to float64 as float32 is, whatever the number of threads, gradients used up or stored."""
    data = pictures(0.4, dtype=dtype)
    options = {"sizes": (PIXELS, 150, 133, 5), "batch_size": 200, "epochs": 3}
    exact, single, found = (
        train(data, network={"input_dropout": dropped, **network}, **options)
        for network in (
            {"backend": "numpy", "precision": "float64"},
            {},
            {"precision": "bf16x3"},
        )
    )
    pieces = {**options, "network": {"precision": "bf16x3", "input_dropout": dropped}}
    assert found == train(data, threads=1, **pieces) == train(data, clip_norm=1e9, **pieces)
    assert found[0] != single[0]
    off = {
        name: np.abs(np.divide(losses, exact[1]) - 1).max()
        for name, losses in (("float32", single[1]), ("bf16x3", found[1]))
    }
    assert off["bf16x3"] < max(3 * off["float32"], 1e-6)


def test_a_precision_that_the_processor_lacks_is_refused(tmp_path):
    code = "import fastdigit as fd\nfd.Network([4, 3, 2], backend='cpu', precision='bf16')"
    result = run(code, tmp_path, {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx"})
    assert "does not offer precision 'bf16', only float32" in result.stderr.splitlines()[-1]


# --- other processors, other processes ----------------------------------------------------------------


def run(code, cache, environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_narrower_vectors(narrower):
    """A whole epoch, predictions, and the checks of all operations, compiled for another processor."""
    code = (
        "import numpy as np\n"
        "from tests.fastdigit import test_cpu_backend as tests\n"
        "data = tests.pictures(0.15)\n"
        "options = {'sizes': (90, 45, 5), 'optimizer': tests.fd.Adam(0.01), 'network': {'dropout': 0.2}}\n"
        "found = tests.train(data, **options)\n"
        "assert found == tests.train(data, threads=1, sparse_input=False, path='step', **options)\n"
        "tests.test_skipping_the_zeros_of_hidden_layers_changes_no_bit({'epochs': 1})\n"
        "options['network']['backend'] = 'numpy'\n"
        "np.testing.assert_allclose(found[1], tests.train(data, **options)[1], rtol=2e-3)\n"
        "tests.test_predictions_of_any_number_of_images(129, 0.15, np.uint8)\n"
        "from tests.kernels import test_operations_cpu as operations\n"
        "for name, function in operations.OPERATIONS.items():\n"
        "    for check, of_check in operations.CHECKS[name.partition(',')[0]]:\n"
        "        [check(function, operations.NUMPY, case) for case in of_check]\n"
        "print(tests.matmul.LANES)"
    )
    lanes, environment = narrower
    result = run(code, environment["NUMBA_CACHE_DIR"], environment)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == lanes


def test_threads_from_the_environment(tmp_path):
    code = "import fastdigit as fd\nprint(fd.Network([4, 3, 2], backend='cpu').backend.device)"
    assert "3 threads" in run(code, tmp_path, {"FASTDIGIT_THREADS": "3"}).stdout
    refused = run(code, tmp_path, {"FASTDIGIT_THREADS": "many"}).stderr.splitlines()[-1]
    assert "FASTDIGIT_THREADS must be a number of threads of at least 1, got 'many'" in refused
