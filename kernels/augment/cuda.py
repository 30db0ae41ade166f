"""Random deformations of images on a GPU: the definition of :mod:`.reference`, a block for each image.

A block first draws the knots of its image and spreads them over the rows, in shared memory; then each thread
looks up where its pixels come from.
"""

import numpy as np
from numba import float32, int32, int64, types, uint64

from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    LONGS,
    Kernel,
    cuda,
    device,
    flat,
    for_any_array,
    row_distance,
)
from ..common.philox import MASK, SHIFT, philox4x32
from .reference import (
    ACROSS_SHIFT,
    ARRAYS,
    COSINE,
    DOWN_SHIFT,
    ERASE_BLOCK,
    FAINTNESS,
    FIELD_BLOCK,
    LEVEL_BITS,
    LEVELS,
    NOISE,
    NOISE_BLOCK,
    ONE,
    PAPER,
    SHEAR,
    SHIFT_BY,
    SIDE,
    SINE,
    STRETCH,
    THICKNESS,
)

THREADS = 128
RESIDENT = 6  # blocks; more would leave a thread too few registers
MOST_KNOTS, MOST_LINES = 1024, 2048  # of both fields, and of these for all rows
BITS = np.uint64(LEVEL_BITS)

_philox = device(philox4x32)


@device
def _looked_up(tables, row, word):
    return int64(tables[row * LEVELS + int64(word >> BITS)])


