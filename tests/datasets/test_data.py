"""Images and Dataset: what they accept, what they refuse and by what name."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdigit.datasets import Dataset, Images
from fastdigit.errors import DataError


def images_of(labels, height=28, width=28) -> Images:
    """Images whose every pixel is their index."""
    labels = np.array(labels, np.uint8)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None]
    return Images(np.broadcast_to(pixels, (len(labels), height, width)), labels)


def test_keeps_pixels_and_labels():
    images = images_of([3, 1, 4], 5, 7)
    assert len(images) == 3
    assert images.images.shape == (3, 5, 7)
    assert images.images.flags.c_contiguous
    assert images.labels.dtype == np.uint8


def test_integer_labels_are_converted():
    images = Images(np.zeros((2, 4, 4), np.uint8), np.array([9, 0], np.int64))
    assert images.labels.dtype == np.uint8
    assert images.labels.tolist() == [9, 0]


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (
            np.zeros((2, 4, 4), np.uint8),
            np.zeros(3, np.uint8),
            r"2 images but 3 labels: index 2 has no image",
        ),
        (
            np.zeros((3, 4, 4), np.uint8),
            np.zeros(1, np.uint8),
            r"3 images but 1 labels: index 1 has no label",
        ),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 10]), r"label 10 at index 1"),
        (np.zeros((2, 4, 4), np.uint8), np.array([-1, 0]), r"label -1 at index 0"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 266]), r"label 266 at index 1"),
        (np.zeros((2, 4, 4)), np.zeros(2, np.uint8), "float64"),
        (np.zeros((2, 16), np.uint8), np.zeros(2, np.uint8), r"\[2, 16\]"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2), "float64"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1), np.uint8), r"\[2, 1\]"),
    ],
)
def test_refuses(images, labels, reason):
    with pytest.raises(DataError, match=reason):
        Images(images, labels)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.data())
def test_subset_keeps_exactly_the_classes_in_order(labels, data):
    classes = data.draw(st.sets(st.sampled_from(sorted(set(labels))), min_size=1))
    part = images_of(labels).subset(classes)
    kept = [i for i, label in enumerate(labels) if label in classes]
    assert part.images[:, 0, 0].tolist() == kept
    assert part.labels.tolist() == [labels[i] for i in kept]


@pytest.mark.parametrize(
    ("classes", "reason"), [([], "no classes"), ([1, 10], "10"), ([2], "2"), ("1", "'1'")]
)
def test_subset_refuses_empty_and_unknown_classes(classes, reason):
    with pytest.raises(DataError, match=reason):
        images_of([0, 1, 3]).subset(classes)


def test_take():
    images = images_of([0, 1, 3])
    assert images.take(np.array([2, 0, 2])).labels.tolist() == [3, 0, 3]
    assert len(images.take([])) == 0


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        ([0, 3], r"index 3 \(number 1"),
        ([-1], "index -1"),
        ([True, False, True], "bool"),
        ([0.0], "float"),
        (1, "\\[\\]"),
    ],
)
def test_take_refuses(indices, reason):
    with pytest.raises(DataError, match=reason):
        images_of([0, 1, 3]).take(indices)


def test_dataset():
    data = Dataset("mine", images_of([0, 1, 2]), images_of([2, 1]))
    part = data.subset(label for label in (1, 2))
    assert (part.name, len(part.train), len(part.test)) == ("mine", 2, 2)
    with pytest.raises(DataError, match="mine"):
        Dataset("mine", images_of([0]), images_of([0], 27))


def test_import_is_light():
    heavy = "{'sklearn', 'scipy', 'PIL', 'pooch', 'requests', 'numba'}"
    code = f"import sys, fastdigit.datasets; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
