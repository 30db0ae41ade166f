"""Products with a left operand that is mostly zeros, as pictures of digits are: 81 % of MNIST's pixels.

The sum over k runs over a list of those k alone where the operand is not zero: the same sum in the
same order without terms that are zero, so the same bits as :mod:`.cpu` gives (as long as the other
operand is finite). Two rows share a list, of where either is not zero: what is loaded for one is then
used for both. Neighbouring pixels of a picture mostly are both ink or both paper, so in x ᵀ·dy, where the
rows are pixels, a list for two is hardly longer than for one.

Lists are made from bits, one for each element. Transposing 64 × 64 bits is quick, so the lists of both
products come from one look at the operand.

Source: Warren, "Hacker's Delight" (2012), section 7-3, for transposing bits.
"""

import numpy as np
from numba.extending import register_jitable

from ..common.compiling import jit
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import fill, floats, ints
from ..common.simd import count_bits, last_bit, list_32, micro_kernel, not_zero, write_16
from ..common.tiles import Tile, can_compress
from .cpu import LANES, finish

# Two rows × four vectors: 8 accumulators. One row would load twice as often, more rows have longer
# lists; measured for rows 1 to 4 and vectors 2, 4 and 8.
LISTED = Tile(rows=2, vectors=4, lanes=LANES)
ROWS, COLUMNS = LISTED.rows, LISTED.columns
STRIP = 16  # rows of an output that are finished together
COMPRESS = can_compress()

_multiply = micro_kernel(LISTED, listed=True)


@register_jitable
def words_for(count):
    """How many 64-bit words hold ``count`` bits."""
    return -(-count // 64)


@register_jitable
def list_row_for(count):
    """How many uint16 numbers a list of at most ``count`` takes: whole vectors are written."""
    return -(-count // 64) * 64 + 32


@jit
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


@jit
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


@jit
def lists_of_pairs(bits, rows, length, first, last, lists, counts):
    """For the pairs first … last - 1 of rows of bits, the places of the bits that either has set.

    Pair p is of the rows 2·p and 2·p + 1 (if there is one) of ``length`` bits; its list of uint16
    numbers is at lists + 2·p·list_row_for(length), their number is counts[p].
    """
    words, row = words_for(length), list_row_for(length)
    source, found = ints(bits, rows * words), ints(counts, last)
    for pair in range(first, last):
        place = lists + 2 * pair * row
        n = 0
        for word in range(words):
            value = source[2 * pair * words + word]
            if 2 * pair + 1 < rows:
                value |= source[(2 * pair + 1) * words + word]
            n = _list_word(value, 64 * word, place, n)
        found[pair] = n


@jit
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
    for n in range(LISTED.vectors, 0, -1):
        panels = -(-vectors // n)
        largest_share = -(-panels // threads) * n
        cost = largest_share * (1.0 + 0.1 * (LISTED.vectors - n))
        if best == 0 or cost < best:
            best, width = cost, n * LANES
    return width


@jit
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


@jit
def sparse_product(
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
    wide,
    rows,
    depth,
    floor,
    lists,
    list_row,
    counts,
    room,
    details,
):
    """c = max(a·b + bias, floor), then ``finish``, for one thread's ``part``, over lists of k.

    Addresses, distances, ``c`` = 0 and ``details`` as for :func:`~.cpu.product`, but the columns of b
    that start at j are at b + 4·j·b_column for each j that is a multiple of ``wide``: panels
    (:func:`pack_panels`), or a plain matrix where b_column is 1. ``rows`` is how many a has; the part
    starts at a multiple of STRIP and of ``wide``. If ``depth`` is not 0, b has so many rows, and is
    copied panel by panel. ``room`` holds ``room_for(depth)`` numbers. Pieces that are not stored have
    rows ``wide`` numbers apart, and zeros behind their columns.

    Cost: 4 flops for each column and each k of the list of two rows. The rows of b on a list are read
    once for each two rows of a, from the second-level cache if b's columns of this thread fit there.
    """
    top, bottom, left, right = part
    if bottom <= top or right <= left:
        return
    fill(floats(room, COLUMNS + STRIP * COLUMNS), 0)
    found = ints(counts, -(-rows // ROWS))
    piece = room + SIZE * COLUMNS
    for column in range(left, right, wide):
        width = min(wide, right - column)
        start = bias + SIZE * column if bias != 0 else room
        panel, panel_step = b + SIZE * column * b_column, b_step
        if depth > 0:
            copied = piece + SIZE * STRIP * COLUMNS
            for k in range(depth):
                source = floats(panel + SIZE * k * b_step, width)
                target = floats(copied + SIZE * k * wide, width)
                for j in range(width):
                    target[j] = source[j]
            panel, panel_step = copied, wide
        for strip in range(top, bottom, STRIP):
            tall = min(STRIP, bottom - strip)
            out, out_row = piece, wide
            if c != 0:
                out, out_row = c + SIZE * (strip * c_row + column), c_row
            for r in range(strip, strip + tall, ROWS):
                pair = r // ROWS
                _multiply(
                    a + SIZE * r * a_row,
                    a_row,
                    a_step,
                    panel,
                    panel_step,
                    start,
                    0,
                    out + SIZE * (r - strip) * out_row,
                    out_row,
                    found[pair],
                    lists + 2 * pair * list_row,
                    min(ROWS, strip + tall - r),
                    width,
                    floor,
                )
            finish(details, strip, column, tall, width, out, out_row)


@register_jitable
def room_for(depth):
    """How many float32 numbers of working space :func:`sparse_product` needs."""
    return COLUMNS + STRIP * COLUMNS + depth * COLUMNS
