"""Matrix products on tensor cores, summed in float32: of bfloat16, or of float32 whose last 13 bits are
not looked at (TF32). For capability 8.0 and more.

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

import numpy as np
from numba import float32, int64, uint32, uint64

from ..common import ptx
from ..common.cuda import FLOATS, WORDS, Kernel, blocks_for, check_float32, check_shapes, cuda, device, flat
from ..common.cuda import row_distance as row_of

THREADS = 128
ROW = 64  # bytes of a row in a stage: 32 k of bfloat16, 16 of float32
STAGES = 3  # 48 KiB for a tile of 128 × 128: what a block gets without asking for more

# What becomes of a finished number, in this order, and where it goes.
BIAS, RELU, MASK, WHOLE, PAIRS, HALVES = 1, 2, 4, 8, 16, 32


@device
def _positive(y_below, at, size):
    """Which of two numbers beside each other are above zero."""
    zero = float32(0)
    if size == 2:
        word = y_below[at // 2]
        return ptx.low_half(word) > zero, ptx.high_half(word) > zero
    return ptx.float_of(y_below[at]) > zero, ptx.float_of(y_below[min(at + 1, y_below.size - 1)]) > zero


@device
def _finish2(
    values, row, column, rows, columns, bias, y_below, y_row, scale, c, c_row, half, half_row, how, size
):
    """Two sums beside each other: what ``how`` asks for, then to c, to ``half``, or to both."""
    if row >= rows or column >= columns:
        return
    both = column + 1 < columns
    zero = float32(0)
    first, second = values
    if how & BIAS:
        first += bias[column]
        second += bias[column + 1] if both else zero
    if how & RELU:
        first = zero if first < zero else first
        second = zero if second < zero else second
    first *= scale
    second *= scale
    if how & MASK:
        passes = _positive(y_below, row * y_row + column, size)
        first, second = first if passes[0] else zero, second if passes[1] else zero
    if how & WHOLE:
        at = row * c_row + column
        if both and how & PAIRS:
            ptx.store2(c, at, (first, second))
        else:
            c[at] = first
            if both:
                c[at + 1] = second
    if how & HALVES:
        # What lies behind the last column is padding, which stays zero.
        half[(row * half_row + column) // 2] = ptx.bfloat16_pair(first, second if both else zero)


def _finisher(down, across, place, size):
    """A device function for one piece of 16 × 8 of a warp's sums."""
    end = place + 4

    @device
    def finish(sums, row, column, rows, columns, bias, y_below, y_row, scale, c, c_row, half, half_row, how):
        four = sums[place:end]
        _finish2(
            *(four[0:2], row + down, column + across, rows, columns),
            *(bias, y_below, y_row, scale, c, c_row, half, half_row, how, size),
        )
        _finish2(
            *(four[2:4], row + down + 8, column + across, rows, columns),
            *(bias, y_below, y_row, scale, c, c_row, half, half_row, how, size),
        )

    return finish


class _Operand:
    """How the tile of one operand lies in a stage, and how copies and fragments find their way in it."""

    def __init__(self, tile, by_k, is_left, size):
        """``size``: bytes of a number, 2 or 4."""
        self.bytes = ROW * tile
        numbers, turned = 16 // size, size == 4 and not by_k
        tiles = tile // 2 // 16  # of 16 rows or columns, of a warp
        row_bytes = ROW if by_k else size * tile
        chunks = row_bytes // 16  # of 16 bytes, in a row
        pieces = self.bytes // 16 // THREADS  # that a thread copies
        rows_at_once = THREADS // chunks  # after so many the exchange is the same again
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
        def moved(row, chunk):
            """Where 16 bytes lie."""
            shift = row // 2 % 4 if by_k else 2 * (row % 4) if turned else row % 8
            return uint32(row * row_bytes + (chunk ^ shift) * 16)

        @device
        def copy(address, row_distance, start, k, count, depth, shared):
            """Ask for this thread's part of a tile that begins at row or column ``start``."""
            row, chunk = cuda.threadIdx.x // chunks, cuda.threadIdx.x % chunks
            place = shared + moved(row, chunk)  # the exchange is the same some rows below
            if by_k:
                row, column, rows, columns = start + row, k + numbers * chunk, count, depth
            else:
                row, column, rows, columns = k + row, start + numbers * chunk, depth, count
            within = uint32(max(min(size * (columns - column), 16), 0))
            rows_left = uint32(max(rows - row, 0))
            source = address + uint64(size * (row * row_distance + column))
            further = uint64(size * rows_at_once * row_distance)
            for piece in range(pieces):
                asked = within if uint32(piece * rows_at_once) < rows_left else uint32(0)
                ptx.copy_16(place + uint32(piece * rows_at_once * row_bytes), source, asked)
                source += further

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

        self.copy, self.lane_place = copy, lane_place


