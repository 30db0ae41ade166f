"""What becomes of the finished numbers of a product on a GPU, on their way to memory.

Numbers are finished four of a row at a time (:mod:`..common.fours`). Registers cannot be counted through, and
tensor cores leave their sums two by two all over a warp: sums go by way of shared memory, where a short loop
finds them. (Finished where they are, the code is written out for every register, ten thousand instructions,
each of which would be fetched for one use.)
"""

import numpy as np
from numba import float32, int64, uint32

from ..common import ptx
from ..common.cuda import (
    FLOATS,
    WORDS,
    address_of,
    blocks_for,
    check_float32,
    check_shapes,
    cuda,
    device,
    flat,
    row_distance,
    types,
)
from ..common.fours import AS_IT_IS, check_beside, read4, read4_halves, write4, write4_halves
from ..common.ptx import load4

# What becomes of a number, in this order, where it goes, and whether fours of all arrays are aligned.
BIAS, RELU, MASK, WHOLE, HALVES, VECTORS = 1, 2, 4, 8, 16, 32

LONGEST = 2**29  # numbers in a row or column, whose bytes are counted in 32 bits


@device
def _finished(value, bias, relu):
    """max(value + bias, 0) if ``relu``; NaN stays NaN."""
    value += bias
    return float32(0) if relu and value < float32(0) else value


def finisher(kind, epilogue):
    """``finish(four, row, column, rows, columns, outputs)``: four sums beside each other, through what is
    asked for to where it is asked for; and the type of ``outputs``.

    ``kind``: "float32", or on tensor cores "tf32" or "bf16", and these may have an output of bfloat16.
    ``outputs``: see :class:`Product`; ``epilogue``: a :class:`..common.fours.Epilogue`.
    """
    read_below, below = (read4_halves, WORDS) if kind == "bf16" else (read4, FLOATS)
    halves, change = kind != "float32", epilogue.change

    @device
    def finish(four, row, column, rows, columns, outputs):
        if row >= rows or column >= columns:
            return
        how, bias, y_below, y_row, scale, c, c_row, half, half_row, numbers = outputs
        vectors, relu, count = how & VECTORS, how & RELU, columns - column
        zero = float32(0)
        added = zero, zero, zero, zero
        if how & BIAS:
            added = read4(bias, column, count, vectors)
        v0, v1 = _finished(four[0], added[0], relu), _finished(four[1], added[1], relu)
        v2, v3 = _finished(four[2], added[2], relu), _finished(four[3], added[3], relu)
        v0, v1, v2, v3 = v0 * scale, v1 * scale, v2 * scale, v3 * scale
        if how & MASK:
            mask = read_below(y_below, row * y_row + column, count, vectors)
            v0, v1 = v0 if mask[0] > zero else zero, v1 if mask[1] > zero else zero
            v2, v3 = v2 if mask[2] > zero else zero, v3 if mask[3] > zero else zero
        at = row * c_row + column
        values = change((v0, v1, v2, v3), (row, column, at, count, vectors), c, numbers)
        if how & WHOLE:
            write4(c, at, count, vectors, values)
        if halves and how & HALVES:
            write4_halves(half, row * half_row + column, count, values)

    outputs = int64, FLOATS, below, int64, float32, FLOATS, int64, WORDS, int64, epilogue.kinds
    return finish, types.Tuple(outputs)


