"""Training on images that are deformed anew each time."""

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import training

AUGMENT = fd.Augment(rotation=10, scale=0.1, shear=0.1, shift=1, elastic=1.2, thickness=0.3, erase=5)


def pictures(count=300):
    return fd.load_digits().train.take(np.arange(count))


def trained(backend="cpu", images=None, **options):
    net = fd.Network([784, 40, 10], backend=backend, seed=1, dropout=0.2)
    settings = {"epochs": 2, "batch_size": 33, "seed": 3, "augment": AUGMENT, **options}
    log = fd.fit(net, images or pictures(), **settings)
    return net.get_parameters(), log


def assert_same(left, right, tolerance=0):
    for name, values in right.items():
        np.testing.assert_allclose(left[name], values, rtol=0, atol=tolerance, err_msg=name)


def test_all_ways_of_training_see_the_same_images():
    expected, reference = trained("numpy")
    steps, _ = trained(path="step")
    assert_same(steps, expected, 1e-5)
    for options in ({"path": "epoch"}, {"threads": 1}, {"threads": 3}, {"sparse_input": False}):
        found, log = trained(**options)
        assert_same(found, steps)
        assert log.loss == pytest.approx(reference.loss, rel=1e-5)


def test_stretches_do_not_matter(monkeypatch):
    expected, _ = trained()
    monkeypatch.setattr(training, "STRETCH_SECONDS", 1e-9)  # each step by itself
    assert_same(trained()[0], expected)


def test_every_epoch_is_different_and_none_is_as_it_was():
    """Without anything that learns, the loss of an epoch tells which images it saw."""
    images, still = pictures(), fd.SGD(1e-30)

    def losses(**options):
        net = fd.Network([784, 10], backend="cpu", seed=1)
        options = {"epochs": 3, "optimizer": still, "schedule": fd.Constant(), **options}
        return [epoch.loss for epoch in fd.fit(net, images, **options).epochs]

    plain, deformed = losses(), losses(augment=AUGMENT)
    assert max(plain) - min(plain) < 1e-6
    assert len({f"{loss:.5f}" for loss in (plain[0], *deformed)}) == 4
    assert losses(augment=AUGMENT) == deformed


def test_resumed_as_uninterrupted(tmp_path):
    whole, _ = trained(epochs=4)
    file = tmp_path / "c.safetensors"

    class Enough(Exception):
        pass

    def interrupt(net, log):
        if len(log.epochs) == 3:
            raise Enough

    with pytest.raises(Enough):
        trained(epochs=4, checkpoint=file, checkpoint_every=3, callbacks=interrupt)
    assert_same(trained(epochs=4, checkpoint=file, checkpoint_every=3, resume=True)[0], whole)
    other = fd.Augment(rotation=11)
    with pytest.raises(fd.CheckpointError, match=r"augment was rotation=10,.*, now rotation=11"):
        trained(epochs=4, checkpoint=file, resume=True, augment=other)
    with pytest.raises(fd.CheckpointError, match=r"augment was rotation=10,.*, now None"):
        trained(epochs=4, checkpoint=file, resume=True, augment=None)


def test_pictures_need_not_be_square():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 9, 14)).astype(np.uint8)
    labels = random.integers(0, 3, 50)

    def weights(backend):
        net = fd.Network([126, 20, 3], backend=backend, seed=1)
        fd.fit(net, (images, labels), epochs=2, batch_size=7, augment=AUGMENT)
        return net.get_parameters()

    assert_same(weights("cpu"), weights("numpy"), 1e-5)
    net = fd.Network([126, 20, 3], backend="cpu")
    with pytest.raises(fd.ConfigError, match="126 pixels are no square"):
        fd.fit(net, (images.reshape(50, -1), labels), augment=AUGMENT)


def test_what_is_no_picture_is_refused():
    images = pictures()
    net = fd.Network([784, 10], backend="cpu")
    with pytest.raises(fd.ConfigError, match="uint8"):
        fd.fit(net, (images.images / 255, images.labels), augment=AUGMENT)
    with pytest.raises(fd.ConfigError, match="augment must be"):
        fd.fit(net, images, augment="standard")


def test_true_is_the_standard():
    assert_same(trained(augment=True)[0], trained(augment=fd.Augment.standard())[0])
    assert_same(trained(augment=False)[0], trained(augment=None)[0])


def test_apply_shows_what_a_step_trains_on():
    images = pictures(20)
    shown = AUGMENT.apply(images.images, seed=1, step=0)
    assert shown.shape == (20, 28, 28)
    assert shown.dtype == np.uint8
    net = fd.Network([784, 40, 10], backend="cpu", seed=1)
    once = {"epochs": 1, "batch_size": 20, "schedule": fd.Constant()}
    fd.fit(net, images, augment=AUGMENT, **once)
    other = fd.Network([784, 40, 10], backend="cpu", seed=1)
    fd.fit(other, (shown, images.labels), **once)
    assert_same(net.get_parameters(), other.get_parameters())
    assert AUGMENT.apply(images.images[:0]).shape == (0, 28, 28)
    with pytest.raises(fd.DataError, match=r"uint8 \[N, H, W\]"):
        AUGMENT.apply(images.images / 255)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"rotation": -1}, "rotation"),
        ({"scale": 1}, "scale"),
        ({"elastic": float("nan")}, "elastic"),
        ({"smoothness": 0}, "smoothness"),
        ({"thickness": 2}, "thickness"),
        ({"noise": 256}, "255"),
        ({"noise": 0.5}, "noise"),
        ({"erase": 2.5}, "erase"),
        ({"erase": -1}, "erase"),
        ({"faint": 1}, "faint"),
        ({"shift": "1"}, "shift"),
    ],
)
def test_strengths_that_make_no_sense(strength, message):
    with pytest.raises(fd.ConfigError, match=message):
        fd.Augment(**strength)


def test_text_and_back():
    for augment in (
        fd.Augment.standard(),
        AUGMENT,
        fd.Augment(noise=7, smoothness=2.5, elastic=1 / 3, faint=0.1, erase=3),
    ):
        assert fd.Augment.parse(str(augment)) == augment
    assert fd.Augment.parse("standard") == fd.Augment.standard()
    for text, message in (("rotate=3", "no deformation 'rotate'"), ("shift", "shift needs a number")):
        with pytest.raises(fd.ConfigError, match=message):
            fd.Augment.parse(text)


def test_images_that_are_too_large():
    """As large as may be the cpu backend's numbers are those of the reference; what is larger is refused."""
    from fastdigit.kernels.augment.cpu import augment as on_cpu
    from fastdigit.kernels.augment.reference import augment as reference

    strong, height, width = fd.Augment(rotation=180, scale=0.5, shear=1, shift=100), 8, 14_800
    images = np.random.default_rng(0).integers(0, 256, (20, height * width)).astype(np.uint8)
    how = strong.deformation(height * width, (height, width))
    found, expected = (np.empty((20, height * width), np.float32) for _ in range(2))
    order = np.arange(20)
    on_cpu(images, order, 0, how, (0, 0), 0, found)
    reference(np, images, order, 0, how, (0, 0), 0, expected)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(fd.ConfigError, match="too large"):
        strong.deformation(8 * 15_000, (8, 15_000))
