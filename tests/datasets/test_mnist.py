"""Loading MNIST from folders and from mirrors that work, lie, break off or do not exist."""

import contextlib
import gzip
import hashlib
import logging
import socket
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pooch
import pytest

from fastdigit.datasets import download, load_folder, load_mnist, mnist, write_idx
from fastdigit.errors import DataError, DownloadError

TENSORS = {
    "train-images-idx3-ubyte": np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4),
    "train-labels-idx1-ubyte": np.array([7, 0, 9], np.uint8),
    "t10k-images-idx3-ubyte": np.full((2, 4, 4), 5, np.uint8),
    "t10k-labels-idx1-ubyte": np.array([1, 2], np.uint8),
}


@pytest.fixture(autouse=True)
def no_shared_data(monkeypatch):
    monkeypatch.delenv("FASTDIGIT_DATA", raising=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small data set on disk, laid out like MNIST."""
    root = tmp_path / "folder"
    root.mkdir()
    for name, tensor in TENSORS.items():
        write_idx(root / f"{name}.gz", tensor)
    return root


@pytest.fixture
def sha256(folder) -> dict[str, str]:
    files = {name: gzip.decompress((folder / f"{name}.gz").read_bytes()) for name in TENSORS}
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder in which load_mnist keeps its files during this test."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "fastdigit" / "mnist"


@pytest.fixture
def server(folder):
    """A web server whose folders are mirrors: good, wrong, short, html; any other answers 404."""
    asked = Counter()

    class Mirrors(BaseHTTPRequestHandler):
        def do_GET(self):
            _, mirror, name = self.path.split("/")
            asked[mirror] += 1
            body = (folder / name).read_bytes()
            length = len(body)
            if mirror == "wrong":
                body = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 0]))
                length = len(body)
            elif mirror == "short":
                body = body[: length // 2]
            elif mirror == "html":
                body = b"<html>log in to this network first</html>"
                length = len(body)
            elif mirror != "good":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mirrors) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        running.asked = asked
        running.mirror = lambda name: f"http://127.0.0.1:{running.server_port}/{name}/"
        yield running
        running.shutdown()


def check(dataset):
    np.testing.assert_array_equal(dataset.train.images, TENSORS["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.train.labels, TENSORS["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(dataset.test.images, TENSORS["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.test.labels, TENSORS["t10k-labels-idx1-ubyte"])


def files_under(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_downloads_once_and_quietly(server, cache, sha256, caplog, capfd):
    caplog.set_level(logging.INFO)
    mirrors = [server.mirror("good")]
    check(load_mnist(mirrors=mirrors, sha256=sha256))
    assert files_under(cache) == sorted(f"{name}.gz" for name in TENSORS)
    check(load_mnist(mirrors=mirrors, sha256=sha256))
    assert server.asked == {"good": 4}
    assert not [record for record in caplog.records if not record.name.startswith("urllib3")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", ["missing", "wrong", "short", "html"])
def test_a_bad_mirror_leads_to_the_next(server, cache, sha256, first):
    check(load_mnist(mirrors=[server.mirror(first), server.mirror("good")], sha256=sha256))
    assert server.asked == {first: 4, "good": 4}
    assert files_under(cache) == sorted(f"{name}.gz" for name in TENSORS)


def test_no_mirror_is_good(server, cache, sha256):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        closed_port = unused.getsockname()[1]
    mirrors = [*map(server.mirror, ["missing", "wrong", "short", "html"]), f"http://127.0.0.1:{closed_port}/"]
    with pytest.raises(DownloadError) as caught:
        load_mnist(mirrors=mirrors, sha256=sha256)
    message = str(caught.value)
    for expected in [*mirrors, "404", "SHA-256", "could not be reached", str(cache), "FASTDIGIT_DATA"]:
        assert expected in message
    assert all(f"{name}.gz" in message for name in TENSORS)
    assert "\n" not in message
    assert files_under(cache) == []


def test_a_mirror_that_does_not_answer(cache, sha256, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(DownloadError, match=r"within 0\.1 s"),
    ):
        load_mnist(mirrors=[f"http://127.0.0.1:{silent.getsockname()[1]}/"], sha256=sha256)
    assert files_under(cache) == []


def test_interrupted_download_leaves_nothing(cache, sha256, monkeypatch):
    def interrupted(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"part of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_mnist(mirrors=["http://localhost/"], sha256=sha256)
    assert files_under(cache) == []


def test_cache_that_cannot_be_written(tmp_path, cache, sha256):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=r"(?i)not a directory|exists"):
        load_mnist(mirrors=["http://localhost/"], sha256=sha256)


def test_damaged_cache_is_downloaded_again(server, cache, sha256, caplog):
    mirrors = [server.mirror("good")]
    load_mnist(mirrors=mirrors, sha256=sha256)
    damaged = cache / "t10k-images-idx3-ubyte.gz"
    write_idx(damaged, TENSORS["t10k-images-idx3-ubyte"] + 1)
    check(load_mnist(mirrors=mirrors, sha256=sha256))
    assert server.asked == {"good": 5}
    assert str(damaged) in caplog.text


@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "dots", "dots.gz"])
def test_every_spelling_of_the_files(tmp_path, sha256, spelling):
    root = tmp_path / "spelled"
    root.mkdir()
    for name, tensor in TENSORS.items():
        write_idx(root / spelling.format(name).replace("dots", name.replace("-idx", ".idx")), tensor)
    check(load_mnist(root, sha256=sha256))
    check(load_folder(root, "mine"))
    assert load_folder(root, "mine").name == "mine"


def test_explicit_folders_never_download(server, cache, tmp_path, monkeypatch, sha256, folder):
    mirrors = [server.mirror("good")]
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="folder lacks t10k-labels-idx1-ubyte"):
        load_mnist(folder, mirrors=mirrors, sha256=sha256)
    monkeypatch.setenv("FASTDIGIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"mnist is not a folder.*train-images-idx3-ubyte"):
        load_mnist(mirrors=mirrors, sha256=sha256)
    folder.rename(tmp_path / "mnist")
    write_idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte", TENSORS["t10k-labels-idx1-ubyte"])
    check(load_mnist(mirrors=mirrors, sha256=sha256))
    assert not server.asked
    assert not cache.exists()


def test_a_folder_with_another_content_is_refused(folder):
    with pytest.raises(
        DataError, match=f"train-images-idx3-ubyte.*{mnist.SHA256['train-images-idx3-ubyte']}"
    ):
        load_mnist(folder)


def test_labels_that_do_not_fit_name_the_files(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.array([1, 12], np.uint8))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: label 12 at index 1"):
        load_folder(folder, "mine")


def test_real_mnist(mnist_root):
    data = load_mnist(mnist_root)
    assert data.train.images.shape == (60_000, 28, 28)
    assert data.test.images.shape == (10_000, 28, 28)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (data.train.images / 255).mean() == pytest.approx(0.1307, abs=5e-5)
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
