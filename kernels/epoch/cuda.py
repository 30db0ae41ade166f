"""A stretch of an epoch of a network with one hidden layer in one launch: the weights stay on the chip.

Small networks are all latency: a step of 784-128-10 is a microsecond of arithmetic, and launching a kernel
takes longer. Here every block owns some hidden units: their columns of the first weights, their rows of the
second and what the optimizer keeps for both stay in its shared memory from the first step to the last. In
each step a block

1. computes its units' outputs for all images of the batch, and tells what these add to the logits;
2. adds up the logits of its share of the images (in an order that is always the same), tells the logits'
   gradient, and writes the loss;
3. hears the gradients of all images, and updates what it owns. The bias of the output layer every block
   keeps for itself, with the same bits.

Blocks do not meet before the end. Each number that one tells the others is one word of 64 bits together with
a tag, the number of the step, and who needs it reads until the step's is there: one way through memory
instead of three, which a barrier takes (what was written must be there, then be announced, then be read).
No place is written again before all have read it: a block tells logits when it has heard all gradients, which
others tell when they have heard all logits, and these gradients when it has heard all logits.

Pixels stay the bytes that they are: tensor cores multiply them with the weights, and with the gradients of
the units' outputs, as whole numbers of four digits (:mod:`..common.digits`), and no pixel becomes a float.

While gradients are on their way, each block asks for the next batch's images. No sum depends on who comes
first.

What a step takes is above all its instructions, some 2,000, of which each takes about as long wherever it
is: presumably they are more than a multiprocessor keeps near, and fetched anew in every step. So there are no
64-bit indices, no divisions but by multiplication, and no loops written out that have few turns.

Source: the idea of weights that stay in registers or shared memory across steps is that of Diamos et al.,
"Persistent RNNs", ICML 2016; that of words which say by themselves that they have arrived is of NVIDIA's NCCL
(its protocol LL).
"""

import math
import operator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, int64, uint8, uint32, uint64

from ..common import cuda as gpu  # its launches by this name: tests without a GPU put others there
from ..common import grid, lanes, ptx
from ..common.arena import Arena
from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    LONGS,
    WORDS,
    Kernel,
    blocks_for,
    copy_onto,
    cuda,
    device,
    recorded,
    types,
)
from ..common.digits import TILE, digits_of, no_sums, size_of, total_of, unit_of
from ..common.lanes import ALL, exchanged
from ..optimizer.cuda import NUMBERS, step_numbers, stepped
from ..softmax_xent.cuda import expected_logit, smoothed

THREADS = 1024
WARPS = THREADS // 32
PARTS = 2  # of the pixels, a warp for each that multiplies (with 4 all is there sooner, but more to add up)
PAIR = 128 + 16  # so that what is written of two pairs at once is in different banks
MOST_CLASSES = 31  # one for each lane, and one that there may be behind them
MOST_IMAGES = 2**31 - 1  # that are counted in 32 bits
LAST_TAG = 2**31 - 1

# Units of a block, where there is room: a tile of the tensor cores has columns for two, and half as many
# blocks read half as much and tell half as many. (On an H200 1 and 4 were 10 % slower for 784-128-10.)
LEAST_UNITS = TILE

# The words of the plan, which is an argument of the kernel: a GPU has those at hand wherever it computes.
(
    BATCH,
    COUNT,
    PIXELS,
    HIDDEN,
    CLASSES,
    UNITS,  # of a block
    UNIT_TILES,  # of two units
    W1,  # where in the flat buffer, and how far apart the rows are
    W1_ROW,
    B1,
    W2,
    W2_ROW,
    B2,
    STATES,  # 0, 1 or 2 vectors of the optimizer
    NESTEROV,
    WEIGHTED,
    X,  # where in shared memory, in words, from here on
    X_ROW,
    X_BUFFERS,  # 1 or 2
    X_WORDS,  # of a buffer
    OWN,  # w1 [UNITS, OWN_ROW], then its states
    OWN_ROW,
    W_DIGITS,  # of w1: [tiles of two units, pairs of 32 pixels, 32 lanes, 4], pairs PAIR words apart
    SMALL,  # b1 [UNITS], w2 [UNITS, CLASSES], b2 [CLASSES], then their states
    SMALL_WORDS,
    SLOPES,  # [SMALL_WORDS]: the gradients of these
    SUMS,  # [PARTS, UNITS, Y_ROW] of these; then in the first the gradients of outputs
    Y,  # [UNITS, Y_ROW]: the units' outputs
    Y_ROW,
    LARGEST,  # [2, UNITS]: the size of the largest of w1's numbers and of the gradients'
    SCALES,  # [2, UNITS]: the units of w1's digits and of the gradients'
    PLACES,  # [X_BUFFERS, BATCH]: where the images of a step are
    TARGETS,  # [BATCH]: the labels of this step
    NUMBERS_NOW,  # of this step
    BARRIERS,  # of 8 bytes, for each of the buffers, that count the bytes of bulk copies
    Z,  # [MESSAGE]: logits of its share
    DZ,  # [BATCH, DZ_ROW], the logits' gradients, after it the digits of the outputs'
    DZ_ROW,
    SHARE,  # of the images, whose logits a block adds up
    SHARES,  # blocks that have one
    MESSAGE,  # words of a block to another: SHARE · CLASSES, made even
    SHARED_WORDS,
    ONE,  # 1
    PER_CLASSES,  # for _split: by CLASSES, and so on
    PER_HALF,  # of the classes
    PER_UNITS,
    PER_UNIT_TILES,
    PER_FOURS,
    PER_SHARE,
    PLAN_WORDS,
) = range(50)

# What is given besides, behind which are the numbers of the steps.
FIRST_STEP, LAST_STEP, TAG, NUMBERS_AT = 0, 1, 2, 4  # numbers of steps; four are read at a time

# Whole numbers of 32 bits, as far as possible: a GPU needs two instructions or more for each of 64.
# (So do its loops over a range, in Numba: hence those with while. Where these go on by plan[ONE], a number
# that the compiler does not know, it does not write them out.)

