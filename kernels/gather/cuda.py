"""Gathering a mini-batch on a GPU: images stay bytes in its memory and become floats on the way."""

import numpy as np
from numba import float32, int64

from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    LONGS,
    Kernel,
    blocks_for,
    cuda,
    flat,
    for_any_array,
    row_distance,
)

THREADS = 256


def _rows(images, pixels, order, start, out, out_row, scale):
    """A block for each row (y) and each THREADS of its pixels (x)."""
    column = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if column < pixels:
        row = cuda.blockIdx.y
        out[row * out_row + column] = float32(images[order[start + row] * pixels + column]) * scale


def _values(values, order, start, out):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < out.size:
        out[i] = values[order[start + i]]


_KERNELS = {
    np.dtype(name): Kernel(
        _rows,
        *(images, int64, LONGS, int64, FLOATS, int64, float32),
        threads=THREADS,
        name=f"gather {name}",
    )
    for name, images in (("uint8", BYTES), ("float32", FLOATS))
}
_VALUES = {
    np.dtype(name): Kernel(
        _values, values, LONGS, int64, values, threads=THREADS, name=f"gather_values {name}"
    )
    for name, values in (("int32", INTS), ("float32", FLOATS))
}


@for_any_array
def gather(images, order, start, out):
    """out[i] = images[order[start + i]], uint8 pixels scaled from 0 … 255 to 0 … 1.

    Shapes: images [N, I], order [N], out [B, I] with start + B ≤ N; images and order contiguous.
    Dtypes: images uint8 or float32 (as they are), order int64, out float32. Writes: out.
    Cost: reads B·I bytes (or floats), writes B·I floats.
    """
    rows, pixels = out.shape
    scale = 1 / 255 if images.dtype == np.uint8 else 1
    blocks = blocks_for(pixels, THREADS), rows
    _KERNELS[images.dtype](
        blocks, flat(images), pixels, flat(order), start, flat(out), row_distance(out), scale
    )


@for_any_array
def gather_values(values, order, start, out):
    """out[i] = values[order[start + i]]: the labels or the weights of a mini-batch.

    Shapes: values [N], order [N], out [B] with start + B ≤ N. Dtypes: values and out both int32 or both
    float32, order int64. Writes: out.
    """
    _VALUES[out.dtype](blocks_for(out.size, THREADS), flat(values), flat(order), start, flat(out))
