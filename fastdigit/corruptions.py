"""Unusual handwriting made from usual: eight corruptions of digits, each in five strengths, and how many
digits a network still reads.

==============  ==========================================  ===============================================
corruption      what happens to each image                  strength 1 … 5
==============  ==========================================  ===============================================
``rotation``    turned about the centre, either way         8, 16, 24, 32, 40 degrees
``shift``       moved in any direction, whole pixels        1, 2, 3, 4, 5 pixels
``scale``       made smaller or larger about the centre     to 0.92, 0.84, 0.76, 0.68, 0.60 of the size or
                                                            1.08, 1.16, 1.24, 1.32, 1.40
``noise``       Gaussian noise is added                     of standard deviation 20, 40, 60, 80, 100 grey
                                                            levels
``blur``        Gaussian blur                               of standard deviation 0.6, 1.0, 1.4, 1.8, 2.2
                                                            pixels
``contrast``    grey levels are drawn to the image's mean   to 0.75, 0.60, 0.45, 0.30, 0.15 of their distance
``thickness``   strokes are made thinner or thicker by      thinner: 0.3, 0.5, 0.7, 0.85, 1 pass; thicker:
                passes of grey erosion or dilation with a   0.4, 0.8, 1.2, 1.6, 2 passes (a fraction blends)
                3×3 cross
``occlusion``   a black square hides a part                 sides of 4, 7, 10, 13, 16 pixels
==============  ==========================================  ===============================================

The numbers are meant for images of 28×28 pixels. Where there are two ways (left and right, thinner and
thicker), and for directions and places, each image has its own, by chance: it is the same for all strengths.

All are functions of ``(images, strength, seed=0, *, first=0)``:

Shapes: images [N,H,W], and as many come back.
Dtypes: uint8. The images given are left as they are.
``seed`` and an image's index determine what is drawn for it, whatever other images come with it; ``first``
is the index of ``images[0]``, for those who go through many images in parts.
Errors: DataError for images of another shape or dtype; ConfigError for another strength, seed or index.
Cost: at most 0.1 ms an image of 28×28; 15 MB of memory besides the result.
Source: the idea of a fixed set of corruptions and strengths is that of D. Hendrycks, T. Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, DataError, check_count
from .evaluation import evaluate
from .inputs import unpack
from .streams import CORRUPTION, random_stream

STRENGTHS = (1, 2, 3, 4, 5)
CORRUPTIONS = {}  # name → function, in the order of the table above

PART = 2**19  # pixels that are worked on at a time: float64 copies of them stay within the caches


def _corruption(*levels):
    """Makes a corruption of a function of (images u8[n,H,W], the level of the strength, draw), which may
    give any dtype; ``draw(k)`` are k random numbers in [0, 1) for each of the images: [n, k]."""

    def decorate(change):
        number = len(CORRUPTIONS)

        @functools.wraps(change)
        def corrupt(images, strength, seed=0, *, first=0):
            images, level = _check(images, strength, seed, first), levels[strength - 1]
            changed = np.empty_like(images, order="C")
            part = max(1, PART // max(1, math.prod(images.shape[1:])))
            for start in range(0, len(images) if images.size else 0, part):
                those = images[start : start + part]
                draw = functools.partial(_draw, seed, number, first + start, len(those))
                result = change(those, level, draw)
                if result.dtype != np.uint8:
                    result = np.rint(np.clip(result, 0, 255))
                changed[start : start + part] = result
            return changed

        del corrupt.__wrapped__  # its signature is not this one's
        corrupt.levels = levels
        CORRUPTIONS[change.__name__] = corrupt
        return corrupt

    return decorate


def _check(images, strength, seed, first):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise DataError(
            f"images to corrupt must be uint8 shaped [N,H,W], not {images.dtype} {list(images.shape)}"
        )
    check_count("strength", strength)
    if strength not in STRENGTHS:
        raise ConfigError(f"strength must be one of 1 … {len(STRENGTHS)}, got {strength!r}")
    check_count("seed", seed, 0)
    check_count("first", first, 0)
    return images


def _draw(seed, number, first, images, count):
    random = random_stream(seed, CORRUPTION, number)
    random.bit_generator.advance(first * count)  # one step is one number
    return random.random((images, count))


@_corruption(8, 16, 24, 32, 40)
def rotation(images, degrees, draw):
    """Turned about the centre by so many degrees to the left or to the right."""
    from scipy.ndimage import rotate

    turned, left = np.empty_like(images), draw(1)[:, 0] < 0.5
    for which, angle in ((left, degrees), (~left, -degrees)):
        turned[which] = rotate(images[which], angle, axes=(1, 2), reshape=False, order=1)
    return turned


@_corruption(1, 2, 3, 4, 5)
def shift(images, pixels, draw):
    """Moved by so many pixels in any direction (to whole pixels, so that nothing is blurred)."""
    height, width = images.shape[1:]
    angle = 2 * np.pi * draw(1)[:, 0]
    down, right = (np.rint(pixels * f(angle)).astype(np.intp) for f in (np.sin, np.cos))
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    return windows[np.arange(len(images)), pixels - down, pixels - right]


@_corruption((0.92, 1.08), (0.84, 1.16), (0.76, 1.24), (0.68, 1.32), (0.60, 1.40))
def scale(images, sizes, draw):
    """Made smaller or larger about the centre."""
    from scipy.ndimage import affine_transform

    scaled, smaller = np.empty_like(images), draw(1)[:, 0] < 0.5
    centre = (np.array(images.shape[1:]) - 1) / 2
    for which, size in zip((smaller, ~smaller), sizes, strict=True):
        # The pixel at y comes from centre + (y − centre) / size.
        step, start = (1, 1 / size, 1 / size), (0, *(centre - centre / size))
        scaled[which] = affine_transform(images[which], step, start, order=1)
    return scaled


@_corruption(20, 40, 60, 80, 100)
def noise(images, deviation, draw):
    """Gaussian noise of so many grey levels is added to each pixel."""
    from scipy.special import ndtri

    # By the inverse of the distribution: one random number a pixel, so that each has its place in the stream.
    normal = ndtri(draw(math.prod(images.shape[1:]))).reshape(images.shape)
    return images + deviation * normal


@_corruption(0.6, 1.0, 1.4, 1.8, 2.2)
def blur(images, deviation, draw):
    """Blurred by a Gaussian of so many pixels; beyond the edges is black."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images.astype(np.float32), (0, deviation, deviation), mode="constant")