_warp_sum = lanes.summing(32)
_arrived = ptx.copies_but(0)
_barrier_init, _barriers_visible, _barrier_expect = ptx.barrier_init, ptx.barriers_visible, ptx.barrier_expect
_barrier_wait, _copy_row = ptx.barrier_wait, ptx.copy_row
_tell, _hear, _float_of, _high_product = (
    *(ptx.tell, ptx.hear, ptx.float_of),
    ptx.high_product,
)
_copies_end, _copy_4, _copy_16 = ptx.copies_end, ptx.copy_4, ptx.copy_16
_shared_address, _global_address = ptx.shared_address, ptx.global_address
_byte_sums, _larger, _keep_larger = ptx.byte_sums, ptx.larger, ptx.keep_larger
_largest_of_warp = ptx.largest_of_warp
_load2, _store2, _load4 = ptx.load2, ptx.store2, ptx.load4
_load2_words, _load4_words = ptx.load2_words, ptx.load4_words
_divided_by = ptx.divided
_pixels_of_16 = ptx.fragments(2, 32, 0, False)  # images: 64 bytes of each
_pairs_of_32 = ptx.fragments(1, 0, 0, True)  # images: a lane's two pixels beside each other, of eight images
_even_bytes, _odd_bytes = ptx.even_bytes, ptx.odd_bytes


@device
def _divided(number, by):
    """(number // by, number % by), both of 32 bits and not negative."""
    quotient = int32(_divided_by(number, by))
    return quotient, int32(number - quotient * by)


@device
def _split(number, by, per):
    """The same, where ``per`` is :func:`_per` of ``by``, and number · by less than 2³²."""
    quotient = int32(_high_product(uint32(number + 1), uint32(per)))
    return quotient, int32(number - quotient * by)


@device
def _thread():
    return int32(cuda.threadIdx.x)


@device
def _last_first():
    """A thread's number among those of which the first warp is last."""
    return int32(THREADS - 1 - cuda.threadIdx.x)


@device
def _warp():
    return int32(cuda.threadIdx.x >> 5)


@device
def _lane():
    return int32(cuda.threadIdx.x & 31)


# --- what comes and goes --------------------------------------------------------------------------


@device
def _own(plan, unit):
    """The hidden unit of the network that is a block's ``unit``."""
    return int32(int32(cuda.blockIdx.x) * plan[UNITS] + unit)


@device
def _carry(plan, memory, flat, state, back):
    """Copy a block's parameters (state 0) or states from the flat buffer to shared memory, or back."""
    units, pixels, classes = plan[UNITS], plan[PIXELS], plan[CLASSES]
    here = int32(plan[OWN] + state * units * plan[OWN_ROW])
    item = _thread()
    while item < int32(units * pixels):
        unit, pixel = _divided(item, pixels)
        place = uint32(here + unit * plan[OWN_ROW] + pixel)
        if _own(plan, unit) < plan[HIDDEN]:
            there = uint32(plan[W1] + pixel * plan[W1_ROW] + _own(plan, unit))
            if back:
                flat[there] = memory[place]
            else:
                memory[place] = flat[there]
        elif not back:
            memory[place] = float32(0)
        item = int32(item + THREADS)
    here = int32(plan[SMALL] + state * plan[SMALL_WORDS])
    item = _thread()
    while item < plan[SMALL_WORDS]:
        there = int32(-1)
        if item < units:
            if _own(plan, item) < plan[HIDDEN]:
                there = int32(plan[B1] + _own(plan, item))
        elif item < units + units * classes:
            unit, c = _divided(item - units, classes)
            if _own(plan, unit) < plan[HIDDEN]:
                there = int32(plan[W2] + _own(plan, unit) * plan[W2_ROW] + c)
        elif not back or cuda.blockIdx.x == 0:
            there = int32(plan[B2] + item - units - units * classes)
        if back:
            if there >= 0:
                flat[uint32(there)] = memory[uint32(here + item)]
        else:
            memory[uint32(here + item)] = flat[uint32(there)] if there >= 0 else float32(0)
        item = int32(item + THREADS)


@device
def _images_of(plan, step, last):
    """How many images a step has, none from the last on."""
    return int32(0) if step >= last else min(plan[BATCH], int32(plan[COUNT] - step * plan[BATCH]))


@device
def _buffer(plan, step):
    """Which of the buffers is a step's."""
    return int32(step & (plan[X_BUFFERS] - 1))


@device
def _ask_for_places(plan, base, step, last, order):
    """Where the images of a step are: the low halves of whole numbers of 64 bits."""
    here, image = int32(plan[PLACES] + _buffer(plan, step) * plan[BATCH]), _last_first()
    address = _global_address(order) + uint64(uint32(step * plan[BATCH])) * uint64(8)
    while image < _images_of(plan, step, last):
        _copy_4(uint32(base + 4 * (here + image)), address + uint64(uint32(8 * image)))
        image = int32(image + THREADS * plan[ONE])


@device
def _ask_for_labels(plan, words, base, step, count, labels):
    """The labels of a step's images, whose places are there."""
    found, image = int32(plan[PLACES] + _buffer(plan, step) * plan[BATCH]), _last_first()
    while image < count:
        place = words[uint32(found + image)]
        _copy_4(
            uint32(base + 4 * (plan[TARGETS] + image)), _global_address(labels) + uint64(place) * uint64(4)
        )
        image = int32(image + THREADS * plan[ONE])


@device
def _ask_for_numbers(plan, base, step, numbers):
    """Those of a step, ``step`` steps after the first."""
    if _last_first() < NUMBERS // 4:
        further = int32(16 * _last_first())
        address = _global_address(numbers) + uint64(uint32(4 * NUMBERS * step + further))
        _copy_16(uint32(base + 4 * plan[NUMBERS_NOW] + further), address, uint32(16))


