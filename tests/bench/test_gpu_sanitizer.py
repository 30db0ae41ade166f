"""compute-sanitizer with a program in its place that takes its options and says what it says."""

import json
import sys
import time

import numpy as np
import pytest

from fastdigit.bench.gpu import correctness, sanitizer, tables

# As far as it is asked for here: the program that it starts, what it prints, and its exit status.
STUB = f"""#!{sys.executable}
import os, subprocess, sys

options = sys.argv[1:]
at = options.index({sys.executable!r})
tool = options[options.index("--tool") + 1]
errors = int(os.environ.get("ERRORS_" + tool, 0))
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
import json, pathlib, sys, time
answer, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
answer.write_text(json.dumps({
    "epochs": [{"training": "SGD"}, {"training": "Adam"}], "products": {"simt": {}}, "checks": {"relu": {}}
}))
print("the checks' own words", seconds)
"""


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
    rows = sanitizer.sanitizer(20, stub(), lambda rows: saved.append(len(rows)))
    assert saved == [1, 2]
    clean, races = rows
    assert (clean["tool"], clean["errors"], races["tool"], races["errors"]) == ("memcheck", 0, "racecheck", 2)
    assert clean["checked"] == {"epochs": 2, "products": 1, "checks": 1}
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
    row, _ = sanitizer.sanitizer(20, stub("sys.exit(3)"))
    assert row["errors"] == 1


@pytest.mark.parametrize(
    ("then", "silent", "why"),
    [
        ("sys.exit('BackendError: no GPU')", "", "failed: BackendError: no GPU"),
        ("", "1", "failed: ========= Error: Device not supported"),
        ("answer.unlink()", "", "failed: ========= ERROR SUMMARY: 0 errors"),
        ("time.sleep(60)", "", "not finished after 2 s"),
    ],
)
def test_where_nothing_is_known_it_says_so(then, silent, why, stub, monkeypatch):
    monkeypatch.setenv("SILENT", silent)
    begun = time.monotonic()
    row, _ = sanitizer.sanitizer(2 if "sleep" in then else 20, stub(then))
    assert row["no_time"] == why
    assert "errors" not in row
    assert time.monotonic() - begun < 15


def test_a_wrong_result_under_it_is_kept(stub):
    then = """
found = json.loads(answer.read_text())
found["checks"]["relu"]["rejected"] = "far off"
answer.write_text(json.dumps(found))
"""
    rows = sanitizer.sanitizer(20, stub(then))
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


def test_small_checks_end_when_their_time_is_over_but_begin(monkeypatch):
    saved = []

    def part(name):
        def check(*arguments, save, **named):
            for number in range(2):
                save([name, number])

        return check

    for name in ("check_epochs", "check_products", "check_all"):
        monkeypatch.setattr(sanitizer, name, part(name))

    class Side:
        precisions = ("float32",)

    for until, parts in ((-1, ["epochs"]), (time.monotonic() + 100, ["epochs", "products", "checks"])):
        saved.clear()
        found = sanitizer.small_checks(Side, np, (9, 0), until, lambda found: saved.append(json.dumps(found)))
        assert list(found) == parts
        assert json.loads(saved[-1]) == found
        assert len(saved) == (1 if until < 0 else 6)


def test_the_small_trainings_are_ones_that_can_be_checked():
    rows = correctness.check_epochs("cpu", ["float32"], **sanitizer.EPOCHS)
    assert len(rows) == 2 * len(correctness.TRAININGS)
    assert not [row for row in rows if "rejected" in row]
