"""What is measured on a GPU, with the interpreter of PTX in its place and NumPy in CuPy's."""

import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import accuracy, cases, gpu_acceptance, train
from fastdigit.bench.gpu import bandwidth, goals, launches, steps, tables
from fastdigit.kernels.common import cuda
from fastdigit.kernels.epoch import cuda_steps

from ..ptx.emulated import backend, emulated

GPU = cuda.Limits((9, 0), 4, 200_000)


def asked(part, found, line):
    """What the table of what is asked says of it: (measured, whether it is met)."""
    lines = gpu_acceptance.rows({part: (found, "")})
    return next((measured, met) for what, measured, met, _ in lines if what.startswith(line))


# --- bandwidth --------------------------------------------------------------------------------------

COUNT = 2560


def copy(source, target):
    np.copyto(target, source)


def measured(side, **how):
    """What is found of a backend, whose calls take a millisecond and copies half of one."""

    def seconds(call, copied):
        for one in (call, copied):
            one()
        return [1e-3] * 3, [0.5e-3] * 3

    with pytest.MonkeyPatch.context() as patch, emulated(race=False):
        patch.setattr(bandwidth, "COLUMNS", 256)
        return bandwidth.bandwidth(np, side, COUNT, seconds, copy, **how)


def test_what_goes_over_memory_is_checked_and_held_against_a_copy():
    saved = []
    rows = measured(backend(), save=lambda rows: saved.append(len(rows)))
    assert saved == list(range(1, len(rows) + 1))
    assert not [row["no_time"] for row in rows if "no_time" in row]
    found = {row["operation"]: row for row in rows}
    bytes_of = {
        "softmax_xent, 10 classes": COUNT // 10 * (10 * 4 + 4 + 4 + 1 + 10 * 4),
        "relu": 8 * COUNT,
        "relu_grad": 12 * COUNT,
        "dropout": 8 * COUNT,
        "sgd": 12 * COUNT,
        "sgd with momentum": 20 * COUNT,
        "adam": 28 * COUNT,
    }
    assert {name: row["megabytes"] * 1e6 for name, row in found.items()} == pytest.approx(bytes_of)
    for row in rows:
        assert row["share"] == pytest.approx(0.5)
        assert row["gigabytes_per_second"] == pytest.approx(row["megabytes"] / 1e3 / 1e-3)
        assert 2 * row["gigabytes_per_second"] == pytest.approx(row["copy_gigabytes_per_second"])
        assert 0 <= row["worst"] <= 1
    assert found["adam"]["worst"] > 0
    (table,) = tables.PARTS["bandwidth"](rows)
    assert [row[-1] for row in table.rows] == ["50%"] * len(rows)
    measured_share, met = asked("bandwidth", rows, "softmax_xent")
    assert measured_share.startswith("least 50%")
    assert met is False


def test_a_copy_moves_as_many_bytes_as_the_operation():
    moved = {}

    def seconds(call, copied):
        source, target = copied.args
        assert not (source == target).all()
        assert 2 * source.nbytes == pytest.approx(row_bytes(), rel=0.1)
        copied()
        assert (source == target).all()
        return [1.0], [1.0]

    def row_bytes():
        return next(moved["all"])

    moved["all"] = iter([8 * COUNT, 12 * COUNT])
    ready = [make for number, make in enumerate(bandwidth.passes(np, backend(), COUNT)) if number in (1, 2)]
    with emulated(race=False):
        rows = bandwidth.bandwidth(np, None, COUNT, seconds, copy, make=lambda *about: ready)
    assert [row["operation"] for row in rows] == ["relu", "relu_grad"]
    assert not any("no_time" in row for row in rows)


def broken(**changed):
    """The backend with operations that leave the last number as it was."""

    def but_the_last(function):
        def wrong(array, *arguments, **named):
            kept = array.ravel()[-1:].copy()
            function(array, *arguments, **named)
            array.ravel()[-1:] = kept

        return wrong

    return replace(backend(), **{name: but_the_last(getattr(backend(), name)) for name in changed})


