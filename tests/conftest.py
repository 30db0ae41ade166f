"""Fixtures for all tests: the real data, and every backend that this machine has."""

import os
from pathlib import Path

import pytest

import fastdigit as fd

PROJECT = Path(__file__).resolve().parent.parent
USABLE_BACKENDS = [name for name, state in fd.backends().items() if state == "ok"]


def pytest_collection_modifyitems(items):
    """Two groups for two processes (``-n 2 --dist loadgroup``): compiled kernels that are interpreted, which
    takes one core, and all that may use every core."""
    for item in items:
        interpreted = item.path.name.startswith("test_cuda") or item.path.parent.name == "ptx"
        item.add_marker(pytest.mark.xdist_group("interpreted" if interpreted else "run"))


@pytest.fixture(scope="session")
def mnist_root():
    """The folder of the four MNIST files; tests that need it are skipped where it is absent."""
    data = Path(os.environ.get("FASTDIGIT_DATA", PROJECT.parent / "shared" / "data"))
    if not (data / "mnist").is_dir():
        pytest.skip(f"MNIST is not at {data / 'mnist'}: set FASTDIGIT_DATA to the folder that holds mnist/")
    return data / "mnist"


@pytest.fixture(params=USABLE_BACKENDS)
def backend(request):
    """Every backend that can run here, one after the other."""
    return fd.get_backend(request.param)