@device
def _ask_for_images(plan, words, step, last, images, base):
    """Copy images of a step, whose places are there, to shared memory: a warp for each."""
    pixels, image = plan[PIXELS], _warp()
    found = int32(plan[PLACES] + _buffer(plan, step) * plan[BATCH] + image)
    row = int32(plan[X] + _buffer(plan, step) * plan[X_WORDS] + image * plan[X_ROW])
    row, further = int32(base + 4 * row + 16 * _lane()), int32(4 * WARPS * plan[X_ROW])
    address, left = _global_address(images) + uint64(16 * _lane()), int32(pixels - 16 * _lane())
    end = int32(found + _images_of(plan, step, last) - image)
    while found < end:
        source = address + uint64(words[uint32(found)]) * uint64(uint32(pixels))
        at, bytes_left = row, left
        while bytes_left > 0:
            _copy_16(uint32(at), source, uint32(16))
            at, source, bytes_left = (
                int32(at + 512),
                source + uint64(512),
                int32(bytes_left - 512 * plan[ONE]),
            )
        row, found = int32(row + further), int32(found + WARPS * plan[ONE])


@device
def _make_no_barriers(plan, base):
    pass


@device
def _wait_for_copies(plan, base, step, turn):
    """For all that this thread has asked for."""
    _arrived()


# The same where a GPU copies an image by one instruction (capability 9.0): no thread has to ask for each 16
# bytes of it. A barrier for each buffer counts the bytes as they come.


@device
def _barrier_of(plan, base, buffer):
    return uint32(base + 4 * plan[BARRIERS] + 8 * buffer)


@device
def _make_barriers(plan, base):
    if _thread() < plan[X_BUFFERS]:
        _barrier_init(_barrier_of(plan, base, _thread()), uint32(1))
    cuda.syncthreads()
    _barriers_visible()


@device
def _wait_for_bulk(plan, base, step, turn):
    """For the images of a step, which is ``turn`` steps after the first, and for what this thread has asked
    for besides."""
    _arrived()
    parity = uint32(turn >> (plan[X_BUFFERS] - 1) & 1)
    _barrier_wait(_barrier_of(plan, base, _buffer(plan, step)), parity)


@device
def _ask_for_bulk(plan, words, step, last, images, base):
    """Copy images of a step, whose places are there, to shared memory: as few as possible for each warp,
    whose lanes have to take turns to ask."""
    image, count, pixels = int32(_warp() + WARPS * _lane()), _images_of(plan, step, last), plan[PIXELS]
    buffer = _buffer(plan, step)
    barrier = _barrier_of(plan, base, buffer)
    if image == 0 and count > 0:
        _barrier_expect(barrier, uint32(count * pixels))
    found, row = int32(plan[PLACES] + buffer * plan[BATCH]), int32(plan[X] + buffer * plan[X_WORDS])
    while image < count:
        source = _global_address(images) + uint64(words[uint32(found + image)]) * uint64(uint32(pixels))
        _copy_row(uint32(base + 4 * (row + image * plan[X_ROW])), source, uint32(pixels), barrier)
        image = int32(image + THREADS * plan[ONE])


class _Copies(NamedTuple):
    """How images come: device functions. ``begin`` once, ``ask`` for a step's, ``wait`` for a step's."""

    begin: Any
    ask: Any
    wait: Any


COPIES = _Copies(_make_no_barriers, _ask_for_images, _wait_for_copies)
BULK_COPIES = _Copies(_make_barriers, _ask_for_bulk, _wait_for_bulk)


# --- numbers as digits ----------------------------------------------------------------------------


@device
def _find_largest_weight(plan, memory, base):
    """Of each unit, before the first step."""
    item = _thread()
    while item < int32(plan[UNITS] * plan[PIXELS]):
        unit, pixel = _divided(item, plan[PIXELS])
        found = size_of(memory[uint32(plan[OWN] + unit * plan[OWN_ROW] + pixel)])
        _keep_larger(uint32(base + 4 * (plan[LARGEST] + unit)), found)
        item = int32(item + THREADS)


@device
def _forget_largest(plan, words):
    """Of all units' weights and gradients."""
    if _thread() < 2 * plan[UNITS]:
        words[uint32(plan[LARGEST] + _thread())] = uint32(0)


@device
def _digits_of_weights(plan, memory, words):
    """Four pixels' weights at a time, as the tensor cores want them."""
    fours, pairs = int32(plan[PIXELS] >> 2), int32((plan[PIXELS] + 63) >> 6)
    item = _thread()
    while item < int32(plan[UNITS] * fours):
        unit, four = _split(item, fours, plan[PER_FOURS])
        per_unit, scale = unit_of(words[uint32(plan[LARGEST] + unit)])
        if four == 0:
            memory[uint32(plan[SCALES] + unit)] = scale * float32(1 / 255)
        w = _load4(memory, uint32(plan[OWN] + unit * plan[OWN_ROW] + 4 * four))
        found = digits_of(w[0], w[1], w[2], w[3], per_unit)
        of_lane = (unit & 1) * 16 + (four & 3)
        at = int32(
            plan[W_DIGITS] + ((unit >> 1) * pairs + (four >> 4)) * PAIR + 4 * of_lane + (four >> 2 & 3)
        )
        words[uint32(at)], words[uint32(at + 16)] = found[0], found[1]
        words[uint32(at + 32)], words[uint32(at + 48)] = found[2], found[3]
        item = int32(item + THREADS)


@device
def _first_image(step, half, lane):
    """The images of a word of four bytes are this one, the next, and the two eight further: so that four
    lanes read rows whose words are in different banks."""
    return int32(32 * step + 16 * half + 2 * lane)


@device
def _slope(memory, at, image, count):
    return memory[uint32(at + image)] if image < count else float32(0)