def test_what_is_wrong_at_one_place_gets_no_time():
    def nothing(*arguments, **named):
        pass

    def lost(*arguments, **named):
        raise cuda.CudaError("lost")

    def scales_only(y, p, key, step):
        y /= 1 - p

    side = replace(broken(sgd=True), adam=nothing, softmax_xent=lost, dropout=scales_only)
    rows = {row["operation"]: row for row in measured(side)}
    for name in ("dropout", "sgd", "sgd with momentum", "adam"):
        assert rows[name]["no_time"].startswith("refused: array 0 is off by"), name
    assert rows["softmax_xent, 10 classes"]["no_time"] == "CudaError: lost"
    assert "share" in rows["relu"]
    found = {"devices": {"cuda": "a GPU"}, "bandwidth": list(rows.values())}
    assert tables.failures(found)[0] == "softmax_xent, 10 classes: CudaError: lost"
    assert len(tables.failures(found)) == 5


def test_an_input_that_is_changed_is_noticed():
    def changes(p, g, v, **named):
        backend().sgd(p, g, v, **named)
        g[3] += 1

    rows = {row["operation"]: row for row in measured(replace(backend(), sgd=changes))}
    assert rows["sgd"]["no_time"].startswith("refused: array 1 is off by")


# --- whole trainings --------------------------------------------------------------------------------

NETWORK = cases.Network((64, 12, 10), 16)


@pytest.fixture(scope="module")
def digits():
    random = np.random.default_rng(0)
    return fd.Images(random.integers(0, 256, (24, 8, 8), np.uint8), random.integers(0, 10, 24, np.uint8))


def test_an_epoch_gets_a_time_and_its_loss_is_that_of_the_processor(digits):
    saved = []
    with emulated(race=False):
        rows = goals.epoch(
            *(backend(GPU), ["float32"], digits, NETWORK, 1), save=lambda rows: saved.append(len(rows))
        )
    (row,) = rows
    assert saved == [1]
    assert "no_time" not in row
    assert row["path"] == "epoch: one persistent kernel"
    assert 0 < row["milliseconds_of_steps"] < row["milliseconds"]
    assert 0 < row["host_share_while_gpu_works"] <= 1
    assert 0 < row["loss_apart"] <= goals.LOSS_APART["float32"]
    assert row["host_share_of_epoch"] > 0.9  # the interpreter leaves nothing to wait for
    (table,) = tables.PARTS["goals"]({"epoch": rows})
    assert table.rows[0][2] == f"{row['milliseconds']:.2f} ms"
    assert asked("goals", {"epoch": rows}, "an epoch")[0].startswith(f"{row['milliseconds']:.2f} ms")
    assert asked("goals", {"epoch": rows}, "the host")[1] is False


