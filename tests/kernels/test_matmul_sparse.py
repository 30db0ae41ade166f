"""Products over lists of what is not zero: lists, their order, and the same bits as the whole product."""

import numpy as np
import pytest

from fastdigit.kernels.common.memory import aligned_zeros
from fastdigit.kernels.matmul import cpu, cpu_sparse
from fastdigit.kernels.matmul.cpu_sparse import BLOCK, DEEP, GROUP, Lists

from .helpers import for_python

bits_of_rows, bits_of_pixels, pair_up, lists_of_pairs, listed, sparse_product = map(
    for_python,
    (
        cpu_sparse.bits_of_rows,
        cpu_sparse.bits_of_pixels,
        cpu_sparse.pair_up,
        cpu_sparse.lists_of_pairs,
        cpu_sparse.listed,
        cpu_sparse.sparse_product,
    ),
)


def sparse_matrix(rows, columns, filled, seed=0):
    """Random numbers, about ``filled`` of which are not zero, in rows padded with zeros to whole vectors."""
    random, row = np.random.default_rng(seed), -(-columns // 16) * 16
    padded = aligned_zeros(rows * row, np.float32).reshape(rows, row)
    padded[:, :columns] = random.standard_normal((rows, columns)) * (random.random((rows, columns)) < filled)
    return padded[:, :columns]


def address(array):
    return array.__array_interface__["data"][0]


class Listed:
    """The lists of a matrix, made by the kernels, and the arrays that they lie in."""

    def __init__(self, matrix, block=BLOCK, ordered=True):
        rows, columns = matrix.shape
        self.words = cpu_sparse.words_for(columns)
        self.bits = np.zeros((rows, self.words), np.int64)
        bits_of_rows(address(matrix), matrix.strides[0] // 4, 0, rows, columns, self.bits.ctypes.data)
        pairs = (rows + 1) // 2
        self.places = np.zeros((pairs, cpu_sparse.list_row_for(columns)), np.uint16)
        self.bounds = np.zeros((pairs, cpu_sparse.blocks_of(columns, block) + 1), np.int64)
        self.order = np.full(rows, -1, np.int64)
        self.lists = Lists(
            address(self.places), address(self.bounds), columns, block, address(self.order) if ordered else 0
        )
        if ordered:
            half = pairs // 2  # as two threads would
            for first, last in ((0, 2 * half), (2 * half, rows)):
                pair_up(self.bits.ctypes.data, self.words, first, last, address(self.order))
        lists_of_pairs(self.bits.ctypes.data, rows, 0, pairs, self.lists)


SIZES = [(1, 1), (2, 64), (3, 65), (7, 130), (40, 127), (129, 128), (64, 300), (33, 1300)]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_list_holds_the_places_that_one_of_its_two_rows_has_filled(rows, columns, ordered):
    matrix = sparse_matrix(rows, columns, 0.3)
    made = Listed(matrix, ordered=ordered)
    order = made.order if ordered else np.arange(rows)
    assert sorted(order) == list(range(rows))
    total = 0
    for pair in range((rows + 1) // 2):
        filled = (matrix[order[2 * pair : 2 * pair + 2]] != 0).any(axis=0)
        begin, *ends = made.bounds[pair]
        found = made.places.ravel()[begin : ends[-1]]
        np.testing.assert_array_equal(found, np.flatnonzero(filled))
        for block, end in enumerate(ends):
            assert end - begin == filled[: (block + 1) * BLOCK].sum()
        total += filled.sum()
    share = total / ((rows + 1) // 2 * columns)
    assert listed(made.lists, rows) == pytest.approx(share)


def test_rows_that_are_alike_become_pairs():
    """Each of 40 patterns stands in two rows, far apart: the shortest lists have one pattern."""
    patterns = sparse_matrix(40, 200, 0.5)
    both = sparse_matrix(80, 200, 0)
    both[np.random.default_rng(3).permutation(80)] = np.concatenate([patterns, patterns])
    made = Listed(both)
    half_pairs = Listed(both, ordered=False)
    bits = np.zeros(80, np.int64)
    pair_up(made.bits.ctypes.data, made.words, 0, 80, address(bits))
    assert all((both[one] == both[other]).all() for one, other in bits.reshape(-1, 2))
    assert made.bounds[-1, -1] < half_pairs.bounds[-1, -1]


@pytest.mark.parametrize("filled", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [(1, 1, 1), (5, 129, 17), (64, 64, 64), (131, 300, 100), (GROUP + 3, 200, 70), (20, DEEP + 150, 33)],
)
def test_the_bits_are_those_of_the_whole_product(rows, depth, columns, transposed, filled):
    a, random = sparse_matrix(rows, depth, filled), np.random.default_rng(1)
    b = random.standard_normal((columns, depth) if transposed else (depth, columns), dtype=np.float32)
    b = b.T if transposed else b
    bias = random.standard_normal(columns, dtype=np.float32)
    expected = np.empty((rows, columns), np.float32)
    cpu.dense(a, np.ascontiguousarray(b), bias, expected, relu=True)
    for block, ordered in ((BLOCK, True), (BLOCK, False), (64 * cpu_sparse.words_for(depth), False)):
        made, wide = Listed(a, block, ordered), cpu_sparse.panel_width(columns, 2)
        whole = np.full((rows, columns + 3), np.nan, np.float32)
        room = aligned_zeros(cpu_sparse.room_for(depth, made.bounds.shape[1] > 2), np.float32)
        room[...] = np.nan  # what is used of it must be written first
        # As two threads would.
        half = min(-(-columns // 2 // wide) * wide, columns)
        for left, right in ((0, half), (half, columns)):
            sparse_product(
                address(a),
                a.strides[0] // 4 if rows > 1 else depth,
                1,
                False,
                address(b),
                b.strides[0] // 4,
                b.strides[1] // 4,
                True,
                address(bias),
                address(whole),
                columns + 3,
                (0, rows, left, right),
                wide,
                np.float32(0),
                made.lists,
                address(room),
                cpu.Mask(0, 0, np.float32(1)),
            )
        np.testing.assert_array_equal(whole[:, :columns], expected)
        assert np.isnan(whole[:, columns:]).all()


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 130, 784])
def test_bits_of_pixels_are_those_of_floats(columns):
    """Also of 255 ones, and with other bytes than zero behind each row."""
    random, rows = np.random.default_rng(4), 9
    memory = random.integers(1, 256, (rows, columns + 70), dtype=np.uint8)
    memory[:, :columns] *= random.random((rows, columns)) < 0.3
    memory[0, :columns], memory[1, :columns] = 255, 0
    floats = aligned_zeros(rows * (-(-columns // 16) * 16), np.float32).reshape(rows, -1)
    floats[:, :columns] = memory[:, :columns]
    words = cpu_sparse.words_for(columns)
    expected, found = np.zeros((rows, words), np.int64), np.full((rows, words), -1, np.int64)
    bits_of_rows(address(floats), floats.shape[1], 0, rows, columns, address(expected))
    bits_of_pixels(address(memory), columns + 70, 0, rows, columns, address(found))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 3, 1), (7, 130, 64), (40, 65, 100)])
def test_bytes_give_the_bits_of_the_floats_that_they_stand_for(rows, depth, columns, transposed):
    random = np.random.default_rng(5)
    memory = random.integers(0, 256, (depth, rows + 6) if transposed else (rows, depth + 6), dtype=np.uint8)
    memory *= random.random(memory.shape) < 0.4
    pixels = memory[:, :rows].T if transposed else memory[:, :depth]
    a = sparse_matrix(rows, depth, 0)
    a[...] = pixels.astype(np.float32) * np.float32(1 / 255)
    b = random.standard_normal((depth, columns), dtype=np.float32)
    bias = random.standard_normal(columns, dtype=np.float32)
    expected, found = np.empty((2, rows, columns), np.float32)
    cpu.dense(a, b, bias, expected, relu=True)
    made = Listed(a, 64 * cpu_sparse.words_for(depth), ordered=False)
    room = aligned_zeros(cpu_sparse.room_for(depth, False), np.float32)
    wide = cpu_sparse.panel_width(columns, 1)
    sparse_product(
        *(address(memory), *pixels.strides, True),
        *(address(b), columns, 1, True),
        *(address(bias), address(found), columns, (0, rows, 0, columns), wide, np.float32(0)),
        *(made.lists, address(room), cpu.Mask(0, 0, np.float32(1))),
    )
    np.testing.assert_array_equal(found, expected)