@device
def _digits_of_slopes(plan, memory, words, count):
    """The gradients of the units' outputs, of four images at a time, a warp for each unit; zeros where there
    are none."""
    units, steps, unit = plan[UNITS], int32((count + 31) >> 5), _warp()
    while unit < 2 * plan[UNIT_TILES]:
        per_unit, scale, four = float32(0), float32(0), _lane()
        if unit < units:
            per_unit, scale = unit_of(words[uint32(plan[LARGEST] + units + unit)])
            if four == 0:
                memory[uint32(plan[SCALES] + units + unit)] = scale * float32(1 / 255)
        row = int32(plan[SUMS] + unit * plan[Y_ROW])
        while four < 8 * steps:
            step, half, lane = int32(four >> 3), int32(four >> 2 & 1), int32(four & 3)
            found, image = (uint32(0), uint32(0), uint32(0), uint32(0)), _first_image(step, half, lane)
            if unit < units:
                found = digits_of(
                    _slope(memory, row, image, count),
                    _slope(memory, row, int32(image + 1), count),
                    _slope(memory, row, int32(image + 8), count),
                    _slope(memory, row, int32(image + 9), count),
                    per_unit,
                )
            of_lane = (unit & 1) * 16 + lane
            at = int32(plan[DZ] + ((unit >> 1) * steps + step) * 64 + 2 * of_lane + half)
            words[uint32(at)], words[uint32(at + 8)] = found[0], found[1]
            words[uint32(at + 16)], words[uint32(at + 24)] = found[2], found[3]
            four = int32(four + 32 * plan[ONE])
        unit = int32(unit + WARPS * plan[ONE])


# --- a step ---------------------------------------------------------------------------------------


@device
def _multiply_pixels(plan, memory, words, x, count, base):
    """x·w1, in parts of the pixels: 16 images and two units at a time for a warp."""
    units, lane, tiles = plan[UNITS], _lane(), plan[UNIT_TILES]
    pairs, down = int32((plan[PIXELS] + 63) >> 6), int32((count + 15) >> 4)
    item = _warp()
    while item < int32(tiles * down * PARTS):
        part = int32(item & 1)
        tile, across = _split(int32(item >> 1), tiles, plan[PER_UNIT_TILES])
        even, odd = no_sums(), no_sums()
        row = int32(x + (16 * tile + (lane & 15)) * plan[X_ROW])
        place = uint32(base + 4 * row + 16 * (lane >> 4) + 64 * part)
        at = int32(plan[W_DIGITS] + (across * pairs + part) * PAIR + 4 * lane)
        pair = part
        while pair < pairs:
            a, b = _pixels_of_16(place), _load4_words(words, uint32(at))
            even = _byte_sums(a[0:4], b[0], b[1], even)
            odd = _byte_sums(a[4:8], b[2], b[3], odd)
            place, at = uint32(place + 64 * PARTS), int32(at + PARTS * PAIR)
            pair = int32(pair + PARTS * plan[ONE])
        total = total_of(_added(even, odd), lane)
        image, unit = int32(16 * tile + (lane >> 2) + 8 * (lane & 1)), int32(2 * across + (lane >> 1 & 1))
        if unit < units and image < count:
            at = int32(plan[SUMS] + (part * units + unit) * plan[Y_ROW] + image)
            memory[uint32(at)] = total * memory[uint32(plan[SCALES] + unit)]
        item = int32(item + WARPS)


@device
def _added(a, b):
    return int32(a[0] + b[0]), int32(a[1] + b[1]), int32(a[2] + b[2]), int32(a[3] + b[3])


@device
def _place_of_message(plan, block, other):
    """Of what a block gets from another, in bytes."""
    return uint64(uint32(block * int32(cuda.gridDim.x) + other) * uint32(8 * plan[MESSAGE]))


@device
def _tell_logits(plan, memory, told, tag):
    """The units' outputs, max(x·w1 + b1, 0), which stay here, and what they add to the logits, to who adds
    these up: two classes of an image for a thread."""
    units, classes, row, batch = plan[UNITS], plan[CLASSES], plan[Y_ROW], plan[BATCH]
    further, share, half = int32(units * row), plan[SHARE], int32((classes + 1) >> 1)
    item = _thread()
    while item < int32(plan[SHARES] * share * half):
        image, c = _split(item, half, plan[PER_HALF])
        block, within = _split(image, share, plan[PER_SHARE])
        c, word = int32(2 * c), int32(within * classes + 2 * c)
        at, w2 = int32(plan[SUMS] + min(image, int32(batch - 1))), int32(plan[SMALL] + units + c)
        keep_at = int32(plan[Y] + image if c == 0 and image < batch else -1)
        even, odd, unit = float32(0), float32(0), int32(0)
        while unit < units:
            y = memory[uint32(at)] + memory[uint32(at + further)]
            y += memory[uint32(plan[SMALL] + unit)]
            y = float32(0) if y < float32(0) else y
            even += y * memory[uint32(w2)]
            odd += y * memory[uint32(w2 + 1)]  # of no class behind the last one, and told to nobody
            if keep_at >= 0:
                memory[uint32(keep_at)] = y
                keep_at = int32(keep_at + row)
            at, w2, unit = int32(at + row), int32(w2 + classes), int32(unit + plan[ONE])
        place = told + _place_of_message(plan, block, int32(cuda.blockIdx.x)) + uint64(uint32(8 * word))
        _tell(place, even, tag)
        # Two are heard at a time: the last message may have one more, of anything.
        if c + 1 < classes or (within == share - 1 and plan[MESSAGE] > share * classes):
            _tell(place + uint64(8), odd, tag)
        item = int32(item + THREADS)


@device
def _is(found, tag):
    """Whether both words are there."""
    return found[1] == tag and found[3] == tag


@device
def _heard(place, found, tag):
    """Two numbers, beside each other, of the step with this tag."""
    while not _is(found, tag):
        found = _hear(place)
    return _float_of(found[0]), _float_of(found[2])


@device
def _add_up_logits(plan, memory, told, tag):
    """Of its share of the images: a warp for two of them, of which each lane hears some blocks."""
    blocks, me, pair = int32(cuda.gridDim.x), int32(cuda.blockIdx.x), _warp()
    if me >= plan[SHARES]:
        return
    further = uint64(uint32(32 * 8 * plan[MESSAGE]))
    while 2 * pair < plan[MESSAGE]:
        first, second, block = float32(0), float32(0), _lane()
        place = told + _place_of_message(plan, me, block) + uint64(uint32(16 * pair))
        while block < blocks:
            # Two are asked for before the first is there.
            more = block + 32 < blocks
            next_place = place + further if more else place
            found, next_found = _hear(place), _hear(next_place)
            got = _heard(place, found, tag)
            next_got = _heard(next_place, next_found, tag)
            first, second = first + got[0], second + got[1]
            if more:
                first, second = first + next_got[0], second + next_got[1]
            place, block = next_place + further, int32(block + 64)
        first, second = _warp_sum(first), _warp_sum(second)
        if _lane() == 0:
            _store2(memory, uint32(plan[Z] + 2 * pair), (first, second))
        pair = int32(pair + WARPS)


