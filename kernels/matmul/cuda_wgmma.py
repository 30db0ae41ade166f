"""Matrix products of bfloat16, or of float32 rounded to TF32, on the tensor cores of capability 9.0 (Hopper),
summed in float32.

There is one block for each multiprocessor, which computes one tile of 128 rows after the other. One of its
threads does nothing but ask for copies: a single instruction brings a whole tile of an operand to shared
memory, at the places where the tensor cores want its numbers, zeros beyond the operand's end. Two warpgroups
multiply 64 rows each, with operands that they take from shared memory themselves; none ever passes through a
register. Both sides wait for each other at barriers that count, two for each stage: that its bytes have
arrived, and that both warpgroups have computed with them. While tensor cores compute with one stage, their
warpgroup waits for the next already. Sums go to memory by way of a part of shared memory of their own, or
from their registers where a whole tile is written as it is: the operands of the next tile arrive meanwhile.

Operands of bfloat16 may lie along k or across it: the tensor cores are told how, and read them as they are.
Those of TF32 are read along k alone, so that others are transposed in memory before; the copies round them.

Every number is summed in the order of k: the same bits in every run.

Source: NVIDIA, PTX ISA 9.0, sections 9.7.15.6 (wgmma), 9.7.13.15 (mbarrier) and 9.7.9.27 (tensor copies);
CUTLASS, "Efficient GEMM in CUDA", on warp specialization.
"""

from functools import cache
from math import prod

import numpy as np
from numba import float32, int32, int64, uint32, uint64

from ..common import ptx
from ..common.cuda import MAP, Kernel, TensorMap, blocks_for, cuda, device, multiprocessors
from ..common.fours import AS_IT_IS
from .cuda_epilogue import MASK, PLAIN, Product, by_pieces, finisher, suffix_of
from .cuda_tiles import BAND, place_of
from .cuda_transpose import transposed

