"""Products in bfloat16 by tile registers, against float64; skipped where the processor has none."""

import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from fastdigit.kernels.common import amx
from fastdigit.kernels.common.memory import aligned_zeros
from fastdigit.kernels.matmul import cpu, cpu_amx
from fastdigit.kernels.matmul.pieces import Mask

pytestmark = pytest.mark.skipif(not cpu.AMX, reason="the processor has no tiles of bfloat16 (AMX)")


def rounded(x):
    """float32 numbers rounded to bfloat16 (nearest, ties to even), by their bits, as float64."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


# What products see of an operand, and how many products of bfloat16 numbers make one of its.
SEEN = {"bf16": (rounded, 1), "bf16x3": (np.float64, 6)}


def operands(m, k, n, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((m, k), np.float32), random.standard_normal((k, n), np.float32)


def laid_out(a, b, kind):
    if kind == "nt":
        b = np.ascontiguousarray(b.T).T
    if kind == "tn":
        a = np.ascontiguousarray(a.T).T
    if kind == "strided":
        a, b = np.repeat(a, 2, axis=1)[:, ::2], np.repeat(b, 2, axis=1)[:, ::2]
    return a, b


# Tiles of 16, strips and panels of 32, blocks of 512 steps, groups of 960 columns, heaps of 1280 rows.
SHAPES = [
    (16, 32, 16),
    (17, 31, 33),
    (32, 33, 15),
    (31, 513, 47),
    (100, 1100, 90),
    (40, 70, 970),
    (1290, 40, 50),
    (1300, 530, 1000),
    (1, 600, 1000),
    (1300, 5, 1),
]


@pytest.mark.parametrize("precision", SEEN)
@pytest.mark.parametrize("kind", ["nn", "nt", "tn", "strided"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, kind, precision):
    m, k, n = shape
    a, b = operands(*shape)
    seen, products = SEEN[precision]
    exact = seen(a) @ seen(b)
    bound = products * k * 2.0**-23 * (np.abs(seen(a)) @ np.abs(seen(b)))
    found = []
    for threads in (1, 2):
        out = np.full((m, n), np.nan, np.float32)
        cpu.matmul(*laid_out(a, b, kind), out=out, threads=threads, precision=precision)
        assert (np.abs(out - exact) <= bound).all()
        found.append(out)
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("precision", SEEN)
@pytest.mark.parametrize("shape", [(100, 100, 5), (100, 100, 14), (200, 90, 1)], ids=str)
def test_few_columns_have_the_same_bits_with_and_without_out(shape, precision):
    a, b = laid_out(*operands(*shape), "tn")
    out = np.empty((shape[0], shape[2]), np.float32)
    cpu.matmul(a, b, out=out, precision=precision)
    assert (out == cpu.matmul(a, b, precision=precision)).all()


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e15])
def test_three_pieces_are_as_exact_as_float32(size):
    """Against float64: less than twice the error of float32, and a thousandth of bfloat16's."""
    a, b = operands(200, 700, 300)
    a, b = a * np.float32(size), np.abs(b)  # positive, so that sums grow
    exact = a.astype(np.float64) @ b
    error = {
        precision: np.sqrt(np.mean((cpu.matmul(a, b, precision=precision) - exact) ** 2))
        for precision in ("float32", "bf16", "bf16x3")
    }
    assert error["bf16x3"] < 2 * error["float32"]
    assert error["bf16x3"] < error["bf16"] / 1000


def test_three_pieces_of_numbers_of_all_sizes():
    """A product with a unit matrix gives back the numbers themselves, all of their bits."""
    random = np.random.default_rng(1)
    x = (random.standard_normal((50, 64)) * 10.0 ** random.integers(-25, 30, (50, 64))).astype(np.float32)
    unit = np.eye(64, dtype=np.float32)
    assert (cpu.matmul(x, unit, precision="bf16x3") == x).all()
    assert (cpu.matmul(np.ascontiguousarray(unit), x.T, precision="bf16x3") == x.T).all()
    with pytest.raises(AssertionError):
        assert (cpu.matmul(x, unit, precision="bf16") == x).all()


@njit
def _product(
    a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor, pieces, room, details
):
    cpu_amx.product(
        a, a_row, a_step, b, b_step, b_column, bias, c, c_row, part, depth, floor, pieces, room, details
    )


