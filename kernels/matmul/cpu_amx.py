"""Matrix products in bfloat16 on processors with tile registers (:mod:`~..common.amx`).

Tiles multiply twenty times as fast as vectors, so a product is as quick as its operands come. All of
them are rounded, or cut into three pieces, and copied into tiles: up to GROUP panels of 32 columns of the
right operand and up to MOST strips of 32 rows of the left one, for DEPTH steps at a time, read in long
runs, which the processor fetches ahead. A strip of one piece then stays in the first cache while it meets
the panels, which come from the second; and what the output is combined with is asked for while the tiles
before it are computed.

Pixels, 255ths in a left operand, are whole numbers again in the tiles, which one piece holds without
rounding, and the right operand is a 255th of itself, in three pieces: half the work of three and three.

The order of every sum is the same, whatever the cut of the work: the bits do not depend on threads.
"""

import numpy as np
from numba.extending import register_jitable

from ..common.amx import (
    COLUMNS,
    PIXELS,
    ROWS,
    STEPS,
    TILE,
    configure_tiles,
    multiply_tiles,
    pieces_of,
    release_tiles,
)
from ..common.compiling import inner
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import ONE, ZERO, fill, floats
from ..common.simd import micro_kernel, read, splitters, transposer, write
from ..common.tiles import AVX512
from .pieces import beside, finish

DEPTH = 512  # k at a time: a strip of one piece is 32 KiB
STRIP, PANEL = 2 * ROWS, 2 * COLUMNS
GROUP = 30  # panels of one piece that are copied together, 960 KiB of a second-level cache of 2 MiB
MOST = 40  # strips that are copied together; they stream through that cache
HIGH = AVX512.rows
NO_FLOOR = np.float32(-np.inf)
AS_IT_IS, WHITE, PIXEL = np.float32(1), np.float32(255), np.float32(1 / 255)

_vectors = micro_kernel(AVX512)  # for the edges of the output, and for ReLU
_transpose = transposer(16)
_round_row, _round_rows = splitters(1)
_split_row, _split_rows = splitters(3)
_pieces_of = register_jitable(pieces_of)


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
def room_for(rows, columns, depth, kind):
    """How many float32 numbers of working space :func:`product` needs, for parts of so many or fewer."""
    left, right = _pieces_of(kind)
    size = 2 * TILE // SIZE * _depth_in_tiles(depth)
    strips, panels = min(-(-rows // STRIP), MOST), min(-(-columns // PANEL), GROUP // right)
    # To start a line, and what product() has besides.
    edges = 16 + PANEL + STRIP * PANEL + 3 * TILE // SIZE + 2 * 16
    return edges + size * (left * strips + right * panels) + STRIP * _piece_row(panels)


@inner
def _to_tiles(x, distance, step, count, depth, pieces, scale, right, square, tiles):
    """Copy a matrix into pairs of left tiles or, if ``right``, of right ones.

    Of its ``count`` rows (of a; columns of b), each is ``distance`` numbers behind the one before, and each
    of its ``depth`` steps ``step`` numbers. 32 rows lie behind each other, in these 32 steps, in these
    pieces, in these a pair of tiles; what is missing is zero. Numbers are multiplied by ``scale`` before.
    ``square`` is the address of room for three tiles and 32 numbers.
    """
    groups, blocks, line = -(-count // ROWS), -(-depth // STEPS), square + 3 * TILE
    by_rows = distance != 1 or step == 1  # read along rows, which gives left tiles; else right ones
    turned = by_rows == right  # the others are their transposes
    for turn in range(groups * blocks):
        if by_rows:
            group, block = turn // blocks, turn % blocks
        else:
            block, group = turn // groups, turn % groups
        first, k = ROWS * group, STEPS * block
        high, deep = min(ROWS, count - first), min(STEPS, depth - k)
        source = x + SIZE * (first * distance + k * step)
        target = tiles + (group // 2 * blocks + block) * 2 * TILE * pieces + group % 2 * TILE
        place, apart = (square, ONE * TILE) if turned else (target, ONE * 2 * TILE)
        for i in range(16):
            there = place + 64 * i
            if by_rows:
                here, some = source + SIZE * i * distance, deep if i < high else 0
                if step != 1:
                    for j in range(some):
                        write(line + SIZE * j, read(here + SIZE * j * step))
                    here = line
                if pieces == 1:
                    _round_row(here, some, scale, there, apart)
                else:
                    _split_row(here, some, scale, there, apart)
            else:
                here = source + SIZE * 2 * i * step
                some, more = high if 2 * i < deep else 0, high if 2 * i + 1 < deep else 0
                below = here + SIZE * step if more > 0 else here
                if pieces == 1:
                    _round_rows(here, below, some, more, scale, there, apart)
                else:
                    _split_rows(here, below, some, more, scale, there, apart)
        if turned:
            for piece in range(pieces):
                _transpose(square + TILE * piece, 16, target + 2 * TILE * piece, 16)


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
            ZERO,
            high,
            columns,
            floor,
        )


@inner
def product(a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor, kind, room, details):
    """As :func:`.cpu.product`, where both operands become pieces of bfloat16; for ``kind`` see :mod:`.amx`.

    ``room`` holds :func:`room_for`.
    """
    left_pieces, right_pieces = _pieces_of(kind)
    scale, right_scale = AS_IT_IS, AS_IT_IS
    if kind == PIXELS:
        scale, right_scale = WHITE, PIXEL
    top, bottom, left, right = part
    rows, columns = bottom - top, right - left
    if rows <= 0 or columns <= 0:
        return
    count, heap = -(-columns // PANEL), -(-rows // STRIP)
    group, most = _nearly_equal(count, GROUP // right_pieces), _nearly_equal(heap, MOST)
    groups, heaps, blocks = -(-count // group), -(-heap // most), -(-depth // DEPTH)
    pair, right_pair = 2 * TILE * left_pieces, 2 * TILE * right_pieces
    zeros = -(-room // 64) * 64
    edge = zeros + SIZE * PANEL
    square = edge + SIZE * STRIP * PANEL
    panels = square + 3 * TILE + SIZE * STEPS
    strips = panels + group * _depth_in_tiles(depth) * right_pair
    piece = strips + most * _depth_in_tiles(depth) * pair
    fill(floats(zeros, PANEL), 0)
    strips_of = -ONE, -ONE
    configure_tiles()
    for turn in range(blocks * groups * heaps):
        block, first, above = turn // heaps // groups, turn // heaps % groups * group, turn % heaps * most
        from_k = block * DEPTH
        deep, behind, below = min(DEPTH, depth - from_k), min(first + group, count), min(above + most, heap)
        steps, at_end = -(-deep // STEPS), from_k + deep == depth
        group_left, group_right = left + first * PANEL, min(left + behind * PANEL, right)
        if above == 0:
            source = b + SIZE * (from_k * b_step + group_left * b_column)
            how = right_pieces, right_scale, True, square, panels
            _to_tiles(source, b_column, b_step, group_right - group_left, deep, *how)
        if strips_of != (above, from_k):
            source = a + SIZE * ((top + above * STRIP) * a_row + from_k * a_step)
            tall = min(below * STRIP, rows) - above * STRIP
            _to_tiles(source, a_row, a_step, tall, deep, left_pieces, scale, False, square, strips)
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
                # What comes next, if that is not another thread's.
                ask, ask_row = out + (SIZE * PANEL if p + 1 < behind else 0), target_row
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
                    kind,
                    strips + (strip - above) * steps * pair,
                    panels + (p - first) * steps * right_pair,
                    steps,
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
