"""Softmax and cross-entropy on the CPU: vectors across rows.

A row of ten logits does not fill a vector, and its maximum and its sum would have to be folded
together inside one. So some rows at a time are copied column by column: then the numbers of a
vector belong to different rows, maxima and sums grow column after column in all of them at once,
and every row is summed in the order of its columns, whichever rows are beside it.
"""

import math

import numpy as np

from ..common.compiling import inner, jit
from ..common.memory import (
    bits_of,
    bytes_at,
    float_of,
    floats,
    ints,
    ints32,
    matrix,
    matrix_address,
    number,
    row,
    share,
    vector_address,
    word_of,
)
from ..common.team import Kernel, thread_count

# Elements a thread: so many take some 50 µs, about as long as it takes to wake a thread that sleeps.
SHARE = 32_768

LANES = 64  # rows at a time: several vectors, so that one's latencies hide behind the others
FEW_LANES = 16  # one AVX-512 vector, for so many classes that 64 rows would leave the first cache
MANY_CLASSES = 128

ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(np.nan)

LOWEST = np.float32(-105)  # exp of it is less than half of the smallest subnormal number
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH = np.float32(0.693359375)  # 9 bits: its product with a whole number below 2**15 is exact
LN2_LOW = np.float32(-2.12194440e-4)  # ln 2 - LN2_HIGH
ROUND = np.float32(1.5 * 2**23)  # what is added to it is rounded to a whole number, in its last bits
ROUND_BITS = np.int32(0x4B400000)
ONE_BITS, FRACTION_BITS = np.int32(127), np.int32(23)  # a float32 is 2**(e - 127), e from bit 23 on
# exp(r) - 1 - r = r²·(P0 + P1·r + …) for |r| ≤ ½·ln 2
P5, P4, P3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P2, P1, P0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


@inner
def exp_float32(x):
    """exp(x) of a float32 x ≤ 0, without a branch, so that loops over it become vectors.

    x = n·ln 2 + r, and exp(x) = 2ⁿ·exp(r). Off by at most 2 units in the last place, subnormal results
    by as many of theirs; exp(0) = 1, exp(-∞) = 0, and NaN stays NaN.
    Source: Cody, Waite, "Software Manual for the Elementary Functions" (1980); the polynomial is that of
    Moshier's Cephes library, expf.
    """
    x = LOWEST if x < LOWEST else x
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = P5
    y = y * r + P4
    y = y * r + P3
    y = y * r + P2
    y = y * r + P1
    y = y * r + P0
    y = y * (r * r) + r + ONE
    # In two steps: 2ⁿ itself may be too small for a normal number. The first product is exact.
    exponent = np.int32(bits_of(shifted) - ROUND_BITS)
    half = np.int32(exponent >> np.int32(1))
    y *= float_of(np.int32((half + ONE_BITS) << FRACTION_BITS))
    return y * float_of(np.int32((exponent - half + ONE_BITS) << FRACTION_BITS))


@inner
def _exponentials(z, first, count, powers, largest, place, total):
    """For ``count`` rows of z from ``first`` on, one in each column of ``powers`` [C, lanes]:

    powers = exp(z - largest), the largest logit, where it is first, and the sum of the powers. A
    NaN is larger than any number, as it is for NumPy; it makes the row NaN.
    """
    columns, lanes = powers.shape
    for i in range(count):
        logits = row(z, first + i)
        for c in range(columns):
            powers[c, i] = logits[c]
    for i in range(lanes):
        largest[i], place[i], total[i] = powers[0, i], 0, ZERO
    for c in range(1, columns):
        for i in range(lanes):
            logit, before = powers[c, i], largest[i]
            larger = (logit > before) | ((logit != logit) & (before == before))
            largest[i] = logit if larger else before
            place[i] = c if larger else place[i]
    for c in range(columns):
        for i in range(lanes):
            power = exp_float32(powers[c, i] - largest[i])
            powers[c, i] = power
            total[i] += power


