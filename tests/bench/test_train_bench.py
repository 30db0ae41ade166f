"""The harness of bench.train without any peer: what gets a time, what is refused one, what is missing."""

import importlib.util
import json
import subprocess
import sys
import time
from itertools import chain, repeat

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import cases, peers, train

TINY = cases.Network((784, 16, 10), 32)
STEPS = 12


@pytest.fixture(scope="module")
def data():
    return fd.load_digits().train


@pytest.fixture
def folder(data, tmp_path):
    """A task as the process of a side finds it."""
    task = train.task_of(TINY, data, "numpy")
    task.save(tmp_path)
    np.save(tmp_path / "expected.npy", train.expected_losses(task, STEPS))
    return tmp_path


@pytest.fixture
def answers_of(folder, monkeypatch):
    """``answers_of(make)``: what the process of a side that is made so would answer, first and in a turn."""

    def answers_of(make, precision="float32"):
        monkeypatch.setitem(peers.SIDES, "side", peers.Side(make, precision))
        side = train.Answers("side", folder)
        facts = side("check")
        return facts, () if "no_time" in facts else (side(0.05),)

    return answers_of


def row(answers):
    facts, turns = answers[0], [{**answer, "limit": 200.0} for answer in answers[1]]
    return train.row_of("side", TINY, facts, turns, range(len(turns)))


LIMITS_OF_A_STAND_IN = """
from fastdigit.bench import turns

turns.answer_all(lambda question: {"gflops": 200.0, "meeting": 40.0})
"""


def turn(speed):
    return {"speed": speed, "wall": None, "others": None}


def test_numpy_and_fastdigit_are_measured_in_processes_of_their_own(data):
    result = train.measure(TINY, data, ["numpy", "fastdigit"], 2, 0.1, "numpy")
    theirs, ours = result["rows"]
    for found in (theirs, ours):
        assert "no_time" not in found
        assert found["images_per_second"] > 0
        assert len(found["turns"]) == len(found["limits"]) == 2
        assert found["first_call_seconds"] >= 0
        assert found["largest_loss_difference"] < 1e-5
        assert found["gflops"] == found["images_per_second"] * TINY.flops_per_image / 1e9
    assert result["best_peers"] == {"float32": "numpy"}
    ratios = np.divide(ours["turns"], theirs["turns"])
    assert ours["ratio_to_best_peer"]["median"] == pytest.approx(np.median(ratios))
    assert ours["images_per_second_wall"] > 0
    json.dumps(result, allow_nan=False)
    train.show(result)


def test_where_the_processor_does_not_count_its_limit_is_not_measured(data, monkeypatch):
    monkeypatch.setattr(train.ceilings, "COMMAND", ["-c", "raise SystemExit('it was started')"])
    comparison, saved = train.Comparison(train.task_of(TINY, data, "numpy"), ["numpy"]), []
    result = comparison.take_turns_at_once(2, 0.05, 100, time.monotonic() + 100, saved.append)
    assert result == saved[-1]
    assert [len(each["rows"][0].get("turns", ())) for each in saved] == [0, 1, 2]
    assert saved[0]["rows"][0]["no_time"] == "its time was over before the first round"
    (row,) = result["rows"]
    assert len(row["turns"]) == 2
    assert result["rounds_that_count"] == [0, 1]
    assert row["limits"] == result["limits"] == []
    assert row["quartiles"][0] <= row["images_per_second"] <= row["quartiles"][1]