@device
def _warp_largest(value):
    for distance in (16, 8, 4, 2, 1):
        other = exchanged(value, distance)
        value = value if value > other or value != value else other
    return value


@device
def _tell_gradients(plan, memory, words, step, count, tag, order, weight, loss, correct, told, smoothing):
    """Of a block's share of the logits; and loss and whether it is right: a warp for each image."""
    classes, lane, share = plan[CLASSES], _lane(), plan[SHARE]
    each, right = smoothed(smoothing, classes)
    begin, start = int32(int32(cuda.blockIdx.x) * share), int32(step * plan[BATCH])
    per_image = float32(1) / float32(count)
    end, image = min(count, int32(begin + share)), int32(begin + _warp())
    while image < end:
        z = float32(-np.inf)
        if lane < classes:
            z = memory[uint32(plan[Z] + (image - begin) * classes + lane)]
            z += memory[uint32(plan[SMALL] + plan[UNITS] * (1 + classes) + lane)]
        target = int32(words[uint32(plan[TARGETS] + image)])
        own = weight[uint32(order[uint32(start + image)])] if plan[WEIGHTED] else float32(1)
        largest = _warp_largest(z)
        power = math.exp(z - largest) if lane < classes else float32(0)
        whole = _warp_sum(power)
        slope = power / whole - (right if lane == target else each)
        slope = slope * (own * per_image) if lane < classes else float32(0)
        # To the row's end, and one more behind the last, as two are heard at a time.
        if lane < plan[DZ_ROW] + (1 if image == count - 1 else 0):
            _tell(told + uint64(uint32(8 * (image * plan[DZ_ROW] + lane))), slope, tag)
        depths = float32(0)
        if smoothing > float32(0):
            depths = _warp_sum(z - largest if lane < classes else float32(0))
        best = int32(cuda.ffs(cuda.ballot_sync(ALL, lane < classes and z == largest)) - 1)
        of_target = cuda.shfl_sync(ALL, z, target)
        if lane == 0:
            expected = expected_logit(of_target - largest, depths, smoothing, each)
            loss[uint32(start + image)] = (math.log(whole) - expected) * own
            correct[uint32(start + image)] = uint8(1) if best == target else uint8(0)
        image = int32(image + WARPS)


@device
def _hear_gradients(plan, memory, count, told, tag):
    """Of all logits, two at a time."""
    at = int32(2 * _thread())
    while at < count * plan[DZ_ROW]:
        place = told + uint64(uint32(8 * at))
        _store2(memory, uint32(plan[DZ] + at), _heard(place, _hear(place), tag))
        at = int32(at + 2 * THREADS)


@device
def _slopes(plan, memory, base, count):
    """The gradients of the units' outputs before ReLU, a warp for 32 images of a unit, and the size of each
    unit's largest."""
    units, classes = plan[UNITS], plan[CLASSES]
    item = _warp()
    while item < int32(units * ((count + 31) >> 5)):
        part, unit = _split(item, units, plan[PER_UNITS])
        image, total = int32(32 * part + _lane()), float32(0)
        if image < count:
            further = int32(unit * plan[Y_ROW] + image)
            if memory[uint32(plan[Y] + further)] > float32(0):
                at, w2 = int32(plan[DZ] + image * plan[DZ_ROW]), int32(plan[SMALL] + units + unit * classes)
                c = int32(0)
                while c < classes:
                    total += memory[uint32(at + c)] * memory[uint32(w2 + c)]
                    c = int32(c + 1)
            memory[uint32(plan[SUMS] + further)] = total
        found = _largest_of_warp(size_of(total))
        if _lane() == 0:
            _keep_larger(uint32(base + 4 * (plan[LARGEST] + units + unit)), found)
        item = int32(item + WARPS)


@device
def _small_slopes(plan, memory, count):
    """The gradients of w2 and b2, which are sums over the images: a warp for each, from the last on."""
    units, classes, item = plan[UNITS], plan[CLASSES], int32(WARPS - 1 - _warp())
    while item < int32(plan[SMALL_WORDS] - units):
        unit, c = _split(item, classes, plan[PER_CLASSES])
        total, image, y = float32(0), _lane(), int32(plan[Y] + unit * plan[Y_ROW])
        at = int32(plan[DZ] + c + image * plan[DZ_ROW])
        while image < count:
            slope = memory[uint32(at)]
            total += slope * memory[uint32(y + image)] if unit < units else slope
            at, image = int32(at + 32 * plan[DZ_ROW]), int32(image + 32)
        total = _warp_sum(total)
        if _lane() == 0:
            memory[uint32(plan[SLOPES] + units + item)] = total
        item = int32(item + WARPS)


@device
def _update(memory, at, states, gradient, plan, numbers):
    """The parameter at ``memory[at]``, whose states are ``states`` words further each, by its gradient."""
    zero, count = float32(0), plan[STATES]
    here, next_0, next_1 = uint32(at), uint32(at + states), uint32(at + 2 * states)
    state_0 = memory[next_0] if count > 0 else zero
    state_1 = memory[next_1] if count > 1 else zero
    found = stepped(memory[here], gradient, state_0, state_1, count, plan[NESTEROV], numbers)
    memory[here] = found[0]
    if count > 0:
        memory[next_0] = found[1]
    if count > 1:
        memory[next_1] = found[2]