@device
def prepare(image, step, key, deformation, knots, lines):
    """What is the same for all pixels of an image: (xx, xy, yx, yy, x, y, strength, noise, side, left,
    top, ink).

    Afterwards ``lines`` of shared memory hold its knots, spread over the rows. For all threads of a block.
    """
    height, width, tables, down, knots_down, _, knots_across, _, _, erasing = deformation
    low, high = step & MASK, step >> SHIFT
    seed, stream = key
    count, thread = knots_down * knots_across, cuda.threadIdx.x
    for block in range(thread, (2 * count + 15) // 16, THREADS):
        words = _philox(uint64(FIELD_BLOCK + block), image, low, high, seed, stream)
        for i in range(16):
            if 16 * block + i < 2 * count:
                word = words[0] if i < 4 else words[1] if i < 8 else words[2] if i < 12 else words[3]
                knots[16 * block + i] = 2 * int32(word >> uint64(8 * (i % 4)) & uint64(255)) - 255
    cuda.syncthreads()
    for item in range(thread, 2 * height * knots_across, THREADS):
        line, column = item // knots_across, item % knots_across
        field, y = line % 2, line // 2
        total = int32(0)
        for k in range(knots_down):
            knot = knots[(field * knots_down + k) * knots_across + column]
            total = int32(total + int32(down[y * knots_down + k] * knot))
        lines[item] = total >> DOWN_SHIFT
    cuda.syncthreads()
    w0, w1, w2, w3 = _philox(uint64(0), image, low, high, seed, stream)
    w4, w5, w6, w7 = _philox(uint64(1), image, low, high, seed, stream)
    cos, sin = _looked_up(tables, COSINE, w0), _looked_up(tables, SINE, w0)
    wide, tall = _looked_up(tables, STRETCH, w1), _looked_up(tables, STRETCH, w2)
    lean = (_looked_up(tables, SHEAR, w3) * tall) >> 16
    side, left, top, ink = int64(0), int64(0), int64(0), int64(ONE)
    if erasing:
        w8, w9, w10, w11 = _philox(uint64(ERASE_BLOCK), image, low, high, seed, stream)
        side, ink = _looked_up(tables, SIDE, w8), _looked_up(tables, FAINTNESS, w11)
        left = ((width + 1 - side) * int64(w9)) >> 32
        top = ((height + 1 - side) * int64(w10)) >> 32
    return (
        (cos * wide) >> 16,
        (cos * lean - sin * tall) >> 16,
        (sin * wide) >> 16,
        (sin * lean + cos * tall) >> 16,
        (width - 1) * (ONE // 2) + _looked_up(tables, SHIFT_BY, w4),
        (height - 1) * (ONE // 2) + _looked_up(tables, SHIFT_BY, w5),
        _looked_up(tables, THICKNESS, w6),
        _looked_up(tables, NOISE, w7),
        *(side, left, top, ink),
    )


@device
def _ink(images, first, height, width, x, y):
    """A pixel of an image, 0 outside."""
    if x < 0 or y < 0 or x >= width or y >= height:
        return int64(0)
    return int64(images[first + y * width + x])


@device
def _thickened(images, first, height, width, x, y, strength):
    """The same with thicker or thinner strokes, outside none."""
    value = _ink(images, first, height, width, x, y)
    if strength == 0 or x < 0 or y < 0 or x >= width or y >= height:
        return value
    left = _ink(images, first, height, width, x - 1, y)
    right = _ink(images, first, height, width, x + 1, y)
    above = _ink(images, first, height, width, x, y - 1)
    below = _ink(images, first, height, width, x, y + 1)
    if strength < 0:
        change = value - min(min(min(left, right), min(above, below)), value)
    else:
        change = max(max(max(left, right), max(above, below)), value) - value
    return value + ((change * strength + 128) >> 8)


@device
def pixel(images, first, x, y, prepared, image, step, key, deformation, lines):
    """A pixel (x, y) of a deformed image, 0 … 255; ``first``: where the image begins in ``images``."""
    height, width, _, _, _, across, knots_across, thick, noisy, erasing = deformation
    xx, xy, yx, yy, from_x, from_y, strength, noise, side, left, top, ink = prepared
    u, v = 2 * x - (width - 1), 2 * y - (height - 1)
    from_x += (xx * u + xy * v) >> 1
    from_y += (yx * u + yy * v) >> 1
    by_x, by_y = int32(0), int32(0)
    for k in range(knots_across):
        factor = across[x * knots_across + k]
        by_x = int32(by_x + int32(lines[2 * y * knots_across + k] * factor))
        by_y = int32(by_y + int32(lines[(2 * y + 1) * knots_across + k] * factor))
    from_x = min(max(from_x + (by_x >> ACROSS_SHIFT), -ONE), width * ONE)
    from_y = min(max(from_y + (by_y >> ACROSS_SHIFT), -ONE), height * ONE)
    column, row, right, below = from_x >> 16, from_y >> 16, (from_x >> 8) & 255, (from_y >> 8) & 255
    if not thick:
        strength = int64(0)
    p0 = _thickened(images, first, height, width, column, row, strength)
    p1 = _thickened(images, first, height, width, column + 1, row, strength)
    p2 = _thickened(images, first, height, width, column, row + 1, strength)
    p3 = _thickened(images, first, height, width, column + 1, row + 1, strength)
    upper, lower = p0 * (256 - right) + p1 * right, p2 * (256 - right) + p3 * right
    value = (upper * (256 - below) + lower * below + ONE // 2) >> 16
    if value < PAPER:
        value = int64(0)
    if erasing:
        value = (value * ink + ONE // 2) >> 16
        if left <= x < left + side and top <= y < top + side:
            value = int64(0)
    if noisy:
        place = y * width + x
        seed, stream = key
        block = uint64(NOISE_BLOCK + place // 16)
        words = _philox(block, image, step & MASK, step >> SHIFT, seed, stream)
        i = place % 16
        word = words[0] if i < 4 else words[1] if i < 8 else words[2] if i < 12 else words[3]
        random = int64(word >> uint64(8 * (i % 4)) & uint64(255))
        value = min(max(value + (((2 * random - 255) * noise) >> 8), int64(0)), int64(255))
    return value


def _augment(images, order, start, step, seed, stream, deformation, out, out_row, scale):
    knots = cuda.shared.array(MOST_KNOTS, int32)
    lines = cuda.shared.array(MOST_LINES, int32)
    height, width = deformation[:2]
    key, row = (seed, stream), cuda.blockIdx.x
    place = order[start + row]
    image, first = uint64(place) & MASK, place * height * width
    prepared = prepare(image, step, key, deformation, knots, lines)
    for at in range(cuda.threadIdx.x, height * width, THREADS):
        x, y = at % width, at // width
        value = pixel(images, first, x, y, prepared, image, step, key, deformation, lines)
        out[row * out_row + at] = float32(value) * scale


def _augment_steps(images, order, start, batch, update, seed, stream, deformation, out):
    knots = cuda.shared.array(MOST_KNOTS, int32)
    lines = cuda.shared.array(MOST_LINES, int32)
    height, width = deformation[:2]
    key, step = (seed, stream), update + uint64(cuda.blockIdx.x // batch)
    place = order[start + cuda.blockIdx.x]
    image, first = uint64(place) & MASK, place * height * width
    prepared = prepare(image, step, key, deformation, knots, lines)
    for at in range(cuda.threadIdx.x, height * width, THREADS):
        x, y = at % width, at // width
        out[first + at] = pixel(images, first, x, y, prepared, image, step, key, deformation, lines)


# What kernels are given of a deformation, in the order of :func:`arguments_of`.
DEFORMATION = types.Tuple((int64, int64, INTS, INTS, int64, INTS, int64, int64, int64, int64))

_kernel = Kernel(
    _augment,
    *(BYTES, LONGS, int64, uint64, uint64, uint64, DEFORMATION, FLOATS, int64, float32),
    threads=THREADS,
    resident=RESIDENT,
    name="augment",
)
_steps = Kernel(
    _augment_steps,
    *(BYTES, LONGS, int64, int64, uint64, uint64, uint64, DEFORMATION, BYTES),
    threads=THREADS,
    resident=RESIDENT,
    name="augment, steps",
)


def arguments_of(deformation):
    """What kernels are given of a :class:`.reference.Deformation` whose arrays are on the GPU.

    Errors: ValueError for more knots than shared memory has room for.
    """
    height, width = deformation.height, deformation.width
    knots_down, knots_across = deformation.down.shape[1], deformation.across.shape[1]
    knots, lines = 2 * knots_down * knots_across, 2 * height * knots_across
    if knots > MOST_KNOTS or lines > MOST_LINES:
        raise ValueError(
            f"{knots} knots on {height} × {width} pixels are too many for a GPU: choose more smoothness"
        )
    tables, down, across = (flat(getattr(deformation, name).reshape(-1)) for name in ARRAYS)
    return (
        *(height, width, tables, down, knots_down, across, knots_across),
        *(int(deformation.thick), int(deformation.noise), int(deformation.erase)),
    )


@for_any_array
def augment(images, order, start, deformation, key, step, out):
    """out[i] = images[order[start + i]], deformed at random and scaled from 0 … 255 to 0 … 1.

    Shapes: images [N, H·W], order [N], out [B, H·W] with start + B ≤ N; images and order contiguous.
    Dtypes: images uint8, order int64, out float32. ``deformation``: a :class:`.reference.Deformation` for
    H × W, its arrays on the GPU. ``key``: two integers below 2**32; ``step``: an integer below 2**64.
    Writes: out, to the last bit as :func:`.reference.augment` does.
    Errors: ValueError for displacements that need more knots than shared memory holds.
    Cost: reads B·I bytes, writes B·I floats; some 60 operations on whole numbers a pixel, and 4 for each
    knot of a row.
    """
    _kernel(
        len(out),
        *(flat(images), flat(order), start, step, *key, arguments_of(deformation)),
        *(flat(out), row_distance(out), 1 / 255),
    )


def augment_steps(images, order, start, stop, batch, deformation, key, step, out):
    """out[order[i]] = images[order[i]] for i = start … stop - 1, deformed as in the ``batch`` images of each
    step from ``step`` on, of which the first begins at ``start``.

    Shapes: images and out [N, H·W], order [N], contiguous; the rest as :func:`augment`.
    Dtypes: images and out uint8, order int64. Writes: those rows of out. Cost: as :func:`augment`.
    """
    how = *key, arguments_of(deformation), flat(out)
    _steps(stop - start, flat(images), flat(order), start, batch, step, *how)
