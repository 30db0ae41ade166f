"""The one import of numba.cuda: kernels for the GPU, their launches, and what a machine needs for them.

Kernels take whole vectors (:func:`flat`) and distances between rows instead of matrices: an address
with a vector of numbers behind it is what the memory of a GPU likes, and the same kernel runs in
Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``), where there are no addresses.
"""

import ctypes
import os
import struct
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, cached_property, lru_cache, partial, wraps
from typing import Any, NamedTuple

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

FLOATS, DOUBLES, BYTES, INTS, WORDS, LONGS, MAP = (
    types.Array(dtype, 1, "C")
    for dtype in (
        *(types.float32, types.float64, types.uint8, types.int32, types.uint32, types.int64),
        types.uint64,
    )
)

# What a number is given as, for what a kernel was compiled for.
NUMBERS = {
    types.float32: np.float32,
    types.float64: np.float64,
    types.int32: np.int32,
    types.int64: np.int64,
    types.uint64: np.uint64,
}

DTYPES = {kind.dtype: np.dtype(str(kind.dtype)) for kind in (FLOATS, DOUBLES, BYTES, INTS, WORDS, LONGS, MAP)}

WORD = 8  # bytes of each number that a kernel is given
PACKED = {types.float32: "f4x", types.int32: "i4x", types.float64: "d", types.int64: "q", types.uint64: "Q"}

GIVEN = 48 * 1024  # bytes of shared memory that a block gets without asking
MOST_BELOW = 65_535  # blocks below each other; beside each other there can be 2 thousand million

KERNELS = []  # all that have been made, for tests and tables that go through them

# The capability from which on kernels can be launched before what they depend on has ended (CUDA's
# programmatic dependent launch): each waits for that itself, when it is there and ready.
DEPENDENT_FROM = (9, 0)


class CudaError(RuntimeError):
    """No GPU that can be used, with what was found and what is needed."""


def failures():
    """The types of what can go wrong where kernels are compiled, loaded and launched."""
    from numba.cuda.cudadrv import driver, error

    return CudaError, error.CudaDriverError, error.NvvmError, error.NvrtcError, driver.LinkerError


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


class Limits(NamedTuple):
    """Of a GPU: its compute capability, multiprocessors, and the most bytes of shared memory that a block can
    ask for."""

    capability: tuple
    multiprocessors: int
    shared: int


def limits():
    """The :class:`Limits` of the current GPU. None where kernels that ask for more than GIVEN cannot run."""
    if SIMULATED:
        return None
    import cupy

    return _limits_of(cupy.cuda.Device().id)


def _code_for():
    """The capability that kernels are compiled for, for the current GPU."""
    import cupy

    capability = _capability_of(cupy.cuda.Device().id)
    return (*capability, "a") if capability >= (9, 0) else capability


def multiprocessors():
    """How many the current GPU has: so many blocks run at a time of kernels that fill one each."""
    return limits().multiprocessors


@cache
def _capability_of(number):
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(number)
    return properties["major"], properties["minor"]