def test_a_side_that_is_not_ready_in_time_does_not_hold_up_the_others(data, monkeypatch):
    """The sides are stand-ins that say when they were asked; one never answers, one has no losses."""
    code = """
import sys, time
from fastdigit.bench import turns

def answer(question):
    if name == "jax":
        time.sleep(100)
    if question == "check":
        time.sleep(0.5)
        return {"no_time": "refused"} if name == "torch" else FACTS
    return {"speed": 7.0, "wall": None, "others": None}

name = sys.argv[2]
FACTS = {"used": "a stand-in", "first_call_seconds": 1, "largest_loss_difference": 0}
turns.answer_all(answer)
"""
    monkeypatch.setattr(train, "CHILD", ("-c", code, "--child"))
    sides, saved = ["jax", "fastdigit", "numpy", "torch"], []
    comparison, begun = train.Comparison(train.task_of(TINY, data, "numpy"), sides), time.monotonic()
    found = comparison.take_turns_at_once(3, 0.1, 4, begun + 100, lambda now: saved.append(json.dumps(now)))
    assert time.monotonic() - begun < 8  # 4 for who never answers, for nobody twice
    rows = {row["side"]: row for row in found["rows"]}
    assert rows["jax"]["no_time"].startswith("failed: no answer within ")
    assert rows["torch"]["no_time"] == "refused"
    assert rows["fastdigit"]["turns"] == rows["numpy"]["turns"] == [7.0] * 3
    assert rows["fastdigit"]["ratio_to_best_peer"]["median"] == 1
    assert len(saved) == 4 + 3  # who is ready, and the rounds
    first = {row["side"]: row["no_time"] for row in json.loads(saved[0])["rows"]}
    assert first["jax"] == "its time was over before it was ready"
    comparison = train.Comparison(train.task_of(TINY, data, "numpy"), ["numpy"])
    late = comparison.take_turns_at_once(3, 0.1, 10, time.monotonic() - 1)
    assert late["rows"][0]["no_time"] == "its time was over before the first round"


def test_the_task_survives_its_file_and_peers_get_the_order_of_fit(data, folder):
    task, read = train.task_of(TINY, data, "numpy"), peers.Task.load(folder)
    assert read.network == TINY
    assert (read.rate, read.backend, read.seed) == (train.RATE, "numpy", 0)
    assert len(read.images) % TINY.batch == 0
    for one, other in ((task.x, read.x), (task.y, read.y), (task.layers[1][0], read.layers[1][0])):
        np.testing.assert_array_equal(one, other)
    net = fd.Network(TINY.layer_sizes, backend="numpy", seed=0)
    log = fd.fit(
        net,
        (read.images, read.labels),
        optimizer=fd.SGD(read.rate),
        schedule=fd.Constant(),
        epochs=1,
        batch_size=TINY.batch,
    )
    np.testing.assert_allclose(peers.numpy_loop(read).first(read.steps), log.step_losses, rtol=1e-5)


def test_arrays_side_by_side_share_nothing_and_start_cache_lines():
    shapes = [(3, 5), (17,), (784, 16), (1, 1)]
    groups = peers.side_by_side(shapes, [], shapes)
    assert [[array.shape for array in group] for group in groups] == [shapes, [], shapes]
    arrays = list(chain.from_iterable(groups))
    for number, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        array[...] = number
    assert all((array == number).all() for number, array in enumerate(arrays))
    assert len({id(array.base) for array in arrays}) == 1
    assert arrays[0].base.nbytes >= 4 * 2**20


def test_the_deep_network_trains_on_fewer_images_with_a_small_rate():
    images = np.zeros((60_000, 28, 28), np.uint8)
    data = fd.Images(images, np.zeros(len(images), np.uint8))
    small, deep = (train.task_of(train.NETWORKS[name], data) for name in ("small-64", "deep-512"))
    assert (small.steps, small.rate) == (937, train.RATE)
    assert (deep.steps, deep.rate) == (train.FEWEST_STEPS, train.RATE_DEEP)
    whole, larger = (
        train.task_of(train.ALL_NETWORKS[name], data, whole=True) for name in ("deep-512", "deep-4096")
    )
    assert (whole.steps, larger.steps, larger.rate) == (117, 14, train.RATE_DEEP)
    assert "deep-4096" not in train.NETWORKS