def _product(kind, tile_rows, tile_columns, a_by_k, b_by_k, resident):
    """The kernel for tiles of this size. ``a_by_k``: the numbers of a lie next to each other along k,
    else along the rows of the output; ``b_by_k``: the same for b, else along the columns."""
    size = 2 if kind == "bf16" else 4
    at_once = ROW // size  # k in a stage
    left, right = _Operand(tile_rows, a_by_k, True, size), _Operand(tile_columns, b_by_k, False, size)
    copy_a, copy_b, place_a, place_b = left.copy, right.copy, left.lane_place, right.lane_place
    load_a, load_b = left.load, right.load
    a_add, a_xor, b_add, b_xor = left.step_add, left.step_xor, right.step_add, right.step_xor
    a_bytes, stage_bytes = left.bytes, left.bytes + right.bytes
    words = STAGES * stage_bytes // 4
    half_rows, half_columns = tile_rows // 2, tile_columns // 2
    down, across = half_rows // 16, half_columns // 8
    zeros, add = ptx.tensor_sums(down, across, kind)
    finish = ptx.sequence(
        [_finisher(16 * i, 8 * j, 4 * (i * across + j), size) for i in range(down) for j in range(across)]
    )
    copies_end, all_but_one = ptx.copies_end, ptx.copies_but(1)
    shared_address, global_address = ptx.shared_address, ptx.global_address

    def matmul_mma(
        a, a_row, b, b_row, c, c_row, half, half_row, rows, columns, depth, bias, y_below, y_row, scale, how
    ):
        memory = cuda.shared.array(words, uint32, 1024)
        base = shared_address(memory)
        from_a, from_b = global_address(a), global_address(b)
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        top, left = cuda.blockIdx.y * tile_rows, cuda.blockIdx.x * tile_columns
        below, beside = warp % 2 * half_rows, warp // 2 * half_columns
        at_a, at_b = place_a(below, lane), uint32(a_bytes) + place_b(beside, lane)
        turns = (depth + at_once - 1) // at_once
        for turn in range(STAGES - 1):
            if turn < turns:
                stage = base + uint32(turn * stage_bytes)
                copy_a(from_a, a_row, top, turn * at_once, rows, depth, stage)
                copy_b(from_b, b_row, left, turn * at_once, columns, depth, stage + uint32(a_bytes))
            copies_end()
        sums = zeros()
        for turn in range(turns):
            all_but_one()
            # This stage is there for all, and all have computed with the one that is filled next.
            cuda.syncthreads()
            after = turn + STAGES - 1
            if after < turns:
                stage = base + uint32(after % STAGES * stage_bytes)
                copy_a(from_a, a_row, top, after * at_once, rows, depth, stage)
                copy_b(from_b, b_row, left, after * at_once, columns, depth, stage + uint32(a_bytes))
            copies_end()
            stage = base + uint32(turn % STAGES * stage_bytes)
            for step in range(2):
                words_a = load_a((stage + at_a + uint32(step * a_add)) ^ uint32(step * a_xor))
                words_b = load_b((stage + at_b + uint32(step * b_add)) ^ uint32(step * b_xor))
                sums = add(sums, words_a, words_b)
        finish(
            *(sums, top + below + lane // 4, left + beside + lane % 4 * 2, rows, columns),
            *(bias, y_below, y_row, scale, c, c_row, half, half_row, how),
        )

    arguments = [WORDS, int64, WORDS, int64, FLOATS, int64, WORDS, int64, int64, int64, int64]
    arguments += [FLOATS, WORDS, int64, float32, int64]
    form = ("n" if a_by_k else "t") + ("t" if b_by_k else "n")
    name = f"matmul_mma {kind} {form} {tile_rows} × {tile_columns}"
    return Kernel(
        matmul_mma, *arguments, threads=THREADS, resident=resident, name=name, least=(8, 0), simulated=False
    )


TILES = ((128, 128), (64, 64))
FEW = 128  # large tiles of an output: fewer do not occupy a large GPU
_KERNELS = {
    (kind, tile, a_by_k, b_by_k): _product(kind, *tile, a_by_k, b_by_k, resident)
    for kind in ("bf16", "tf32")
    for tile, resident in zip(TILES, (2, 4), strict=True)
    for a_by_k, b_by_k in ((True, False), (True, True), (False, False))
}


def _words(array):
    """A matrix whose numbers, of uint16 or float32, fill words: as a vector of these."""
    count = (array.shape[0] - 1) * row_of(array) + array.shape[1]
    if array.itemsize == 2:
        if _address_of(array) % 4 or (array.shape[0] > 1 and row_of(array) % 2):
            raise ValueError("the rows of a matrix of bfloat16 must begin at multiples of 4 bytes")
        count = -(-count // 2)
    if isinstance(array, np.ndarray):
        # Through a vector of the matrix's own numbers: only these can be seen as others.
        each = 4 // array.itemsize
        whole = np.lib.stride_tricks.as_strided(array, (count * each,), (array.itemsize,))
        return whole.view(np.uint32)
    return type(array)((count,), np.uint32, memptr=array.data)


def multiply(
    a, b, *, c=None, half=None, turned=(False, False), bias=None, relu=False, y_below=None, scale=1, tile=None
):
    """a·b, where ``turned`` says which of a [M, K] and b [K, N] is given transposed (not both); then + bias,
    max(…, 0), · scale, and 0 where y_below ≤ 0, each if asked for.

    Shapes: c, half and y_below [M, N], bias [N]; rows may be further apart than they are long. Those of a
    and b begin at multiples of 16 bytes; those of half, and of a y_below in bfloat16, at multiples of 4, and
    have an even length or are padded to one.
    Dtypes: a, b and y_below uint16, the upper halves of float32 (bfloat16), or all float32, of which the
    products take the upper 19 bits (TF32); half uint16; c and bias float32.
    Writes: c, or half (rounded to nearest), or both; the number behind an odd row of half becomes 0.
    Errors: TypeError for another dtype, ValueError for what does not fit.
    Cost: 2·M·N·K flops; a is read once for every 64 or 128 columns, b once for as many rows.
    Rounding: TF32 cuts each number of a and b by up to 2⁻¹⁰ of itself, bfloat16 is given rounded.
    ``tile``: one of TILES, by default a large one where there are enough of these.
    """
    if a.dtype not in (np.uint16, np.float32):
        raise TypeError(f"a must hold bfloat16 as uint16, or float32, got {a.dtype}")
    for name, array, dtype in (("b", b, a.dtype), ("y_below", y_below, a.dtype), ("half", half, np.uint16)):
        if array is not None and array.dtype != dtype:
            raise TypeError(f"{name} must be an array of {np.dtype(dtype)} here, got {array.dtype}")
    check_float32(c=c, bias=bias)
    (depth, rows) = a.shape if turned[0] else a.shape[::-1]
    columns = b.shape[0] if turned[1] else b.shape[1]
    check_shapes(b=(b.shape, (columns, depth) if turned[1] else (depth, columns)))
    for name, array in (("c", c), ("half", half), ("y_below", y_below)):
        if array is not None:
            check_shapes(**{name: (array.shape, (rows, columns))})
    for name, array in (("a", a), ("b", b)):
        if not _in_pieces(array, 16):
            raise ValueError(f"the rows of {name} must begin at multiples of 16 bytes")
    if tile is None:
        many = blocks_for(rows, TILES[0][0]) * blocks_for(columns, TILES[0][1])
        tile = TILES[0] if many >= FEW else TILES[1]
    how = BIAS * (bias is not None) + RELU * bool(relu) + MASK * (y_below is not None)
    how += WHOLE * (c is not None) + HALVES * (half is not None)
    how += PAIRS * (c is not None and _in_pieces(c, 8))
    no_words = _words(a)[:0]
    no_floats = no_words.view(np.float32)
    kind = "bf16" if a.dtype == np.uint16 else "tf32"
    _KERNELS[kind, tile, not turned[0], turned[1]](
        (blocks_for(columns, tile[1]), blocks_for(rows, tile[0])),
        *(_words(a), row_of(a), _words(b), row_of(b)),
        *((no_floats, 0) if c is None else (flat(c), row_of(c))),
        *((no_words, 0) if half is None else (_words(half), row_of(half))),
        *(rows, columns, depth),
        no_floats if bias is None else flat(bias),
        *((no_words, 0) if y_below is None else (_words(y_below), row_of(y_below))),
        scale,
        how,
    )


def _address_of(array):
    return array.data.ptr if hasattr(array.data, "ptr") else array.__array_interface__["data"][0]


def _in_pieces(matrix, size):
    """Whether all rows of a matrix begin at multiples of so many bytes."""
    apart = row_of(matrix) * matrix.itemsize if matrix.shape[0] > 1 else 0
    return (_address_of(matrix) | apart) % size == 0


# --- rounding -------------------------------------------------------------------------------------


def _round(x, x_row, columns, half, half_row):
    pair = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if 2 * pair < columns:
        at = cuda.blockIdx.y * x_row + 2 * pair
        second = x[at + 1] if 2 * pair + 1 < columns else float32(0)
        half[cuda.blockIdx.y * half_row // 2 + pair] = ptx.bfloat16_pair(x[at], second)


_rounding = Kernel(
    _round,
    *(FLOATS, int64, int64, WORDS, int64),
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
    blocks = blocks_for(blocks_for(x.shape[1], 2), THREADS), x.shape[0]
    _rounding(blocks, flat(x), row_of(x), x.shape[1], _words(half), row_of(half))
