"""The benchmark of a GPU without one: what it checks, with the interpreter of PTX in the GPU's place."""

import itertools
import json
import sys
import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import cases, checks, peers, suite, train
from fastdigit.bench.checks import Rejected
from fastdigit.bench.gpu import (
    bandwidth,
    correctness,
    goals,
    launches,
    multiplication,
    parts,
    products,
    run,
    sanitizer,
    steps,
    tables,
    timing,
)
from fastdigit.bench.gpu.__main__ import main as gpu_main
from fastdigit.cli import main
from fastdigit.kernels.common import cuda
from fastdigit.kernels.matmul import cuda_simt

from ..ptx.emulated import backend, emulated

MICROSECONDS = [f"{what}_microseconds" for what in ("launch_on_host", "launch", "graph_node", "barrier")]
CASES = [((130, 72, 66), turned, None) for turned in ((False, False), (False, True), (True, False))]


def product(a, b, turned):
    return (a.T if turned[0] else a) @ (b.T if turned[1] else b)


def test_every_technique_is_checked_and_gets_a_time(monkeypatch):
    monkeypatch.setattr(products, "tf32", lambda wanted: nullcontext())
    asked = []

    def seconds(*calls):
        for call in calls:
            call()
        asked.append(calls)
        return [1e-3, 2e-3, 3e-3], [0.5e-3, 2e-3, 4.5e-3]

    with emulated(race=False) as emulator:
        rows = products.products(np, (9, 0), CASES, [], seconds)
    assert len(asked) == len(rows) == len(multiplication.WAYS) * len(CASES)
    assert {row["technique"] for row in rows} == set(multiplication.WAYS)
    assert {row["form"] for row in rows} == {"nn", "nt", "tn"}
    assert all(row["worst"] <= 1 for row in rows)
    assert rows[0]["tflops"] == pytest.approx(2 * 130 * 72 * 66 / 2e-3 / 1e12)
    assert (rows[0]["share"], rows[0]["noisy"]) == (1, True)  # the median of 0.5, 1 and 1.5
    assert {kernel.name.split(" ")[0] for kernel, _ in emulator.reports} == {
        *("matmul_simt", "matmul_mma", "matmul_wgmma", "transpose")
    }
    assert set(multiplication.techniques((7, 5))) == {"simt"}
    for other in (8, 9), (10, 0):
        assert set(multiplication.techniques(other)) == {"simt", "mma bf16", "mma tf32"}


