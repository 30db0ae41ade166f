"""Networks: gradients against finite differences, predictions against plain NumPy, and what may
be asked of one in what form."""

import copy
import dataclasses
import math
import os
import pickle
import signal
import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdigit as fd
from fastdigit.bench.checks import keep_mask
from fastdigit.network import PREDICT_BATCH
from fastdigit.streams import ORDER, random_stream

from .conftest import same_bits

DEPTHS = ([6, 4], [6, 9, 4], [7, 5, 8, 3], [5, 17, 3, 6, 2])


def forward(tensors, x, masks=None):
    """Logits in float64; ``masks`` multiply the hidden outputs."""
    y = np.asarray(x, np.float64)
    layers = len(tensors) // 2
    for layer in range(1, layers + 1):
        y = y @ tensors[f"w{layer}"].astype(np.float64) + tensors[f"b{layer}"]
        if layer < layers:
            y = np.maximum(y, 0)
            if masks is not None:
                y = y * masks[layer - 1]
    return y


def cross_entropy(logits, targets, weight=None):
    """Weighted mean of -log p[target]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
    return np.average(losses, weights=weight)


def slopes(loss, tensors, step=1e-5):
    """Central differences of ``loss(tensors)`` for every single parameter."""
    result = {}
    for name, value in tensors.items():
        result[name] = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            both = []
            for sign in (1, -1):
                moved = {key: np.array(a, np.float64) for key, a in tensors.items()}
                moved[name][index] += sign * step
                both.append(loss(moved))
            result[name][index] = (both[0] - both[1]) / (2 * step)
    return result


def assert_gradients_agree(actual, expected, relative):
    """Each tensor within ``relative`` of its largest element."""
    assert actual.keys() == expected.keys()
    for name in expected:
        largest = np.abs(expected[name]).max()
        assert largest > 0, f"{name} has no gradient: the comparison would say nothing"
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=0, atol=relative * largest, err_msg=name
        )


def make(sizes, backend, **options):
    """A network whose biases are not zero, as they are after training."""
    net = fd.Network(sizes, backend=backend, **{"seed": 5, "pixels": False, **options})
    random = np.random.default_rng(1)
    tensors = net.get_parameters()
    net.set_parameters(
        {k: v if k[0] == "w" else random.uniform(-0.2, 0.3, v.shape) for k, v in tensors.items()}
    )
    return net


def features(sizes, count, seed=2):
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (count, sizes[0])), random.integers(sizes[-1], size=count)


def need(backend, precision):
    if precision not in backend.precisions:
        pytest.skip(f"{backend.name} computes in {', '.join(backend.precisions)} only")


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", DEPTHS, ids=str)
def test_gradients_are_the_slopes_of_the_loss(backend, sizes, weighted):
    need(backend, "float64")
    net = make(sizes, backend, precision="float64")
    x, labels = features(sizes, 9)
    weight = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8]) if weighted else None
    gradients = net.gradients(x, labels, weight)

    def loss(tensors):
        net.set_parameters(tensors)
        return net.loss(x, labels, weight)

    assert_gradients_agree(gradients, slopes(loss, net.get_parameters()), 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", DEPTHS, ids=str)
def test_loss_and_gradients_against_a_plain_forward_pass(backend, sizes, weighted):
    """In float32, against slopes of a loss that shares nothing with the network."""
    net = make(sizes, backend)
    x, labels = features(sizes, 9)
    weight = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8]) if weighted else None
    expected = slopes(
        lambda tensors: cross_entropy(forward(tensors, x), labels, weight), net.get_parameters()
    )
    assert_gradients_agree(net.gradients(x, labels, weight), expected, 1e-5)
    loss = cross_entropy(forward(net.get_parameters(), x), labels, weight)
    assert net.loss(x, labels, weight) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_more_images_than_one_prediction_takes(backend, weighted):
    """The loss goes in pieces, the gradient counts all images as one batch; both must be the whole
    set's. The slope is taken along one random direction."""
    sizes = [6, 9, 4]
    net = make(sizes, backend)
    x, labels = features(sizes, PREDICT_BATCH + 77)
    weight = np.arange(len(x)) % 5 if weighted else None

    def loss(tensors):
        return cross_entropy(forward(tensors, x), labels, weight)

    tensors = net.get_parameters()
    assert net.loss(x, labels, weight) == pytest.approx(loss(tensors), rel=1e-6)
    random, step = np.random.default_rng(0), 1e-6
    direction = {name: random.standard_normal(value.shape) for name, value in tensors.items()}
    ahead, behind = (
        loss({name: value + sign * step * direction[name] for name, value in tensors.items()})
        for sign in (1, -1)
    )
    gradients = net.gradients(x, labels, weight)
    along = sum((gradients[name] * direction[name]).sum() for name in tensors)
    assert along == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)


