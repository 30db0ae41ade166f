"""Softmax and cross-entropy on a GPU: some lanes of a warp for each image, loss and gradient in one pass.

Each lane reads its logits once: of a row of up to LANES it keeps its own, what follows it reads again. The
row maximum is subtracted first (see ``reference.py``).
"""

import math

from numba import float32, int32, int64, uint8

from ..common import lanes
from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    Kernel,
    blocks_for,
    cuda,
    device,
    flat,
    for_any_array,
    row_distance,
)

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
    _loss(
        blocks_for(len(z), ROWS),
        *(flat(z), row_distance(z), flat(t)),
        flat(loss)[:0] if weight is None else flat(weight),
        *(flat(loss), flat(correct), flat(dz), row_distance(dz)),
        *z.shape,
        1 / len(z),
        smoothing,
    )
