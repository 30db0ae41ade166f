"""Products on Hopper's tensor cores: the order of tiles, blocks that compute several of them, TF32, and who
waits for whom."""

import numpy as np
import pytest

from fastdigit.kernels.common import cuda
from fastdigit.kernels.matmul import cuda_epilogue, cuda_transpose, cuda_wgmma
from fastdigit.kernels.optimizer import cuda as optimizer

from ..ptx import copies
from ..ptx.device import PTXError
from ..ptx.emulated import LIMITS, emulated
from ..ptx.faults import using, with_fault
from .test_cuda import KINDS, from_bfloat16, to_bfloat16

LARGE, MIDDLE, SMALL = cuda_wgmma.TILES
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
    [
        (4096, LARGE, 171, 149),
        (8192, LARGE, 2311, 1225),
        (4096, MIDDLE, 309, 224),
        (8192, MIDDLE, 4366, 1736),
    ],
)
def test_what_the_tiles_of_a_wave_read(size, tile, by_rows, by_bands):
    """By formula, in MB: what has to come from memory if the second-level cache keeps a wave's operands."""
    assert round(read_at_a_time(size, tile, 1) / 1e6) == by_rows
    assert round(read_at_a_time(size, tile, cuda_wgmma.BAND) / 1e6) == by_bands


# --- several tiles to a block ---------------------------------------------------------------------


