"""bench.revisions: another revision of fastdigit as a side of a benchmark."""

import shutil
import subprocess
from pathlib import Path

import pytest

import fastdigit as fd
from fastdigit.bench import cases, revisions, suite, train
from fastdigit.cli import main
from fastdigit.errors import ConfigError

TINY = cases.Network((784, 16, 10), 32)
PROJECT = Path(revisions.__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of the project as it is here. ``clone(text)`` commits text at the end of training.py."""
    folder = tmp_path / "clone"
    for name in ("fastdigit", "kernels", "bench"):
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__")
        )

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)

    def commit(text):
        training = folder / "fastdigit" / "training.py"
        training.write_text(training.read_text() + text)
        git("add", "-A")
        git("commit", "-q", "-m", "a change")

    git("init", "-q")
    commit("")
    monkeypatch.setattr(revisions, "PROJECT", folder)
    return commit


def test_a_change_that_slows_training_down_is_seen(clone, monkeypatch, capsys):
    # The revision says that it was slow; the one at hand, which is installed, does not.
    clone("""
_fit = fit
def fit(*arguments, **options):
    import dataclasses
    log = _fit(*arguments, **options)
    slow = [dataclasses.replace(e, images_per_second=e.images_per_second / 4) for e in log.epochs]
    log.epochs[:] = slow
    return log
""")
    monkeypatch.setattr(train, "NETWORKS", {"small-32": TINY})
    monkeypatch.setattr(suite, "data_set", lambda: ("digits", fd.load_digits()))
    options = ["--backend", "numpy", "--rounds", "2", "--seconds", "0.05"]
    assert main(["bench", "compare", "HEAD", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    ratio, name = said[0].split("±")
    assert float(ratio) > 2
    assert "train small-32 fastdigit  faster" in name
    assert said[1] == "1 rows, 0 slower by more than 5% and their noise"


def test_a_revision_that_cannot_train_says_so(clone):
    clone("\nraise RuntimeError('half-done')\n")
    with pytest.raises(ConfigError, match=r"tiny, before the change: .*half-done"):
        revisions.measure("HEAD", {"tiny": TINY}, fd.load_digits().train, 1, 0.05, "numpy")


def test_unpacking_a_revision(clone, tmp_path):
    commit = revisions.unpack("HEAD", tmp_path / "there")
    assert len(commit) >= 7
    assert (tmp_path / "there" / "fastdigit" / "kernels" / "matmul" / "reference.py").is_file()
    assert (tmp_path / "there" / "fastdigit" / "bench" / "train.py").is_file()


@pytest.mark.parametrize("revision", ["nonsense", "--help", ""])
def test_what_is_no_revision(revision, clone, tmp_path):
    with pytest.raises(ConfigError, match="is neither a file nor a revision of"):
        revisions.unpack(revision, tmp_path / "there")


def test_one_file_is_not_enough(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main(["bench", "compare", str(tmp_path / "a.json")]) == 2
    assert "second file" in capsys.readouterr().err
