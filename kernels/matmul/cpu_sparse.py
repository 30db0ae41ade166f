"""Products with a left operand that has many zeros: pictures of digits are 81 % paper, and ReLU leaves
about half of a hidden layer's outputs, and the gradients of these, at zero.

The sum over k runs over a list of those k alone where the operand is not zero: the same sum in the
same order without terms that are zero, so the same bits as :mod:`.cpu` gives (as long as the other
operand is finite). Two rows share a list, of where either is not zero: what is loaded for one is then
used for both. Neighbouring pixels of a picture mostly are both ink or both paper, so in xᵀ·dy, where the
rows are pixels, a list for two is hardly longer than for one; two pictures mostly have the same hidden
units at work.

With so few rows at a time a step of k brings as much from the caches as it computes. So long lists
are cut into blocks of k: those rows of the other operand stay in the first-level cache for a whole
group of rows.

Lists are made from bits, one for each element. Transposing 64 × 64 bits is quick, so the lists of both
products come from one look at the operand.

Source: Warren, "Hacker's Delight" (2012), section 7-3, for transposing bits.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from ..common.compiling import inner
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import ONE, ZERO, bytes_at, fill, floats, ints
from ..common.simd import (
    count_bits,
    last_bit,
    list_32,
    micro_kernel,
    not_zero,
    not_zero_bytes,
    read,
    write,
    write_16,
)
from ..common.tiles import Tile, can_compress
from .cpu import LANES, copy_16, transpose
from .cpu_amx import PIXEL
from .pieces import finish, prepare

# Two rows × four vectors: 8 accumulators. One row would load twice as often, more rows have longer
# lists; measured for rows 1 to 4 and vectors 2, 4 and 8.
LISTED = Tile(rows=2, vectors=4, lanes=LANES)
ROWS, VECTORS, COLUMNS = LISTED.rows, LISTED.vectors, LISTED.columns
STRIP = 16  # rows of an output that are finished together
BLOCK = 128  # k at a time of long lists: so many rows of a panel, 32 KiB, stay in the first-level cache
GROUP = 128  # rows of an output that use them, and that are finished together
DEEP = 1024  # k of a panel that is copied: 256 KiB of the second-level cache
WINDOW = 32  # rows among which each looks for the one most like it
COMPRESS = can_compress()

_multiply = micro_kernel(LISTED, listed=True)
_multiply_pixels = micro_kernel(LISTED, listed=True, meanings=np.arange(256, dtype=np.float32) * PIXEL)


@register_jitable
def words_for(count):
    """How many 64-bit words hold ``count`` bits."""
    return -(-count // 64)


@register_jitable
def list_row_for(count):
    """How many uint16 numbers a list of at most ``count`` takes: whole vectors are written."""
    return -(-count // 64) * 64 + 32


@inner
def bits_of_rows(x, x_row, first, last, columns, bits):
    """For the rows first … last - 1 of x: bit k % 64 of word k // 64 says whether x[row, k] is not 0.

    ``x`` and ``bits`` are addresses. The rows of x must go on with zeros behind ``columns`` to a
    multiple of 16. Row r has ``words_for(columns)`` words at bits + 8·r·words_for(columns).
    """
    words = words_for(columns)
    for r in range(first, last):
        target, source = ints(bits + 8 * r * words, words), x + SIZE * r * x_row
        for word in range(words):
            value = 0
            for part in range(0, min(64, columns - 64 * word), 16):
                value |= not_zero(source + SIZE * (64 * word + part)) << part
            target[word] = value


@inner
def bits_of_pixels(x, x_row, first, last, columns, bits):
    """As :func:`bits_of_rows`, for bytes: rows are ``x_row`` bytes apart, and nothing lies behind them."""
    words = words_for(columns)
    whole, rest = columns // 64, columns % 64
    for r in range(first, last):
        target, source = ints(bits + 8 * r * words, words), x + r * x_row
        for word in range(whole):
            target[word] = not_zero_bytes(source + 64 * word)
        if rest and whole:  # the row's last 64
            target[whole] = (not_zero_bytes(source + columns - 64) >> (64 - rest)) & ((1 << rest) - 1)
        elif rest:
            value, row = 0, bytes_at(source, rest)
            for k in range(rest):
                value |= (row[k] != 0) << k
            target[0] = value


@inner
def bits_of_columns(bits, rows, columns, first, last, turned):
    """The same bits by columns, for the words first … last - 1 of a row of ``bits``: bit r % 64 of word
    r // 64 of column k. Column k has ``words_for(rows)`` words at turned + 8·k·words_for(rows)."""
    words, turned_words = words_for(columns), words_for(rows)
    square = np.empty(64, np.int64)
    for word in range(first, last):
        for above in range(turned_words):
            height = min(64, rows - 64 * above)
            source = ints(bits, rows * words)
            for r in range(64):
                square[r] = source[(64 * above + r) * words + word] if r < height else 0
            # Squares of side 32, 16, …, 1 on one diagonal change places with those on the other.
            side, mask = 32, np.int64(0x00000000FFFFFFFF)
            while side:
                for r in range(0, 64, 2 * side):
                    for i in range(r, r + side):
                        # Bits are numbered from the lowest: the high part of a row belongs below.
                        swap = ((square[i] >> side) ^ square[i + side]) & mask
                        square[i] ^= swap << side
                        square[i + side] ^= swap
                side >>= 1
                mask ^= mask << side
            width = min(64, columns - 64 * word)
            target = ints(turned, columns * turned_words)
            for k in range(width):
                target[(64 * word + k) * turned_words + above] = square[k]


