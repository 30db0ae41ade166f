"""Matrix products in bfloat16 on processors with tile registers (:mod:`~..common.amx`).

Tiles multiply twenty times as fast as vectors, so a product is as quick as its operands come. All of
them are rounded and copied into tiles: up to GROUP panels of 32 columns of the right operand and up to
MOST strips of 32 rows of the left one, for DEPTH steps at a time, read in long runs, which the processor
fetches ahead. One strip then stays in the first cache while it meets the panels, which come from the
second; and what the output is combined with is asked for while the tiles before it are computed.

The order of every sum is that of k, whatever the cut of the work: the bits do not depend on threads.
"""

import numpy as np
from numba.extending import register_jitable

from ..common.amx import (
    COLUMNS,
    ROWS,
    STEPS,
    TILE,
    configure_tiles,
    multiply_tiles,
    release_tiles,
)
from ..common.compiling import inner
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import ONE, ZERO, fill, floats
from ..common.simd import halve_some, micro_kernel, pair_rows, read, transposer, write_half
from ..common.tiles import AVX512
from .pieces import beside, finish

DEPTH = 512  # k at a time: a strip of so many steps is 32 KiB
STRIP, PANEL = 2 * ROWS, 2 * COLUMNS
GROUP = 30  # panels that are copied together, 960 KiB of a second-level cache of 2 MiB
MOST = 40  # strips that are copied together, 1.3 MB: they stream through the second-level cache
HIGH = AVX512.rows
NO_FLOOR = np.float32(-np.inf)

_vectors = micro_kernel(AVX512)  # for the edges of the output, and for ReLU
_transpose, _transpose_pairs = transposer(16), transposer(16, halve=True)