@device
def _update2(memory, at, states, g_0, g_1, plan, numbers):
    """The same of two parameters beside each other; the size of the larger one."""
    count, nesterov, zero = plan[STATES], plan[NESTEROV], float32(0)
    here, next_0, next_1 = uint32(at), uint32(at + states), uint32(at + 2 * states)
    p, state_0, state_1 = _load2(memory, here), (zero, zero), (zero, zero)
    if count > 0:
        state_0 = _load2(memory, next_0)
    if count > 1:
        state_1 = _load2(memory, next_1)
    a = stepped(p[0], g_0, state_0[0], state_1[0], count, nesterov, numbers)
    b = stepped(p[1], g_1, state_0[1], state_1[1], count, nesterov, numbers)
    _store2(memory, here, (a[0], b[0]))
    if count > 0:
        _store2(memory, next_0, (a[1], b[1]))
    if count > 1:
        _store2(memory, next_1, (a[2], b[2]))
    return _larger(size_of(a[0]), size_of(b[0]))


@device
def _slopes_of_b1(plan, memory, count):
    """The same of b1: a warp for each, from the last on."""
    unit = int32(WARPS - 1 - _warp())
    while unit < plan[UNITS]:
        at, total, image = int32(plan[SUMS] + unit * plan[Y_ROW]), float32(0), _lane()
        while image < count:
            total += memory[uint32(at + image)]
            image = int32(image + 32)
        total = _warp_sum(total)
        if _lane() == 0:
            memory[uint32(plan[SLOPES] + unit)] = total
        unit = int32(unit + WARPS * plan[ONE])


@device
def _update_small(plan, memory, numbers):
    """b1, w2 and b2 in turn, by their gradients: a thread for each, from the last on."""
    item, words = _last_first(), plan[SMALL_WORDS]
    while item < words:
        slope = memory[uint32(plan[SLOPES] + item)]
        _update(memory, int32(plan[SMALL] + item), words, slope, plan, numbers)
        item = int32(item + THREADS * plan[ONE])


@device
def _pixels_of_32(place):
    """Two pixels beside each other of 32 images: the first pixel's, then the second's, two words each."""
    a = _pairs_of_32(place)
    return _even_bytes(a[0], a[1]), _even_bytes(a[2], a[3]), _odd_bytes(a[0], a[1]), _odd_bytes(a[2], a[3])


@device
def _update_weights(plan, memory, words, x, count, base, numbers):
    """w1, by x turned · dy, used up as soon as it is there: 32 pixels of two units at a time for a warp, of
    which a lane gets two pixels of one unit."""
    units, lane, pixels, tiles = plan[UNITS], _lane(), plan[PIXELS], plan[UNIT_TILES]
    down, steps = int32((pixels + 31) >> 5), int32((count + 31) >> 5)
    item = _warp()
    while item < int32(tiles * down):
        tile, across = _split(item, tiles, plan[PER_UNIT_TILES])
        place = uint32(base + 4 * (x + lane * plan[X_ROW]) + 32 * tile)
        further = uint32(16 if 32 * tile + 16 < pixels else 0)
        at, step = int32(plan[DZ] + across * steps * 64 + 2 * lane), int32(0)
        even, odd = no_sums(), no_sums()
        while step < steps:
            a, c = _pixels_of_32(place), _pixels_of_32(uint32(place + further))
            b = _load2_words(words, uint32(at))
            even = _byte_sums((a[0], c[0], a[1], c[1]), b[0], b[1], even)
            odd = _byte_sums((a[2], c[2], a[3], c[3]), b[0], b[1], odd)
            place, at = uint32(place + 128 * plan[X_ROW]), int32(at + 64)
            step = int32(step + 1)
        g_0, g_1 = total_of(even, lane), total_of(odd, lane)
        unit, pixel = (
            int32(2 * across + (lane >> 1 & 1)),
            int32(32 * tile + 16 * (lane & 1) + 2 * (lane >> 2)),
        )
        if pixel < pixels and unit < units:
            scale = memory[uint32(plan[SCALES] + units + unit)]
            at = int32(plan[OWN] + unit * plan[OWN_ROW] + pixel)
            states = int32(units * plan[OWN_ROW])
            largest = _update2(memory, at, states, g_0 * scale, g_1 * scale, plan, numbers)
        first = _largest_of_warp(largest if lane & 2 == 0 else uint32(0))
        second = _largest_of_warp(largest if lane & 2 == 2 else uint32(0))
        if lane & ~2 == 0 and unit < units:
            _keep_larger(uint32(base + 4 * (plan[LARGEST] + unit)), first if lane == 0 else second)
        item = int32(item + WARPS)


@device
def _carry_all(plan, memory, parameters, state_0, state_1, back):
    for state in range(3):
        if state <= plan[STATES]:
            flat = parameters if state == 0 else (state_0 if state == 1 else state_1)
            _carry(plan, memory, flat, int32(state), back)