@_corruption(0.75, 0.60, 0.45, 0.30, 0.15)
def contrast(images, share, draw):
    """Each grey level keeps this share of its distance from the image's mean."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + share * (images - mean)


@_corruption((0.3, 0.4), (0.5, 0.8), (0.7, 1.2), (0.85, 1.6), (1.0, 2.0))
def thickness(images, passes, draw):
    """Strokes are made thinner or thicker by so many passes of erosion or dilation with a 3×3 cross."""
    from scipy.ndimage import generate_binary_structure, grey_dilation, grey_erosion

    cross = generate_binary_structure(2, 1)[None]
    changed, thinner = images.astype(np.float32), draw(1)[:, 0] < 0.5
    for which, change, left in zip((thinner, ~thinner), (grey_erosion, grey_dilation), passes, strict=True):
        those = changed[which]
        while left > 0:
            those += min(1.0, left) * (change(those, footprint=cross) - those)
            left -= 1
        changed[which] = those
    return changed


@_corruption(4, 7, 10, 13, 16)
def occlusion(images, side, draw):
    """A black square with such a side, anywhere inside the image, hides what is there."""
    hidden = []
    for pixels, place in zip(images.shape[1:], draw(2).T, strict=True):
        size = min(side, pixels)
        from_edge = np.arange(pixels) - np.floor(place * (pixels - size + 1))[:, None]
        hidden.append((from_edge >= 0) & (from_edge < size))
    rows, columns = hidden
    return np.where(rows[:, :, None] & columns[:, None, :], np.uint8(0), images)


@dataclass(frozen=True, eq=False)
class CorruptionRobustness:
    """How many of ``images`` digits a network reads: the share ``clean`` of them as they are, and for each
    corruption the shares ``accuracy[name]``, one for each of ``strengths``."""

    images: int
    strengths: tuple[int, ...]
    seed: int
    clean: float
    accuracy: dict[str, tuple[float, ...]]

    @property
    def mean_of(self):
        """The mean over the strengths, for each corruption."""
        return {name: float(np.mean(values)) for name, values in self.accuracy.items()}

    @property
    def mean(self):
        """Mean-corruption accuracy: over all corruptions and strengths."""
        return float(np.mean(list(self.accuracy.values())))

    def as_dict(self):
        """Ready for JSON."""
        return {
            "images": self.images,
            "strengths": list(self.strengths),
            "seed": self.seed,
            "clean": self.clean,
            "mean": self.mean,
            "mean_of": self.mean_of,
            "accuracy": {name: list(values) for name, values in self.accuracy.items()},
        }


def corruption_robustness(net, data, strengths=STRENGTHS, seed=0):
    """A network's accuracy on images under every corruption and strength: a :class:`CorruptionRobustness`.

    ``data`` has ``images`` u8[N,H,W] and ``labels`` (as ``dataset.test``), or is a pair of them.
    Errors: DataError for images or labels that do not fit, or none; ConfigError for a strength that
    there is not.
    Cost: the images are corrupted and classified 40 times.
    """
    images, labels = unpack(data)
    strengths = tuple(strengths)
    if not strengths:
        raise ConfigError("no strength given: name at least one of 1 … 5")
    for strength in strengths:
        _check(images, strength, seed, 0)
    clean = evaluate(net, (images, labels))
    accuracy = {
        name: tuple(
            evaluate(net, (corrupt(images, strength, seed), labels)).accuracy for strength in strengths
        )
        for name, corrupt in CORRUPTIONS.items()
    }
    return CorruptionRobustness(clean.count, strengths, int(seed), clean.accuracy, accuracy)
