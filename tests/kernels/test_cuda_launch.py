"""What a launch on a GPU hands to the driver, without one."""

import ctypes
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from numba import float32, float64, int64, uint64

from fastdigit.kernels.common import cuda

from ..ptx.device import Device, numba_args
from ..ptx.emulated import emulated

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
    assert len(launch.words) == 8 * len(expected)
    found = [launch.words.raw[8 * i :][: len(word)] for i, word in enumerate(expected)]
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
    for place, word in zip(launch.places, found, strict=True):
        assert ctypes.string_at(place, len(word)) == word


def test_written_down_launches_are_not_run_and_do_the_same_later():
    from fastdigit.kernels.relu import cuda as relu

    x, y = np.array([-1, 2], np.float32), np.zeros(2, np.float32)
    with emulated() as emulator, cuda.recorded() as launches:
        relu.relu(x, y)
    assert not emulator.reports
    assert y.tolist() == [0, 0]
    assert [(kernel.name, blocks, shared) for kernel, blocks, _, shared in launches] == [("relu", (1, 1), 0)]
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


# --- what the driver is told -------------------------------------------------------------------------


class Stream:
    """A stream of a stand-in for CuPy; as a context the current one. Notes what happens to it."""

    def __init__(self, ptr=11, non_blocking=False):
        self.ptr, self.non_blocking, self.noted = ptr, non_blocking, []

    def __enter__(self):
        self.outer, Stream.current = Stream.current, self
        Stream.made.append(self)
        return self

    def __exit__(self, *error):
        Stream.current = self.outer

    def begin_capture(self):
        self.noted.append("begin")

    def end_capture(self):
        self.noted.append("end")
        return SimpleNamespace(launch=lambda stream: self.noted.append(("launched on", stream.ptr)))

    def synchronize(self):
        self.noted.append("synchronize")


def test_arrays_are_copied_by_who_has_them():
    asked = []
    data = SimpleNamespace(copy_from_device_async=lambda *what: asked.append(what))
    cuda.copy_onto(SimpleNamespace(data=data, nbytes=24), SimpleNamespace(data="from there"))
    assert asked == [("from there", 24)]
    here = np.zeros(3)
    cuda.copy_onto(here, np.arange(3.0))
    assert here.tolist() == [0, 1, 2]


