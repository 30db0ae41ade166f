"""Gathering a mini-batch on the CPU."""

import numpy as np
from numba import types
from numba.extending import overload

from ..common.compiling import inner, jit
from ..common.memory import (
    bytes_at,
    floats,
    ints,
    ints32,
    matrix,
    matrix_address,
    order_address,
    prefetch,
    row,
    share,
    vector_address,
)
from ..common.team import Kernel, thread_count

# Elements a thread: so many take some 5 µs, less than it takes to wake a thread that sleeps.
SHARE = 32_768

PIXEL, ONE = np.float32(1 / 255), np.float32(1)

LINE = 64  # bytes
AHEAD = 4  # rows: images come in an order that the processor cannot foresee, but ``order`` can


def _image(images, index):
    """One row of a matrix of bytes or floats, whose numbers are next to each other."""


@overload(_image)
def _image_of(images, index):
    if images.dtype == types.uint8:
        return lambda images, index: bytes_at(_address(images, index), images.shape[1])
    return lambda images, index: row(images, index)


@inner
def _address(images, index):
    return images.ctypes.data + index * images.strides[0]


@jit
def gather_rows(images, order, start, out, first, last):
    """Rows ``first`` … ``last`` - 1 of :func:`gather`; ``order`` is not checked."""
    scale = PIXEL if images.itemsize == 1 else ONE  # known when it is compiled: ·1 costs nothing
    for r in range(first, last):
        if r + AHEAD < last:
            ahead = _address(images, order[start + r + AHEAD])
            for offset in range(0, images.shape[1] * images.itemsize, LINE):
                prefetch(ahead + offset)
        source, target = _image(images, order[start + r]), row(out, r)
        for c in range(target.size):
            target[c] = np.float32(source[c]) * scale


@inner
def gather_pixels(images, columns, order, start, out, out_row, first, last):
    """Rows ``first`` … ``last`` - 1 of a batch of bytes, as they are; images and out are addresses, the rows
    of images ``columns`` bytes apart, those of out ``out_row``."""
    for r in range(first, last):
        if r + AHEAD < last:
            ahead = images + order[start + r + AHEAD] * columns
            for offset in range(0, columns, LINE):
                prefetch(ahead + offset)
        source, target = (
            bytes_at(images + order[start + r] * columns, columns),
            bytes_at(out + r * out_row, columns),
        )
        for c in range(columns):
            target[c] = source[c]


@jit
def copy_rows(images, start, out):
    """out[i] = images[start + i], scaled as in :func:`gather`."""
    scale = PIXEL if images.itemsize == 1 else ONE
    for r in range(out.shape[0]):
        source, target = _image(images, start + r), row(out, r)
        for c in range(target.size):
            target[c] = np.float32(source[c]) * scale


@inner
def gather_span(values, order, start, out, first, last):
    """Elements ``first`` … ``last`` - 1 of :func:`gather_values`; ``order`` is not checked."""
    for i in range(first, last):
        out[i] = values[order[start + i]]


@Kernel
def _gather(thread, threads, barrier, arguments):
    words = ints(arguments, 9)
    rows, columns, count, start, pixels = words[0], words[1], words[2], words[3], words[4]
    order, out = ints(words[6], start + rows), matrix(words[7], words[8], rows, columns)
    first, last = share(rows, thread, threads)
    if pixels:
        images = bytes_at(words[5], count * columns).reshape(count, columns)
        gather_rows(images, order, start, out, first, last)
    else:
        images = floats(words[5], count * columns).reshape(count, columns)
        gather_rows(images, order, start, out, first, last)


@Kernel
def _gather_values(thread, threads, barrier, arguments):
    """Four bytes are four bytes: float32 values are copied as int32."""
    words = ints(arguments, 6)
    rows, count, start = words[0], words[1], words[2]
    values, order, out = ints32(words[3], count), ints(words[4], start + rows), ints32(words[5], rows)
    first, last = share(rows, thread, threads)
    gather_span(values, order, start, out, first, last)


def gather(images, order, start, out, threads=None):
    """out[i] = images[order[start + i]], uint8 pixels scaled from 0 … 255 to 0 … 1.

    Shapes: images [N, I] without gaps, order [N], out [B, I], whose rows may be apart, with start + B ≤ N.
    Dtypes: images uint8 (scaled by 1/255) or float32 (as they are), order int64, out float32.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: out.
    Errors: IndexError for an order outside 0 … N - 1, TypeError for another dtype, ValueError for
    shapes that do not fit.
    Cost: one multiplication an element; reads B·I bytes (or floats), writes B·I floats.
    """
    pixels = getattr(images, "dtype", None) == np.uint8
    source, distance = matrix_address("images", images, np.uint8 if pixels else np.float32)
    if distance != images.shape[1]:
        raise ValueError("the rows of images must lie next to each other")
    target = matrix_address("out", out, np.float32, (len(out), images.shape[1]), written=True)
    places = order_address(order, start, len(out), len(images))
    words = [*out.shape, len(images), start, pixels, source, places, *target]
    _gather(words, min(thread_count(threads), max(1, out.size // SHARE)))


def gather_values(values, order, start, out, threads=None):
    """out[i] = values[order[start + i]]: the labels or the weights of a mini-batch.

    Shapes: values [N], order [N], out [B] with start + B ≤ N. Dtypes: values and out alike int32 or
    float32, order int64.
    ``threads``: at most so many.
    Writes: out.
    Errors: IndexError for an order outside 0 … N - 1, TypeError for another dtype, ValueError for
    shapes that do not fit.
    """
    dtype = np.int32 if getattr(values, "dtype", None) == np.int32 else np.float32
    source = vector_address("values", values, dtype)
    target = vector_address("out", out, dtype, written=True)
    places = order_address(order, start, len(out), len(values))
    words = [len(out), len(values), start, source, places, target]
    _gather_values(words, min(thread_count(threads), max(1, len(out) // SHARE)))
