"""Processes that take turns: who waits stands still, and a process that ends leaves its last words."""

import sys
import time

import pytest

from fastdigit.bench import turns

# Counts in a thread while it waits for questions; answers how far it came.
COUNTER = """
import threading, time
from fastdigit.bench import turns
count = 0
def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
print("a library says hello")
def answer(question):
    print("and again")
    time.sleep(question)
    return {"count": count}
turns.answer_all(answer)
"""


@pytest.fixture
def running():
    with turns.Turns() as found:
        yield found


def python(code):
    return [sys.executable, "-c", code]


def test_who_waits_stands_still(running):
    running.start("counter", python(COUNTER))
    before = running.ask("counter", 0.05)["count"]
    time.sleep(0.5)
    between = running.ask("counter", 0)["count"]
    assert between - before < 100  # half a second would have been about 450
    assert running.ask("counter", 0.3)["count"] - between > 30


def test_all_are_asked_in_turn_and_the_first_round_does_not_count(running):
    for name in ("one", "two"):
        code = (
            "import time\nfrom fastdigit.bench import turns\n"
            "turns.answer_all(lambda question: {'at': time.monotonic_ns(), 'asked': question})"
        )
        running.start(name, python(code))
    answers = running.ask_all("when?", 3)
    assert {name: len(found) for name, found in answers.items()} == {"one": 3, "two": 3}
    assert all(answer["asked"] == "when?" for found in answers.values() for answer in found)
    order = sorted((answer["at"], name) for name, found in answers.items() for answer in found)
    assert [name for _, name in order] == ["one", "two", "two", "one", "one", "two"]
    assert list(running.ask_all("when?", 1, ["two"])) == ["two"]


def test_a_process_that_ends_leaves_its_last_words_and_the_others_go_on(running):
    running.start("ends", python("import sys; sys.stdin.readline(); raise SystemExit('no more')"))
    running.start("silent", python("import sys; sys.exit(3)"))
    running.start("nothing", ["/no/such/interpreter"])
    running.start("lives", python(COUNTER))
    for _ in range(2):
        assert running.ask("ends", 0) == {"no_time": "failed: no more"}
        assert running.ask("silent", 0) == {"no_time": "failed: exit status 3"}
        assert running.ask("nothing", 0)["no_time"].startswith("failed: ")
        assert running.ask("lives", 0)["count"] >= 0


def test_a_process_that_never_answers_is_given_up(running, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.3)
    running.start("sleeper", python("import time; time.sleep(60)"))
    assert running.ask("sleeper", 0) == {"no_time": "failed: no answer within 0.3 s"}


def test_all_processes_end_with_the_block():
    with turns.Turns() as running:
        running.start("counter", python(COUNTER))
        running.ask("counter", 0)
        process = running.sides["counter"].process
        assert process.poll() is None
    assert process.poll() is not None


def test_calls_are_made_in_turn_until_threads_have_settled():
    made, begun = [], time.perf_counter()
    turns.settle([lambda: made.append(0), lambda: made.append(1)])
    assert time.perf_counter() - begun > turns.SETTLE
    assert len(made) > 2
    assert made == [0, 1] * (len(made) // 2) + [0] * (len(made) % 2)
    turns.settle([])  # where all were refused
