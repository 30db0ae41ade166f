"""What becomes of a finished piece of a product's output, while it is in the cache.

The products of :mod:`~.cpu`, :mod:`~.cpu_amx` and :mod:`~.cpu_sparse` call :func:`finish` for each. What
it will read is asked for while the piece is computed: by :func:`prepare`, or, line by line between other
work, where :func:`beside` says. What these do is decided by the type of their ``details``: the functions here
are but the names that ``@overload`` gives a meaning for each type, so Python itself cannot call them.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import overload

from ..common.compiling import inner
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import floats, prefetch


def finish(details, top, left, rows, columns, piece, piece_row):
    """What a product calls for every finished piece of the output, while it is in the cache.

    The piece's place in the output, its size, its address and row distance. What happens is decided
    by the type of ``details``, a named tuple: ``@overload(finish)`` teaches it another.
    """
    raise NotImplementedError("only for jitted code")


def prepare(details, top, left, rows, columns):
    """What a product calls before it computes a piece, to ask for what :func:`finish` will read.

    ``@overload(prepare)`` for the same types of ``details``.
    """
    raise NotImplementedError("only for jitted code")


def beside(details, top, left):
    """The address (0: none) and row distance of what :func:`finish` reads beside a piece that starts there.

    ``@overload(beside)`` for the same types of ``details``.
    """
    raise NotImplementedError("only for jitted code")


@inner
def prefetch_matrix(address, row, rows, columns):
    """Ask for all lines of a float32 matrix at an address."""
    for i in range(rows):
        for j in range(0, columns, 16):
            prefetch(address + SIZE * (i * row + j))


class Mask(NamedTuple):
    """Details for :func:`finish`: piece · scale where y_below is positive, else 0."""

    y_below: int  # address of a matrix like the output, or 0 for no mask
    y_row: int
    scale: np.float32


@inner
def mask_row(target, y_below, scale):
    """target · scale where y_below is positive, else 0, for contiguous vectors."""
    for j in range(target.size):
        target[j] = target[j] * scale if y_below[j] > 0 else np.float32(0)


@overload(finish)
def _finish_mask(details, top, left, rows, columns, piece, piece_row):
    if getattr(details, "instance_class", None) is not Mask:
        return None

    def mask_and_scale(details, top, left, rows, columns, piece, piece_row):
        scale = details.scale
        if details.y_below == 0 and scale == 1:
            return
        for i in range(rows):
            target = floats(piece + SIZE * i * piece_row, columns)
            if details.y_below == 0:
                for j in range(columns):
                    target[j] = target[j] * scale
                continue
            mask_row(
                target, floats(details.y_below + SIZE * ((top + i) * details.y_row + left), columns), scale
            )

    return mask_and_scale


@overload(prepare)
def _prepare_mask(details, top, left, rows, columns):
    if getattr(details, "instance_class", None) is not Mask:
        return None
    return lambda details, top, left, rows, columns: None


@overload(beside)
def _beside_mask(details, top, left):
    if getattr(details, "instance_class", None) is not Mask:
        return None

    def where(details, top, left):
        return details.y_below + SIZE * (
            top * details.y_row + left
        ) if details.y_below != 0 else 0, details.y_row

    return where