class Lists(NamedTuple):
    """Lists of the columns where a matrix has something else than zero, one for each pair of rows.

    Those that one thread writes lie one behind the other: cache lines that another core reads have to
    be fetched back to be written to, so they should be few.
    """

    places: int  # address of the lists: uint16, room for list_row_for(length) each
    bounds: int  # address of int64 numbers, blocks + 1 a list: where it begins, and ends with each block
    length: int  # of the matrix's rows
    block: int  # columns of a block: a multiple of 64
    order: int  # address of int64 numbers: pair p is of the rows order[2·p] and order[2·p + 1]; 0: neighbours


@register_jitable
def blocks_of(length, block):
    """How many blocks of columns there are."""
    return -(-length // block)


@inner
def lists_of_pairs(bits, rows, first, last, lists):
    """Write the ``lists`` of the pairs first … last - 1: the places of the bits that either row has set."""
    words, row = words_for(lists.length), list_row_for(lists.length)
    blocks, block_words = blocks_of(lists.length, lists.block), lists.block // 64
    source, bounds = ints(bits, rows * words), ints(lists.bounds, last * (blocks + 1))
    ordered = lists.order != 0
    order = ints(lists.order, rows if ordered else 0)
    n = first * row
    for pair in range(first, last):
        one = 2 * pair
        other = one + 1 if one + 1 < rows else one
        if ordered:
            one, other = order[one], order[other]
        block, left = pair * (blocks + 1), block_words
        bounds[block] = n
        for word in range(words):
            value = source[one * words + word] | source[other * words + word]
            n = _list_word(value, 64 * word, lists.places, n)
            left -= 1
            if left == 0:
                block, left = block + 1, block_words
                bounds[block] = n
        if left < block_words:
            bounds[block + 1] = n


@inner
def pair_up(bits, words, first, last, order):
    """Bring the rows first … last - 1 of bits, of so many words each, into an order of pairs that are alike.

    ``order`` is an address of int64 numbers; those of the same places are written. In the order of how
    many bits they have, each row gets the one with the fewest different bits of the next WINDOW that are
    free. So the pairs' lists become shorter than those of neighbours, by a tenth for pictures and a
    seventh for hidden units. Cost: a count of different bits for each row and each in its window.
    """
    source, found = ints(bits, last * words), ints(order, last)
    rows, most = last - first, 64 * words
    begin = np.zeros(most + 2, np.int64)  # counting sort: where rows with so many bits begin
    size = np.empty(rows, np.int64)
    for r in range(rows):
        count = 0
        for word in range((first + r) * words, (first + r + 1) * words):
            count += count_bits(source[word])
        size[r] = count
        begin[count + 1] += 1
    for count in range(most):
        begin[count + 1] += begin[count]
    free = np.empty(rows, np.int64)  # by size; -1: has a partner
    for r in range(rows):
        free[begin[size[r]]] = first + r
        begin[size[r]] += 1
    place = first
    for r in range(rows):
        row = free[r]
        if row < 0:
            continue
        best, fewest, seen = -1, most + 1, 0
        for other in range(r + 1, rows):
            if free[other] < 0:
                continue
            different = 0
            for word in range(words):
                different += count_bits(source[row * words + word] ^ source[free[other] * words + word])
            if different < fewest:
                best, fewest = other, different
            seen += 1
            if seen == WINDOW:
                break
        found[place] = row
        if best >= 0:
            found[place + 1] = free[best]
            free[best] = -1
        place += 2


@inner
def listed(lists, rows):
    """The share of a matrix of so many rows that is on lists: what a product computes of a whole one."""
    blocks, pairs = blocks_of(lists.length, lists.block), -(-rows // ROWS)
    bounds, total = ints(lists.bounds, pairs * (blocks + 1)), 0
    for pair in range(pairs):
        begin = pair * (blocks + 1)
        total += bounds[begin + blocks] - bounds[begin]
    return total / (pairs * lists.length)


@inner
def _list_word(value, base, place, n):
    """Append base + i for every bit i that is set; the new length."""
    if COMPRESS:
        low = value & 0xFFFFFFFF
        list_32(low, base, place + 2 * n)
        n += count_bits(low)
        high = (value >> 32) & 0xFFFFFFFF
        list_32(high, base + 32, place + 2 * n)
        return n + count_bits(high)
    while value:
        write_16(place + 2 * n, base + last_bit(value))
        value &= value - 1
        n += 1
    return n


@register_jitable
def panel_width(columns, threads):
    """How many columns the panels of :func:`sparse_product` get, so that threads have equal shares.

    A multiple of a vector, at most COLUMNS; narrower panels read the lists more often.
    """
    vectors, best, width = -(-columns // LANES), 0.0, COLUMNS
    for n in range(VECTORS, 0, -1):
        panels = -(-vectors // n)
        largest_share = -(-panels // threads) * n
        cost = largest_share * (1.0 + 0.1 * (VECTORS - n))
        if best == 0 or cost < best:
            best, width = cost, n * LANES
    return width


@inner
def pack_panels(w, w_row, rows, columns, part, wide, panels, back):
    """Copy a part of a matrix into panels, or ``back``; addresses as for :func:`~.cpu.product`.

    The panel of the columns that start at c is at panels + 4·c·rows, its rows ``wide`` numbers apart:
    next to each other, as the first-level cache and the tables of pages like it.
    """
    top, bottom, left, right = part
    for column in range(left, right, wide):
        width = min(wide, columns - column)
        for r in range(top, bottom):
            flat = floats(w + SIZE * (r * w_row + column), width)
            packed = floats(panels + SIZE * (column * rows + r * wide), width)
            if back:
                for j in range(width):
                    flat[j] = packed[j]
            else:
                for j in range(width):
                    packed[j] = flat[j]


@inner
def copy_panel(b, b_step, b_column, depth, width, wide, panel):
    """Copy ``depth`` rows of ``width`` columns of b next to each other, into rows of ``wide`` numbers."""
    across, down = 0, 0
    if b_step == 1:
        across, down = width // LANES * LANES, depth // LANES * LANES
        for j in range(0, across, LANES):
            for k in range(0, down, LANES):
                source = b + SIZE * (j * b_column + k)
                transpose(source, b_column, panel + SIZE * (k * wide + j), wide)
    elif b_column == 1:
        across, down = width // 16 * 16, depth
        for k in range(depth):
            source, target = b + SIZE * k * b_step, panel + SIZE * k * wide
            for j in range(0, SIZE * across, SIZE * 16):
                copy_16(source + j, target + j)
    for k in range(depth):
        for j in range(across if k < down else 0, width):
            write(panel + SIZE * (k * wide + j), read(b + SIZE * (k * b_step + j * b_column)))


@inner
def _block_of_pairs(
    a, a_row, a_step, pixels, panel, panel_step, lists, what, c, c_row, piece, wide, zeros, details
):
    """One block of k for the pairs of some rows and one panel of columns."""
    first, last, number, column, width, bias, floor = what
    blocks = blocks_of(lists.length, lists.block)
    bounds = ints(lists.bounds, -(-last // ROWS) * (blocks + 1))
    order = ints(lists.order, last if lists.order != 0 else 0)
    for place in range(first, last, ROWS):
        row, down = place, ONE
        if lists.order != 0:
            row = order[place]
            down = order[place + 1] - row if place + 1 < last else ONE
        if number == 0:
            for r in range(min(ROWS, last - place)):
                prepare(details, row + r * down, column, ONE, width)
        target, target_row = piece + SIZE * (place - first) * wide, wide
        if c != 0:
            target, target_row = c + SIZE * (row * c_row + column), down * c_row
        at, start, start_row = place // ROWS * (blocks + 1) + number, zeros, ZERO
        if number > 0:
            start, start_row = target, target_row
        elif bias != 0:
            start = bias + SIZE * column
        rest = (
            panel,
            panel_step,
            start,
            start_row,
            target,
            target_row,
            ZERO,
            bounds[at + 1] - bounds[at],
            lists.places + 2 * bounds[at],
            min(ROWS, last - place),
            width,
            floor if number == blocks - 1 else np.float32(-np.inf),
        )
        if pixels:
            _multiply_pixels(a + row * a_row, down * a_row, a_step, *rest)
        else:
            _multiply(a + SIZE * row * a_row, down * a_row, a_step, *rest)


@inner
def sparse_product(
    a,
    a_row,
    a_step,
    pixels,
    b,
    b_step,
    b_column,
    copy,
    bias,
    c,
    c_row,
    part,
    wide,
    floor,
    lists,
    room,
    details,
):
    """c = max(a·b + bias, floor), then ``finish``, for one thread's ``part``, over the lists of a's rows.

    Addresses, distances, ``c`` = 0 and ``details`` as for :func:`~.cpu.product`. With ``pixels``, a holds
    bytes, which stand for 255ths, and its distances count these. b is read where it
    lies: the columns that start at j, for each j that is a multiple of ``wide``, are next to each other
    at b + 4·j·b_column: panels (:func:`pack_panels`), or a plain matrix where b_column is 1. Or, if
    ``copy``, b is any matrix, and copied panel by panel. Rows of the part are places in the order of the
    lists; it starts at a multiple of STRIP and of ``wide``. Rows of b go on behind their columns to a whole
    vector. ``room`` holds :func:`room_for` numbers.
    Pieces that are not stored have rows ``wide`` numbers apart, and zeros behind their columns.

    Cost: 4 flops for each column and each k of the list of two rows. The rows of b on a list are read
    once for each two rows of a, from the first-level cache where lists have blocks, else from the
    second-level cache if b's columns of this thread fit there.
    """
    top, bottom, left, right = part
    if bottom <= top or right <= left:
        return
    length, block = lists.length, lists.block
    blocks, ordered = blocks_of(length, block), lists.order != 0
    tall = GROUP if blocks > 1 else STRIP
    fill(floats(room, COLUMNS * (1 + tall)), 0)
    order = ints(lists.order, bottom if ordered else 0)
    piece = room + SIZE * COLUMNS
    panels = piece + SIZE * tall * COLUMNS
    at_once = blocks if not copy else max(1, DEEP // block)
    at_once = -(-blocks // -(-blocks // at_once))
    for column in range(left, right, wide):
        width = min(wide, right - column)
        panel, panel_step = b + SIZE * column * b_column, b_step
        for first in range(0, blocks, at_once):
            behind, from_k = min(first + at_once, blocks), first * block
            if copy:
                source = b + SIZE * (from_k * b_step + column * b_column)
                depth = min(behind * block, length) - from_k
                copy_panel(source, b_step, b_column, depth, width, wide, panels)
                panel, panel_step = panels - SIZE * from_k * wide, wide
            for strip in range(top, bottom, tall):
                below = min(strip + tall, bottom)
                for number in range(first, behind):
                    what = strip, below, number, column, width, bias, floor
                    _block_of_pairs(
                        a,
                        a_row,
                        a_step,
                        pixels,
                        panel,
                        panel_step,
                        lists,
                        what,
                        c,
                        c_row,
                        piece,
                        wide,
                        room,
                        details,
                    )
                if behind == blocks:
                    tall_piece = 1 if ordered else below - strip
                    for place in range(strip, below, tall_piece):
                        row = order[place] if ordered else place
                        target, target_row = piece + SIZE * (place - strip) * wide, wide
                        if c != 0:
                            target, target_row = c + SIZE * (row * c_row + column), c_row
                        finish(details, row, column, tall_piece, width, target, target_row)


@register_jitable
def room_for(depth, blocked):
    """How many float32 numbers of working space :func:`sparse_product` needs: for so many rows of b that
    are copied (0: none), and lists of one block or of more."""
    return COLUMNS * (1 + (GROUP + min(depth, DEEP) if blocked else STRIP + depth))