@cache
def _limits_of(number):
    import cupy

    properties, capability = cupy.cuda.runtime.getDeviceProperties(number), _capability_of(number)
    if capability < (8, 0):
        return None
    return Limits(capability, properties["multiProcessorCount"], properties["sharedMemPerBlockOptin"])


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

    ``arguments`` are their types (``types.Tuple`` for tuples), ``threads`` the size of a block, ``resident``
    the number of blocks that a multiprocessor should hold at a time, which bounds the registers, ``least``
    the compute capability that it needs, ``only`` the one that it is for, ``shared`` the bytes of shared
    memory that it gets besides what it declares (None: each launch says), ``cooperative`` whether all blocks
    of a launch must be there at a time, ``dependent`` whether each of its threads waits for what was launched
    before by itself (``ptx.wait_for_launches``) before it touches the GPU's memory, ``simulated`` whether
    Numba's simulator can run it.
    """

    def __init__(
        self,
        function,
        *arguments,
        threads,
        name,
        resident=8,
        least=LEAST_CAPABILITY,
        only=None,
        shared=0,
        cooperative=False,
        dependent=False,
        simulated=True,
    ):
        self.function, self.arguments, self.name = function, arguments, name
        self.threads, self.resident, self.shared = threads, resident, shared
        self.least, self.only, self.simulated = only or least, only, simulated
        self.cooperative, self.dependent = cooperative, dependent
        self.allowed = GIVEN  # bytes of shared memory besides what it declares
        KERNELS.append(self)

    def __repr__(self):
        return f"<Kernel {self.name}>"

    def runs_on(self, capability):
        """Whether it is for a compute capability such as (8, 0) or (9, 0, "a")."""
        return capability[:2] == self.only if self.only else capability[:2] >= self.least

    @property
    def signature(self):
        return types.void(*self.arguments)

    @cached_property
    def packed(self):
        return struct.Struct("=" + _packed(self.arguments))

    @cached_property
    def compiled(self):
        if SIMULATED:
            return cuda.jit(self.function)
        # Without link-time optimization: what runs is the PTX of ptx(), which tests have run and counted.
        how = {"launch_bounds": (self.threads, self.resident), "lto": False}
        return cuda.jit(self.signature, **how)(self.function)

    @cached_property
    def on_gpu(self):
        """The driver's function: from code that a process before this has kept, else compiled and kept."""
        from cuda.bindings import driver

        from . import cuda_cache

        capability = _code_for()
        code = cuda_cache.kept(self, capability)
        function = None if code is None else _loaded(code)
        if function is not None:
            return function
        (overload,) = self.compiled.overloads.values()
        library = overload._codelibrary
        function = library.get_cufunc().handle
        if isinstance(function, driver.CUkernel):
            status, function = driver.cuKernelGetFunction(function)
            _check(status, f"{self.name} could not be loaded")
        cubin = getattr(library.get_cubin(), "code", None)
        if isinstance(cubin, bytes):
            cuda_cache.keep(self, capability, cuda_cache.Code(overload.entry_name, cubin))
        return function

    def allow(self, shared):
        """Ask for so many bytes of shared memory, for more than every kernel gets."""
        from cuda.bindings import driver

        if shared > self.allowed:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            (status,) = driver.cuFuncSetAttribute(self.on_gpu, attribute, shared)
            _check(status, f"{self.name} cannot have {shared:,} bytes of shared memory")
            self.allowed = shared

    def ptx(self, capability):
        """The code for a compute capability such as (8, 0) or (9, 0, "a"). Needs no GPU."""
        with _answering(capability):
            return cuda.compile_ptx(
                self.function, self.signature, cc=capability, launch_bounds=(self.threads, self.resident)
            )[0]

    def __call__(self, blocks, *arguments, shared=None):
        """Launch so many blocks (a number, or one for x and one for y), if any.

        ``shared``: bytes of shared memory besides what the kernel declares, if not the usual."""
        if not isinstance(blocks, tuple):
            blocks = (blocks,)
        if len(blocks) > 1 and blocks[1] > MOST_BELOW:
            raise ValueError(f"{self.name} takes at most {MOST_BELOW:,} rows at once: give it parts of them")
        if 0 not in blocks:
            numbers = zip(arguments, self.arguments, strict=True)
            entry = self, blocks, [_convert(a, kind) for a, kind in numbers]
            entry += (self.shared if shared is None else shared,)
            record = _RECORD.get()
            if record is None:
                launch(*entry)
            else:
                record.append(entry)


def _convert(argument, kind):
    """A number, or those of a tuple, as what a kernel was compiled for."""
    if isinstance(kind, types.BaseTuple):
        return tuple(_convert(a, each) for a, each in zip(argument, kind, strict=True))
    if isinstance(kind, types.Array):
        wanted = DTYPES[kind.dtype]
        if not isinstance(argument, TensorMap) and (argument.dtype != wanted or argument.ndim != 1):
            what = f"{argument.dtype} of {argument.ndim} dimensions"
            raise TypeError(f"a vector of {wanted} is needed here, not an array of {what}")
        return argument
    return NUMBERS[kind](argument)


