"""Atomic writing under every failure that the system can report."""

import builtins
import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

import fastdigit as fd
from fastdigit.files import atomic_write, remove_leftovers

from .conftest import same_bits


class FailingFile:
    """A file whose n-th write, flush or close-time call fails as on a full disk."""

    def __init__(self, file, countdown):
        self.file, self.countdown = file, countdown

    def _count(self):
        self.countdown[0] -= 1
        if self.countdown[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, data):
        self._count()
        return self.file.write(data)

    def flush(self):
        self._count()
        return self.file.flush()

    def fileno(self):
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


@pytest.fixture
def fail_at(monkeypatch):
    """``fail_at(n)``: the n-th system call of writing fails from now on; returns the countdown."""

    def install(n):
        countdown = [n]

        def counted(function, wanted=lambda *a, **k: True):
            def call(*args, **options):
                if wanted(*args, **options):
                    countdown[0] -= 1
                    if countdown[0] == 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return function(*args, **options)

            return call

        real_open = builtins.open

        def opener(file, mode="r", *args, **options):
            opened = real_open(file, mode, *args, **options)
            return FailingFile(opened, countdown) if "x" in mode else opened

        monkeypatch.setattr(builtins, "open", counted(opener, lambda f, m="r", *a, **k: "x" in m))
        monkeypatch.setattr(os, "fsync", counted(os.fsync))
        monkeypatch.setattr(os, "replace", counted(os.replace))
        return countdown

    return install


def test_the_old_file_survives_a_failure_of_every_single_call(fail_at, tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    old, new = (fd.Network([4, 3, 2], backend="numpy", seed=seed) for seed in range(2))
    old.save(file)
    failures = 0
    for n in range(1, 20):
        countdown = fail_at(n)
        try:
            new.save(file)
        except OSError:
            failures += 1
        monkeypatch.undo()
        if countdown[0] > 0:  # it came through without reaching the n-th call
            break
        kept = fd.Network.load(file, backend="numpy")
        # Only the flush of the folder comes after the renaming.
        assert same_bits(kept, old) or (same_bits(kept, new) and n == failures)
        if same_bits(kept, new):
            old.save(file)
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert failures == 6  # open, write, flush, fsync, replace, fsync of the folder
    assert same_bits(fd.Network.load(file, backend="numpy"), new)


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="absent"):
        atomic_write(tmp_path / "absent" / "file", b"x")


def test_a_read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "file"
        file.write_bytes(b"old")
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:  # root may write anywhere: be nobody for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                atomic_write(file, b"new")
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o700)
        assert file.read_bytes() == b"old"


def test_a_new_file_has_the_usual_mode(tmp_path):
    atomic_write(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_leftovers_of_a_killed_write_are_cleared_away(tmp_path):
    ours = tmp_path / ".model.safetensors.0123456789ab.tmp"
    others = [tmp_path / "model.safetensors", tmp_path / ".other.0123.tmp", tmp_path / "x.tmp"]
    for path in [ours, *others]:
        path.write_bytes(b"half")
    remove_leftovers(tmp_path / "model.safetensors")
    assert sorted(tmp_path.iterdir()) == sorted(others)
