"""Any picture of one handwritten digit → a 28×28 image such as MNIST's.

MNIST's authors scaled each digit so that the longer side of its ink measures 20 pixels, with
antialiasing, and placed it so that its centre of mass is at the centre of 28×28. A network trained
on MNIST has seen nothing else, so a photo, scan or drawing must go the same way:

====================  ==============================================================================
step                  what it does
====================  ==============================================================================
``input``             decode, turn upright (EXIF), shrink what is huge, put transparency on a ground
``ink``               distance from the background: a plane fitted to the border, so that a lighting
                      gradient, the polarity and the colour of the ink no longer matter
``contrast``          noise floor → 0, ink → 255, specks of dust removed
``cropped``           the smallest box that holds the ink
``scaled``            the longer side is 20
``centred``           28×28, centre of mass at pixel (14, 14)
====================  ==============================================================================

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86 (1998), section III.A.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    import PIL.Image

SIDE = 28  # MNIST's images
INK_SIDE = 20  # the longer side of the ink in them
CENTRE = 14  # the pixel index of their centre of mass, to ±0.5: they were moved by whole pixels

MAX_MEGAPIXELS = 64  # a larger picture is refused before it is decoded
WORKING_SIDE = 1024  # what is larger is shrunk first: bounds time and memory
MAX_BORDER = 2000  # so many border pixels are enough to find the background

TOO_LARGE = f"larger than {MAX_MEGAPIXELS} megapixels; scale the picture down first"

# Only formats that Pillow decodes itself: EPS, for one, would start Ghostscript on the data.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
ROUNDING = 1e-3  # so far outside 0..1 lie floats that some other program has resized

# Levels out of 255. Tuned on MNIST digits that were enlarged and saved as JPEG.
MIN_CONTRAST = 16  # the ink must differ from the background by more than this
NOISE_SIGMAS = 3.0  # the border's noise, times this, is taken for background
EDGE_LEVEL = 48  # the box around the ink ends where the ink is fainter
MIN_SPECK = 0.03  # a separate blot with less of the ink than this is dust


def prepare_image(source: Any) -> np.ndarray:
    """The digit in any picture, as MNIST would show it.

    Accepts: a file path, the bytes of a file, an open binary file, a ``PIL.Image``, or an array of
    bool, integers or floats (0..1, 0..255, or unsigned of more bits) shaped [H,W], [H,W,1], [H,W,3]
    or [H,W,4] (the fourth channel is opacity). Dark or bright ink, of any colour, on paper of any
    other colour or on transparency; the first frame of an animation.
    Returns: uint8 [28,28], ink bright on 0.
    Errors: DataError where there is no such file, it is damaged, larger than 64 megapixels, no
    picture, or has no ink in it; and for arrays of another shape, or with NaN, infinity or negatives.
    Cost: time and memory grow with the picture up to 1024 pixels a side, beyond that only to decode.
    """
    return prepare_steps(source)["centred"]


def prepare_steps(source: Any) -> dict[str, np.ndarray]:
    """Every stage of :func:`prepare_image` as a picture, in order: see the table on top of this module.

    Returns: ``input`` [H,W] or [H,W,3]; ``ink`` and ``contrast`` [H,W]; ``cropped`` [h,w]; ``scaled``
    with its longer side 20; ``centred`` [28,28]; all uint8.
    Errors: as for :func:`prepare_image`.
    """
    try:
        return _steps(source)
    except DataError as error:
        raise DataError(f"{_name(source)}: {error}") from error


def _name(source: Any) -> str:
    """What an error message calls ``source``."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    name = getattr(source, "name", None)  # open files have one
    return name if isinstance(name, str) else f"the {type(source).__name__} given"


def _steps(source: Any) -> dict[str, np.ndarray]:
    picture = _decode(source)
    ink, noise = _ink(picture)
    contrast = _without_specks(_stretch(ink, noise))
    cropped = crop(contrast, 0)
    if max(cropped.shape) > INK_SIDE:  # else it has MNIST's size already, and faint pixels belong to it
        cropped = crop(contrast, EDGE_LEVEL)
    scaled = scale(cropped)
    return {
        "input": picture[..., 0] if picture.shape[2] == 1 else picture,
        "ink": np.rint(ink).astype(np.uint8),
        "contrast": contrast,
        "cropped": cropped,
        "scaled": scaled,
        "centred": centre(scaled),
    }


