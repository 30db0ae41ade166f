"""Optimizer updates on the CPU: one pass over the flat buffers, each number read and written once.

The numbers that are the same for all elements are rounded to float32 before the loops, and flags
choose the loop, so that LLVM turns each loop into vectors. Elementwise, so any division of the
buffers among threads gives the same bits; the norm is summed in chunks whose order is fixed.
"""

import math
from typing import NamedTuple

import numpy as np

from ..common.compiling import inner
from ..common.memory import (
    doubles,
    float_of,
    floats,
    ints,
    number,
    share,
    vector_address,
    word_of,
)
from ..common.team import Kernel, thread_count, wait_for_all

# Elements a thread: so many take 5 to 10 µs, less than it takes to wake a thread that sleeps.
SHARE = 32_768

CACHE_LINE = 16  # elements: shares end between cache lines, so that no two threads write one
CHUNK = 4096  # elements of a partial sum of the norm, whatever the number of threads

ONE = np.float32(1)
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits of a float32 but its sign


# --- pieces -------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """What is the same for all elements of an update, rounded to float32: of both optimizers, so that
    code that takes either is compiled once."""

    l2: np.float32  # without weight decay 0, and shrink 1: these change no finite number
    shrink: np.float32
    rate: np.float32  # Adam's with the correction of the mean in it
    momentum: np.float32
    nesterov: bool
    beta1: np.float32
    new1: np.float32  # 1 - beta1
    beta2: np.float32
    new2: np.float32
    correction: np.float32  # of the root of the mean square
    epsilon: np.float32


@inner
def sgd_numbers(lr, momentum, decay, nesterov, decoupled):
    """The numbers of an update by :func:`sgd`."""
    none = np.float32(0)
    l2 = np.float32(0 if decoupled else decay)
    shrink = np.float32(1 - lr * decay if decoupled else 1)
    rate, momentum = np.float32(lr), np.float32(momentum)
    return Numbers(l2, shrink, rate, momentum, nesterov, none, none, none, none, none, none)


@inner
def adam_numbers(t, lr, beta1, beta2, epsilon, decay, decoupled):
    """The numbers of update ``t`` by :func:`adam`."""
    return Numbers(
        np.float32(0 if decoupled else decay),
        np.float32(1 - lr * decay if decoupled else 1),
        np.float32(lr / (1 - beta1 ** float(t))),
        np.float32(0),
        False,
        np.float32(beta1),
        np.float32(1 - beta1),
        np.float32(beta2),
        np.float32(1 - beta2),
        np.float32((1 - beta2 ** float(t)) ** -0.5),
        np.float32(epsilon),
    )


@inner
def sgd_span(p, g, v, numbers):
    """:func:`sgd` on vectors; v has no elements where there is no momentum."""
    l2, shrink, rate, momentum = numbers.l2, numbers.shrink, numbers.rate, numbers.momentum
    if v.size == 0:
        for i in range(p.size):
            p[i] = p[i] * shrink - rate * (g[i] + l2 * p[i])
    elif numbers.nesterov:
        for i in range(p.size):
            slope = g[i] + l2 * p[i]
            velocity = momentum * v[i] + slope
            v[i] = velocity
            p[i] = p[i] * shrink - rate * (slope + momentum * velocity)
    else:
        for i in range(p.size):
            velocity = momentum * v[i] + (g[i] + l2 * p[i])
            v[i] = velocity
            p[i] = p[i] * shrink - rate * velocity


@inner
def adam_span(p, g, m, v, numbers):
    """:func:`adam` on vectors."""
    l2, shrink, rate, epsilon = numbers.l2, numbers.shrink, numbers.rate, numbers.epsilon
    beta1, new1, beta2, new2 = numbers.beta1, numbers.new1, numbers.beta2, numbers.new2
    correction = numbers.correction
    for i in range(p.size):
        slope = g[i] + l2 * p[i]
        mean = beta1 * m[i] + new1 * slope
        square = beta2 * v[i] + new2 * slope * slope
        m[i], v[i] = mean, square
        p[i] = p[i] * shrink - rate * mean / (math.sqrt(square) * correction + epsilon)


@inner
def largest_of(g):
    """The largest |g|, NaN where there is one.

    Without their sign, the bits of float32 numbers are ordered as integers like the numbers, NaN
    above infinity, and the largest integer LLVM finds in vectors.
    """
    bits, largest = g.view(np.int32), np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & MAGNITUDE)
    return float_of(largest)


# The one sum that may be reordered, into vectors: always in the same way for the same length.
@inner(fastmath={"reassoc"})
def sum_of_squares(g, largest):
    """Σ (g / largest)² for one chunk, in float64, where no square of a float32 overflows or vanishes."""
    total, scale = 0.0, 1 / np.float64(largest)
    for i in range(g.size):
        total += np.float64(g[i]) * np.float64(g[i])
    return total * scale * scale


@inner
def clip_factor(sums, largest, limit):
    """What to multiply a gradient with, from its chunks' sums of squares relative to ``largest``."""
    total = 0.0
    for i in range(sums.size):
        total += sums[i]
    norm = largest * math.sqrt(total)
    return 1.0 if norm <= limit else limit / norm  # NaN is not ≤ limit


@inner
def scale_span(g, factor):
    """g ← g · factor; in float64, as the factor of a huge gradient is none that float32 has."""
    factor = np.float64(factor)
    for i in range(g.size):
        g[i] = np.float32(np.float64(g[i]) * factor)


