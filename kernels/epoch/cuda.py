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

What a step takes is above all its instructions, some 1,500. Where all 32 warps are at work a multiprocessor
begins each of them in eight cycles, and where few are, each waits for the one before. So there are no numbers
of 64 bits but addresses in the GPU's memory, no divisions but by multiplication, and no loops written out
that have few turns; loops over shared memory add to an address. And nothing waits for the largest of some
numbers to make digits of them: weights' are of the unit that was right before their update, which is looked
at afterwards, and gradients' of one that no gradient can be too large for.

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
from ..common.digits import SIGN, TILE, digits_of, in_digits, no_sums, size_of, total_of, unit_of
from ..common.lanes import ALL
from ..optimizer.cuda import NUMBERS, step_numbers, stepped
from ..softmax_xent.cuda import expected_logit

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
    SLOPES,  # of w2 and b2
    SUMS,  # [PARTS, UNITS, Y_ROW] of these
    Y,  # [UNITS, Y_ROW]: the units' outputs
    Y_ROW,
    LARGEST,  # [UNITS]: the size of the largest of w1's numbers, then that of the logits' gradients
    STALE,  # whether the digits of weights have to be made anew
    SCALES,  # [UNITS] each: the units of w1's digits, those of the gradients', and 1 / of w1's
    PLACES,  # [X_BUFFERS, BATCH]: where the images of a step are
    TARGETS,  # [BATCH]: the labels of this step
    NUMBERS_NOW,  # of this step
    BARRIERS,  # of 8 bytes, for each of the buffers, that count the bytes of bulk copies
    Z,  # [MESSAGE]: logits of its share, for each image one more where classes are odd
    DZ,  # [BATCH, DZ_ROW], the logits' gradients
    DZ_ROW,
    Y_DIGITS,  # where SUMS are, of the outputs' gradients: [tiles of two units, 32 images, 32 lanes, 2]
    SHARE,  # of the images, whose logits a block adds up
    SHARES,  # blocks that have one
    MESSAGE,  # words of a block to another: SHARE · CLASSES, these made even
    SHARED_WORDS,
    ONE,  # 1
    PIXEL_TILES,  # of 32 pixels
    PIXEL_PAIRS,  # of these
    PER_IMAGE,  # the bits of 1 / BATCH and, for the last step, of 1 / its images
    PER_LAST_IMAGE,
    PER_CLASSES,  # for _split: by CLASSES, and so on
    PER_HALF,  # of the classes
    PER_UNITS,
    PER_UNIT_TILES,
    PER_FOURS,
    PER_SHARE,
    PLAN_WORDS,
) = range(56)

# What is given besides, behind which are the numbers of the steps.
FIRST_STEP, LAST_STEP, TAG, NUMBERS_AT = 0, 1, 2, 4  # numbers of steps; four are read at a time

# Whole numbers of 32 bits, as far as possible: a GPU needs two instructions or more for each of 64.
# (So do its loops over a range, in Numba: hence those with while. Where these go on by plan[ONE], a number
# that the compiler does not know, it does not write them out.)

# Bytes of 255, for four words of byte_sums: a pixel that is 1.
_WHITE = (np.uint32(0xFFFFFFFF),) * 4
_warp_sum = lanes.summing(32)
_arrived = ptx.copies_but(0)
_barrier_init, _barriers_visible, _barrier_expect = ptx.barrier_init, ptx.barriers_visible, ptx.barrier_expect
_barrier_wait, _copy_row = ptx.barrier_wait, ptx.copy_row
_tell, _tell2, _hear, _float_of, _high_product = (
    *(ptx.tell, ptx.tell2, ptx.hear, ptx.float_of),
    ptx.high_product,
)
_copies_end, _copy_4, _copy_16 = ptx.copies_end, ptx.copy_4, ptx.copy_16
_shared_address, _global_address = ptx.shared_address, ptx.global_address
_byte_sums, _larger, _keep_larger = ptx.byte_sums, ptx.larger, ptx.keep_larger
_largest_of_warp = ptx.largest_of_warp
_load, _store, _load2, _store2, _load4 = ptx.load_shared, ptx.store_shared, ptx.load2, ptx.store2, ptx.load4
_load2_words, _load4_words = ptx.load2_words, ptx.load4_words
_divided_by, _bits_of = ptx.divided, ptx.bits_of
_pixels_of_16 = ptx.fragments(2, 32, 0, False)  # images: 64 bytes of each
_pairs_of_32 = ptx.fragments(1, 0, 0, True)  # images: a lane's two pixels beside each other, of eight images
_even_bytes, _odd_bytes = ptx.even_bytes, ptx.odd_bytes
_turned = ptx.turned
_store_bytes, _store_halves, _pairs_of_bytes = ptx.store_bytes, ptx.store_halves, ptx.pairs_of_bytes


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
def _tiles(count):
    """Of 32 of so many things."""
    return int32(int32(count + 31) >> 5)


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
    """Of all units' weights and of the gradients."""
    if _last_first() <= plan[UNITS]:
        words[uint32(plan[LARGEST] + _last_first())] = uint32(0)


