"""Softmax and cross-entropy on a GPU, loss and gradient in one pass.

Any matrix: some lanes of a warp for each image. Each lane reads its logits once: of a row of up to LANES it
keeps its own, what follows it reads again. Few classes, without gaps between the rows: a thread for each
image, and rows by way of shared memory (:func:`loss_of_few`).

The row maximum is subtracted first (see ``reference.py``).
"""

import math
from functools import cache

from numba import float32, int32, int64, uint8, uint32, uint64

from ..common import lanes
from ..common.cuda import (
    ALIGNED,
    BYTES,
    FLOATS,
    INTS,
    Kernel,
    address_of,
    blocks_for,
    cuda,
    device,
    flat,
    for_any_array,
    row_distance,
)
from ..common.ptx import fold, load2, load4, sequence, store2, store4

THREADS = 128
LANES = 16  # of an image
ROWS = THREADS // LANES  # of a block

_sum_of, _first_largest = lanes.summing(LANES), lanes.choosing(LANES)


@device
def place_of_lane():
    """(a row, the first of its classes that are this lane's: LANES further is the next)"""
    return cuda.blockIdx.x * ROWS + cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES


@device
def largest_of(z, at, lane, classes):
    """(the lane's first logit, the largest of the row, its first place); a NaN if there is one."""
    first = z[at + lane] if lane < classes else float32(-math.inf)
    value, place = first, int32(lane)
    for c in range(lane + LANES, classes, LANES):
        if not z[at + c] <= value and value == value:
            value, place = z[at + c], int32(c)
    value, place = _first_largest(value, place)
    return first, value, place


@device
def depth_of(z, at, lane, c, first, largest):
    """How far one of the lane's logits is below the largest."""
    return (first if c == lane else z[at + c]) - largest


@device
def sums_of(z, at, lane, classes, first, largest, target, smoothing):
    """Of a row: (the sum of the exponentials of depths, the depth of the target, the sum of all depths where
    labels are smoothed)."""
    total, of_target, depths = float32(0), float32(0), float32(0)
    for c in range(lane, classes, LANES):
        depth = depth_of(z, at, lane, c, first, largest)
        total += math.exp(depth)
        of_target = depth if c == target else of_target
        depths += depth
    if smoothing > float32(0):
        depths = _sum_of(depths)
    return _sum_of(total), _sum_of(of_target), depths


def _softmax(z, z_row, p, p_row, rows, classes):
    row, lane = place_of_lane()
    at, there = row * z_row, classes if row < rows else 0
    first, largest, _ = largest_of(z, at, lane, there)
    total, _, _ = sums_of(z, at, lane, there, first, largest, 0, float32(0))
    for c in range(lane, there, LANES):
        p[row * p_row + c] = math.exp(depth_of(z, at, lane, c, first, largest)) / total


@device
def smoothed(smoothing, classes):
    """Of a target's whole, what every class has, and the right one."""
    each = smoothing / float32(classes)
    return each, float32(1) - smoothing + each


@device
def expected_logit(of_target, sum_of_all, smoothing, each):
    """The logit that a target expects, from that of its class and the sum of all, which counts only where
    labels are smoothed: it may overflow."""
    return (float32(1) - smoothing) * of_target + each * sum_of_all if smoothing > float32(0) else of_target


def _softmax_xent(z, z_row, t, weight, loss, correct, dz, dz_row, rows, classes, factor, smoothing):
    row, lane = place_of_lane()
    at, there = row * z_row, classes if row < rows else 0
    target = t[row] if row < rows else int32(0)
    first, largest, best = largest_of(z, at, lane, there)
    total, of_target, depths = sums_of(z, at, lane, there, first, largest, target, smoothing)
    if row < rows:
        own = weight[row] if weight.size > 0 else float32(1)
        each, right = smoothed(smoothing, classes)
        for c in range(lane, classes, LANES):
            p = math.exp(depth_of(z, at, lane, c, first, largest)) / total
            dz[row * dz_row + c] = (p - (right if c == target else each)) * factor * own
        if lane == 0:
            loss[row] = (math.log(total) - expected_logit(of_target, depths, smoothing, each)) * own
            correct[row] = uint8(1) if best == target else uint8(0)


_probabilities = Kernel(_softmax, *[FLOATS, int64] * 2, int64, int64, threads=THREADS, name="softmax")
_loss = Kernel(
    _softmax_xent,
    *(FLOATS, int64, INTS, FLOATS, FLOATS, BYTES, FLOATS, int64, int64, int64, float32, float32),
    threads=THREADS,
    name="softmax_xent",
)