@inner
def clip_norm_share(g, largest, sums, limit, thread, threads, barrier):
    """One thread's part of :func:`clip_norm`; all threads of a kernel must call it.

    ``largest`` (float32) and ``sums`` (float64) have room for each CHUNK elements of g.
    """
    first, last = share(sums.size, thread, threads)
    for chunk in range(first, last):
        largest[chunk] = largest_of(g[chunk * CHUNK : min((chunk + 1) * CHUNK, g.size)])
    wait_for_all(barrier, threads)
    most = np.float64(largest_of(largest))
    most = limit if most <= limit else most
    for chunk in range(first, last):
        sums[chunk] = sum_of_squares(g[chunk * CHUNK : min((chunk + 1) * CHUNK, g.size)], most)
    wait_for_all(barrier, threads)
    factor = clip_factor(sums, most, limit)
    if factor != 1:
        scale_span(g[first * CHUNK : min(last * CHUNK, g.size)], factor)


# --- for a team of threads ------------------------------------------------------------------------


@inner
def _span(count, thread, threads):
    """A thread's share of a vector, cut between cache lines."""
    first, last = share(-(-count // CACHE_LINE), thread, threads)
    return first * CACHE_LINE, min(last * CACHE_LINE, count)


@Kernel
def _sgd(thread, threads, barrier, arguments):
    words = ints(arguments, 9)
    first, last = _span(words[0], thread, threads)
    p, g = floats(words[1] + 4 * first, last - first), floats(words[2] + 4 * first, last - first)
    v = floats(words[3] + 4 * first, last - first if words[3] else 0)
    lr, momentum, decay = number(arguments, 4), number(arguments, 5), number(arguments, 6)
    sgd_span(p, g, v, sgd_numbers(lr, momentum, decay, words[7] != 0, words[8] != 0))


@Kernel
def _adam(thread, threads, barrier, arguments):
    words = ints(arguments, 12)
    first, last = _span(words[0], thread, threads)
    p, g = floats(words[1] + 4 * first, last - first), floats(words[2] + 4 * first, last - first)
    m, v = floats(words[3] + 4 * first, last - first), floats(words[4] + 4 * first, last - first)
    lr, beta1, beta2 = number(arguments, 6), number(arguments, 7), number(arguments, 8)
    epsilon, decay = number(arguments, 9), number(arguments, 10)
    adam_span(p, g, m, v, adam_numbers(words[5], lr, beta1, beta2, epsilon, decay, words[11] != 0))


@Kernel
def _clip_norm(thread, threads, barrier, arguments):
    words = ints(arguments, 5)
    g, chunks = floats(words[0], words[1]), -(-words[1] // CHUNK)
    largest, sums = floats(words[2], chunks), doubles(words[3], chunks)
    clip_norm_share(g, largest, sums, number(arguments, 4), thread, threads, barrier)


# --- public -------------------------------------------------------------------------------------


def sgd(p, g, v, lr, momentum, decay, nesterov, decoupled, threads=None):
    """Gradient descent: v ← momentum · v + g; p ← p - lr · v (Nesterov: g + momentum · v).

    Weight decay as in :mod:`.reference`: g + decay · p instead of g, or decoupled.

    Shapes: p, g, v [P]; v may be None, then momentum is not used. Dtypes: float32; the rest are
    numbers and flags.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: p, v.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: reads 3·P numbers, writes 2·P (without momentum 2·P and P).
    Source: Sutskever, Martens, Dahl, Hinton, ICML 2013, in the form that evaluates the gradient
    at the current parameters.
    """
    words = _addresses(p, g, {} if v is None else {"v": v})
    words += [0] if v is None else []  # an address that no array has
    words += [*map(word_of, (lr, momentum, decay)), bool(nesterov), bool(decoupled)]
    _sgd(words, min(thread_count(threads), max(1, len(p) // SHARE)))


def adam(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled, threads=None):
    """Adam: p ← p - lr · m̂ / (√v̂ + epsilon), with m̂ = m / (1 - beta1ᵗ), v̂ = v / (1 - beta2ᵗ).

    m ← beta1 · m + (1 - beta1) · g and v ← beta2 · v + (1 - beta2) · g²; t counts from 1. Weight
    decay as in :mod:`.reference`: g + decay · p instead of g, or decoupled (AdamW).

    Shapes: p, g, m, v [P]. Dtypes: float32; the rest are numbers and a flag.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: p, m, v.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: reads 4·P numbers, writes 3·P; one square root and one division each.
    Source: Kingma, Ba, ICLR 2015, algorithm 1.
    """
    words = _addresses(p, g, {"m": m, "v": v})
    words += [int(t), *map(word_of, (lr, beta1, beta2, epsilon, decay)), bool(decoupled)]
    _adam(words, min(thread_count(threads), max(1, len(p) // SHARE)))


def clip_norm(g, limit, threads=None):
    """g ← g · min(1, limit / |g|): the whole gradient is shortened to the length ``limit``.

    Shapes: g [P]. Dtypes: float32; limit is a number > 0.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: g. A gradient that is not finite becomes NaN, so that the loss shows it.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit.
    Cost: 4·P flops to measure, P to shorten; reads 3·P numbers, writes P.
    Source: Pascanu, Mikolov, Bengio, ICML 2013.
    """
    address = vector_address("g", g, np.float32, written=True)
    chunks = -(-len(g) // CHUNK)
    largest, sums = np.empty(chunks, np.float32), np.empty(chunks, np.float64)
    words = [address, len(g), largest.ctypes.data, sums.ctypes.data, word_of(limit)]
    _clip_norm(words, min(thread_count(threads), max(1, len(g) // SHARE)))


def _addresses(p, g, state):
    """The length of p and the addresses of p, g and the vectors of the optimizer's state."""
    address = vector_address("p", p, np.float32, written=True)
    words = [len(p), address, vector_address("g", g, np.float32, len(p))]
    for name, vector in state.items():
        words.append(vector_address(name, vector, np.float32, len(p), written=True))
    return words