def crop(image: np.ndarray, level: int = 0) -> np.ndarray:
    """The smallest box of ``image`` u8[H,W] that holds every pixel above ``level``."""
    inked = image > level
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def scale(image: np.ndarray) -> np.ndarray:
    """``image`` u8[H,W], not all 0, with its longer side brought to 20, in proportion and antialiased."""
    from PIL import Image

    height, width = image.shape
    longer = max(height, width)
    size = [max(1, round(side * INK_SIDE / longer)) for side in (width, height)]
    exact = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    scaled = np.maximum(np.asarray(exact), 0)
    # Averaging makes thin strokes faint, but every MNIST image has a pixel of 254 or 255.
    return np.rint(scaled * (255 / scaled.max())).astype(np.uint8)


def centre(image: np.ndarray) -> np.ndarray:
    """``image`` u8[h,w], at most 28×28, on 28×28 with its centre of mass at (14, 14), to half a pixel."""
    start = []
    for axis, size in enumerate(image.shape):
        mass = image.sum(1 - axis, dtype=np.float64)
        centre_of_mass = mass @ np.arange(size) / mass.sum()
        start.append(min(max(round(CENTRE - centre_of_mass), 0), SIDE - size))
    out = np.zeros((SIDE, SIDE), np.uint8)
    top, left = start
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out


def _decode(source: Any) -> np.ndarray:
    """Any accepted source → uint8 [H,W,1] or [H,W,3], sides at most WORKING_SIDE or so."""
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_pillow(_image_of_array(source))
    if isinstance(source, Image.Image):
        return _from_pillow(source)
    if isinstance(source, str | os.PathLike):
        try:
            with open(source, "rb") as file:
                return _from_file(file)
        except OSError as error:
            raise DataError(f"cannot open this picture: {error.strerror}") from error
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source))
    if hasattr(source, "read"):
        return _from_file(source)
    raise DataError("not a path, bytes, an open binary file, a PIL image or a numpy array")