def test_float32_gradients_of_a_real_network_against_float64(backend):
    need(backend, "float64")
    random = np.random.default_rng(3)
    images, labels = random.integers(0, 256, (50, 784)).astype(np.uint8), random.integers(10, size=50)
    single = make([784, 64, 32, 10], backend)
    double = make([784, 64, 32, 10], backend, precision="float64")
    double.set_parameters(single.get_parameters())
    assert_gradients_agree(single.gradients(images, labels), double.gradients(images, labels), 1e-5)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.4), (0.3, 0.6)])
def test_a_training_step_follows_the_slope_of_the_masked_loss(backend, precision, rates):
    """The gradient through dropout: two steps of plain gradient descent on the whole set, with the
    masks that Philox's definition gives for updates 0 and 1. In each, the parameters must have
    moved by the learning rate times the slope of the masked loss."""
    need(backend, precision)
    sizes, rate = [6, 12, 10, 4], 0.125
    net = make(sizes, backend, precision=precision, dropout=rates, seed=21)
    x, labels = features(sizes, 16)
    visited = [net.get_parameters()]
    fd.fit(
        net,
        (x, labels),
        optimizer=fd.SGD(rate),
        schedule=fd.Constant(),
        epochs=2,
        batch_size=len(x),
        seed=4,
        callbacks=[lambda net, log: visited.append(net.get_parameters())],
    )
    for update, (before, after) in enumerate(pairwise(visited)):
        order = random_stream(4, ORDER, update).permutation(len(x))
        masks = [
            keep_mask((len(x), size), p, (21, layer), update) / (1 - p)
            for layer, (size, p) in enumerate(zip(sizes[1:-1], rates, strict=True))
        ]

        def loss(tensors, order=order, masks=masks):
            return cross_entropy(forward(tensors, x[order], masks), labels[order])

        moved = {name: (before[name].astype(np.float64) - after[name]) / rate for name in before}
        expected = slopes(loss, before)
        # In float32 the difference of two parameters of size 1 is good to 1e-7, over the rate.
        assert_gradients_agree(moved, expected, 1e-6 if precision == "float64" else 2e-4)
        # And it is dropout that was tested: without masks the slopes are others.
        plain = slopes(
            lambda tensors, order=order: cross_entropy(forward(tensors, x[order]), labels[order]), before
        )
        assert np.abs(plain["w1"] - expected["w1"]).max() > 0.05 * np.abs(expected["w1"]).max()


def test_dropout_is_for_training_only(backend):
    sizes = [6, 9, 4]
    plain, dropping = make(sizes, backend), make(sizes, backend, dropout=0.5, input_dropout=0.5)
    x, labels = features(sizes, 5)
    np.testing.assert_array_equal(plain.logits(x), dropping.logits(x))
    assert plain.loss(x, labels) == dropping.loss(x, labels)
    for name, gradient in plain.gradients(x, labels).items():
        np.testing.assert_array_equal(dropping.gradients(x, labels)[name], gradient)


