"""Inverted dropout on the CPU: the definition of :mod:`.reference`, its Philox in vectors."""

import numpy as np

from ..common.compiling import inner, jit
from ..common.memory import ints, matrix, matrix_address, number, row, share, word_of
from ..common.philox import MASK, SHIFT, philox4x32
from ..common.team import Kernel, thread_count
from .reference import keep_threshold

# Elements a thread: so many take some 15 µs, less than it takes to wake a thread that sleeps.
SHARE = 32_768

EIGHT = 8  # random numbers of 64 bits that AVX-512 makes at a time

ZERO = np.float32(0)

# LLVM holds the ten rounds for too long to inline, and what it calls it does not turn into vectors.
_philox = inner(philox4x32, forceinline=True)


@jit
def dropout_rows(y, threshold, scale, seed, layer, step, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`dropout`.

    ``threshold`` is :func:`~.reference.keep_threshold` of p, ``scale`` is 1 / (1 - p), (``seed``,
    ``layer``) the key.
    """
    threshold, scale = np.uint64(threshold), np.float32(scale)
    # The masks tell LLVM that the upper halves are zero: it can then multiply with vpmuludq.
    low, high = np.uint64(step) & MASK, np.uint64(step) >> SHIFT
    seed, layer = np.uint64(seed) & MASK, np.uint64(layer) & MASK
    blocks, rest = divmod(y.shape[1], 4)
    for r in range(first, last):
        numbers = row(y, r)
        line = np.uint64(r) & MASK
        for block in range(blocks):
            w0, w1, w2, w3 = _philox(np.uint64(block) & MASK, line, low, high, seed, layer)
            c = 4 * block
            # Loaded whether kept or not: a condition on a load would make it a slow gather.
            y0, y1 = numbers[c] * scale, numbers[c + 1] * scale
            y2, y3 = numbers[c + 2] * scale, numbers[c + 3] * scale
            numbers[c] = y0 if w0 >= threshold else ZERO
            numbers[c + 1] = y1 if w1 >= threshold else ZERO
            numbers[c + 2] = y2 if w2 >= threshold else ZERO
            numbers[c + 3] = y3 if w3 >= threshold else ZERO
        if rest:
            words = _philox(np.uint64(blocks) & MASK, line, low, high, seed, layer)
            _drop_rest(numbers, 4 * blocks, words, threshold, scale)


@inner
def _drop_rest(numbers, start, words, threshold, scale):
    """What of a row is behind its last four."""
    for c in range(start, numbers.size):
        numbers[c] = numbers[c] * scale if words[c - start] >= threshold else ZERO


@jit
def dropout_sparse_rows(y, threshold, scale, seed, layer, step, first, last):
    """:func:`dropout_rows`, bit for bit, for rows that are zero for the most part, as of pictures.

    Four zeros stay what they are, so no random numbers are made for them: those that others need are
    made together, EIGHT blocks at a time.
    """
    threshold, scale = np.uint32(threshold), np.float32(scale)
    low, high = np.uint64(step) & MASK, np.uint64(step) >> SHIFT
    seed, layer = np.uint64(seed) & MASK, np.uint64(layer) & MASK
    blocks = y.shape[1] // 4
    rest, room = y.shape[1] - 4 * blocks, -(-blocks // EIGHT) * EIGHT
    ink, listed = np.empty(blocks, np.int32), np.zeros(room, np.int32)
    words = np.empty((4, room), np.uint32)
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    for r in range(first, last):
        numbers = row(y, r)
        bits, line = numbers.view(np.int32), np.uint64(r) & MASK
        for block in range(blocks):
            c = 4 * block
            ink[block] = bits[c] | bits[c + 1] | bits[c + 2] | bits[c + 3]
        count = 0
        for block in range(blocks):  # without a branch, which could not be foreseen
            listed[count] = block
            count += ink[block] != 0
        for i in range(-(-count // EIGHT) * EIGHT):
            block = np.uint64(listed[i]) & MASK
            w0[i], w1[i], w2[i], w3[i] = _philox(block, line, low, high, seed, layer)
        for i in range(count):
            c = 4 * listed[i]
            y0, y1 = numbers[c] * scale, numbers[c + 1] * scale
            y2, y3 = numbers[c + 2] * scale, numbers[c + 3] * scale
            numbers[c] = y0 if w0[i] >= threshold else ZERO
            numbers[c + 1] = y1 if w1[i] >= threshold else ZERO
            numbers[c + 2] = y2 if w2[i] >= threshold else ZERO
            numbers[c + 3] = y3 if w3[i] >= threshold else ZERO
        if rest:
            of_rest = _philox(np.uint64(blocks) & MASK, line, low, high, seed, layer)
            _drop_rest(numbers, 4 * blocks, of_rest, np.uint64(threshold), scale)


@Kernel
def _dropout(thread, threads, barrier, arguments):
    words = ints(arguments, 9)
    rows, columns, threshold, seed, layer, step = words[0], words[1], words[4], words[5], words[6], words[7]
    first, last = share(rows, thread, threads)
    y = matrix(words[2], words[3], rows, columns)
    dropout_rows(y, threshold, number(arguments, 8), seed, layer, step, first, last)


def dropout(y, p, key, step, threads=None):
    """y = y / (1 - p) where kept, 0 where dropped; each element is dropped with probability p.

    Which elements those are says :func:`.reference.dropout`: the same on every backend, for any
    number of threads.

    Shapes: y [B, O]; its rows may be apart. Dtypes: float32.
    ``p`` is in 0 ≤ p < 1; ``key`` two integers below 2**32; ``step`` an integer below 2**64;
    ``threads``: at most so many.
    Writes: y, in place.
    Errors: TypeError for another dtype, ValueError for numbers outside of these ranges.
    Cost: one Philox block for four elements, some 0.5 ns an element with AVX-512; two memory accesses.
    """
    address = matrix_address("y", y, np.float32, written=True)
    if not 0 <= p < 1:
        raise ValueError(f"p must be in 0 ≤ p < 1, got {p}")
    if not all(0 <= word < 2**32 for word in key) or not 0 <= step < 2**64:
        raise ValueError(f"key must be two integers below 2**32, step one below 2**64: got {key}, {step}")
    seed, layer = map(int, key)
    signed = int(step) - 2**64 if step >= 2**63 else int(step)
    words = [*y.shape, *address, keep_threshold(p), seed, layer, signed, word_of(1 / (1 - p))]
    _dropout(words, min(thread_count(threads), max(1, y.size // SHARE)))