def _from_file(file: Any) -> np.ndarray:
    """An open binary file → uint8 [H,W,1 or 3]."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, EXIF, metadata: what matters here is checked below
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(TOO_LARGE) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"not a picture, or none of {', '.join(FORMATS)}") from error
    except Exception as error:  # damaged headers make Pillow's decoders raise almost anything
        raise DataError(f"damaged picture ({_one_line(error)})") from error
    with image:
        if image.width * image.height <= MAX_MEGAPIXELS * 10**6:
            image.draft(None, (WORKING_SIDE, WORKING_SIDE))  # a JPEG can be decoded at 1/2, 1/4 or 1/8
        return _from_pillow(image)


def _from_pillow(image: PIL.Image.Image) -> np.ndarray:
    """A Pillow image, perhaps not decoded yet → uint8 [H,W,1 or 3], upright, shrunk, without opacity."""
    from PIL import ExifTags, ImageOps

    if image.width * image.height > MAX_MEGAPIXELS * 10**6:
        raise DataError(TOO_LARGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF, palettes and metadata: no matter for the pixels
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                image = _image_of_array(np.asarray(image))
            mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
            if image.mode == mode:
                image.load()
            else:
                image = image.convert(mode)
    except DataError:
        raise
    except Exception as error:  # damaged pixels make Pillow's decoders raise almost anything
        raise DataError(f"damaged picture ({_one_line(error)})") from error
    shrink = math.ceil(max(image.size) / WORKING_SIDE)
    if shrink > 1:
        image = image.reduce(shrink)
    if image.mode == "RGBA":
        image = _on_a_ground(image)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _image_of_array(array: np.ndarray) -> PIL.Image.Image:
    """Any array that can be a picture → Pillow's "L", "RGB" or "RGBA"."""
    from PIL import Image

    shape = "[" + ",".join(map(str, array.shape)) + "]"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"shaped {shape}, not [H,W], [H,W,1], [H,W,3] or [H,W,4]; give one picture at a time")
    if array.size == 0:
        raise DataError(f"empty: shaped {shape}")
    if array.shape[0] * array.shape[1] > MAX_MEGAPIXELS * 10**6:
        raise DataError(TOO_LARGE)
    if array.dtype.kind not in "buif":
        raise DataError(f"holds {array.dtype}, not bool, integers or floats")
    if array.dtype != np.uint8 or array.max() <= 1:
        array = _to_bytes(array)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Values 0..1, 0..255 or 0..anything larger → uint8 0..255."""
    low, peak = float(array.min()), float(array.max())  # NaN if there is one
    if not (math.isfinite(low) and math.isfinite(peak)):
        row, column = np.argwhere(~np.isfinite(array))[0, :2]
        raise DataError(f"holds NaN or infinity, first at row {row}, column {column}")
    if low < -ROUNDING:
        raise DataError(f"holds {low:g}; values must lie in 0..1 or in 0..255")
    levels = 255.0 if peak <= 1 + ROUNDING else 1.0 if peak <= 255 else 255.0 / peak
    return np.rint(np.clip(array * levels, 0, 255)).astype(np.uint8)


def _on_a_ground(image: PIL.Image.Image) -> PIL.Image.Image:
    """An "RGBA" image → "RGB", on a ground on which its ink can be seen."""
    from PIL import Image

    pixels = np.asarray(image)
    drawn = pixels[..., 3] > 127
    if not drawn.any():
        raise DataError("no ink found: the picture is transparent")
    colours = pixels[drawn][:, :3]
    if drawn.mean() > 0.5 and colours.std(0).max() > MIN_CONTRAST:
        ground = np.median(colours, axis=0)  # paper that was cut out, with ink on it: more paper around it
    else:
        ground = np.full(3, 0 if colours.mean() > 127 else 255)  # bare ink
    canvas = Image.new("RGBA", image.size, (*(int(level) for level in ground), 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _ink(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """float32 [H,W], how far each pixel of ``picture`` u8[H,W,C] is from the background, and the noise in it.

    The background is a plane per channel, fitted to the border by least absolute deviations
    (iteratively reweighted least squares), so that ink that touches the border does no harm.
    """
    height, width, _ = picture.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    border = np.ones((height, width), bool)
    ring = max(1, min(height, width) // 40)
    border[ring:-ring, ring:-ring] = False
    rows, columns = np.nonzero(border)
    every = math.ceil(len(rows) / MAX_BORDER) | 1  # odd, or it could pass over one side's pixels in each row
    rows, columns = rows[::every], columns[::every]
    design = np.stack([np.ones(len(rows), np.float32), y[rows], x[columns]], axis=1)
    target = picture[rows, columns].astype(np.float32)
    weight = np.ones(len(rows), np.float32)
    for _ in range(8):
        weighted = design * weight[:, None]
        plane = np.linalg.lstsq(weighted.T @ design, weighted.T @ target, rcond=None)[0]
        distance = np.abs(target - design @ plane).max(1)
        weight = 1 / np.maximum(distance, 1)
    noise = 1.4826 * float(np.median(distance))  # the standard deviation, if the noise is Gaussian

    ink = np.zeros((height, width), np.float32)
    for channel, (offset, slope_y, slope_x) in enumerate(plane.T):
        background = (offset + slope_y * y)[:, None] + slope_x * x
        np.maximum(ink, np.abs(picture[..., channel] - background), out=ink)
    return np.minimum(ink, 255, out=ink), noise


def _stretch(ink: np.ndarray, noise: float) -> np.ndarray:
    """``ink`` with its noise floor at 0 and its darkest strokes at 255, uint8."""
    floor = NOISE_SIGMAS * noise
    strong = ink[ink > ink.max() / 2]
    top = float(np.percentile(strong, 95)) if strong.size else 0.0
    if top < max(MIN_CONTRAST, 2 * floor):
        raise DataError("no ink found: the picture is blank, too faint, or has a frame (crop it off)")
    return np.rint(np.clip((ink - floor) * (255 / (top - floor)), 0, 255)).astype(np.uint8)


def _without_specks(image: np.ndarray) -> np.ndarray:
    """``image`` u8[H,W] without the separate blots that hold almost none of the ink."""
    from scipy import ndimage

    labels, count = ndimage.label(image > EDGE_LEVEL, structure=np.ones((3, 3)))
    if count <= 1:
        return image
    mass = np.bincount(labels.ravel(), weights=image.ravel())
    mass[0] = 0
    dust = mass < MIN_SPECK * mass.sum()
    dust[0] = False
    if dust[1:].all():
        raise DataError("no ink found: the picture holds nothing but specks")
    return np.where(dust[labels], 0, image).astype(np.uint8)
