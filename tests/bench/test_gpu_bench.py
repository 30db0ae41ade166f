"""The benchmark of a GPU without one: what it checks, with the interpreter of PTX in the GPU's place."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import checks, gpu, peers, suite, tables
from fastdigit.bench.checks import Rejected
from fastdigit.cli import main
from fastdigit.kernels.common import cuda
from fastdigit.kernels.epoch import cuda as persistent
from fastdigit.kernels.matmul import cuda_simt

from ..ptx.emulated import backend, emulated

MICROSECONDS = [f"{what}_microseconds" for what in ("launch_on_host", "launch", "graph_node", "barrier")]
CASES = [((130, 72, 66), turned) for turned in ((False, False), (False, True), (True, False))]


def product(a, b, turned):
    return (a.T if turned[0] else a) @ (b.T if turned[1] else b)


def test_every_technique_is_checked_and_gets_a_time(monkeypatch):
    monkeypatch.setattr(gpu, "tf32", lambda wanted: nullcontext())
    asked = []

    def seconds(call):
        call()
        asked.append(call)
        return [1e-3, 2e-3, 3e-3]

    with emulated(race=False) as emulator:
        rows = gpu.products(np, (9, 0), CASES, seconds)
    assert len(asked) == 2 * len(rows) == 2 * 4 * len(CASES)
    assert {row["technique"] for row in rows} == {"simt", "mma tf32", "mma bf16", "wgmma bf16"}
    assert {row["form"] for row in rows} == {"nn", "nt", "tn"}
    assert all(row["worst"] <= 1 for row in rows)
    assert rows[0]["tflops"] == pytest.approx(2 * 130 * 72 * 66 / 2e-3 / 1e12)
    assert {kernel.name.split(" ")[0] for kernel, _ in emulator.reports} == {
        *("matmul_simt", "matmul_mma", "matmul_wgmma")
    }
    assert set(gpu.techniques((7, 5))) == {"simt"}
    assert "wgmma bf16" not in gpu.techniques((8, 9)) | gpu.techniques((10, 0))


@pytest.mark.parametrize("kind", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("turned", [turned for _, turned in CASES], ids=["nn", "nt", "tn"])
def test_a_wrong_product_is_refused(kind, turned):
    shape = (37, 48, 21)

    def right(a, b, c, turned):
        if kind == "bf16":
            a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        if kind == "tf32":
            a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in map(np.array, (a, b)))
        c[...] = product(a.astype(np.float64), b.astype(np.float64), turned)

    assert gpu.check_product(np, right, kind, shape, turned) < 1

    def wrong_at_one_place(a, b, c, turned):
        right(a, b, c, turned)
        c[17, 5] += 1e-3

    def one_row_left_out(a, b, c, turned):
        kept = c[3].copy()
        right(a, b, c, turned)
        c[3] = kept

    for wrong in (wrong_at_one_place, one_row_left_out):
        with pytest.raises(Rejected):
            gpu.check_product(np, wrong, kind, shape, turned)


def test_a_wrong_product_gets_no_time(monkeypatch):
    def zero(a, b, c, turned):
        c[...] = 0

    monkeypatch.setattr(gpu, "techniques", lambda capability: {"zero": ("float32", zero)})
    (row,) = gpu.products(np, (9, 0), CASES[:1], lambda call: pytest.fail("it was timed"))
    assert row["no_time"].startswith("refused: error is")
    found = {"devices": {"cuda": "a GPU"}, "products": [row]}
    assert tables.of_gpu(found)[1].rows[0][2] == row["no_time"]
    assert tables.gpu_failures(found) == [f"zero, 130x72x66: {row['no_time']}"]


def test_the_shapes_are_those_of_the_deep_network_too():
    shapes = gpu.shapes()
    assert ((512, 784, 2500), (False, False)) in shapes
    assert ((784, 512, 2500), (True, False)) in shapes
    assert ((512, 2000, 2500), (False, True)) in shapes
    assert len(shapes) == 3 * 5 + 3 * 5


def test_operations_are_checked_on_the_emulated_gpu():
    saved = []
    with emulated(race=False):
        found = gpu.check_all(backend(), most=1, save=lambda found: saved.append(dict(found)))
        assert set(found) == set(checks.CHECKS)
        relus = tuple(set(checks.CHECKS) - {"relu", "relu_grad"})
        more = gpu.check_all(backend(), most=3, done=relus)  # one row alone has no rows apart
        assert all("rejected" not in result for result in more.values())
        assert gpu.check_all(backend(), done=tuple(found)) == {}
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
    with pytest.raises(gpu.Fault, match="adam: CudaError: an illegal address"):
        gpu.check_all(backend(), save=lambda found: saved.append(dict(found)))
    assert saved[-1] == {
        "sgd": {"rejected": "wrong, 1: far off"},
        "adam": {"rejected": "lost, 2: CudaError: an illegal address"},
    }
    assert gpu.check_all(backend(), done=("sgd", "adam")) == {"gather": {"rejected": "wrong, 3: far off"}}


def test_products_are_checked_with_what_follows_them():
    saved, odd = [], ((17, 31, 33),)
    with emulated(race=False) as emulator:
        found = gpu.check_products(np, (9, 0), save=lambda found: saved.append(dict(found)), odd=odd)
        assert gpu.check_products(np, (9, 0), tuple(found), odd=odd) == {}
    assert set(found) == {f"product, {name}" for name in gpu.techniques((9, 0))}
    assert all(each["checks"] == 9 and each["worst"] <= 1 for each in found.values())
    assert len(saved) == 4
    assert len(emulator.reports) == 4 * 9


@pytest.mark.parametrize("forgotten", ["bias", "relu", "y_below", "scale"])
def test_what_follows_a_product_and_does_not_is_noticed(forgotten, monkeypatch):
    def forgets(a, b, c, turned, **then):
        cuda_simt.multiply(a, b, c, turned=turned, **{k: v for k, v in then.items() if k != forgotten})

    monkeypatch.setattr(gpu, "techniques", lambda capability: {"forgets": ("float32", forgets)})
    with emulated(race=False):
        found = gpu.check_products(np, (9, 0), odd=((17, 31, 33),))
    assert "error is" in found["product, forgets"]["rejected"]


SMALL = {"sizes": ((64, 10, 5), (64, 9, 8, 5)), "count": 20, "batch": 8}


def test_trainings_are_held_against_float64_and_the_processor(monkeypatch):
    saved = []
    with emulated(race=False):
        side = backend(cuda.Limits((8, 0), 4, 200_000))
        rows = gpu.check_epochs(side, ["float32"], **SMALL, save=lambda rows: saved.append(len(rows)))
        monkeypatch.setattr(gpu, "TRAININGS", {name: gpu.TRAININGS[name] for name in ("SGD", "Adam")})
        more = gpu.check_epochs(side, ["tf32", "bf16"], **{**SMALL, "sizes": SMALL["sizes"][1:]})
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
    whole = gpu.trained

    def wrong(side, *task):
        before, after, path = whole("cpu" if side == "wrong" else side, *task)
        return before, before + (0.99 if side == "wrong" else 1) * (after - before), path

    monkeypatch.setattr(gpu, "trained", wrong)
    rows = gpu.check_epochs("wrong", ["float32"], **SMALL)
    assert len(rows) == 2 * len(gpu.TRAININGS)
    plain = [row for row in rows if "Adam" not in row["training"]]
    assert all("more than 0.0001" in row["rejected"] for row in plain)

    def fails(side, *task):
        if side == "wrong":
            raise cuda.CudaError("lost")
        return whole(side, *task)

    monkeypatch.setattr(gpu, "trained", fails)
    (row,) = gpu.check_epochs("wrong", ["float32"], **SMALL)
    assert row["rejected"] == "CudaError: lost"


def test_without_a_gpu_it_says_so(capsys):
    found = gpu.measure()
    assert found["no_time"].startswith("cuda: ")
    assert gpu.main([]) == 1
    assert "cuda:" in capsys.readouterr().out
    assert main(["bench", "gpu", "--rounds", "2"]) == 0  # a row that says so, as everywhere in the suite
    assert "cuda:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["speed"])
    assert "there is no part 'speed': choose from checks, epochs" in capsys.readouterr().err


@pytest.fixture
def with_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu.fd, "backends", lambda: {"cuda": "ok"})
    monkeypatch.setattr(gpu.fd, "get_backend", lambda name: backend())


def test_a_part_that_fails_leaves_the_others(with_a_gpu, monkeypatch):
    def part(name, options, until):
        if name == "products":
            return {"no_time": "CudaError: lost"}, 1, "CudaError: lost"
        return ({"cuda": RIGHT}, 0, None) if name == "checks" else ([], 1, "MemoryError")

    saved = []
    monkeypatch.setattr(gpu, "_in_a_process", part)
    found = gpu.measure(("products", "checks", "epochs"), save=lambda found: saved.append(set(found)))
    assert found["products"] == {"no_time": "CudaError: lost"}
    first = {"devices", "driver", "products", "products_ended"}
    assert saved[:2] == [first, first | {"checks"}]
    shown = {table.name: table for table in tables.of_gpu(found)}
    assert list(shown) == ["gpu", "gpu-checks-cuda", "gpu-products", "gpu-summary"]
    assert ("operations of cuda", f"{len(RIGHT)} of {len(RIGHT)} right") in shown["gpu-summary"].rows
    assert shown["gpu-summary"].rows[-1] == ("failures", "2, the first: products: CudaError: lost")
    assert tables.gpu_failures(found)[1] == "epochs, ended early: MemoryError"


RIGHT = {name: {"checks": 3, "worst": 0.5} for name in checks.CHECKS}


def test_checks_go_on_in_a_new_process_after_a_fault(with_a_gpu, monkeypatch):
    asked, names = [], list(RIGHT)

    def part(name, options, until):
        done = (options["found"] or {}).get("cuda", {})
        asked.append(len(done))
        more = names[len(done) : len(done) + 7]  # the seventh is a fault
        found = (
            done
            | {name: RIGHT[name] for name in more[:6]}
            | {name: {"rejected": "lost"} for name in more[6:]}
        )
        return {"cuda": found}, gpu.FAULT if len(more) == 7 else 0, "lost" if len(more) == 7 else None

    monkeypatch.setattr(gpu, "_in_a_process", part)
    found = gpu.measure(("checks",))
    assert asked == list(range(0, len(names), 7))
    assert set(found["checks"]["cuda"]) == set(names)
    assert "checks_ended" not in found
    monkeypatch.setattr(gpu, "_in_a_process", lambda *asked: ({"cuda": {}}, gpu.FAULT, "lost"))
    assert gpu.measure(("checks",))["checks_ended"] == "lost"  # gives up in the end


CHILD = """
import sys, time
from fastdigit.bench import gpu