# --- prediction -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", DEPTHS, ids=str)
def test_predictions_against_a_plain_forward_pass(backend, sizes):
    net = make(sizes, backend)
    x, _ = features(sizes, 40)
    expected = forward(net.get_parameters(), x)
    np.testing.assert_allclose(net.logits(x), expected, rtol=1e-5, atol=1e-5)
    p = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(net.predict_proba(x), p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.predict_proba(x).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(net.predict(x), expected.argmax(axis=1))


@pytest.mark.parametrize("temperature", [0.25, 1, 1.0, 3.5])
def test_the_temperature_divides_the_logits_of_probabilities_alone(backend, temperature):
    sizes = [6, 9, 4]
    plain, warm = make(sizes, backend), make(sizes, backend, temperature=temperature)
    x, labels = features(sizes, 40)
    z = forward(warm.get_parameters(), x) / temperature
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert warm.predict_proba(x).dtype == np.float32
    np.testing.assert_allclose(warm.predict_proba(x), p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fd.evaluate(warm, (x, labels)).probabilities, p, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(warm.logits(x), plain.logits(x))
    np.testing.assert_array_equal(warm.predict(x), plain.predict(x))
    assert warm.loss(x, labels) == plain.loss(x, labels)
    assert fd.evaluate(warm, (x, labels)).loss == fd.evaluate(plain, (x, labels)).loss
    if temperature == 1:
        np.testing.assert_array_equal(warm.predict_proba(x), plain.predict_proba(x))
    assert warm.predict_proba(x[:0]).shape == (0, 4)


def test_a_training_forgets_the_temperature(backend):
    net = make([6, 9, 4], backend, temperature=2)
    x, labels = features([6, 4], 40)
    with pytest.raises(fd.ConfigError):
        fd.fit(net, (x, labels), epochs=0)
    assert net.temperature == 2
    fd.fit(net, (x, labels), epochs=1)
    assert net.temperature == 1


def test_float64_is_float64_from_end_to_end(backend):
    need(backend, "float64")
    net = make([6, 9, 4], backend, precision="float64")
    x, _ = features([6, 4], 20)
    assert net.logits(x).dtype == np.float64
    net.temperature = 2
    assert net.predict_proba(x).dtype == np.float64
    np.testing.assert_allclose(net.logits(x), forward(net.get_parameters(), x), rtol=1e-12, atol=1e-13)


@pytest.fixture
def digits_net(backend):
    return make([784, 32, 10], backend, pixels=True)


PIXELS = np.random.default_rng(4).integers(0, 256, (6, 28, 28)).astype(np.uint8)


def test_uint8_pixels_are_scaled_to_one(digits_net):
    expected = forward(digits_net.get_parameters(), PIXELS.reshape(6, 784) / 255)
    np.testing.assert_allclose(digits_net.logits(PIXELS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        PIXELS.reshape(6, 784),
        PIXELS.astype(np.int64),
        PIXELS.tolist(),
        np.asfortranarray(PIXELS),
        PIXELS[..., None],
        np.repeat(PIXELS, 2, axis=2)[:, :, ::2],
        np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(6, 28, 28),  # read-only
    ],
    ids=["flat", "int64", "list", "fortran", "channel", "strided", "read-only"],
)
def test_the_same_images_in_another_form_give_the_same_bits(digits_net, images):
    np.testing.assert_array_equal(digits_net.logits(images), digits_net.logits(PIXELS))


def test_floats_in_zero_to_one_are_the_same_images(digits_net):
    np.testing.assert_allclose(
        digits_net.logits(PIXELS / 255), digits_net.logits(PIXELS), rtol=1e-4, atol=1e-5
    )


def test_one_image_alone(digits_net):
    assert digits_net.predict(PIXELS[0]).shape == (1,)
    np.testing.assert_array_equal(digits_net.logits(PIXELS[0]), digits_net.logits(PIXELS[:1]))


def test_no_images(digits_net):
    for shape in ((0, 784), (0, 28, 28)):
        none = np.zeros(shape, np.uint8)
        assert digits_net.logits(none).shape == (0, 10)
        assert digits_net.predict_proba(none).shape == (0, 10)
        assert digits_net.predict(none).shape == (0,)
        assert digits_net.predict(none).dtype == digits_net.classes.dtype
        with pytest.raises(fd.DataError, match="no images"):
            digits_net.loss(none, [])
        with pytest.raises(fd.DataError, match="no images"):
            digits_net.gradients(none, [])


def test_bad_images_are_refused_by_every_method(digits_net):
    broken = PIXELS / 255
    broken[4, 3, 3] = np.nan
    for method in (digits_net.predict, digits_net.predict_proba, digits_net.logits):
        with pytest.raises(fd.DataError, match="row 4"):
            method(broken)
    for method in (digits_net.loss, digits_net.gradients):
        with pytest.raises(fd.DataError, match="row 4"):
            method(broken, np.zeros(6, int))


def test_many_images_are_the_same_in_pieces(backend):
    """Prediction goes in pieces; no matter where they end, and what the buffers held before."""
    net = make([12, 8, 5], backend)
    x, labels = features([12, 5], 2 * PREDICT_BATCH + 3)
    whole = net.logits(x)
    assert whole.shape == (len(x), 5)
    pieces = [net.logits(x[start : start + PREDICT_BATCH]) for start in range(0, len(x), PREDICT_BATCH)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    np.testing.assert_allclose(whole, forward(net.get_parameters(), x), rtol=1e-5, atol=1e-5)
    fresh = make([12, 8, 5], backend)
    np.testing.assert_array_equal(fresh.logits(x), whole)
    assert net.loss(x, labels) == pytest.approx(
        cross_entropy(forward(net.get_parameters(), x), labels), rel=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_batches_of_changing_sizes_do_not_disturb_each_other(counts):
    net = make([6, 9, 4], "auto")
    x, labels = features([6, 4], 40)
    expected = forward(net.get_parameters(), x)
    for count in counts:
        np.testing.assert_allclose(net.logits(x[:count]), expected[:count], rtol=1e-5, atol=1e-5)
        if count:
            loss = cross_entropy(expected[:count], labels[:count])
            assert net.loss(x[:count], labels[:count]) == pytest.approx(loss, rel=1e-5)


def test_results_do_not_change_afterwards(backend):
    """They are copies, not views of buffers that the next call writes."""
    net = make([6, 9, 4], backend)
    x, labels = features([6, 4], 10)
    results = net.logits(x), net.predict_proba(x), net.gradients(x, labels)["w1"], net.get_parameters()["w1"]
    before = [result.copy() for result in results]
    net.set_parameters({name: 2 * value for name, value in net.get_parameters().items()})
    net.gradients(-x, labels)
    net.predict_proba(-x)
    for result, copied in zip(results, before, strict=True):
        np.testing.assert_array_equal(result, copied)


# --- classes ----------------------------------------------------------------------------------


def test_classes_name_the_outputs(backend):
    net = make([6, 9, 2], backend, classes=(8, 3))
    x, targets = features([6, 2], 30)
    labels = np.array([8, 3])[targets]
    logits = forward(net.get_parameters(), x)
    assert net.predict(x).tolist() == np.array([8, 3])[logits.argmax(axis=1)].tolist()
    assert net.loss(x, labels) == pytest.approx(cross_entropy(logits, targets), rel=1e-5)
    with pytest.raises(fd.DataError, match=r"label 0 of row 0 .*\(8, 3\)"):
        net.loss(x, np.zeros(30, int))


def test_two_digits_only_are_learnt(backend):
    net = fd.Network([6, 9, 2], backend=backend, classes=(3, 8), pixels=False)
    x, _ = features([6, 2], 64)
    labels = np.where(x[:, 0] > 0, 8, 3)
    fd.fit(net, (x, labels), optimizer=fd.Adam(0.02), epochs=40, batch_size=16)
    assert (net.predict(x) == labels).mean() > 0.95


@pytest.mark.parametrize("classes", [(3,), (3, 8, 9), (3, 3), (3.0, 8.0), ("3", "8"), 3, ((3, 8),)])
def test_classes_that_make_no_sense(classes):
    with pytest.raises(fd.ConfigError, match="classes"):
        fd.Network([6, 2], classes=classes)


# --- parameters -------------------------------------------------------------------------------


def test_weights_start_from_hes_distribution(backend):
    net = fd.Network([784, 500, 300, 10], backend=backend, seed=1)
    tensors = net.get_parameters()
    for layer, inputs in ((1, 784), (2, 500), (3, 300)):
        w = tensors[f"w{layer}"].ravel().astype(np.float64)
        assert not tensors[f"b{layer}"].any()
        deviation = math.sqrt(2 / inputs)
        assert abs(w.mean()) < 5 * deviation / math.sqrt(w.size)
        # The deviation of a sample's deviation is σ/√(2n).
        assert abs(w.std() - deviation) < 5 * deviation / math.sqrt(2 * w.size)
        # Normal: 4.55 % lie beyond two deviations.
        share, n = (np.abs(w) > 2 * deviation).mean(), w.size
        assert abs(share - 0.0455) < 5 * math.sqrt(0.0455 * 0.9545 / n)
        assert len(np.unique(tensors[f"w{layer}"])) > 0.95 * n


def test_the_same_seed_gives_the_same_bits_on_every_backend(backend):
    ours = fd.Network([30, 20, 10], backend=backend, seed=9)
    assert same_bits(ours, fd.Network([30, 20, 10], backend="numpy", seed=9))
    assert not same_bits(ours, fd.Network([30, 20, 10], backend=backend, seed=10))


def test_precision_does_not_change_the_start(backend):
    need(backend, "float64")
    single, double = (fd.Network([30, 10], backend=backend, precision=p) for p in ("float32", "float64"))
    np.testing.assert_array_equal(
        double.get_parameters()["w1"].astype(np.float32), single.get_parameters()["w1"]
    )


def test_views_write_into_the_network(backend):
    net = make([6, 9, 4], backend)
    views = net.parameters()
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "w1": (6, 9),
        "b1": (9,),
        "w2": (9, 4),
        "b2": (4,),
    }
    backend.to_device(np.arange(4, dtype=np.float32), out=views["b2"])
    backend.to_device(np.zeros((9, 4), np.float32), out=views["w2"])
    x, _ = features([6, 4], 3)
    assert net.logits(x).tolist() == [[0, 1, 2, 3]] * 3


def test_parameters_come_back_as_they_were_given(backend):
    net = fd.Network([6, 9, 4], backend=backend)
    random = np.random.default_rng(0)
    tensors = {k: random.standard_normal(v.shape).astype(np.float32) for k, v in net.get_parameters().items()}
    net.set_parameters(dict(reversed(tensors.items())))  # the order of names means nothing
    for name, value in net.get_parameters().items():
        np.testing.assert_array_equal(value, tensors[name])
        assert value.flags.c_contiguous
        assert value.base is None or value.base.size == value.size  # no padding is dragged along


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("b1"), "b1"),
        (lambda t: t.update(w3=np.zeros((2, 2))), "w3"),
        (lambda t: t.update(w2=t["w2"].T), "w2"),
        (lambda t: t.update(b2=np.zeros((4, 1))), "b2"),
        (lambda t: t.update(b2=0.0), "b2"),
    ],
    ids=["missing", "unknown", "transposed", "column", "number"],
)
def test_parameters_that_do_not_fit_change_nothing(backend, change, named):
    net, untouched = make([6, 9, 4], backend), make([6, 9, 4], backend)
    tensors = {name: value + 1 for name, value in net.get_parameters().items()}
    change(tensors)
    with pytest.raises(fd.ConfigError, match=named) as error:
        net.set_parameters(tensors)
    for other in {"w1", "b1", "w2", "b2"} - {named}:
        assert f"{other}:" not in str(error.value)
    assert same_bits(net, untouched)