def product(a, b, c, part, room, bias=None, floor=-np.inf, y_below=None, scale=1.0, pieces=1):
    word = np.int64
    _product(
        word(a.ctypes.data),
        *(word(x // 4) for x in a.strides),
        word(b.ctypes.data),
        *(word(x // 4) for x in b.strides),
        word(0 if bias is None else bias.ctypes.data),
        word(0 if c is None else c.ctypes.data),
        word(0 if c is None else c.strides[0] // 4),
        tuple(map(word, part)),
        word(a.shape[1]),
        np.float32(floor),
        word(pieces),
        word(room.ctypes.data),
        Mask(
            word(0 if y_below is None else y_below.ctypes.data),
            word(0 if y_below is None else y_below.strides[0] // 4),
            np.float32(scale),
        ),
    )


def full_room(m, n, k, content, pieces=1):
    room = aligned_zeros(cpu_amx.room_for(m, n, k, pieces), np.float32)
    room[...] = content
    return room


@pytest.mark.parametrize("shape", [(37, 101, 53), (64, 600, 64), (48, 1030, 1000)], ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("precision", SEEN)
def test_bias_relu_and_mask(shape, relu, precision):
    m, k, n = shape
    a, b = operands(*shape)
    seen, products = SEEN[precision]
    pieces = cpu.PIECES[precision]
    bias, y_below = operands(1, n, m)[0][0], np.sign(operands(m, n, 1, seed=1)[0])
    expected = seen(a) @ seen(b) + bias
    bound = products * (k + 2) * 2.0**-23 * (np.abs(seen(a)) @ np.abs(seen(b)) + np.abs(bias))
    c = np.full((m, n), np.nan, np.float32)
    product(
        a, b, c, (0, m, 0, n), full_room(m, n, k, np.nan, pieces), bias, 0 if relu else -np.inf, pieces=pieces
    )
    assert (np.abs(c - (np.maximum(expected, 0) if relu else expected)) <= bound).all()
    assert not relu or (c == 0).any()
    product(a, b, c, (0, m, 0, n), full_room(m, n, k, np.nan, pieces), bias, -np.inf, y_below, 1.25, pieces)
    assert (np.abs(c - np.where(y_below > 0, 1.25 * expected, 0)) <= 2 * bound).all()


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("shape", [(37, 101, 53), (64, 600, 400), (48, 1030, 30)], ids=str)
def test_pixels_are_one_piece_and_lose_nothing(shape, turned):
    m, k, n = shape
    pixels = np.random.default_rng(0).integers(0, 256, (k, m) if turned else (m, k), np.uint8)
    a = pixels.astype(np.float32) * np.float32(1 / 255)  # as kernels/gather has them
    a, pixels = (a.T, pixels.T) if turned else (a, pixels)
    b = operands(*shape)[1]
    exact = pixels / 255 @ b.astype(np.float64)
    c = np.full((m, n), np.nan, np.float32)
    product(a, b, c, (0, m, 0, n), full_room(m, n, k, np.nan, amx.PIXELS), pieces=amx.PIXELS)
    error, of_float32 = (np.sqrt(np.mean((found - exact) ** 2)) for found in (c, cpu.matmul(a, b)))
    assert error < 2 * of_float32
    assert (np.abs(c - exact) <= 3 * k * 2.0**-23 * (pixels / 255 @ np.abs(b))).all()


def test_all_pixels_are_whole_numbers_again():
    a, unit = np.arange(256, dtype=np.float32) * np.float32(1 / 255), np.eye(256, dtype=np.float32)
    c = np.empty((256, 256), np.float32)
    room = full_room(256, 256, 256, np.nan, amx.PIXELS)
    product(a[:, None] * unit, 4 * unit, c, (0, 256, 0, 256), room, pieces=amx.PIXELS)
    np.testing.assert_allclose(c, np.diag(np.arange(256) * 4 / 255), rtol=3e-7)


def test_a_part_is_all_that_is_written():
    m, k, n = 70, 45, 90
    a, b = operands(m, k, n)
    whole = np.full((m, n), np.nan, np.float32)
    product(a, b, whole, (0, m, 0, n), full_room(m, n, k, np.nan))
    for part in [(0, 16, 0, 16), (3, 40, 16, 90), (17, 70, 5, 22), (5, 5, 0, 90)]:
        c = np.full((m, n), 7, np.float32)
        product(a, b, c, part, full_room(m, n, k, np.inf))
        top, bottom, left, right = part
        inside = np.zeros((m, n), bool)
        inside[top:bottom, left:right] = True
        assert (c[inside] == whole[inside]).all()
        assert (c[~inside] == 7).all()


@pytest.mark.parametrize("pieces", [1, 3, amx.PIXELS])
def test_the_room_is_large_enough(pieces):
    for m, k, n in [(1, 1, 1), (33, 17, 40), (100, 600, 1000), (1300, 512, 33)]:
        a, b = operands(m, k, n)
        enough = cpu_amx.room_for(m, n, k, pieces)
        room = aligned_zeros(enough + 4096, np.float32)
        room[...] = -1
        product(a, b, np.empty((m, n), np.float32), (0, m, 0, n), room, pieces=pieces)
        if k <= cpu_amx.DEPTH:  # what is finished is in the room, too
            product(a, b, None, (0, m, 0, n), room, pieces=pieces)
        assert (room[enough:] == -1).all()


@pytest.mark.parametrize("precision", SEEN)
def test_what_is_not_finite_stays_in_its_row(precision):
    a, b = operands(40, 70, 50)
    clean = cpu.matmul(a, b, precision=precision)
    a[7, 3], a[20, 5] = np.nan, np.inf
    spoilt = cpu.matmul(a, b, precision=precision)
    rows = np.isin(np.arange(40), [7, 20])
    assert np.isnan(spoilt[7]).all()
    assert not np.isfinite(spoilt[20]).any()
    assert (spoilt[~rows] == clean[~rows]).all()
    assert (cpu.matmul(a[21:], b, precision=precision) == clean[21:]).all()


CODE = """
import sys
import numpy as np
from fastdigit.kernels.common import amx
if sys.argv[1] == "refused":
    amx.has_tiles = lambda: False
from fastdigit.kernels.matmul import cpu
random = np.random.default_rng(0)
a, b = random.standard_normal((50, 300), np.float32), random.standard_normal((300, 70), np.float32)
print(cpu.AMX, cpu.matmul(a, b, precision="bf16").tobytes().hex())
"""


def test_a_process_that_may_not_use_tiles_computes_without_them():
    """Also where another process has left its compiled kernels."""
    said = [
        subprocess.run(
            [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
        ).stdout.split()
        for how in ("allowed", "refused", "allowed")
    ]
    assert [words[0] for words in said] == ["True", "False", "True"]
    assert said[0][1] == said[2][1] != said[1][1]


def test_processors_without_tiles(monkeypatch):
    asked = amx.has_tiles.__wrapped__
    assert asked()
    monkeypatch.setattr(amx, "features", lambda: {"+avx512f", "+avx512bf16"})
    assert not asked()
    monkeypatch.undo()
    monkeypatch.setattr(amx.sys, "platform", "win32")
    assert not asked()
