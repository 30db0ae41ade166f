"""Matrix products with the GPU's ordinary multiply-adds, in float32, for every capability and the simulator.

A block computes one tile of the output. For ``DEPTH`` k at a time it copies what it needs of both
operands to shared memory, k by k, so that a thread gets 8 numbers of a row and 8 of a column with
four accesses of 128 bits, for 64 multiply-adds. While it computes, the next numbers are already on
their way to its registers, and from there to the other half of the shared memory: one barrier a turn.

A warp computes 32 × 64 numbers, a thread rows r … r + 3 and r + 16 … r + 19 of columns c … c + 3 and
c + 32 … c + 35, so that neighbouring lanes read and write what lies next to each other.

Where the numbers of an operand are next to each other along k, they are turned on the way. Lanes then
write four rows of shared memory at once, which lie in the same banks: so number m of row k is stored at
m xor 128 / DEPTH · (k / 4). Four that are read together stay together.

Every number is summed in the order of k by one thread: the same bits in every run.

Source: Volkov, Demmel, "Benchmarking GPUs to tune dense linear algebra", SC 2008; NVIDIA, CUTLASS,
"Efficient GEMM in CUDA".
"""

from functools import cache

from numba import float32, int64, uint64

from ..common import ptx
from ..common.cuda import ALIGNED, FLOATS, Kernel, cuda, device, flat
from ..common.cuda import row_distance as row_of
from ..common.fours import AS_IT_IS, THREE, TWO, read4_of
from ..common.ptx import add_outer, fold, load4, no_sums, sequence, store4
from .cuda_epilogue import VECTORS, Product, finisher

TILES = ((128, 128), (64, 64))
RESIDENT = {(128, 128): 1, (64, 64): 6}
FEW = 128  # large tiles of an output: fewer do not occupy a large GPU


