"""What becomes of the finished numbers of a product on a GPU, on their way to memory.

Numbers are finished four of a row at a time, with accesses of 128 bits where addresses allow it. The sums
of tensor cores lie two by two all over a warp, in registers that cannot be counted through: these go by
way of shared memory, where a short loop finds them row by row. (Finished where they are, the code is
written out for every register, ten thousand instructions, each of which would be fetched for one use.)
"""

import numpy as np
from numba import float32, uint32, uint64

from ..common import ptx
from ..common.cuda import address_of, check_float32, check_shapes, cuda, device, flat, row_distance
from ..common.ptx import load4, store4

ONE, TWO, THREE = np.uint64(1), np.uint64(2), np.uint64(3)

# What becomes of a number, in this order, where it goes, and whether fours of all arrays are aligned.
BIAS, RELU, MASK, WHOLE, HALVES, VECTORS = 1, 2, 4, 8, 16, 32


@device
def read4(vector, row, row_distance, column, rows, columns, vectors):
    """Four numbers of a row of a matrix, zeros where it has none."""
    zero = float32(0)
    if row >= rows or column >= columns:
        return zero, zero, zero, zero
    at = row * row_distance + column
    if vectors and column + 4 <= columns:
        return load4(vector, at)
    at = uint64(at)  # without a sign: Numba then does not ask whether to count from the end
    return (
        vector[at],
        vector[at + ONE] if column + 1 < columns else zero,
        vector[at + TWO] if column + 2 < columns else zero,
        vector[at + THREE] if column + 3 < columns else zero,
    )


@device
def write4(vector, at, count, vectors, values):
    """The first ``count`` of four values, or all."""
    if vectors and count >= 4:
        store4(vector, at, values)
        return
    at = uint64(at)
    vector[at] = values[0]
    if count > 1:
        vector[at + ONE] = values[1]
    if count > 2:
        vector[at + TWO] = values[2]
    if count > 3:
        vector[at + THREE] = values[3]