IN_BF16 = """
import json, sys
from fastdigit.bench import peers

name, folder, steps = sys.argv[1:]
loop = {"torch": peers.torch_loop, "jax": peers.jax_loop}[name](peers.Task.load(folder), bf16=True)
print(json.dumps([loop.first(int(steps)), loop.used]))
"""


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_peers_in_bfloat16_train_as_float64_does_but_for_roundings(name, tmp_path):
    """On a GPU they are the same code, compiled and captured. In a process of its own: JAX wants no forks."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (STEPS * 64, 28, 28), dtype=np.uint8)
    labels = images[:, 0, :10].argmax(axis=1).astype(np.uint8)
    task = train.task_of(cases.Network((784, 64, 32, 10), 64), fd.Images(images, labels), "numpy")
    task.rate = 0.01
    task.save(tmp_path)
    command = [sys.executable, "-c", IN_BF16, name, str(tmp_path), str(STEPS)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    losses, used = json.loads(said.splitlines()[-1])
    expected = train.expected_losses(task, STEPS)
    assert 1e-6 < train.largest_difference(losses, expected) <= train.TOLERANCE_ROUNDED / 2
    assert "bfloat16" in used
    assert train.largest_difference(peers.numpy_loop(task).first(STEPS), expected) < 1e-6  # in float32


class Wrong:
    """Trains well, and tells another loss in one step."""

    used = "a side that errs"

    def __init__(self, task, error):
        self.loop, self.error = peers.numpy_loop(task), error

    def first(self, steps):
        losses = self.loop.first(steps)
        losses[STEPS // 2] *= self.error
        return losses

    def speeds(self, seconds):
        return self.loop.speeds(seconds)


@pytest.mark.parametrize(
    ("error", "precision"),
    [
        *((error, "float32") for error in (1.002, 0.998, float("nan"), float("inf"))),
        *((1.006, "tf32"), (1.006, "bf16")),
    ],
)
def test_a_wrong_loss_is_refused_a_time(answers_of, error, precision):
    facts, answers = answers_of(lambda task: Wrong(task, error), precision)
    assert not answers
    assert row((facts, answers))["no_time"].startswith("refused: loss differs")
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize(
    ("error", "ours", "timed"),
    [(1.006, False, True), (1.006, True, False), (1.011, False, False), (float("nan"), False, False)],
    ids=["near", "ours", "far", "not a number"],
)
def test_a_peer_that_is_refused_and_comes_near_is_timed_all_the_same(folder, monkeypatch, error, ours, timed):
    side = peers.Side(lambda task: Wrong(task, error), "bf16", ours=ours)
    monkeypatch.setitem(peers.SIDES, "side", side)
    facts = train.Answers("side", folder)("check")
    assert "refused" in facts["no_time"]
    assert facts["timed"] is timed


@pytest.mark.parametrize("at_once", [False, True], ids=["two passes", "at once"])
def test_ours_is_held_against_peers_that_were_refused_and_came_near(data, monkeypatch, at_once):
    """The first stand-in comes near, the second does not; the third is right."""
    monkeypatch.setattr(train.State, "shortest", float("inf"))
    code = """
import sys
from fastdigit.bench import turns

name = sys.argv[2]
FACTS = {
    "jax": {"no_time": "refused: loss differs", "timed": True},
    "torch": {"no_time": "refused: loss differs", "timed": False},
}
RIGHT = {"used": "a stand-in", "first_call_seconds": 1, "largest_loss_difference": 0}
SPEEDS = {"jax": 10.0, "numpy": 2.0, "fastdigit": 8.0}

def answer(question):
    if question in ("ready", "check"):
        return FACTS.get(name, RIGHT) if question == "check" else {}
    return {"speed": SPEEDS[name], "wall": None, "others": None}