# --- construction -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": None}, "seed"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"dropout": "0.5"}, "dropout"),
        ({"dropout": (0.1, 0.2)}, "2 rates for 1 hidden"),
        ({"dropout": ()}, "0 rates for 1 hidden"),
        ({"input_dropout": 1.0}, "input_dropout"),
        ({"input_dropout": (0.1,)}, "input_dropout"),
        ({"precision": "float16"}, "precision"),
        ({"precision": "float"}, "precision"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
    ],
)
def test_options_that_make_no_sense(backend, options, named):
    with pytest.raises(fd.ConfigError, match=named):
        fd.Network([6, 9, 4], backend=backend, **options)


@pytest.mark.parametrize("sizes", [[], [784], [784, 0], [784, -1, 10], [784, 10.0], "ab"])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(fd.ConfigError):
        fd.Network(sizes)


def test_sizes_may_be_numpys_integers():
    assert fd.Network(np.array([6, 9, 4])).layer_sizes == (6, 9, 4)


def test_the_largest_seed_works(backend):
    net = fd.Network([6, 9, 4], backend=backend, seed=2**32 - 1, dropout=0.5, pixels=False)
    x, labels = features([6, 4], 8)
    fd.fit(net, (x, labels), epochs=1)


def test_dropout_for_all_layers_or_for_each():
    assert fd.Network([6, 9, 8, 4], dropout=0.25).dropout == (0.25, 0.25)
    assert fd.Network([6, 9, 8, 4], dropout=(0.1, 0)).dropout == (0.1, 0.0)
    assert fd.Network([6, 4], dropout=0.5).dropout == ()