def part(options, save):
    save([options["rounds"]])
    {}
    return [options["rounds"], 2]

gpu.PARTS["products"] = part
sys.exit(gpu.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("then", "found", "status", "why"),
    [
        ("pass", [5, 2], 0, None),
        ("time.sleep(60)", [5], None, "not finished after"),
        ("raise RuntimeError('lost')", [5], 1, "RuntimeError: lost"),
        ("raise gpu.Fault('lost')", [5], gpu.FAULT, "lost"),
        ("sys.exit(7)", [5], 7, "exit status 7"),
    ],
)
def test_what_a_part_has_found_counts_however_it_ends(then, found, status, why, monkeypatch, tmp_path):
    script, popen = tmp_path / "child.py", gpu.subprocess.Popen
    script.write_text(CHILD.replace("{}", then))
    monkeypatch.setattr(
        gpu.subprocess,
        "Popen",
        lambda command, **how: popen([command[0], str(script), *command[3:]], **how),
    )
    until = gpu.time.monotonic() + (8 if "sleep" in then else 100)
    *result, said = gpu._in_a_process("products", {"rounds": 5}, until)
    assert result == [found, status]
    assert (said is None) == (why is None)
    assert why is None or why in said


def test_a_part_that_finds_nothing_says_why():
    found, status, why = gpu._in_a_process("products", {"usable": ["cuda"]}, gpu.time.monotonic() + 100)
    assert found == {"no_time": "ModuleNotFoundError: No module named 'cupy'"}
    assert (status, why) == (1, found["no_time"])


