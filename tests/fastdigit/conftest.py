"""Small, quick, learnable data for tests of the layer above the kernels, and what tests of commands share."""

import numpy as np
import pytest
from PIL import Image

import fastdigit as fd
from fastdigit.cli import main


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


# --- commands -------------------------------------------------------------------------------------

QUICK = ("--epochs", "12", "--hidden", "32", "--backend", "numpy")


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FASTDIGIT_BACKEND", raising=False)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run on the digits data; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def picture(tmp_path):
    """A PNG of a test digit, enlarged, dark on light, and the digit that it shows."""
    test = fd.load_digits().test
    index = int(np.flatnonzero(test.labels == 7)[0])
    Image.fromarray(255 - test.images[index]).resize((140, 140)).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def error_of(capsys, arguments, status):
    """The one line on stderr that the command must end with."""
    assert main([str(part) for part in arguments]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
