"""compute-sanitizer with a program in its place that takes its options and says what it says."""

import json
import os
import sys
import time

import numpy as np
import pytest

from fastdigit.bench import checks
from fastdigit.bench.gpu import correctness, multiplication, sanitizer, tables
from fastdigit.kernels.common import cuda

from ..ptx.emulated import backend, emulated

# As far as it is asked for here: the program that it starts, what it prints, and its exit status.
STUB = f"""#!{sys.executable}
import os, subprocess, sys

options = sys.argv[1:]
at = options.index({sys.executable!r})
tool = options[options.index("--tool") + 1]
errors = int(os.environ.get("ERRORS_" + tool, 0)) * ("product, simt" in options)
print("========= COMPUTE-SANITIZER", flush=True)
status = subprocess.call(options[at:])
for number in range(errors):
    print("========= Invalid __global__ read of size 4 bytes")
    print("=========     at number", number)
if os.environ.get("SILENT"):
    print("========= Error: Device not supported")
elif tool == "racecheck":
    print(f"========= RACECHECK SUMMARY: {{errors}} hazards displayed ({{errors}} errors, 0 warnings)")
else:
    print(f"========= ERROR SUMMARY: {{errors}} error" + "s" * (errors != 1))
sys.exit(status)
"""
CHILD = """
import json, os, pathlib, sys, time
name, answer, seconds = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])
found = {"process": os.getpid(), "count": 3, "how": "as it should", "rejected": [], "whole": True}

def save():
    answer.write_text(json.dumps(found))

save()
print("the checks' own words", seconds, flush=True)
"""
# One of each kind.
NAMES = "SGD, 64-24-10, float32", "product, simt", "operations, 1 of 3"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """``stub(then)``: a command for the checks that does so at its end, under the stand-in on PATH."""
    program = tmp_path / "bin" / sanitizer.NAME
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    child = tmp_path / "child.py"

    def command(then=""):
        child.write_text(CHILD + then)
        return sys.executable, str(child)

    return command


def test_each_tool_counts_its_errors(stub, monkeypatch):
    monkeypatch.setenv("ERRORS_racecheck", "2")
    saved = []
    rows = sanitizer.sanitizer(30, stub(), lambda rows: saved.append(json.dumps(rows)), NAMES)
    assert len(saved) == 2 * len(NAMES)
    assert json.loads(saved[-1]) == rows
    assert sum(len(row["done"]) for row in json.loads(saved[0])) == 1
    assert "no time was left for it" in saved[0]
    clean, races = rows
    assert (clean["tool"], clean["errors"], races["tool"], races["errors"]) == ("memcheck", 0, "racecheck", 2)
    assert clean["checked"] == {"epochs": 3, "products": 3, "checks": 3}
    assert clean["done"] == races["done"] == dict.fromkeys(NAMES, "as it should")
    assert clean["unfinished"] == {}
    assert races["lines"][:2] == [
        "========= COMPUTE-SANITIZER",
        "========= Invalid __global__ read of size 4 bytes",
    ]
    assert not any("own words" in line for line in races["lines"])
    found = {"devices": {}, "sanitizer": rows}
    assert tables.failures(found) == ["racecheck: 2 errors"]
    shown = {table.name: table.rows for table in tables.of_gpu(found)}
    assert [row[1] for row in shown["gpu-sanitizer"]] == ["0", "2"]


def test_one_error_is_an_error_also_where_the_checks_end_with_it(stub, monkeypatch):
    monkeypatch.setenv("ERRORS_memcheck", "1")
    row, _ = sanitizer.sanitizer(20, stub("sys.exit(3)"), names=("product, simt",))
    assert row["errors"] == 1


@pytest.mark.parametrize(
    ("then", "silent", "why"),
    [
        ("sys.exit('BackendError: no GPU')", "", "failed: BackendError: no GPU"),
        ("", "1", "failed: ========= Error: Device not supported"),
        ("answer.unlink()", "", "failed: ========= ERROR SUMMARY: 0 errors"),
        ("del found['whole']; found['over'] = True; save()", "", "not finished after 20 s, 0 errors so far"),
        ("time.sleep(60)", "", "not finished after 2 s, 0 errors so far"),
    ],
)
def test_where_nothing_is_known_it_says_so(then, silent, why, stub, monkeypatch):
    monkeypatch.setenv("SILENT", silent)
    for name, value in (("LEAST", 1), ("LAST", 1), ("EACH", 2 if "sleep" in then else 20)):
        monkeypatch.setattr(sanitizer, name, value)
    begun = time.monotonic()
    row, _ = sanitizer.sanitizer(30, stub(then), names=("product, simt",))
    assert row["no_time"] == row["unfinished"]["product, simt"] == why
    assert "errors" not in row
    assert time.monotonic() - begun < 15


def test_a_check_that_does_not_end_takes_no_other_with_it(stub, monkeypatch):
    for name, value in (("LEAST", 1), ("LAST", 1), ("EACH", 3)):
        monkeypatch.setattr(sanitizer, name, value)
    rows = sanitizer.sanitizer(30, stub("time.sleep(60 * name.startswith('SGD'))"), names=NAMES)
    for row in rows:
        assert row["errors"] == 0
        assert list(row["done"]) == list(NAMES[1:])
        assert row["unfinished"] == {NAMES[0]: "not finished after 3 s, 0 errors so far"}
        assert row["checked"] == {"products": 3, "checks": 3}
    shown = {table.name: table.rows for table in tables.of_gpu({"devices": {}, "sanitizer": rows})}
    assert shown["gpu-sanitizer"][0][2] == "3 products, 3 checks; 1 not finished"