@pytest.mark.parametrize("kind", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("turned", [turned for _, turned, _ in CASES], ids=["nn", "nt", "tn"])
def test_a_wrong_product_is_refused(kind, turned):
    shape = (37, 48, 21)

    def right(a, b, c, turned):
        if kind == "bf16":
            a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        if kind == "tf32":
            a, b = ((x.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32) for x in map(np.array, (a, b)))
        c[...] = product(a.astype(np.float64), b.astype(np.float64), turned)

    assert multiplication.check_product(np, right, kind, shape, turned) < 1

    def wrong_at_one_place(a, b, c, turned):
        right(a, b, c, turned)
        c[17, 5] += 1e-3

    def one_row_left_out(a, b, c, turned):
        kept = c[3].copy()
        right(a, b, c, turned)
        c[3] = kept

    for wrong in (wrong_at_one_place, one_row_left_out):
        with pytest.raises(Rejected):
            multiplication.check_product(np, wrong, kind, shape, turned)


def test_a_wrong_product_gets_no_time(monkeypatch):
    def zero(a, b, c, turned):
        c[...] = 0

    monkeypatch.setattr(products, "techniques", lambda capability: {"zero": ("float32", zero)})
    (row,) = products.products(np, (9, 0), CASES[:1], [], lambda *calls: pytest.fail("it was timed"))
    assert row["no_time"].startswith("refused: error is")
    found = {"devices": {"cuda": "a GPU"}, "products": [row]}
    assert tables.of_gpu(found)[1].rows[0][2] == row["no_time"]
    assert tables.failures(found) == [f"zero, 130x72x66, nn: {row['no_time']}"]


def test_what_is_asked_of_is_measured_first_and_the_rest_while_there_is_time(monkeypatch):
    asked = [shape for shape, _, kinds in products.asked_shapes() if kinds is None]
    assert asked == [(4096,) * 3] * 3
    large = [kinds for shape, _, kinds in products.asked_shapes() if shape == (8192,) * 3]
    assert large == [("bf16",)] * 3
    more = [(shape, turned) for shape, turned, _ in products.more_shapes()]
    assert ((512, 784, 2500), (False, False)) in more
    assert ((784, 512, 2500), (True, False)) in more
    assert ((512, 2000, 2500), (False, True)) in more
    assert len(more) == 3 * 5 + 3 * 3 + 3

    def right(a, b, c, turned):
        c[...] = product(a, b, turned)

    monkeypatch.setattr(products, "tf32", lambda wanted: nullcontext())
    monkeypatch.setattr(
        products, "techniques", lambda capability: {"a": ("float32", right), "b": ("bf16", right)}
    )
    now = itertools.count()
    monkeypatch.setattr(products.time, "monotonic", lambda: next(now))
    shape, turned, saved = (5, 6, 7), (False, False), []
    rows = products.products(
        *(np, (9, 0), [(shape, turned, ("float32",))] * 2, [(shape, turned, ("float32",))] * 9),
        lambda *calls: [[1.0]] * 2,
        lambda rows: saved.append(len(rows)),
        until=3,
    )
    assert {row["technique"] for row in rows} == {"a"}
    assert len(rows) == 2 + 4  # at 0, 1, 2 and 3
    assert saved == [1, 2, 3, 4, 5, 6]


def test_operations_are_checked_on_the_emulated_gpu():
    saved = []
    with emulated(race=False):
        found = correctness.check_all(backend(), most=1, save=lambda found: saved.append(dict(found)))
        assert set(found) == set(checks.CHECKS)
        relus = tuple(set(checks.CHECKS) - {"relu", "relu_grad"})
        more = correctness.check_all(backend(), most=3, done=relus)  # one row alone has no rows apart
        assert all("rejected" not in result for result in more.values())
        assert correctness.check_all(backend(), done=tuple(found)) == {}
    assert all(result["checks"] >= 1 for result in found.values())
    assert saved[-1] == found
    assert len(saved) == len(found)


def test_checks_end_with_a_fault_but_not_with_a_wrong_result(monkeypatch):
    def wrong(function, backend, case):
        raise Rejected("far off")

    def lost(function, backend, case):
        raise cuda.CudaError("an illegal address")

    monkeypatch.setattr(
        checks, "CHECKS", {"sgd": ((wrong, (1,)),), "adam": ((lost, (2,)),), "gather": ((wrong, (3,)),)}
    )
    saved = []
    with pytest.raises(correctness.Fault, match="adam: CudaError: an illegal address"):
        correctness.check_all(backend(), save=lambda found: saved.append(dict(found)))
    assert saved[-1] == {
        "sgd": {"rejected": "wrong, 1: far off"},
        "adam": {"rejected": "lost, 2: CudaError: an illegal address"},
    }
    assert correctness.check_all(backend(), done=("sgd", "adam")) == {
        "gather": {"rejected": "wrong, 3: far off"}
    }


def test_products_are_checked_with_what_follows_them():
    saved, odd = [], ((17, 31, 33),)
    with emulated(race=False) as emulator:
        found = correctness.check_products(np, (9, 0), save=lambda found: saved.append(dict(found)), odd=odd)
        assert correctness.check_products(np, (9, 0), tuple(found), odd=odd) == {}
    assert set(found) == {f"product, {name}" for name in multiplication.techniques((9, 0))}
    assert all(each["checks"] == 9 and each["worst"] <= 1 for each in found.values())
    assert len(saved) == len(found)
    assert sum(kernel.name != "transpose" for kernel, _ in emulator.reports) == 9 * len(found)


@pytest.mark.parametrize("forgotten", ["bias", "relu", "y_below", "scale"])
def test_what_follows_a_product_and_does_not_is_noticed(forgotten, monkeypatch):
    def forgets(a, b, c, turned, **then):
        cuda_simt.multiply(a, b, c, turned=turned, **{k: v for k, v in then.items() if k != forgotten})

    monkeypatch.setattr(correctness, "techniques", lambda capability: {"forgets": ("float32", forgets)})
    with emulated(race=False):
        found = correctness.check_products(np, (9, 0), odd=((17, 31, 33),))
    assert "error is" in found["product, forgets"]["rejected"]


SMALL = {"sizes": ((64, 10, 5), (64, 9, 8, 5)), "count": 20, "batch": 8}


def test_trainings_are_held_against_float64_and_the_processor(monkeypatch):
    saved = []
    with emulated(race=False):
        side = backend(cuda.Limits((8, 0), 4, 200_000))
        rows = correctness.check_epochs(side, ["float32"], **SMALL, save=lambda rows: saved.append(len(rows)))
        monkeypatch.setattr(
            correctness, "TRAININGS", {name: correctness.TRAININGS[name] for name in ("SGD", "Adam")}
        )
        more = correctness.check_epochs(side, ["tf32", "bf16"], **{**SMALL, "sizes": SMALL["sizes"][1:]})
    assert saved == list(range(1, len(rows) + 1))
    assert (len(rows), len(more)) == (2 * 5, 2 * 2)
    rows += more
    assert not [row["rejected"] for row in rows if "rejected" in row]
    assert {row["path"].split(",")[0] for row in rows} == {
        "epoch: one persistent kernel",
        "epoch: a graph of steps",
    }
    for row in rows:
        assert 0 < row["off_float64"] <= row["most"]
        assert 0 < row["off_cpu"] <= row["most"]


def test_a_training_that_goes_wrong_is_rejected(monkeypatch):
    whole = correctness.trained

    def wrong(side, *task):
        before, after, path = whole("cpu" if side == "wrong" else side, *task)
        return before, before + (0.99 if side == "wrong" else 1) * (after - before), path

    monkeypatch.setattr(correctness, "trained", wrong)
    rows = correctness.check_epochs("wrong", ["float32"], **SMALL)
    assert len(rows) == 2 * len(correctness.TRAININGS)
    plain = [row for row in rows if "Adam" not in row["training"]]
    assert all("more than 0.0001" in row["rejected"] for row in plain)

    def fails(side, *task):
        if side == "wrong":
            raise cuda.CudaError("lost")
        return whole(side, *task)

    monkeypatch.setattr(correctness, "trained", fails)
    (row,) = correctness.check_epochs("wrong", ["float32"], **SMALL)
    assert row["rejected"] == "CudaError: lost"


def test_without_a_gpu_it_says_so(capsys):
    found = run.measure()
    assert found["no_time"].startswith("cuda: ")
    assert gpu_main([]) == 1
    assert "cuda:" in capsys.readouterr().out
    assert main(["bench", "gpu", "--rounds", "2"]) == 0  # a row that says so, as everywhere in the suite
    assert "cuda:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu_main(["speed"])
    assert "there is no part 'speed': choose from checks, launches, goals" in capsys.readouterr().err


@pytest.fixture
def with_a_gpu(monkeypatch):
    monkeypatch.setattr(fd, "backends", lambda: {"cuda": "ok"})
    monkeypatch.setattr(fd, "get_backend", lambda name: backend())


def test_a_part_that_fails_leaves_the_others(with_a_gpu, monkeypatch):
    def part(name, options, until, keep):
        if name == "products":
            return {"no_time": "CudaError: lost"}, 1, "CudaError: lost"
        return ({"cuda": RIGHT}, 0, None) if name == "checks" else ([], 1, "MemoryError")

    saved = []
    monkeypatch.setattr(run, "_in_a_process", part)
    found = run.measure(("products", "checks", "epochs"), save=lambda found: saved.append(set(found)))
    assert found["products"] == {"no_time": "CudaError: lost"}
    first = {"devices", "driver", "products", "products_ended"}
    assert saved[:2] == [first, first | {"checks"}]
    shown = {table.name: table for table in tables.of_gpu(found)}
    assert list(shown) == ["gpu", "gpu-checks-cuda", "gpu-products", "gpu-summary"]
    assert ("operations of cuda", f"{len(RIGHT)} of {len(RIGHT)} right") in shown["gpu-summary"].rows
    assert shown["gpu-summary"].rows[-1] == ("failures", "2, the first: products: CudaError: lost")
    assert tables.failures(found)[1] == "epochs, ended early: MemoryError"


RIGHT = {name: {"checks": 3, "worst": 0.5} for name in checks.CHECKS}


def test_checks_go_on_in_a_new_process_after_a_fault(with_a_gpu, monkeypatch):
    asked, names = [], list(RIGHT)

    def part(name, options, until, keep):
        done = (options["found"] or {}).get("cuda", {})
        asked.append(len(done))
        more = names[len(done) : len(done) + 7]  # the seventh is a fault
        found = (
            done
            | {name: RIGHT[name] for name in more[:6]}
            | {name: {"rejected": "lost"} for name in more[6:]}
        )
        return {"cuda": found}, run.FAULT if len(more) == 7 else 0, "lost" if len(more) == 7 else None

    monkeypatch.setattr(run, "_in_a_process", part)
    found = run.measure(("checks",))
    assert asked == list(range(0, len(names), 7))
    assert set(found["checks"]["cuda"]) == set(names)
    assert "checks_ended" not in found
    monkeypatch.setattr(run, "_in_a_process", lambda *asked: ({"cuda": {}}, run.FAULT, "lost"))
    assert run.measure(("checks",))["checks_ended"] == "lost"  # gives up in the end


CHILD = """
import sys, time
from fastdigit.bench.gpu import __main__, correctness, parts

def part(options, save):
    save([options["rounds"]])
    {}
    return [options["rounds"], 2]

parts.PARTS["products"] = part
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("then", "found", "status", "why"),
    [
        ("pass", [5, 2], 0, None),
        ("time.sleep(60)", [5], None, "not finished after"),
        ("raise RuntimeError('lost')", [5], 1, "RuntimeError: lost"),
        ("raise correctness.Fault('lost')", [5], run.FAULT, "lost"),
        ("sys.exit(7)", [5], 7, "exit status 7"),
    ],
)
def test_what_a_part_has_found_counts_however_it_ends(then, found, status, why, monkeypatch, tmp_path):
    script, popen = tmp_path / "child.py", run.subprocess.Popen
    script.write_text(CHILD.replace("{}", then))
    monkeypatch.setattr(
        run.subprocess,
        "Popen",
        lambda command, **how: popen([command[0], str(script), *command[3:]], **how),
    )
    until = time.monotonic() + (8 if "sleep" in then else 100)
    kept = []
    *result, said = run._in_a_process("products", {"rounds": 5}, until, kept.append)
    assert kept == [[5]] if "sleep" in then else all(now in ([5], found) for now in kept)
    assert result == [found, status]
    assert (said is None) == (why is None)
    assert why is None or why in said


def test_a_part_that_finds_nothing_says_why():
    found, status, why = run._in_a_process("products", {"usable": ["cuda"]}, time.monotonic() + 100)
    assert found == {"no_time": "ModuleNotFoundError: No module named 'cupy'"}
    assert (status, why) == (1, found["no_time"])


TRAINING = {"rounds": 2, "seconds": 0.1, "python": "python", "left": 200}


@pytest.fixture
def compared(monkeypatch):
    """[(network, sides, rounds, seconds, patience, seconds of all)] of the comparisons that ``train`` has
    asked for; a side has a time unless its network is named in ``compared.failing``."""
    asked, failing = [], set()

    def take_turns_at_once(self, rounds, seconds, patience, until, save):
        asked.append(
            (str(self.task.network), self.sides, rounds, seconds, patience, until - time.monotonic())
        )
        self.facts = dict.fromkeys(self.sides, train.NOT_READY)
        save(self.result())
        if str(self.task.network) in failing:
            raise MemoryError("too large")
        facts = {"used": "a stand-in", "first_call_seconds": 1, "largest_loss_difference": 0}
        self.facts = dict.fromkeys(self.sides, facts)
        self.answers = {name: [{"speed": 5.0, "wall": None, "others": None}] for name in self.sides}
        self.state.unnoted = 1
        save(self.result())

    monkeypatch.setattr(train.Comparison, "take_turns_at_once", take_turns_at_once)
    monkeypatch.setattr(fd, "load_mnist", lambda: fd.load_digits())
    return SimpleNamespace(asked=asked, failing=failing)


def test_training_measures_what_is_asked_for_first(compared):
    saved = []
    options = {"usable": ["cuda"], "networks": ["small-64", "deep-512"], **TRAINING}
    found = parts.PARTS["train"](options, lambda found: saved.append(json.dumps(found)))
    small, deep = str(cases.Network(cases.SMALL, 64)), str(cases.Network(cases.DEEP, 512))
    assert [each[:4] for each in compared.asked] == [
        (small, list(parts.FLOAT32_SIDES), 2, 0.1),
        (deep, list(parts.BF16_SIDES), 2, 0.1),
        (small, list(parts.TF32_SIDES), 2, 0.1),
    ]
    for (*_, patience, left), expected in zip(
        compared.asked, (95, 190, 190), strict=True
    ):  # nothing took time
        assert left == pytest.approx(expected, abs=3)
        assert patience == pytest.approx(min(parts.PATIENCE, parts.READY * left), abs=3)
    assert [each["name"] for each in found] == ["small-64", "deep-512"]
    assert [row["side"] for row in found[0]["rows"]] == [*parts.FLOAT32_SIDES, *parts.TF32_SIDES]
    assert set(found[0]["best_peers"]) == {"float32", "tf32"}
    assert json.loads(saved[-1]) == found
    assert len(json.loads(saved[0])) == 1
    tables.of_gpu({"devices": {}, "train": json.loads(saved[0])})
    shown = {table.name: table for table in tables.of_gpu({"devices": {}, "train": found})}
    assert len(shown["gpu-train-small-64"].rows) == len(found[0]["rows"])
    assert "at the same time" in shown["gpu-train-small-64"].text


def test_a_network_that_fails_leaves_the_others(compared):
    compared.failing.add(str(cases.Network(cases.DEEP, 512)))
    options = {"usable": ["cuda"], "networks": ["small-64", "deep-512", "small-128"], **TRAINING}
    found = {each["name"]: each for each in parts.PARTS["train"](options, lambda found: None)}
    assert {row["no_time"] for row in found["deep-512"]["rows"]} == {"MemoryError: too large"}
    assert all("no_time" not in row for name in ("small-64", "small-128") for row in found[name]["rows"])


def test_a_network_without_time_for_it_says_so(compared):
    options = {"usable": ["cuda"], "networks": ["small-64"], **TRAINING, "left": parts.LEAST}
    (found,) = parts.PARTS["train"](options, lambda found: None)
    assert not compared.asked
    assert {row["no_time"] for row in found["rows"]} == {"no time was left for it"}
    tables.of_gpu({"devices": {}, "train": [found]})


def test_parts_get_the_seconds_that_are_asked_for_them(with_a_gpu, monkeypatch, tmp_path, capsys):
    left = {}

    def part(name, options, until, keep):
        left[name] = options["left"]
        return [], 0, None

    monkeypatch.setattr(run, "_in_a_process", part)
    asked = ["--seconds-of", "train=33", "sanitizer=44.5", "--json", str(tmp_path / "gpu.json")]
    gpu_main(["train", "sanitizer", "cupy", *asked])
    assert left == pytest.approx({"train": 33, "sanitizer": 44.5, "cupy": parts.LONGEST["cupy"]}, abs=1)
    capsys.readouterr()
    for wrong in ("train", "trains=3", "train=much", "train=-1", "train=nan"):
        with pytest.raises(SystemExit):
            gpu_main(["--seconds-of", wrong])
        assert "is no part and its seconds, such as train=200" in capsys.readouterr().err.splitlines()[-1]


def test_the_suite_passes_on_what_was_chosen(monkeypatch):
    asked = []
    monkeypatch.setattr(suite.gpu, "measure", lambda **how: asked.append(how))
    suite._gpu(suite.Settings().checked(), "mnist", None)
    chosen = {"networks": ("small-64",), "rounds": 3, "seconds": 0.1}
    suite._gpu(suite.Settings(**chosen, python="python").checked(), "mnist", None)
    assert asked == [{"python": suite.sys.executable}, {"python": "python", **chosen}]


def test_launches_become_a_table():
    found = {"devices": {"cuda": "a GPU"}, "launches": dict.fromkeys(MICROSECONDS, 1.5)}
    assert [row[1] for row in tables.of_gpu(found)[1].rows] == ["1.50"] * 4


def test_the_sides_of_the_training_exist():
    for name in parts.NETWORKS:
        network = train.ALL_NETWORKS[name]
        sides = parts.sides_of(network) + parts.more_sides_of(network)
        assert set(sides) <= set(peers.SIDES)
        for precision in {peers.SIDES[side].precision for side in sides}:  # there is something to compare
            assert {peers.SIDES[s].ours for s in sides if peers.SIDES[s].precision == precision} == {0, 1}
    assert set(parts.LONGEST) == set(parts.PARTS) == set(tables.PARTS)


def test_parts_are_for_backends_that_run_here():
    for name in parts.PARTS:
        assert "cannot run here" in parts.PARTS[name]({"usable": []}, None)["no_time"]


def test_parts_measure_the_cuda_backend_with_what_they_are_given(with_a_gpu, monkeypatch):
    """Each, with a stand-in for what it measures, which says what it was asked."""
    properties = {"major": 9, "minor": 0}
    runtime = SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda number: properties)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(fd, "load_mnist", lambda: "MNIST")
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)

    def instead(module, name):
        def measure(*arguments, save=None, **named):
            return (name, arguments, named)

        monkeypatch.setattr(module, name, measure)

    for module, name in (
        *((launches, "launches"), (goals, "goals"), (correctness, "check_epochs"), (products, "products")),
        *((bandwidth, "bandwidth"), (sanitizer, "sanitizer"), (steps, "steps")),
    ):
        instead(module, name)
    options, side = {"usable": ["cuda"], "left": 100}, backend()
    found = {name: parts.PARTS[name](options, list) for name in parts.PARTS if name in LOOKED_AT}
    assert found == {
        "launches": ("launches", (), {}),
        "goals": ("goals", (side, "MNIST", list), {}),
        "epochs": ("check_epochs", ("cuda", [name for name in ("float32",) if name in side.precisions]), {}),
        "products": ("products", (cupy, (9, 0)), {"until": 1080}),
        "bandwidth": ("bandwidth", (cupy, side), {}),
        "steps": ("steps", (cupy, side, (9, 0)), {}),
        "sanitizer": ("sanitizer", (80,), {}),
    }

    def operations(side, done, save):
        save({"operations": list(done)})

    monkeypatch.setattr(correctness, "check_all", operations)
    monkeypatch.setattr(correctness, "check_products", lambda *how: how[-1]({"products": list(how[2])}))
    saved = []
    found = parts.PARTS["checks"](
        {**options, "found": {"cuda": {"sgd": 1}}}, lambda now: saved.append(dict(now))
    )
    assert found == {
        "cuda": {
            "sgd": 1,
            "operations": ["sgd"],
            "products": ["sgd", "operations"],
        }
    }
    assert len(saved) == 2


LOOKED_AT = "launches", "goals", "epochs", "products", "bandwidth", "steps", "sanitizer"


def test_no_part_is_begun_without_time_for_it(with_a_gpu, monkeypatch):
    monkeypatch.setattr(run, "_in_a_process", lambda *asked: pytest.fail("it was begun"))
    found = run.measure(("launches", "goals"), budget=run.LEAST - 1)
    assert found["launches"] == found["goals"] == {"no_time": "no time was left for it"}
    assert "launches: no time was left for it" in tables.failures(found)


def test_what_a_part_finds_is_in_the_file_at_once(with_a_gpu, monkeypatch, tmp_path):
    file, seen = tmp_path / "gpu.json", []

    def part(name, options, until, keep):
        keep([{"operation": "relu", "megabytes": 1.0, "no_time": "refused"}])
        seen.append(json.loads(file.read_text())["gpu"]["bandwidth"])
        return seen[0], 0, None

    monkeypatch.setattr(run, "_in_a_process", part)
    assert gpu_main(["bandwidth", "--json", str(file)]) == 1
    assert seen[0][0]["operation"] == "relu"
    assert json.loads(file.read_text())["machine"]["versions"]


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_set_back(wanted, monkeypatch):
    kinds = {np.float32: "before"}
    core = SimpleNamespace(
        _routines_linalg=SimpleNamespace(COMPUTE_TYPE_TF32="tf32", COMPUTE_TYPE_DEFAULT="float32"),
        get_compute_type=kinds.__getitem__,
        set_compute_type=kinds.__setitem__,
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(_core=core))
    with products.tf32(wanted):
        assert kinds == {np.float32: "tf32" if wanted else "float32"}
    assert kinds == {np.float32: "before"}


class Event:
    """Of a GPU that takes ``each`` seconds a call; ``now`` is when all that was asked for is done."""

    now, clock = 0.0, 0.0

    def record(self):
        Event.now = max(Event.now, Event.clock)
        self.at = Event.now

    def synchronize(self):
        Event.clock = max(Event.clock, Event.now)

    @property
    def done(self):
        return self.at <= Event.clock


@pytest.mark.parametrize(
    ("on_host", "on_gpu", "barrier", "found"),
    [
        (1e-5, 1e-3, 1e-6, 1e-3),  # the GPU is slower
        (1e-4, 2e-5, 1e-6, 2e-5),  # the host is slower: barriers give it time
        (1e-4, 2e-5, 2.2e-7, 2e-5),  # barriers quicker than expected: twice as many are enough
        (1e-4, 2e-5, 1e-9, None),  # eight times as many are not: no time is said
    ],
)
def test_calls_are_timed_by_the_gpu_whatever_the_host_takes(on_host, on_gpu, barrier, found, monkeypatch):
    Event.now = Event.clock = 0.0
    order, plugs = [], []

    def plug(blocks, count):
        plugs.append(count)
        call(count * barrier)

    def call(seconds=on_gpu):
        order.append(seconds)
        Event.clock += on_host
        Event.now = max(Event.now, Event.clock) + seconds

    stand_in = SimpleNamespace(
        cuda=SimpleNamespace(
            Event=Event,
            get_elapsed_time=lambda begin, end: 1e3 * (end.at - begin.at),
            get_current_stream=lambda: SimpleNamespace(synchronize=lambda: Event.synchronize(None)),
        )
    )
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    monkeypatch.setattr(cuda, "limits", lambda: cuda.Limits((9, 0), 132, 232_448))
    monkeypatch.setattr(timing, "barriers", plug)
    monkeypatch.setattr(time, "perf_counter", lambda: Event.clock)
    if found is None:
        with pytest.raises(Rejected, match="too slowly"):
            timing.seconds_on_gpu(call)
        assert [now / before for before, now in itertools.pairwise(plugs)] == [2] * timing.TRIES
        return
    ours, theirs = timing.seconds_on_gpu(call, partial(call, 2 * on_gpu))
    assert ours == pytest.approx([found] * timing.REPEAT, rel=0.02)
    assert theirs == pytest.approx([2 * found] * timing.REPEAT, rel=0.02)
    again = len(plugs) - 2 * timing.REPEAT * (on_host > on_gpu)
    assert again == (
        2 if barrier < timing.BARRIER_SECONDS else 0
    )  # once of each function, not of each series
    both = [seconds for seconds in order[12:] if seconds in (on_gpu, 2 * on_gpu)]  # 2 · 2 · 3 to get ready
    turns = [seconds for seconds, _ in itertools.groupby(both)]
    assert turns == [on_gpu, *[2 * on_gpu, on_gpu] * (timing.REPEAT // 2), 2 * on_gpu]