# --- few classes, a thread for each row -----------------------------------------------------------

FEW = 32  # classes: up to so many, the registers and the shared memory of several blocks hold all of a row


@device
def _kept1(kept, at):
    return (kept[at],)


@device
def _keep1(kept, at, values):
    kept[at] = values[0]


# Of shared memory, so many numbers at a time.
ACCESSES = {1: (_kept1, _keep1), 2: (load2, store2), 4: (load4, store4)}


@device
def _larger(found, logit, c):
    """(the largest so far, its first place), with one logit more; a NaN stays."""
    largest, _ = found
    return (logit, c) if not logit <= largest and largest == largest else found


@device
def _added(found, logit, c, largest, target):
    """As of :func:`sums_of`, with one logit more, whose exponential joins those before it."""
    total, of_target, depths, powers = found
    depth = logit - largest
    power = math.exp(depth)
    one = (power,)
    return total + power, depth if c == target else of_target, depths + depth, powers + one


@device
def _slope(slopes, power, c, scale, target, right, each, share):
    """The gradient for one logit more, which joins those before it."""
    one = ((power * scale - (right if c == target else each)) * share,)
    return slopes + one


@cache
def loss_of_few(classes):
    """The kernel of :func:`softmax_xent` for so many classes, up to FEW, in rows without gaps between them.
    ``vectors``: whether z and dz begin at multiples of 16 bytes; ``each``: of a target, what every class has.

    A thread that read its row from memory by itself would ask for each sector again and again. So a block
    brings THREADS rows, one piece of memory, to its shared memory: neighbouring threads have neighbouring
    fours, and ask for all of theirs before they keep the first. Then each thread has a row there, in whose
    place it leaves the gradient, and the block writes the piece as it was read.

    A thread takes as many numbers of its row at a time as divide it, up to four. Rows are then an odd number
    of such accesses apart, so that no two threads meet at a bank. Not so where eight divides the classes:
    there the fours of a row have changed places, in a way that differs from row to row.
    """
    wide = next(width for width in (4, 2, 1) if classes % width == 0)
    load, store = ACCESSES[wide]
    parts = classes // wide  # of a row
    even = (parts & -parts).bit_length() - 1 if wide == 4 else 0  # how often two divides them
    changed, same = uint32(2 ** min(even, 3) - 1), uint32(3 - min(even, 3))
    fours = THREADS * classes // 4  # of a block
    turns = blocks_for(fours, THREADS)
    room = 4 * THREADS * turns  # with what the last turn keeps twice, behind the others: it asks for no bound
    four_numbers, of_part, of_row = uint32(4), uint32(wide), uint32(parts)

    @device
    def place_of_part(row, part):
        return uint32(of_part * ((row * of_row + part) ^ ((row >> same) & changed)))

    @device
    def place_of(number):
        """Of one of the block's numbers."""
        four = uint32(number // four_numbers)
        row = uint32(number // uint32(classes))
        return uint32(four_numbers * (four ^ ((row >> same) & changed)) + number % four_numbers)

    def bringing(turn):
        first, last = uint32(turn * THREADS), uint32(fours - 1)

        @device
        def bring(held, z, at, thread):
            four = uint32(thread + first)
            if turn == turns - 1:
                four = min(four, last)
            one = (load4(z, at + uint32(four_numbers * four)),)
            return held + one

        return bring

    def keeping(turn):
        first = uint32(turn * THREADS)

        @device
        def keep(kept, thread, held):
            store4(kept, place_of(uint32(four_numbers * uint32(thread + first))), held[turn])

        return keep

    def taking(turn):
        first, end = uint32(turn * THREADS), uint32(fours)

        @device
        def take(kept, thread, dz, at):
            four = uint32(thread + first)
            if four < end:
                number = uint32(four_numbers * four)
                store4(dz, at + number, load4(kept, place_of(number)))

        return take

    def of_part_by(function):
        """What changes what was found, with all numbers of a part: ``(found, numbers, the first's class,
        arguments…)``"""

        def of_one(place):
            @device
            def of_one(found, numbers, c, *arguments):
                return function(found, numbers[place], int32(c + place), *arguments)

            return of_one

        return fold([of_one(place) for place in range(wide)])

    bring = fold([bringing(turn) for turn in range(turns)])
    keep, take = (sequence([of(turn) for turn in range(turns)]) for of in (keeping, taking))
    larger, added, slope = map(of_part_by, (_larger, _added, _slope))

    def softmax_xent(z, t, weight, loss, correct, dz, rows, vectors, factor, smoothing, each):
        kept = cuda.shared.array(room, float32, ALIGNED)
        thread, begin = uint32(cuda.threadIdx.x), int64(cuda.blockIdx.x) * THREADS
        at, row = begin * classes, uint64(begin + thread)
        left = uint32(min(rows - begin, THREADS))
        in_fours, count = vectors and left == THREADS, uint32(left * uint32(classes))
        target, own = int32(0), float32(1)
        if thread < left:  # asked for along with the logits
            target = t[row]
            if weight.size > 0:
                own = weight[row]
        if in_fours:
            keep(kept, thread, bring((), z, at, thread))
        else:
            number = thread
            while number < count:
                kept[place_of(number)] = z[uint64(at + number)]
                number = uint32(number + uint32(THREADS))
        cuda.syncthreads()
        if thread < left:
            found, part = (float32(-math.inf), int32(0)), 0
            while part < parts:
                found = larger(found, load(kept, place_of_part(thread, uint32(part))), part * wide)
                part += 1
            largest, best = found
            total, of_target, depths, part = float32(0), float32(0), float32(0), 0
            while part < parts:
                place, found = place_of_part(thread, uint32(part)), (total, of_target, depths, ())
                found = added(found, load(kept, place), part * wide, largest, target)
                total, of_target, depths, powers = found
                store(kept, place, powers)
                part += 1
            scale, share, right, part = float32(1) / total, factor * own, float32(1) - smoothing + each, 0
            while part < parts:
                place = place_of_part(thread, uint32(part))
                slopes = slope((), load(kept, place), part * wide, scale, target, right, each, share)
                store(kept, place, slopes)
                part += 1
            loss[row] = (math.log(total) - expected_logit(of_target, depths, smoothing, each)) * own
            correct[row] = uint8(1) if best == target else uint8(0)
        cuda.syncthreads()
        if in_fours:
            take(kept, thread, dz, at)
        else:
            number = thread
            while number < count:
                dz[uint64(at + number)] = kept[place_of(number)]
                number = uint32(number + uint32(THREADS))

    return Kernel(
        softmax_xent,
        *(FLOATS, INTS, FLOATS, FLOATS, BYTES, FLOATS, int64, int64, float32, float32, float32),
        threads=THREADS,
        name=f"softmax_xent, {classes} classes",
    )


@for_any_array
def softmax(z, p):
    """p = the softmax of each row of z.

    Shapes: z and p [B, C]; rows may be further apart than they are long. Dtypes: float32.
    Writes: p, which may be z itself. Cost: one exponential and about four flops an element.
    """
    _probabilities(blocks_for(len(z), ROWS), flat(z), row_distance(z), flat(p), row_distance(p), *z.shape)


@for_any_array
def softmax_xent(z, t, weight, loss, correct, dz, smoothing=0.0):
    """Cross-entropy of each row, whether its (first) largest logit is the target's, the gradient.

    loss_i = weight_i · L_i and dz_i = weight_i · ∂L_i/∂z_i / B, with labels smoothed by ``smoothing``.

    Shapes: z and dz [B, C]; t, weight, loss and correct [B]; weight may be None (all ones).
    Dtypes: t int32, in 0 … C - 1 (not checked), correct uint8, the rest float32.
    Writes: loss, correct, dz (which may be z itself).
    Cost: one exponential and about five flops an element. The first call with a number of classes up to FEW
    compiles a kernel for it.
    """
    rows, classes = z.shape
    distances = row_distance(z), row_distance(dz)
    own = flat(loss)[:0] if weight is None else flat(weight)
    if 1 <= classes <= FEW and distances == (classes, classes):
        vectors = address_of(z) % 16 == 0 and address_of(dz) % 16 == 0
        kernel = loss_of_few(classes)
        arguments = flat(z), flat(t), own, flat(loss), flat(correct), flat(dz)
        numbers = 1 / rows, smoothing, smoothing / classes
        kernel(blocks_for(rows, THREADS), *arguments, rows, vectors, *numbers)
        return
    _loss(
        blocks_for(rows, ROWS),
        *(flat(z), distances[0], flat(t), own, flat(loss), flat(correct), flat(dz), distances[1]),
        *(rows, classes, 1 / rows, smoothing),
    )