def exact(random, rows, columns):
    """Numbers of bfloat16 with products of which 16 are added up exactly in float64, but not in float32."""
    whole = np.full((rows, -(-columns // 8) * 8), np.nan, np.float32)
    signs, sizes = random.choice([-1, 1], (rows, columns)), random.integers(128, 256, (rows, columns))
    whole[:, :columns] = signs * sizes * 2.0 ** random.integers(-6, 7, (rows, columns))
    return to_bfloat16(whole[:, :columns])


def in_order_of_k(a, b):
    """a·b in float32: zero, to which 16 products after the other are added, and then rounded."""
    a, b = (from_bfloat16(x).astype(np.float64) for x in (a, b))
    sums = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(0, a.shape[1], 16):
        sums = (sums + a[:, k : k + 16] @ b[k : k + 16]).astype(np.float32)
    return sums


@pytest.mark.parametrize("tile", cuda_wgmma.TILES, ids=str)
@pytest.mark.parametrize(
    ("burst", "how"),
    [(1, {}), (200, {"band": 2, "blocks": 1, "running": 0})],
    ids=["two blocks", "one block, one stage at a time"],
)
def test_all_tiles_have_the_bits_of_sums_in_the_order_of_k(burst, how, tile):
    """Whichever block computes a tile, and when, with stages that go on from tile to tile."""
    random, shape = np.random.default_rng(7), (140, 130, 270)
    a, b = exact(random, *shape[:2]), exact(random, *shape[1:])
    c, expected = np.full((shape[0], shape[2]), np.nan, np.float32), in_order_of_k(a, b)
    assert (expected != from_bfloat16(a).astype(np.float64) @ from_bfloat16(b)).any(), "none was rounded"
    with emulated(burst=burst):
        cuda_wgmma.multiply(a, b, c=c, tile=tile, **how)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("kind", ["bf16", "tf32"])
@pytest.mark.parametrize("tile", cuda_wgmma.TILES, ids=str)
def test_whole_tiles_are_written_from_registers(tile, kind):
    """All numbers in their places, with rows and columns behind the last whole tile, and nothing beside."""
    random, shape = np.random.default_rng(5), (37, 24, tile[1] + 9)
    a, b = random.standard_normal(shape[:2], np.float32), np.zeros((24, shape[2] + 7), np.float32)
    b[:, : shape[2]] = random.standard_normal(shape[1:])
    given, meant = KINDS[kind]
    a, b = given(a), given(b)[:, : shape[2]]
    whole = np.full((shape[0], shape[2] + 7), np.nan, np.float32)
    with emulated() as emulator:
        cuda_wgmma.multiply(a, b, c=whole[:, : shape[2]], tile=tile)
    assert not any("one by one" in kernel.name for kernel, _ in emulator.reports)
    expected = meant(a).astype(np.float64) @ meant(b).astype(np.float64)
    np.testing.assert_allclose(whole[:, : shape[2]], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(whole[:, shape[2] :]).all()


@pytest.mark.parametrize(
    ("shape", "how", "blocks"),
    [
        ((128, 256), {}, 1),
        ((129, 256), {}, LIMITS.multiprocessors),
        ((512, 512), {}, LIMITS.multiprocessors),
        ((512, 512), {"blocks": 5}, 5),
        ((512, 512), {"blocks": 100}, 8),
    ],
)
def test_a_block_for_each_multiprocessor_or_each_tile(shape, how, blocks):
    a, b, c = (
        np.zeros((shape[0], 8), np.uint16),
        np.zeros((8, shape[1]), np.uint16),
        np.zeros(shape, np.float32),
    )
    with emulated(), cuda.recorded() as launches:
        cuda_wgmma.multiply(a, b, c=c, tile=LARGE, **how)
    assert [launch[1] for launch in launches] == [(blocks,)]


# --- TF32 -----------------------------------------------------------------------------------------


def nearest_tf32(x):
    """Of 10 bits behind the point, ties to even, by sums in float64 that leave no more than these."""
    x = x.astype(np.float64)
    large = 1.5 * 2.0 ** (np.floor(np.log2(np.abs(x))) + 52 - 10)
    return ((x + large) - large).astype(np.float32)


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False)], ids=["nn", "nt", "tn"])
def test_float32_is_rounded_to_the_nearest_tf32(turned):
    """Halfway between two of them to the even one, by multiplying with ones."""
    random = np.random.default_rng(9)
    x = (random.standard_normal((40, 40)) * 2.0 ** random.integers(-60, 60, (40, 40))).astype(np.float32)
    halfway = np.resize([False, True, False, False], x.shape)
    bits = x.view(np.uint32)
    bits[halfway] = bits[halfway] & 0xFFFFE000 | 0x1000
    bits[0, :3] = (
        0x3FFFF000,
        0x3FFFEFFF,
        0x3FFFD000,
    )  # to 2; to what is before 2; halfway, to what is before that
    ones, c = np.eye(40, dtype=np.float32), np.full((40, 40), np.nan, np.float32)
    for a, b in ((x, ones), (ones, x)):
        a, b = a.T.copy() if turned[0] else a, b.T.copy() if turned[1] else b
        with emulated():
            cuda_wgmma.multiply(a, b, c=c, turned=turned)
        np.testing.assert_array_equal(c, nearest_tf32(x))
        assert (c[1:][halfway[1:]].view(np.uint32) & 0x3FFF == 0).all()
    assert c[0, :3].tolist() == [2, 2 - 2**-10, 2 - 2**-9]


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (64, 64), (130, 65)], ids=str)
@pytest.mark.parametrize("further", [0, 1, 4], ids=["without gaps", "one further", "four further"])
def test_transposed_copies(shape, further):
    whole = np.random.default_rng(3).standard_normal((shape[0], shape[1] + further)).astype(np.float32)
    with emulated():
        found = cuda_transpose.transposed(whole[:, : shape[1]])
    np.testing.assert_array_equal(found, whole[:, : shape[1]].T)
    assert shape[1] == 1 or found.strides[0] % 16 == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    cuda.syncthreads()\n", "", "race: shared|nothing has written"),
        ("left + row < columns and ", "", "out of bounds"),
        ("count > 0:", "True:", "out of bounds|race"),
        ("rows - (top + four)", "4", "race: global|out of bounds"),
        ("across * SIDE, cuda", "across * SIDE // 2, cuda", "race: global"),
        ("PITCH + row] =", "PITCH + row // 2] =", "two threads write|race: shared"),
    ],
    ids=["early", "rows of the copy", "columns of the copy", "numbers of a row", "squares", "a place twice"],
)
def test_faults_of_transposed_copies_are_found(old, new, message):
    faulty = with_fault(cuda_transpose, old, new)
    with emulated(), pytest.raises(PTXError, match=message):
        faulty.transposed(np.zeros((130, 70), np.float32))


