"""Random deformations of images, written once for any array module ``xp`` (NumPy, CuPy).

Every pixel of the result looks up where it comes from: an affine map of the whole image (Simard, Steinkraus,
Platt, "Best practices for convolutional neural networks", ICDAR 2003; Cireşan, Meier, Gambardella,
Schmidhuber, Neural Computation 22 (2010)) plus a displacement of its own, which is random noise made smooth
by a Gaussian (Simard's elastic deformation), and takes a bilinear mean of the four pixels there. Strokes are
made thicker or thinner before, by a share of what a dilation or erosion by one pixel would do.

All of it is arithmetic on whole numbers, positions in 1/65536 of a pixel, so that each backend makes the
same images to the last bit. The functions of an angle are looked up in tables that the host has made.
"""

from typing import NamedTuple

import numpy as np

from ..common.philox import MASK, philox4x32

ONE = 1 << 16  # positions and factors: this is 1
# The second word of the key where networks deform images; dropout has the numbers of layers there.
KEY = 2**32 - 2

PAPER = 16  # grey levels; what is fainter becomes paper, which kernels skip: means of pixels blur the edges

LEVELS = 1024  # so many angles, factors and shifts there are, evenly spaced

# The rows of the tables, int32: functions of an angle, of a stretch, of a shear, a shift, a thickness, noise,
# of the side of a square, of faintness.
COSINE, SINE, STRETCH, SHEAR, SHIFT_BY, THICKNESS, NOISE, SIDE, FAINTNESS, TABLES = range(10)

# The random words of an image, by blocks of four: two for the tables, one more for what is erased and faint,
# then bytes for the displacements and, far behind, bytes for the noise.
LEVEL_BITS = 22  # a word shifted down by so many is a level
ERASE_BLOCK, FIELD_BLOCK, NOISE_BLOCK = 2, 3, 1 << 16

# Fixed point of displacements: knots · DOWN, shifted, · ACROSS, shifted, is a position.
DOWN_ONE, DOWN_SHIFT, ACROSS_SHIFT = 256, 6, 8
KNOT_MEAN_SQUARE = (4**8 - 1) / 3  # of 2·byte - 255, a byte being any of 0 … 255


ARRAYS = ("tables", "down", "across")


class Deformation(NamedTuple):
    """How strongly images of one size are deformed, as kernels need it; :func:`deformation` makes it.

    ``down`` [H, K] and ``across`` [W, L] spread K·L random knots over the image; both are empty where
    nothing is bent.
    """

    height: int
    width: int
    tables: np.ndarray  # int32 [TABLES, LEVELS]
    down: np.ndarray  # int32 [H, K]
    across: np.ndarray  # int32 [W, L]
    thick: bool  # whether strokes change at all
    noise: bool  # whether there is any
    erase: bool  # whether squares are, or ink is faint


def _spread(length, smoothness):
    """[length, knots]: Gaussians around knots that are at most 1.65 ``smoothness`` apart.

    Smoothing by a Gaussian leaves nothing that finer knots could add: with these, the mean square of the
    displacement differs by 5 % between places.
    """
    first, last = -1.5 * smoothness, length - 1 + 1.5 * smoothness
    knots = np.linspace(first, last, int(np.ceil((last - first) / (1.65 * smoothness))) + 1)
    return np.exp(-0.5 * ((np.arange(length)[:, None] - knots) / smoothness) ** 2)