@device
def _look_for_new_units(plan, words, base):
    """Whether some weights' digits are no longer of the unit that goes by the largest: the last warp, which
    has nothing else to do meanwhile."""
    unit = _last_first()
    while unit < plan[UNITS]:
        _, scale = unit_of(words[uint32(plan[LARGEST] + unit)])
        # By their bits: NaN, which is not equal to itself, would never be right.
        if _bits_of(scale * float32(1 / 255)) != words[uint32(plan[SCALES] + unit)]:
            _keep_larger(uint32(base + 4 * plan[STALE]), uint32(1))
        unit = int32(unit + THREADS * plan[ONE])


@device
def _digits_of_weights(plan, memory, words):
    """Four pixels' weights at a time, as the tensor cores want them, all of them anew."""
    if _thread() == 0:
        words[uint32(plan[STALE])] = uint32(0)
    fours, pairs = int32(plan[PIXELS] >> 2), plan[PIXEL_PAIRS]
    item = _thread()
    while item < int32(plan[UNITS] * fours):
        unit, four = _split(item, fours, plan[PER_FOURS])
        per_unit, scale = unit_of(words[uint32(plan[LARGEST] + unit)])
        if four == 0:
            memory[uint32(plan[SCALES] + unit)] = scale * float32(1 / 255)
            memory[uint32(plan[SCALES] + 2 * plan[UNITS] + unit)] = per_unit
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
def _tell_digits_of_weights(plan, base, tile, across, lane, first, second, per_unit):
    """Those of a lane's two pixels, after their update."""
    low, high = _pairs_of_bytes(in_digits(first, per_unit), in_digits(second, per_unit))
    pairs, odd = plan[PIXEL_PAIRS], int32(lane & 2)
    at = int32(plan[W_DIGITS] + (across * pairs + (tile >> 1)) * PAIR + 2 * (tile & 1))
    at = int32(base + 4 * (at + 32 * odd + 4 * (lane >> 3) + (lane & 1)) + (lane >> 1 & 2))
    # Words of two units are in the same bank: those of odd ones write the second digit first.
    turn, further = uint32(8 * odd), int32(32 * odd)
    _store_halves(uint32(at + further), uint32(at + 64 - further), _turned(low, turn), _turned(high, turn))


# --- a step ---------------------------------------------------------------------------------------


@device
def _multiply_pixels(plan, memory, words, x, count, base):
    """x·w1, in parts of the pixels: 32 images and two units at a time for a warp. It takes as long as shared
    memory is read: the digits of weights once for both sixteens of images."""
    units, lane, tiles, pairs = plan[UNITS], _lane(), plan[UNIT_TILES], plan[PIXEL_PAIRS]
    item, further = _warp(), uint32(64 * plan[X_ROW])
    while item < int32(tiles * _tiles(count) * PARTS):
        part = int32(item & 1)
        tile, across = _split(int32(item >> 1), tiles, plan[PER_UNIT_TILES])
        even, odd, next_even, next_odd = no_sums(), no_sums(), no_sums(), no_sums()
        row = int32(x + (32 * tile + (lane & 15)) * plan[X_ROW])
        place = uint32(base + 4 * row + 16 * (lane >> 4) + 64 * part)
        at = int32(plan[W_DIGITS] + (across * pairs + part) * PAIR + 4 * lane)
        pair = part
        while pair < pairs:
            b = _load4_words(words, uint32(at))
            a, c = _pixels_of_16(place), _pixels_of_16(uint32(place + further))
            even, odd = _byte_sums(a[0:4], b[0], b[1], even), _byte_sums(a[4:8], b[2], b[3], odd)
            next_even = _byte_sums(c[0:4], b[0], b[1], next_even)
            next_odd = _byte_sums(c[4:8], b[2], b[3], next_odd)
            place, at = uint32(place + 64 * PARTS), int32(at + PARTS * PAIR)
            pair = int32(pair + PARTS * plan[ONE])
        total, next_total = total_of(_added(even, odd), lane), total_of(_added(next_even, next_odd), lane)
        image, unit = int32(32 * tile + (lane >> 2) + 8 * (lane & 1)), int32(2 * across + (lane >> 1 & 1))
        if unit < units:
            scale = memory[uint32(plan[SCALES] + unit)]
            at = int32(plan[SUMS] + (part * units + unit) * plan[Y_ROW] + image)
            if image < count:
                memory[uint32(at)] = total * scale
            if int32(image + 16) < count:
                memory[uint32(at + 16)] = next_total * scale
        item = int32(item + WARPS)


