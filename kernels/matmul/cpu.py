"""Matrix products on the CPU: tiles of registers, panels that stay in the cache, threads that share
nothing but what they read.

The output is cut into tiles (:mod:`~..common.tiles`), each computed by one micro-kernel
(:mod:`~..common.simd`) from a *strip*, up to ``tile.rows`` rows of the left operand, and a *panel*,
``tile.columns`` columns of the right one. A thread has its own rectangle of the output, so no two
write the same number, and every number is summed in the order of k from its start (zero, or the
bias): the result has the same bits for any number of threads, and for any cut of the work.

Operands are read where they lie as long as that is quick. A panel is copied to a buffer of its own
where its columns are not next to each other (a transposed right operand), or where its rows are so
far apart that they share cache sets and take a page each; a strip likewise.

Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008);
Van Zee, van de Geijn, "BLIS", ACM TOMS 41 (2015).
"""

import threading
from functools import cache
from types import NoneType

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from ..common.amx import has_tiles
from ..common.compiling import inner, jit
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import (
    ONE,
    ZERO,
    aligned_zeros,
    doubles,
    fill,
    floats,
    ints,
    overlap,
    row_distance,
)
from ..common.simd import (
    copier,
    micro_kernel,
    read,
    splitters,
    transposer,
    write,
    write_half,
)
from ..common.team import Kernel, thread_count
from ..common.tiles import has_amx, has_bfloat16, host_tile
from . import cpu_amx
from .pieces import Mask, finish, prepare

TILE = host_tile()
ROWS, COLUMNS, LANES, MASKED = TILE.rows, TILE.columns, TILE.lanes, TILE.masked

DEPTH = 512  # k at a time: a panel of 32 columns is then 64 KiB, read from the second-level cache
PANELS = 160 * 1024  # numbers in packed panels at a time: 640 KiB of a second-level cache of 1 MiB
STRIPS = 8  # strips of a transposed a that are copied together: their numbers share cache lines
MOST_STRIPS = 80  # the same of any a that many groups of panels meet: copied once, to at most 2.5 MiB
FAR = 512  # rows of b that are so many numbers apart are copied together
CONFLICT = 256  # rows of a that are multiples of so many numbers apart share cache sets: copied
# So are those of a transposed a that are FAR apart, each in a page of its own: + 9 to + 36 % on Intel's
# processors with tiles, but - 4 % on AMD's Zen 4 (see kernels/README.md).
COPY_FAR = has_amx()
SHORT = 64  # steps
AS_IT_IS = np.float32(1)  # a scale
ALONE = 250_000  # products of fewer steps (M·N·K) are too short to be shared among threads

HALF, AMX = has_bfloat16(), has_tiles()
# What each precision makes of an operand: this many bfloat16 numbers that sum to it, or nothing else. Where
# the left operand holds 255ths, the pixels of images, PIXELS stands for 3: it is three times as quick.
PIECES = {"float32": None, "bf16": 1, "bf16x3": 3}
PRECISIONS = ("float32",) + ("bf16",) * HALF + ("bf16x3",) * AMX

_multiply = micro_kernel(TILE)
transpose = transposer(LANES)
_copy_panel_row, copy_16 = copier(COLUMNS), copier(16)
if HALF:
    _multiply_pairs = micro_kernel(TILE, pairs=True)
    _transpose_pairs = transposer(LANES, halve=True)
    _halve_row, _halve_rows = splitters(1)


# --- for jitted code ----------------------------------------------------------------------------