def test_training_is_measured_in_one_pass_for_each_network(monkeypatch):
    asked, saved = [], []

    def measured(networks, data, rounds, seconds, backend, python, passes):
        asked.append((networks, rounds, seconds, backend, python, passes))
        return [{"rows": []}]

    monkeypatch.setattr(gpu.train, "measure_all", measured)
    monkeypatch.setattr(gpu.fd, "load_mnist", lambda: fd.load_digits())
    options = {"networks": ["small-64", "deep-512"], "rounds": 2, "seconds": 0.1, "python": "python"}
    found = gpu._train(options, lambda found: saved.append(len(found)))
    assert [each["name"] for each in found] == options["networks"]
    assert saved == [1, 2]
    networks = [(gpu.train.NETWORKS[name], list(gpu.SIDES)) for name in options["networks"]]
    assert asked == [([each], 2, 0.1, "cuda", "python", 1) for each in networks]


def test_the_suite_passes_on_what_was_chosen(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu, "measure", lambda **how: asked.append(how))
    suite._gpu(suite.Settings().checked(), "mnist", None)
    chosen = {"networks": ("small-64",), "rounds": 3, "seconds": 0.1}
    suite._gpu(suite.Settings(**chosen, python="python").checked(), "mnist", None)
    assert asked == [{"python": suite.sys.executable}, {"python": "python", **chosen}]


def test_launches_become_a_table():
    found = {"devices": {"cuda": "a GPU"}, "launches": dict.fromkeys(MICROSECONDS, 1.5)}
    assert [row[1] for row in tables.of_gpu(found)[1].rows] == ["1.50"] * 4


def test_the_sides_of_the_training_exist():
    assert set(gpu.SIDES) <= set(peers.SIDES)
    assert set(gpu.NETWORKS) <= set(gpu.train.NETWORKS)


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_set_back(wanted, monkeypatch):
    kinds = {np.float32: "before"}
    core = SimpleNamespace(
        _routines_linalg=SimpleNamespace(COMPUTE_TYPE_TF32="tf32", COMPUTE_TYPE_DEFAULT="float32"),
        get_compute_type=kinds.__getitem__,
        set_compute_type=kinds.__setitem__,
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(_core=core))
    with gpu.tf32(wanted):
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
        (1e-4, 2e-5, 1e-9, None),  # barriers quicker than expected: no time is said
    ],
)
def test_calls_are_timed_by_the_gpu_whatever_the_host_takes(on_host, on_gpu, barrier, found, monkeypatch):
    Event.now = Event.clock = 0.0

    def call(seconds=on_gpu):
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
    monkeypatch.setattr(persistent, "barriers", lambda blocks, count: call(count * barrier))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: Event.clock)
    if found is None:
        with pytest.raises(Rejected, match="too slowly"):
            gpu.seconds_on_gpu(call)
    else:
        assert gpu.seconds_on_gpu(call) == pytest.approx([found] * gpu.REPEAT, rel=0.02)
