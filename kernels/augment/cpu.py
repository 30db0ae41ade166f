"""Random deformations of images on the CPU: the definition of :mod:`.reference`, in vectors.

Everything about an image happens in a few kilobytes of working space. The four pixels that a bilinear mean
takes are first put beside each other in one 32-bit word for each place of the image, so that a mean needs one
load and not four; vectors of 16 such loads are what most of the time goes to.
"""

import numpy as np

from ..common.compiling import inner
from ..common.memory import (
    aligned_zeros,
    bytes_at,
    floats,
    ints,
    ints32,
    matrix_address,
    order_address,
    share,
)
from ..common.philox import MASK, SHIFT, philox4x32
from ..common.team import Kernel, thread_count
from .reference import (
    ACROSS_SHIFT,
    COSINE,
    DOWN_SHIFT,
    ERASE_BLOCK,
    FAINTNESS,
    FIELD_BLOCK,
    LEVEL_BITS,
    LEVELS,
    NOISE,
    NOISE_BLOCK,
    ONE,
    SHEAR,
    SHIFT_BY,
    SIDE,
    SINE,
    STRETCH,
    TABLES,
    THICKNESS,
)
from .vectors import (
    BASE_X,
    BASE_Y,
    LANES,
    LAST_X,
    LAST_Y,
    MAP,
    ROW,
    SLOPE_X,
    SLOPE_Y,
    START_X,
    START_Y,
    sample,
    weighted_sums,
)

SHARE = 16  # images a thread: less work than that is done sooner than a sleeping thread is awake
PIXEL = np.float32(1 / 255)
HALF = ONE // 2  # of a pixel
BITS = np.uint64(LEVEL_BITS)

# The words that a deformation is for kernels.
(
    HEIGHT,
    WIDTH,
    TABLE,  # addresses, from here on
    DOWN,
    ACROSS,  # [L, padded width]
    PLACES,  # 2·x - (W - 1), for the padded width
    KNOTS_DOWN,
    KNOTS_ACROSS,
    THICK,
    NOISY,
    ERASING,
    SEED,
    STREAM,
    ROOM,  # int32 numbers of working space that a thread needs
    WORDS,
) = range(15)

_philox = inner(philox4x32, forceinline=True)


def _padded(length):
    return (length + LANES - 1) // LANES * LANES


def _padded_frame(width):
    """The distance of rows of an image with a pixel of paper before and two behind."""
    return (width + 3 + LANES - 1) // LANES * LANES


_whole, _frame_row = inner(_padded), inner(_padded_frame)


