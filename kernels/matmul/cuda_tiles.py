"""In which order the tiles of an output are computed on a GPU."""

from numba import uint32

from ..common.cuda import device

BAND = 16  # rows of tiles that are walked together: what 132 tiles read is then least


@device
def place_of(number, down, across, band):
    """(row, column), in tiles, of the tile of this number, of ``down`` × ``across``: bands of so many rows of
    tiles, in each of them column by column. What runs at a time is then as wide as it is high, nearly, and
    reads less from memory; a band of one row is row by row. All numbers are uint32."""
    before = uint32(uint32(number // uint32(band * across)) * band)
    height = min(band, uint32(down - before))
    within = uint32(number - uint32(before * across))
    column = uint32(within // height)
    return uint32(before + uint32(within - uint32(column * height))), column