@device
def _added(a, b):
    return int32(a[0] + b[0]), int32(a[1] + b[1]), int32(a[2] + b[2]), int32(a[3] + b[3])


@device
def _place_of_message(plan, block, other):
    """Of what a block gets from another, in bytes."""
    return uint64(uint32(block * int32(cuda.gridDim.x) + other) * uint32(8 * plan[MESSAGE]))


@device
def _tell_logits(plan, base, told, tag):
    """The units' outputs, max(x·w1 + b1, 0), which stay here, and what they add to the logits, to who adds
    these up: two classes of an image for a thread."""
    units, classes, row, batch = plan[UNITS], plan[CLASSES], plan[Y_ROW], plan[BATCH]
    further, share, half = int32(4 * units * row), plan[SHARE], int32(int32(classes + 1) >> 1)
    item = _thread()
    while item < int32(plan[SHARES] * share * half):
        image, c = _split(item, half, plan[PER_HALF])
        block, within = _split(image, share, plan[PER_SHARE])
        c, word = int32(2 * c), int32(2 * (within * half + c))
        sums = uint32(base + 4 * (plan[SUMS] + min(image, int32(batch - 1))))
        b1, w2 = uint32(base + 4 * plan[SMALL]), uint32(base + 4 * (plan[SMALL] + units + c))
        kept = uint32(base + 4 * (plan[Y] + image))
        keep, even, odd, end = c == 0 and image < batch, float32(0), float32(0), uint32(b1 + 4 * units)
        while b1 < end:
            y = _load(sums) + _load(uint32(sums + further)) + _load(b1)
            y = float32(0) if y < float32(0) else y
            even += y * _load(w2)
            odd += y * _load(uint32(w2 + 4))  # behind the last one of no class, which nobody uses
            if keep:
                _store(kept, y)
            sums, kept, w2 = uint32(sums + 4 * row), uint32(kept + 4 * row), uint32(w2 + 4 * classes)
            b1 = uint32(b1 + 4 * plan[ONE])
        place = told + _place_of_message(plan, block, int32(cuda.blockIdx.x)) + uint64(uint32(8 * word))
        _tell2(place, even, odd, tag)
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
    while int32(2 * pair) < plan[MESSAGE]:
        first, second, block = float32(0), float32(0), _lane()
        place = told + _place_of_message(plan, me, block) + uint64(uint32(16 * pair))
        while block < blocks:
            # Two are asked for before the first is there.
            more = int32(block + 32) < blocks
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
    """Of a warp's lanes: NaN, as GPUs make it, if there is one."""
    bits = _bits_of(value)
    # As whole numbers, larger ones are then larger, those below zero, too.
    bits ^= uint32(SIGN) if int32(bits) >= 0 else uint32(ALL)
    bits = _largest_of_warp(bits)
    return _float_of(bits ^ (uint32(SIGN) if int32(bits) < 0 else uint32(ALL)))


