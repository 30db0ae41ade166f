"""Matrix products on the CPU: tiles of registers, panels that stay in the cache, threads that share
nothing but what they read.

The output is cut into tiles (:mod:`~..common.tiles`), each computed by one micro-kernel
(:mod:`~..common.simd`) from ``tile.rows`` rows of the left operand and a *panel*, ``tile.columns``
columns of the right one. A thread takes either its own panels or its own rows, so no two threads
write the same number, and every number is summed in the order of k: the result has the same bits for
any number of threads.

Operands are read where they lie as long as that is quick. A panel is copied to a buffer of its own
where its columns are not next to each other (a transposed right operand), at the ragged right
edge, or where its rows are so far apart that they share cache sets and take a page each.

Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008);
Van Zee, van de Geijn, "BLIS", ACM TOMS 41 (2015).
"""

import threading

import numpy as np
from numba import get_num_threads, njit, prange

from ..common.simd import FLOAT_BYTES as SIZE
from ..common.simd import micro_kernel, read, write
from ..common.tiles import host_tile

TILE = host_tile()
ROWS, COLUMNS = TILE.rows, TILE.columns

MAX_DEPTH = 1024  # k at a time: a panel of 32 columns is then 128 KiB
PANELS_BYTES = 512 * 1024  # packed panels in use at a time: half of a second-level cache
FAR = 512  # distances (in numbers) that are this large, or multiples of it, call for a copy

_multiply = micro_kernel(TILE)
# Numba's simplest threading layer aborts the process when two threads enter it at once.
_one_at_a_time = threading.Lock()