def test_no_check_is_begun_without_time_for_it_and_those_of_other_gpus_do_not_count(stub):
    rows = sanitizer.sanitizer(sanitizer.LEAST - 1, stub("sys.exit(1)"))
    assert {row["no_time"] for row in rows} == {"no time was left for it"}
    assert list(rows[0]["unfinished"]) == list(sanitizer.ALL)
    absent = (
        "del found['whole']; found['absent'] = name == 'product, simt'; found['whole'] = not found['absent']"
    )
    row, _ = sanitizer.sanitizer(30, stub(f"{absent}; save()"), names=NAMES)
    assert row["unfinished"] == {}
    assert list(row["done"]) == [NAMES[0], NAMES[2]]


def test_a_wrong_result_under_it_is_kept(stub):
    rows = sanitizer.sanitizer(20, stub("found['rejected'] = ['relu: far off']; save()"), names=NAMES[2:])
    assert rows[0]["rejected"] == ["relu: far off"]
    assert tables.failures({"devices": {}, "sanitizer": rows}) == [
        *("memcheck, relu: far off", "racecheck, relu: far off")
    ]


def test_it_is_looked_for_on_path_and_under_cuda_home(stub, tmp_path, monkeypatch):
    assert sanitizer.path() == str(tmp_path / "bin" / sanitizer.NAME)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    rows = sanitizer.sanitizer()
    assert [row["no_time"] for row in rows] == [
        "compute-sanitizer is neither on PATH nor under CUDA_HOME"
    ] * 2
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitizer.path() == str(tmp_path / "bin" / sanitizer.NAME)


def test_checks_of_each_kind_can_be_done(monkeypatch):
    """On the GPU that is emulated, fewer images and smaller products; arrays are sent there and fetched."""
    monkeypatch.setattr(sanitizer, "SHAPE", (17, 31, 33))
    monkeypatch.setattr(sanitizer, "EPOCHS", {"count": 6, "batch": 4})
    said, side = {}, backend(cuda.Limits((9, 0), 4, 200_000))
    with emulated(race=False):
        for name in ("product, simt", "SGD, 64-24-10, float32"):
            said[name] = sanitizer.check(name, side, np, (9, 0), lambda count: None)
    assert [result[2] for result in said.values()] == [[]] * len(said)
    assert said["product, simt"][:2] == (1, "9 products")
    assert said["SGD, 64-24-10, float32"][1] == "epoch: one persistent kernel"
    assert sanitizer.check("product, wgmma bf16", side, np, (8, 0), None) is None


def test_operations_are_parted_into_groups(monkeypatch):
    asked = []

    def check_all(backend, most, done, save):
        asked.append(set(checks.CHECKS) - set(done))
        save({"relu": {}})
        return {"relu": {"rejected": "far off"}}

    monkeypatch.setattr(sanitizer, "check_all", check_all)
    names, counts = [name for name, (kind, _) in sanitizer.ALL.items() if kind == "checks"], []
    for name in names:
        result = sanitizer.check(name, backend(), np, (9, 0), counts.append)
        assert result == (1, "relu", ["relu: far off"])
    assert counts == [1] * len(names)
    assert sum(map(len, asked)) == len(checks.CHECKS)
    assert set.union(*asked) == set(checks.CHECKS)


def test_products_of_the_host_are_those_of_the_gpu():
    kinds = []

    def multiply(a, b, c, turned, **then):
        kinds.append({type(array) for array in (a, b, c, *then.values())})
        c[...] = (a.T if turned[0] else a) @ (b.T if turned[1] else b)

    class There(np.ndarray):
        def get(self):
            return self.view(np.ndarray)

    class OnGpu:
        @staticmethod
        def array(given):
            return np.array(given).view(There)

    for turned in multiplication.FORMS.values():
        multiplied = sanitizer.from_host(multiply, OnGpu)
        assert multiplication.check_product(np, multiplied, "float32", sanitizer.SHAPE, turned) < 1
    assert kinds == [{There}] * 3


def test_a_check_ends_by_itself_when_its_time_is_over(monkeypatch, tmp_path):
    answer = tmp_path / "answer.json"
    cupy = type("cupy", (), {"cuda": type("cuda", (), {"set_allocator": staticmethod(lambda kind: None)})})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(sanitizer.fd, "get_backend", lambda name: backend())
    monkeypatch.setattr(sanitizer, "capability", lambda: (9, 0))

    def check(name, backend, xp, capability, save):
        save(2)
        try:
            time.sleep(30 if name == "long" else 0)
        except Exception:  # as checks write down what a GPU runs into
            pytest.fail("it was taken for a mistake")
        return None if name == "absent" else (5, "well", [])

    monkeypatch.setattr(sanitizer, "check", check)
    usual = {"process": os.getpid(), "count": 2}
    for name, found in (
        ("long", {**usual, "over": True}),
        ("absent", {**usual, "absent": True}),
        ("short", {**usual, "count": 5, "whole": True, "how": "well", "rejected": []}),
    ):
        sanitizer.main(name, answer, "0.5")
        assert json.loads(answer.read_text()) == found


def test_the_small_trainings_are_ones_that_can_be_checked():
    sizes = sanitizer.ONE_HIDDEN, sanitizer.TWO_HIDDEN
    rows = correctness.check_epochs("cpu", ["float32"], sizes, **sanitizer.EPOCHS, against_cpu=False)
    assert len(rows) == 2 * len(correctness.TRAININGS)
    assert not [row for row in rows if "rejected" in row]
    assert not [row for row in rows if "off_cpu" in row]
