"""Attacks against formulas of linear networks, what they promise, and trainings under attack against a plain
loop."""

import math

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import attacks
from fastdigit.bench.checks import philox
from fastdigit.streams import ORDER, random_stream

from .conftest import same_bits

METHODS = [
    fd.FGSM(0.1),
    fd.FGSM(0.8, norm="l2"),
    fd.PGD(0.1, steps=7),
    fd.PGD(0.1, step=0.3, steps=3, restarts=2),
    fd.PGD(0.8, steps=7, norm="l2", restarts=2),
]
by_method = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture
def trained(make_network, blobs):
    """A network that reads most of the blobs, but not all."""
    net = make_network()
    fd.fit(net, blobs, epochs=3, batch_size=32)
    assert fd.evaluate(net, blobs).accuracy > 0.9
    return net


def accuracy(net, images, labels):
    return fd.evaluate(net, (images, labels)).accuracy


def pixels(images):
    """[N, 36] in 0 … 1, with the bits that networks compute with."""
    return images.reshape(len(images), -1) * np.float32(1 / 255)


# --- gradients ------------------------------------------------------------------------------------


def losses_in_float64(net, x, labels):
    """Each image's cross-entropy, by the textbook."""
    tensors = {name: value.astype(np.float64) for name, value in net.get_parameters().items()}
    layers = len(tensors) // 2
    for layer in range(1, layers + 1):
        x = x @ tensors[f"w{layer}"] + tensors[f"b{layer}"]
        x = np.maximum(x, 0) if layer < layers else x
    return np.logaddexp.reduce(x, axis=1) - x[np.arange(len(x)), labels]


def test_input_gradients_are_slopes_of_each_images_own_loss(blobs):
    net = fd.Network([36, 16, 12, 4], backend="numpy", precision="float64", seed=3)
    x, labels = pixels(blobs.images[:5]).astype(np.float64), blobs.labels[:5]
    found = net.input_gradients(x, labels)
    slopes = np.empty_like(found)
    for pixel in range(36):
        by = np.zeros(36)
        by[pixel] = 1e-6
        rise = losses_in_float64(net, x + by, labels) - losses_in_float64(net, x - by, labels)
        slopes[:, pixel] = rise / 2e-6
    np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-8)


def test_input_gradients_are_those_of_every_backend_and_any_batch(make_network, blobs, monkeypatch):
    net, exact = make_network(), fd.Network([36, 16, 12, 4], backend="numpy", precision="float64", seed=3)
    expected = exact.input_gradients(blobs.images, blobs.labels)
    found = net.input_gradients(blobs.images, blobs.labels)
    assert (found.shape, found.dtype) == ((300, 36), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("fastdigit.network.PREDICT_BATCH", 7)
    np.testing.assert_allclose(net.input_gradients(blobs.images, blobs.labels), found, rtol=1e-4, atol=1e-6)


def test_input_gradients_of_a_sure_network(make_network, blobs):
    """Where 1 - p is far below what float32 can tell from 0 beside 1."""
    net, exact = make_network(), fd.Network([36, 16, 12, 4], backend="numpy", precision="float64", seed=3)
    tensors = net.get_parameters()
    tensors["b3"] = np.array([50, 0, 1, 2], np.float32)
    for each in (net, exact):
        each.set_parameters(tensors)
    labels = np.zeros(300, int)
    expected = exact.input_gradients(blobs.images, labels)
    assert 0 < abs(expected).max() < 1e-15
    np.testing.assert_allclose(net.input_gradients(blobs.images, labels) / expected, 1, rtol=1e-2)


def test_input_gradients_of_what_does_not_fit(make_network, blobs):
    net = make_network()
    with pytest.raises(fd.DataError, match="label 9 of row 0"):
        net.input_gradients(blobs.images[:1], [9])
    with pytest.raises(fd.ConfigError, match="one class"):
        fd.Network([36, 1], backend=net.backend).input_gradients(blobs.images[:1], [0])
    assert net.input_gradients(np.zeros((0, 36)), []).shape == (0, 36)


# --- linear networks, where everything is known -----------------------------------------------------


def linear(backend, classes, seed=0, bias=None):
    net = fd.Network([30, classes], backend=backend, seed=seed)
    tensors = net.get_parameters()
    tensors["b1"] = np.zeros(classes, np.float32) if bias is None else np.array(bias, np.float32)
    net.set_parameters(tensors)
    return net, tensors["w1"].astype(np.float64), tensors["b1"].astype(np.float64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("sign", [1, -1], ids=["away", "targeted"])
def test_fgsm_on_a_linear_network_is_its_formula(backend, norm, sign):
    """∂L/∂x = W·(p - e), e the label's unit vector."""
    net, w, b = linear(backend, 5)
    random = np.random.default_rng(1)
    x = random.random((200, 30)).astype(np.float32)
    scores = x @ w + b
    # Of what is already where it shall be nothing is moved: here the label, or the target, is chosen so.
    labels = scores.argmax(axis=1) if sign == 1 else scores.argmin(axis=1)
    method = fd.FGSM(0.07 if norm == "linf" else 0.3, norm=norm, targeted=sign == -1)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    slope = (p / p.sum(axis=1, keepdims=True) - np.eye(5)[labels]) @ w.T
    direction = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope, axis=1, keepdims=True)
    expected = np.clip(x + sign * method.epsilon * direction, 0, 1)
    np.testing.assert_allclose(fd.attack(net, x, labels, method), expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 0.2)])