def _loaded(code):
    """The driver's function of a :class:`.cuda_cache.Code`, None if it cannot load it."""
    from cuda.bindings import driver

    status, found = driver.cuLibraryLoadData(code.cubin, [], [], 0, [], [], 0)
    if status == driver.CUresult.CUDA_SUCCESS:
        status, found = driver.cuLibraryGetKernel(found, code.entry.encode())
    if status == driver.CUresult.CUDA_SUCCESS:
        status, found = driver.cuKernelGetFunction(found)
    return found if status == driver.CUresult.CUDA_SUCCESS else None


def launch(kernel, blocks, arguments, shared):
    """Run a kernel behind all that the current stream of CuPy has to do already."""
    prepared(kernel, blocks, arguments, shared)()


def prepared(kernel, blocks, arguments, shared, dependent=False):
    """The same as a function without arguments, to be called any number of times. TypeError for NumPy's
    arrays: a GPU that looks for them in its own memory is lost to the process.

    ``dependent``: whether it may be launched before what it depends on has ended, if kernel and GPU can."""
    if SIMULATED:
        return partial(_simulate, kernel, blocks, arguments)
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            raise TypeError(_not_there(argument))
    return Launch(kernel, blocks, arguments, shared, dependent)


def _simulate(kernel, blocks, arguments):
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    def wrapped(argument):
        # So that it works on the arrays themselves. Its own copies would write old numbers back where an
        # array is given twice.
        if isinstance(argument, tuple):
            return tuple(map(wrapped, argument))
        return FakeCUDAArray(argument) if isinstance(argument, np.ndarray) else argument

    kernel.compiled[blocks, kernel.threads](*map(wrapped, arguments))