def _kernel(copies, **more):
    """The kernel with one of the ways in which images come."""
    begin_copies, ask_for_images, wait_for_images = copies

    def steps(
        plan,
        given,
        images,
        labels,
        order,
        weight,
        parameters,
        state_0,
        state_1,
        numbers,
        smoothing,
        logits,
        gradients,
        loss,
        correct,
        counter,
    ):
        memory, words = cuda.shared.array(0, float32), cuda.shared.array(0, uint32)
        base, told, answers = _shared_address(words), _global_address(logits), _global_address(gradients)
        first, last, tag = given[FIRST_STEP], given[LAST_STEP], uint32(given[TAG])
        # Tensor cores multiply what lies beside the images, and units that there are not, with zero.
        word = _thread()
        while word < plan[SHARED_WORDS]:
            words[uint32(word)] = uint32(0)
            word = int32(word + THREADS)
        cuda.syncthreads()
        begin_copies(plan, base)
        for further in range(plan[X_BUFFERS]):
            _ask_for_places(plan, base, int32(first + further), last, order)
        _copies_end()
        _carry_all(plan, memory, parameters, state_0, state_1, False)
        _arrived()
        cuda.syncthreads()
        ask_for_images(plan, words, first, last, images, base)
        _copies_end()
        _find_largest_weight(plan, memory, base)
        step = first
        while True:
            cuda.syncthreads()
            if step == last:
                break
            _digits_of_weights(plan, memory, words)
            count, next_step = _images_of(plan, step, last), int32(step + 1)
            x = int32(plan[X] + _buffer(plan, step) * plan[X_WORDS])
            wait_for_images(plan, base, step, int32(step - first))
            cuda.syncthreads()
            _forget_largest(plan, words)
            _multiply_pixels(plan, memory, words, x, count, base)
            cuda.syncthreads()
            _tell_logits(plan, memory, told, tag)
            _ask_for_labels(plan, words, base, step, count, labels)
            # Each thread where it has looked up a label.
            _ask_for_places(plan, base, int32(step + plan[X_BUFFERS]), last, order)
            _ask_for_numbers(plan, base, int32(step - first), numbers)
            _copies_end()
            _add_up_logits(plan, memory, told, tag)
            _arrived()
            cuda.syncthreads()
            _tell_gradients(
                plan, memory, words, step, count, tag, order, weight, loss, correct, answers, smoothing
            )
            if plan[X_BUFFERS] > 1:
                ask_for_images(plan, words, next_step, last, images, base)
            _copies_end()
            _hear_gradients(plan, memory, count, answers, tag)
            cuda.syncthreads()
            _slopes(plan, memory, base, count)
            _small_slopes(plan, memory, count)
            cuda.syncthreads()
            _digits_of_slopes(plan, memory, words, count)
            _slopes_of_b1(plan, memory, count)
            now = int32(plan[NUMBERS_NOW])
            of_step = (
                _load4(memory, uint32(now))
                + _load4(memory, uint32(now + 4))
                + _load4(memory, uint32(now + 8))
            )
            cuda.syncthreads()
            _update_small(plan, memory, of_step)
            _update_weights(plan, memory, words, x, count, base, of_step)
            if plan[X_BUFFERS] == 1:
                cuda.syncthreads()
                ask_for_images(plan, words, next_step, last, images, base)
                _copies_end()
            step, tag = next_step, uint32(tag + uint32(1))
        # All have read what one of them writes: the bias of the output layer.
        met = _global_address(counter)
        grid.wait(met, grid.arrive(met))
        _carry_all(plan, memory, parameters, state_0, state_1, True)

    return Kernel(
        steps,
        *(types.UniTuple(int32, PLAN_WORDS), INTS, BYTES, INTS, LONGS),
        *(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, float32),
        *(LONGS, LONGS, FLOATS, BYTES, WORDS),
        threads=THREADS,
        resident=1,
        shared=None,
        cooperative=True,
        simulated=False,
        **more,
    )


# By the least compute capability, the newest first.
PERSISTENT = {
    (9, 0): _kernel(BULK_COPIES, name="epoch, persistent, bulk copies", least=(9, 0)),
    (8, 0): _kernel(COPIES, name="epoch, persistent", least=(8, 0)),
}


def _barriers(count, counter):
    met = _global_address(counter)
    for _ in range(count):
        grid.wait(met, grid.arrive(met))


# barriers(blocks, count, counter): what a step costs at least, for benchmarks: so many barriers of all
# blocks. ``counter`` is one uint32 on the GPU, zero at first.
barriers = Kernel(
    _barriers,
    *(int64, WORDS),
    threads=THREADS,
    resident=1,
    name="grid barriers",
    cooperative=True,
    simulated=False,
)


# --- for the backend ------------------------------------------------------------------------------