@cache
def _finisher(finishing, threads):
    """``finish(sums, memory, row, column, rows, columns, outputs)``: a thread's sums, by way of 16 numbers of
    its own in shared memory, where a loop can count through them (see :mod:`.cuda_epilogue`)."""

    begin, bias, finish4 = finishing.begin, finishing.bias, finishing.one

    def part(first, down):
        """Two rows of eight numbers, ``down`` rows below the first."""
        second, third, fourth, end = (first + 4 * i for i in range(1, 5))

        @device
        def part(sums, memory, shared, row, column, rows, columns, outputs):
            thread = cuda.threadIdx.x
            mine = 4 * thread
            store4(memory, mine, sums[first:second])
            store4(memory, mine + 4 * threads, sums[second:third])
            store4(memory, mine + 8 * threads, sums[third:fourth])
            store4(memory, mine + 12 * threads, sums[fourth:end])
            for item in range(thread, 4 * threads, threads):
                four, i = load4(memory, 4 * item), item // threads
                right = column + i % 2 * 32
                added = bias(right, columns, outputs)
                finish4(four, added, shared, row + down + i // 2, right, rows, columns, outputs)

        return part

    all_parts = sequence([part(16 * i, down) for i, down in enumerate((0, 2, 16, 18))])

    @device
    def finish(sums, memory, row, column, rows, columns, outputs):
        all_parts(sums, memory, begin(outputs), row, column, rows, columns, outputs)

    return finish


def _threads(tile):
    return tile[0] * tile[1] // 64


def _depth(tile):
    """The k of a turn: two accesses of 128 bits to each operand, for each thread."""
    return 16 if tile[0] == 128 else 8


@cache
def _turning(tile):
    """``fetch``, ``keep`` and ``compute`` of a tile's kernels: an operand's numbers from memory to registers,
    from there to shared memory, and what is there multiplied."""
    tile_rows, tile_columns = tile
    threads, depth_at_once = _threads(tile), _depth(tile)
    fours = depth_at_once // 4
    turn = 128 // depth_at_once

    @device
    def fetch(vector, row_distance, by_k, tile, piece, start, k, count, depth, vectors):
        """A thread's four numbers of piece 0 or 1 of an operand's tile, from row or column ``start`` on."""
        part = cuda.threadIdx.x + piece * threads
        if by_k:
            return read4_of(
                vector, start + part // fours, row_distance, k + part % fours * 4, count, depth, vectors
            )
        return read4_of(
            vector,
            k + part // (tile // 4),
            row_distance,
            start + part % (tile // 4) * 4,
            depth,
            count,
            vectors,
        )

    @device
    def keep(shared, base, by_k, tile, piece, values):
        """Put them into shared memory, k by k."""
        part = cuda.threadIdx.x + piece * threads
        if by_k:
            four = part % fours
            at = base + four * 4 * tile + (part // fours ^ four * turn)
            at, beyond = uint64(at), uint64(tile)
            shared[at] = values[0]
            shared[at + beyond] = values[1]
            shared[at + TWO * beyond] = values[2]
            shared[at + THREE * beyond] = values[3]
        else:
            k = part // (tile // 4)
            store4(shared, base + k * tile + (part % (tile // 4) * 4 ^ k // 4 * turn), values)

    def step(i):
        """A device function that adds the products of one k of those in shared memory."""
        moved, a_before, b_before = i // 4 * turn, i * tile_rows, i * tile_columns

        @device
        def step(sums, strip, from_a, row, panel, from_b, column):
            return add_outer(
                sums,
                load4(strip, from_a + (row ^ moved) + a_before),
                load4(strip, from_a + (row + 16 ^ moved) + a_before),
                load4(panel, from_b + (column ^ moved) + b_before),
                load4(panel, from_b + (column + 32 ^ moved) + b_before),
            )

        return step

    compute = fold([step(i) for i in range(depth_at_once)])

    return fetch, keep, compute


@cache
def kernel(kind, tile, a_by_k, b_by_k, epilogue=AS_IT_IS.epilogue):
    """The kernel for tiles of this size. ``a_by_k``: the numbers of a lie next to each other along k,
    else along the rows of the output; ``b_by_k``: the same for b, else along the columns."""
    tile_rows, tile_columns = tile
    threads, depth_at_once = _threads(tile), _depth(tile)
    finishing = finisher(kind, epilogue)
    finish, outputs = _finisher(finishing, threads), finishing.outputs
    warps_down = tile_rows // 32
    half_a, half_b = depth_at_once * tile_rows, depth_at_once * tile_columns
    all_a, all_b = 2 * half_a, 2 * half_b
    fetch, keep, compute = _turning(tile)

    def matmul_simt(a, a_row, b, b_row, rows, columns, depth, outputs):
        ptx.wait_for_launches()
        # Two halves: one is read while the other is filled.
        strip = cuda.shared.array(all_a, float32, ALIGNED)
        panel = cuda.shared.array(all_b, float32, ALIGNED)
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        top, left = cuda.blockIdx.y * tile_rows, cuda.blockIdx.x * tile_columns
        row, column = warp % warps_down * 32 + lane // 8 * 4, warp // warps_down * 64 + lane % 8 * 4
        vectors = outputs[0] & VECTORS
        sums = no_sums()
        half = 0
        a_0 = fetch(a, a_row, a_by_k, tile_rows, 0, top, 0, rows, depth, vectors)
        a_1 = fetch(a, a_row, a_by_k, tile_rows, 1, top, 0, rows, depth, vectors)
        b_0 = fetch(b, b_row, b_by_k, tile_columns, 0, left, 0, columns, depth, vectors)
        b_1 = fetch(b, b_row, b_by_k, tile_columns, 1, left, 0, columns, depth, vectors)
        for k in range(0, depth, depth_at_once):
            keep(strip, half * half_a, a_by_k, tile_rows, 0, a_0)
            keep(strip, half * half_a, a_by_k, tile_rows, 1, a_1)
            keep(panel, half * half_b, b_by_k, tile_columns, 0, b_0)
            keep(panel, half * half_b, b_by_k, tile_columns, 1, b_1)
            # Whoever passes has computed with the other half, which the next turn fills.
            cuda.syncthreads()
            after = k + depth_at_once
            if after < depth:
                a_0 = fetch(a, a_row, a_by_k, tile_rows, 0, top, after, rows, depth, vectors)
                a_1 = fetch(a, a_row, a_by_k, tile_rows, 1, top, after, rows, depth, vectors)
                b_0 = fetch(b, b_row, b_by_k, tile_columns, 0, left, after, columns, depth, vectors)
                b_1 = fetch(b, b_row, b_by_k, tile_columns, 1, left, after, columns, depth, vectors)
            sums = compute(sums, strip, half * half_a, row, panel, half * half_b, column)
            half = 1 - half
        ptx.launch_dependents()
        cuda.syncthreads()  # all have computed with the last half
        finish(sums, strip, top + row, left + column, rows, columns, outputs)

    form = ("n" if a_by_k else "t") + ("t" if b_by_k else "n")
    return Kernel(
        matmul_simt,
        *(FLOATS, int64, FLOATS, int64, int64, int64, int64, outputs),
        threads=threads,
        resident=RESIDENT[tile],
        dependent=True,
        name=f"matmul_simt {form} {tile_rows} × {tile_columns}{epilogue.suffix}",
    )


def multiply(
    a, b, c, *, turned=(False, False), bias=None, relu=False, y_below=None, scale=1, then=AS_IT_IS, tile=None
):
    """c = a·b, where ``turned`` says which of a [M, K] and b [K, N] is given transposed (not both); then
    c + bias, max(c, 0), scale · c where y_below > 0 else 0, and what ``then`` makes of it, each if asked for.

    Shapes: c [M, N], bias [N], y_below [M, N]; rows may be further apart than they are long.
    Dtypes: all float32. Writes: c.
    Cost: 2·M·N·K flops; a is read once for every 64 or 128 columns, b once for as many rows.
    ``then``: dropout of the product (``kernels.dropout.cuda.dropping``), or an update of the parameters in c,
    whose gradient it is (``kernels.optimizer.cuda.updating``).
    ``tile``: one of TILES, by default a large one where there are enough of these.
    """
    product = Product("float32", a, b, turned, c, None, bias, relu, y_below, scale, then)
    tile = tile or product.tile(TILES, FEW)
    kernel("float32", tile, *product.by_k, then.epilogue)(
        product.blocks(tile),
        *(flat(a), row_of(a), flat(b), row_of(b)),
        *(product.rows, product.columns, product.depth, product.outputs),
    )
