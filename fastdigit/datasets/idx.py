"""The idx format, in which MNIST is published: read and written, plain or gzipped.

====================  ===========================================================
bytes                 meaning
====================  ===========================================================
``00 00``             magic
one byte              element type: 08 uint8, 0c int32
one byte              rank R
R × 4 bytes           dimensions, big-endian uint32
the rest              elements, row-major, big-endian
====================  ===========================================================

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from ..files import atomic_file

DTYPES = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(np.int32)}
MAX_RANK = 32  # of any numpy ≥ 1.26

CHUNK = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
GZIP_MAX_RATIO = 1032  # deflate spends at least 2 bits on each run of 258 bytes


def read_idx(path: str | os.PathLike, *, sha256: str | None = None) -> np.ndarray:
    """The tensor in an idx file, gzipped or not (its first bytes tell, not its name).

    ``sha256`` is the expected hash, in hex, of the uncompressed file.
    Shapes: any rank from 1 to 32.
    Dtypes: uint8 or int32, in the machine's byte order.
    Errors: DataError naming the file and the reason: missing, unreadable, no idx file, an element type
    other than those two, cut short, bytes left over, damaged gzip, another hash. A declared size that
    the file cannot hold is refused before memory is allocated for it.
    Cost: reads and hashes the file in pieces of 1 MiB; memory for the tensor and one piece.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP_MAGIC
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            if not zipped:
                return _read(file, size, sha256)
            with gzip.GzipFile(fileobj=file) as unzipped:
                return _read(unzipped, size * GZIP_MAX_RATIO, sha256)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated gzip data ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read this idx file: {error.strerror or error}") from error


def _read(file: BinaryIO, most: int, sha256: str | None) -> np.ndarray:
    """The tensor in ``file``, which cannot hold more than ``most`` bytes."""
    header = _read_exactly(file, 4, "the header")
    zeros, code, rank = struct.unpack(">HBB", header)
    if zeros != 0:
        raise DataError(f"not an idx file: it starts with {header.hex(' ')}, not 00 00")
    if code not in DTYPES:
        raise DataError(f"element type 0x{code:02x} is not supported; 0x08 (uint8) and 0x0c (int32) are")
    if not 1 <= rank <= MAX_RANK:
        raise DataError(f"rank {rank} is outside 1..{MAX_RANK}")
    dimensions = _read_exactly(file, 4 * rank, "the dimensions")
    shape, dtype = struct.unpack(f">{rank}I", dimensions), DTYPES[code]
    tensor_name = f"{dtype} {list(shape)}"

    declared = 4 + 4 * rank + math.prod(shape) * dtype.itemsize  # Python's integers cannot overflow
    if declared > most:
        raise DataError(f"declares {tensor_name}, {declared:,} bytes, but the file holds {most:,} at most")
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > sys.maxsize:  # empty, yet too large for numpy
        raise DataError(f"declares {tensor_name}, larger than any array")

    tensor = np.empty(shape, dtype)
    target = memoryview(tensor.reshape(-1).view(np.uint8))
    digest = hashlib.sha256(header + dimensions)
    for start in range(0, len(target), CHUNK):
        piece = _read_exactly(file, min(CHUNK, len(target) - start), "the data")
        target[start : start + len(piece)] = piece
        digest.update(piece)
    if file.read(1):  # at the end of a gzip stream this also checks its CRC
        raise DataError(f"holds more bytes than the {tensor_name} that it declares")
    if sha256 is not None and digest.hexdigest() != sha256.lower():
        raise DataError(f"the content has SHA-256 {digest.hexdigest()}, not {sha256.lower()}")
    if sys.byteorder == "little":
        tensor.byteswap(inplace=True)
    return tensor


def _read_exactly(file: BinaryIO, count: int, what: str) -> bytes:
    piece = file.read(count)
    if len(piece) < count:
        raise DataError(f"cut short in {what}")
    return piece


def write_idx(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write ``array`` as an idx file, gzipped if the name of ``path`` ends in ``.gz``.

    Shapes: rank 1 to 32. Dtypes: uint8, or int32 of either byte order; any memory order.
    Writes: all or nothing: a new file beside ``path`` takes its place when it is complete and on disk.
    The same array gives the same bytes at any time.
    Errors: DataError for another dtype or rank; OSError if the file cannot be written, in which case
    an old file at ``path`` is as it was.
    """
    path, array = Path(path), np.asarray(array)
    codes = [code for code, dtype in DTYPES.items() if dtype == array.dtype.newbyteorder("=")]
    if not codes:
        raise DataError(f"{path}: idx files are written from uint8 or int32 arrays, not {array.dtype}")
    if not 1 <= array.ndim <= MAX_RANK or max(array.shape) >= 2**32:
        raise DataError(f"{path}: an array of shape {list(array.shape)} cannot be written as idx")
    header = struct.pack(f">HBB{array.ndim}I", 0, codes[0], array.ndim, *array.shape)
    data = np.ascontiguousarray(array, array.dtype.newbyteorder(">")).reshape(-1).view(np.uint8)

    with atomic_file(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped:
                zipped.write(header)
                zipped.write(data)
        else:
            file.write(header)
            file.write(data)
