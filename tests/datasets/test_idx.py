"""Reading and writing idx files: round trips, and every way in which a file can be wrong."""

import gzip
import hashlib
import os
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastdigit.datasets import read_idx, write_idx
from fastdigit.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# Written out by hand from the format's definition, independent of write_idx.
IMAGES_IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)])
INTS_IDX = bytes([0, 0, 0x0C, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 1, 2, 255, 255, 255, 254])

same_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def header(code: int, *shape: int) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tensor"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_uint8_by_content_not_by_name(path, pack):
    path.write_bytes(pack(IMAGES_IDX))
    tensor = read_idx(path)
    assert tensor.dtype == np.uint8
    np.testing.assert_array_equal(tensor, IMAGES)


def test_reads_big_endian_int32_as_native(path):
    path.write_bytes(INTS_IDX)
    tensor = read_idx(path)
    assert tensor.dtype == np.dtype("=i4")
    assert tensor.tolist() == [[258, -2]]


def test_a_gzip_file_of_several_members_is_one_file(path):
    path.write_bytes(gzip.compress(IMAGES_IDX[:19]) + gzip.compress(IMAGES_IDX[19:]))
    np.testing.assert_array_equal(read_idx(path), IMAGES)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_cut_at_any_byte(path, pack):
    whole = pack(IMAGES_IDX)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut short|truncated|at most"):
            read_idx(path)


def test_any_damaged_byte_of_a_gzip_file_is_noticed_or_harmless(path):
    whole = gzip.compress(IMAGES_IDX, mtime=0)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            tensor = read_idx(path)
        except DataError:
            continue
        np.testing.assert_array_equal(tensor, IMAGES)  # the time in gzip's header, for one, means nothing


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00\x01" + IMAGES_IDX[2:], "not an idx file"),
        (b"<html>not found</html>", "not an idx file"),
        (header(0x0D, 1) + bytes(4), "element type 0x0d"),
        (header(8), "rank 0"),
        (header(8, *[1] * 33) + bytes(1), "rank 33"),
        (header(8, 3, 3, 4) + bytes(24), "at most"),
        (header(8, 2**32 - 1, 2**32 - 1, 2**32 - 1), "at most"),
        (header(8, *[2**31] * 32), "at most"),
        (header(8, 0, 2**32 - 1, 2**32 - 1), "larger than any array"),
        (IMAGES_IDX + b"\x00", "more bytes"),
        (header(8, 0) + b"\x00", "more bytes"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_wrong_content_is_named(path, content, reason, pack):
    if pack is gzip.compress and reason == "at most" and len(content) > 16:
        reason = "at most|cut short"  # 24 bytes could be zipped to that few
    path.write_bytes(pack(content))
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def peak_memory(path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_stops_at_the_declared_size(path):
    path.write_bytes(gzip.compress(header(8, 1000) + bytes(200_000_000), compresslevel=1))
    assert peak_memory(path) < 2_000_000


def test_a_size_that_the_gzip_file_cannot_hold_is_refused_before_allocation(path):
    path.write_bytes(gzip.compress(header(8, 2**31)))
    assert peak_memory(path) < 1_000_000


def test_empty_tensor(path):
    path.write_bytes(header(8, 0, 28, 28))
    assert read_idx(path).shape == (0, 28, 28)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"no-such-file.*No such file"):
        read_idx(tmp_path / "no-such-file")
    with pytest.raises(DataError, match="directory"):
        read_idx(tmp_path)


def test_sha256_is_of_the_uncompressed_bytes(path):
    path.write_bytes(gzip.compress(IMAGES_IDX))
    right = hashlib.sha256(IMAGES_IDX).hexdigest()
    np.testing.assert_array_equal(read_idx(path, sha256=right.upper()), IMAGES)
    with pytest.raises(DataError, match=right):
        read_idx(path, sha256="0" * 64)


headers = st.builds(header, st.sampled_from([8, 12]), st.integers(0, 2**32 - 1), st.integers(0, 9))


@same_file
@given(
    content=st.binary(max_size=64) | st.builds(bytes.__add__, headers, st.binary(max_size=64)),
    zipped=st.booleans(),
)
def test_random_bytes_give_a_tensor_of_those_bytes_or_an_error(path, content, zipped):
    path.write_bytes(gzip.compress(content) if zipped else content)
    tracemalloc.start()
    try:
        tensor = read_idx(path)
    except DataError:
        pass
    else:
        assert content.endswith(tensor.astype(tensor.dtype.newbyteorder(">")).tobytes())
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


@same_file
@given(
    array=hnp.arrays(
        st.sampled_from([np.dtype("u1"), np.dtype("<i4"), np.dtype(">i4")]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    name=st.sampled_from(["a.idx", "a.gz"]),
)
def test_round_trip(tmp_path, array, name):
    write_idx(tmp_path / name, array.T)
    tensor = read_idx(tmp_path / name)
    np.testing.assert_array_equal(tensor, array.T)
    assert tensor.dtype.isnative
    assert os.listdir(tmp_path) == [name]
    os.remove(tmp_path / name)


def test_written_bytes_are_the_format_and_always_the_same(tmp_path):
    write_idx(tmp_path / "plain", IMAGES)
    assert (tmp_path / "plain").read_bytes() == IMAGES_IDX
    write_idx(tmp_path / "one.gz", IMAGES)
    write_idx(tmp_path / "two.gz", IMAGES)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()) == IMAGES_IDX


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros(3, np.int64), np.uint8(7)], ids=["f8", "i8", "rank 0"]
)
def test_what_idx_cannot_hold_is_not_written(path, array):
    with pytest.raises(DataError):
        write_idx(path, array)
    assert not path.exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(path, monkeypatch, fails):
    write_idx(path, IMAGES)

    def disk_full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_idx(path, IMAGES + 1)
    assert path.read_bytes() == IMAGES_IDX
    assert os.listdir(path.parent) == [path.name]


def test_real_mnist_agrees_with_a_plain_reading_of_the_bytes(mnist_root):
    [file] = mnist_root.glob("t10k-images*")
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    expected = np.frombuffer(content, np.uint8, offset=16).reshape(10_000, 28, 28)
    np.testing.assert_array_equal(read_idx(file), expected)
