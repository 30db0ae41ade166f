"""Softmax and cross-entropy on a GPU: one thread for each image, one pass for loss and gradient.

A row has few logits, so that a thread has it in its cache; the sum of a row has the order of its
classes. The row maximum is subtracted first (see ``reference.py``).
"""

import math

from numba import float32, int64, uint8

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

THREADS = 64  # few, so that a small batch occupies several multiprocessors


@device
def largest_of(z, at, classes):
    """The place of the first largest of a row; that of a NaN if there is one."""
    best = int64(0)
    for c in range(1, classes):
        if not z[at + c] <= z[at + best] and z[at + best] == z[at + best]:
            best = int64(c)
    return best


def _softmax(z, z_row, p, p_row, rows, classes):
    row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if row >= rows:
        return
    largest = z[row * z_row + largest_of(z, row * z_row, classes)]
    total = float32(0)
    for c in range(classes):
        power = math.exp(z[row * z_row + c] - largest)
        p[row * p_row + c] = power
        total += power
    for c in range(classes):
        p[row * p_row + c] /= total


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
    row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if row >= rows:
        return
    target = t[row]
    best = largest_of(z, row * z_row, classes)
    largest = z[row * z_row + best]
    of_target = z[row * z_row + target] - largest
    own = weight[row] if weight.size > 0 else float32(1)
    each, right = smoothed(smoothing, classes)
    total, depths = float32(0), float32(0)
    for c in range(classes):
        depth = z[row * z_row + c] - largest
        power = math.exp(depth)
        dz[row * dz_row + c] = power
        total += power
        depths += depth
    for c in range(classes):
        p = dz[row * dz_row + c] / total
        dz[row * dz_row + c] = (p - (right if c == target else each)) * factor * own
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
    _probabilities(blocks_for(len(z), THREADS), flat(z), row_distance(z), flat(p), row_distance(p), *z.shape)


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
        blocks_for(len(z), THREADS),
        *(flat(z), row_distance(z), flat(t)),
        flat(loss)[:0] if weight is None else flat(weight),
        *(flat(loss), flat(correct), flat(dz), row_distance(dz)),
        *z.shape,
        1 / len(z),
        smoothing,
    )
