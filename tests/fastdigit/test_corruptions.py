"""Corruptions against what can be worked out without them: moments, sums of ink, single pixels."""

import inspect
import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.special import erf

import fastdigit as fd
from fastdigit import corruptions
from fastdigit.corruptions import CORRUPTIONS, STRENGTHS

NAMES = ["rotation", "shift", "scale", "noise", "blur", "contrast", "thickness", "occlusion"]
every_corruption = pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)


@pytest.fixture(scope="module")
def digits():
    return fd.load_digits().test.images[:200]


def ink(images):
    return images.sum(axis=(1, 2), dtype=np.int64)


def copies(image, count=64):
    return np.repeat(image[None].astype(np.uint8), count, axis=0)


def bar(height=18, width=4):
    """A bright upright bar in the middle."""
    image = np.zeros((28, 28), np.uint8)
    image[14 - height // 2 : 14 + height // 2, 14 - width // 2 : 14 + width // 2] = 200
    return image


def moments(image):
    """Centre of mass (y, x), the angle of the long axis from the upright in degrees, the length along it."""
    y, x = np.indices(image.shape)
    weight = image / image.sum()
    middle = (weight * y).sum(), (weight * x).sum()
    y, x = y - middle[0], x - middle[1]
    yy, xx, xy = ((weight * a).sum() for a in (y * y, x * x, x * y))
    angle = np.degrees(0.5 * np.arctan2(2 * xy, yy - xx))
    return middle, angle, np.sqrt(yy)


def test_there_are_eight():
    assert list(CORRUPTIONS) == NAMES
    for name in NAMES:
        assert CORRUPTIONS[name] is getattr(corruptions, name)
        assert list(inspect.signature(CORRUPTIONS[name]).parameters) == [
            "images",
            "strength",
            "seed",
            "first",
        ]


@every_corruption
def test_a_higher_strength_changes_more(corrupt, digits):
    changes = [np.abs(corrupt(digits, s).astype(int) - digits).mean() for s in STRENGTHS]
    assert changes[0] > 0
    assert all(less < more for less, more in itertools.pairwise(changes)), changes


@every_corruption
def test_shape_dtype_and_what_was_given(corrupt, digits):
    given = digits.copy()
    given.flags.writeable = False
    changed = corrupt(given, 3)
    assert (changed.shape, changed.dtype, changed.flags.c_contiguous) == (digits.shape, np.uint8, True)
    assert np.array_equal(given, digits)
    assert np.array_equal(corrupt(digits.transpose(0, 2, 1), 3), corrupt(digits.transpose(0, 2, 1).copy(), 3))
    for shape in [(0, 28, 28), (3, 0, 28), (2, 1, 1), (2, 5, 9)]:
        few = np.full(shape, 7, np.uint8)
        assert corrupt(few, 5).shape == shape


@every_corruption
def test_an_image_has_its_own_chance_whatever_comes_with_it(corrupt, digits, monkeypatch):
    whole = corrupt(digits, 4, seed=5)
    assert np.array_equal(corrupt(digits, 4, seed=5), whole)
    assert np.array_equal(corrupt(digits[:7], 4, seed=5), whole[:7])
    assert np.array_equal(corrupt(digits[50:90], 4, seed=5, first=50), whole[50:90])
    monkeypatch.setattr(corruptions, "PART", 3 * 784)
    assert np.array_equal(corrupt(digits, 4, seed=5), whole)


@every_corruption
def test_memory_does_not_grow_with_the_images(corrupt):
    many = np.zeros((6000, 28, 28), np.uint8)
    tracemalloc.start()
    try:
        result = corrupt(many, 5)
        assert tracemalloc.get_traced_memory()[1] - result.nbytes < 15e6
    finally:
        tracemalloc.stop()


def test_seeds_differ_and_corruptions_do_not_share_their_chance(digits):
    for name in set(NAMES) - {"blur", "contrast"}:
        assert not np.array_equal(CORRUPTIONS[name](digits, 3, seed=0), CORRUPTIONS[name](digits, 3, seed=1))
    left = moments_of_sign(corruptions.rotation(copies(bar()), 3))
    smaller = ink(corruptions.scale(copies(bar()), 3)) < ink(bar()[None])
    assert 10 < (left == smaller).sum() < 54  # 64 where one chance served both


def moments_of_sign(images):
    return np.array([moments(image)[1] > 0 for image in images])


@pytest.mark.parametrize(("strength", "degrees"), [(1, 8), (3, 24), (5, 40)])
def test_rotation_of_a_bar(strength, degrees):
    turned = corruptions.rotation(copies(bar()), strength)
    angles = np.array([moments(image)[1] for image in turned])
    assert np.abs(np.abs(angles) - degrees).max() < 0.5
    assert 16 < (angles > 0).sum() < 48  # either way
    middles = np.array([moments(image)[0] for image in turned])
    assert np.abs(middles - 13.5).max() < 0.1


def test_shift_keeps_all_ink_that_stays_inside():
    image = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    image[:5] = image[-5:] = image[:, :5] = image[:, -5:] = 0
    for strength in STRENGTHS:
        shifted = corruptions.shift(copies(image, 200), strength)
        assert (ink(shifted) == ink(image[None])).all()
        moves = np.array([moments(each)[0] for each in shifted]) - moments(image)[0]
        assert np.allclose(moves, np.rint(moves), atol=1e-6)
        lengths = np.hypot(*moves.T)
        assert abs(lengths - strength).max() <= np.sqrt(0.5)
        assert set(np.sign(np.rint(moves)).ravel()) >= {-1, 1}
        down, right = np.rint(moves[0]).astype(int)
        assert np.array_equal(shifted[0], np.roll(image, (down, right), (0, 1)))
        # All directions alike: the mean move of 200 is short beside the moves.
        assert np.hypot(*moves.mean(axis=0)) < 0.25 * strength


def test_shift_brings_black_in():
    white = np.full((40, 6, 8), 255, np.uint8)
    shifted = corruptions.shift(white, 5)
    assert (ink(shifted) < ink(white)).all()


@pytest.mark.parametrize(("strength", "smaller", "larger"), [(1, 0.92, 1.08), (5, 0.6, 1.4)])
def test_scale_of_a_bar(strength, smaller, larger):
    scaled = corruptions.scale(copies(bar()), strength)
    lengths = np.array([moments(image)[2] for image in scaled]) / moments(bar())[2]
    assert np.minimum(abs(lengths - smaller), abs(lengths - larger)).max() < 0.03
    assert 16 < (lengths < 1).sum() < 48
    assert all(np.abs(np.subtract(moments(image)[0], 13.5)).max() < 0.02 for image in scaled)


def test_noise_has_the_deviation_that_is_said():
    grey = np.full((200, 28, 28), 128, np.uint8)
    for strength, deviation in ((1, 20), (2, 40)):
        change = corruptions.noise(grey, strength).astype(float) - 128
        if strength == 1:  # hardly ever clipped
            assert change.std() == pytest.approx(deviation, rel=0.01)
            within = (np.abs(change) <= 20.5).mean()
            assert within == pytest.approx(erf(20.5 / 20 / np.sqrt(2)), abs=0.005)
        assert abs(change.mean()) < 0.3
        neighbours = np.corrcoef(change[:, :, 1:].ravel(), change[:, :, :-1].ravel())[0, 1]
        assert abs(neighbours) < 0.02
    assert corruptions.noise(np.zeros((50, 28, 28), np.uint8), 5).max() == 255  # clipped, not wrapped


def test_blur_of_a_point_is_a_gaussian():
    point = np.zeros((1, 29, 29), np.uint8)
    point[0, 14, 14] = 255
    y, x = np.indices((29, 29)) - 14
    for strength, deviation in enumerate((0.6, 1.0, 1.4, 1.8, 2.2), 1):
        bell = np.exp(-(x * x + y * y) / (2 * deviation**2))
        expected = 255 * bell / bell.sum()
        assert np.abs(corruptions.blur(point, strength)[0] - expected).max() <= 0.6


def test_contrast_keeps_the_mean(digits):
    changed = corruptions.contrast(digits, 2).astype(float)
    means = digits.mean(axis=(1, 2))
    assert np.abs(changed.mean(axis=(1, 2)) - means).max() < 0.5
    assert changed.std(axis=(1, 2)) == pytest.approx(0.6 * digits.std(axis=(1, 2)), rel=0.02)


def test_thickness_of_a_bar():
    """One pass with a cross takes away or adds one pixel on each side; a fraction blends."""
    image = bar(18, 4)
    hard = corruptions.thickness(copies(image), 5)
    widths = (hard[:, 14] == 200).sum(axis=1)  # in the middle row
    assert set(widths.tolist()) == {2, 8}  # 4 − 2·1, 4 + 2·2
    mild = corruptions.thickness(copies(image), 1)
    edges = set(zip(mild[:, 14, 12].tolist(), mild[:, 14, 11].tolist(), strict=True))
    assert edges == {(140, 0), (200, 80)}  # 0.3 of the outer pixel is gone; 0.4 of the next one is there


def test_occlusion_is_one_square():
    white = np.full((300, 28, 28), 255, np.uint8)
    corners = []
    for strength, side in enumerate((4, 7, 10, 13, 16), 1):
        for image in corruptions.occlusion(white, strength):
            rows, columns = np.nonzero(image == 0)
            assert len(rows) == side * side
            assert np.ptp(rows) == np.ptp(columns) == side - 1
            corners.append((rows[0], columns[0]))
        assert np.ptp(corners[-300:], axis=0).tolist() == [28 - side] * 2  # anywhere inside
    assert not corruptions.occlusion(np.full((4, 3, 3), 9, np.uint8), 5).any()


@every_corruption
@pytest.mark.parametrize(
    ("images", "strength", "more", "error", "words"),
    [
        (np.zeros((2, 28, 28)), 1, {}, fd.DataError, "uint8.*float64"),
        (np.zeros((2, 784), np.uint8), 1, {}, fd.DataError, r"\[N,H,W\].*\[2, 784\]"),
        (np.zeros((2, 4, 4), np.uint8), 0, {}, fd.ConfigError, "strength"),
        (np.zeros((2, 4, 4), np.uint8), 6, {}, fd.ConfigError, "strength must be one of 1 … 5, got 6"),
        (np.zeros((2, 4, 4), np.uint8), 2.5, {}, fd.ConfigError, "strength"),
        (np.zeros((2, 4, 4), np.uint8), True, {}, fd.ConfigError, "strength"),
        (np.zeros((0, 4, 4), np.uint8), 1, {"seed": -1}, fd.ConfigError, "seed"),
        (np.zeros((2, 4, 4), np.uint8), 1, {"first": -1}, fd.ConfigError, "first"),
    ],
)
def test_what_makes_no_sense(corrupt, images, strength, more, error, words):
    with pytest.raises(error, match=words):
        corrupt(images, strength, **more)


# --- robustness -----------------------------------------------------------------------------------


class Brightness:
    """A stand-in for a network: says 1 where the mean of an image is at least 100, else 0."""

    classes, temperature = np.array([0, 1]), 1.0

    def as_inputs(self, images):
        return images

    def logits(self, inputs):
        bright = inputs.mean(axis=(1, 2)) >= 100
        return np.stack([~bright, bright], axis=1).astype(np.float32)


def test_robustness_is_the_accuracy_of_the_corrupted_images():
    random = np.random.default_rng(1)
    images = random.integers(60, 140, (40, 1, 1)) + random.integers(-60, 60, (40, 12, 12))
    images = images.astype(np.uint8)
    labels = (images.mean(axis=(1, 2)) >= 100).astype(np.uint8)
    found = fd.corruption_robustness(Brightness(), (images, labels), strengths=(2, 5), seed=3)
    assert (found.clean, found.images, found.strengths, found.seed) == (1.0, 40, (2, 5), 3)
    assert list(found.accuracy) == NAMES
    for name, values in found.accuracy.items():
        for strength, accuracy in zip((2, 5), values, strict=True):
            bright = CORRUPTIONS[name](images, strength, 3).mean(axis=(1, 2)) >= 100
            assert accuracy == (bright == labels).mean()
        assert found.mean_of[name] == pytest.approx(sum(values) / 2)
    assert found.mean == pytest.approx(np.mean([found.accuracy[name] for name in NAMES]))
    assert found.accuracy["occlusion"][1] < 1
    result = found.as_dict()
    assert result["accuracy"]["shift"] == list(found.accuracy["shift"])
    assert result["mean"] == found.mean
    with pytest.raises(AttributeError):
        found.clean = 0


def test_robustness_of_what_makes_no_sense():
    net = fd.Network([16, 2], backend="numpy")
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])
    assert fd.corruption_robustness(net, (images, labels), strengths=[1]).images == 2
    with pytest.raises(fd.ConfigError, match="1 … 5"):
        fd.corruption_robustness(net, (images, labels), strengths=(1, 9))
    with pytest.raises(fd.ConfigError, match="no strength"):
        fd.corruption_robustness(net, (images, labels), strengths=())
    with pytest.raises(fd.DataError, match="uint8"):
        fd.corruption_robustness(net, (images / 255, labels))
    with pytest.raises(fd.DataError, match="2 images need 2 labels"):
        fd.corruption_robustness(net, (images, labels[:1]))
    with pytest.raises(fd.DataError, match="no images"):
        fd.corruption_robustness(net, (images[:0], labels[:0]))
