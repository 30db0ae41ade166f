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


# --- few classes ----------------------------------------------------------------------------------

FEW = 32  # classes, up to which the registers and the shared memory of enough blocks hold all logits
# Numbers of one access of shared memory: how they are read, and written.
ACCESSES = {
    1: (device(lambda kept, at: (kept[at],)), device(lambda kept, at, one: _keep(kept, at, one[0]))),
    2: (load2, store2),
    4: (load4, store4),
}


@device
def _keep(kept, at, value):
    kept[at] = value


@device
def _larger(found, logit, c):
    """(the largest so far, its first place) with one logit more; a NaN stays."""
    largest, _ = found
    return (logit, c) if not logit <= largest and largest == largest else found


@device
def _added(sums, logit, c, largest, target):
    """As of :func:`sums_of`, with one logit more."""
    total, of_target, depths = sums
    depth = logit - largest
    return total + math.exp(depth), depth if c == target else of_target, depths + depth


@device
def _slope(slopes, logit, c, largest, scale, target, right, each, share):
    """Of the loss, for one logit more."""
    p = math.exp(logit - largest) * scale
    more = ((p - (right if c == target else each)) * share,)
    return slopes + more


@cache
def loss_of_few(classes):
    """The kernel of :func:`softmax_xent` for so many classes, up to FEW, in rows without gaps between them.

    Rows of 40 bytes that threads read from memory themselves would ask for each sector four times. So a block
    brings THREADS rows, which are one piece of memory, four neighbouring numbers to a thread, and all that a
    thread brings before it keeps the first. Each thread then has a row of shared memory, where it leaves the
    gradient, and the block takes the piece back in the same way.

    Numbers of a row are read as many at a time as divide it, up to four: then threads side by side meet no
    bank twice, as the distance of their rows is an odd number of accesses. But for multiples of eight
    classes: there, fours of a row change places with each other, as the number of the row says.
    """
    wide = next(width for width in (4, 2, 1) if classes % width == 0)
    load, store = ACCESSES[wide]
    parts = classes // wide  # of a row
    bits = min(3, (parts & -parts).bit_length() - 1) if wide == 4 else 0
    exchanged, shift = uint32(2**bits - 1), uint32(3 - bits)
    in_row, parts, every_part = uint32(max(1, classes // 4)), uint32(parts), uint32(wide)
    fours = THREADS * classes // 4  # of a block
    turns = blocks_for(fours, THREADS)
    room = 4 * THREADS * turns  # so that the last turn needs no bound for what is kept
    many, last = uint32(classes), uint32(fours - 1)

    @device
    def place_of_four(four):
        return uint32(uint32(four) ^ ((uint32(four) // in_row >> shift) & exchanged))

    @device
    def place_of_part(thread, part):
        return uint32(every_part * ((thread * parts + part) ^ ((thread >> shift) & exchanged)))

    def bringing(turn):
        first = uint32(turn * THREADS)

        @device
        def bring(held, z, at, thread):
            four = uint32(thread + first)
            if turn == turns - 1:
                four = min(four, last)
            more = (load4(z, at + uint64(uint32(four * uint32(4)))),)
            return held + more

        return bring

    def keeping(turn):
        first = uint32(turn * THREADS)

        @device
        def keep(held, kept, thread):
            store4(kept, uint32(4) * place_of_four(thread + first), held[turn])

        return keep

    def taking(turn):
        first = uint32(turn * THREADS)

        @device
        def take(kept, dz, at, thread):
            four = uint32(thread + first)
            if four <= last:
                values = load4(kept, uint32(4) * place_of_four(four))
                store4(dz, at + uint64(uint32(four * uint32(4))), values)

        return take

    def of_each(function):
        """Of the numbers of one access."""

        def of_one(place):
            beyond = int32(place)

            @device
            def of_one(found, values, c, *arguments):
                return function(found, values[place], int32(c + beyond), *arguments)

            return of_one

        return fold([of_one(place) for place in range(wide)])

    bring, keep, take = (
        fold(list(map(bringing, range(turns)))),
        *(sequence(list(map(make, range(turns)))) for make in (keeping, taking)),
    )
    larger, added, slope = map(of_each, (_larger, _added, _slope))

    def softmax_xent(z, t, weight, loss, correct, dz, rows, vectors, factor, smoothing):
        kept = cuda.shared.array(room, float32, ALIGNED)
        thread, begin = uint32(cuda.threadIdx.x), int64(cuda.blockIdx.x) * THREADS
        row, at = uint64(begin + thread), uint64(begin * classes)
        left = uint32(min(rows - begin, THREADS))
        count = uint32(left * many)
        target, own = int32(0), float32(1)
        if thread < left:  # asked for along with the logits
            target = t[row]
            if weight.size > 0:
                own = weight[row]
        in_fours = vectors and left == THREADS
        if in_fours:
            keep(bring((), z, at, thread), kept, thread)
        else:
            i = thread
            while i < count:
                kept[uint32(4) * place_of_four(i // uint32(4)) + i % uint32(4)] = z[at + uint64(i)]
                i = uint32(i + uint32(THREADS))
        cuda.syncthreads()
        if thread < left:
            each, right = smoothed(smoothing, classes)
            found, part = (float32(-math.inf), int32(0)), 0
            while part < parts:
                values = load(kept, place_of_part(thread, uint32(part)))
                found = larger(found, values, int32(part * wide))
                part += 1
            largest, best = found
            sums, part = (float32(0), float32(0), float32(0)), 0
            while part < parts:
                values = load(kept, place_of_part(thread, uint32(part)))
                sums = added(sums, values, int32(part * wide), largest, target)
                part += 1
            total, of_target, depths = sums
            scale, share, part = float32(1) / total, factor * own, 0
            while part < parts:
                place = place_of_part(thread, uint32(part))
                values = load(kept, place)
                slopes = slope((), values, int32(part * wide), largest, scale, target, right, each, share)
                store(kept, place, slopes)
                part += 1
            loss[row] = (math.log(total) - expected_logit(of_target, depths, smoothing, each)) * own
            correct[row] = uint8(1) if best == target else uint8(0)
        cuda.syncthreads()
        if in_fours:
            take(kept, dz, at, thread)
        else:
            i = thread
            while i < count:
                dz[at + uint64(i)] = kept[uint32(4) * place_of_four(i // uint32(4)) + i % uint32(4)]
                i = uint32(i + uint32(THREADS))

    return Kernel(
        softmax_xent,
        *(FLOATS, INTS, FLOATS, FLOATS, BYTES, FLOATS, int64, int64, float32, float32),
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
    Cost: one exponential and about five flops an element.
    """
    rows, classes = z.shape
    distances = row_distance(z), row_distance(dz)
    own = flat(loss)[:0] if weight is None else flat(weight)
    if classes <= FEW and distances == (classes, classes):
        vectors = address_of(z) % 16 == 0 and address_of(dz) % 16 == 0
        kernel = loss_of_few(classes)
        arguments = flat(z), flat(t), own, flat(loss), flat(correct), flat(dz)
        kernel(blocks_for(rows, THREADS), *arguments, rows, vectors, 1 / rows, smoothing)
        return
    _loss(
        blocks_for(rows, ROWS),
        *(flat(z), distances[0], flat(t), own, flat(loss), flat(correct), flat(dz), distances[1]),
        *(rows, classes, 1 / rows, smoothing),
    )
