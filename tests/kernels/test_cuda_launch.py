"""What a launch on a GPU hands to the driver, without one."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from numba import float32, float64, int64, uint64

from fastdigit.kernels.common import cuda

from ..ptx.emulated import emulated
from ..ptx.ptxrun import Device, numba_args

KINDS = (cuda.FLOATS, int64, cuda.WORDS, float32, uint64, float64, cuda.LONGS)


def nothing(*arguments):
    pass


@pytest.fixture
def kernel():
    known = len(cuda.KERNELS)
    yield cuda.Kernel(nothing, *KINDS, threads=64, name="nothing")
    del cuda.KERNELS[known:]


def arguments():
    vectors = np.arange(7, dtype=np.float32), np.arange(5, dtype=np.uint32), np.arange(3, dtype=np.int64)
    return [vectors[0], 2**40, vectors[1][2:], 0.5, 2**63 + 1, 0.1, vectors[2]]


def test_words_are_those_that_compiled_code_takes(kernel):
    """The interpreter's, which runs the compiled code, but for the address."""
    given, device = arguments(), Device(1 << 16)
    numbers = [cuda._convert(a, kind) for a, kind in zip(given, KINDS, strict=True)]
    launch = cuda.Launch(kernel, (3, 2), numbers, 0)
    copies = [device.array(a) if isinstance(a, np.ndarray) else a for a in numbers]
    expected = [np.asarray(word).tobytes() for word in numba_args(*copies)]
    found = [bytes(word) for word in launch.words]
    addresses = {
        copy.ptr: cuda.address_of(a) for copy, a in zip(copies, given, strict=True) if hasattr(copy, "ptr")
    }
    for own, theirs in zip(found, expected, strict=True):
        number = int.from_bytes(theirs, "little")
        if number in addresses:
            theirs = addresses[number].to_bytes(8, "little")
        assert own == theirs
    assert launch.size == (3, 2, 1, 64, 1, 1, 0)
    # The driver reads them through these.
    for place, word in zip(launch.places, launch.words, strict=True):
        assert ctypes.string_at(place, ctypes.sizeof(word)) == bytes(word)


def test_written_down_launches_are_not_run_and_do_the_same_later():
    from fastdigit.kernels.relu import cuda as relu

    x, y = np.array([-1, 2], np.float32), np.zeros(2, np.float32)
    with emulated() as emulator, cuda.recorded() as launches:
        relu.relu(x, y)
    assert not emulator.reports
    assert y.tolist() == [0, 0]
    assert [(kernel.name, blocks, shared) for kernel, blocks, _, shared in launches] == [("relu", (1,), 0)]
    with emulated():
        run = cuda.graph([cuda.prepared(*launch) for launch in launches])
        run()
        assert y.tolist() == [0, 2]
        x[0] = 5
        run()
        assert y.tolist() == [5, 2]
        relu.relu(x, y)  # and is not written down
    assert len(launches) == 1


def test_a_failure_of_the_driver_says_what_failed():
    from cuda.bindings import driver

    cuda._check(driver.CUresult.CUDA_SUCCESS, "it")
    with pytest.raises(cuda.CudaError, match="it could not be launched: CUDA_ERROR_INVALID_VALUE"):
        cuda._check(driver.CUresult.CUDA_ERROR_INVALID_VALUE, "it could not be launched")


@pytest.mark.parametrize(
    ("least", "only", "runs"),
    [
        ((7, 5), None, [True, True, True, True]),
        ((8, 0), None, [False, True, True, True]),
        ((8, 0), (9, 0), [False, False, True, False]),
    ],
)
def test_which_gpus_a_kernel_is_for(least, only, runs):
    known = len(cuda.KERNELS)
    kernel = cuda.Kernel(nothing, threads=32, name="nothing", least=least, only=only)
    del cuda.KERNELS[known:]
    assert [kernel.runs_on(capability) for capability in ((7, 5), (8, 6), (9, 0, "a"), (10, 0))] == runs


@pytest.mark.parametrize(
    "stream",
    [
        77,
        SimpleNamespace(cuda_stream=77),
        SimpleNamespace(ptr=77),
        SimpleNamespace(handle=ctypes.c_void_p(77).value),
        SimpleNamespace(__cuda_stream__=lambda: (0, 77), ptr=5),
    ],
    ids=["address", "torch", "cupy", "numba", "protocol"],
)
def test_streams_of_other_libraries(stream):
    assert cuda._address_of_stream(stream) == 77


def test_what_is_no_stream():
    with pytest.raises(TypeError, match="must be a CUDA stream or its address, got str"):
        cuda._address_of_stream("mine")
