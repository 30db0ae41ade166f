"""Small, quick, learnable data for tests of the layer above the kernels."""

import numpy as np
import pytest

import fastdigit as fd


@pytest.fixture
def blobs():
    """300 "images" of 6×6 whose bright quadrant tells the class (0 … 3), with noise."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 4, 300).astype(np.uint8)
    images = random.integers(0, 90, (300, 6, 6)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 3 * (label // 2), 3 * (label % 2)
        image[row : row + 3, column : column + 3] += 60
    return fd.Images(images, labels)


@pytest.fixture
def make_network(backend):
    """``make_network(dropout=…)``: always the same small network, on every backend in turn."""

    def make(**options):
        return fd.Network([36, 16, 12, 4], **{"backend": backend, "seed": 3, **options})

    return make


def same_bits(a, b):
    """Whether two networks hold exactly the same parameters."""
    mine, theirs = a.get_parameters(), b.get_parameters()
    return mine.keys() == theirs.keys() and all(
        mine[name].tobytes() == theirs[name].tobytes() for name in mine
    )
