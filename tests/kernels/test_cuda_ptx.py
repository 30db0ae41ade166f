"""Single instructions of kernels/common/ptx, compiled and run by the interpreter."""

import numpy as np
import pytest

from fastdigit.kernels.common import cuda, ptx

from ..ptx.emulated import emulated

HALVES = {
    "f16": lambda x: x.astype(np.float16).view(np.uint16),
    "bf16": lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
}


def words_of(matrix, kind):
    """[rows, k] as 32-bit words: [rows, k / 2] with the even k in the lower half, [rows, k] of float32."""
    if kind == "tf32":
        return matrix.astype(np.float32).view(np.uint32)
    halves = HALVES[kind](matrix).astype(np.uint32)
    return halves[:, ::2] | halves[:, 1::2] << 16


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_tensor_sums(kind):
    """Two pieces by one, with numbers that every kind holds exactly; the layout is that of the PTX manual:
    words 0 … 3 of a are (row, word of k) = (l / 4, l % 4), 8 rows further, 4 words further, both."""
    zeros, add = ptx.tensor_sums(2, 1, kind)
    depth = 8 if kind == "tf32" else 16
    random = np.random.default_rng(0)
    a, b, before = (random.integers(-8, 9, shape) / 8 for shape in ((32, depth), (8, depth), (32, 8)))
    lane = np.arange(32)
    row, word = lane // 4, lane % 4
    places = [(row + 8 * (k % 2) + 16 * piece, word + 4 * (k // 2)) for piece in range(2) for k in range(4)]
    left = np.stack([words_of(a, kind)[place] for place in places], axis=1)
    right = np.stack([words_of(b, kind)[row, word + 4 * k] for k in range(2)], axis=1)

    def of_a_warp(left, right, sums):
        lane = cuda.cuda.threadIdx.x
        words = (
            *(left[8 * lane], left[8 * lane + 1], left[8 * lane + 2], left[8 * lane + 3]),
            *(left[8 * lane + 4], left[8 * lane + 5], left[8 * lane + 6], left[8 * lane + 7]),
        )
        found = add(zeros(), words, (right[2 * lane], right[2 * lane + 1]))
        found = add(found, words, (right[2 * lane], right[2 * lane + 1]))
        for i in range(8):
            sums[8 * lane + i] += found[i]

    known = len(cuda.KERNELS)
    kernel = cuda.Kernel(
        of_a_warp, cuda.WORDS, cuda.WORDS, cuda.FLOATS, threads=32, name="mma", least=(8, 0), simulated=False
    )
    del cuda.KERNELS[known:]
    # Sums 0 … 3 of a piece: columns 2 · (l % 4) and the next, then the same 8 rows further down.
    at = [(row + 8 * (i // 2) + 16 * piece, 2 * (lane % 4) + i % 2) for piece in range(2) for i in range(4)]
    sums = np.stack([before[place] for place in at], axis=1).astype(np.float32).reshape(-1)
    with emulated():
        kernel(1, left.reshape(-1), right.reshape(-1), sums)
    found = np.empty((32, 8))
    for i, place in enumerate(at):
        found[place] = sums.reshape(32, 8)[:, i]
    np.testing.assert_array_equal(found, before + 2 * a @ b.T)