class Launch:
    """A kernel and all that the driver is told when it is launched, made ready once.

    Numba's own launch looks at every array anew, and waits for the stream that an array of CuPy names.
    """

    def __init__(self, kernel, blocks, arguments, shared, dependent=False):
        self.kernel, self.given, self.arguments = kernel, arguments, _with_maps(tuple(arguments))  # in use
        words = kernel.packed.pack(*numbers_of(self.arguments, kernel.arguments))
        self.words = ctypes.create_string_buffer(words, len(words))
        first = ctypes.addressof(self.words)
        self.places = (ctypes.c_void_p * (len(words) // WORD))(*range(first, first + len(words), WORD))
        self.size = (*(*blocks, 1, 1)[:3], kernel.threads, 1, 1, shared)
        self.config = None
        if dependent and kernel.dependent and limits().capability >= DEPENDENT_FROM:
            self.config = _dependent(self.size)
        if shared > GIVEN:
            kernel.allow(shared)

    def __call__(self):
        import cupy
        from cuda.bindings import driver

        function = self.kernel.on_gpu
        stream, places = cupy.cuda.get_current_stream().ptr, ctypes.addressof(self.places)
        if self.config is not None:
            self.config.hStream = stream
            (status,) = driver.cuLaunchKernelEx(self.config, function, places, 0)
        elif self.kernel.cooperative:
            (status,) = driver.cuLaunchCooperativeKernel(function, *self.size, stream, places)
        else:
            (status,) = driver.cuLaunchKernel(function, *self.size, stream, places, 0)
        _check(status, f"{self.kernel.name} could not be launched")


def _dependent(size):
    """What the driver is told of a launch that need not wait for the one before it."""
    from cuda.bindings import driver

    allowed, config = driver.CUlaunchAttribute(), driver.CUlaunchConfig()
    allowed.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    allowed.value.programmaticStreamSerializationAllowed = 1
    config.gridDimX, config.gridDimY, config.gridDimZ = size[:3]
    config.blockDimX, config.blockDimY, config.blockDimZ = size[3:6]
    config.sharedMemBytes, config.attrs, config.numAttrs = size[6], [allowed], 1
    return config


def _with_maps(argument):
    """What a kernel is given, with the arrays of tensor maps in their places."""
    if isinstance(argument, TensorMap):
        return _encoded(*argument.words)
    return tuple(map(_with_maps, argument)) if isinstance(argument, tuple) else argument


def numbers_of(arguments, kinds):
    """What the driver is given for arguments, one after the other: for an array what Numba's compiled code
    wants to know, for a tuple the numbers of each."""
    numbers = []
    for argument, kind in zip(arguments, kinds, strict=True):
        if isinstance(kind, types.BaseTuple):
            numbers += numbers_of(argument, kind)
        elif isinstance(kind, types.Array):
            size, itemsize = argument.size, argument.itemsize
            numbers += 0, 0, size, itemsize, address_of(argument), size, itemsize
        else:
            numbers.append(argument)
    return numbers


def _packed(kinds):
    """How these numbers are packed, WORD bytes each, in the manner of :mod:`struct`."""
    nested, array = types.BaseTuple, types.Array
    return "".join(
        _packed(kind) if isinstance(kind, nested) else "QQqqQqq" if isinstance(kind, array) else PACKED[kind]
        for kind in kinds
    )


def address_of(array):
    """Of the first number of an array of NumPy or CuPy."""
    return array.data.ptr if hasattr(array.data, "ptr") else array.__array_interface__["data"][0]


def _check(status, what):
    from cuda.bindings import driver

    if status != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(f"{what}: {status.name}")


def on_stream(stream):
    """``with on_stream(stream):`` launches and CuPy's work join that of a stream of any library, or of an
    address; of CuPy's current one if None. TypeError for what is none."""
    if stream is None or SIMULATED:
        return nullcontext()
    import cupy

    address = _address_of_stream(stream)
    if hasattr(cupy.cuda.Stream, "from_external"):  # from CuPy 14 on
        return cupy.cuda.Stream.from_external(_Address(address))
    return cupy.cuda.ExternalStream(address)


class _Address(NamedTuple):
    """A stream of which only this is known, as CUDA's libraries hand streams to each other."""

    address: int

    def __cuda_stream__(self):
        return 0, self.address


def _address_of_stream(stream):
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # of PyTorch, CuPy, Numba
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if isinstance(stream, int):
        return stream
    raise TypeError(f"stream must be a CUDA stream or its address, got {type(stream).__name__}")


_AS_THEY_ARE = set()  # types of arguments that need no change


def for_any_array(function):
    """``@for_any_array``: the function's arrays may be of any library that has them on the GPU (with
    ``__cuda_array_interface__``, or DLPack), whose memory it shares; and ``stream=`` says whose work it joins
    (:func:`on_stream`).

    Errors: TypeError for what is none of a GPU's arrays or streams. Cost: a look at each argument's type.
    """

    @wraps(function)
    def taking_any(*arguments, stream=None, **named):
        with on_stream(stream):
            named = {name: _of_cupy(argument) for name, argument in named.items()}
            return function(*map(_of_cupy, arguments), **named)

    return taking_any


def _of_cupy(argument):
    """An array of another library as one of CuPy that shares its memory; all else as it is."""
    kind = type(argument)
    if kind in _AS_THEY_ARE:
        return argument
    foreign = hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__dlpack__")
    if foreign and not isinstance(argument, np.ndarray):
        import cupy

        if not isinstance(argument, cupy.ndarray):
            return _shared_with_cupy(cupy, argument)
    _AS_THEY_ARE.add(kind)
    return argument


ON_GPU = 2, 13  # kinds of devices, in the words of DLPack: memory of a GPU, and what the driver moves there


def _shared_with_cupy(cupy, argument):
    # A library's arrays may be here or there: CuPy would copy those of the host, and write into the copy.
    if hasattr(argument, "__cuda_array_interface__"):
        return cupy.asarray(argument)
    device = getattr(argument, "__dlpack_device__", None)
    if device is not None and device()[0] not in ON_GPU:
        raise TypeError(_not_there(argument))
    return cupy.from_dlpack(argument)


def _not_there(array):
    kind = type(array)
    return (
        f"an array on the GPU is needed here, this {kind.__module__}.{kind.__name__} is in the memory of "
        "the host: move it there first (cupy.asarray, or its own library's way)"
    )


# --- many launches as one ------------------------------------------------------------------------

_RECORD = ContextVar("launches that are written down instead", default=None)


@contextmanager
def recorded():
    """``with recorded() as launches:`` kernels are not launched but written down, for :func:`prepared`."""
    token = _RECORD.set([])
    try:
        yield _RECORD.get()
    finally:
        _RECORD.reset(token)


def graph(launches):
    """A function that does all of these (from :func:`prepared`) in order, with one call of the driver."""
    if SIMULATED:
        return lambda: [one() for one in launches]
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            for one in launches:
                one()
        finally:
            captured = stream.end_capture()
    return lambda: captured.launch(cupy.cuda.get_current_stream())


# --- tensor maps ---------------------------------------------------------------------------------


class TensorMap(NamedTuple):
    """A matrix of uint16 or float32, of which kernels of capability 9.0 copy tiles by one instruction:
    ``box`` [rows, columns], in shared memory with 16 bytes exchanged for others of 128 (``ptx.operand``).
    Copies of float32 are rounded to the nearest TF32, ties to even; infinities and NaN stay what they are.

    The matrix begins at a multiple of 16 bytes, and so does each of its rows.
    """

    matrix: Any
    box: tuple

    @property
    def words(self):
        """What identifies it."""
        row = row_distance(self.matrix) * self.matrix.itemsize
        row = -(-row // 16) * 16  # a single row may end anywhere
        return address_of(self.matrix), self.matrix.shape, self.matrix.itemsize, row, self.box


@lru_cache(maxsize=1024)
def _encoded(address, shape, itemsize, row_bytes, box):
    """What the GPU wants to know of a :class:`TensorMap`, in its memory."""
    import cupy
    from cuda.bindings import driver

    def numbers(kind, values):
        return [kind(value) for value in values]

    kinds = driver.CUtensorMapDataType
    status, found = driver.cuTensorMapEncodeTiled(
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if itemsize == 2 else kinds.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
        2,
        address,
        numbers(driver.cuuint64_t, shape[::-1]),
        numbers(driver.cuuint64_t, [row_bytes]),
        numbers(driver.cuuint32_t, box[::-1]),
        numbers(driver.cuuint32_t, (1, 1)),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    _check(status, f"a matrix of {shape} in rows of {row_bytes} bytes has no tensor map")
    on_device = cupy.asarray(np.array([int(word) for word in found.opaque], np.uint64))
    cupy.cuda.get_current_stream().synchronize()  # whatever stream uses it next
    return on_device


def data_of(context, builder, kind, array):
    """The pointer to the first number of an array of this type, for code that makes LLVM's itself."""
    from numba.cuda.np.arrayobj import make_array

    return make_array(kind)(context, builder, array).data


def compiled_for():
    """The capability that code is being compiled for."""
    from numba.cuda import dispatcher

    return tuple(dispatcher.get_current_device().compute_capability)


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


def copy_onto(to, array):
    """The numbers of an array to another of its dtype and size, on the same side, both contiguous."""
    if isinstance(to, np.ndarray):
        to[...] = array
    else:  # by the driver: CuPy would have a kernel do it, and a launch takes the host longer
        to.data.copy_from_device_async(array.data, to.nbytes)


def places_of(arrays):
    """Where they are: what must be the same for a launch that was made ready for them."""
    return tuple(None if a is None else (a.__class__, address_of(a), a.shape) for a in arrays)


def blocks_for(count, each):
    """How many blocks it takes if each does so many of ``count``."""
    return -(-count // each)
