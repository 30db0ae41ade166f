"""What is installed: one top-level package, everything in it, and a README that keeps its word."""

import configparser
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastdigit
from fastdigit.bench import acceptance

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def setup():
    config = configparser.ConfigParser(interpolation=None)
    config.read(PROJECT / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel, built from a copy so that the working tree stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, tracked):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).is_file():
            target.write_bytes((PROJECT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder),
            str(folder / "source"),
        ],
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return file.name, archive.namelist()


def test_the_wheel_holds_only_fastdigit(wheel):
    name, members = wheel
    assert name == f"fastdigit-{fastdigit.__version__}-py3-none-any.whl"
    tops = {member.split("/")[0] for member in members}
    assert tops == {"fastdigit", f"fastdigit-{fastdigit.__version__}.dist-info"}


def test_the_wheel_holds_every_module(wheel):
    _, members = wheel
    expected = set()
    for folder, prefix in (
        ("fastdigit", "fastdigit"),
        ("kernels", "fastdigit/kernels"),
        ("bench", "fastdigit/bench"),
    ):
        for path in (PROJECT / folder).rglob("*.py"):
            expected.add(f"{prefix}/{path.relative_to(PROJECT / folder).as_posix()}")
    assert {member for member in members if ".dist-info/" not in member} == expected


def test_listed_packages_are_the_folders_on_disk(setup):
    listed = set(setup["options"]["packages"].split())
    on_disk = set()
    for folder, package in (
        ("fastdigit", "fastdigit"),
        ("kernels", "fastdigit.kernels"),
        ("bench", "fastdigit.bench"),
    ):
        for init in (PROJECT / folder).rglob("*.py"):
            parts = init.parent.relative_to(PROJECT / folder).parts
            on_disk.add(".".join((package, *parts)))
            assert (init.parent / "__init__.py").exists(), f"{init.parent} has no __init__.py"
    assert listed == on_disk


def readme_commands():
    """The indented or fenced shell commands of the README that are marked for checking."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- command: (\w+) -->\s*```\w*\n(.+?)\n```", text, flags=re.DOTALL))


def test_the_readme_has_the_two_commands():
    commands = readme_commands()
    assert set(commands) == {"train", "test"}
    assert all("\n" not in command for command in commands.values())
    assert commands["train"].endswith("fastdigit train")
    assert commands["test"].endswith("-m pytest -n 2")


def test_links_and_pictures_of_the_pages_exist():
    for page in [*PROJECT.glob("*.md"), *PROJECT.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            link = target[0] or target[1]
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} points to {link}"


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        code = "import warnings; warnings.simplefilter('error')\n" + block
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert float(result.stdout.split()[0]) > 0.9  # both print an accuracy first


def test_the_python_in_the_kernels_readme_runs():
    text = (PROJECT / "kernels" / "README.md").read_text(encoding="utf-8")
    plain, jitted = re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)
    calls = (
        "x, w1, w2 = np.ones((5, 8), np.float32), np.ones((8, 4), np.float32), np.ones((4, 2), np.float32)\n"
        "p = np.empty((5, 2), np.float32)\n"
        "predict(x, w1, w2, np.empty((5, 4), np.float32), p)\n"
        "assert (p == 0.5).all(), p\n"
        "assert abs(y - 0.1).max() < 1e-6, y\n"
    )
    result = subprocess.run([sys.executable, "-c", plain + jitted + calls], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("page", "name", "file"),
    [("README.md", "acceptance", "acceptance.json"), ("kernels/README.md", "cpu", "cpu_acceptance.json")],
)
def test_a_pages_table_is_the_one_of_the_results(page, name, file):
    rows = json.loads((PROJECT / "bench" / "results" / file).read_text())["rows"]
    text = (PROJECT / page).read_text(encoding="utf-8")
    table = text.split(f"<!-- table: {name} -->")[1].split(acceptance.END)[0]
    assert table.strip() == acceptance.markdown(rows)
