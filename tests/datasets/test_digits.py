"""scikit-learn's digits in MNIST's format."""

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from sklearn.model_selection import train_test_split

from fastdigit.datasets import load_digits
from fastdigit.errors import ConfigError


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_shapes_and_types(digits):
    assert digits.name == "digits"
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.test) == 360  # ⌈0.2 · 1797⌉
    assert digits.train.images.shape[1:] == (28, 28)
    assert digits.train.images.dtype == digits.train.labels.dtype == np.uint8


def test_split_is_stratified_and_seeded(digits):
    everything = np.bincount(np.concatenate([digits.train.labels, digits.test.labels]))
    np.testing.assert_array_equal(everything, np.bincount(sklearn.datasets.load_digits().target))
    np.testing.assert_allclose(np.bincount(digits.test.labels), 0.2 * everything, atol=1)
    again, other = load_digits(), load_digits(seed=1)
    np.testing.assert_array_equal(again.test.images, digits.test.images)
    assert not np.array_equal(other.test.labels, digits.test.labels)


def test_look_like_mnist(digits):
    pixels = digits.train.images.astype(float)
    grid = np.arange(28)
    for axis in (1, 2):
        centres = pixels.sum(3 - axis) @ grid / pixels.sum((1, 2))
        assert np.abs(centres - 14).max() <= 0.5 + 1e-9
        extents = [np.ptp(np.flatnonzero(image.any(2 - axis))) + 1 for image in digits.train.images]
        assert max(extents) <= 20
    assert digits.train.images.max((1, 2)).min() == 255
    assert 0.05 < (pixels / 255).mean() < 0.25  # MNIST's mean is 0.13


def ink_box(image):
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_each_image_still_shows_its_source(digits):
    """Shrunk back to its 8×8 source's size, every image correlates with that very source."""
    bunch = sklearn.datasets.load_digits()
    _, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=bunch.target)
    test.sort()
    np.testing.assert_array_equal(digits.test.labels, bunch.target[test])
    for index, image in zip(test, digits.test.images, strict=True):
        source = ink_box(bunch.images[index])
        back = Image.fromarray(ink_box(image)).resize(source.shape[::-1], Image.Resampling.BOX)
        assert np.corrcoef(np.asarray(back).ravel(), source.ravel())[0, 1] > 0.85


@pytest.mark.parametrize("test_size", [0, 1, -0.1, 1.5, 0.001, float("nan")])
def test_impossible_split(test_size):
    with pytest.raises(ConfigError, match="test_size"):
        load_digits(test_size=test_size)