@device
def _tell_gradients(
    plan, memory, words, step, count, tag, order, weight, loss, correct, told, smoothing, each
):
    """Of a block's share of the logits; and loss and whether it is right: a warp for each image. ``each`` is
    what every class has of a target."""
    classes, lane, share = plan[CLASSES], _lane(), plan[SHARE]
    right, half = float32(1) - smoothing + each, int32(int32(classes + 1) >> 1)
    begin, start = int32(int32(cuda.blockIdx.x) * share), int32(step * plan[BATCH])
    per_image = _float_of(uint32(plan[PER_IMAGE] if count == plan[BATCH] else plan[PER_LAST_IMAGE]))
    end, image = min(count, int32(begin + share)), int32(begin + _warp())
    while image < end:
        z = float32(-np.inf)
        if lane < classes:
            z = memory[uint32(plan[Z] + 2 * (image - begin) * half + lane)]
            z += memory[uint32(plan[SMALL] + plan[UNITS] * (1 + classes) + lane)]
        target = int32(words[uint32(plan[TARGETS] + image)])
        own = weight[uint32(order[uint32(start + image)])] if plan[WEIGHTED] else float32(1)
        largest = _warp_largest(z)
        power = math.exp(z - largest) if lane < classes else float32(0)
        whole = _warp_sum(power)
        slope = power / whole - (right if lane == target else each)
        slope = slope * (own * per_image) if lane < classes else float32(0)
        # To the row's end, and one more behind the last, as two are heard at a time.
        if lane < int32(plan[DZ_ROW] + (1 if image == int32(count - 1) else 0)):
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
def _hear_gradients(plan, memory, base, count, told, tag):
    """Of all logits, two at a time, and the size of the largest."""
    at, end, largest = int32(2 * _thread()), int32(count * plan[DZ_ROW]), uint32(0)
    while at < end:
        place = told + uint64(uint32(8 * at))
        found = _heard(place, _hear(place), tag)
        _store2(memory, uint32(plan[DZ] + at), found)
        if int32(at + 1) < end:  # there may be one more, of anything
            largest = _larger(largest, size_of(found[1]))
        largest = _larger(largest, size_of(found[0]))
        at = int32(at + 2 * THREADS)
    largest = _largest_of_warp(largest)
    if _lane() == 0 and largest > uint32(0):
        _keep_larger(uint32(base + 4 * (plan[LARGEST] + plan[UNITS])), largest)


@device
def _slopes(plan, memory, words, base, count):
    """The gradients of the units' outputs before ReLU, a warp for 32 images of a unit, and their digits.

    These are of a unit that goes by the largest gradient that there can be: the largest of the logits' times
    the sum of the unit's weights. So nobody has to wait for the largest that there is.
    """
    units, classes, lane = plan[UNITS], plan[CLASSES], _lane()
    steps, item = _tiles(count), _warp()
    while item < int32(units * steps):
        part, unit = _split(item, units, plan[PER_UNITS])
        image, total, weights = int32(32 * part + lane), float32(0), float32(0)
        at = uint32(base + 4 * (plan[DZ] + min(image, int32(count - 1)) * plan[DZ_ROW]))
        w2 = uint32(base + 4 * (plan[SMALL] + units + unit * classes))
        end = uint32(w2 + 4 * classes)
        while w2 < end:
            w = _load(w2)
            total, weights = total + _load(at) * w, weights + abs(w)
            at, w2 = uint32(at + 4), uint32(w2 + 4)
        most = _float_of(words[uint32(plan[LARGEST] + units)]) * weights
        per_unit, scale = unit_of(size_of(most))
        shown = image < count and memory[uint32(plan[Y] + unit * plan[Y_ROW] + image)] > float32(0)
        total = total if shown else float32(0)
        if image == 0:
            memory[uint32(plan[SCALES] + units + unit)] = scale * float32(1 / 255)
        # A word's four bytes are those of two images beside each other and the two eight further: so that
        # four lanes read rows whose words are in different banks.
        word = int32(((unit >> 1) * steps + part) * 64 + (unit & 1) * 32 + (lane & 6) + (lane >> 4))
        byte = int32((lane & 1) + (lane >> 2 & 2))
        _store_bytes(uint32(base + 4 * (plan[Y_DIGITS] + word) + byte), in_digits(total, per_unit))
        item = int32(item + WARPS)