def staged(tiles_down, tiles_across, at_once, finish):
    """``finish_tile(sums, memory, mine, lane, row, column, rows, columns, outputs)``: the sums of a warp, of
    ``ptx.tensor_sums``, finished by way of a part of shared memory.

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


def by_pieces(sums, columns_of_tile, finish):
    """``finish_tile(memory, mine, lane, row, column, rows, columns, outputs)``: a warp's 16 rows of ``sums``,
    of ``ptx.warpgroup_sums``, finished by way of a part of shared memory that holds a piece of their columns
    at a time. No other warp has to wait for it.

    ``mine``: where the warp's part of ``memory`` (float32) begins, a multiple of 4 numbers. Also returns how
    many numbers the part needs.
    """
    width = sums.width
    pitch = width + 8  # as in :func:`staged`
    pieces, fours = columns_of_tile // width, width // 4
    keep = ptx.choose([sums.store(piece, pitch) for piece in range(pieces)])

    @device
    def finish_tile(memory, mine, lane, row, column, rows, columns, outputs):
        to = ptx.shared_address(memory) + uint32(4 * (mine + lane // 4 * pitch + lane % 4 * 2))
        across = lane % fours * 4
        # What lies beyond the last column is left out: a number that the compiler does not know, so that it
        # does not write the loop out.
        for piece in range(min(pieces, (columns - column + width - 1) // width)):
            cuda.syncwarp()
            keep(piece, to)
            cuda.syncwarp()
            for down in range(lane // fours, 16, 32 // fours):
                four = load4(memory, mine + down * pitch + across)
                finish(four, row + down, column + piece * width + across, rows, columns, outputs)

    return finish_tile, 16 * pitch


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
    """One product, checked: ``rows``, ``columns``, ``depth``; ``by_k``, whether the numbers of a, and those
    of b, are next to each other along k; and ``outputs``, what kernels are given for :func:`finisher`: (how,
    bias, y_below, y_row, scale, c, c_row, half, half_row, the epilogue's numbers).

    ``kind`` as of :func:`finisher`; the rest as of :func:`.cuda_mma.multiply`.
    """

    def __init__(
        self, kind, a, b, turned, c, half=None, bias=None, relu=False, y_below=None, scale=1, then=AS_IT_IS
    ):
        self.by_k = not turned[0], turned[1]
        self.depth, self.rows = a.shape if turned[0] else a.shape[::-1]
        self.columns = b.shape[0] if turned[1] else b.shape[1]
        self._check(kind, a, b, c, half, bias, y_below)
        check_beside(c, then)
        halves = kind == "bf16"
        how = BIAS * (bias is not None) + RELU * bool(relu) + MASK * (y_below is not None)
        how += WHOLE * (c is not None) + HALVES * (half is not None)
        wide = [bias, c, *(then.beside or ())]  # what may be read or written four numbers at a time
        wide += [] if halves else [y_below]
        wide += [a, b] if kind == "float32" else []
        how += VECTORS * in_fours(wide)
        numbers_of = words_of if halves else flat
        nothing = numbers_of(a)[:0]
        no_floats, no_words = nothing.view(np.float32), nothing.view(np.uint32)
        self.outputs = (
            *(how, no_floats if bias is None else flat(bias)),
            *((nothing, 0) if y_below is None else (numbers_of(y_below), row_distance(y_below))),
            scale,
            *((no_floats, 0) if c is None else (flat(c), row_distance(c))),
            *((no_words, 0) if half is None else (words_of(half), row_distance(half))),
            then.numbers,
        )

    def _check(self, kind, a, b, c, half, bias, y_below):
        dtype = np.uint16 if kind == "bf16" else np.float32
        for name, array, wanted in (
            *(("a", a, dtype), ("b", b, dtype)),
            *(("y_below", y_below, dtype), ("half", half, np.uint16)),
        ):
            if array is not None and array.dtype != wanted:
                raise TypeError(f"{name} must be an array of {np.dtype(wanted)} here, got {array.dtype}")
        check_float32(c=c, bias=bias)
        shape = self.rows, self.columns
        check_shapes(b=(b.shape, (self.columns, self.depth) if self.by_k[1] else (self.depth, self.columns)))
        for name, array in (("c", c), ("half", half), ("y_below", y_below), ("bias", bias)):
            if array is not None:
                check_shapes(**{name: (array.shape, shape[-array.ndim :])})
        if max(*shape, self.depth) >= LONGEST:
            raise ValueError(f"no side may have {LONGEST:,} numbers or more")
        for name, array in (("a", a), ("b", b)):
            if kind != "float32" and not in_pieces(array, 16):
                raise ValueError(f"the rows of {name} must begin at multiples of 16 bytes")

    def tile(self, tiles, few):
        """The first of (large, small) where there are enough of these, else the other."""
        large, small = tiles
        many = blocks_for(self.rows, large[0]) * blocks_for(self.columns, large[1])
        return large if many >= few else small

    def blocks(self, tile):
        return blocks_for(self.columns, tile[1]), blocks_for(self.rows, tile[0])