def test_pgd_on_two_classes_ends_in_the_farthest_corner(backend, norm, epsilon):
    """The loss grows along one line; the images are grey enough for the box not to matter, and the network is
    too sure of them to be led astray on the way."""
    net, w, _ = linear(backend, 2, bias=[40, 0])
    x = np.random.default_rng(2).uniform(0.3, 0.7, (50, 30)).astype(np.float32)
    away = w[:, 1] - w[:, 0]
    direction = np.sign(away) if norm == "linf" else away / np.linalg.norm(away)
    found = fd.attack(net, x, np.zeros(50, int), fd.PGD(epsilon, step=2 * epsilon, norm=norm))
    np.testing.assert_allclose(found, x + epsilon * direction, atol=2e-6)


def test_pgd_reaches_the_corner_of_the_box_too(backend):
    net, w, _ = linear(backend, 2, bias=[0, 90])
    x = np.random.default_rng(2).random((50, 30)).astype(np.float32)
    found = fd.attack(net, x, np.ones(50, int), fd.PGD(0.4, steps=20))
    np.testing.assert_allclose(found, np.clip(x + 0.4 * np.sign(w[:, 0] - w[:, 1]), 0, 1), atol=1e-6)


# --- what is promised -------------------------------------------------------------------------------


@by_method
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_images_stay_in_their_ball_and_in_the_box(trained, blobs, method, kind):
    images = blobs.images if kind == "uint8" else pixels(blobs.images)
    found = fd.attack(trained, images, blobs.labels, method)
    assert found.dtype == np.float32
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    moved = found.reshape(300, 36).astype(np.float64) - pixels(blobs.images)
    order = np.inf if method.norm == "linf" else 2
    distance = np.linalg.norm(moved, ord=order, axis=1)
    assert distance.max() <= method.epsilon * (1 + 1e-5)
    assert distance.max() > 0.9 * method.epsilon


@by_method
def test_it_is_found_hard_and_what_was_misread_comes_back_as_it_was(trained, blobs, method):
    found = fd.attack(trained, blobs.images, blobs.labels, method)
    right = trained.predict(blobs.images) == blobs.labels
    assert not right.all()
    np.testing.assert_array_equal(found[~right].reshape(-1, 36), pixels(blobs.images[~right]))
    assert accuracy(trained, found, blobs.labels) < right.mean() - 0.1


