"""Memory by address, for jitted code: arrays over it, and the atomic operations that threads meet by.

A kernel that several threads run gets the addresses of its operands as plain integers; here they
become arrays again, always of one type, so that each kernel is compiled once whatever views it is
given. Atomic operations are sequentially consistent.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .compiling import inner

FLOAT_BYTES = 4
_WORD = ir.IntType(64)

# Numbers that are not known to be constant: Numba compiles a function anew for each constant argument.
ZERO, ONE = np.int64(0), np.int64(1)


def _pointer_to(kind):
    @intrinsic
    def pointer(typing, address):
        def generate(context, build, signature, arguments):
            return build.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return pointer


_float32_at = _pointer_to(types.float32)
_uint8_at = _pointer_to(types.uint8)
_int32_at = _pointer_to(types.int32)
_int64_at = _pointer_to(types.int64)
_float64_at = _pointer_to(types.float64)


@inner
def floats(address, count):
    """``count`` float32 numbers that start at an address."""
    return carray(_float32_at(address), (count,))


@inner
def doubles(address, count):
    """``count`` float64 numbers that start at an address."""
    return carray(_float64_at(address), (count,))


@inner
def bytes_at(address, count):
    """``count`` bytes that start at an address."""
    return carray(_uint8_at(address), (count,))


@inner
def ints32(address, count):
    """``count`` int32 numbers that start at an address."""
    return carray(_int32_at(address), (count,))


@inner
def ints(address, count):
    """``count`` int64 numbers that start at an address."""
    return carray(_int64_at(address), (count,))


@inner
def fill(vector, value):
    """Set every element; a slice assignment does the same and takes a second to compile."""
    for i in range(vector.size):
        vector[i] = value


@inner
def matrix(address, distance, rows, columns):
    """A float32 matrix at an address, its rows ``distance`` numbers apart."""
    return carray(_float32_at(address), (rows, distance))[:, :columns]


@inner
def row(matrix, index):
    """One row of a float32 matrix as contiguous numbers, which loops over it can load as vectors."""
    return floats(matrix.ctypes.data + index * matrix.strides[0], matrix.shape[1])


@inner
def _ends(matrix):
    """The addresses of a matrix's first byte and of the one behind its last."""
    first = last = matrix.ctypes.data
    for axis in range(2):
        reach = (matrix.shape[axis] - 1) * matrix.strides[axis]
        first, last = first + min(reach, 0), last + max(reach, 0)
    return first, last + matrix.itemsize


@inner
def overlap(a, b):
    """Whether two matrices may share memory: whether their ends do."""
    (a_first, a_last), (b_first, b_last) = _ends(a), _ends(b)
    return a_first < b_last and b_first < a_last


def row_distance(array):
    """How many elements the rows of a matrix are apart, for elements of a row next to each other.

    Errors: ValueError where they are not.
    """
    rows, columns = array.shape
    if columns > 1 and array.strides[1] != array.itemsize:
        raise ValueError("the numbers of a row must be next to each other")
    distance, rest = divmod(array.strides[0], array.itemsize)
    if rows > 1 and rest:
        raise ValueError("rows must be a whole number of elements apart")
    return distance if rows > 1 else columns


# --- atomic operations on int64 words ---------------------------------------------------------


def _word_at(build, address):
    return build.inttoptr(address, _WORD.as_pointer())


@intrinsic
def atomic_read(typing, address):
    """The int64 word at an address."""

    def generate(context, build, signature, arguments):
        return build.load_atomic(_word_at(build, arguments[0]), "seq_cst", 8)

    return types.int64(types.intp), generate


@intrinsic
def atomic_write(typing, address, value):
    """Store an int64 word at an address."""

    def generate(context, build, signature, arguments):
        build.store_atomic(arguments[1], _word_at(build, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def atomic_add(typing, address, value):
    """Add to the int64 word at an address; what it was before."""

    def generate(context, build, signature, arguments):
        return build.atomic_rmw("add", _word_at(build, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), generate


def aligned_zeros(count, dtype):
    """A zero vector whose first element starts a cache line."""
    dtype = np.dtype(dtype)
    raw = np.zeros(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


# --- operands and scalars of a team's kernel ------------------------------------------------------


def vector_address(name, vector, dtype, count=None, written=False):
    """The address of a vector of ``count`` numbers (None: any) that lie next to each other.

    Errors: TypeError for another dtype, ValueError for another shape or numbers apart.
    """
    _expect(name, vector, dtype, 1, None if count is None else (count,), written)
    if len(vector) > 1 and vector.strides[0] != vector.itemsize:
        raise ValueError(f"the numbers of {name} must be next to each other")
    return vector.ctypes.data


def matrix_address(name, matrix, dtype, shape=None, written=False):
    """The address of a matrix of that shape (None: any), and how many elements its rows are apart.

    Errors: TypeError for another dtype, ValueError for another shape or rows that overlap.
    """
    _expect(name, matrix, dtype, 2, shape, written)
    distance = row_distance(matrix) if matrix.size else matrix.shape[1]
    if distance < matrix.shape[1]:
        raise ValueError(f"the rows of {name} must lie one behind the other")
    return matrix.ctypes.data, distance


def order_address(order, start, batch, count):
    """The address of an order whose elements from ``start`` on are good for a batch."""
    address = vector_address("order", order, np.int64)
    if not 0 <= start <= len(order) - batch:
        raise ValueError(f"order has {len(order)} elements, not {batch} from {start} on")
    chosen = order[start : start + batch]
    if batch and (chosen.min() < 0 or chosen.max() >= count):
        raise IndexError(f"order must be in 0 … {count - 1}, got {chosen.min()} … {chosen.max()}")
    return address


def _expect(name, array, dtype, dimensions, shape, written):
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name} must be an array of {np.dtype(dtype)}, got {found}")
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimensions, got the shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    if written and not array.flags.writeable:
        raise ValueError(f"{name} must be writable")


def word_of(number):
    """A float64 number as an int64 word of arguments; :func:`number` reads it."""
    return int(np.float64(number).view(np.int64))


@inner
def number(arguments, index):
    """The float64 number in a word of arguments."""
    return doubles(arguments + 8 * index, 1)[0]


@inner
def share(count, thread, threads):
    """The first of a thread's things, and the first that is no longer its own."""
    return count * thread // threads, count * (thread + 1) // threads


@intrinsic
def bits_of(typing, x):
    """The bits of a float32 as an int32."""

    def generate(context, build, signature, arguments):
        return build.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def float_of(typing, bits):
    """The float32 that has the bits of an int32."""

    def generate(context, build, signature, arguments):
        return build.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _prefetch(locality):
    @intrinsic
    def prefetch(typing, address):
        def generate(context, build, signature, arguments):
            pointer, word = build.inttoptr(arguments[0], ir.IntType(8).as_pointer()), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
            fetch = build.module.declare_intrinsic("llvm.prefetch", (pointer.type,), kind)
            build.call(fetch, [pointer, word(0), word(locality), word(1)])  # to read, data
            return context.get_dummy_value()

        return types.void(types.intp), generate

    return prefetch


# Have the cache line at an address fetched while other work goes on: into all caches, or all but the first.
prefetch, prefetch_far = _prefetch(3), _prefetch(2)