GROUP = 128  # threads of a warpgroup
GROUPS = 2  # that compute; one more copies
ROWS = 64 * GROUPS
DEPTH = {"bf16": ptx.LINE // 2, "tf32": ptx.LINE // 4}  # k in a stage
BOX = 64 * ptx.LINE  # bytes of 64 × 64 numbers
A_BYTES = ROWS * ptx.LINE  # of a in a stage
CAPABILITY = (9, 0)
TILES = ((ROWS, 256), (ROWS, 128), (ROWS, 64))
STAGES = {(ROWS, 256): 4, (ROWS, 128): 6, (ROWS, 64): 8}
# Microseconds of a tile: of each stage, and of its end, with nothing to read, with a mask, and with
# parameters and states. From products of the deep network (H200), before a stage took fewer instructions and
# sums that stay as they are were written from their registers.
STAGE_COST = {(ROWS, 256): 0.83, (ROWS, 128): 0.46, (ROWS, 64): 0.36}
END_COST = {(ROWS, 256): (11, 13, 26), (ROWS, 128): (3, 5, 9.5), (ROWS, 64): (2, 2.5, 5.5)}
REGISTERS = 40, 232  # of a thread that copies, and of one that computes: at first each has 168
RUNNING = 1  # stages whose products run while the next is waited for


def _stage_bytes(tile):
    return A_BYTES + tile[1] * ptx.LINE


@cache
def _copier(tile, by_k):
    """``copy(map, start, k, shared, barrier)``: ask for an operand's tile of one stage."""
    boxes = tile // 64

    @device
    def copy(matrix, start, k, shared, barrier):
        if by_k:
            ptx.copy_tile(shared, matrix, k, start, barrier)
        else:
            for box in range(boxes):
                ptx.copy_tile(shared + uint32(box * BOX), matrix, int32(start + 64 * box), k, barrier)

    return copy


@cache
def _behind(stages):
    @device
    def behind(stage, parity):
        """The stage that follows, and the parity of the phases that are waited for there."""
        stage = uint32(stage + uint32(1))
        again = stage == uint32(stages)
        return uint32(0) if again else stage, uint32(parity ^ uint32(1)) if again else parity

    return behind


@cache
def _corner(columns_of_tile):
    @device
    def corner(number, rows, columns, band):
        """(row, column) where the tile of this number begins."""
        down, across = (rows + ROWS - 1) // ROWS, (columns + columns_of_tile - 1) // columns_of_tile
        row, column = place_of(uint32(number), uint32(down), uint32(across), uint32(band))
        return int64(row) * ROWS, int64(column) * columns_of_tile

    return corner


@cache
def _filler(tile, at_once, a_by_k, b_by_k):
    copy_a, copy_b = _copier(ROWS, a_by_k), _copier(tile[1], b_by_k)
    a_bytes, stage_bytes, stages = A_BYTES, _stage_bytes(tile), STAGES[tile]
    behind, corner = _behind(stages), _corner(tile[1])
    barrier_expect, barrier_wait = ptx.barrier_expect, ptx.barrier_wait

    @device
    def fill(from_a, from_b, rows, columns, depth, band, tiles, base, full):
        """Ask for one stage after the other, as they become empty, of all tiles of this block."""
        stage, parity = uint32(0), uint32(1)  # the phase before the first counts as ended
        for number in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            top, left = corner(number, rows, columns, band)
            top, left, k = int32(top), int32(left), int32(0)
            while k < int32(depth):
                place = uint32(base + uint32(stage * uint32(stage_bytes)))
                arrived = uint32(full + uint32(uint32(8) * stage))
                barrier_wait(uint32(arrived + uint32(8 * stages)), parity)
                barrier_expect(arrived, uint32(stage_bytes))
                copy_a(from_a, top, k, place, arrived)
                copy_b(from_b, left, k, uint32(place + uint32(a_bytes)), arrived)
                stage, parity = behind(stage, parity)
                k = int32(k + int32(at_once))

    return fill


@device
def _of_warp(number):
    """A number that all lanes have, so that the assembler knows it: what describes operands then stays in
    registers of the warp, where it is wanted, instead of being brought there before each multiplication."""
    return uint32(cuda.shfl_sync(0xFFFFFFFF, int32(number), 0))


@cache
def _releaser(stages):
    @device
    def release(arrived, thread):
        """One warpgroup has computed with the stage of this barrier."""
        if thread % GROUP == 0:
            ptx.barrier_arrive(uint32(arrived + uint32(8 * stages)))

    return release


@cache
def kernel(kind, tile, a_by_k, b_by_k, epilogue=AS_IT_IS.epilogue, how=PLAIN, running=RUNNING):
    """The kernel for tiles of this size. ``kind``: "bf16" or "tf32". ``a_by_k``: the numbers of a lie next to
    each other along k, as those of "tf32" do, else along the rows of the output; ``b_by_k``: the same for b,
    else along the columns. ``how``: as of :func:`.cuda_epilogue.finisher`. ``running``: how many stages, 0 or
    1, a warpgroup still multiplies while it waits for the next to arrive. There must be at least one k."""
    columns_of_tile, stages, at_once = tile[1], STAGES[tile], DEPTH[kind]
    a_bytes, stage_bytes = A_BYTES, _stage_bytes(tile)
    of_a, of_b = ptx.operand(not a_by_k, BOX), ptx.operand(not b_by_k, BOX)
    sums = ptx.warpgroup_sums(columns_of_tile, kind, not a_by_k, not b_by_k)
    begin, add, wait, wait_for_all = sums.begin, sums.add, sums.wait(running), sums.wait(0)
    # Sums take most registers: few are left for fours that are read for together.
    fours = 2 if columns_of_tile == 256 and epilogue.reads > 1 else 4
    finishing = finisher(kind, epilogue, fours, how)
    expect, begin_with, outputs = finishing.expect, finishing.begin, finishing.outputs
    finish, part = by_pieces(columns_of_tile, finishing)
    barriers = 2 * stages  # of each stage, that it is full, and behind these that it is empty
    give, take = ptx.registers(REGISTERS[0], False), ptx.registers(REGISTERS[1], True)
    shared_address, global_address = ptx.shared_address, ptx.global_address
    barrier_init, barriers_visible, barrier_wait = ptx.barrier_init, ptx.barriers_visible, ptx.barrier_wait
    map_visible, release, of_warp = ptx.map_visible, _releaser(stages), _of_warp
    behind, corner, fill = _behind(stages), _corner(columns_of_tile), _filler(tile, at_once, a_by_k, b_by_k)

    def matmul_wgmma(a, b, rows, columns, depth, band, tiles, outputs):
        ptx.launch_dependents()
        begin()
        counters = cuda.shared.array(barriers, uint64)
        memory = cuda.shared.array(0, float32)
        full = shared_address(counters)
        start = shared_address(memory)
        base = (start + uint32(ptx.EIGHT - 1)) & ~uint32(ptx.EIGHT - 1)
        thread = cuda.threadIdx.x
        if thread == 0:
            for stage in range(stages):
                barrier_init(full + uint32(8 * stage), uint32(1))
                barrier_init(full + uint32(8 * (stages + stage)), uint32(GROUPS))
            barriers_visible()
        cuda.syncthreads()
        if thread >= GROUPS * GROUP:
            give()
            if thread == GROUPS * GROUP:
                from_a, from_b = global_address(a), global_address(b)
                map_visible(from_a)  # which the launches before have not written
                map_visible(from_b)
                ptx.wait_for_launches()
                fill(from_a, from_b, rows, columns, depth, band, tiles, base, full)
            return
        take()
        ptx.wait_for_launches()
        first_a = uint32(uint32(base + uint32(of_warp(thread // GROUP) * uint32(BOX))) >> uint32(4)) | of_a
        first_b = uint32(uint32(base + uint32(a_bytes)) >> uint32(4)) | of_b
        warp, lane = thread // 32, thread % 32
        own = int64((base - start) // uint32(4)) + stages * stage_bytes // 4 + warp * part
        stage, parity, computed = uint32(0), uint32(0), uint32(0)
        shared = begin_with(outputs)
        for number in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            top, left = corner(number, rows, columns, band)
            if lane < 16:  # a row each: from memory while the products are computed
                expect(top + warp * 16 + lane, left, columns_of_tile, rows, columns, outputs)
            k, more = int32(0), uint32(0)
            while k < int32(depth):
                arrived = uint32(full + uint32(uint32(8) * stage))
                further = uint32(of_warp(stage) * uint32(stage_bytes >> 4))
                barrier_wait(arrived, parity)
                add(uint32(first_a + further), uint32(first_b + further), more)
                wait()
                if not running:
                    release(arrived, thread)
                elif more:
                    release(computed, thread)
                computed, more, k = arrived, uint32(1), int32(k + int32(at_once))
                stage, parity = behind(stage, parity)
            if running:
                wait_for_all()
                release(computed, thread)
            finish(memory, own, shared, lane, top + 16 * warp, left, rows, columns, outputs)

    suffix = epilogue.suffix + suffix_of(how) + ("" if running else ", none running")
    form = ("n" if a_by_k else "t") + ("t" if b_by_k else "n")
    return Kernel(
        matmul_wgmma,
        *(MAP, MAP, int64, int64, int64, int64, int64, outputs),
        threads=(GROUPS + 1) * GROUP,
        resident=1,
        name=f"matmul_wgmma {kind} {form} {ROWS} × {columns_of_tile}{suffix}",
        only=CAPABILITY,
        dependent=True,
        shared=stages * stage_bytes + ptx.EIGHT + GROUPS * 4 * part * 4,
        simulated=False,
    )


def tile_for(product, at_once, blocks):
    """The one of TILES with which so many blocks are done first, ``at_once`` k in a stage: each computes as
    many tiles as the one that computes most of them."""
    stages, end = blocks_for(product.depth, at_once), 2 if product.reads else 1 if product.how & MASK else 0

    def cost(tile):
        of_one = stages * STAGE_COST[tile] + END_COST[tile][end]
        return blocks_for(prod(product.blocks(tile)), blocks) * of_one

    return min(TILES, key=cost)


def _map(matrix, by_k, tile, at_once):
    return TensorMap(matrix, (tile, at_once) if by_k else (at_once, 64))


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
    band=BAND,
    blocks=None,
    running=RUNNING,
):
    """What :func:`.cuda_mma.multiply` does, on GPUs of capability 9.0.

    Cost: a is read once for every 64, 128 or 256 columns, b once for every 128 rows; an operand of float32
    whose numbers are not next to each other along k is copied before, transposed.
    Rounding: what lies halfway between two numbers of TF32 becomes the even one.
    ``tile``: one of TILES, by default :func:`tile_for` this product. ``band``: how many rows of
    tiles are walked together (:func:`place_of`). ``blocks``: how many blocks share the tiles, by default one
    for each multiprocessor. ``running``: see :func:`kernel`.
    """
    if a.dtype not in (np.uint16, np.float32):
        raise TypeError(f"a must hold bfloat16 as uint16, or float32, got {a.dtype}")
    kind = "bf16" if a.dtype == np.uint16 else "tf32"
    product = Product(kind, a, b, turned, c, half, bias, relu, y_below, scale, then)
    blocks, at_once = blocks or multiprocessors(), DEPTH[kind]
    tile = tile or tile_for(product, at_once, blocks)
    a_by_k, b_by_k = product.by_k
    if kind == "tf32":
        a, b = a if a_by_k else transposed(a), b if b_by_k else transposed(b)
        a_by_k = b_by_k = True
    across, down = product.blocks(tile)
    other = () if running == RUNNING else (running,)  # the usual kernel is one, however it was asked for
    kernel(kind, tile, a_by_k, b_by_k, then.epilogue, product.how, *other)(
        min(blocks, across * down),
        *(_map(a, a_by_k, ROWS, at_once), _map(b, b_by_k, tile[1], at_once)),
        *(product.rows, product.columns, product.depth, band, across * down, product.outputs),
    )
