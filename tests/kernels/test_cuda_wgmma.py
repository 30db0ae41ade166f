"""Products of bfloat16 on Hopper: the order of tiles."""

import numpy as np
import pytest

from fastdigit.kernels.common import cuda
from fastdigit.kernels.matmul import cuda_wgmma

from ..ptx.emulated import emulated

LARGE, SMALL = cuda_wgmma.TILES
MULTIPROCESSORS = 132  # of an H100 or H200


# --- the order of tiles ---------------------------------------------------------------------------


def in_bands(down, across, band):
    """All tiles, (row, column), in the order in which they shall be computed."""
    return [
        (row, column)
        for first in range(0, down, band)
        for column in range(across)
        for row in range(first, min(first + band, down))
    ]


def _places(down, across, band, rows, columns):
    number = cuda.cuda.threadIdx.x
    if number < len(rows):
        down, across, band = cuda_wgmma.uint32(down), cuda_wgmma.uint32(across), cuda_wgmma.uint32(band)
        rows[number], columns[number] = cuda_wgmma.place_of(number, down, across, band)


PLACES = cuda.Kernel(
    _places,
    *(cuda.types.int64,) * 3,
    *(cuda.WORDS,) * 2,
    threads=1024,
    resident=1,
    name="places of tiles",
    simulated=False,
)
del cuda.KERNELS[-1:]  # not one of the backend's


@pytest.mark.parametrize("band", [1, 3, cuda_wgmma.BAND])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (5, 3), (16, 16), (37, 19)], ids=str)
def test_tiles_are_walked_in_bands(grid, band):
    expected = in_bands(*grid, band)
    assert sorted(expected) == [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    rows, columns = (np.full(len(expected), 2**32 - 1, np.uint32) for _ in range(2))
    with emulated():
        PLACES(1, *grid, band, rows, columns)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def read_at_a_time(size, tile, band):
    """Bytes of a and b that the tiles of each wave read, without what several of them read together, over
    all waves of a product of three equal sides."""
    down, across = (-(-size // side) for side in tile)
    order, total = in_bands(down, across, band), 0
    for first in range(0, len(order), MULTIPROCESSORS):
        rows, columns = map(set, zip(*order[first : first + MULTIPROCESSORS], strict=True))
        total += 2 * size * (len(rows) * tile[0] + len(columns) * tile[1])
    return total


@pytest.mark.parametrize(
    ("size", "tile", "by_rows", "by_bands"),
    [(4096, LARGE, 171, 149), (8192, LARGE, 2311, 1225), (4096, SMALL, 309, 224), (8192, SMALL, 4366, 1736)],
)
def test_what_the_tiles_of_a_wave_read(size, tile, by_rows, by_bands):
    """By formula, in MB: what has to come from memory if the second-level cache keeps a wave's operands."""
    assert round(read_at_a_time(size, tile, 1) / 1e6) == by_rows
    assert round(read_at_a_time(size, tile, cuda_wgmma.BAND) / 1e6) == by_bands
