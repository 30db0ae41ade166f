"""What becomes of the finished numbers of a product on a GPU, on their way to memory.

Numbers are finished four of a row at a time (:mod:`..common.fours`). Registers cannot be counted through, and
tensor cores leave their sums two by two all over a warp: sums go by way of shared memory, where a short loop
finds them. (Finished where they are, the code is written out for every register, ten thousand instructions,
each of which would be fetched for one use.) Only what stays as it is goes to memory at once.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32, int64, uint32, uint64

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
from ..common.fours import (
    AS_IT_IS,
    check_beside,
    nothing4,
    read4,
    read4_halves,
    write4,
    write4_halves,
)
from ..common.ptx import load4

# What becomes of a number, in this order, where it goes, and whether fours of all arrays are aligned.
# Products on tensor cores have kernels of their own for each of these: to ask for every four takes longer
# than all else.
BIAS, RELU, SCALED, MASK, WHOLE, HALVES, VECTORS = (1 << bit for bit in range(7))
PLAIN = WHOLE | VECTORS
_NAMES = {BIAS: ", bias", RELU: ", relu", SCALED: ", scaled", MASK: ", where y_below > 0"}

LONGEST = 2**29  # numbers in a row or column, whose bytes are counted in 32 bits


@device
def _finished(value, bias, relu):
    """max(value + bias, 0) if ``relu``; NaN stays NaN."""
    value += bias
    return float32(0) if relu and value < float32(0) else value


class Finisher(NamedTuple):
    """What :func:`finisher` returns: device functions, and the type of their ``outputs``
    (see :class:`Product`).

    ``begin(outputs)``: the epilogue's numbers, for a thread to read once. ``bias(column, columns, outputs)``:
    four numbers of the bias, for a thread to read once for all fours below each other.
    ``one(four, added, shared, row, column, rows, columns, outputs)``: four sums beside each other, through
    what is asked for to where it is asked for; ``added`` is that bias, ``shared`` are those numbers.
    ``several(memory, at, further, added, shared, row, apart, column, rows, columns, outputs)``: ``at_once``
    fours of rows that are ``apart``, ``further`` numbers from each other in shared memory. Memory is asked
    for what all of them need before the first is finished: its answer takes as long as hundreds of
    instructions.
    ``expect(row, column, width, rows, columns, outputs)``: so many numbers of a row will be finished soon.
    ``unchanged``: whether it is known that numbers are written as they are, to rows that begin at multiples
    of 16 bytes.
    """

    begin: Any
    bias: Any
    one: Any
    several: Any
    expect: Any
    at_once: int
    outputs: types.BaseTuple
    unchanged: bool


def suffix_of(how):
    """Of the names of kernels, what of ``how`` differs from PLAIN."""
    said = [name for flag, name in _NAMES.items() if how & flag]
    if how & HALVES:
        said.append(", to float32 and bfloat16" if how & WHOLE else ", to bfloat16")
    return "".join(said) + ("" if how & VECTORS else ", one by one")


def _flags(how):
    """``flags(outputs)``: what becomes of numbers, for the compiler where it is known before."""
    if how is None:
        return device(lambda outputs: outputs[0])

    @device
    def flags(outputs):
        return how

    return flags


@cache
def finisher(kind, epilogue, at_once=4, how=None):
    """The :class:`Finisher` of products.

    ``kind``: "float32", or on tensor cores "tf32" or "bf16", and these may have an output of bfloat16;
    ``epilogue``: a :class:`..common.fours.Epilogue`; ``at_once``: what registers are there for; ``how``: the
    product's, if a kernel is made for each.
    """
    read_below, below = (read4_halves, WORDS) if kind == "bf16" else (read4, FLOATS)
    halves, change, begin = kind != "float32", epilogue.change, epilogue.begin
    read_beside, expect_beside, flags = epilogue.read, epilogue.expect, _flags(how)
    masked = not epilogue.reads  # as :class:`Product` has checked: registers are few

    @device
    def begin_with(outputs):
        return begin(outputs[9])

    @device
    def bias(column, columns, outputs):
        if flags(outputs) & BIAS and column < columns:
            return read4(outputs[1], column, columns - column, flags(outputs) & VECTORS)
        return nothing4()

    @device
    def read(row, column, count, outputs):
        """What memory has for a four, of which there are ``count``."""
        y_below, y_row, vectors, mask = outputs[2], outputs[3], flags(outputs) & VECTORS, nothing4()
        if masked and flags(outputs) & MASK and count > 0:
            mask = read_below(y_below, row * y_row + column, count, vectors)
        place = row, column, row * outputs[6] + column, count, vectors
        return mask, read_beside(place, outputs[5], outputs[9])

    @device
    def finish(four, added, shared, found, row, column, count, outputs):
        if count <= 0:
            return
        how, (mask, beside), zero = flags(outputs), found, float32(0)
        scale, c, half, half_row, numbers = outputs[4], outputs[5], *outputs[7:]
        vectors, relu = how & VECTORS, how & RELU
        v0, v1 = _finished(four[0], added[0], relu), _finished(four[1], added[1], relu)
        v2, v3 = _finished(four[2], added[2], relu), _finished(four[3], added[3], relu)
        if how & SCALED:
            v0, v1, v2, v3 = v0 * scale, v1 * scale, v2 * scale, v3 * scale
        if masked and how & MASK:
            v0, v1 = v0 if mask[0] > zero else zero, v1 if mask[1] > zero else zero
            v2, v3 = v2 if mask[2] > zero else zero, v3 if mask[3] > zero else zero
        place = row, column, row * outputs[6] + column, count, vectors
        values = change((v0, v1, v2, v3), place, beside, shared, numbers)
        if how & WHOLE:
            write4(c, place[2], count, vectors, values)
        if halves and how & HALVES:
            write4_halves(half, row * half_row + column, count, vectors, values)

    @device
    def one(four, added, shared, row, column, rows, columns, outputs):
        count = columns - column if row < rows else int64(0)
        found = read(row, column, count, outputs)
        finish(four, added, shared, found, row, column, count, outputs)

    def together(fours):
        """``fours`` below each other, each of them whole where there is its row: all are read for before the
        first is finished."""
        if not fours:
            return device(lambda *arguments: None)
        others = together(fours - 1)

        @device
        def these(added, shared, memory, at, further, row, apart, column, rows, outputs):
            count = int64(4) if row < rows else int64(0)
            found = read(row, column, count, outputs)
            others(added, shared, memory, at + further, further, row + apart, apart, column, rows, outputs)
            finish(load4(memory, at), added, shared, found, row, column, count, outputs)

        return these

    all_of_them = together(at_once)

    @device
    def several(memory, at, further, added, shared, row, apart, column, rows, columns, outputs):
        # Asked once for all fours: most are within, and each question takes as long as a dozen sums.
        if flags(outputs) & VECTORS and column + 4 <= columns:
            all_of_them(added, shared, memory, at, further, row, apart, column, rows, outputs)
        else:
            for _ in range(at_once):
                one(load4(memory, at), added, shared, row, column, rows, columns, outputs)
                at, row = at + further, row + apart

    @device
    def expect(row, column, width, rows, columns, outputs):
        count = min(width, columns - column) // 4 * 4
        if flags(outputs) & VECTORS and row < rows and count > 0:
            expect_beside(outputs[5], row * outputs[6] + column, count, outputs[9])

    outputs = int64, FLOATS, below, int64, float32, FLOATS, int64, WORDS, int64, epilogue.kinds
    unchanged = how == PLAIN and epilogue is AS_IT_IS.epilogue
    return Finisher(begin_with, bias, one, several, expect, at_once, types.Tuple(outputs), unchanged)


@cache
def staged(tiles_down, tiles_across, at_once, finishing):
    """``finish_tile(sums, memory, mine, lane, row, column, rows, columns, outputs)``: the sums of a warp, of
    ``ptx.tensor_sums``, finished by way of a part of shared memory, from ``finishing``, a :class:`Finisher`.

    ``mine``: where the warp's part of ``memory`` (float32) begins, a multiple of 4 numbers; ``at_once``: of
    how many tiles of 16 rows it holds the sums at a time. Also returns how many numbers the part needs.
    """
    width = 8 * tiles_across
    # Eight rows of four lanes that write two numbers each, or eight lanes that read four, meet all banks.
    pitch = width + 8
    fours = width // 4
    apart = 32 // fours  # rows, of fours that a lane finishes
    several, step = finishing.several, finishing.at_once * apart
    begin, bias = finishing.begin, finishing.bias

    def part(first):
        """Of the tiles from ``first`` on."""
        keep = ptx.store_pairs(
            [
                (4 * ((first + i) * tiles_across + j) + 2 * below, (16 * i + 8 * below) * pitch + 8 * j)
                for i in range(at_once)
                for j in range(tiles_across)
                for below in range(2)
            ]
        )
        top = 16 * first

        @device
        def part(sums, memory, mine, shared, lane, row, column, rows, columns, outputs):
            cuda.syncwarp()
            keep(sums, memory, mine + lane // 4 * pitch + lane % 4 * 2)
            cuda.syncwarp()
            across = lane % fours * 4
            right = column + across
            added = bias(right, columns, outputs)
            for down in range(lane // fours, 16 * at_once, step):
                at, below = mine + down * pitch + across, row + top + down
                several(memory, at, apart * pitch, added, shared, below, apart, right, rows, columns, outputs)

        return part

    all_parts = ptx.sequence([part(first) for first in range(0, tiles_down, at_once)])

    @device
    def finish_tile(sums, memory, mine, lane, row, column, rows, columns, outputs):
        all_parts(sums, memory, mine, begin(outputs), lane, row, column, rows, columns, outputs)

    return finish_tile, 16 * at_once * pitch


@cache
def by_pieces(columns_of_tile, finishing):
    """``finish_tile(memory, mine, shared, lane, row, column, rows, columns, outputs)``: a warp's 16 rows of
    sums, of ``ptx.warpgroup_sums``, finished by way of a part of shared memory that holds a piece of
    their columns at a time; a whole tile whose numbers stay as they are is written from its registers. No
    other warp has to wait for it.

    ``mine``: where the warp's part of ``memory`` (float32) begins, a multiple of 4 numbers; ``shared``: what
    ``finishing``, a :class:`Finisher`, begins with. Also returns how many numbers the part needs.
    """
    width = ptx.PIECE
    pitch = width + 8  # as in :func:`staged`
    pieces, fours = columns_of_tile // width, width // 4
    apart = 32 // fours  # rows, of fours that a lane finishes
    several, step, bias = finishing.several, finishing.at_once * apart, finishing.bias
    keep = ptx.choose([ptx.store_sums(piece, pitch) for piece in range(pieces)])

    @device
    def finish_tile(memory, mine, shared, lane, row, column, rows, columns, outputs):
        if row >= rows:
            return
        to = ptx.shared_address(memory) + uint32(4 * (mine + lane // 4 * pitch + lane % 4 * 2))
        across = lane % fours * 4
        # What lies beyond the last column is left out: a number that the compiler does not know, so that it
        # does not write the loop out.
        for piece in range(min(pieces, (columns - column + width - 1) // width)):
            cuda.syncwarp()
            keep(piece, to)
            cuda.syncwarp()
            right = column + piece * width + across
            added = bias(right, columns, outputs)
            for down in range(lane // fours, 16, step):
                at, below = mine + down * pitch + across, row + down
                several(memory, at, apart * pitch, added, shared, below, apart, right, rows, columns, outputs)

    if not finishing.unchanged:
        return finish_tile, 16 * pitch
    store, global_address = ptx.store_all_sums(columns_of_tile), ptx.global_address

    @device
    def write_tile(memory, mine, shared, lane, row, column, rows, columns, outputs):
        if row + 16 <= rows and column + columns_of_tile <= columns:
            row_distance = outputs[6]
            at = (row + lane // 4) * row_distance + column + lane % 4 * 2
            store(global_address(outputs[5]) + uint64(4 * at), uint64(32 * row_distance))
        else:
            finish_tile(memory, mine, shared, lane, row, column, rows, columns, outputs)

    return write_tile, 16 * pitch


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
        if y_below is not None and then.beside is not None:
            raise ValueError(f"{then.epilogue.name!r} of an output with a mask is not offered")
        halves = kind == "bf16"
        how = BIAS * (bias is not None) + RELU * bool(relu) + MASK * (y_below is not None)
        how += SCALED * (scale != 1) + WHOLE * (c is not None) + HALVES * (half is not None)
        # What may be read or written four numbers at a time.
        wide = [bias, c, half, y_below, *(then.beside or ())]
        wide += [a, b] if kind == "float32" else []
        how += VECTORS * in_fours(wide)
        numbers_of = words_of if halves else flat
        nothing = numbers_of(a)[:0]
        no_floats, no_words = nothing.view(np.float32), nothing.view(np.uint32)
        self.how, self.reads = how, then.epilogue.reads
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