@device
def _small_slopes(plan, memory, base, count):
    """The gradients of w2 and b2, which are sums over the images: a warp for each, from the last on, of those
    that the outputs' gradients leave."""
    units, classes, warp = plan[UNITS], plan[CLASSES], _warp()
    busy = min(int32(units * _tiles(count)), int32(WARPS // 2))
    item = int32(WARPS - 1 - warp if warp >= busy else plan[SMALL_WORDS])
    while item < int32(plan[SMALL_WORDS] - units):
        unit, c = _split(item, classes, plan[PER_CLASSES])
        total, image, further = float32(0), _lane(), int32(4 * 32 * plan[DZ_ROW])
        y = uint32(base + 4 * (plan[Y] + unit * plan[Y_ROW] + image))
        at = uint32(base + 4 * (plan[DZ] + c + image * plan[DZ_ROW]))
        while image < count:
            slope = _load(at)
            total += slope * _load(y) if unit < units else slope
            at, y, image = uint32(at + further), uint32(y + 4 * 32), int32(image + 32)
        total = _warp_sum(total)
        if _lane() == 0:
            memory[uint32(plan[SLOPES] + item)] = total
        item = int32(item + WARPS - busy)


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
    """The same of two parameters beside each other, which are returned."""
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
    return a[0], b[0]


@device
def _update_small(plan, memory, words, count, numbers):
    """b1, w2 and b2, by warps from the last on: b1 of two units for a warp, which adds their digits up as if
    they met a pixel that is 1; then a thread for each of the others, whose gradients are there."""
    units, rest, lane, tiles = plan[UNITS], plan[SMALL_WORDS], _lane(), plan[UNIT_TILES]
    steps, turn = _tiles(count), int32(WARPS - 1 - _warp())
    while turn < int32(tiles + _tiles(int32(rest - units))):
        place, slope = int32(-1), float32(0)
        if turn < tiles:
            at, step, sums = int32(plan[Y_DIGITS] + turn * steps * 64 + 2 * lane), int32(0), no_sums()
            while step < steps:
                b = _load2_words(words, uint32(at))
                sums = _byte_sums(_WHITE, b[0], b[1], sums)
                at, step = int32(at + 64), int32(step + plan[ONE])
            slope, unit = total_of(sums, lane), int32(2 * turn + (lane >> 1))
            if lane & ~2 == 0 and unit < units:
                place, slope = unit, slope * memory[uint32(plan[SCALES] + units + unit)]
        else:
            item = int32(32 * (turn - tiles) + lane)
            if item < int32(rest - units):
                place, slope = int32(units + item), memory[uint32(plan[SLOPES] + item)]
        if place >= 0:
            _update(memory, int32(plan[SMALL] + place), rest, slope, plan, numbers)
        turn = int32(turn + WARPS * plan[ONE])


@device
def _pixels_of_32(place):
    """Two pixels beside each other of 32 images: the first pixel's, then the second's, two words each."""
    a = _pairs_of_32(place)
    return _even_bytes(a[0], a[1]), _even_bytes(a[2], a[3]), _odd_bytes(a[0], a[1]), _odd_bytes(a[2], a[3])


@device
def _update_weights(plan, memory, words, x, count, base, numbers):
    """w1, by x turned · dy, used up as soon as it is there: 32 pixels of two units at a time for a warp, of
    which a lane gets two pixels of one unit; and the digits of what it becomes."""
    units, lane, pixels, tiles = plan[UNITS], _lane(), plan[PIXELS], plan[UNIT_TILES]
    down, steps = plan[PIXEL_TILES], _tiles(count)
    item = _warp()
    while item < int32(tiles * down):
        tile, across = _split(item, tiles, plan[PER_UNIT_TILES])
        place = uint32(base + 4 * (x + lane * plan[X_ROW]) + 32 * tile)
        further = uint32(16 if int32(32 * tile + 16) < pixels else 0)
        at, step = int32(plan[Y_DIGITS] + across * steps * 64 + 2 * lane), int32(0)
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
            w_0, w_1 = _update2(memory, at, states, g_0 * scale, g_1 * scale, plan, numbers)
            largest = _larger(size_of(w_0), size_of(w_1))
            per_unit = memory[uint32(plan[SCALES] + 2 * units + unit)]
            _tell_digits_of_weights(plan, base, tile, across, lane, w_0, w_1, per_unit)
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
        each,
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
        while step < last:
            wait_for_images(plan, base, step, int32(step - first))
            cuda.syncthreads()
            count, next_step = _images_of(plan, step, last), int32(step + 1)
            x = int32(plan[X] + _buffer(plan, step) * plan[X_WORDS])
            while True:
                _multiply_pixels(plan, memory, words, x, count, base)
                _look_for_new_units(plan, words, base)
                cuda.syncthreads()
                if words[uint32(plan[STALE])] == uint32(0):
                    break
                cuda.syncthreads()  # as always in the first step, and seldom later
                _digits_of_weights(plan, memory, words)
                cuda.syncthreads()
            _forget_largest(plan, words)
            _tell_logits(plan, base, told, tag)
            _ask_for_labels(plan, words, base, step, count, labels)
            # Each thread where it has looked up a label.
            _ask_for_places(plan, base, int32(step + plan[X_BUFFERS]), last, order)
            _ask_for_numbers(plan, base, int32(step - first), numbers)
            _copies_end()
            _add_up_logits(plan, memory, told, tag)
            _arrived()
            cuda.syncthreads()
            _tell_gradients(
                plan, memory, words, step, count, tag, order, weight, loss, correct, answers, smoothing, each
            )
            if plan[X_BUFFERS] > 1:
                ask_for_images(plan, words, next_step, last, images, base)
            _copies_end()
            _hear_gradients(plan, memory, base, count, answers, tag)
            cuda.syncthreads()
            _slopes(plan, memory, words, base, count)
            _small_slopes(plan, memory, base, count)
            now = int32(plan[NUMBERS_NOW])
            of_step = (
                _load4(memory, uint32(now))
                + _load4(memory, uint32(now + 4))
                + _load4(memory, uint32(now + 8))
            )
            cuda.syncthreads()
            _update_small(plan, memory, words, count, of_step)
            _update_weights(plan, memory, words, x, count, base, of_step)
            if plan[X_BUFFERS] == 1:
                cuda.syncthreads()
                ask_for_images(plan, words, next_step, last, images, base)
                _copies_end()
            step, tag = next_step, uint32(tag + uint32(1))
        cuda.syncthreads()
        # All have read what one of them writes: the bias of the output layer.
        met = _global_address(counter)
        grid.wait(met, grid.arrive(met))
        _carry_all(plan, memory, parameters, state_0, state_1, True)

    return Kernel(
        steps,
        *(types.UniTuple(int32, PLAN_WORDS), INTS, BYTES, INTS, LONGS),
        *(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, float32, float32),
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
    return _bits(np.uint32((2**32 - 1) // by))


def _bits(number):
    """Of 32, as one of the words."""
    return number.view(np.int32)


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
        (SLOPES, small - units),
        (Y, units * y_row),
        (LARGEST, units + 1),
        (STALE, 1),
        (SCALES, 3 * units),
        (PLACES, buffers * batch),
        (TARGETS, batch),
        (NUMBERS_NOW, NUMBERS),
        (BARRIERS, 4),
        (Z, share * (classes + classes % 2)),
        # Of the first part, and digits of gradients; the others' lie where the logits' gradients are later.
        (SUMS, max(units * y_row, tiles * padded * 2)),
        (DZ, max(batch * dz_row + 1, (PARTS - 1) * units * y_row)),
    ):
        words[name] = at
        at += -(-count // 4) * 4  # four words are read at a time
    words[Y_DIGITS] = words[SUMS]
    words |= {UNITS: units, UNIT_TILES: tiles, X_ROW: x_row, X_BUFFERS: buffers, X_WORDS: x_words}
    words |= {OWN_ROW: own_row, SMALL_WORDS: small, Y_ROW: y_row, DZ_ROW: dz_row, SHARED_WORDS: at}
    words |= {MESSAGE: share * (classes + classes % 2)}
    words |= {PIXEL_TILES: blocks_for(pixels, 32), PIXEL_PAIRS: blocks_for(pixels, 64)}
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
            PER_IMAGE: _bits(np.float32(1) / np.float32(batch)),
            PER_LAST_IMAGE: _bits(np.float32(1) / np.float32(count % batch or batch)),
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
            smoothing, classes = np.float32(plan.label_smoothing), plan.layout.layer_sizes[2]
            words = self.words | {NESTEROV: nesterov, WEIGHTED: plan.weight is not None}
            with recorded() as launches:
                self.kernel(
                    self.blocks,
                    *(tuple(words[name] for name in range(PLAN_WORDS)), memory["given"]),
                    *(images.reshape(-1), labels, memory["order"]),
                    nothing if plan.weight is None else plan.weight,
                    *(plan.parameters, *[*plan.state, nothing, nothing][:2]),
                    *(
                        memory["given"][NUMBERS_AT:].view(np.float32),
                        smoothing,
                        smoothing / np.float32(classes),
                    ),
                    *(memory["logits"], memory["gradients"], loss, correct, memory["counter"]),
                    shared=self.shared,
                )
            self.ready = arrays, how, gpu.prepared(*launches[0])
        return self.ready[2]
