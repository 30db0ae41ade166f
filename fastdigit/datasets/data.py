"""Images with their labels, and a data set of two such: one to train on, one to test on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

CLASSES = 10


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """N grey images and the digit that each of them shows.

    Shapes: images [N,H,W] (MNIST: H = W = 28), labels [N].
    Dtypes: both uint8. Labels of another integer type are converted; arrays that are not C-contiguous
    are copied.
    Errors: DataError for another shape or dtype, for counts that differ, and for a label above 9;
    the message names the index.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8:
            raise DataError(f"images must be uint8, 0..255, not {images.dtype}; scale and convert them first")
        if images.ndim != 3:
            raise DataError(f"images must be shaped [N,H,W], not {list(images.shape)}; reshape them first")
        if labels.ndim != 1 or labels.dtype.kind not in "ui":
            raise DataError(f"labels must be integers shaped [N], not {labels.dtype} {list(labels.shape)}")
        if len(images) != len(labels):
            missing = "label" if len(labels) < len(images) else "image"
            raise DataError(
                f"{len(images)} images but {len(labels)} labels: "
                f"index {min(len(images), len(labels))} has no {missing}"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
        if wrong.size:
            index = wrong[0]
            raise DataError(f"label {labels[index]} at index {index} is not a digit 0..9")
        object.__setattr__(self, "images", np.ascontiguousarray(images))
        object.__setattr__(self, "labels", np.ascontiguousarray(labels, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.images.shape[1:]
        return f"<{len(self):,} images, {height}×{width}>"

    def subset(self, classes: Iterable[int]) -> Images:
        """Only the images of ``classes``, in the same order, with their labels unchanged.

        Errors: DataError if ``classes`` is empty or holds one that no image here has.
        """
        wanted = list(classes)
        if not wanted:
            raise DataError("no classes given; name at least one digit, such as [3, 8]")
        present = np.unique(self.labels)
        for label in wanted:
            if label not in present:
                raise DataError(f"no image is labelled {label!r}; the labels here are {present.tolist()}")
        return self._pick(np.flatnonzero(np.isin(self.labels, wanted)))

    def take(self, indices: np.ndarray) -> Images:
        """The images at ``indices`` (integers, shaped [n], each 0..N−1), in that order.

        Errors: DataError for another dtype or shape (a mask: use ``np.flatnonzero(mask)``), and for an
        index outside 0..N−1.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "ui"):
            raise DataError(f"indices must be integers shaped [n], not {indices.dtype} {list(indices.shape)}")
        outside = np.flatnonzero((indices < 0) | (indices >= len(self)))
        if outside.size:
            at = outside[0]
            raise DataError(f"index {indices[at]} (number {at} of the indices) is outside 0..{len(self) - 1}")
        return self._pick(indices.astype(np.intp))

    def _pick(self, indices: np.ndarray) -> Images:
        return Images(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on and, kept apart, images to test on.

    Errors: DataError if the two differ in height or width.
    """

    name: str
    train: Images
    test: Images

    def __post_init__(self) -> None:
        train, test = self.train.images.shape[1:], self.test.images.shape[1:]
        if train != test:
            raise DataError(
                f"{self.name}: training images are {list(train)}, test images {list(test)} pixels"
            )

    def subset(self, classes: Iterable[int]) -> Dataset:
        """The same data set with only the images of ``classes``; see :meth:`Images.subset`."""
        classes = list(classes)
        return Dataset(self.name, self.train.subset(classes), self.test.subset(classes))
