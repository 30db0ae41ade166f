"""Random deformations: their definition on every backend, and what they look like."""

import math

import numpy as np
import pytest
from scipy import ndimage

from fastdigit.bench import checks
from fastdigit.kernels.augment import cpu
from fastdigit.kernels.augment.reference import LEVELS, SIDE, deformation, deformed

from ..ptx.emulated import emulated

KEY, STEP = (5, 1), 7


@pytest.mark.parametrize(("check", "case"), checks.parameters("augment"))
def test_augment(backend, check, case):
    check(backend.augment, backend, case)


@pytest.mark.parametrize("case", [checks.AUGMENT[i] for i in (0, 2, 5, 8)], ids=str)
def test_on_a_gpu(case):
    from ..ptx.emulated import backend

    side = backend()
    with emulated():
        checks.check_augment(side.augment, side, case)


@pytest.mark.parametrize("case", checks.AUGMENT[:2], ids=str)
def test_float64(float64_backend, case):
    checks.check_augment(float64_backend.augment, float64_backend, case, "float64")


def digit(height=28, width=28):
    """A smooth blob that lies off the middle and is no symmetric figure."""
    y, x = np.mgrid[:height, :width]
    blob = np.exp(-((x - 17) ** 2) / 30 - ((y - 11) ** 2) / 12) + np.exp(-((x - 10) ** 2 + (y - 16) ** 2) / 8)
    return (250 * np.minimum(blob, 1)).astype(np.uint8)


def level(block, place, image=0):
    word = checks.philox((block, image, STEP, 0), KEY)[place]
    return -1 + 2 * (word >> 22) / (LEVELS - 1)


def one(image, **strengths):
    how = deformation(*image.shape, **strengths)
    return deformed(np, image.reshape(1, -1), np.array([0]), how, KEY, STEP).reshape(image.shape)


def test_the_affine_part_is_that_of_scipy():
    strengths = {"rotation": 30, "scale": 0.3, "shear": 0.4, "shift": 2.5}
    angle = math.radians(30) * level(0, 0)
    wide, tall = 1 / (1 + 0.3 * level(0, 1)), 1 / (1 + 0.3 * level(0, 2))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    whole = turn @ [[1, 0.4 * level(0, 3)], [0, 1]] @ np.diag([wide, tall])  # of (x, y)
    middle, by = np.full(2, 13.5), 2.5 * np.array([level(1, 0), level(1, 1)])
    whole, by = whole[::-1, ::-1], by[::-1]  # scipy counts (y, x)
    image = digit()
    expected = ndimage.affine_transform(image.astype(float), whole, middle + by - whole @ middle, order=1)
    found = one(image, **strengths).astype(float)
    inked = expected > 24  # what is fainter becomes paper
    assert inked.sum() > 60
    assert np.abs(found - expected)[inked].max() < 3
    assert np.abs(one(image).astype(float) - expected)[inked].max() > 50  # it was a change


def test_displacements_are_as_large_and_as_smooth_as_asked():
    """A ramp shows where each pixel comes from."""
    elastic, smoothness, count = 1.5, 4.0, 300
    ramps = np.stack([np.tile(40 + 6 * np.arange(28), (28, 1)), np.tile(40 + 6 * np.arange(28), (28, 1)).T])
    how = deformation(28, 28, elastic=elastic, smoothness=smoothness)
    images = ramps.astype(np.uint8).reshape(2, -1)
    moves = []
    for axis in range(2):
        many = np.broadcast_to(images[axis], (count, 784))
        found = deformed(np, many, np.arange(count), how, KEY, STEP).reshape(count, 28, 28)
        moves.append(((found.astype(float) - ramps[axis]) / 6)[:, 7:21, 7:21])
    for move in moves:
        assert move.std() == pytest.approx(elastic, rel=0.06)
        assert abs(move.mean()) < 0.1
        # Noise that a Gaussian of deviation σ has smoothed is correlated as exp(-d² / 4σ²).
        for distance in (2, 4, 8):
            correlation = (move[:, :, distance:] * move[:, :, :-distance]).mean() / move.var()
            assert correlation == pytest.approx(math.exp(-(distance**2) / (4 * smoothness**2)), abs=0.06)
    assert abs((moves[0] * moves[1]).mean()) < 0.1 * elastic**2  # the axes know nothing of each other


