"""Data sets of handwritten digits, and the way from any picture to one more.

Importing this loads neither scikit-learn nor scipy, Pillow or pooch: the functions that need one do.
"""

from .data import Dataset, Images
from .digits import load_digits
from .idx import read_idx, write_idx
from .mnist import load_folder, load_mnist
from .prepare import prepare_image, prepare_steps
from .writers import Writers, load_writers

__all__ = [
    "Dataset",
    "Images",
    "Writers",
    "load_digits",
    "load_folder",
    "load_mnist",
    "load_writers",
    "prepare_image",
    "prepare_steps",
    "read_idx",
    "write_idx",
]
