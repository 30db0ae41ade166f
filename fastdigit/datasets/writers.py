"""Who wrote MNIST's digits: the series and the writer of every image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError
from .download import by_hand, cached, home
from .idx import read_idx

MIRRORS = ("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",)
FILES = {"train": "qmnist-train-labels-idx2-int", "test": "qmnist-test-labels-idx2-int"}
SHA256 = {  # of the uncompressed content
    "train": "bb1b6e1ec7b04fd5696f1ed50b5f58f8ef195118edd5c93c81783df9740b8ac5",
    "test": "92d0ccb8c25f9c6534270fb4be7e1d24a1c6d315edfc8a638bfbd31c70f362dd",
}
IMAGES = {"train": 60_000, "test": 10_000}  # the first rows describe MNIST's, others QMNIST's own
FOLDER = "writers"


@dataclass(frozen=True, eq=False)
class Writers:
    """For each image the ``digit``, the ``series`` (0: employees of the census bureau, 4: students of a high
    school) and the number of the ``writer``.

    Shapes: [N] each. Dtypes: uint8, int32, int32.
    """

    digit: np.ndarray
    series: np.ndarray
    writer: np.ndarray

    def __len__(self) -> int:
        return len(self.digit)

    def take(self, indices: np.ndarray) -> Writers:
        """The rows at ``indices``."""
        return Writers(self.digit[indices], self.series[indices], self.writer[indices])

    def check(self, labels: np.ndarray) -> None:
        """DataError, with the index, unless these are the writers of images with such ``labels``."""
        labels = np.asarray(labels)
        if labels.shape != self.digit.shape:
            raise DataError(
                f"the writers of {len(self):,} images are known, but there are {labels.size:,} labels: "
                "they are not MNIST's"
            )
        wrong = np.flatnonzero(labels != self.digit)
        if wrong.size:
            raise DataError(
                f"the image at index {wrong[0]} is labelled {labels[wrong[0]]}, but its writer wrote a "
                f"{self.digit[wrong[0]]}: these are not MNIST's images in MNIST's order"
            )


def load_writers(
    split: str,
    labels: np.ndarray | None = None,
    root: str | os.PathLike | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    sha256: Mapping[str, str] = SHA256,
) -> Writers:
    """The :class:`Writers` of MNIST's "train" or "test" images. No writer is in both.

    ``labels`` are those of the images that they are wanted for, to make sure that they belong together.
    The file is found as :func:`load_mnist` finds its own: in the folder ``root``; without it in
    ``$FASTDIGIT_DATA/writers``; without that in the user's cache folder, where it is downloaded from
    ``mirrors`` first. ``sha256`` maps "train" and "test" to the hash of the uncompressed content.
    Errors: ConfigError for another split; DataError for a file that is missing in a folder that was named,
    or is damaged, or another, and for labels that differ, with the index; DownloadError if no mirror
    gave the file.
    Source: C. Yadav, L. Bottou, "Cold case: the lost MNIST digits", NeurIPS 2019 (QMNIST, BSD licence).
    """
    if split not in FILES:
        raise ConfigError(f"split must be 'train' or 'test', got {split!r}")
    folder, file = home(FOLDER) if root is None else Path(root), f"{FILES[split]}.gz"
    if root is not None or os.environ.get("FASTDIGIT_DATA"):
        plain = folder / FILES[split]
        path = plain if plain.is_file() else folder / file
        if not path.is_file():
            raise DataError(f"{folder} lacks {file}: put it there; it is at {MIRRORS[0]}{file}")
        table = read_idx(path, sha256=sha256[split])
    else:
        path = folder / file
        _, table = cached(path, sha256[split], mirrors, by_hand(folder, FILES.values()))
    if table.ndim != 2 or table.shape[0] < IMAGES[split] or table.shape[1] < 3:
        raise DataError(
            f"{path}: holds {list(table.shape)}, not {IMAGES[split]} rows of digit, series, writer"
        )
    digit, series, writer = table[: IMAGES[split], :3].T
    writers = Writers(digit.astype(np.uint8), series.copy(), writer.copy())
    if labels is not None:
        writers.check(labels)
    return writers
