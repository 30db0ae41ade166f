"""The pieces of an attack on the CPU: the definitions of :mod:`.reference`, one pass over each row."""

import math

import numpy as np

from ..common.compiling import inner, jit
from ..common.memory import (
    bytes_at,
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
from ..common.philox import MASK, SHIFT, philox4x32
from ..common.team import Kernel, thread_count
from .reference import NORMS

# Elements a thread: so many take longer than it takes to wake a thread that sleeps.
SHARE = 32_768

ZERO, ONE = np.float32(0), np.float32(1)
UNIT, UNUSED_BITS = np.float32(2.0**-23), np.uint64(8)

# As in dropout: LLVM holds the ten rounds for too long to inline.
_philox = inner(philox4x32, forceinline=True)


# --- pieces -------------------------------------------------------------------------------------


@jit
def log_odds_rows(z, t, loss, correct, dz, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`log_odds`. Targets must be classes."""
    columns = z.shape[1]
    for r in range(first, last):
        logits, slope, target = row(z, r), row(dz, r), t[r]
        own, best, largest = logits[target], 0, np.float32(-np.inf)
        for c in range(columns):
            # A NaN is the largest, the first of them, as it is for NumPy.
            if not logits[c] <= logits[best] and logits[best] == logits[best]:
                best = c
            if c != target and not logits[c] <= largest and largest == largest:
                largest = logits[c]
        total = ZERO
        for c in range(columns):
            slope[c] = math.exp(logits[c] - largest) if c != target else ZERO
            total += slope[c]
        for c in range(columns):
            slope[c] /= total
        slope[target] = -ONE
        loss[r] = math.log(total) + (largest - own)
        correct[r] = best == target


@inner
def _clipped(x, low, high):
    """x in low … high; a NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x


# A sum that may be reordered, into vectors: always in the same way for the same length.
@inner(fastmath={"reassoc"})
def _length(a):
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(a[c])
    return math.sqrt(total)


@jit
def ascend_rows(x, dx, origin, step, epsilon, euclidean, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`ascend`, with "l2" if ``euclidean``."""
    size, reach = np.float32(step), np.float32(epsilon)
    for r in range(first, last):
        here, slope, centre = row(x, r), row(dx, r), row(origin, r)
        if euclidean:
            length = _length(slope)
            scale = np.float32(step / length if length != 0 else 0.0)
            for c in range(here.size):
                here[c] = here[c] - centre[c] + slope[c] * scale
            length = _length(here)
            shorter = np.float32(epsilon / length if length > epsilon else 1.0)
            for c in range(here.size):
                here[c] = _clipped(centre[c] + here[c] * shorter, ZERO, ONE)
        else:
            for c in range(here.size):
                move = size if slope[c] > ZERO else slope[c]
                move = -size if slope[c] < ZERO else move  # else 0 or NaN
                moved = _clipped(here[c] + move, centre[c] - reach, centre[c] + reach)
                here[c] = _clipped(moved, ZERO, ONE)


@inner
def _uniform(word):
    """-1 ≤ u < 1 from 24 bits."""
    return np.float32(np.int32(word >> UNUSED_BITS)) * UNIT - ONE


@jit
def add_noise_rows(x, images, size, seed, stream, step, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`add_noise`; ``images`` [B] are those that rows hold."""
    size = np.float32(size)
    low, high = np.uint64(step) & MASK, np.uint64(step) >> SHIFT
    seed, stream = np.uint64(seed) & MASK, np.uint64(stream) & MASK
    blocks, rest = divmod(x.shape[1], 4)
    for r in range(first, last):
        numbers, image = row(x, r), np.uint64(images[r]) & MASK
        for block in range(blocks):
            w0, w1, w2, w3 = _philox(np.uint64(block) & MASK, image, low, high, seed, stream)
            c = 4 * block
            numbers[c] += size * _uniform(w0)
            numbers[c + 1] += size * _uniform(w1)
            numbers[c + 2] += size * _uniform(w2)
            numbers[c + 3] += size * _uniform(w3)
        if rest:
            words = _philox(np.uint64(blocks) & MASK, image, low, high, seed, stream)
            for i in range(rest):
                numbers[4 * blocks + i] += size * _uniform(words[i])


# --- for a team of threads ------------------------------------------------------------------------


@Kernel
def _log_odds(thread, threads, barrier, arguments):
    words = ints(arguments, 9)
    rows, columns = words[0], words[1]
    z, dz = matrix(words[2], words[3], rows, columns), matrix(words[4], words[5], rows, columns)
    t, loss, correct = ints32(words[6], rows), floats(words[7], rows), bytes_at(words[8], rows)
    first, last = share(rows, thread, threads)
    log_odds_rows(z, t, loss, correct, dz, first, last)


@Kernel
def _ascend(thread, threads, barrier, arguments):
    words = ints(arguments, 11)
    rows, columns = words[0], words[1]
    x, dx = matrix(words[2], words[3], rows, columns), matrix(words[4], words[5], rows, columns)
    origin = matrix(words[6], words[7], rows, columns)
    first, last = share(rows, thread, threads)
    ascend_rows(x, dx, origin, number(arguments, 8), number(arguments, 9), words[10] != 0, first, last)


@Kernel
def _add_noise(thread, threads, barrier, arguments):
    words = ints(arguments, 9)
    rows, columns = words[0], words[1]
    x, images = matrix(words[2], words[3], rows, columns), ints(words[4], rows)
    first, last = share(rows, thread, threads)
    add_noise_rows(x, images, number(arguments, 5), words[6], words[7], words[8], first, last)


# --- public -------------------------------------------------------------------------------------


def log_odds(z, t, loss, correct, dz, threads=None):
    """The odds against the target, whether its (first) largest logit is the target's, the gradient.

    loss = log Σ_{k≠t} exp(z_k) - z_t = log((1 - p_t) / p_t) and dz = ∂loss/∂z, in the direction of the
    cross-entropy's gradient: see :mod:`.reference`.

    Shapes: z and dz [B, C] with C ≥ 2, whose rows may be apart; t, loss and correct [B].
    Dtypes: t int32, correct uint8, the rest float32.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: loss, correct (0 or 1), dz (which may be z itself).
    Errors: IndexError for a target outside 0 … C - 1, TypeError for another dtype, ValueError for
    shapes that do not fit.
    Cost: one exponential, one division and about five flops an element.
    """
    rows, columns = z.shape
    words = [rows, columns, *matrix_address("z", z, np.float32)]
    words += matrix_address("dz", dz, np.float32, z.shape, written=True)
    words.append(vector_address("t", t, np.int32, rows))
    words.append(vector_address("loss", loss, np.float32, rows, written=True))
    words.append(vector_address("correct", correct, np.uint8, rows, written=True))
    if rows == 0:
        return
    if t.min() < 0 or t.max() >= columns:
        raise IndexError(f"targets must be in 0 … {columns - 1}, got {t.min()} … {t.max()}")
    _log_odds(words, min(thread_count(threads), max(1, z.size // SHARE)))


def ascend(x, dx, origin, step, epsilon, norm, threads=None):
    """One step of x along dx, then back into the ball around ``origin``, then into 0 … 1.

    "linf": x + step·sign(dx), clipped to origin ± ε. "l2": x + step·dx/|dx|, and what is further than ε
    from the origin is brought to ε. Zero and negative steps: :mod:`.reference`.

    Shapes: x, dx and origin [B, I]; their rows may be apart. Dtypes: float32; step and ε > 0 are
    numbers, ``norm`` is "linf" or "l2".
    ``threads``: at most so many; the bits do not depend on it.
    Writes: x, which must be neither of the others.
    Errors: TypeError for another dtype, ValueError for shapes or a norm that do not fit.
    Cost: 6 or 9 flops an element; reads 3·B·I numbers, writes B·I.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    words = [*x.shape, *matrix_address("x", x, np.float32, written=True)]
    words += matrix_address("dx", dx, np.float32, x.shape)
    words += matrix_address("origin", origin, np.float32, x.shape)
    words += [word_of(step), word_of(epsilon), norm == "l2"]
    _ascend(words, min(thread_count(threads), max(1, x.size // SHARE)))


def add_noise(x, order, start, size, key, step, threads=None):
    """x_rc + size·u_rc, with u uniform in -1 ≤ u < 1, a function of key, step, order[start + r] and c.

    Which numbers those are says :func:`.reference.add_noise`: the same on every backend, for any
    number of threads, and whatever the row that an image stands in.

    Shapes: x [B, I], whose rows may be apart, order [N] with start + B ≤ N. Dtypes: x float32, order
    int64 with elements in 0 … 2**32 - 1. ``key`` two integers below 2**32, ``step`` an integer below
    2**64; ``threads``: at most so many.
    Writes: x.
    Errors: TypeError for another dtype, ValueError for numbers outside of these ranges.
    Cost: one Philox block for four elements; two memory accesses an element.
    """
    address = matrix_address("x", x, np.float32, written=True)
    if not all(0 <= word < 2**32 for word in key) or not 0 <= step < 2**64:
        raise ValueError(f"key must be two integers below 2**32, step one below 2**64: got {key}, {step}")
    if not 0 <= start <= len(order) - len(x):
        raise ValueError(f"order has {len(order)} elements, not {len(x)} from {start} on")
    images = vector_address("order", order, np.int64) + 8 * start
    signed = int(step) - 2**64 if step >= 2**63 else int(step)
    words = [*x.shape, *address, images, word_of(size), *map(int, key), signed]
    _add_noise(words, min(thread_count(threads), max(1, x.size // SHARE)))
