"""Compiled kernels on disk: found again, never stale, never damaged, and not missed where there is no place.

Some tests run a small package in processes of their own, with a copy of kernels/common; where a new
process would change nothing, a function is compiled anew in this one.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import timeit
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching

from fastdigit.kernels.common import compiling

PROJECT = Path(__file__).resolve().parents[2]

# ``double`` and ``store`` have the code of another file inside, as all kernels have.
OTHER = "from ..common.compiling import jit\n\n@jit\ndef times(x):\n    return x * 2\n"
TINY = """
from ..common.compiling import OPTIONS, c_function, jit
from ..common.memory import ints
from .other import times

def double(x):
    return times(x)

def store(a, b, c, address):
    ints(address, 1)[0] = times(a)
"""
RUN = """
import ctypes, json, warnings
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from copied.tiny import tiny
    double = tiny.jit(tiny.double)
    store = tiny.c_function(tiny.store)
    word = np.zeros(1, np.int64)
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(store.address)(5, 0, 0, word.ctypes.data)
    value = double(3)
print(json.dumps({
    "values": [value, int(word[0])],
    "hits": [sum(double.stats.cache_hits.values()), store.cache_hits],
    "path": double.stats.cache_path,
    "warnings": [str(w.message) for w in caught],
    "kinds": [w.category.__name__ for w in caught],
}))
"""


@pytest.fixture
def package(tmp_path):
    """The folder of a package ``copied`` with kernels/common and a kernel of two files."""
    root = tmp_path / "copied"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(compiling.__file__).parent, root / "common", ignore=ignore)
    (root / "tiny").mkdir()
    for name in ("__init__.py", "tiny/__init__.py"):
        (root / name).touch()
    (root / "tiny" / "other.py").write_text(OTHER)
    (root / "tiny" / "tiny.py").write_text(TINY)
    return root


PLACES = ("chosen", "beside the source", "home", "none")


def run(package, place, code=RUN):
    """Compile, or load, and call the small kernels in a process of its own."""
    home, chosen = package.parent / "home", package.parent / "chosen"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"XDG_CACHE_HOME": str(home), "HOME": str(home)}
    if place == "chosen":
        environment["NUMBA_CACHE_DIR"] = str(chosen)
    if place in ("home", "none"):  # a file where a folder would have to be: so it is for root too
        for folder in ("tiny", "common"):
            (package / folder / "__pycache__").touch()
    if place == "none":
        home.touch()
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=package.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    where = {"chosen": chosen, "home": home, "beside the source": package}
    assert place == "none" or Path(found["path"]).is_relative_to(where[place])
    return found


@pytest.mark.parametrize("place", PLACES[:3])
def test_kept_while_no_source_has_changed(package, place):
    first = run(package, place)
    assert (first["values"], first["hits"], first["warnings"]) == ([6, 10], [0, 0], [])
    files = sorted(Path(first["path"]).glob("*.nb?"))
    again = run(package, place)
    assert (again["values"], again["hits"], again["warnings"]) == ([6, 10], [1, 1], [])

    # Of the same size and age, as a tool that unpacks archives may leave it.
    other = package / "tiny" / "other.py"
    age = other.stat()
    other.write_text(OTHER.replace("2", "7"))
    os.utime(other, ns=(age.st_atime_ns, age.st_mtime_ns))
    changed = run(package, place)
    assert (changed["values"], changed["hits"]) == ([21, 35], [0, 0])
    assert run(package, place)["hits"] == [1, 1]
    assert sorted(Path(first["path"]).glob("*.nb?")) == files  # instead of the old ones, not beside them


def test_a_new_or_renamed_source_counts_too(package):
    run(package, "chosen")
    (package / "tiny" / "more.py").write_text("")
    assert run(package, "chosen")["hits"] == [0, 0]
    (package / "tiny" / "more.py").rename(package / "tiny" / "most.py")
    assert run(package, "chosen")["hits"] == [0, 0]
    (package / "README.md").write_text("no source")
    assert run(package, "chosen")["hits"] == [1, 1]


def test_numba_alone_would_have_run_stale_code(package):
    """Else this all is not needed any more."""
    code = RUN.replace("tiny.jit(", "__import__('numba').njit(**tiny.OPTIONS)(")
    assert run(package, "chosen", code)["values"][0] == 6
    (package / "tiny" / "other.py").write_text(OTHER.replace("2", "7"))
    assert run(package, "chosen", code)["values"][0] == 6


def test_no_place_at_all(package):
    for _ in range(2):
        found = run(package, "none")
        assert (found["values"], found["hits"]) == ([6, 10], [0, 0])
        assert found["kinds"] == ["RuntimeWarning"]
        assert "set NUMBA_CACHE_DIR to a folder that can be written to" in found["warnings"][0]
        assert "\n" not in found["warnings"][0]


def test_the_real_kernels_with_every_file_damaged(tmp_path):
    """One line is said, a product is right, and the next process finds everything in order."""
    code = (
        "import numpy as np\n"
        "from fastdigit.kernels.relu import cpu\n"
        "x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)\n"
        "y = np.empty_like(x)\n"
        "cpu.relu(x, y)\n"
        "assert (y == np.maximum(x, 0)).all()\n"
    )

    def process():
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stderr

    assert process() == ""
    files = sorted(tmp_path.rglob("*.nb?"))
    assert len(files) > 4
    sound = {file: file.stat().st_size for file in files}
    for number, file in enumerate(files):
        content = file.read_bytes()
        file.write_bytes((content[: len(content) // 2], b"", bytes(len(content)))[number % 3])
    said = process()
    assert said.count("RuntimeWarning") == 1
    assert "could not be read, so some are compiled again" in said
    assert "Traceback" not in said
    assert process() == ""
    assert {file.stat().st_size > 0 for file in sound} == {True}


# --- in this process ------------------------------------------------------------------------------


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A function of a file of its own, with a folder for its compiled code, and nothing said yet."""
    file = tmp_path / "source.py"
    file.write_text("def thrice(x):\n    return 3 * x\n")
    spec = importlib.util.spec_from_file_location("source", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "source", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(compiling, "_warned", False)
    return module.thrice


def files_of(folder, kind):
    return sorted(folder.rglob(f"*.{kind}"))


def hits(compiled):
    return sum(compiled.stats.cache_hits.values())


def flip_a_bit(content):
    middle = len(content) // 2  # machine code
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "cut by one": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "cut at 10": lambda content: content[:10],
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "text": lambda content: b"<html>503</html>",
    "another pickle": lambda content: b"\x80\x04}.",
    "one bit": flip_a_bit,
}


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_compiled_again(function, tmp_path, kind, damage):
    assert compiling.jit(function)(4) == 12
    (file,) = files_of(tmp_path, kind)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = compiling.jit(function)
        assert again(4) == 12
        assert hits(again) == 0
        repaired = compiling.jit(function)
        assert repaired(4) == 12
        assert hits(repaired) == 1
    # What is another version's index, or names nothing, is no damage to speak of.
    assert len(caught) <= 1
    if kind == "nbc":
        assert [w.category for w in caught] == [RuntimeWarning]
        assert "could not be read" in str(caught[0].message)