def _per(by):
    """For :func:`_split`."""
    return np.uint32((2**32 - 1) // by).view(np.int32)


@cache
def _layout(sizes, batch, states, limits):
    """The words of the plan that say where things are in shared memory, and how blocks share the work;
    None if they do not fit."""
    hidden = sizes[1]
    least = blocks_for(hidden, limits.multiprocessors)
    for units, buffers in ((max(least, min(LEAST_UNITS, hidden)), 2), (least, 2), (least, 1)):
        words = _layout_of(sizes, batch, units, buffers, states)
        if 4 * words[SHARED_WORDS] <= limits.shared:
            return words
    return None


def _layout_of(sizes, batch, units, buffers, states):
    pixels, hidden, classes = sizes
    blocks, tiles, padded = blocks_for(hidden, units), blocks_for(units, TILE), 32 * blocks_for(batch, 32)
    x_row = 4 * (pixels // 16 | 1)  # of odd sixteens: eight rows' accesses of 128 bits meet all banks
    # Tensor cores read up to 48 bytes beyond a row's end.
    x_words = padded * x_row + 16
    # A quarter of the banks lies between two units, whose numbers a warp updates two by two.
    own_row, dz_row = pixels + (8 - pixels) % 32, classes | 1
    y_row = batch + (16 - batch) % 32  # half of them between two units' outputs for 16 images
    small = units + units * classes + classes
    share = blocks_for(batch, blocks)
    at, words = 0, {ONE: 1, SHARE: share, SHARES: blocks_for(batch, share)}
    for name, count in (
        (X, buffers * x_words),
        (OWN, (1 + states) * units * own_row),
        (W_DIGITS, tiles * blocks_for(pixels, 64) * PAIR),
        (SMALL, (1 + states) * small),
        (SLOPES, small),
        (Y, units * y_row),
        (LARGEST, 2 * units),
        (SCALES, 2 * units),
        (PLACES, buffers * batch),
        (TARGETS, batch),
        (NUMBERS_NOW, NUMBERS),
        (BARRIERS, 4),
        (Z, share * classes + 1),
        (SUMS, units * y_row),  # of the first part; the others' lie where the gradients are later
        (DZ, max(batch * dz_row + 1, tiles * padded * 2, (PARTS - 1) * units * y_row)),
    ):
        words[name] = at
        at += -(-count // 4) * 4  # four words are read at a time
    words |= {UNITS: units, UNIT_TILES: tiles, X_ROW: x_row, X_BUFFERS: buffers, X_WORDS: x_words}
    words |= {OWN_ROW: own_row, SMALL_WORDS: small, Y_ROW: y_row, DZ_ROW: dz_row, SHARED_WORDS: at}
    words |= {MESSAGE: share * classes + share * classes % 2}
    for per, by in (
        *((PER_CLASSES, classes), (PER_HALF, (classes + 1) // 2), (PER_UNITS, units)),
        *((PER_UNIT_TILES, tiles), (PER_FOURS, pixels // 4), (PER_SHARE, share)),
    ):
        words[per] = _per(by)
    return words


def unsuited(plan, images, limits):
    """Why :class:`Persistent` cannot do what a ``fastdigit.backend.TrainPlan`` asks for; None if it can.

    ``limits``: a :class:`..common.cuda.Limits`.
    """
    sizes, batch = plan.layout.layer_sizes, min(plan.batch_size, len(images))
    if len(sizes) != 3:
        return f"it needs one hidden layer, there are {len(sizes) - 2}"
    if plan.precision != "float32":
        return f"it computes in float32, not in {plan.precision}"
    if any(plan.dropout) or plan.input_dropout:
        return "it has no dropout"
    if plan.clip_norm is not None:
        return "it does not clip gradients"
    if images.dtype != np.uint8:
        return "it needs images of bytes"
    if sizes[0] % 16:
        return f"it needs a multiple of 16 pixels, there are {sizes[0]}"
    if len(images) > MOST_IMAGES:
        return f"it needs at most {MOST_IMAGES:,} images"
    if sizes[2] > MOST_CLASSES:
        return f"it needs at most {MOST_CLASSES} classes, there are {sizes[2]}"
    if _layout(tuple(sizes), batch, len(plan.state), limits) is None:
        what = f"a block's share of {sizes[1]} hidden units and {batch} images"
        return f"{what} do not fit in {limits.shared:,} bytes"
    return None


class Persistent:
    """Stretches of epochs in one launch each, where :func:`unsuited` allows it: for all plans that
    :meth:`settings` says the same of.

    All memory is one allocation, made before the first step: as many numbers as the blocks add to the logits,
    the order, and little else.
    """

    def __init__(self, plan, count, zeros, limits):
        """For ``count`` images. ``limits`` as of :func:`unsuited`, ``zeros`` of a backend."""
        sizes, tensors = plan.layout.layer_sizes, plan.layout.tensors
        (pixels, hidden, classes), batch = sizes, min(plan.batch_size, count)
        words = _layout(tuple(sizes), batch, len(plan.state), limits) | {
            BATCH: batch,
            COUNT: count,
            PIXELS: pixels,
            HIDDEN: hidden,
            CLASSES: classes,
            W1: tensors[0].offset,
            W1_ROW: tensors[0].row,
            B1: tensors[1].offset,
            W2: tensors[2].offset,
            W2_ROW: tensors[2].row,
            B2: tensors[3].offset,
            STATES: len(plan.state),
        }
        self.blocks = blocks_for(hidden, words[UNITS])  # those that have a unit
        self.words, self.shared = words, 4 * words[SHARED_WORDS]
        self.kernel = next(kernel for least, kernel in PERSISTENT.items() if limits.capability >= least)
        arena = Arena()
        arena.array("given", (NUMBERS_AT + blocks_for(count, batch) * NUMBERS,), np.int32)
        arena.array("order", (count,), np.int64)
        arena.array("logits", (words[SHARES] * self.blocks * words[MESSAGE],), np.int64)
        arena.array("gradients", (batch * words[DZ_ROW] + 1,), np.int64)
        arena.array("counter", (1,), np.uint32)
        self.memory, self.ready, self.tag = arena.allocate(zeros), ((), None, None), 1

    @staticmethod
    def settings(plan, images):
        """What must be the same for :meth:`run`."""
        return plan.layout, plan.batch_size, len(images), len(plan.state)

    def run(self, plan, images, labels, order, loss, correct, to_device):
        """The steps of a ``fastdigit.backend.TrainPlan``.

        Shapes: images [N, I], labels, loss and correct [N], order [N]; all contiguous.
        Dtypes: images uint8, labels int32, order int64, correct uint8, all else float32.
        Writes: parameters, the optimizer's state, and loss and correct at the places of the plan's steps.
        Cost: for each step twice the time that a number takes from one block to another, and for each block
        the batch's pixels once from memory. The blocks must be able to be there all at a time.
        """
        numbers, steps = step_numbers(plan).reshape(-1).view(np.int32), len(plan.learning_rates)
        if self.tag + steps > LAST_TAG:
            self.tag = 1  # what is left of so long ago is of later ones
        head = np.array([plan.first_step, plan.first_step + steps, self.tag, 0], np.int32)
        given = np.concatenate([head, numbers])  # one copy to the GPU instead of two
        self.tag += steps
        to_device(given, out=self.memory["given"][: given.size])
        copy_onto(self.memory["order"], order)
        self._launch(plan, images, labels, loss, correct)()

    def _launch(self, plan, images, labels, loss, correct):
        """What was made ready for the last call, if it was for the same arrays: half of a launch's time."""
        arrays = plan.parameters, *plan.state, plan.weight, images, labels, loss, correct
        nesterov = bool(getattr(plan.optimizer, "nesterov", False))
        how = plan.label_smoothing, nesterov
        known, known_how, _ = self.ready
        if how != known_how or any(map(operator.is_not, arrays, known)):
            memory, nothing = self.memory, plan.parameters[:0]
            words = self.words | {NESTEROV: nesterov, WEIGHTED: plan.weight is not None}
            with recorded() as launches:
                self.kernel(
                    self.blocks,
                    *(tuple(words[name] for name in range(PLAN_WORDS)), memory["given"]),
                    *(images.reshape(-1), labels, memory["order"]),
                    nothing if plan.weight is None else plan.weight,
                    *(plan.parameters, *[*plan.state, nothing, nothing][:2]),
                    *(memory["given"][NUMBERS_AT:].view(np.float32), plan.label_smoothing),
                    *(memory["logits"], memory["gradients"], loss, correct, memory["counter"]),
                    shared=self.shared,
                )
            self.ready = arrays, how, gpu.prepared(*launches[0])
        return self.ready[2]