# Of products whose outputs have nothing to read, a mask, or parameters and a velocity.
@pytest.mark.parametrize(
    ("shape", "depth", "end", "tile"),
    [
        ((128, 64), 8, "plain", SMALL),  # what is computed of a larger one would be half empty
        # Microseconds by small, middle and large tiles, on an H200.
        ((512, 2000), 2500, "plain", SMALL),  # 17.6, 22.0, 46.2: 128 blocks, not 64
        ((512, 500), 1000, "plain", SMALL),  # 9.7, 12.1, 26.3
        ((512, 2500), 784, "plain", MIDDLE),  # 14.7, 11.1, 24.4: 80 blocks, not two turns of small ones
        ((512, 2500), 2000, "mask", MIDDLE),  # 28.9, 21.0, 40.6
        ((512, 2000), 1500, "mask", SMALL),  # 13.3, 17.6, 34.6
        ((1501, 1000), 512, "update", MIDDLE),  # 16.4, 13.5, 35.5
        ((1001, 500), 512, "update", SMALL),  # 10.0, 13.0, 34.7
        ((4096, 4096), 4096, "plain", LARGE),  # middle ones are 8 % slower
        ((8192, 8192), 8192, "plain", LARGE),
    ],
    ids=str,
)
def test_the_tile_with_which_all_blocks_are_done_first(shape, depth, end, tile):
    a, b = (np.empty((side, -(-depth // 8) * 8), np.uint16) for side in shape)
    c, how = np.empty(shape, np.float32), {"turned": (False, True), "blocks": MULTIPROCESSORS}
    if end == "mask":
        how["y_below"] = np.empty((shape[0], -(-shape[1] // 2) * 2), np.uint16)[:, : shape[1]]
    elif end == "update":
        numbers = np.zeros((1, optimizer.NUMBERS), np.float32)
        how["then"] = optimizer.updating((np.empty_like(c),), False, numbers, np.zeros(1, np.int64))
    with emulated(), cuda.recorded() as launches:
        cuda_wgmma.multiply(a, b, c=c, **how)
    assert f"128 × {tile[1]}" in launches[0][0].name


FAULTS = [
    pytest.param(
        "                barrier_wait(arrived, parity)\n",
        "",
        "race: .* by a copy|nothing has written",
        id="no wait for tiles",
    ),
    pytest.param(
        "                barrier_wait(uint32(arrived + uint32(8 * stages)), parity)\n",
        "",
        "race: .* written by a copy",
        id="no wait for an empty stage",
    ),
    pytest.param(
        "if thread % GROUP == 0:\n            ptx.barrier_arrive",
        "if thread == 0:\n          for _ in range(GROUPS):\n            ptx.barrier_arrive",
        "race: shared word at .* was read by wgmma of 128",
        id="one warpgroup's word for both",
    ),
    pytest.param(
        "            k, more = int32(0), uint32(0)\n",
        "            k, more, stage, parity = int32(0), uint32(0), uint32(0), uint32(0)\n",
        "deadlock|race|wrong",
        id="phases that begin anew with each tile",
    ),
    pytest.param(
        "again else parity", "again else uint32(0)", "deadlock|race|wrong", id="phases that do not alternate"
    ),
    pytest.param(
        "            barriers_visible()\n",
        "",
        "no fence.proxy.async since",
        id="mbarriers that copies do not see",
    ),
    pytest.param(
        "        cuda.syncthreads()\n",
        "",
        "has initialised the mbarrier, and no barrier since|was not initialised",
        id="mbarriers that are used early",
    ),
    pytest.param(
        "sums.wait(running), sums",
        "sums.wait(running + 1), sums",
        "race: shared word at .* was read by wgmma",
        id="a stage given back that is still multiplied",
    ),
    pytest.param(
        "elif more:\n                    release(computed",
        "elif more:\n                    release(arrived",
        "race|deadlock",
        id="the stage that was just begun given back",
    ),
    pytest.param(
        "                wait_for_all()\n",
        "",
        "is used before wgmma.wait_group says|was read by wgmma",
        id="sums not waited for",
    ),
    pytest.param(
        "                release(computed, thread)\n            finish",
        "            finish",
        "deadlock",
        id="a tile's last stage kept",
    ),
    pytest.param("further), more)", "further), uint32(1))", "wrong", id="sums of the tile before"),
    pytest.param("of_warp(thread // GROUP)", "uint32(0)", "wrong", id="the other warpgroup's rows"),
    pytest.param("of_warp(stage)", "uint32(0)", "race|wrong", id="another stage's operands"),
    pytest.param(
        "barrier_arrive(uint32(arrived + uint32(8 * stages)))",
        "barrier_arrive(arrived)",
        "arrivals|deadlock",
        id="wrong barrier",
    ),
    pytest.param(
        "barrier_expect(arrived, uint32(stage_bytes))",
        "barrier_expect(arrived, uint32(16))",
        "deadlock",
        id="other bytes expected",
    ),
    pytest.param("top + 16 * warp", "top + 8 * warp", "race: global", id="rows of another warp"),
    pytest.param("ptx.EIGHT - 1)) & ~", "ptx.EIGHT - 1)) | ~", "shared", id="stages where there is nothing"),
    pytest.param(
        "stages * stage_bytes // 4 + warp * part",
        "warp * part",
        "race: shared",
        id="sums over operands that arrive",
    ),
    pytest.param(
        "+ warp * part", "+ warp // 2 * part", "two threads write one shared", id="two warps in one place"
    ),
    pytest.param("cuda.blockIdx.x, tiles", "0, tiles", "race: global|wrong", id="all tiles by each block"),
]


@pytest.mark.parametrize(("old", "new", "message"), FAULTS)
def test_faults_are_found(monkeypatch, old, new, message):
    monkeypatch.setattr(copies, "WAITS_IN_VAIN", 500)
    faulty = with_fault(cuda_wgmma, old, new)
    random, shape = np.random.default_rng(8), (140, 330, 150)
    a, b = exact(random, *shape[:2]), exact(random, *shape[1:])
    c = np.full((shape[0], shape[2]), np.nan, np.float32)

    def run():
        with emulated(burst=64):
            faulty.multiply(a, b, c=c, tile=SMALL)
        if not (c == in_order_of_k(a, b)).all():
            raise PTXError("wrong result")

    with pytest.raises(PTXError, match=message):
        run()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cuda.syncwarp()\n            keep(piece, to)", "keep(piece, to)"),
        ("keep(piece, to)\n            cuda.syncwarp()", "keep(piece, to)"),
    ],
    ids=["before", "after"],
)
def test_each_piece_of_sums_is_for_all_lanes_of_a_warp(old, new):
    faulty = using(cuda_wgmma, by_pieces=with_fault(cuda_epilogue, old, new).by_pieces)
    a, b, c = np.zeros((16, 8), np.uint16), np.zeros((8, 40), np.uint16), np.zeros((16, 40), np.float32)
    with emulated(), pytest.raises(PTXError, match="race: shared"):
        faulty.multiply(a, b, c=c, tile=SMALL)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("row + 16 <= rows and column", "column", "out of bounds"),
        ("column + columns_of_tile <= columns", "column <= columns", "out of bounds|race|not written"),
        ("(row + lane // 4) * row", "(row + lane // 8) * row", "two threads write one address"),
        ("+ lane % 4 * 2\n            store", "+ lane % 4\n            store", "misaligned|not aligned|race"),
        ("uint64(32 * row_distance)", "uint64(16 * row_distance)", "race: global"),
    ],
    ids=[
        "rows that there are not",
        "columns that there are not",
        "a row twice",
        "half a place",
        "four rows further",
    ],
)
def test_whole_tiles_are_written_where_they_belong(old, new, message):
    faulty = using(cuda_wgmma, by_pieces=with_fault(cuda_epilogue, old, new).by_pieces)
    a, b, c = np.zeros((20, 8), np.uint16), np.zeros((8, 72), np.uint16), np.zeros((20, 72), np.float32)
    with emulated(), pytest.raises(PTXError, match=message):
        faulty.multiply(a, b, c=c, tile=SMALL)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("row < rows and count > 0", "count > 0", "out of bounds"),
        ("min(width, columns - column) // 4 * 4", "min(width, columns - column)", "not in pieces of 16"),
    ],
    ids=["rows that there are not", "the last column"],
)
def test_what_is_brought_nearer_is_there(old, new, message):
    def update(module):
        a, b = np.zeros((64, 136), np.uint16), np.zeros((64, 72), np.uint16)[:, :67]
        p, velocity = (np.zeros((136, 68), np.float32)[:, :67] for _ in range(2))
        numbers = np.zeros((1, optimizer.NUMBERS), np.float32)
        then = optimizer.updating((velocity,), False, numbers, np.zeros(1, np.int64))
        with emulated():
            module.multiply(a, b, c=p, turned=(True, False), then=then, tile=SMALL)

    update(cuda_wgmma)
    faulty = using(cuda_wgmma, finisher=with_fault(cuda_epilogue, old, new).finisher)
    with pytest.raises(PTXError, match=message):
        update(faulty)
