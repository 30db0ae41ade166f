"""Matrix products on tensor cores, summed in float32: of bfloat16, or of float32 rounded to 19 bits (TF32).
For capability 8.0 and more.

A block of four warps computes one tile of the output, each warp a quarter of it, in pieces of 16 × 8
that one instruction multiplies for 16 k. Both operands come through three stages of shared memory:
while one stage is computed with, the copies of the next two are on their way, which cost no registers
(cp.async). A copy brings 8 numbers; copies that would lie beyond an operand bring zeros.

The instruction wants eight rows of 8 numbers from shared memory at once (ldmatrix). So that these lie in
different banks, the place of 8 numbers within their row is exchanged with that of others: xor row / 2 % 4
where a row has 32 k, xor row % 8 where a row has the tile's 64 or 128 numbers of one k. Operands whose
numbers are next to each other along k are read as they are, the others transposed by ldmatrix: no operand
is ever transposed in memory. Float32, which ldmatrix cannot transpose, is then read number by number,
with the places of two times 4 numbers exchanged, xor 2 · (row % 4), so that 4 rows meet all banks once.

Source: NVIDIA, PTX ISA 9.0, sections 9.7.15.5 (mma, ldmatrix) and 9.7.9.25.3 (cp.async); CUTLASS,
"Efficient GEMM in CUDA".
"""

from functools import cache

import numpy as np
from numba import float32, int32, int64, uint32, uint64

from ..common import ptx
from ..common.cuda import (
    FLOATS,
    WORDS,
    Kernel,
    address_of,
    blocks_for,
    check_float32,
    check_shapes,
    cuda,
    device,
    flat,
)
from ..common.cuda import row_distance as row_of
from ..common.fours import AS_IT_IS
from .cuda_epilogue import PLAIN, Product, finisher, staged, suffix_of, words_of
from .cuda_tiles import BAND, place_of

THREADS = 128
ROW = 64  # bytes of a row in a stage: 32 k of bfloat16, 16 of float32
STAGES = 3  # 48 KiB for a tile of 128 × 128: what a block gets without asking for more
TILES = ((128, 128), (64, 64))
RESIDENT = {(128, 128): 2, (64, 64): 4}
FEW = 128  # large tiles of an output: fewer do not occupy a large GPU


def _each(pieces, one):
    """``each(arguments…)``: (one(0, arguments…), one(1, arguments…), …)."""
    if pieces == 1:
        return device(lambda *arguments: (one(0, *arguments),))
    first, last = _each(pieces - 1, one), pieces - 1
    return device(lambda *arguments: (*first(*arguments), one(last, *arguments)))


@cache
def _copies(tile, by_k, size):
    """Where 16 bytes of an operand's tile lie in a stage, ``moved(row, chunk)``, and how a thread copies its
    part: ``begin`` finds out before the first stage what :class:`_Operand` says, ``copy`` asks for a stage.

    Rows of an operand along k that the product has not are copies of its last: what comes of them is not
    kept. So all that changes from stage to stage is where k is, and where it ends.
    """
    numbers, turned = 16 // size, size == 4 and not by_k
    row_bytes = ROW if by_k else size * tile
    chunks = row_bytes // 16  # of 16 bytes, in a row
    pieces = ROW * tile // 16 // THREADS  # that a thread copies
    apart = THREADS // chunks  # rows between these: after so many the exchange is the same again
    at_once = ROW // size
    copy_all = ptx.copies_16(pieces, apart * row_bytes)

    @device
    def moved(row, chunk):
        shift = row // 2 % 4 if by_k else 2 * (row % 4) if turned else row % 8
        return uint32(row * row_bytes + (chunk ^ shift) * 16)

    @device
    def source(piece, address, row_distance, start, count):
        row, chunk = cuda.threadIdx.x // chunks + piece * apart, cuda.threadIdx.x % chunks
        if by_k:
            row, column = min(start + row, count - 1), numbers * chunk
        else:
            column = start + numbers * chunk
        return address + uint64(size * (row * row_distance + column))

    sources = _each(pieces, source)

    @device
    def begin(address, row_distance, start, count):
        row, chunk = cuda.threadIdx.x // chunks, cuda.threadIdx.x % chunks
        if by_k:
            first, whole, step = numbers * chunk, int64(16), int64(size * at_once)
        else:
            first, whole = row, min(max(size * (count - start - numbers * chunk), 0), 16)
            step = size * at_once * row_distance
        found = sources(address, row_distance, start, count)
        return found, int32(first), uint32(whole), uint64(step), moved(row, chunk)

    if by_k:

        @device
        def asked(piece, left, whole):
            return uint32(max(min(size * left, int32(16)), int32(0)))

    else:

        @device
        def asked(piece, left, whole):
            return whole if left > int32(piece * apart) else uint32(0)

    each_asked = _each(pieces, asked)

    @device
    def copy(begun, turn, left, stage):
        found, first, whole, step, place = begun
        further = uint64(turn) * step
        copy_all(stage + place, found, further, each_asked(int32(left - first), whole))

    return moved, begin, copy