def deformation(
    height,
    width,
    *,
    rotation=0,
    scale=0,
    shear=0,
    shift=0,
    elastic=0,
    smoothness=4,
    thickness=0,
    noise=0,
    erase=0,
    faint=0,
):
    """The :class:`Deformation` for images of ``height`` × ``width`` pixels.

    ``rotation`` in degrees, ``scale`` and ``shear`` as shares, ``shift`` in pixels, ``thickness`` in pixels
    (at most 1), ``noise`` in grey levels: the largest values, each drawn evenly, in both directions where
    there are two; scale and shift for both axes apart. Noise is drawn for each pixel, up to what is drawn for
    the image. ``erase`` in pixels: the side of a square that is made paper, somewhere in the image, at most
    its shorter side. ``faint``, a share: how much of its grey level ink loses.
    ``elastic``: the root mean square, along each axis, of displacements in pixels, and ``smoothness`` the
    standard deviation of the Gaussian in pixels. (Simard's α = 34 with σ = 4 is elastic 1.4, smoothness 4.)
    """
    level = np.linspace(-1, 1, LEVELS)
    angle = np.radians(rotation) * level
    rows = [np.cos(angle), np.sin(angle), 1 / (1 + scale * level), shear * level, shift * level]
    up = (1 + level) / 2
    side = min(erase, height, width)
    rows += [thickness * level / 256, noise * up / ONE, side * up / ONE]  # these in other units: 1/256, 1, 1
    rows += [1 - faint * up]
    tables = np.round(ONE * np.stack(rows)).astype(np.int32)
    down, across = np.zeros((height, 0), np.int32), np.zeros((width, 0), np.int32)
    if elastic:
        down, across = _spread(height, smoothness), _spread(width, smoothness)
        # Displacements are Σ knot·down·across: their mean square, over the image.
        share = (down**2).sum(axis=1).mean() * (across**2).sum(axis=1).mean()
        unit = DOWN_ONE / down.max() / 2**DOWN_SHIFT
        across *= elastic * ONE * 2**ACROSS_SHIFT / (unit * np.sqrt(share * KNOT_MEAN_SQUARE))
        down, across = (np.round(a).astype(np.int32) for a in (down * DOWN_ONE / down.max(), across))
    some = thickness != 0, noise != 0, erase != 0 or faint != 0
    return Deformation(height, width, tables, down, across, *some)


