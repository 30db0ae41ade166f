"""How training images are deformed at random, so that a network sees each digit as other hands write it."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, DataError, check_count, check_number

# Pixels: kernels have places in whole numbers of 32 bits, 16 of them for parts of a pixel. The sum that is
# held against it bounds how far apart two places can be before they are halved.
LARGEST = 30_000
APPLIED_AT_ONCE = 1000  # images, which take some 100 bytes a pixel meanwhile


@dataclass(frozen=True)
class Augment:
    """Deform every image anew each time it is trained on.

    All strengths are the largest changes, drawn evenly for each image, in both directions where there are
    two; 0 means none.

    - ``rotation``: degrees. ``scale``: share of the size, along both axes apart. ``shear``: share of the
      height. ``shift``: pixels, along both axes apart.
    - ``elastic``: pixels, the root mean square of smooth random displacements, whose ``smoothness`` is the
      standard deviation in pixels of the Gaussian that smoothes them (Simard, Steinkraus, Platt, ICDAR 2003;
      their α = 34, σ = 4 is elastic 1.4, smoothness 4).
    - ``thickness``: how much thicker or thinner strokes become, in pixels on each side, up to 1.
    - ``noise``: grey levels, for each pixel by itself, up to what is drawn for the image.
    - ``erase``: pixels, the side of a square that is hidden, somewhere in the image (Zhong et al., "Random
      erasing", AAAI 2020). ``faint``: the share of its grey level that ink loses, below 1.

    The same seed, image and step give the same deformation on every backend, bit for bit.
    Errors: ConfigError for a strength that makes no sense.
    """

    rotation: float = 0
    scale: float = 0
    shear: float = 0
    shift: float = 0
    elastic: float = 0
    smoothness: float = 4
    thickness: float = 0
    noise: int = 0
    erase: int = 0
    faint: float = 0

    def __post_init__(self):
        check_number("rotation", self.rotation, "[0, 180]")
        check_number("scale", self.scale, "[0, 0.75]")
        check_number("shear", self.shear, "[0, 2]")
        check_number("shift", self.shift, "[0, 100]")
        check_number("elastic", self.elastic, "[0, 20]")
        check_number("smoothness", self.smoothness, "[1, 100]")
        check_number("thickness", self.thickness, "[0, 1]")
        check_count("noise", self.noise, 0)
        if self.noise > 255:
            raise ConfigError(f"noise must be at most 255 grey levels, got {self.noise}")
        check_count("erase", self.erase, 0)
        check_number("faint", self.faint, "[0, 1)")

    @classmethod
    def standard(cls):
        """Strengths that are good for MNIST."""
        return cls(rotation=10, scale=0.1, shear=0.1, shift=1, elastic=1.2, smoothness=4)

    @classmethod
    def parse(cls, text):
        """Of "standard", or of "rotation=10,shift=1": those that are not named are 0.

        Errors: ConfigError for a name or a number that is none.
        """
        if text == "standard":
            return cls.standard()
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        strengths = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in kinds:
                raise ConfigError(
                    f"there is no deformation {name!r}: choose standard, or strengths of "
                    f"{', '.join(kinds)}, such as rotation=10,elastic=1.2"
                )
            try:
                strengths[name] = kinds[name](value)
            except ValueError:
                raise ConfigError(f"{name} needs a number, such as {name}=1, got {value!r}") from None
        return cls(**strengths)

    def __str__(self):
        """What :meth:`parse` reads."""
        fields = dataclasses.fields(self)
        return ",".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in fields
            if getattr(self, field.name) != field.default
        )

    def apply(self, images, *, seed=0, step=0):
        """The images as a network with this seed sees them in its training step ``step``, to look at.

        Shapes: [N, H, W] in and out. Dtypes: uint8 in and out. Errors: DataError for other images.
        """
        from .kernels.augment.reference import KEY, deformed

        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 3:
            raise DataError(f"images must be uint8 [N, H, W], got {images.dtype} {list(images.shape)}")
        pixels = images.shape[1] * images.shape[2]
        deformation, whole = self.deformation(pixels, images.shape[1:]), images.reshape(len(images), pixels)
        numbers = np.arange(len(images))
        parts = [
            deformed(np, whole, numbers[start : start + APPLIED_AT_ONCE], deformation, (seed, KEY), step)
            for start in range(0, len(images), APPLIED_AT_ONCE)
        ]
        return np.concatenate(parts).reshape(images.shape) if parts else images.copy()

    def deformation(self, pixels, shape=None):
        """The kernels' Deformation for images of so many pixels, of a shape (H, W) or square.

        Errors: ConfigError for images that are neither, or that are too large.
        """
        from .kernels.augment.reference import deformation

        height, width = shape or (math.isqrt(pixels),) * 2
        if height * width != pixels:
            raise ConfigError(
                f"augment needs pictures [N, height, width], or square ones: {pixels} pixels are no square"
            )
        largest = (width + (1 + self.shear) * height) / (1 - self.scale) + 2 * self.shift + 20 * self.elastic
        if largest > LARGEST:
            raise ConfigError(
                f"images of {height} × {width} pixels are too large to be deformed: make them smaller"
            )
        return deformation(height, width, **dataclasses.asdict(self))
