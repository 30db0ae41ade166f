"""Fixtures for all tests: the real data, and every backend that this machine has."""

import gc
import os
from pathlib import Path

import pytest

import fastdigit as fd
from fastdigit.kernels.matmul.cpu import LANES

from .ptx import assembled

PROJECT = Path(__file__).resolve().parent.parent
USABLE_BACKENDS = [name for name, state in fd.backends().items() if state == "ok"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Groups for ``pytest -n 2``: compiled kernels that are interpreted, single ones and whole trainings,
    each of which takes one core; those that are assembled, and those that are compiled for other processors,
    for who is ready first; and all others, which may use every core and must not be there twice."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, name = nodeid.partition("::")
            if name.startswith(("test_narrower_vectors", "test_smaller_tiles")):
                return "other processors"
            if path.startswith("tests/kernels/test_cuda_code"):
                return "assembled"
            if path.startswith(("tests/kernels/test_cuda_epoch", "tests/kernels/test_cuda_steps")):
                return "interpreted trainings"
            return "interpreted" if path.startswith(("tests/ptx/", "tests/kernels/test_cuda")) else "others"

    return Groups(config, log)


def pytest_collection_finish(session):
    """Numba makes many objects when it compiles. Looking for garbage each time among thousands of tests and
    what they import, which stay to the end, takes a tenth of that time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="session", autouse=True)
def code_of_all_processes(tmp_path_factory):
    """What one process of ``pytest -n 2`` has compiled for a GPU is there for the others."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assembled.FOLDER = tmp_path_factory.getbasetemp().parent / "ptx"


@pytest.fixture(scope="session")
def mnist_root():
    """The folder of the four MNIST files; tests that need it are skipped where it is absent."""
    data = Path(os.environ.get("FASTDIGIT_DATA", PROJECT.parent / "shared" / "data"))
    if not (data / "mnist").is_dir():
        pytest.skip(f"MNIST is not at {data / 'mnist'}: set FASTDIGIT_DATA to the folder that holds mnist/")
    return data / "mnist"


# Of processors that have less than most here: numbers of float32 in a vector, and what Numba calls them.
NARROWER = {"avx2": (8, "haswell", "+avx2,+fma,+avx,+sse4.2"), "sse": (4, "nehalem", "+sse4.2")}


@pytest.fixture(params=NARROWER)
def narrower(request, tmp_path_factory):
    """(numbers in a vector, environment of a process that compiles for such a processor). What one compiles
    is there for the next."""
    if LANES < 8:
        pytest.skip("needs a processor with AVX2; on one without it all other tests run code for less")
    lanes, name, features = NARROWER[request.param]
    kept = tmp_path_factory.getbasetemp() / f"code for {request.param}"
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(kept)}
    return lanes, {**os.environ, **environment}


@pytest.fixture(params=USABLE_BACKENDS)
def backend(request):
    """Every backend that can run here, one after the other."""
    return fd.get_backend(request.param)
