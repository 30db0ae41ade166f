"""The 1,797 handwritten digits that scikit-learn carries with it: real data with no download."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from .data import Dataset, Images
from .prepare import centre, crop, scale

TOP_LEVEL = 16  # each of the 8×8 pixels counts the inked ones among 4×4: 0..16


def load_digits(test_size: float = 0.2, seed: int = 0) -> Dataset:
    """The UCI handwritten digits (8×8) in MNIST's format: 28×28, ink bright, 20 pixels long, centred.

    ``test_size`` is the share, between 0 and 1, of the images kept for testing; each digit has the same
    share of it. The same ``seed`` gives the same split.
    Shapes: images [N,28,28], labels [N]; 1,797 in all.
    Dtypes: uint8.
    Errors: ConfigError for a ``test_size`` that leaves either half without an image of each digit.
    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
    Repository (1998).
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = datasets.load_digits()
    grey = np.rint(bunch.images * (255 / TOP_LEVEL)).astype(np.uint8)
    images = np.stack([centre(scale(crop(image))) for image in grey])
    try:
        train, test = train_test_split(
            np.arange(len(images)), test_size=float(test_size), random_state=seed, stratify=bunch.target
        )
    except ValueError as error:
        raise ConfigError(f"test_size={test_size!r}, seed={seed!r}: no such split ({error})") from error
    everything = Images(images, bunch.target)
    return Dataset("digits", everything.take(np.sort(train)), everything.take(np.sort(test)))