@register_jitable
def _depth_in_tiles(depth):
    """How many tiles lie behind each other in k, of what is copied together."""
    return -(-min(depth, DEPTH) // STEPS)


@register_jitable
def _nearly_equal(count, most):
    """How many of so many things are taken together, nearly equal numbers and at most so many."""
    return -(-count // max(1, -(-count // most)))


@register_jitable
def _piece_row(panels):
    """The distance of rows in the piece of an output that is not stored: an odd number of cache lines."""
    return (2 * panels | 1) * 16


@register_jitable
def room_for(rows, columns, depth):
    """How many float32 numbers of working space :func:`product` needs, for parts of so many or fewer."""
    size = 2 * TILE // SIZE * _depth_in_tiles(depth)
    strips, panels = min(-(-rows // STRIP), MOST), min(-(-columns // PANEL), GROUP)
    edges = 16 + PANEL + STRIP * PANEL + TILE // SIZE  # to start a line, and what product() has besides
    return edges + size * (strips + panels) + STRIP * _piece_row(panels)


@inner
def _pack_panels(b, b_step, b_column, depth, columns, panels):
    """Copy so many columns of b into right tiles: of panel p, at panels + p · 2 · TILE · pairs of tiles."""
    pairs = _depth_in_tiles(depth)
    if b_column == 1:
        for k in range(0, STEPS * pairs, 2):
            row, place = b + SIZE * k * b_step, panels + k // STEPS * 2 * TILE + k % STEPS * 32
            after = 1 if k + 1 < depth else 0
            for j in range(0, columns, COLUMNS):
                wide = min(COLUMNS, columns - j) if k < depth else 0
                target = place + (j // PANEL * pairs * 2 + j % PANEL // COLUMNS) * TILE
                pair_rows(row + SIZE * j, row + SIZE * (after * b_step + j), wide, after * wide, target)
        return
    for j in range(0, columns, COLUMNS):
        place, wide = (
            panels + (j // PANEL * pairs * 2 + j % PANEL // COLUMNS) * TILE,
            min(COLUMNS, columns - j),
        )
        whole = depth // STEPS if b_step == 1 and wide == COLUMNS else 0
        for pair in range(whole):
            source = b + SIZE * (j * b_column + STEPS * pair)
            _transpose_pairs(source, b_column, place + 2 * TILE * pair, COLUMNS)
        for pair in range(whole, pairs):
            tile = place + 2 * TILE * pair
            fill(floats(tile, TILE // SIZE), 0)
            for k in range(min(STEPS, depth - STEPS * pair)):
                for i in range(wide):
                    number = read(b + SIZE * ((STEPS * pair + k) * b_step + (j + i) * b_column))
                    write_half(tile + k // 2 * 64 + 4 * i + k % 2 * 2, number)


@inner
def _pack_strips(a, a_row, a_step, depth, rows, square, strips):
    """Copy so many rows of a into left tiles: of strip s, at strips + s · 2 · TILE · pairs of tiles.

    What is missing of the last strip stays as it is: sums of it are not used. ``square`` is the
    address of room for a tile.
    """
    pairs = _depth_in_tiles(depth)
    if a_row == 1 and a_step != 1:
        for pair in range(pairs):
            k = STEPS * pair
            for i in range(0, rows, ROWS):
                tall = min(ROWS, rows - i)
                for step in range(0, STEPS, 2):
                    row = a + SIZE * ((k + step) * a_step + i)
                    after = 1 if k + step + 1 < depth else 0
                    high = tall if k + step < depth else 0
                    pair_rows(row, row + SIZE * after * a_step, high, after * tall, square + 32 * step)
                tile = strips + (i // STRIP * pairs * 2 + pair * 2 + i % STRIP // ROWS) * TILE
                _transpose(square, 16, tile, 16)
        return
    for i in range(rows):
        row, place = (
            a + SIZE * i * a_row,
            strips + (i // STRIP * pairs * 2 + i % STRIP // ROWS) * TILE + i % ROWS * 64,
        )
        for pair in range(pairs):
            k, target = STEPS * pair, place + 2 * TILE * pair
            if a_step == 1:
                halve_some(row + SIZE * k, min(STEPS, depth - k), target)
            else:
                fill(floats(target, 16), 0)
                for step in range(min(STEPS, depth - k)):
                    write_half(target + 2 * step, read(row + SIZE * (k + step) * a_step))


@inner
def _copy(source, source_row, target, target_row, rows, columns, floor):
    """target = max(source, floor), for at most 32 × 32 numbers."""
    for i in range(0, rows, HIGH):
        here, there = source + SIZE * i * source_row, target + SIZE * i * target_row
        high = min(HIGH, rows - i)
        _vectors(
            ZERO,
            ZERO,
            ZERO,
            ZERO,
            ZERO,
            here,
            source_row,
            there,
            target_row,
            ZERO,
            ZERO,
            high,
            columns,
            floor,
        )


@inner
def product(a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor, half, room, details):
    """As :func:`.cpu.product` with both operands rounded to bfloat16; ``room`` holds :func:`room_for`."""
    top, bottom, left, right = part
    rows, columns = bottom - top, right - left
    if rows <= 0 or columns <= 0:
        return
    count, heap = -(-columns // PANEL), -(-rows // STRIP)
    group, most = _nearly_equal(count, GROUP), _nearly_equal(heap, MOST)
    groups, heaps, blocks = -(-count // group), -(-heap // most), -(-depth // DEPTH)
    size = 2 * TILE * _depth_in_tiles(depth)
    zeros = -(-room // 64) * 64
    edge = zeros + SIZE * PANEL
    square = edge + SIZE * STRIP * PANEL
    panels = square + TILE
    strips = panels + group * size
    piece = strips + most * size
    fill(floats(zeros, PANEL), 0)
    strips_of = -ONE, -ONE
    configure_tiles()
    for turn in range(blocks * groups * heaps):
        from_k, first, above = (
            turn // heaps // groups * DEPTH,
            turn // heaps % groups * group,
            turn % heaps * most,
        )
        deep, behind, below = min(DEPTH, depth - from_k), min(first + group, count), min(above + most, heap)
        pairs, at_end = _depth_in_tiles(deep), from_k + deep == depth
        next_panel = 2 * TILE * pairs
        group_left, group_right = left + first * PANEL, min(left + behind * PANEL, right)
        if above == 0:
            source = b + SIZE * (from_k * b_step + group_left * b_column)
            _pack_panels(source, b_step, b_column, deep, group_right - group_left, panels)
        if strips_of != (above, from_k):
            source, tall = (
                a + SIZE * ((top + above * STRIP) * a_row + from_k * a_step),
                min(below * STRIP, rows),
            )
            _pack_strips(source, a_row, a_step, deep, tall - above * STRIP, square, strips)
            strips_of = above, from_k
        for strip in range(above, below):
            down = strip * STRIP
            high = min(STRIP, rows - down)
            target, target_row = c + SIZE * ((top + down) * c_row + group_left), c_row
            if c == 0:
                target, target_row = piece, _piece_row(group)
            for p in range(first, behind):
                out, at = target + SIZE * (p - first) * PANEL, left + p * PANEL
                wide = min(PANEL, right - at)
                ask, ask_row = out + SIZE * PANEL, target_row
                if at_end:
                    other, other_row = beside(details, top + down, at)
                    if other != 0:
                        ask, ask_row = other, other_row
                start, start_row = zeros, ZERO
                if from_k > 0:
                    start, start_row = out, target_row
                elif bias != 0:
                    start = bias + SIZE * at
                here, here_row = out, target_row
                whole = high % ROWS == 0 and wide % COLUMNS == 0
                if not whole:
                    _copy(start, start_row, edge, PANEL, high, wide, NO_FLOOR)
                    start, start_row, here, here_row = edge, PANEL, edge, PANEL
                multiply_tiles(
                    strips + (strip - above) * next_panel,
                    panels + (p - first) * next_panel,
                    pairs,
                    start,
                    SIZE * start_row,
                    here,
                    SIZE * here_row,
                    ask,
                    SIZE * ask_row,
                    -(-high // ROWS),
                    -(-wide // COLUMNS),
                )
                if not whole or (at_end and floor > NO_FLOOR):
                    _copy(here, here_row, out, target_row, high, wide, floor if at_end else NO_FLOOR)
            if at_end:
                finish(details, top + down, group_left, high, group_right - group_left, target, target_row)
    release_tiles()
