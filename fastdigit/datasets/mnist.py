"""MNIST, from a folder or downloaded once and kept; and any data set that is laid out like it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .data import Dataset, Images
from .download import by_hand, cached, home
from .idx import read_idx

# Both serve NAME.gz; their gzip wrappers may differ, so the hashes are of what is inside.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FILES = tuple(SHA256)
FOLDER = "mnist"


def load_mnist(
    root: str | os.PathLike | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    sha256: Mapping[str, str] = SHA256,
) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28.

    From ``root``, the folder of its four idx files (gzipped or not); without it from
    ``$FASTDIGIT_DATA/mnist``; without that from the user's cache folder, where files that are missing
    or damaged are downloaded first, from each of ``mirrors`` (URLs that end in /) in turn.
    ``sha256`` maps the four files to the hashes of their uncompressed content, which are always verified.
    Dtypes: images and labels uint8.
    Errors: DataError if ``root`` or ``$FASTDIGIT_DATA`` was given and files are missing there, cannot be
    read or are not MNIST's; DownloadError if no mirror gave a file, with what to do by hand. A download
    that fails or is interrupted leaves nothing in the cache folder.
    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proc. IEEE 86 (1998).
    """
    if root is not None or os.environ.get("FASTDIGIT_DATA"):
        files = _find(home(FOLDER) if root is None else Path(root))
        return _dataset(
            "mnist", [(files[name], read_idx(files[name], sha256=sha256[name])) for name in FILES]
        )

    cache, hint = home(FOLDER), by_hand(home(FOLDER), FILES)
    parts = [cached(cache / f"{name}.gz", sha256[name], mirrors, hint) for name in FILES]
    return _dataset("mnist", parts)


def load_folder(root: str | os.PathLike, name: str) -> Dataset:
    """A data set laid out like MNIST (Fashion-MNIST, KMNIST, your own …): four idx files in a folder.

    ``name`` is what to call it. The files are named as MNIST's, ``train-images-idx3-ubyte`` and so on,
    gzipped or not; ``write_idx`` makes such files.
    Shapes: images [N,H,W], labels [N], 0..9.
    Errors: DataError naming the files that are missing, or the one that cannot be used and the reason.
    """
    files = _find(Path(root))
    return _dataset(name, [(files[part], read_idx(files[part])) for part in FILES])


def find_mnist() -> tuple[Path, bool]:
    """The folder where :func:`load_mnist` looks without ``root``, and whether the files are there."""
    try:
        _find(home(FOLDER))
        return home(FOLDER), True
    except DataError:
        return home(FOLDER), False


def _find(root: Path) -> dict[str, Path]:
    """Where each of the four files is in ``root``, under any of the names that are in use."""
    files = {}
    for name in FILES:
        stem, _, suffix = name.partition("-idx")
        for spelling in (name, f"{stem}.idx{suffix}"):
            for path in (root / spelling, root / f"{spelling}.gz"):
                if path.is_file():
                    files.setdefault(name, path)
    missing = [name for name in FILES if name not in files]
    if missing:
        problem = f"lacks {', '.join(missing)} (or the same with .gz)" if root.is_dir() else "is not a folder"
        raise DataError(f"{root} {problem}; it must hold the four idx files {', '.join(FILES)}")
    return files


def _dataset(name: str, parts: Sequence[tuple[Path, np.ndarray]]) -> Dataset:
    """Training images and labels, test images and labels, each with its path → a Dataset."""
    halves = []
    for (images_path, images), (labels_path, labels) in (parts[:2], parts[2:]):
        try:
            halves.append(Images(images, labels))
        except DataError as error:
            raise DataError(f"{images_path} and {labels_path.name}: {error}") from error
    return Dataset(name, *halves)