def test_backends_agree(trained, blobs):
    other = fd.Network([36, 16, 12, 4], backend="numpy", seed=3)
    other.set_parameters(trained.get_parameters())
    for method in (fd.FGSM(0.05), fd.PGD(0.05, step=0.02, steps=5), fd.PGD(0.3, steps=5, norm="l2")):
        ours, theirs = (
            fd.attack(net, blobs.images, blobs.labels, method, seed=4) for net in (trained, other)
        )
        # A gradient that rounds to the other side of 0 moves its pixel the other way.
        assert (abs(ours - theirs) < 1e-5).mean() > 0.99
        assert accuracy(trained, theirs, blobs.labels) == pytest.approx(
            accuracy(trained, ours, blobs.labels), abs=0.01
        )


def test_larger_balls_and_more_steps_find_more(trained, blobs):
    def left(method):
        return accuracy(trained, fd.attack(trained, blobs.images, blobs.labels, method), blobs.labels)

    found = [left(fd.PGD(epsilon, steps=20)) for epsilon in (0.01, 0.03, 0.1, 0.3, 1.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.5
    assert found[-1] == 0
    assert left(fd.PGD(0.05, steps=20)) <= left(fd.FGSM(0.05))


def test_restarts_never_hurt_the_attacker(trained, blobs):
    before = None
    for restarts in (1, 2, 5):
        method = fd.PGD(0.04, step=0.02, steps=3, restarts=restarts)
        found = fd.attack(trained, blobs.images, blobs.labels, method)
        wrong = trained.predict(found) != blobs.labels
        loss = losses_in_float64(trained, found.reshape(300, 36).astype(np.float64), blobs.labels)
        if before is not None:
            assert wrong[before[0]].all()
            held = ~wrong
            assert (loss[held] >= before[1][held] - 1e-5).all()
        before = wrong, loss
    assert wrong.sum() > 0


@by_method
def test_targeted_attacks_reach_their_target(trained, blobs, method):
    method = type(method)(**{**vars(method), "targeted": True, "epsilon": 4 * method.epsilon})
    target = np.full(300, 2)
    found = fd.attack(trained, blobs.images, target, method)
    assert (trained.predict(found) == 2).mean() > 2 * (trained.predict(blobs.images) == 2).mean()
    there = trained.predict(blobs.images) == 2
    np.testing.assert_array_equal(found[there].reshape(-1, 36), pixels(blobs.images[there]))


@by_method
def test_same_seed_same_bits(trained, blobs, method):
    first, again, other = (
        fd.attack(trained, blobs.images, blobs.labels, method, seed=seed) for seed in (7, 7, 8)
    )
    assert first.tobytes() == again.tobytes()
    assert (first.tobytes() == other.tobytes()) == isinstance(method, fd.FGSM)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_an_image_begins_depends_on_its_number_alone(make_network, blobs, monkeypatch, norm):
    """Steps too short to be seen leave images where they began."""
    net = make_network()
    labels, method = net.predict(blobs.images), fd.PGD(1e-3, step=1e-12, steps=1, norm=norm)
    whole = fd.attack(net, blobs.images, labels, method, seed=5)
    monkeypatch.setattr(attacks, "BATCH", 11)
    np.testing.assert_array_equal(fd.attack(net, blobs.images, labels, method, seed=5), whole)
    moved = whole.reshape(300, 36).astype(np.float64) - pixels(blobs.images)
    inside = moved[(blobs.images.reshape(300, 36) > 2) & (blobs.images.reshape(300, 36) < 253)]
    if norm == "linf":
        assert abs(inside.mean()) < 1e-4
        assert inside.std() == pytest.approx(1e-3 / math.sqrt(3), rel=0.05)
    else:
        assert np.linalg.norm(moved, axis=1).mean() == pytest.approx(1e-3, rel=0.1)


def test_starts_are_those_of_philox(backend):
    """Counter: block of four pixels, image, restart; key: seed and the number of no layer."""
    net, _, _ = linear(backend, 2, bias=[90, 0])
    x, labels = np.full((3, 30), 0.5, np.float32), np.zeros(3, int)
    found = fd.attack(net, x, labels, fd.PGD(0.25, step=1e-12, steps=1), seed=9)
    for image in range(3):
        words = [word for block in range(8) for word in philox((block, image, 0, 0), (9, 2**32 - 1))][:30]
        uniform = np.array([word // 256 * 2.0**-23 - 1 for word in words])
        np.testing.assert_allclose(found[image], 0.5 + 0.25 * uniform, atol=1e-6)


def test_one_image_alone(trained, blobs):
    right = int(np.flatnonzero(trained.predict(blobs.images) == blobs.labels)[0])
    for image in (blobs.images[right], blobs.images[right].reshape(36), blobs.images[right : right + 1]):
        found = fd.attack(trained, image, blobs.labels[right : right + 1], fd.FGSM(0.1))
        assert found.shape == image.shape
        assert abs(found - image * np.float32(1 / 255)).max() == pytest.approx(0.1, abs=1e-6)


def test_labels_may_be_any_classes(backend, blobs):
    net = fd.Network([36, 16, 12, 4], backend=backend, seed=3, classes=[8, 1, 5, 3])
    plain = fd.Network([36, 16, 12, 4], backend=backend, seed=3)
    found = fd.attack(net, blobs.images, net.classes[blobs.labels], fd.FGSM(0.1))
    np.testing.assert_array_equal(found, fd.attack(plain, blobs.images, blobs.labels, fd.FGSM(0.1)))


def test_a_network_is_not_changed(trained, blobs):
    before = trained.get_parameters()
    fd.attack(trained, blobs.images, blobs.labels, fd.PGD(0.1, steps=3))
    after = trained.get_parameters()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fd.FGSM(0), "epsilon must be a number in"),
        (lambda: fd.FGSM(math.nan), "epsilon must be a number in"),
        (lambda: fd.PGD("0.1"), "epsilon must be a number in"),
        (lambda: fd.FGSM(0.1, norm="l1"), "norm must be one of linf, l2, got 'l1'"),
        (lambda: fd.FGSM(0.1, targeted=3), "targeted must be True or False"),
        (lambda: fd.PGD(0.1, step=0), "step must be a number in"),
        (lambda: fd.PGD(0.1, steps=0), "steps must be an integer of at least 1"),
        (lambda: fd.PGD(0.1, restarts=1.5), "restarts must be an integer of at least 1"),
    ],
)
def test_methods_that_make_no_sense(make, message):
    with pytest.raises(fd.ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_equal_methods_are_written_alike():
    assert repr(fd.FGSM(1)) == repr(fd.FGSM(1.0))
    assert fd.PGD(0.2, steps=10).step_size == pytest.approx(0.05)
    assert fd.PGD(0.2, step=0.01, steps=10).step_size == 0.01


def test_attacks_that_cannot_be_made(make_network, blobs):
    net = make_network()
    images, labels = blobs.images, blobs.labels
    for call, error, message in (
        (lambda: fd.attack("net", images, labels, fd.FGSM(0.1)), fd.ConfigError, "takes a Network first"),
        (lambda: fd.attack(net, images, labels, "fgsm"), fd.ConfigError, r"FGSM\(0.1\) or PGD\(0.1\)"),
        (lambda: fd.attack(net, images, labels, fd.FGSM(0.1), seed=-1), fd.ConfigError, "seed"),
        (lambda: fd.attack(net, images, labels, fd.FGSM(0.1), seed=2**32), fd.ConfigError, "seed"),
        (lambda: fd.attack(net, images[:0], labels[:0], fd.FGSM(0.1)), fd.DataError, "no images to attack"),
        (
            lambda: fd.attack(net, images, labels[:9], fd.FGSM(0.1)),
            fd.DataError,
            "300 images need 300 labels",
        ),
        (lambda: fd.attack(net, images, labels + 9, fd.FGSM(0.1)), fd.DataError, "is not one of the"),
        (lambda: fd.attack(net, images / 100, labels, fd.FGSM(0.1)), fd.DataError, "needs pixels in 0 … 1"),
    ):
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


# --- trainings under attack -------------------------------------------------------------------------


def plain_training(net, blobs, method, *, rate, batch, epochs, clean):
    """Gradient descent in float64, each batch attacked by a loop written out."""
    x_all, labels = blobs.images.reshape(300, -1) / 255, blobs.labels
    tensors = {name: value.astype(np.float64) for name, value in net.get_parameters().items()}
    layers, update = len(tensors) // 2, 0

    def passes(x, t):
        """The gradients with respect to the logits of each layer and to the images, of summed losses."""
        ys = [x]
        for layer in range(1, layers + 1):
            z = ys[-1] @ tensors[f"w{layer}"] + tensors[f"b{layer}"]
            ys.append(np.maximum(z, 0) if layer < layers else z)
        p = np.exp(ys[-1] - ys[-1].max(axis=1, keepdims=True))
        dz = p / p.sum(axis=1, keepdims=True) - np.eye(4)[t]
        all_dz = [dz]
        for layer in range(layers, 0, -1):
            dz = dz @ tensors[f"w{layer}"].T * (ys[layer - 1] > 0 if layer > 1 else 1)
            all_dz.append(dz)
        return ys, all_dz[::-1]

    def noise(rows):
        images = [[philox((c, int(i), update, 0), (net.seed, 2**32 - 1)) for c in range(9)] for i in rows]
        return np.array(images).reshape(len(rows), 36) // 256 * 2.0**-23 - 1

    for epoch in range(epochs):
        order = random_stream(6, ORDER, epoch).permutation(300)
        for start in range(0, 300, batch):
            rows = order[start : start + batch]
            x = x_all[rows].copy()
            count = len(rows) - round(clean * len(rows))
            moved, origin, t = x[:count].copy(), x[:count], labels[rows][:count]
            if isinstance(method, fd.PGD):
                moved = np.clip(origin + method.epsilon * noise(rows[:count]), 0, 1)
            for _ in range(method.steps):
                _, (slope, *_) = passes(moved, t)
                moved = moved + method.step_size * np.sign(slope)
                moved = np.clip(np.clip(moved, origin - method.epsilon, origin + method.epsilon), 0, 1)
            x[:count] = moved
            ys, dzs = passes(x, labels[rows])
            for layer in range(1, layers + 1):
                tensors[f"w{layer}"] -= rate * ys[layer - 1].T @ dzs[layer] / len(rows)
                tensors[f"b{layer}"] -= rate * dzs[layer].sum(axis=0) / len(rows)
            update += 1
    return tensors


@pytest.mark.parametrize("clean", [0.0, 0.3])
@pytest.mark.parametrize("method", [fd.FGSM(0.05), fd.PGD(0.05, step=0.02, steps=3)], ids=["fgsm", "pgd"])
def test_trains_as_a_plain_loop_does(blobs, method, clean):
    net = fd.Network([36, 16, 12, 4], backend="numpy", precision="float64", seed=3)
    expected = plain_training(net, blobs, method, rate=0.2, batch=64, epochs=2, clean=clean)
    fd.fit(
        net,
        blobs,
        optimizer=fd.SGD(0.2),
        schedule=fd.Constant(),
        epochs=2,
        batch_size=64,
        adversary=method,
        clean_share=clean,
        seed=6,
    )
    for name, value in net.get_parameters().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12)


def test_backends_train_alike(make_network, blobs):
    nets = [make_network(), fd.Network([36, 16, 12, 4], backend="numpy", seed=3)]
    for net in nets:
        fd.fit(net, blobs, epochs=2, batch_size=64, adversary=fd.FGSM(0.05), optimizer=fd.SGD(0.05))
    for name, value in nets[0].get_parameters().items():
        np.testing.assert_allclose(value, nets[1].get_parameters()[name], rtol=1e-3, atol=1e-4)


class BreakOff:
    """A progress that ends a training after so many steps."""

    def __init__(self, after):
        self.left = after

    def begin(self, *counts):
        pass

    epoch = close = begin

    def steps(self, first, losses):
        self.left -= len(losses)
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", [fd.FGSM(0.1), fd.PGD(0.8, steps=2, norm="l2")], ids=["fgsm", "pgd"])
def test_a_resumed_training_has_the_same_bits(make_network, blobs, tmp_path, method):
    options = {
        "epochs": 3,
        "batch_size": 70,
        "adversary": method,
        "clean_share": 0.25,
        "optimizer": fd.SGD(0.1, momentum=0.9),
    }
    whole, broken_off = make_network(dropout=0.2), make_network(dropout=0.2)
    log = fd.fit(whole, blobs, **options)
    file = tmp_path / "checkpoint.safetensors"
    how = {"checkpoint": file, "checkpoint_every": 1, "progress": BreakOff(after=7)}
    with pytest.raises(KeyboardInterrupt):
        fd.fit(broken_off, blobs, **how, **options)
    resumed = make_network(dropout=0.2)
    assert fd.fit(resumed, blobs, checkpoint=file, resume=True, **options).step_losses == log.step_losses
    assert same_bits(whole, resumed)
    for other in ({"adversary": None, "clean_share": 0.0}, {"clean_share": 0.5}, {"adversary": fd.FGSM(0.2)}):
        with pytest.raises(fd.CheckpointError, match=r"adversary was .*, now "):
            fd.fit(make_network(dropout=0.2), blobs, checkpoint=file, resume=True, **{**options, **other})


def test_it_makes_a_network_hold_out_longer(make_network, blobs):
    left = []
    for adversary in (None, fd.PGD(0.06, steps=5)):
        net = make_network()
        fd.fit(net, blobs, epochs=25, batch_size=32, adversary=adversary)
        found = fd.attack(net, blobs.images, blobs.labels, fd.PGD(0.06, steps=10))
        left.append(accuracy(net, found, blobs.labels))
    assert left[1] > left[0] + 0.1


def test_the_log_says_why_it_went_by_steps(make_network, blobs):
    net = make_network()
    log = fd.fit(net, blobs, epochs=1, adversary=fd.FGSM(0.1))
    assert log.path == "step, as an adversary attacks each batch by single operations"
    if net.backend.train_epoch is not None:
        with pytest.raises(fd.ConfigError, match="an adversary attacks each batch by single operations"):
            fd.fit(net, blobs, epochs=1, adversary=fd.FGSM(0.1), path="epoch")


def test_a_precision_of_whole_epochs_is_refused(blobs):
    if "bf16" not in fd.get_backend("cpu").precisions:
        pytest.skip("this processor has no bfloat16")
    net = fd.Network([36, 16, 4], backend="cpu", precision="bf16")
    with pytest.raises(
        fd.ConfigError, match="'bf16' is for the whole-epoch kernel alone: use float32, as an"
    ):
        fd.fit(net, blobs, epochs=1, adversary=fd.FGSM(0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversary": 0.1}, r"adversary must be FGSM\(0.1\) or PGD"),
        ({"adversary": fd.FGSM(0.1, targeted=True)}, "neither target nor restarts"),
        ({"adversary": fd.PGD(0.1, restarts=2)}, "neither target nor restarts"),
        ({"adversary": fd.FGSM(0.1), "clean_share": 1.0}, "clean_share must be a number in"),
        ({"clean_share": 0.5}, "clean_share must be 0 without an adversary"),
    ],
)
def test_trainings_that_make_no_sense(make_network, blobs, options, message):
    net, before = make_network(), make_network()
    with pytest.raises(fd.ConfigError, match=message):
        fd.fit(net, blobs, epochs=1, **options)
    assert same_bits(net, before)


def test_a_training_on_what_is_no_pixels(make_network, blobs):
    net = make_network(pixels=False)
    with pytest.raises(fd.DataError, match="needs pixels in 0 … 1"):
        fd.fit(net, (blobs.images / 100, blobs.labels), epochs=1, adversary=fd.FGSM(0.1))
