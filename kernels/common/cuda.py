"""The one import of numba.cuda: kernels for the GPU, their launches, and what a machine needs for them.

Kernels take whole vectors (:func:`flat`) and distances between rows instead of matrices: an address
with a vector of numbers behind it is what the memory of a GPU likes, and the same kernel runs in
Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``), where there are no addresses.
"""

import os
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from numba.core import config

EXTRAS = "'fastdigit[cuda13]', or [cuda12] for a driver of CUDA 12"

try:
    import numba_cuda  # without it numba.cuda is one that nobody maintains
    from numba import cuda, types
except ImportError as error:
    raise ImportError(f"numba-cuda is not installed: pip install {EXTRAS} ({error})") from error

SIMULATED = bool(config.ENABLE_CUDASIM)
LEAST_CAPABILITY = (7, 5)
# Of arrays in shared memory that are read four numbers at a time. The simulator knows no alignment.
ALIGNED = None if SIMULATED else 16

FLOATS, DOUBLES, BYTES, INTS, WORDS, LONGS = (
    types.Array(dtype, 1, "C")
    for dtype in (types.float32, types.float64, types.uint8, types.int32, types.uint32, types.int64)
)

# What a number is given as, for what a kernel was compiled for.
NUMBERS = {
    types.float32: np.float32,
    types.float64: np.float64,
    types.int64: np.int64,
    types.uint64: np.uint64,
}

GIVEN = 48 * 1024  # bytes of shared memory that a block gets without asking

KERNELS = []  # all that have been made, for tests and tables that go through them


class CudaError(RuntimeError):
    """No GPU that can be used, with what was found and what is needed."""