def test_strokes_become_thicker_and_thinner():
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 12:16] = 200
    how = deformation(28, 28, thickness=1)
    many = np.broadcast_to(image.reshape(1, -1), (400, 784))
    widths = deformed(np, many, np.arange(400), how, KEY, STEP).reshape(-1, 28, 28)[:, 14].sum(axis=1) / 200
    assert widths.min() == pytest.approx(2, abs=0.1)
    assert widths.max() == pytest.approx(6, abs=0.1)
    assert widths.mean() == pytest.approx(4, abs=0.2)


def test_noise_is_as_strong_as_asked_and_stays_inside():
    grey = np.full((1, 784), 128, np.uint8)
    many = np.broadcast_to(grey, (200, 784))
    change = deformed(np, many, np.arange(200), deformation(28, 28, noise=40), KEY, STEP).astype(int) - 128
    of_each = change.std(axis=1) * math.sqrt(3)  # evenly from -n to n; n evenly from 0 to 40
    for share in (0, 0.25, 0.5, 0.75, 1):
        assert np.quantile(of_each, share) == pytest.approx(40 * share, abs=3)
    assert np.abs(change.mean(axis=1)).max() < 4
    for level in (0, 255):
        edge = np.broadcast_to(np.uint8(level), (9, 784))
        found = deformed(np, edge, np.arange(9), deformation(28, 28, noise=255), KEY, STEP)
        assert ((found == level).mean(axis=1) > 0.4).all()


def test_a_square_becomes_paper_somewhere_and_ink_is_faint():
    many = np.full((3000, 784), 200, np.uint8)
    how = deformation(28, 28, erase=12, faint=0.5)
    found = deformed(np, many, np.arange(3000), how, KEY, STEP).reshape(-1, 28, 28)
    hidden = found == 0
    side = np.sqrt(hidden.sum(axis=(1, 2)))
    for k in range(1, 12):  # drawn evenly, and rounded to whole pixels
        assert (side == k).mean() == pytest.approx(1 / 12, abs=0.015)
    assert (side == 0).mean() == (side <= 0.5).mean() == pytest.approx(1 / 24, abs=0.01)
    for axis in (1, 2):
        along = hidden[side == 12].any(axis=axis)
        assert (along.sum(axis=1) == 12).all()  # it is a square
        first = along.argmax(axis=1)
        assert first.min() == 0
        assert first.max() == 28 - 12  # and wholly inside, anywhere
        assert first.mean() == pytest.approx(8, abs=1.5)
    ink = found.max(axis=(1, 2)) / 200
    for share in (0, 0.25, 0.5, 0.75, 1):
        assert np.quantile(ink, share) == pytest.approx(0.5 + 0.5 * share, abs=0.02)
    everything = deformation(6, 9, erase=100)
    assert everything.tables[SIDE].max() == 6  # at most the shorter side


def test_an_image_is_deformed_alike_wherever_it_stands():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 784)).astype(np.uint8)
    how = deformation(28, 28, rotation=20, elastic=1.2, thickness=0.3, noise=5, erase=9, faint=0.5)
    order, whole = random.permutation(60), np.empty((60, 784), np.float32)
    cpu.augment(images, order, 0, how, KEY, STEP, whole, threads=1)
    for threads in (2, 3):
        again = np.empty_like(whole)
        cpu.augment(images, order, 0, how, KEY, STEP, again, threads=threads)
        np.testing.assert_array_equal(again, whole)
    alone = np.empty((1, 784), np.float32)
    cpu.augment(images, order, 17, how, KEY, STEP, alone)
    np.testing.assert_array_equal(alone[0], whole[17])
    cpu.augment(images, order, 17, how, KEY, STEP + 1, alone)
    assert (alone[0] != whole[17]).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((4, 783), np.uint8)}, ValueError, "784 pixels"),
        ({"images": np.zeros((4, 784), np.float32)}, TypeError, "uint8"),
        ({"images": np.zeros((4, 1568), np.uint8)[:, ::2]}, ValueError, "next to each other"),
        ({"order": np.array([0, 4])}, IndexError, "0 … 3"),
        ({"start": 1}, ValueError, "order has 2 elements"),
        ({"out": np.zeros((2, 784))}, TypeError, "float32"),
        ({"out": np.zeros((2, 700), np.float32)}, ValueError, "shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    arguments = {
        "images": np.zeros((4, 784), np.uint8),
        "order": np.array([0, 1]),
        "start": 0,
        "deformation": deformation(28, 28),
        "key": KEY,
        "step": STEP,
        "out": np.zeros((2, 784), np.float32),
    }
    with pytest.raises(error, match=message):
        cpu.augment(**{**arguments, **change})