turns.answer_all(answer)
"""
    monkeypatch.setattr(train, "CHILD", ("-c", code, "--child"))
    monkeypatch.setattr(train.ceilings, "COMMAND", ["-c", LIMITS_OF_A_STAND_IN])
    comparison = train.Comparison(train.task_of(TINY, data, "numpy"), ["jax", "torch", "numpy", "fastdigit"])
    if at_once:
        comparison.take_turns_at_once(2, 0.1, 100, time.monotonic() + 100)
    else:
        comparison.take_turns(1, 0.1)
        comparison.take_turns(1, 0.1)
    found = comparison.result()
    rows = {row["side"]: row for row in found["rows"]}
    assert rows["jax"]["no_time"] == "refused: loss differs (10 images/s all the same)"
    assert rows["jax"]["turns"] == [10.0] * 2
    assert rows["torch"] == {
        "side": "torch",
        "precision": "float32",
        "used": None,
        "no_time": "refused: loss differs",
    }
    assert found["best_peers"] == {"float32": "jax"}
    assert rows["fastdigit"]["ratio_to_best_peer"]["median"] == 0.8
    train.show(found)


def test_a_small_rounding_is_not_refused(answers_of):
    assert "no_time" not in row(answers_of(lambda task: Wrong(task, 1.0001)))
    assert "no_time" not in row(answers_of(lambda task: Wrong(task, 1.004), "tf32"))
    found = row(answers_of(lambda task: Wrong(task, 1.004), "bf16"))
    assert "no_time" not in found
    assert max(found["loss_differences"]) == pytest.approx(found["largest_loss_difference"], rel=1e-3)


def test_a_wrong_update_is_refused_a_time(answers_of):
    def make(task):
        task.rate *= 1.05
        return peers.numpy_loop(task)

    assert "refused" in row(answers_of(make))["no_time"]


def test_fewer_losses_than_expected_are_refused(answers_of):
    def make(task):
        loop = peers.numpy_loop(task)
        loop.first = lambda steps: loop.train(0, steps - 1)
        return loop

    assert "refused" in row(answers_of(make))["no_time"]


def test_a_missing_peer_has_a_row_that_says_how_to_get_it(answers_of):
    found = row(answers_of(lambda task: importlib.import_module("a_peer_that_nobody_has")))
    assert "a_peer_that_nobody_has is not installed: pip install -r bench/" in found["no_time"]
    train.show({"network": "none", "images": 0, "best_peers": train.compare([found], [0]), "rows": [found]})


def test_a_precision_that_is_not_offered_has_a_row_that_says_so(answers_of):
    found = row(answers_of(lambda task: peers.Fit(task, precision="float8")))
    assert "does not offer precision 'float8'" in found["no_time"]


@pytest.mark.parametrize(
    ("speeds", "noisy"), [([100, 101, 102, 103], False), ([100, 120, 140, 160], True), ([7], False)]
)
def test_speeds_that_scatter_are_called_noisy(speeds, noisy, monkeypatch):
    monkeypatch.setitem(peers.SIDES, "side", peers.Side(None))
    answers = [turn(speed) for speed in speeds]
    found = row(({"first_call_seconds": 0, "largest_loss_difference": 0}, answers))
    assert found["noisy"] is noisy
    assert found["cores_used_by_others"] is None


def test_the_best_peer_is_the_quickest_of_the_same_precision():
    def timed(side, speed, rounds):
        precision = peers.SIDES[side].precision
        return {"side": side, "precision": precision, "images_per_second": speed, "turns": rounds}

    rows = [
        timed("numpy", 10, [10, 10]),
        timed("jax", 20, [20, 10]),
        timed("torch-bf16", 90, [90, 90]),
        {"side": "torch", "precision": "float32", "no_time": "refused"},
        timed("fastdigit", 30, [30, 30]),
        timed("fastdigit-1thread", 5, [5, 5]),
    ]
    assert train.compare(rows, [0, 1]) == {"float32": "jax", "bf16": "torch-bf16"}
    exact = timed("fastdigit-bf16x3", 60, [60, 60])  # as exact as float32
    found = train.compare([*rows, exact], [0, 1])
    assert found == {"float32": "jax", "bf16": "torch-bf16", "bf16x3": "jax"}
    assert exact["ratio_to_best_peer"]["median"] == 4.5
    assert rows[4]["ratio_to_best_peer"] == {"median": 2.25, "quartiles": [1.875, 2.625]}
    assert "ratio_to_best_peer" not in rows[1]


def noted(state, meetings):
    """Rounds in which the threads met so quickly before and after the only turn."""
    for meeting in meetings:
        state.note({"gflops": 200, "meeting": meeting}, {"gflops": 220, "meeting": meeting})


def test_rounds_with_cores_far_apart_do_not_count_while_there_are_others(monkeypatch):
    monkeypatch.setattr(train.State, "shortest", float("inf"))
    state = train.State()
    noted(state, (150, 150, 41, 45, 50))
    assert (state.meetings, state.limits) == ([150, 150, 41, 45, 50], [210] * 5)
    assert state.far() == [True, True, False, False, False]
    assert state.rounds_that_count() == [2, 3, 4]
    noted(state, (20,))  # then 41 was far
    assert state.rounds_that_count() == [0, 1, 2, 3, 4, 5]
    speeds = [{**turn(speed), "limit": 200.0} for speed in (1, 1, 10, 11, 12)]
    monkeypatch.setitem(peers.SIDES, "side", peers.Side(None))
    facts = {"first_call_seconds": 0, "largest_loss_difference": 0}
    found = train.row_of("side", TINY, facts, speeds, [2, 3, 4])
    assert (found["images_per_second"], found["turns"]) == (11, [1, 1, 10, 11, 12])
    state.note(*({"gflops": gflops, "meeting": 45} for gflops in (100, 300, 200)))  # one that is far off
    assert state.limits[-1] == 200
    with pytest.raises(RuntimeError, match="could not be measured: gone"):
        state.note({"gflops": 200, "meeting": 40}, {"no_time": "gone"})


class Here:
    """Turns in this process: ``asked`` keeps what was started and who had a turn, in order."""

    def __init__(self, meetings, asked):
        self.meetings, self.asked = meetings, asked

    def __call__(self, patience=None):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.asked.append("end")

    def start(self, name, command, environment=None):
        self.asked.append(f"start {name}")

    def ask(self, name, question):
        if name == train.LIMIT:
            return {"gflops": 200, "meeting": next(self.meetings)}
        if question in ("ready", "check"):
            self.asked.append(question)
            return {"used": "nothing", "first_call_seconds": 1, "largest_loss_difference": 0}
        self.asked.append(name)
        return {"speed": 1.0, "wall": None, "others": None}


@pytest.mark.parametrize(("meetings", "rounds"), [((40, 40), 6), ((40, 150), 8)])
def test_rounds_with_cores_far_apart_are_made_up_for(meetings, rounds, data, monkeypatch):
    monkeypatch.setattr(train.State, "shortest", float("inf"))
    machine = chain(meetings, repeat(meetings[1]))  # the first meeting, and all others
    monkeypatch.setattr(train.turns, "Turns", Here(machine, []))
    comparison = train.Comparison(train.task_of(TINY, data, "numpy"), ["numpy"])
    comparison.take_turns(6, 0.1)
    assert len(comparison.answers["numpy"]) == comparison.state.rounds() == rounds


def test_the_rounds_of_each_network_are_spread_over_the_run_with_new_processes(data, monkeypatch):
    monkeypatch.setattr(train.State, "shortest", float("inf"))
    asked, other = [], cases.Network((784, 8, 10), 32)
    monkeypatch.setattr(train.turns, "Turns", Here(repeat(40), asked))
    networks = [(TINY, ["numpy"]), (other, ["fastdigit", "numpy"])]
    found = train.measure_all(networks, data, 4, 0.1, "numpy", passes=3)
    assert [len(result["rows"][0]["turns"]) for result in found] == [4, 4]
    assert [result["network"] for result in found] == [str(TINY), str(other)]

    def part(sides, rounds):  # all sides get ready at once
        starts, orders = [f"start {side}" for side in sides], (sides, sides[::-1])
        questions = [question for question in ("ready", "check") for _ in sides]
        turns = chain.from_iterable(orders[:rounds])
        return [*starts, *questions, f"start {train.LIMIT}", *turns, "end"]

    passes = [(*part(["numpy"], rounds), *part(["fastdigit", "numpy"], rounds)) for rounds in (2, 1, 1)]
    assert asked == list(chain.from_iterable(passes))


def test_a_side_that_fails_in_a_later_pass_gets_no_time(data, monkeypatch):
    monkeypatch.setattr(train.State, "shortest", float("inf"))
    here = Here(repeat(40), [])
    monkeypatch.setattr(train.turns, "Turns", here)
    comparison = train.Comparison(train.task_of(TINY, data, "numpy"), ["numpy"])
    comparison.take_turns(2, 0.1)
    here.ask = lambda name, question: (
        {"no_time": "refused: loss differs"} if question == "check" else {"gflops": 200, "meeting": 40}
    )
    comparison.take_turns(2, 0.1)
    assert comparison.result()["rows"][0]["no_time"] == "refused: loss differs"