def test_repr_tells_what_it_is(backend):
    text = repr(fd.Network([784, 128, 10], backend=backend))
    assert "784-128-10" in text
    assert "101,770 parameters" in text
    assert backend.name in text


# --- copies and threads -----------------------------------------------------------------------


def test_a_pickle_of_before_temperatures(backend):
    net = make([6, 9, 4], backend)
    state = net.__getstate__()
    del state["temperature"]
    twin = fd.Network.__new__(fd.Network)
    twin.__setstate__(state)
    assert twin.temperature == 1
    assert same_bits(net, twin)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_equal_and_independent(backend, copied):
    options = {"classes": (7, 5, 3, 1), "dropout": 0.25, "input_dropout": 0.1, "seed": 12, "pixels": False}
    options["temperature"] = 1.5
    net = make([6, 9, 4], backend, **options)
    net.predict(np.zeros((2, 6)))  # with buffers in use
    twin = copied(net)
    assert same_bits(net, twin)
    assert twin.backend is net.backend
    assert twin.classes.tolist() == [7, 5, 3, 1]
    assert (twin.dropout, twin.input_dropout, twin.seed) == ((0.25,), 0.1, 12)
    assert (twin.precision, twin.pixels, twin.temperature) == ("float32", False, 1.5)
    x, targets = features([6, 4], 8)
    np.testing.assert_array_equal(twin.logits(x), net.logits(x))
    before = net.get_parameters()
    fd.fit(twin, (x, net.classes[targets]), epochs=1)
    for name, value in net.get_parameters().items():
        np.testing.assert_array_equal(value, before[name])
    assert not same_bits(net, twin)


