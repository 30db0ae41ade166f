"""Fixtures for all tests: the real data, and every backend that this machine has."""

import os
from pathlib import Path

import pytest

import fastdigit as fd

PROJECT = Path(__file__).resolve().parent.parent
USABLE_BACKENDS = [name for name, state in fd.backends().items() if state == "ok"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Two groups for ``pytest -n 2``: compiled kernels that are interpreted, which takes one core for half of
    the time, and all others, which may use every core and must not be there twice."""
    from xdist.scheduler import LoadScopeScheduling

    class TwoGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return "interpreted" if path.startswith(("tests/ptx/", "tests/kernels/test_cuda")) else "others"

    return TwoGroups(config, log)


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