def require_gpu():
    """What computes here, in words. CudaError unless there is a GPU with all that kernels need."""
    if SIMULATED:
        return "the simulator of Numba, on the CPU"
    try:
        import cupy
    except ImportError as error:
        raise CudaError(
            f"CuPy, which holds the arrays, is not installed: pip install {EXTRAS} ({error})"
        ) from error
    runtime = cupy.cuda.runtime
    driver, toolkit = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        raise CudaError("no NVIDIA driver was found: install one (nvidia-smi shows whether it works)")
    if driver // 1000 < toolkit // 1000:
        raise CudaError(
            f"the NVIDIA driver is for CUDA {_version(driver)}, the installed packages need CUDA "
            f"{_version(toolkit)}: update the driver, or pip install 'fastdigit[cuda{driver // 1000}]'"
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise CudaError(f"the NVIDIA driver (CUDA {_version(driver)}) finds no GPU: {error}") from error
    if count == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = "" if hidden is None else f", with CUDA_VISIBLE_DEVICES={hidden!r}"
        raise CudaError(f"the NVIDIA driver (CUDA {_version(driver)}) finds no GPU{reason}")
    properties = runtime.getDeviceProperties(runtime.getDevice())
    name, capability = properties["name"].decode(), (properties["major"], properties["minor"])
    if capability < LEAST_CAPABILITY:
        raise CudaError(
            f"{name} has compute capability {capability[0]}.{capability[1]}; "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or more is needed"
        )
    return f"{name}, CUDA {_version(toolkit)}, numba-cuda {numba_cuda.__version__}, CuPy {cupy.__version__}"


def limits():
    """Of the current GPU: how many multiprocessors, and the most bytes of shared memory that a block can
    ask for. None where kernels that ask for more than GIVEN cannot run."""
    if SIMULATED:
        return None
    import cupy

    attributes = cupy.cuda.Device().attributes
    capability = attributes["ComputeCapabilityMajor"], attributes["ComputeCapabilityMinor"]
    if capability < (8, 0):
        return None
    return attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"]


def _version(number):
    """12040 → 12.4"""
    return f"{number // 1000}.{number % 1000 // 10}"


def device(function):
    """``@device``: a function that kernels call, and that is always inlined."""
    options = {} if SIMULATED else {"forceinline": True}
    return cuda.jit(device=True, **options)(function)


class Kernel:
    """A function ``(arguments…)`` for the GPU, compiled when it is first launched.

    ``kernel = Kernel(function, FLOATS, types.int64, threads=256)``; ``kernel(blocks, vector, 3)``

    ``arguments`` are their types, ``threads`` the size of a block, ``resident`` the number of blocks
    that a multiprocessor should hold at a time, which bounds the registers, ``least`` the compute
    capability that it needs, ``simulated`` whether Numba's simulator can run it.
    """

    def __init__(
        self, function, *arguments, threads, name, resident=8, least=LEAST_CAPABILITY, simulated=True
    ):
        self.function, self.arguments, self.name = function, arguments, name
        self.threads, self.resident = threads, resident
        self.least, self.simulated = least, simulated
        self.allowed = GIVEN  # bytes of shared memory beside what it declares
        KERNELS.append(self)

    def __repr__(self):
        return f"<Kernel {self.name}>"

    @property
    def signature(self):
        return types.void(*self.arguments)

    @cached_property
    def compiled(self):
        if SIMULATED:
            return cuda.jit(self.function)
        return cuda.jit(self.signature, launch_bounds=(self.threads, self.resident))(self.function)

    def ptx(self, capability):
        """The code for a compute capability such as (8, 0) or (9, 0, "a"). Needs no GPU."""
        with _answering(capability):
            return cuda.compile_ptx(
                self.function, self.signature, cc=capability, launch_bounds=(self.threads, self.resident)
            )[0]

    def __call__(self, blocks, *arguments, shared=0):
        """Launch so many blocks (a number, or one for x and one for y), if any.

        ``shared``: bytes of shared memory besides what the kernel declares."""
        if not isinstance(blocks, tuple):
            blocks = (blocks,)
        if 0 not in blocks:
            numbers = zip(arguments, self.arguments, strict=True)
            launch(self, blocks, [_convert(a, kind) for a, kind in numbers], shared)


def _convert(argument, kind):
    """A number as what a kernel was compiled for."""
    if isinstance(kind, types.Array):
        return argument
    return NUMBERS[kind](argument)


def launch(kernel, blocks, arguments, shared):
    """Run a kernel behind all that the current stream of CuPy has to do already."""
    if SIMULATED:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        # Wrapped, so that it works on the arrays themselves. Its own copies would write old numbers
        # back where an array is given twice.
        arguments = [FakeCUDAArray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kernel.compiled[blocks, kernel.threads](*arguments)
        return
    import cupy

    address = cupy.cuda.get_current_stream().ptr
    stream = cuda.external_stream(address) if address else 0
    if shared > GIVEN:
        _allow(kernel, shared)
    kernel.compiled[blocks, kernel.threads, stream, shared](*arguments)


def _allow(kernel, shared):
    """Ask for more shared memory than every kernel gets, for which Numba has no function."""
    from cuda.bindings import driver

    if shared <= kernel.allowed:
        return
    (overload,) = kernel.compiled.overloads.values()
    function = overload._codelibrary.get_cufunc()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuFuncSetAttribute(int(function.handle), attribute, shared)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(f"{kernel.name} cannot have {shared:,} bytes of shared memory: {status.name}")
    kernel.allowed = shared


def data_of(context, builder, kind, array):
    """The pointer to the first number of an array of this type, for code that makes LLVM's itself."""
    from numba.cuda.np.arrayobj import make_array

    return make_array(kind)(context, builder, array).data


@contextmanager
def _answering(capability):
    """Device functions ask for the capability of the current GPU while they are compiled."""
    from numba.cuda import dispatcher

    class Device:
        compute_capability = capability

    asked, dispatcher.get_current_device = dispatcher.get_current_device, Device
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def row_distance(matrix):
    """How many numbers the rows of a matrix are apart. ValueError where those of a row have gaps."""
    size = matrix.itemsize
    rows, columns = matrix.shape
    if columns > 1 and matrix.strides[1] != size:
        raise ValueError("the numbers of a row must be next to each other")
    if rows < 2:
        return columns
    if matrix.strides[0] % size or matrix.strides[0] < columns * size:
        raise ValueError("the rows of a matrix must follow each other at whole distances")
    return matrix.strides[0] // size


def flat(array):
    """What lies between the first and the last number of an array whose rows have no gaps, as a vector
    that shares its memory. Shapes: array [N] or [R, C], of NumPy or CuPy."""
    if array.ndim == 1:
        count = array.size
        if count > 1 and array.strides[0] != array.itemsize:
            raise ValueError("the numbers of a vector must be next to each other")
    else:
        count = (array.shape[0] - 1) * row_distance(array) + array.shape[1] if array.size else 0
    if isinstance(array, np.ndarray):
        return np.lib.stride_tricks.as_strided(array, (count,), (array.itemsize,))
    return type(array)((count,), array.dtype, memptr=array.data)


def check_float32(**arrays):
    """TypeError naming the first array that is not of float32."""
    for name, array in arrays.items():
        if array is not None and array.dtype != np.float32:
            raise TypeError(f"{name} must be a float32 array, got {array.dtype}")


def check_shapes(**shapes):
    """ValueError naming the first array whose shape is not what the others ask for."""
    for name, (actual, wanted) in shapes.items():
        if tuple(actual) != tuple(wanted):
            raise ValueError(f"{name} has shape {tuple(actual)}, the others ask for {tuple(wanted)}")


def blocks_for(count, each):
    """How many blocks it takes if each does so many of ``count``."""
    return -(-count // each)
