"""Who wrote which image: from folders and mirrors, sound, damaged or not belonging to the images."""

import gzip
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pooch
import pytest

import fastdigit as fd
from fastdigit.datasets import load_writers, write_idx

NAME = "qmnist-test-labels-idx2-int"


@pytest.fixture(autouse=True)
def no_shared_data(monkeypatch):
    monkeypatch.delenv("FASTDIGIT_DATA", raising=False)


@pytest.fixture(scope="module")
def table():
    """Ten thousand and some rows, as the test file has more than MNIST's."""
    rows = np.zeros((10_050, 8), np.int32)
    rows[:, 0] = np.arange(len(rows)) % 10
    rows[:, 1] = np.where(np.arange(len(rows)) < 5000, 4, 0)
    rows[:, 2] = 300 + np.arange(len(rows)) // 25
    return rows


@pytest.fixture
def folder(tmp_path, table):
    write_idx(tmp_path / NAME, table)
    return tmp_path


def hash_of(path):
    content = path.read_bytes()
    return {"test": hashlib.sha256(gzip.decompress(content) if path.suffix else content).hexdigest()}


def check(writers, table):
    assert len(writers) == 10_000
    for column, values in enumerate((writers.digit, writers.series, writers.writer)):
        assert np.array_equal(values, table[:10_000, column])
    assert (writers.digit.dtype, writers.series.dtype) == (np.uint8, np.int32)


def test_from_a_folder(folder, table, monkeypatch):
    sha256 = hash_of(folder / NAME)
    check(load_writers("test", root=folder, sha256=sha256), table)
    (folder / "writers").mkdir()
    write_idx(folder / "writers" / f"{NAME}.gz", table)
    monkeypatch.setenv("FASTDIGIT_DATA", str(folder))
    check(load_writers("test", sha256=sha256), table)


def test_labels_must_be_those_of_the_rows(folder, table):
    sha256 = hash_of(folder / NAME)
    labels = table[:10_000, 0].astype(np.uint8)
    check(load_writers("test", labels, root=folder, sha256=sha256), table)
    labels[77] = 0
    with pytest.raises(fd.DataError, match="index 77 is labelled 0, but its writer wrote a 7"):
        load_writers("test", labels, root=folder, sha256=sha256)
    with pytest.raises(fd.DataError, match=r"10,000 images.* 360 labels"):
        load_writers("test", labels[:360], root=folder, sha256=sha256)


def test_rows_that_are_taken(folder):
    few = load_writers("test", root=folder, sha256=hash_of(folder / NAME)).take(np.array([5000, 3]))
    assert (few.digit.tolist(), few.series.tolist(), few.writer.tolist()) == ([0, 3], [0, 4], [500, 300])


def cut(content):
    return content[: len(content) // 2]


def changed(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, changed, lambda content: b"", lambda content: content + b"x"])
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_files_are_refused_by_name(folder, damage, zipped):
    sha256, path = hash_of(folder / NAME), folder / NAME
    content = damage(path.read_bytes())
    if zipped:
        path.unlink()
        path, content = folder / f"{NAME}.gz", gzip.compress(content, 1)
    path.write_bytes(content)
    with pytest.raises(fd.DataError) as caught:
        load_writers("test", root=folder, sha256=sha256)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("shape", [(10_000,), (9_999, 8), (10_000, 2)])
def test_another_shape_is_refused(folder, shape):
    write_idx(folder / NAME, np.zeros(shape, np.int32))
    with pytest.raises(fd.DataError, match="rows of digit, series, writer"):
        load_writers("test", root=folder, sha256=hash_of(folder / NAME))


def test_what_is_missing(folder, tmp_path, monkeypatch):
    with pytest.raises(fd.DataError, match=r"lacks qmnist-train-labels-idx2-int\.gz: put it there.*https"):
        load_writers("train", root=folder)
    monkeypatch.setenv("FASTDIGIT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(fd.DataError, match="nowhere"):
        load_writers("test", mirrors=["http://localhost/"])  # not asked, since a folder is named
    with pytest.raises(fd.ConfigError, match="'train' or 'test', got 'both'"):
        load_writers("both")


def test_another_content_is_refused(folder):
    with pytest.raises(fd.DataError, match="SHA-256"):
        load_writers("test", root=folder)


# --- downloads ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "fastdigit" / "writers"


@pytest.fixture
def server(table, tmp_path):
    """Serves the file under /good/, cut short under /bad/; ``asked`` lists the paths."""
    write_idx(tmp_path / "served.gz", table)
    body = (tmp_path / "served.gz").read_bytes()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            mirror, name = self.path.strip("/").split("/")
            if name != f"{NAME}.gz":
                self.send_error(404)
                return
            sent = body if mirror == "good" else cut(body)
            self.send_response(200)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        running.asked = asked
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.sha256 = hash_of(tmp_path / "served.gz")
        yield running
        running.shutdown()


def test_downloads_once(server, cache, table):
    mirrors = [f"{server.url}/bad/", f"{server.url}/good/"]
    for _ in range(2):
        check(load_writers("test", mirrors=mirrors, sha256=server.sha256), table)
    assert server.asked == [f"/bad/{NAME}.gz", f"/good/{NAME}.gz"]
    assert [path.name for path in cache.iterdir()] == [f"{NAME}.gz"]


def test_no_mirror_has_it(server, cache):
    with pytest.raises(fd.DownloadError) as caught:
        load_writers("train", mirrors=[f"{server.url}/good/"], sha256={"train": "0"})
    message = str(caught.value)
    for part in ("404", "By hand", str(cache), "a folder named writers", "FASTDIGIT_DATA"):
        assert part in message
    assert list(cache.iterdir()) == []


# --- the real ones --------------------------------------------------------------------------------


def test_real_writers(mnist_root):
    if not (mnist_root.parent / "writers").is_dir():
        pytest.skip(f"there is no folder writers/ beside {mnist_root}")
    root = mnist_root.parent / "writers"
    data = fd.load_mnist(mnist_root)
    halves = {split: load_writers(split, getattr(data, split).labels, root) for split in ("train", "test")}
    assert len(halves["train"]) == 60_000
    for split, employees, students in (("train", 30_950, 29_050), ("test", 4_999, 5_001)):
        assert np.bincount(halves[split].series).tolist() == [employees, 0, 0, 0, students]
    assert not set(halves["train"].writer) & set(halves["test"].writer)
    assert [len(set(half.writer)) for half in halves.values()] == [539, 297]