class _Operand:
    """How the tile of one operand lies in a stage, and how copies and fragments find their way in it.

    ``begin(address, row_distance, start, count)``: for the tile that begins at row or column ``start`` of
    ``count``, what a thread's copies need. ``copy(begun, turn, left, stage)`` asks for the part of a stage,
    from which on ``left`` k are left, zeros behind these. ``lane_place(start, lane)`` is where a lane reads
    first, and ``load`` reads.
    """

    def __init__(self, tile, by_k, is_left, size):
        """``size``: bytes of a number, 2 or 4."""
        self.bytes = ROW * tile
        turned = size == 4 and not by_k
        tiles = tile // 2 // 16  # of 16 rows or columns, of a warp
        row_bytes = ROW if by_k else size * tile
        moved, self.begin, self.copy = _copies(tile, by_k, size)
        # From one tile of 16 to the next, and from the k of one multiplication to the next.
        add, xor = (16 * row_bytes, 0) if by_k else (0, 16 * size)
        self.step_add, self.step_xor = (0, 32) if by_k else (32 // size * row_bytes, 0)
        if turned:
            below, beside = (4 * row_bytes, 0), (0, 32)  # 4 k further, 8 rows or columns further
            both = below[0], beside[1]
            order = ((0, 0), beside, below, both) if is_left else ((0, 0), below, beside, both)
            self.load = ptx.scattered(tiles, order, add, xor)
        else:
            self.load = ptx.fragments(tiles, add, xor, not by_k)

        @device
        def lane_place(start, lane):
            """Where a lane reads first, for a warp that begins at ``start``."""
            if turned:
                row, column = lane % 4, start + lane // 4
                return moved(row, column // 4) + uint32(column % 4 * 4)
            square, row = lane // 8, lane % 8
            if is_left:  # squares in the order: upper left, lower left, upper right, lower right
                along, across = square % 2, square // 2
            else:  # k first
                along, across = square // 2, square % 2
            if by_k:
                return moved(start + 8 * along + row, across)
            return moved(8 * across + row, start // 8 + along)

        self.lane_place = lane_place


_operand = cache(_Operand)  # of all kernels, so that its functions are compiled once


@cache
def _corner(tile_rows, tile_columns):
    """``corner()``: (row, column) where a block's tile begins."""

    @device
    def corner():
        across = cuda.gridDim.x
        number = uint32(cuda.blockIdx.y * across + cuda.blockIdx.x)
        row, column = place_of(number, uint32(cuda.gridDim.y), uint32(across), uint32(BAND))
        return int64(row) * tile_rows, int64(column) * tile_columns

    return corner


@cache
def kernel(kind, tile, a_by_k, b_by_k, epilogue=AS_IT_IS.epilogue, how=PLAIN):
    """The kernel for tiles of this size. ``a_by_k``: the numbers of a lie next to each other along k,
    else along the rows of the output; ``b_by_k``: the same for b, else along the columns. ``how``: as of
    :func:`.cuda_epilogue.finisher`."""
    tile_rows, tile_columns = tile
    size = 2 if kind == "bf16" else 4
    at_once = ROW // size  # k in a stage
    left, right = _operand(tile_rows, a_by_k, True, size), _operand(tile_columns, b_by_k, False, size)
    copy_a, copy_b, place_a, place_b = left.copy, right.copy, left.lane_place, right.lane_place
    begin_a, begin_b, load_a, load_b = left.begin, right.begin, left.load, right.load
    a_add, a_xor, b_add, b_xor = left.step_add, left.step_xor, right.step_add, right.step_xor
    a_bytes, stage_bytes = left.bytes, left.bytes + right.bytes
    words, last = STAGES * stage_bytes // 4, (STAGES - 1) * stage_bytes
    half_rows, half_columns = tile_rows // 2, tile_columns // 2
    down, across = half_rows // 16, half_columns // 8
    zeros, add = ptx.tensor_sums(down, across, kind)
    ready_a, ready_b = ptx.ready(4 * down, kind), ptx.ready(2 * across, kind)
    finishing = finisher(kind, epilogue, how=how)
    outputs = finishing.outputs
    finish, part = staged(down, across, 2, finishing)
    copies_end, all_copied = ptx.copies_end, ptx.copies_but(0)
    first_copied, next_copied = ptx.copies_but(STAGES - 1), ptx.copies_but(STAGES - 2)
    shared_address, global_address = ptx.shared_address, ptx.global_address
    corner = _corner(tile_rows, tile_columns)

    def matmul_mma(a, a_row, b, b_row, rows, columns, depth, outputs):
        ptx.wait_for_launches()
        memory = cuda.shared.array(words, float32, 1024)
        base = shared_address(memory)
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        top, left = corner()
        from_a = begin_a(global_address(a), a_row, top, rows)
        from_b = begin_b(global_address(b), b_row, left, columns)
        lower, beside = warp % 2 * half_rows, warp // 2 * half_columns
        at_a, at_b = place_a(lower, lane), uint32(a_bytes) + place_b(beside, lane)
        # Of the next stage to ask for: its number, and what is left of k.
        asked, rest = uint32(0), int32(depth)
        while asked < uint32(STAGES):
            stage = base + asked * uint32(stage_bytes)
            copy_a(from_a, asked, rest, stage)
            copy_b(from_b, asked, rest, stage + uint32(a_bytes))
            copies_end()
            asked, rest = uint32(asked + 1), int32(rest - at_once)
        first_copied()
        cuda.syncthreads()
        sums, stage, to_add = zeros(), base, int32(depth)
        words_a, words_b = ready_a(load_a(stage + at_a)), load_b(stage + at_b)
        while to_add > 0:
            # What is multiplied next is read before: its answer takes as long as many products.
            then_a = load_a((stage + at_a + uint32(a_add)) ^ uint32(a_xor))
            then_b = load_b((stage + at_b + uint32(b_add)) ^ uint32(b_xor))
            # The next stage is there for all, and all have read this one, which is filled again: behind the
            # end of k with zeros, which takes less than a jump would.
            next_copied()
            cuda.syncthreads()
            copy_a(from_a, asked, rest, stage)
            copy_b(from_b, asked, rest, stage + uint32(a_bytes))
            copies_end()
            asked, rest, to_add = uint32(asked + 1), int32(rest - at_once), int32(to_add - at_once)
            stage = uint32(stage + stage_bytes if stage < base + uint32(last) else base)
            sums = add(sums, words_a, ready_b(words_b))
            words_a, words_b = load_a(stage + at_a), load_b(stage + at_b)
            sums = add(sums, ready_a(then_a), ready_b(then_b))
            words_a = ready_a(words_a)
        ptx.launch_dependents()
        all_copied()
        cuda.syncthreads()  # all have computed with the last stage
        finish(sums, memory, warp * part, lane, top + lower, left + beside, rows, columns, outputs)

    form = ("n" if a_by_k else "t") + ("t" if b_by_k else "n")
    return Kernel(
        matmul_mma,
        *(WORDS, int64, WORDS, int64, int64, int64, int64, outputs),
        threads=THREADS,
        resident=RESIDENT[tile],
        name=f"matmul_mma {kind} {form} {tile_rows} × {tile_columns}{epilogue.suffix}{suffix_of(how)}",
        least=(8, 0),
        dependent=True,
        simulated=False,
    )


def multiply(
    a,
    b,
    *,
    c=None,
    half=None,
    turned=(False, False),
    bias=None,
    relu=False,
    y_below=None,
    scale=1,
    then=AS_IT_IS,
    tile=None,
):
    """a·b, where ``turned`` says which of a [M, K] and b [K, N] is given transposed (not both); then + bias,
    max(…, 0), · scale, 0 where y_below ≤ 0, and what ``then`` makes of it, each if asked for.

    Shapes: c, half and y_below [M, N], bias [N]; rows may be further apart than they are long. Those of a
    and b begin at multiples of 16 bytes; those of half, and of a y_below in bfloat16, at multiples of 4, and
    have an even length or are padded to one.
    Dtypes: a, b and y_below uint16, the upper halves of float32 (bfloat16), or all float32, of which the
    products take 19 bits (TF32); half uint16; c and bias float32.
    Writes: c, or half (rounded to nearest), or both; the number behind an odd row of half becomes 0.
    Errors: TypeError for another dtype, ValueError for what does not fit.
    Cost: 2·M·N·K flops; a is read once for every 64 or 128 columns, b once for as many rows.
    Rounding: a and b to the nearest TF32, by up to 2⁻¹¹ of each number; bfloat16 is given rounded.
    ``then``: dropout of the product (``kernels.dropout.cuda.dropping``), or an update of the parameters in c,
    whose gradient it is (``kernels.optimizer.cuda.updating``), of which half gets a rounded copy.
    ``tile``: one of TILES, by default a large one where there are enough of these.
    """
    if a.dtype not in (np.uint16, np.float32):
        raise TypeError(f"a must hold bfloat16 as uint16, or float32, got {a.dtype}")
    kind = "bf16" if a.dtype == np.uint16 else "tf32"
    product = Product(kind, a, b, turned, c, half, bias, relu, y_below, scale, then)
    tile = tile or product.tile(TILES, FEW)
    kernel(kind, tile, *product.by_k, then.epilogue, product.how)(
        product.blocks(tile),
        *(words_of(a), row_of(a), words_of(b), row_of(b)),
        *(product.rows, product.columns, product.depth, product.outputs),
    )


# --- rounding -------------------------------------------------------------------------------------


def _round(x, x_row, columns, vectors, across, half, half_row):
    """``across``: blocks beside each other in a row. All are numbered through, as both rows and columns
    may be more than a launch can have below each other. ``vectors``: whether accesses may be of 64 bits."""
    row, pair = cuda.blockIdx.x // across, cuda.blockIdx.x % across * THREADS + cuda.threadIdx.x
    if 2 * pair < columns:
        at = row * x_row + 2 * pair
        if vectors and 2 * pair + 1 < columns:
            first, second = ptx.load2(x, at)
        else:
            first, second = x[at], x[at + 1] if 2 * pair + 1 < columns else float32(0)
        half[row * half_row // 2 + pair] = ptx.bfloat16_pair(first, second)


_rounding = Kernel(
    _round,
    *(FLOATS, int64, int64, int64, int64, WORDS, int64),
    threads=THREADS,
    name="to_bfloat16",
    least=(8, 0),
    simulated=False,
)


def to_bfloat16(x, half):
    """half = x, rounded to the nearest bfloat16.

    Shapes: x and half [R, C]. Dtypes: x float32, half uint16. Writes: half, as :func:`multiply`.
    Cost: reads 4 bytes and writes 2 for each number.
    """
    check_float32(x=x)
    check_shapes(half=(half.shape, x.shape))
    across = blocks_for(blocks_for(x.shape[1], 2), THREADS)
    vectors = row_of(x) % 2 == 0 and address_of(x) % 8 == 0
    numbers = flat(x), row_of(x), x.shape[1], vectors
    _rounding(x.shape[0] * across, *numbers, across, words_of(half), row_of(half))