@jit
def softmax_rows(z, p, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`softmax`."""
    columns = z.shape[1]
    lanes = LANES if columns < MANY_CLASSES else FEW_LANES
    powers = np.zeros((columns, lanes), np.float32)
    largest, total = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    place = np.empty(lanes, np.int32)
    for top in range(first, last, lanes):
        count = min(lanes, last - top)
        _exponentials(z, top, count, powers, largest, place, total)
        for c in range(columns):
            for i in range(lanes):
                powers[c, i] /= total[i]
        for i in range(count):
            target = row(p, top + i)
            for c in range(columns):
                target[c] = powers[c, i]


@inner
def _sum_of_depths(logits, largest):
    """Σ (z_c - largest) of one row."""
    total = ZERO
    for c in range(logits.size):
        total += logits[c] - largest
    return total


@jit
def softmax_xent_rows(z, t, weight, loss, correct, dz, factor, smoothing, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`softmax_xent`.

    ``weight`` has no elements where there are no weights; ``factor`` is 1/B of the whole batch. A
    target that is no class makes the loss NaN and is not subtracted.
    """
    columns = z.shape[1]
    lanes = LANES if columns < MANY_CLASSES else FEW_LANES
    powers = np.zeros((columns, lanes), np.float32)
    largest, total = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    place, targets = np.empty(lanes, np.int32), np.zeros(lanes, np.int32)
    weights = np.ones(lanes, np.float32)
    factor, smoothing = np.float32(factor), np.float32(smoothing)
    each = smoothing / np.float32(columns)  # of a target's whole, what every class has; and the right one
    right = ONE - smoothing + each
    for top in range(first, last, lanes):
        count = min(lanes, last - top)
        _exponentials(z, top, count, powers, largest, place, total)
        for i in range(count):
            r = top + i
            target = t[r]
            known = 0 <= target < columns
            depth = row(z, r)[target] - largest[i] if known else NAN
            if smoothing != ZERO:
                depth = (ONE - smoothing) * depth + each * _sum_of_depths(row(z, r), largest[i])
            targets[i] = target
            weights[i] = weight[r] if weight.size else ONE
            loss[r] = (math.log(total[i]) - depth) * weights[i]
            correct[r] = place[i] == target
        for c in range(columns):
            for i in range(lanes):
                p = powers[c, i] / total[i]
                powers[c, i] = (p - (right if targets[i] == c else each)) * factor * weights[i]
        for i in range(count):
            gradient = row(dz, top + i)
            for c in range(columns):
                gradient[c] = powers[c, i]


@Kernel
def _softmax(thread, threads, barrier, arguments):
    words = ints(arguments, 6)
    rows, columns = words[0], words[1]
    z, p = matrix(words[2], words[3], rows, columns), matrix(words[4], words[5], rows, columns)
    first, last = share(rows, thread, threads)
    softmax_rows(z, p, first, last)


@Kernel
def _softmax_xent(thread, threads, barrier, arguments):
    words = ints(arguments, 12)
    rows, columns = words[0], words[1]
    z, dz = matrix(words[2], words[3], rows, columns), matrix(words[4], words[5], rows, columns)
    t, correct = ints32(words[6], rows), bytes_at(words[7], rows)
    loss, weight = floats(words[8], rows), floats(words[9], words[10])
    first, last = share(rows, thread, threads)
    factor, smoothing = ONE / np.float32(rows), number(arguments, 11)
    softmax_xent_rows(z, t, weight, loss, correct, dz, factor, smoothing, first, last)


def softmax(z, p, threads=None):
    """p = the softmax of each row of z.

    Shapes: z and p [B, C]; their rows may be apart. Dtypes: float32.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: p, which may be z itself.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: one exponential and about four flops an element; 64 rows of z are copied to a buffer.
    """
    source = matrix_address("z", z, np.float32)
    target = matrix_address("p", p, np.float32, z.shape, written=True)
    if z.size:
        _softmax([*z.shape, *source, *target], min(thread_count(threads), max(1, z.size // SHARE)))


def softmax_xent(z, t, weight, loss, correct, dz, smoothing=0.0, threads=None):
    """Cross-entropy of each row, whether its (first) largest logit is the target's, the gradient.

    loss_i = weight_i · L_i and dz_i = weight_i · ∂L_i/∂z_i / B; L and ∂L/∂z are those of
    :mod:`.reference`, with labels smoothed by ``smoothing``.

    Shapes: z and dz [B, C], whose rows may be apart; t, weight, loss and correct [B]; weight may be
    None (all ones).
    Dtypes: t int32, correct uint8, the rest float32.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: loss, correct (0 or 1), dz (which may be z itself).
    Errors: IndexError for a target outside 0 … C - 1, TypeError for another dtype, ValueError for
    shapes that do not fit.
    Cost: one exponential, one division and about six flops an element; 64 rows are copied to a buffer.
    """
    source = matrix_address("z", z, np.float32)
    rows, columns = z.shape
    words = [rows, columns, *source, *matrix_address("dz", dz, np.float32, z.shape, written=True)]
    words.append(vector_address("t", t, np.int32, rows))
    words.append(vector_address("correct", correct, np.uint8, rows, written=True))
    words.append(vector_address("loss", loss, np.float32, rows, written=True))
    words += (0, 0) if weight is None else (vector_address("weight", weight, np.float32, rows), rows)
    words.append(word_of(smoothing))
    if rows == 0:
        return
    if t.min() < 0 or t.max() >= columns:
        raise IndexError(f"targets must be in 0 … {columns - 1}, got {t.min()} … {t.max()}")
    _softmax_xent(words, min(thread_count(threads), max(1, z.size // SHARE)))