def test_the_host_s_share_is_what_it_does_not_wait(digits, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(goals.time, "perf_counter", lambda: clock.now)

    def later(function, seconds):
        def call(*arguments):
            clock.now += seconds
            return function(*arguments)

        return call

    cpu = fd.get_backend("cpu")
    side = replace(cpu, train_epoch=later(cpu.train_epoch, 1.0), to_host=later(cpu.to_host, 3.0))
    (row,) = goals.epoch(side, ["float32"], digits, NETWORK, 4)
    steps, whole = 2, row["milliseconds"] / 1e3  # steps as slow as that are asked for one by one
    assert whole > steps * (1 + 3)  # there is more to fetch than losses
    assert row["host_share_while_gpu_works"] == pytest.approx(1 / 4)
    assert row["host_share_of_epoch"] == pytest.approx(1 - steps * 3 / whole)


def test_a_training_with_another_loss_gets_no_time(digits):
    cpu = fd.get_backend("cpu")

    def off(array):
        losses = array.dtype == np.float32 and array.size <= len(digits.images)
        return 1.001 * cpu.to_host(array) if losses else array

    side = replace(cpu, to_host=off)
    (row,) = goals.epoch(side, ["float32"], digits, NETWORK, 2)
    assert row["no_time"] == "refused: loss differs by 0.001, more than 0.0001"
    (row,) = goals.comparison(side, ["float32"], digits, NETWORK, 1, 1)
    assert row["no_time"].startswith("refused: loss differs")
    (row,) = goals.epoch(side, ["float16"], digits, NETWORK, 2)
    assert row["precision"] == "float16"
    assert row["no_time"].startswith("ConfigError: ")
    assert len(tables.failures({"devices": {}, "goals": {"epoch": [row], "comparison": [row]}})) == 2


def test_the_comparison_s_seconds_are_those_of_whole_calls_of_fit(digits):
    rows = goals.comparison(fd.get_backend("cpu"), ["float32"], digits, NETWORK, 2, 2)
    assert rows[0]["steps"] == 2 * 2
    assert asked("goals", {"comparison": rows}, "784-1024-10")[0].endswith("in float32, 4 steps")
    assert 0 < rows[0]["seconds_range"][0] <= rows[0]["seconds"] <= rows[0]["seconds_range"][1]


def test_the_time_to_an_accuracy_is_of_recipes_in_each_precision(monkeypatch):
    all_digits, trained, saved = fd.load_digits(), [], []
    recipe = accuracy.Recipe(0.98, (64, 12, 10), 1, batch=64)
    monkeypatch.setattr(accuracy, "GPU_RECIPES", {0.98: recipe, 0.99: replace(recipe, target=0.99)})
    monkeypatch.setattr(fd, "load_mnist", lambda: all_digits)
    monkeypatch.setattr(
        accuracy.Answers,
        "ours",
        lambda self, recipe, data, seed: (
            trained.append((self.precision, recipe.target, seed, len(data.train.images))),
            (seed, 0.98 + seed / 1000),
        )[1],
    )
    first = goals.to_accuracy("cpu", ["float32"], seeds=3, save=lambda rows: saved.append(len(rows)))
    rows = goals.to_accuracy("cpu", ["float32", "bf16"], first, seeds=3)
    assert saved == [1, 2]
    count = len(all_digits.train.images)
    assert trained[:4] == [("float32", 0.98, 0, 128), *(("float32", 0.98, seed, count) for seed in (1, 2, 3))]
    assert [(row["precision"], row["target"]) for row in rows] == [
        *(("float32", 0.98), ("float32", 0.99), ("bf16", 0.98), ("bf16", 0.99))
    ]
    assert [(row["seconds"], row["accuracy"], row["reached"]) for row in rows[:2]] == [
        *((2, 0.982, True), (2, 0.982, False))
    ]
    said = "2.000 s in float32 (median of 3 seeds), 98.20% (98.10% to 98.30%)"
    assert asked("goals", {"accuracy": rows}, "98%") == (said, False)


def test_what_is_asked_of_a_gpu_has_a_recipe():
    assert [accuracy.GPU_RECIPES[target].target for target in goals.TARGETS] == list(goals.TARGETS)


def test_shifted_images_are_beside_those_that_are_not():
    whole = fd.Images(np.arange(1, 41, dtype=np.uint8).reshape(2, 4, 5), np.array([3, 7], np.int32))
    recipe = accuracy.Recipe(0.9, (20, 10), 1, shifts=8)
    images, labels = recipe.training_set(whole)
    assert labels.tolist() == [3, 7] * 9
    sides = itertools.product((0, -1, 1), repeat=2)
    framed = np.pad(whole.images, ((0, 0), (1, 1), (1, 1)))
    expected = [framed[:, 1 - down :, 1 - right :][:, :4, :5] for down, right in sides]
    assert sorted(map(bytes, images.reshape(9, -1))) == sorted(map(bytes, expected))
    few, _ = replace(recipe, shifts=4).training_set(whole)
    assert np.array_equal(few, images[:10])
    assert np.array_equal(few[:2], whole.images)


def test_a_recipe_is_trained_in_its_precision(monkeypatch):
    made, whole = [], fd.Network
    monkeypatch.setattr(fd, "Network", lambda sizes, **how: made.append(how) or whole(sizes, **how))
    monkeypatch.setattr(fd, "load_mnist", fd.load_digits)
    monkeypatch.setitem(accuracy.RECIPES, 0.98, accuracy.Recipe(0.98, (784, 12, 10), 1, batch=64))
    found = accuracy.Answers("fastdigit", "cpu", "bf16")((0.98, 1))
    assert made[0]["precision"] == "bf16"
    assert 0 < found["accuracy"] <= 1


def test_goals_are_measured_in_order_and_kept(monkeypatch):
    def stub(name):
        def measure(side, precisions, *more, save):
            save([(name, *precisions)])
            return [(name, *precisions)]

        return measure

    for name in ("epoch", "comparison", "to_accuracy"):
        monkeypatch.setattr(goals, name, stub(name))
    saved, side = [], SimpleNamespace(precisions=("bf16", "float32", "float64"))
    found = goals.goals(side, fd.load_digits(), lambda found: saved.append({**found}))
    assert [list(each) for each in saved] == [
        *(["epoch"], ["epoch", "accuracy"], ["epoch", "accuracy", "comparison"]),
        ["epoch", "accuracy", "comparison"],
    ]
    assert saved[1]["accuracy"] == [("to_accuracy", "float32")]
    assert found == saved[-1]
    assert found["accuracy"] == [("to_accuracy", "float32", "bf16")]


# --- launches ---------------------------------------------------------------------------------------


def test_launches_are_timed_and_counted(monkeypatch):
    stream = SimpleNamespace(synchronize=lambda: None)
    stand_in = SimpleNamespace(zeros=np.zeros, cuda=SimpleNamespace(get_current_stream=lambda: stream))
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    monkeypatch.setattr(launches, "MANY", 3)
    monkeypatch.setattr(cuda, "limits", lambda: GPU)
    barriers = []
    monkeypatch.setattr(launches, "barriers", lambda blocks, count: barriers.append((blocks, count)))
    asked = itertools.count(1)

    def seconds(*calls):
        for call in calls:
            call()
        return [[1e-6 * next(asked)] for _ in calls]

    with emulated(race=False):
        found = launches.launches(seconds)
    assert barriers == [(2, 0), (2, 3)]  # of the emulated GPU
    assert found["counted"]  # 1 + 3 to time the host, 1 alone, 3 of a graph
    assert found["barrier_microseconds"] == pytest.approx(1 / 3)
    assert (found["launch_microseconds"], found["graph_node_microseconds"]) == pytest.approx((3, 4 / 3))
    assert found["launch_on_host_microseconds"] > 0


# --- steps ------------------------------------------------------------------------------------------

TINY = ("tiny", "bf16", True), ("tiny", "tf32", False)


def steps_of_tiny(monkeypatch):
    """Rows, and how many graphs and single launches were timed at a time."""
    monkeypatch.setitem(train.ALL_NETWORKS, "tiny", cases.Network((36, 20, 12, 5), 16))
    monkeypatch.setattr(cuda_steps, "MANY", 2)
    timed = []

    def seconds(*calls):
        timed.append(len(calls))
        for call in calls:
            call()
        return [[1e-3 * (number + 1)] * 3 for number in range(len(calls))]

    def prepared(kernel, blocks, arguments, shared, dependent=False):
        def launch():
            cuda.launch(kernel, blocks, arguments, shared)

        launch.kernel, launch.size, launch.dependent = kernel, (*blocks, 1), dependent
        return launch

    with emulated(race=False):
        cuda.prepared = prepared
        rows = steps.steps(np, backend(GPU), (8, 0), TINY, seconds)
    return rows, timed


def test_steps_are_timed_as_graphs_and_launch_by_launch(monkeypatch):
    rows, timed = steps_of_tiny(monkeypatch)
    assert [(row["network"], row["precision"], row["same"]) for row in rows] == [
        ("tiny", "bf16", True),
        ("tiny", "tf32", True),
    ]
    for row in rows:  # of two steps, and the other graph takes twice as long
        assert (row["microseconds"], row["microseconds_early"]) == pytest.approx((500, 1000))
        assert row["early_share"] == pytest.approx([2, 2, 2])
    names = [name for name, _, _ in rows[0]["alone"]]
    assert timed == [2, *[1] * len(names), 2]
    assert names[0] == "step: images of uint8 to bfloat16"
    assert sum(name.startswith("matmul_mma bf16") for name in names) == 3 + 2 + 3
    assert not any(name.endswith("count") for name in names)
    table, alone = tables.PARTS["steps"](rows)
    assert table.rows[0] == ("tiny", "bf16", "500.0 µs", "1.00 ms", "yes")
    assert len(alone.rows) == len(names)


def test_other_weights_of_launches_that_begin_early_are_said(monkeypatch):
    init = steps.Prepared.__init__

    def wrong(self, *about):
        init(self, *about)
        self.parameters[0] += about[-1]  # whether they begin early

    monkeypatch.setattr(steps.Prepared, "__init__", wrong)
    rows, _ = steps_of_tiny(monkeypatch)
    assert [row["same"] for row in rows] == [False, False]
    found = {"devices": {"cuda": "a GPU"}, "steps": rows}
    assert "tiny, bf16: launches that begin early end with other weights" in tables.failures(found)