def test_every_cut_of_an_index(function, tmp_path):
    """Wherever a full disk or a lost connection has ended it."""
    compiling.jit(function)(4)
    (file,) = files_of(tmp_path, "nbi")
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            assert compiling.jit(function)(4) == 12
        assert files_of(tmp_path, "nbi") == [file]
        assert file.read_bytes()[:1] == content[:1]


def test_a_warning_is_said_once(function, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            compiling.jit(function)(4)
            for file in files_of(tmp_path, "nbc"):
                file.write_bytes(b"damaged")
    assert len(caught) == 1


def test_code_for_another_signature_is_not_run(function, tmp_path):
    """Two processes that number their files at the same time can leave them so."""
    compiled = compiling.jit(function)
    compiled(4)
    compiled(4.5)
    first, second = files_of(tmp_path, "nbc")
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    again = compiling.jit(function)
    assert (again(4), again(4.5)) == (12, 13.5)
    assert hits(again) == 0


def test_code_of_older_sources_is_not_run(function, tmp_path, monkeypatch):
    """The same, where one of the two processes had been started before an update."""
    compiling.jit(function)(4)
    (file,) = files_of(tmp_path, "nbc")
    old = file.read_bytes()
    monkeypatch.setattr(compiling, "digest_of_sources", lambda: "newer sources")
    newer = compiling.jit(function)
    newer(4)
    file.write_bytes(old)
    again = compiling.jit(function)
    assert again(4) == 12
    assert (hits(newer), hits(again)) == (0, 0)


def test_a_place_that_is_gone_when_code_is_to_be_saved(function, tmp_path):
    compiled = compiling.jit(function)
    shutil.rmtree(tmp_path / "kept")
    (tmp_path / "kept").touch()
    with pytest.warns(RuntimeWarning, match="could not be (read|written)"):
        assert compiled(4) == 12


def test_a_full_disk(function, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_open_for_write", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert compiling.jit(function)(4) == 12
    assert files_of(tmp_path, "nbc") == []


def test_a_function_without_a_file(monkeypatch):
    """As one typed into ``python -c``: compiled, though it can be kept nowhere."""
    monkeypatch.setattr(compiling, "_warned", False)
    names = {}
    exec(compile("def half(x):\n    return x / 2", "<string>", "exec"), names)
    with pytest.warns(RuntimeWarning, match="no locator available"):
        compiled = compiling.jit(names["half"])
    assert compiled(5.0) == 2.5


def test_other_packages_keep_their_code_as_before(function):
    """Nothing of Numba is exchanged."""
    compiling.jit(function)
    compiling.c_function(keep_nothing)
    theirs = numba.njit(cache=True)(function)
    assert type(theirs._cache) is caching.FunctionCache
    assert type(theirs._cache._cache_file) is caching.IndexDataCacheFile
    assert {place.__module__ for place in caching.CacheImpl._locator_classes} == {caching.__name__}


def test_inner_functions_are_for_compiled_code_alone(function):
    """Without its own entry for Python, a call of one by mistake must not run machine code at address 0."""
    thrice = compiling.inner(function)
    with pytest.raises(TypeError, match="thrice is for code that Numba compiles"):
        thrice(4)
    nine_times = numba.njit(lambda x: thrice(thrice(x)))
    assert nine_times(4) == 36
    with pytest.raises(TypeError, match="thrice is for code that Numba compiles"):
        thrice(4)  # though it is compiled now
    again = compiling.inner(function)
    assert numba.njit(lambda x: again(x))(4) == 12
    assert hits(again) == 1
    assert compiling.inner(inline="always")(function).targetoptions["inline"] == "always"


def keep_nothing(a, b, c, d):
    pass


def test_the_forms_of_jit(function):
    assert compiling.jit(error_model="python")(function)(4) == 12
    fixed = compiling.jit(function, numba.float32(numba.float32))
    assert fixed(4) == 12.0
    with pytest.raises(TypeError, match="No matching definition"):
        fixed(1j)
    again = compiling.jit(function, numba.float32(numba.float32))
    assert hits(again) == 1
    assert compiling.jit(inline="always")(function).targetoptions["inline"] == "always"


def test_c_functions_are_found_again(function):
    first, again = (compiling.c_function(keep_nothing) for _ in range(2))
    assert again.cache_hits == 1
    assert first.address != 0
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(again.address)(1, 2, 3, 4)


def test_the_digest_is_quick():
    """It is taken whenever the package is imported."""
    seconds = min(timeit.repeat(compiling.digest_of_sources.__wrapped__, number=1, repeat=5))
    assert seconds < 0.05


def test_all_kernels_are_compiled_here():
    """Numba's own decorators would keep stale code, and end the process where there is no place."""
    folder = Path(compiling.__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        if file.name != "compiling.py" and "cuda" not in file.name:
            source = file.read_text(encoding="utf-8")
            assert "njit" not in source, file
            assert "cfunc" not in source, file