def matmul(a, b, out=None, threads=None):
    """out = a·b.

    ``matmul(x, w)``; ``matmul(x, w, out=y, threads=1)``

    Shapes: a [M, K], b [K, N], out [M, N].
    Dtypes: all float32; a and b may be any views (transposed, padded, every other row …), out must
    have the numbers of a row next to each other and must not overlap a or b.
    ``threads``: at most so many; by default all that Numba has. The bits do not depend on it.
    Writes: out (a new array if None), and returns it.
    Errors: TypeError for another dtype, ValueError for shapes or an out that do not fit.
    Cost: 2·M·N·K flops; parts of a and b are copied to buffers of about 0.6 MB a thread. The first
    call on a machine compiles for some seconds, later processes read that from Numba's cache.
    Rounding: one a step of K, in order, in blocks of 1024 steps: error ≤ γ_K·(|a|·|b|) with
    γ_K = K·2⁻²⁴ / (1 - K·2⁻²⁴).
    """
    for name, array in (("a", a), ("b", b), ("out", out)):
        if array is not None and (not isinstance(array, np.ndarray) or array.dtype != np.float32):
            raise TypeError(f"{name} must be a float32 array, got {getattr(array, 'dtype', type(array))}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"shapes {a.shape} and {b.shape} have no product")
    shape = (a.shape[0], b.shape[1])
    if out is None:
        out = np.empty(shape, np.float32)
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, the product has {shape}")
    if out.size and shape[1] > 1 and out.strides[1] != SIZE:
        raise ValueError("the numbers of a row of out must be next to each other")
    if not out.flags.writeable or np.may_share_memory(out, a) or np.may_share_memory(out, b):
        raise ValueError("out must be writable and must not overlap a or b")
    if a.shape[1] == 0:
        out[...] = 0
    elif out.size:
        a, b = _whole_strides(a), _whole_strides(b)
        left, right, target = ([distance // SIZE for distance in x.strides] for x in (a, b, out))
        with _one_at_a_time:
            _product(
                a.ctypes.data,
                *left,
                b.ctypes.data,
                *right,
                out.ctypes.data,
                target[0],
                *shape,
                a.shape[1],
                min(threads or get_num_threads(), get_num_threads()),
            )
    return out


def matmul_tn(a, b, out=None, threads=None):
    """out = aᵀ·b, for a [K, M] and b [K, N]; the rest as :func:`matmul`."""
    return matmul(a.T, b, out, threads)


def matmul_nt(a, b, out=None, threads=None):
    """out = a·bᵀ, for a [M, K] and b [N, K]; the rest as :func:`matmul`."""
    return matmul(a, b.T, out, threads)


def _whole_strides(x):
    """x itself, or a copy where its numbers do not lie at whole distances (fields of records)."""
    return x if all(distance % SIZE == 0 for distance in x.strides) else np.ascontiguousarray(x)


@njit(cache=True, nogil=True)
def _pack_panel(b, b_step, b_column, depth, columns, panel):
    """Copy ``columns`` columns of b next to each other; what is missing of a panel becomes zero."""
    for k in range(depth):
        source, target = b + SIZE * k * b_step, panel + SIZE * k * COLUMNS
        for j in range(columns):
            write(target + SIZE * j, read(source + SIZE * j * b_column))
        for j in range(columns, COLUMNS):
            write(target + SIZE * j, np.float32(0))


@njit(cache=True, nogil=True)
def _pack_rows(a, a_row, a_step, depth, rows, packed):
    """Copy ``rows`` rows of a so that the numbers of one step lie next to each other."""
    if a_row == 1:  # they do so already, only too far from those of the next step
        for k in range(depth):
            for i in range(rows):
                write(packed + SIZE * (k * ROWS + i), read(a + SIZE * (i + k * a_step)))
        return
    for i in range(rows):
        for k in range(depth):
            write(packed + SIZE * (k * ROWS + i), read(a + SIZE * (i * a_row + k * a_step)))


@njit(cache=True, nogil=True)
def _block(a, a_row, a_step, b, b_step, b_column, c, c_row, rows, columns, depth, add, panels, packed, edges):
    """One thread's part: c (+)= a·b for the rows, columns and steps given, as addresses.

    ``panels``, ``packed`` and ``edges`` are arrays to work in. They are arguments, because the caller
    then keeps them: Numba frees an array after its last use, and does not count its address as one.
    """
    pack_b = b_column != 1 or b_step >= FAR
    pack_a = a_row % FAR == 0 or a_step % FAR == 0
    count = -(-columns // COLUMNS)
    group = min(count, panels.size // (COLUMNS * depth))
    height = -(-rows // -(-rows // ROWS))  # nearly equal tiles instead of a low last one
    for first in range(0, count, group):
        last = min(first + group, count)
        for p in range(first, last):
            width = min(COLUMNS, columns - p * COLUMNS)
            if pack_b or width < COLUMNS:
                target = panels.ctypes.data + SIZE * (p - first) * COLUMNS * depth
                _pack_panel(b + SIZE * p * COLUMNS * b_column, b_step, b_column, depth, width, target)
        for top in range(0, rows, height):
            tall = min(height, rows - top)
            left, left_row, left_step = a + SIZE * top * a_row, a_row, a_step
            if pack_a:
                _pack_rows(left, a_row, a_step, depth, tall, packed.ctypes.data)
                left, left_row, left_step = packed.ctypes.data, 1, ROWS
            for p in range(first, last):
                width = min(COLUMNS, columns - p * COLUMNS)
                right, right_step = b + SIZE * p * COLUMNS, b_step
                if pack_b or width < COLUMNS:
                    right = panels.ctypes.data + SIZE * (p - first) * COLUMNS * depth
                    right_step = COLUMNS
                out = c + SIZE * (top * c_row + p * COLUMNS)
                if width == COLUMNS:
                    _multiply(left, left_row, left_step, right, right_step, out, c_row, depth, tall, add)
                    continue
                edge = edges.ctypes.data
                _multiply(left, left_row, left_step, right, right_step, edge, COLUMNS, depth, tall, False)
                for i in range(tall):
                    for j in range(width):
                        number, to = read(edge + SIZE * (i * COLUMNS + j)), out + SIZE * (i * c_row + j)
                        write(to, read(to) + number if add else number)


@njit(cache=True, nogil=True)
def _part(a, a_row, a_step, b, b_step, b_column, c, c_row, rows, columns, depth):
    """One thread's part, at most MAX_DEPTH steps at a time."""
    deepest = min(depth, MAX_DEPTH)
    group = max(1, min(-(-columns // COLUMNS), PANELS_BYTES // (SIZE * COLUMNS * deepest)))
    panels = np.empty(group * COLUMNS * deepest, np.float32)
    packed = np.empty(ROWS * deepest, np.float32)
    edges = np.empty(ROWS * COLUMNS, np.float32)
    for start in range(0, depth, MAX_DEPTH):
        _block(
            a + SIZE * start * a_step,
            a_row,
            a_step,
            b + SIZE * start * b_step,
            b_step,
            b_column,
            c,
            c_row,
            rows,
            columns,
            min(MAX_DEPTH, depth - start),
            start > 0,
            panels,
            packed,
            edges,
        )


@njit(cache=True, nogil=True, parallel=True)
def _product(a, a_row, a_step, b, b_step, b_column, c, c_row, rows, columns, depth, threads):
    """c = a·b with ``threads`` threads, each with its own panels or its own rows.

    Addresses are integers, distances count numbers.
    """
    panels, tiles = -(-columns // COLUMNS), -(-rows // ROWS)
    # By panels, unless the largest share of rows is clearly smaller: a panel is then copied once.
    by_panels = -(-panels // threads) * tiles <= 1.1 * (-(-tiles // threads) * panels)
    for thread in prange(threads):
        top, bottom, left, right = 0, rows, 0, columns
        if by_panels:
            left = panels * thread // threads * COLUMNS
            right = min(panels * (thread + 1) // threads * COLUMNS, columns)
        else:
            top, bottom = rows * thread // threads, rows * (thread + 1) // threads
        if bottom > top and right > left:
            _part(
                a + SIZE * top * a_row,
                a_row,
                a_step,
                b + SIZE * left * b_column,
                b_step,
                b_column,
                c + SIZE * (top * c_row + left),
                c_row,
                bottom - top,
                right - left,
                depth,
            )