@device
def _read4_halves(words, row, row_distance, column, rows, columns, vectors):
    """As :func:`read4`, of bfloat16; rows begin at whole words, and so does the column."""
    at = uint64((row * row_distance + column) // 2)
    zero = float32(0)
    first = words[at]
    second = words[at + ONE] if column + 2 < columns else uint32(0)
    return (
        ptx.low_half(first),
        ptx.high_half(first) if column + 1 < columns else zero,
        ptx.low_half(second),
        ptx.high_half(second) if column + 3 < columns else zero,
    )


@device
def _write4_halves(words, at, count, values):
    """As :func:`write4`, rounded to bfloat16. The number behind an odd last one becomes zero."""
    zero = float32(0)
    at = uint64(at // 2)
    words[at] = ptx.bfloat16_pair(values[0], values[1] if count > 1 else zero)
    if count > 2:
        words[at + ONE] = ptx.bfloat16_pair(values[2], values[3] if count > 3 else zero)


@device
def _finished(value, bias, relu):
    """max(value + bias, 0) if ``relu``; NaN stays NaN."""
    value += bias
    return float32(0) if relu and value < float32(0) else value


def finisher(below, halves):
    """``finish(four, row, column, rows, columns, outputs)``: four sums beside each other, through what is
    asked for to where it is asked for.

    ``outputs`` are (bias, y_below, y_row, scale, c, c_row, half, half_row, how), as kernels are given them.
    ``below``: "float32" or "bf16", what y_below holds; ``halves``: whether an output may be of bfloat16.
    """
    read4_below = {"float32": read4, "bf16": _read4_halves}[below]

    @device
    def finish(four, row, column, rows, columns, outputs):
        if row >= rows or column >= columns:
            return
        bias, y_below, y_row, scale, c, c_row, half, half_row, how = outputs
        vectors, relu = how & VECTORS, how & RELU
        zero = float32(0)
        added = zero, zero, zero, zero
        if how & BIAS:
            added = read4(bias, 0, 0, column, 1, columns, vectors)
        v0, v1 = _finished(four[0], added[0], relu), _finished(four[1], added[1], relu)
        v2, v3 = _finished(four[2], added[2], relu), _finished(four[3], added[3], relu)
        v0, v1, v2, v3 = v0 * scale, v1 * scale, v2 * scale, v3 * scale
        if how & MASK:
            mask = read4_below(y_below, row, y_row, column, rows, columns, vectors)
            v0, v1 = v0 if mask[0] > zero else zero, v1 if mask[1] > zero else zero
            v2, v3 = v2 if mask[2] > zero else zero, v3 if mask[3] > zero else zero
        if how & WHOLE:
            write4(c, row * c_row + column, columns - column, vectors, (v0, v1, v2, v3))
        if halves and how & HALVES:
            _write4_halves(half, row * half_row + column, columns - column, (v0, v1, v2, v3))

    return finish


def staged(tiles_down, tiles_across, at_once, finish):
    """``finish_tile(sums, memory, mine, lane, row, column, rows, columns, outputs)``: the sums of a warp, of
    ``ptx.tensor_sums`` or ``ptx.warpgroup_sums``, finished by way of a part of shared memory.

    ``mine``: where the warp's part of ``memory`` (float32) begins, a multiple of 4 numbers; ``at_once``: of
    how many tiles of 16 rows it holds the sums at a time. Also returns how many numbers the part needs.
    """
    width = 8 * tiles_across
    # Eight rows of four lanes that write two numbers each, or eight lanes that read four, meet all banks.
    pitch = width + 8
    fours = width // 4
    items = 16 * at_once * fours

    def keeper(down, across, place):
        middle, end = place + 2, place + 4
        here, below = down * pitch + across, (down + 8) * pitch + across

        @device
        def keep(sums, memory, at):
            ptx.store2(memory, at + here, sums[place:middle])
            ptx.store2(memory, at + below, sums[middle:end])

        return keep

    def part(first):
        """Of the tiles from ``first`` on."""
        keep = ptx.sequence(
            [
                keeper(16 * i, 8 * j, 4 * ((first + i) * tiles_across + j))
                for i in range(at_once)
                for j in range(tiles_across)
            ]
        )
        top = 16 * first

        @device
        def part(sums, memory, mine, lane, row, column, rows, columns, outputs):
            cuda.syncwarp()
            keep(sums, memory, mine + lane // 4 * pitch + lane % 4 * 2)
            cuda.syncwarp()
            for item in range(lane, items, 32):
                down, across = item // fours, item % fours * 4
                four = load4(memory, mine + down * pitch + across)
                finish(four, row + top + down, column + across, rows, columns, outputs)

        return part

    parts = [part(first) for first in range(0, tiles_down, at_once)]
    return ptx.sequence(parts), 16 * at_once * pitch


# --- on the host ----------------------------------------------------------------------------------


def in_pieces(array, size):
    """Whether an array, or all rows of a matrix, begin at multiples of so many bytes."""
    apart = row_distance(array) * array.itemsize if array.ndim == 2 and array.shape[0] > 1 else 0
    return (address_of(array) | apart) % size == 0


def in_fours(arrays):
    """Whether every fourth number of all rows of all arrays is at a multiple of its four numbers' size."""
    return all(in_pieces(array, 4 * array.itemsize) for array in arrays if array is not None)


def words_of(array):
    """A matrix of uint16 or float32, as a vector of words."""
    count = (array.shape[0] - 1) * row_distance(array) + array.shape[1]
    if array.itemsize == 2:
        if not in_pieces(array, 4):
            raise ValueError("the rows of a matrix of bfloat16 must begin at multiples of 4 bytes")
        count = -(-count // 2)
    if isinstance(array, np.ndarray):
        # Through a vector of the matrix's own numbers: only these can be seen as others.
        each = 4 // array.itemsize
        whole = np.lib.stride_tricks.as_strided(array, (count * each,), (array.itemsize,))
        return whole.view(np.uint32)
    return type(array)((count,), np.uint32, memptr=array.data)


class Product:
    """One product for tensor cores, checked: ``kind`` ("bf16" or "tf32"), ``rows``, ``columns``, ``depth``,
    and ``outputs``, what kernels are given for :func:`finisher`. See :func:`.cuda_mma.multiply`."""

    def __init__(self, a, b, c, half, turned, bias, relu, y_below, scale):
        if a.dtype not in (np.uint16, np.float32):
            raise TypeError(f"a must hold bfloat16 as uint16, or float32, got {a.dtype}")
        for name, array, dtype in (
            ("b", b, a.dtype),
            ("y_below", y_below, a.dtype),
            ("half", half, np.uint16),
        ):
            if array is not None and array.dtype != dtype:
                raise TypeError(f"{name} must be an array of {np.dtype(dtype)} here, got {array.dtype}")
        check_float32(c=c, bias=bias)
        self.kind = "bf16" if a.dtype == np.uint16 else "tf32"
        self.depth, self.rows = a.shape if turned[0] else a.shape[::-1]
        self.columns = b.shape[0] if turned[1] else b.shape[1]
        check_shapes(b=(b.shape, (self.columns, self.depth) if turned[1] else (self.depth, self.columns)))
        for name, array in (("c", c), ("half", half), ("y_below", y_below)):
            if array is not None:
                check_shapes(**{name: (array.shape, (self.rows, self.columns))})
        for name, array in (("a", a), ("b", b)):
            if not in_pieces(array, 16):
                raise ValueError(f"the rows of {name} must begin at multiples of 16 bytes")
        how = BIAS * (bias is not None) + RELU * bool(relu) + MASK * (y_below is not None)
        how += WHOLE * (c is not None) + HALVES * (half is not None)
        how += VECTORS * in_fours([bias, c, y_below if self.kind == "tf32" else None])
        no_words = words_of(a)[:0]
        no_floats = no_words.view(np.float32)
        below = no_words if self.kind == "bf16" else no_floats
        if y_below is not None:
            below = words_of(y_below) if self.kind == "bf16" else flat(y_below)
        self.outputs = (
            no_floats if bias is None else flat(bias),
            *(below, 0 if y_below is None else row_distance(y_below), scale),
            *((no_floats, 0) if c is None else (flat(c), row_distance(c))),
            *((no_words, 0) if half is None else (words_of(half), row_distance(half))),
            how,
        )