def test_two_threads_predict_on_one_network(backend):
    net = make([20, 30, 10], backend)
    sets = [features([20, 10], count, seed=count)[0] for count in (33, 200)]
    expected = [net.logits(x) for x in sets]
    start, wrong, done = threading.Barrier(2), [], []

    def work(x, logits):
        start.wait(10)
        for _ in range(150):
            if not np.array_equal(net.logits(x), logits):
                wrong.append(len(x))
        done.append(len(x))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(sets, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [33, 200]
    assert wrong == []


def test_predicting_while_another_thread_trains(backend):
    """Every answer is that of some state between two stretches of steps: finite and of one piece."""
    net = make([20, 30, 10], backend)
    x, labels = features([20, 10], 400)
    finished = threading.Event()

    def train():
        try:
            fd.fit(net, (x, labels), epochs=10, batch_size=16)
        finally:
            finished.set()

    thread = threading.Thread(target=train)
    thread.start()
    answers = 0
    while not finished.is_set() or not answers:
        p = net.predict_proba(x[:50])
        assert p.shape == (50, 10)
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        answers += 1
    thread.join(30)
    undisturbed = make([20, 30, 10], backend)
    fd.fit(undisturbed, (x, labels), epochs=10, batch_size=16)
    assert same_bits(net, undisturbed)


def test_a_network_on_a_backend_of_ones_own_is_copied_with_it():
    mine = dataclasses.replace(fd.get_backend("numpy"), name="mine", row_align=4)
    net = fd.Network([6, 5, 2], backend=mine)
    twin = copy.deepcopy(net)
    assert (twin.backend.name, twin.backend.row_align) == ("mine", 4)
    x = np.random.default_rng(0).random((3, 6))
    np.testing.assert_array_equal(twin.logits(x), net.logits(x))


def test_parameters_that_are_not_finite_are_refused(backend):
    net = fd.Network([6, 5, 2], backend=backend)
    before = net.get_parameters()
    with pytest.raises(fd.ConfigError, match="parameter b1 holds NaN"):
        net.set_parameters({**before, "b1": np.full(5, np.nan)})
    np.testing.assert_array_equal(net.get_parameters()["b1"], before["b1"])


@pytest.mark.parametrize("sizes", [784, None, 3.5])
def test_sizes_that_are_no_list(sizes):
    with pytest.raises(fd.ConfigError, match="layer_sizes must be a list"):
        fd.Network(sizes)


def test_the_warning_points_at_the_callers_line():
    net = fd.Network([6, 5, 2], backend="numpy")
    with pytest.warns(UserWarning, match="divide by 255") as caught:
        net.predict(np.full((3, 6), 200.0))
    assert caught[0].filename == __file__


def test_evaluate_takes_one_image_alone_as_predict_does():
    net = fd.Network([784, 10], backend="numpy")
    image = np.zeros((28, 28), np.uint8)
    assert fd.evaluate(net, (image, net.predict(image))).accuracy == 1


def test_running_out_of_memory_leaves_a_network_that_works(backend, monkeypatch):
    net = fd.Network([6, 5, 2], backend=backend, pixels=False)
    x = np.random.default_rng(0).random((9, 6))
    expected = net.logits(x)

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fastdigit.network.Buffers.allocate", fail)
        with pytest.raises(MemoryError):
            net.gradients(np.zeros((500, 6)), np.zeros(500, int))
    np.testing.assert_array_equal(net.logits(x), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_forked_while_a_thread_computes_does_not_hang(backend):
    if backend.name not in ("numpy", "cpu"):
        pytest.skip("a GPU's context does not survive a fork")
    net = fd.Network([6, 5, 2], backend=backend, pixels=False)
    held, leave = threading.Event(), threading.Event()

    def hold():
        with net._lock:
            held.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads
            child = os.fork()
        if child == 0:
            signal.alarm(10)  # kills the child if it hangs
            os._exit(0 if net.predict(np.zeros((2, 6))).shape == (2,) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        leave.set()
        thread.join()


def test_weights_are_not_the_numbers_that_users_draw_from_the_same_seed():
    net = fd.Network([6, 5, 2], backend="numpy", seed=3)
    own = np.random.default_rng(3).standard_normal((6, 5)) * (2 / 6) ** 0.5
    assert not np.isclose(net.get_parameters()["w1"], own).any()


def test_every_error_survives_pickling():
    for name in fd.__all__:
        kind = getattr(fd, name)
        if isinstance(kind, type) and issubclass(kind, fd.FastdigitError):
            arguments = ("what happened", 7) if kind is fd.TrainingDivergedError else ("what happened",)
            back = pickle.loads(pickle.dumps(kind(*arguments)))
            assert (type(back), str(back), vars(back)) == (kind, "what happened", vars(kind(*arguments)))


def test_the_loss_of_an_evaluation_is_the_networks_own():
    """Also where a probability is too small for float32."""
    net = fd.Network([4, 3], backend="numpy", pixels=False)
    net.set_parameters({"w1": np.eye(4, 3) * 500, "b1": np.zeros(3)})
    x, labels = np.eye(4)[:3], [1, 1, 2]
    assert fd.evaluate(net, (x, labels)).loss == pytest.approx(net.loss(x, labels))
    assert net.loss(x, labels) == pytest.approx(500 / 3)


def test_a_value_too_large_for_float32_is_refused(backend):
    net = fd.Network([6, 5, 2], backend=backend)
    with pytest.raises(fd.ConfigError, match="parameter b1 holds"):
        net.set_parameters({**net.get_parameters(), "b1": np.full(5, 1e300)})