@inner
def share(thread, threads, rows, columns, tall, wide):
    """The part (top, bottom, left, right) of an output that one of some threads computes.

    A grid of rectangles, cut between pieces of ``tall`` × ``wide`` numbers (a panel may be cut between
    its vectors: half of one takes half the time): the grid whose largest share has the fewest pieces,
    where copying columns counts like one more strip.
    """
    pieces, strips = -(-columns // wide), -(-rows // tall)
    best, across = 0, 1
    for n in range(threads, 0, -1):
        if threads % n == 0:
            cost = -(-pieces // n) * (-(-strips // (threads // n)) + 1)
            if best == 0 or cost < best:
                best, across = cost, n
    down = threads // across
    x, y = thread % across, thread // across
    left, right = pieces * x // across * wide, min(pieces * (x + 1) // across * wide, columns)
    return min(strips * y // down * tall, rows), min(strips * (y + 1) // down * tall, rows), left, right


@register_jitable
def odd_lines(numbers):
    """At least so many numbers, and an odd number of cache lines: such rows use all cache sets."""
    return (-(-numbers // 16) | 1) * 16


@register_jitable
def _most_panels(depth):
    return max(1, PANELS // (COLUMNS * min(depth, DEPTH)))


@register_jitable
def _panels_at_once(columns, depth):
    count, most = -(-columns // COLUMNS), _most_panels(depth)
    return -(-count // max(1, -(-count // most)))  # nearly equal groups instead of a small last one


@register_jitable
def strip_size(depth):
    return max(ROWS * odd_lines(depth), 16 * depth)


@register_jitable
def room_for(rows, columns, depth, pieces=0):
    """How many float32 numbers of working space :func:`product` needs, for parts of so many or fewer.

    ``pieces``: its ``half``, or 0.
    """
    if pieces > 0 and AMX:
        return cpu_amx.room_for(rows, columns, depth, pieces)
    deep = min(depth, DEPTH)
    group = min(-(-columns // COLUMNS), _most_panels(depth)) * COLUMNS  # fewer columns can make larger groups
    strips = min(-(-rows // ROWS), STRIPS if columns <= group else MOST_STRIPS) if columns > COLUMNS else 0
    return COLUMNS + group * deep + strips * strip_size(deep) + ROWS * odd_lines(group)


@inner
def _pack_panel(b, b_step, b_column, depth, width, panel):
    """Copy ``width`` columns of b next to each other; what is missing of a panel becomes zero."""
    if width < COLUMNS:
        fill(floats(panel, COLUMNS * depth), 0)
    squares_across, squares_down = 0, 0
    if b_step == 1:
        squares_across, squares_down = width // LANES * LANES, depth // LANES * LANES
        for j in range(0, squares_across, LANES):
            for k in range(0, squares_down, LANES):
                source = b + SIZE * (j * b_column + k)
                transpose(source, b_column, panel + SIZE * (k * COLUMNS + j), COLUMNS)
    for k in range(depth):
        for j in range(squares_across if k < squares_down else 0, width):
            write(panel + SIZE * (k * COLUMNS + j), read(b + SIZE * (k * b_step + j * b_column)))


@inner
def pack_strips(a, a_row, a_step, depth, rows, height, packed):
    """Copy strips of ``height`` rows of a to where their rows do not share cache sets.

    Strip s goes to packed + 4·s·strip_size(depth); the new row and step distance.
    """
    size, distance = strip_size(depth), odd_lines(depth)
    if a_row != 1:
        whole = depth // 16 * 16 if a_step == 1 else 0
        for i in range(rows):
            source, target = (
                a + SIZE * i * a_row,
                packed + SIZE * (i // height * size + i % height * distance),
            )
            for k in range(0, whole, 16):
                copy_16(source + SIZE * k, target + SIZE * k)
            for k in range(whole, depth):
                write(target + SIZE * k, read(source + SIZE * k * a_step))
        return distance, 1
    for k in range(depth):
        for strip in range(0, rows, height):
            source = a + SIZE * (k * a_step + strip)
            target = packed + SIZE * (strip // height * size + k * 16)
            if strip + 16 <= rows:  # what is too much is not used
                copy_16(source, target)
            else:
                for i in range(0, SIZE * min(height, rows - strip), SIZE):
                    write(target + i, read(source + i))
    return 1, 16


@inner
def _pack_panel_pairs(b, b_step, b_column, depth, width, panel):
    """As :func:`_pack_panel`, in pairs of bfloat16; an odd last step is paired with zeros."""
    pairs = -(-depth // 2)
    if b_column == 1:
        for k in range(pairs):
            row, after = b + SIZE * 2 * k * b_step, 2 * k + 1 < depth
            for j in range(0, COLUMNS, 16):
                count = max(0, min(16, width - j))
                below = row + SIZE * (b_step + j) if after else row
                place = panel + SIZE * (k * COLUMNS + j)
                _halve_rows(row + SIZE * j, below, count, count if after else 0, AS_IT_IS, place, ZERO)
        return
    if width < COLUMNS or depth % 2:
        fill(floats(panel, COLUMNS * pairs), 0)
    across, down = 0, 0
    if b_step == 1:
        across, down = width // LANES * LANES, depth // (2 * LANES) * LANES
        for j in range(0, across, LANES):
            for k in range(0, down, LANES):
                source = b + SIZE * (j * b_column + 2 * k)
                _transpose_pairs(source, b_column, panel + SIZE * (k * COLUMNS + j), COLUMNS)
    for k in range(depth):
        for j in range(across if k < 2 * down else 0, width):
            place = panel + SIZE * (k // 2 * COLUMNS + j) + 2 * (k % 2)
            write_half(place, read(b + SIZE * (k * b_step + j * b_column)))


@inner
def _pack_strips_pairs(a, a_row, a_step, depth, rows, height, packed):
    """As :func:`pack_strips`, in pairs of bfloat16; distances count pairs."""
    pairs = -(-depth // 2)
    size, distance = strip_size(pairs), odd_lines(pairs)
    if a_row != 1:
        whole = depth // 32 * 32 if a_step == 1 else 0
        for i in range(rows):
            source, target = (
                a + SIZE * i * a_row,
                packed + SIZE * (i // height * size + i % height * distance),
            )
            for k in range(0, whole, 32):
                _halve_row(source + SIZE * k, 32, AS_IT_IS, target + 2 * k, ZERO)
            for k in range(whole, depth):
                write_half(target + 2 * k, read(source + SIZE * k * a_step))
            if depth % 2:
                write_half(target + 2 * depth, np.float32(0))
        return distance, 1
    for k in range(pairs):
        row, after = a + SIZE * 2 * k * a_step, 2 * k + 1 < depth
        for strip in range(0, rows, height):
            tall, source = min(height, rows - strip), row + SIZE * strip
            below = source + SIZE * a_step if after else source
            target = packed + SIZE * (strip // height * size + k * 16)
            _halve_rows(source, below, tall, tall if after else 0, AS_IT_IS, target, ZERO)
    return 1, 16


@inner
def _pack_panels(b, b_step, b_column, depth, columns, half, panels):
    """Copy so many columns of b, panel by panel behind each other.

    Where the columns are next to each other, row by row: far rows are pages of their own, and the
    processor fetches ahead only within a page.
    """
    steps = depth if half is None else -(-depth // 2)
    whole = columns // COLUMNS if b_column == 1 and half is None else 0
    for k in range(depth):
        for p in range(whole):
            source = b + SIZE * (k * b_step + p * COLUMNS)
            _copy_panel_row(source, panels + SIZE * COLUMNS * (p * steps + k))
    for p in range(whole, -(-columns // COLUMNS)):
        width = min(COLUMNS, columns - p * COLUMNS)
        source, place = b + SIZE * p * COLUMNS * b_column, panels + SIZE * p * COLUMNS * steps
        if half is None:
            _pack_panel(source, b_step, b_column, depth, width, place)
        else:
            _pack_panel_pairs(source, b_step, b_column, depth, width, place)


@inner
def _vectors_product(
    a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor, half, room, details
):
    """As :func:`product`, by vectors."""
    top, bottom, left, right = part
    rows, columns = bottom - top, right - left
    if rows <= 0 or columns <= 0:
        return
    count, group = -(-columns // COLUMNS), _panels_at_once(columns, depth)
    groups, height = -(-count // group), -(-rows // -(-rows // ROWS))  # nearly equal strips, no low last one
    block = DEPTH if half is None else 2 * DEPTH  # the buffers hold as many pairs as numbers
    pack_b = half is not None or b_column != 1 or (b_step >= FAR and rows > 2 * ROWS)
    pack_last = not pack_b and not MASKED and columns % COLUMNS != 0  # vectors are read as a whole
    # Copying a pays where several panels use the copy.
    pack_a = half is not None or (
        count > 1
        and (
            (a_row >= CONFLICT and a_row % CONFLICT == 0)
            or (a_step >= CONFLICT and a_step % CONFLICT == 0)
            or (COPY_FAR and a_row == 1 and a_step >= FAR)
        )
    )
    # Strips are copied once for all groups. But two groups rather copy a strip twice, so that it comes
    # from the first cache, where that is quick: where the numbers of a row are next to each other.
    by_groups = not pack_a or groups == 1 or (groups == 2 and a_step == 1 and half is None)
    at_once = MOST_STRIPS if not by_groups else STRIPS if a_row == 1 else 1
    tall = min(at_once * height, -(-rows // height) * height) if pack_a else rows  # that are copied together
    blocks, talls, deepest = -(-depth // block), -(-rows // tall), min(depth, DEPTH)
    zeros, panels = room, room + SIZE * COLUMNS
    strips = panels + SIZE * group * COLUMNS * deepest
    piece = strips + SIZE * (tall // height * strip_size(deepest) if pack_a else 0)
    fill(floats(zeros, COLUMNS), 0)
    here, strip_row, strip_step, next_strip = ZERO, a_row, a_step, height * a_row
    strips_of = panels_of = -ONE, -ONE  # which rows or columns, of which steps, are in the buffers
    for turn in range(groups * blocks * talls):
        if by_groups:
            first, from_k, above = turn // talls // blocks, turn // talls % blocks, turn % talls
        else:
            from_k, above, first = turn // groups // talls, turn // groups % talls, turn % groups
        first, from_k, above = first * group, from_k * block, above * tall
        behind, deep, below = min(first + group, count), min(block, depth - from_k), min(above + tall, rows)
        steps = deep if half is None else -(-deep // 2)
        at_end = from_k + deep == depth
        lowest = floor if at_end else np.float32(-np.inf)
        group_left, group_right = left + first * COLUMNS, min(left + behind * COLUMNS, right)
        if not pack_a:
            here = a + SIZE * (top * a_row + from_k * a_step)
        elif strips_of != (above, from_k):
            here = a + SIZE * ((top + above) * a_row + from_k * a_step)
            pack = here, a_row, a_step, deep, below - above, height, strips
            if half is None:
                strip_row, strip_step = pack_strips(*pack)
            else:
                strip_row, strip_step = _pack_strips_pairs(*pack)
            here, next_strip, strips_of = strips, strip_size(steps), (above, from_k)
        panel = b + SIZE * (from_k * b_step + group_left * b_column)
        next_panel, panel_step = COLUMNS * b_column, b_step
        if pack_b:
            if panels_of != (first, from_k):
                _pack_panels(panel, b_step, b_column, deep, group_right - group_left, half, panels)
                panels_of = first, from_k
            panel, next_panel, panel_step = panels, COLUMNS * steps, COLUMNS
        for down in range(above, below, height):
            high = min(height, rows - down)
            strip = here + SIZE * ((down - above) // height * next_strip)
            if at_end:
                prepare(details, top + down, group_left, high, group_right - group_left)
            target, target_row = c + SIZE * ((top + down) * c_row + group_left), c_row
            if c == 0:
                target, target_row = piece, odd_lines(group * COLUMNS)
            for p in range(first, behind):
                place, place_step = panel + SIZE * (p - first) * next_panel, panel_step
                out, width = target + SIZE * (p - first) * COLUMNS, min(COLUMNS, columns - p * COLUMNS)
                if pack_last and p == count - 1:
                    if down == 0:
                        _pack_panel(place, b_step, b_column, deep, width, panels)
                    place, place_step = panels, COLUMNS
                start, start_row = zeros, 0
                if from_k > 0:
                    start, start_row = out, target_row
                elif bias != 0:
                    start = bias + SIZE * (left + p * COLUMNS)
                operands = strip, strip_row, strip_step, place, place_step, start, start_row, out, target_row
                following = COLUMNS if p + 1 < behind else 0
                if half is None:
                    _multiply(*operands, following, steps, 0, high, width, lowest)
                else:
                    _multiply_pairs(*operands, following, steps, 0, high, width, lowest)
            if at_end:
                finish(details, top + down, group_left, high, group_right - group_left, target, target_row)


_product_of_halves = cpu_amx.product if AMX else _vectors_product


@inner
def product(a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor, half, room, details):
    """c = max(a·b + bias, floor), and then :func:`finish`, for one thread's ``part`` of the output.

    ``a``, ``b``, ``c`` are addresses of the whole operands' first numbers; a[i, k] is a_row·i +
    a_step·k float32 numbers behind the first, b[k, j] b_step·k + b_column·j, c[i, j] c_row·i + j.
    ``bias`` is the address of one number for each column, or 0; ``floor`` is 0 for ReLU, -inf for
    none. ``half``, unless it is None, is the number of PIECES of a and b for one of the processor's
    PRECISIONS, or PIXELS; the sums are float32. Its type decides what is compiled. ``part`` is
    what :func:`share` gives. ``room`` is the address of :func:`room_for` numbers that no other thread
    uses. Where ``c`` is 0 the product is not stored: ``finish`` gets each piece in ``room``; depth must
    then be at most DEPTH.

    Cost: 2·rows·columns·depth flops. Every operand is read from memory once for about 300 columns or
    512 steps.
    """
    operands = a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor
    if half is None:
        _vectors_product(*operands, None, room, details)
    else:
        _product_of_halves(*operands, half, room, details)


@inner
def column_sums(dy, dy_row, rows, left, right, db):
    """db[j] = Σ_i dy[i, j] for left ≤ j < right; addresses and distances as in :func:`product`."""
    if right <= left:
        return
    sums = floats(db + SIZE * left, right - left)
    fill(sums, 0)
    for i in range(rows):
        values = floats(dy + SIZE * (i * dy_row + left), right - left)
        for j in range(right - left):
            sums[j] += values[j]


# --- whole operations ---------------------------------------------------------------------------

_WORDS = 18


def _one_product(half):
    """The function of a kernel; ``half`` as for :func:`product`."""
    pieces = half or ZERO

    def one_product(thread, threads, barrier, arguments):
        a, a_row, a_step, b, b_step, b_column, c, c_row, rows, columns, depth = ints(arguments, 11)
        bias, y_below, y_row, db, room = ints(arguments + 8 * 11, 5)
        floor, scale = doubles(arguments + 8 * 16, 2)
        # Threads do not share rows where sums are short, which write much and compute little; where a is
        # transposed, so that each reads and copies lines of its own; and where a cut between columns would
        # leave more strips than are copied together, so that the panels are copied again.
        apart = depth < SHORT or (a_row == 1 and rows >= 4 * ROWS * threads) or rows > MOST_STRIPS * ROWS
        wide = -(-columns // LANES) * LANES if apart else LANES
        part = share(thread, threads, rows, columns, ROWS, wide)
        room += SIZE * thread * room_for(rows, columns, depth, pieces)
        product(
            a,
            a_row,
            a_step,
            b,
            b_step,
            b_column,
            bias,
            c,
            c_row,
            part,
            depth,
            np.float32(floor),
            half,
            room,
            Mask(y_below, y_row, np.float32(scale)),
        )
        if db != 0 and part[0] == 0 and part[1] > 0:
            column_sums(b, b_step, depth, part[2], part[3], db)

    return one_product


_kernels = {None: Kernel(_one_product(None)), 1: Kernel(_one_product(ONE)), 3: Kernel(_one_product(3 * ONE))}

DONE, REFUSED, LARGE = range(3)
_ANY = types.Array(types.float32, 2, "A")


@register_jitable
def _fit_together(a, b, out):
    """Whether a, b, out have the shapes of a product, whole distances, and an out that can be written to."""
    shapes = a.shape[1] == b.shape[0] and out.shape[0] == a.shape[0] and out.shape[1] == b.shape[1]
    whole = (a.strides[0] | a.strides[1] | b.strides[0] | b.strides[1] | out.strides[0]) % SIZE == 0
    return shapes and whole and out.strides[1] == SIZE


@inner
def _by_caller(left, right, c, c_row, rows, columns, depth, half):
    """The product of two operands, (address, row, step) and (address, step, column), by this thread.

    Few columns fill one vector in part. Where the rows of the left operand are next to each other, these
    fill whole vectors: the transposed product, which is turned at the end. Sums have the same order.
    """
    target, target_row, high, wide = c, c_row, rows, columns
    pieces = ZERO if half is None else half
    turn = _is_turned(left[1], rows, columns, depth, pieces)
    turned = np.empty(columns * odd_lines(rows) if turn else 0, np.float32)
    if turn:
        left, right = (right[0], right[2], right[1]), (left[0], left[2], left[1])
        target, target_row, high, wide = turned.ctypes.data, odd_lines(rows), columns, rows
    room = np.empty(room_for(high, wide, depth, pieces), np.float32)
    product(
        *left,
        *right,
        ZERO,
        target,
        target_row,
        (ZERO, high, ZERO, wide),
        depth,
        np.float32(-np.inf),
        half,
        room.ctypes.data,
        Mask(ZERO, ZERO, np.float32(1)),
    )
    if turn:
        for i in range(rows):
            for j in range(columns):
                write(c + SIZE * (i * c_row + j), turned[j * target_row + i])
    return room.size  # used here, so that Numba does not free it before


@register_jitable
def _is_turned(a_row, rows, columns, depth, pieces):
    # The products of three pieces have another order when operands change places.
    return pieces < 3 and a_row == 1 and columns <= ROWS and rows >= 2 * COLUMNS and depth >= SHORT + LANES


@register_jitable
def _operands(a, b, out):
    """The arguments of :func:`_by_caller`, but for the last."""
    left = a.ctypes.data, a.strides[0] // SIZE, a.strides[1] // SIZE
    right = b.ctypes.data, b.strides[0] // SIZE, b.strides[1] // SIZE
    return left, right, out.ctypes.data, out.strides[0] // SIZE, out.shape[0], out.shape[1], a.shape[1]


def _alone(a, b, out, half):
    """All checks, and a short product by the calling thread: DONE, or why it was not begun."""
    steps = out.size * a.shape[1]
    if not _fit_together(a, b, out) or steps == 0 or overlap(out, a) or overlap(out, b):
        return REFUSED
    pieces = ZERO if half is None else half
    turn = _is_turned(a.strides[0] // SIZE, a.shape[0], b.shape[1], a.shape[1], pieces)
    if steps >= (2 * ALONE if turn else ALONE):
        return LARGE
    _by_caller(*_operands(a, b, out), half)
    return DONE


def _describe(a, b, c, relu, pieces, words):
    """The words of a product as yet without room, bias and mask; the room for a thread, their address."""
    words[0], words[1], words[2] = a.ctypes.data, a.strides[0] // SIZE, a.strides[1] // SIZE
    words[3], words[4], words[5] = b.ctypes.data, b.strides[0] // SIZE, b.strides[1] // SIZE
    words[6], words[7] = c.ctypes.data, c.strides[0] // SIZE
    words[8], words[9], words[10] = a.shape[0], b.shape[1], a.shape[1]
    fill(words[11:16], 0)
    numbers = doubles(words.ctypes.data + 8 * 16, 2)
    numbers[0], numbers[1] = 0.0 if relu else -np.inf, 1.0
    return room_for(a.shape[0], b.shape[1], a.shape[1], pieces), words.ctypes.data


@cache
def _compiled_alone(half):
    # One version for all views. Other types are a TypeError, which matmul explains.
    return jit(_alone, types.intp(_ANY, _ANY, _ANY, types.none if half is None else types.intp))


@cache
def _compiled_describe():
    words = types.Array(types.int64, 1, "C")
    return jit(_describe, types.UniTuple(types.intp, 2)(*[_ANY] * 3, types.intp, types.intp, words))


_rooms = threading.local()


def _room(numbers):
    """The address of working space of this thread of Python, kept for the next call."""
    if getattr(_rooms, "numbers", 0) < numbers:
        _rooms.room, _rooms.numbers = aligned_zeros(numbers, np.float32), numbers
        _rooms.address = _address(_rooms.room)
    return _rooms.address


def _address(array):
    return array.__array_interface__["data"][0]


def _run(a, b, c, threads, bias=None, relu=False, y_below=None, scale=1.0, db=None, half=None):
    """One product of checked operands: a [M, K], b [K, N], c [M, N]."""
    threads = 1 if c.size * a.shape[1] < ALONE else thread_count(threads)
    words = np.empty(_WORDS, np.int64)
    room, address = _compiled_describe()(a, b, c, relu, half or 0, words)
    words[15] = _room(threads * room)
    if bias is not None:
        words[11] = _address(bias)
    if y_below is not None:
        words[12:14] = _address(y_below), y_below.strides[0] // SIZE
    if db is not None:
        words[14] = _address(db)
    if scale != 1:
        words[17:].view(np.float64)[0] = scale
    _kernels[half].run(address, threads)


def matmul(a, b, out=None, threads=None, precision="float32"):
    """out = a·b.

    ``matmul(x, w)``; ``matmul(x, w, out=y, threads=1)``

    Shapes: a [M, K], b [K, N], out [M, N].
    Dtypes: all float32; a and b may be any views (transposed, padded, every other row …), out must
    have the numbers of a row next to each other and must not overlap a or b.
    ``threads``: at most so many; by default FASTDIGIT_THREADS, else all processors. The bits do not
    depend on it.
    ``precision``: "bf16" rounds a and b to bfloat16 and sums their products in float32, on processors
    with AVX-512 BF16, and in tile registers where there are some (AMX). "bf16x3", there alone, has three
    bfloat16 numbers stand for each of a and b, which together have all its bits: as exact as float32, and
    quicker.
    Writes: out (a new array if None), and returns it.
    Errors: TypeError for another dtype, ValueError for shapes or an out that do not fit, for threads
    below 1, and for a precision that the processor does not have.
    Cost: 2·M·N·K flops; parts of a and b are copied to buffers of at most 0.6 MB a thread (2.4 MB in
    tiles, 5 MB in three pieces). The first call on a machine compiles for some seconds, later processes
    read that from Numba's cache.
    Rounding: one a step of K, in order: error ≤ γ_K·(|a|·|b|) with γ_K = K·2⁻²⁴ / (1 - K·2⁻²⁴);
    with bf16 each operand is rounded before, by up to 2⁻⁹ of itself. bf16x3 rounds six times a step, five of
    them far below what counts. It takes pieces and products below 2⁻¹²⁶ for zero, so numbers below 2⁻¹¹⁰
    lose bits, and what is not finite, or above 3.38e38, gives NaN.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)} here, got {precision!r}")
    half = PIECES[precision]
    threads = None if threads is None else thread_count(threads)
    if out is not None:
        try:
            begun = _compiled_alone(half)(a, b, out, half)
        except TypeError:
            begun = REFUSED  # for one of these arrays, which is found and named below
        if begun == LARGE:
            _run(a, b, out, threads, half=half)
        if begun != REFUSED:
            return out
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
        _run(_whole_strides(a), _whole_strides(b), out, threads, half=half)
    return out


def matmul_tn(a, b, out=None, threads=None, precision="float32"):
    """out = aᵀ·b, for a [K, M] and b [K, N]; the rest as :func:`matmul`."""
    return matmul(a.T, b, out, threads, precision)


def matmul_nt(a, b, out=None, threads=None, precision="float32"):
    """out = a·bᵀ, for a [M, K] and b [N, K]; the rest as :func:`matmul`."""
    return matmul(a, b.T, out, threads, precision)


def _given(value):
    """Whether an argument is given, as Numba's typing sees it."""
    return not isinstance(value, types.Omitted | types.NoneType | NoneType | str)


@overload(matmul)
def _matmul_in_jitted_code(a, b, out=None, threads=None, precision="float32"):
    """``matmul(a, b)`` and ``matmul(a, b, out)`` for code that Numba compiles: by the calling thread."""
    arrays = (a, b, out) if _given(out) else (a, b)
    if not all(isinstance(x, types.Array) and (x.ndim, x.dtype) == (2, types.float32) for x in arrays):
        return None
    if _given(threads) or _given(precision) or (not arrays[-1].mutable and _given(out)):
        return None  # Numba says that there is no such matmul

    def into(a, b, out=None, threads=None, precision="float32"):
        if out.size == 0 and a.shape[0] == out.shape[0] and b.shape[1] == out.shape[1]:
            return out
        if not _fit_together(a, b, out):
            raise ValueError("a [M, K], b [K, N] and out [M, N] must fit, rows of out be contiguous")
        if a.shape[1] == 0:
            out[:, :] = 0
            return out
        if overlap(out, a) or overlap(out, b):
            raise ValueError("out must not overlap a or b")
        _by_caller(*_operands(a, b, out), None)
        return out

    def new(a, b, out=None, threads=None, precision="float32"):
        return matmul(a, b, np.empty((a.shape[0], b.shape[1]), np.float32))

    return into if _given(out) else new


@overload(matmul_tn)
def _matmul_tn_in_jitted_code(a, b, out=None, threads=None, precision="float32"):
    if _given(threads) or _given(precision):
        return None
    if _given(out):
        return lambda a, b, out=None, threads=None, precision="float32": matmul(a.T, b, out)
    return lambda a, b, out=None, threads=None, precision="float32": matmul(a.T, b)


@overload(matmul_nt)
def _matmul_nt_in_jitted_code(a, b, out=None, threads=None, precision="float32"):
    if _given(threads) or _given(precision):
        return None
    if _given(out):
        return lambda a, b, out=None, threads=None, precision="float32": matmul(a, b.T, out)
    return lambda a, b, out=None, threads=None, precision="float32": matmul(a, b.T)


def _whole_strides(x):
    """x itself, or a copy where its numbers do not lie at whole distances (fields of records)."""
    return x if all(distance % SIZE == 0 for distance in x.strides) else np.ascontiguousarray(x)


def _check(**arrays):
    """TypeError or ValueError unless all are float32 arrays whose rows are contiguous."""
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise TypeError(f"{name} must be a float32 array, got {array.dtype}")
        if array.ndim == 2:
            row_distance(array)
        elif array.size > 1 and array.strides[0] != SIZE:
            raise ValueError(f"the numbers of {name} must be next to each other")


def _fit(**shapes):
    """ValueError unless each (actual, wanted) pair of shapes is equal."""
    for name, (actual, wanted) in shapes.items():
        if actual != wanted:
            raise ValueError(f"{name} has shape {actual}, the others ask for {wanted}")


def dense(x, w, b, y, relu, threads=None):
    """y = x·w + b, and then max(y, 0) if ``relu``; NaN stays NaN. One pass.

    Shapes: x [B, I], w [I, O], b [O], y [B, O]; rows may be further apart than they are long.
    Dtypes: all float32.
    Writes: y, which must not overlap the others.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: 2·B·I·O flops; reads B·I + I·O + O numbers, writes B·O.
    """
    _check(x=x, w=w, b=b, y=y)
    _fit(w=(w.shape[0], x.shape[1]), b=(b.shape, w.shape[1:]), y=(y.shape, (x.shape[0], w.shape[1])))
    if y.size:
        _run(x, w, y, threads, bias=b, relu=relu)


def dense_grad_input(dy, w, y_below, dx, scale, threads=None):
    """dx = scale · dy·wᵀ, and zero where ``y_below`` ≤ 0. One pass.

    Shapes: dy [B, O], w [I, O], y_below [B, I] or None (no mask), dx [B, I]; rows may be further
    apart than they are long.
    Dtypes: all float32; scale is a number.
    Writes: dx, which must not overlap the others.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: 2·B·I·O flops; reads B·O + I·O + B·I numbers, writes B·I.
    """
    _check(dy=dy, w=w, dx=dx)
    _fit(w=(w.shape[1], dy.shape[1]), dx=(dx.shape, (dy.shape[0], w.shape[0])))
    if y_below is not None:
        _check(y_below=y_below)
        _fit(y_below=(y_below.shape, dx.shape))
    if dx.size:
        _run(dy, w.T, dx, threads, y_below=y_below, scale=scale)


def dense_grad_weight(x, dy, dw, db, threads=None):
    """dw = xᵀ·dy and db = the column sums of dy.

    Shapes: x [B, I], dy [B, O], dw [I, O], db [O]; rows may be further apart than they are long.
    Dtypes: all float32.
    Writes: dw, db, which must not overlap the others.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: 2·B·I·O flops; reads B·I + B·O numbers, writes I·O + O.
    """
    _check(x=x, dy=dy, dw=dw, db=db)
    _fit(dy=(dy.shape[0], x.shape[0]), dw=(dw.shape, (x.shape[1], dy.shape[1])), db=(db.shape, dy.shape[1:]))
    if dw.size:
        _run(x.T, dy, dw, threads, db=db)