@pytest.fixture
def driver(monkeypatch):
    """The driver's calls, as a list of (name, arguments); ``driver.status`` is what they return."""
    from cuda.bindings import driver

    calls = SimpleNamespace(list=[], status=driver.CUresult.CUDA_SUCCESS)

    def called(name, found=()):
        def call(*arguments):
            calls.list.append((name, arguments))
            return calls.status, *found

        return call

    for name in ("cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel", "cuFuncSetAttribute"):
        monkeypatch.setattr(driver, name, called(name))
    words = SimpleNamespace(opaque=range(16))
    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", called("cuTensorMapEncodeTiled", (words,)))
    Stream.current, Stream.made = Stream(), []
    stand_in = SimpleNamespace(
        asarray=lambda a: a.copy(),
        cuda=SimpleNamespace(
            Stream=Stream,
            ExternalStream=lambda ptr: Stream(ptr),
            get_current_stream=lambda: Stream.current,
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    cuda._encoded.cache_clear()
    yield calls
    cuda._encoded.cache_clear()


def on_gpu(kernel, cooperative=False):
    kernel.__dict__["on_gpu"], kernel.cooperative = "the function", cooperative
    return kernel


@pytest.mark.parametrize("cooperative", [False, True])
def test_a_launch_joins_the_current_stream(kernel, driver, cooperative):
    launch = cuda.Launch(on_gpu(kernel, cooperative), (3, 2), arguments(), 96)
    places = ctypes.addressof(launch.places)
    launch()
    with cuda.on_stream(SimpleNamespace(cuda_stream=77)):
        launch()
    size = 3, 2, 1, 64, 1, 1, 96
    name, end = ("cuLaunchCooperativeKernel", ()) if cooperative else ("cuLaunchKernel", (0,))
    assert driver.list == [(name, ("the function", *size, stream, places, *end)) for stream in (11, 77)]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("dependent", [False, True])
def test_launches_begin_early_if_they_can_and_are_asked_to(
    kernel, driver, monkeypatch, asked, capability, dependent
):
    from cuda.bindings.driver import CUlaunchAttributeID

    monkeypatch.setattr(cuda, "limits", lambda: cuda.Limits(capability, 4, 200_000))
    kernel.dependent = dependent
    launch = cuda.Launch(on_gpu(kernel), (3, 2), arguments(), 96, asked)
    places = ctypes.addressof(launch.places)
    with cuda.on_stream(SimpleNamespace(cuda_stream=77)):
        launch()
    size = 3, 2, 1, 64, 1, 1, 96
    if not (asked and dependent and capability >= (9, 0)):
        assert driver.list == [("cuLaunchKernel", ("the function", *size, 77, places, 0))]
        return
    ((name, (config, *others)),) = driver.list
    assert (name, others) == ("cuLaunchKernelEx", ["the function", places, 0])
    names = [f"{what}Dim{axis}" for what in ("grid", "block") for axis in "XYZ"]
    assert (*(getattr(config, name) for name in names), config.sharedMemBytes) == size
    assert int(config.hStream) == 77
    (attribute,) = config.attrs
    assert config.numAttrs == 1
    assert attribute.id == CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert attribute.value.programmaticStreamSerializationAllowed == 1


def test_a_launch_that_fails_names_its_kernel(kernel, driver):
    from cuda.bindings.driver import CUresult

    driver.status = CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
    with pytest.raises(cuda.CudaError, match="nothing could not be launched: CUDA_ERROR_LAUNCH_OUT_OF"):
        cuda.Launch(on_gpu(kernel), (1,), arguments(), 0)()
    with pytest.raises(cuda.CudaError, match="nothing cannot have 60,000 bytes of shared memory"):
        cuda.Launch(on_gpu(kernel), (1,), arguments(), 60_000)


@pytest.mark.parametrize("speaks", ["__cuda_array_interface__", "__dlpack__"])
def test_kernels_take_arrays_of_other_libraries_on_their_streams(driver, monkeypatch, speaks):
    """They share their memory; the stand-in for CuPy has it in arrays of its own kind."""
    from fastdigit.kernels.gather import cuda as gather
    from fastdigit.kernels.optimizer import cuda as optimizer
    from fastdigit.kernels.relu import cuda as relu

    class Foreign:
        def __init__(self, array):
            self.array = array

    class Wrapped(np.ndarray):
        pass

    setattr(Foreign, speaks, property(lambda self: {}))
    stand_in = sys.modules["cupy"]
    stand_in.ndarray = Wrapped
    taken = []

    def take(foreign):
        taken.append(speaks)
        return foreign.array.view(Wrapped)

    stand_in.asarray = take if speaks == "__cuda_array_interface__" else None
    stand_in.from_dlpack = take if speaks == "__dlpack__" else None
    x, y = np.array([-1, 2], np.float32), np.zeros(2, np.float32)
    streams = []
    with emulated() as emulator, monkeypatch.context() as patch:
        run = emulator.launch
        patch.setattr(cuda, "launch", lambda *how: (streams.append(Stream.current.ptr), run(*how)))
        relu.relu(Foreign(x), Foreign(y), stream=SimpleNamespace(cuda_stream=77))
        assert y.tolist() == [0, 2]
        relu.relu(x=Foreign(x + 5), y=Foreign(y))
        assert y.tolist() == [4, 7]
        p, g = np.ones(3, np.float32), np.ones(3, np.float32)
        optimizer.sgd(Foreign(p), Foreign(g), None, 0.5, 0.0, 0.0, False, False)
        assert p.tolist() == [0.5] * 3
        out = np.zeros(2, np.int32)
        order = np.array([1, 0])
        gather.gather_values(Foreign(np.array([3, 4], np.int32)), Foreign(order), 0, Foreign(out), stream=88)
        assert out.tolist() == [4, 3]
    assert streams == [77, 11, 11, 88]
    assert len(taken) == 9
    with pytest.raises(TypeError, match="must be a CUDA stream or its address, got str"):
        relu.relu(x, y, stream="mine")


class OfTheHost:
    """As a tensor of PyTorch that is not on a GPU: its type has the attribute, it has not."""

    @property
    def __cuda_array_interface__(self):
        raise AttributeError("not on a GPU")

    def __dlpack__(self, **how):
        raise AssertionError("would be copied")

    def __dlpack_device__(self):
        return 1, 0


@pytest.mark.parametrize("argument", [OfTheHost(), np.zeros(2, np.float32)], ids=["DLPack", "NumPy"])
def test_arrays_of_the_host_are_refused_on_a_gpu(driver, argument):
    from fastdigit.kernels.relu import cuda as relu

    sys.modules["cupy"].ndarray = SimpleNamespace
    with pytest.raises(TypeError, match=r"array on the GPU is needed here, this .* memory of the host"):
        relu.relu(argument, argument)
    assert not driver.list


def test_every_public_operation_takes_other_arrays():
    from fastdigit.bench import checks
    from fastdigit.bench.gpu.correctness import operations_of

    from ..ptx.emulated import backend

    operations = operations_of(backend())
    assert set(operations) == set(checks.CHECKS)
    for function in operations.values():
        assert function.__code__.co_name == "taking_any"


def test_more_shared_memory_is_asked_for_once(kernel, driver):
    from cuda.bindings.driver import CUfunction_attribute

    for shared in (cuda.GIVEN, 100_000, 90_000, 200_000):
        cuda.Launch(on_gpu(kernel), (1,), arguments(), shared)
    attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    asked = [("cuFuncSetAttribute", ("the function", attribute, shared)) for shared in (100_000, 200_000)]
    assert driver.list == asked


def test_a_graph_is_captured_once_and_launched_where_the_work_is(kernel, driver):
    launch = cuda.Launch(on_gpu(kernel), (1,), arguments(), 0)
    run = cuda.graph([launch, launch])
    (captured,) = Stream.made
    assert captured.non_blocking
    assert len(driver.list) == 2
    assert captured.noted == ["begin", "end"]
    run()
    with Stream(22):
        run()
    assert captured.noted[2:] == [("launched on", 11), ("launched on", 22)]
    assert len(driver.list) == 2


def test_a_capture_that_fails_is_ended(kernel, driver):
    from cuda.bindings.driver import CUresult

    driver.status = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(cuda.CudaError):
        cuda.graph([cuda.Launch(on_gpu(kernel), (1,), arguments(), 0)])
    assert Stream.made[0].noted == ["begin", "end"]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.uint16, "BFLOAT16"), (np.float32, "TFLOAT32")],
    ids=["bfloat16", "rounded to TF32"],
)
def test_a_tensor_map_says_what_its_numbers_are(driver, dtype, kind):
    from cuda.bindings.driver import CUtensorMapDataType

    cuda._encoded.cache_clear()
    known = len(cuda.KERNELS)
    kernel = cuda.Kernel(nothing, cuda.MAP, cuda.MAP, int64, threads=64, name="nothing")
    del cuda.KERNELS[known:]
    given = cuda.TensorMap(np.zeros((64, 64), dtype), (32, 32))
    cuda.Launch(kernel, (1,), [given, given, np.int64(5)], 0)
    ((_, told),) = driver.list
    assert told[0] == getattr(CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kind}")
    cuda._encoded.cache_clear()


def test_a_tensor_map_lives_as_long_as_the_launch_that_has_it(driver):
    known = len(cuda.KERNELS)
    kernel = cuda.Kernel(nothing, cuda.MAP, cuda.MAP, int64, threads=64, name="nothing")
    del cuda.KERNELS[known:]
    matrix = np.zeros((70, 128), np.uint16)[:, :100]
    given = cuda.TensorMap(matrix, (64, 64))
    launch = cuda.Launch(kernel, (1,), [given, given, np.int64(5)], 0)
    ((name, told),) = driver.list  # the same one is encoded once
    assert name == "cuTensorMapEncodeTiled"
    assert told[1:3] == (2, matrix.ctypes.data)
    assert [[int(number) for number in numbers] for numbers in told[3:7]] == [
        [100, 70],
        [256],
        [64, 64],
        [1, 1],
    ]
    encoded = launch.arguments[0]
    assert encoded.tolist() == list(range(16))
    assert int.from_bytes(launch.words.raw[32:40], "little") == encoded.ctypes.data
    cuda._encoded.cache_clear()
    kept = weakref.ref(encoded)
    del encoded
    assert kept() is not None
    del launch
    assert kept() is None