def _bytes(xp, count, first_block, image, step, key):
    """``count`` random bytes [B, count] of each image, as int32."""
    blocks = xp.arange(-(-count // 16), dtype=xp.uint64)[None, :] + xp.uint64(first_block)
    words = xp.stack(philox4x32(blocks, image[:, None], *step, *key), axis=2)  # [B, blocks, 4]
    shifts = xp.asarray([0, 8, 16, 24], dtype=xp.uint64)
    found = (words[..., None] >> shifts) & xp.uint64(255)
    return found.reshape(len(image), -1)[:, :count].astype(xp.int32)


def _thickened(xp, images, strength):
    """``images`` int32 [B, H+2, W+2] with a frame of zeros, strength [B, 1, 1] in 1/256 pixel."""
    middle = images[:, 1:-1, 1:-1]
    around = [images[:, :-2, 1:-1], images[:, 2:, 1:-1], images[:, 1:-1, :-2], images[:, 1:-1, 2:], middle]
    largest, smallest = around[0], around[0]
    for other in around[1:]:
        largest, smallest = xp.maximum(largest, other), xp.minimum(smallest, other)
    change = xp.where(strength < 0, middle - smallest, largest - middle)
    result = images.copy()
    result[:, 1:-1, 1:-1] = middle + ((change * strength + 128) >> 8)
    return result


def _erased(xp, result, tables, words):
    """``result`` int32 [B, H, W] with a square of paper and fainter ink; words [4, B, 1, 1]."""
    height, width = result.shape[1:]
    level = [(word >> xp.uint64(LEVEL_BITS)).astype(xp.int64) for word in words]
    side, ink = tables[SIDE][level[0]].astype(xp.int64), tables[FAINTNESS][level[3]]
    left, top = (
        ((length + 1 - side) * word.astype(xp.int64)) >> 32
        for length, word in ((width, words[1]), (height, words[2]))
    )
    x, y = xp.arange(width)[None, None, :], xp.arange(height)[None, :, None]
    inside = (x >= left) & (x < left + side) & (y >= top) & (y < top + side)
    return xp.where(inside, 0, (result * ink + ONE // 2) >> 16)


def deformed(xp, images, places, deformation, key, step):
    """The images at ``places``, deformed: uint8 [B, H·W].

    Shapes: images [N, H·W], places [B]. Dtypes: images uint8, places int64.
    Image i looks at Philox4x32-10 with the counters (block, i, step's low word, step's high word) under the
    key: the same image at the same step is deformed alike, in whatever batch it is.
    """
    height, width, batch = deformation.height, deformation.width, len(places)
    key = [xp.uint64(word) for word in key]
    step = xp.uint64(step & 0xFFFFFFFF), xp.uint64(step >> 32)
    image = places.astype(xp.uint64) & MASK
    tables = xp.asarray(deformation.tables)
    words = [
        (word >> xp.uint64(LEVEL_BITS)).astype(xp.int64)[:, None, None]
        for block in range(ERASE_BLOCK)
        for word in philox4x32(xp.full(batch, block, xp.uint64), image, *step, *key)
    ]

    cos, sin = tables[COSINE][words[0]].astype(xp.int64), tables[SINE][words[0]].astype(xp.int64)
    wide, high = tables[STRETCH][words[1]].astype(xp.int64), tables[STRETCH][words[2]].astype(xp.int64)
    lean = (tables[SHEAR][words[3]] * high) >> 16
    xx, xy = (cos * wide) >> 16, (cos * lean - sin * high) >> 16
    yx, yy = (sin * wide) >> 16, (sin * lean + cos * high) >> 16
    u = (2 * xp.arange(width, dtype=xp.int64) - (width - 1))[None, None, :]
    v = (2 * xp.arange(height, dtype=xp.int64) - (height - 1))[None, :, None]
    x = ((xx * u + xy * v) >> 1) + (width - 1) * (ONE // 2) + tables[SHIFT_BY][words[4]]
    y = ((yx * u + yy * v) >> 1) + (height - 1) * (ONE // 2) + tables[SHIFT_BY][words[5]]
    if deformation.down.size:
        down, across = (xp.asarray(a.astype(np.int64)) for a in (deformation.down, deformation.across))
        knots = down.shape[1] * across.shape[1]
        random = 2 * _bytes(xp, 2 * knots, FIELD_BLOCK, image, step, key).astype(xp.int64) - 255
        random = random.reshape(batch, 2, down.shape[1], across.shape[1])
        lines = xp.matmul(down[None, None], random) >> DOWN_SHIFT
        fields = xp.matmul(lines, across.T[None, None]) >> ACROSS_SHIFT
        x, y = x + fields[:, 0], y + fields[:, 1]

    # One pixel of paper all around, so that all places outside are paper.
    framed = xp.zeros((batch, height + 2, width + 2), xp.int32)
    framed[:, 1:-1, 1:-1] = images[places].reshape(batch, height, width)
    if deformation.thick:
        framed = _thickened(xp, framed, tables[THICKNESS][words[6]])
    framed = xp.pad(framed, ((0, 0), (0, 1), (0, 1)))
    x, y = xp.clip(x, -ONE, width * ONE), xp.clip(y, -ONE, height * ONE)
    column, row = (x >> 16) + 1, (y >> 16) + 1
    right, below = ((x >> 8) & 255).astype(xp.int32), ((y >> 8) & 255).astype(xp.int32)
    number = xp.arange(batch)[:, None, None]
    top = framed[number, row, column] * (256 - right) + framed[number, row, column + 1] * right
    bottom = framed[number, row + 1, column] * (256 - right) + framed[number, row + 1, column + 1] * right
    result = (top * (256 - below) + bottom * below + ONE // 2) >> 16
    result = xp.where(result < PAPER, 0, result)
    if deformation.erase:
        drawn = philox4x32(xp.full(batch, ERASE_BLOCK, xp.uint64), image, *step, *key)
        result = _erased(xp, result, tables, [word[:, None, None] for word in drawn])
    result = result.reshape(batch, height * width)
    if deformation.noise:
        random = 2 * _bytes(xp, height * width, NOISE_BLOCK, image, step, key) - 255
        largest = tables[NOISE][words[7]].reshape(batch, 1)
        result = xp.clip(result + ((random * largest) >> 8), 0, 255)
    return result.astype(xp.uint8)


def augment(xp, images, order, start, deformation, key, step, out):
    """out[i] = images[order[start + i]], deformed at random and scaled from 0 … 255 to 0 … 1.

    Shapes: images [N, H·W], order [N], out [B, H·W] with start + B ≤ N; ``deformation`` a
    :class:`Deformation` for H × W. Dtypes: images uint8, order int64, out float32 (the reference also writes
    float64). ``key``: two integers below 2**32; ``step``: an integer below 2**64.
    Writes: out. Cost: about 40 operations on whole numbers a pixel, and 2·K multiplications for K rows of
    knots; one Philox block for 16 knots.
    """
    places = order[start : start + len(out)]
    batch = deformed(xp, images, places, deformation, key, step)
    xp.multiply(batch, out.dtype.type(1 / 255), out=out)