def words_for(deformation, key):
    """(words, what must stay alive as long as they are used) for :func:`deform_rows`."""
    height, width = deformation.height, deformation.width
    knots_down, knots_across = deformation.down.shape[1], deformation.across.shape[1]
    across = np.zeros((knots_across, _padded(width)), np.int32)
    across[:, :width] = deformation.across.T
    down = np.ascontiguousarray(deformation.down)
    places = 2 * np.arange(_padded(width), dtype=np.int32) - (width - 1)
    kept = deformation.tables, down, across, places
    frame = (height + 3) * _padded_frame(width)
    random = 4 * max(-(-2 * knots_down * knots_across // 16), -(-height * width // 16))
    room = 2 * frame + random + _padded(2 * knots_across) * (knots_down + height)
    room += 2 * _padded(width) + height * width + 2 * LANES
    return [
        *(height, width, *(a.ctypes.data for a in kept), knots_down, knots_across),
        *(deformation.thick, deformation.noise, deformation.erase, *key, _padded(room)),
    ], kept


@inner
def _random(words, blocks, first_block, image, low, high, seed, stream):
    """Fill ``words`` with random ones."""
    for block in range(blocks):
        counter = np.uint64(first_block + block) & MASK
        w0, w1, w2, w3 = _philox(counter, image, low, high, seed, stream)
        words[4 * block] = np.int32(w0)
        words[4 * block + 1] = np.int32(w1)
        words[4 * block + 2] = np.int32(w2)
        words[4 * block + 3] = np.int32(w3)


@inner
def _put_in_frame(image, height, width, frame):
    """The pixels of an image, as numbers, inside a frame that is zero."""
    row = _frame_row(width)
    for y in range(height):
        source, target = bytes_at(image + y * width, width), frame + 4 * ((y + 1) * row + 1)
        numbers = ints32(target, width)
        for x in range(width):
            numbers[x] = source[x]


@inner
def _thicken(frame, height, width, strength, result):
    """The pixels of ``frame`` with thicker or thinner strokes."""
    row = _frame_row(width)
    for y in range(1, height + 1):
        here = frame + 4 * (y * row + 1)
        middle, left, right = ints32(here, width), ints32(here - 4, width), ints32(here + 4, width)
        above, below = ints32(here - 4 * row, width), ints32(here + 4 * row, width)
        numbers = ints32(result + 4 * (y * row + 1), width)
        for x in range(width):
            value = middle[x]
            if strength < 0:
                change = value - min(min(min(left[x], right[x]), min(above[x], below[x])), value)
            else:
                change = max(max(max(left[x], right[x]), max(above[x], below[x])), value) - value
            numbers[x] = value + ((change * strength + np.int32(128)) >> np.int32(8))


@inner
def _put_together(frame, height, width, fours):
    """For each place of the frame the pixels there, on its right, below, and below on the right: a word."""
    row = _frame_row(width)
    count = (height + 2) * row
    here, right = ints32(frame, count), ints32(frame + 4, count)
    below, both = ints32(frame + 4 * row, count), ints32(frame + 4 * row + 4, count)
    numbers = ints32(fours, count)
    for i in range(count):
        numbers[i] = (
            here[i] | (right[i] << np.int32(8)) | (below[i] << np.int32(16)) | (both[i] << np.int32(24))
        )


@inner
def _erase(pixels, height, width, tables, words):
    """A square becomes paper, ink fainter."""
    w0, w1, w2, w3 = words
    side = np.int64(tables[np.uint64(SIDE * LEVELS) + (w0 >> BITS)])
    ink = tables[np.uint64(FAINTNESS * LEVELS) + (w3 >> BITS)]
    left = ((width + 1 - side) * np.int64(w1)) >> 32
    top = ((height + 1 - side) * np.int64(w2)) >> 32
    for i in range(height * width):
        pixels[i] = (pixels[i] * ink + np.int32(HALF)) >> np.int32(16)
    for y in range(top, top + side):
        for x in range(left, left + side):
            pixels[y * width + x] = 0


_one_sum, _two_sums = weighted_sums(1), weighted_sums(2)


@inner
def _lines(plan, random, knots, lines):
    """The random knots, spread over the rows of the image: [H, 2·L] for both fields, in rows of whole
    vectors."""
    down, across = plan[KNOTS_DOWN], plan[KNOTS_ACROSS]
    wide = _whole(2 * across)
    found, numbers = bytes_at(random, 2 * down * across), ints32(knots, down * wide)
    for field in range(2):
        for k in range(down):
            for i in range(across):
                byte = found[(field * down + k) * across + i]
                numbers[k * wide + field * across + i] = 2 * np.int32(byte) - 255
    for y in range(plan[HEIGHT]):
        for left in range(0, wide, LANES):
            line, factors = lines + 4 * (y * wide + left), plan[DOWN] + 4 * y * down
            _one_sum(line, factors, 0, knots + 4 * left, wide, down, DOWN_SHIFT)


@inner
def _displacements(plan, line, moves):
    """How far the pixels of a row are moved: [padded W / LANES, 2, LANES]."""
    across, padded = plan[KNOTS_ACROSS], _whole(plan[WIDTH])
    for left in range(0, padded, LANES):
        _two_sums(moves + 8 * left, line, across, plan[ACROSS] + 4 * left, padded, across, ACROSS_SHIFT)


@inner
def _deform(plan, image, number, low, high, room, out):
    """One image at an address, to float32 numbers in 0 … 1."""
    height, width = plan[HEIGHT], plan[WIDTH]
    padded, wide = _whole(width), _whole(2 * plan[KNOTS_ACROSS])
    seed, stream = np.uint64(plan[SEED]) & MASK, np.uint64(plan[STREAM]) & MASK
    count = (height + 3) * _frame_row(width)
    frame, fours = room, room + 4 * count
    moves = fours + 4 * count
    result = moves + 8 * padded
    knots = result + 4 * (height * width + LANES)
    lines = knots + 4 * plan[KNOTS_DOWN] * wide
    maps = lines + 4 * height * wide
    random = maps + 4 * LANES

    tables = ints32(plan[TABLE], TABLES * LEVELS)
    w0, w1, w2, w3 = _philox(np.uint64(0), number, low, high, seed, stream)
    w4, w5, w6, w7 = _philox(np.uint64(1), number, low, high, seed, stream)
    cos = np.int64(tables[np.uint64(COSINE * LEVELS) + (w0 >> BITS)])
    sin = np.int64(tables[np.uint64(SINE * LEVELS) + (w0 >> BITS)])
    stretch_x = np.int64(tables[np.uint64(STRETCH * LEVELS) + (w1 >> BITS)])
    stretch_y = np.int64(tables[np.uint64(STRETCH * LEVELS) + (w2 >> BITS)])
    lean = (np.int64(tables[np.uint64(SHEAR * LEVELS) + (w3 >> BITS)]) * stretch_y) >> 16
    xx, xy = (cos * stretch_x) >> 16, (cos * lean - sin * stretch_y) >> 16
    yx, yy = (sin * stretch_x) >> 16, (sin * lean + cos * stretch_y) >> 16

    _put_in_frame(image, height, width, frame)
    if plan[THICK]:
        _thicken(frame, height, width, tables[np.uint64(THICKNESS * LEVELS) + (w6 >> BITS)], fours)
        # The frame of zeros, but for what is inside: the words made next go over the old pixels.
        inside, row = fours, _frame_row(width)
        for y in range(1, height + 1):
            source, target = (
                ints32(inside + 4 * (y * row + 1), width),
                ints32(frame + 4 * (y * row + 1), width),
            )
            for x in range(width):
                target[x] = source[x]
    _put_together(frame, height, width, fours)
    if plan[KNOTS_DOWN] > 0:
        words = ints32(random, 4 * ((2 * plan[KNOTS_DOWN] * plan[KNOTS_ACROSS] + 15) // 16))
        _random(words, words.size // 4, FIELD_BLOCK, number, low, high, seed, stream)
        _lines(plan, random, knots, lines)
    numbers = ints32(maps, MAP)
    numbers[SLOPE_X], numbers[SLOPE_Y] = xx, yx
    numbers[BASE_X] = (width - 1) * HALF + tables[np.uint64(SHIFT_BY * LEVELS) + (w4 >> BITS)]
    numbers[BASE_Y] = (height - 1) * HALF + tables[np.uint64(SHIFT_BY * LEVELS) + (w5 >> BITS)]
    numbers[LAST_X], numbers[LAST_Y], numbers[ROW] = 2 * HALF * width, 2 * HALF * height, _frame_row(width)
    for y in range(height):
        if plan[KNOTS_DOWN] > 0:
            _displacements(plan, lines + 4 * y * wide, moves)
        v = 2 * y - (height - 1)
        numbers[START_X], numbers[START_Y] = xy * v, yy * v
        for left in range(0, padded, LANES):
            both, own = moves + 8 * left, result + 4 * (y * width + left)
            # What is too much of a row is written over by the next.
            sample(fours, maps, plan[PLACES] + 4 * left, both, both + 4 * LANES, own)
    pixels, target = ints32(result, height * width), floats(out, height * width)
    if plan[ERASING]:
        drawn = _philox(np.uint64(ERASE_BLOCK), number, low, high, seed, stream)
        _erase(pixels, height, width, tables, drawn)
    if plan[NOISY]:
        words = ints32(random, 4 * ((height * width + 15) // 16))
        _random(words, words.size // 4, NOISE_BLOCK, number, low, high, seed, stream)
        found, noise = bytes_at(random, height * width), tables[np.uint64(NOISE * LEVELS) + (w7 >> BITS)]
        for i in range(height * width):
            change = ((2 * np.int32(found[i]) - np.int32(255)) * noise) >> np.int32(8)
            pixels[i] = min(max(pixels[i] + change, np.int32(0)), np.int32(255))
    for i in range(height * width):
        target[i] = np.float32(pixels[i]) * PIXEL


@inner
def deform_rows(plan, images, order, start, step, out, out_row, first, last, room):
    """Rows ``first`` … ``last`` - 1 of :func:`augment`.

    ``plan``: words of :func:`words_for`; ``images`` and ``out`` addresses, ``out_row`` the distance of rows;
    ``room`` the address of the thread's working space, zero when it is first used.
    """
    low, high = np.uint64(step) & MASK, np.uint64(step) >> SHIFT
    pixels = plan[HEIGHT] * plan[WIDTH]
    for r in range(first, last):
        image = order[start + r]
        number = np.uint64(image) & MASK
        _deform(plan, images + image * pixels, number, low, high, room, out + 4 * r * out_row)


@Kernel
def _augment(thread, threads, barrier, arguments):
    words = ints(arguments, 8)
    rows, start, step, images, out, out_row, room = (
        words[0],
        words[1],
        words[2],
        words[3],
        words[5],
        words[6],
        words[7],
    )
    plan = ints(arguments + 8 * 8, WORDS)
    first, last = share(rows, thread, threads)
    order = ints(words[4], start + rows)
    deform_rows(plan, images, order, start, step, out, out_row, first, last, room + 4 * thread * plan[ROOM])


def augment(images, order, start, deformation, key, step, out, threads=None):
    """out[i] = images[order[start + i]], deformed at random and scaled from 0 … 255 to 0 … 1.

    Shapes: images [N, H·W] without gaps, order [N], out [B, H·W], whose rows may be apart, with
    start + B ≤ N; ``deformation`` a :class:`.reference.Deformation` for H × W. Dtypes: images uint8, order
    int64, out float32. ``key``: two integers below 2**32; ``step``: an integer below 2**64; ``threads``: at
    most so many. The bits are those of :func:`.reference.augment`, whatever the number of threads.
    Writes: out.
    Errors: IndexError for an order outside 0 … N - 1, TypeError for another dtype, ValueError for shapes
    that do not fit.
    Cost: :mod:`.reference`.
    """
    pixels = deformation.height * deformation.width
    source, distance = matrix_address("images", images, np.uint8)
    if distance != images.shape[1] or distance != pixels:
        raise ValueError(f"images must be of {pixels} pixels next to each other, got {list(images.shape)}")
    target = matrix_address("out", out, np.float32, (len(out), pixels), written=True)
    places = order_address(order, start, len(out), len(images))
    plan, kept = words_for(deformation, key)
    threads = min(thread_count(threads), max(1, len(out) // SHARE))
    room = aligned_zeros(threads * plan[ROOM], np.int32)
    signed = int(step) - 2**64 if step >= 2**63 else int(step)
    words = [len(out), start, signed, source, places, *target, room.ctypes.data]
    _augment([*words, *plan], threads)
    del kept, room  # alive until here
