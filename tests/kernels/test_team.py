"""The team of threads: barriers, callers at once, forks, signals, the end of the process.

What could end or hang a process runs in a process of its own, with a limit of time.
"""

import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fastdigit.kernels.common import team
from fastdigit.kernels.common.memory import atomic_read, atomic_write, ints
from fastdigit.kernels.common.team import Kernel, thread_count, wait_for_all
from fastdigit.kernels.optimizer import cpu as optimizer

PROJECT = Path(__file__).resolve().parents[2]


# --- kernels ----------------------------------------------------------------------------------------


def _rounds(thread, threads, barrier, arguments):
    """Each thread counts rounds in a word of its own; after a barrier all words must be equal.

    Words of ``arguments``: how many rounds, the address of the counters (a cache line each), the address
    of one number of errors for each thread.
    """
    rounds, counters, errors = ints(arguments, 3)
    for i in range(rounds):
        atomic_write(counters + 64 * thread, i + 1)
        wait_for_all(barrier, threads)
        for other in range(threads):
            if atomic_read(counters + 64 * other) != i + 1:
                ints(errors, threads)[thread] += 1
        wait_for_all(barrier, threads)


def _rounds_with_one_barrier_missing(thread, threads, barrier, arguments):
    rounds, counters, errors = ints(arguments, 3)
    for i in range(rounds):
        atomic_write(counters + 64 * thread, i + 1)
        wait_for_all(barrier, threads)
        for other in range(threads):
            if atomic_read(counters + 64 * other) != i + 1:
                ints(errors, threads)[thread] += 1


def _busy(thread, threads, barrier, arguments):
    """Add up ``turns`` numbers, as thread t of n every n-th of them; the sums at the given address."""
    turns, sums = ints(arguments, 2)
    x = 0
    for i in range(thread, turns, threads):
        x += (i * i) % 7
        atomic_write(sums + 64 * thread, x)


rounds, busy = Kernel(_rounds), Kernel(_busy)
faulty = Kernel(_rounds_with_one_barrier_missing)


def errors_of(kernel, threads, count):
    counters, errors = np.zeros(8 * 256, np.int64), np.zeros(256, np.int64)
    kernel([count, counters.ctypes.data, errors.ctypes.data], threads)
    assert (counters[: 8 * threads : 8] == count).all()
    return int(errors.sum())


def sum_of(turns, threads):
    sums = np.zeros(8 * 256, np.int64)
    busy([turns, sums.ctypes.data], threads)
    return int(sums.sum())


def expected_sum(turns):
    return int((np.arange(turns) ** 2 % 7).sum())


def process(code, limit=60, **environment):
    """Run code in a process of its own; it must end well and in silence. What it printed."""
    code = "from tests.kernels.test_team import *\n" + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """So that the processes below only load."""
    for kernel in (rounds, busy):
        kernel._address  # noqa: B018


# --- in this process --------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "count"), [(1, 10), (2, 20_000), (3, 300), (5, 150), (64, 3)])
def test_nobody_passes_a_barrier_early(threads, count):
    for share in (1, 2):
        assert errors_of(rounds, threads, count // share) == 0


def test_a_missing_barrier_is_noticed():
    """Else the test above would prove nothing; a few attempts, as it takes two threads at once."""
    if thread_count() < 2:
        pytest.skip("one processor runs one thread after the other")
    assert any(errors_of(faulty, 2, 20_000) for _ in range(20))


def test_teams_of_changing_size():
    for threads in [2, 7, 1, 3, 2, 12, 1, 2]:
        assert sum_of(1000, threads) == expected_sum(1000)
    time.sleep(0.05)  # all asleep
    assert sum_of(1000, 12) == expected_sum(1000)


def test_more_threads_than_a_team_has():
    assert sum_of(5000, 100_000) == expected_sum(5000)


def test_callers_at_once():
    results = []

    def work(threads):
        for turns in range(1, 2000, 40):
            results.append(sum_of(turns, threads) == expected_sum(turns))

    workers = [threading.Thread(target=work, args=(threads,)) for threads in (2, 3, 2, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert results == [True] * 200


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None.__class__])
def test_numbers_of_threads_that_make_no_sense(value):
    with pytest.raises(ValueError, match="threads must be an integer of at least 1"):
        thread_count(value)


def test_numbers_of_threads(monkeypatch):
    monkeypatch.delenv(team.ENVIRONMENT_VARIABLE, raising=False)
    assert thread_count() >= 1
    assert thread_count(np.int32(3)) == 3
    monkeypatch.setenv(team.ENVIRONMENT_VARIABLE, "7")
    assert (thread_count(), thread_count(2)) == (7, 2)
    monkeypatch.setenv(team.ENVIRONMENT_VARIABLE, "")
    assert thread_count() >= 1
    for wrong in ("0", "-2", "two", "1.5", " 3"):
        monkeypatch.setenv(team.ENVIRONMENT_VARIABLE, wrong)
        with pytest.raises(ValueError, match="FASTDIGIT_THREADS must be a number of threads of at least 1"):
            thread_count()


def test_a_huge_number_of_threads_is_cut_to_what_a_team_can_have(monkeypatch):
    """Working memory is allocated for each."""
    assert thread_count(10**9) == team._Team.MAX_THREADS
    monkeypatch.setenv(team.ENVIRONMENT_VARIABLE, str(10**12))
    assert thread_count() == team._Team.MAX_THREADS


def test_a_machine_that_gives_no_more_threads(monkeypatch):
    """As in a container with a limit of processes: the work is done by those that there are."""
    fresh = team._Team()
    monkeypatch.setattr(team, "_team", fresh)
    assert sum_of(1000, 2) == expected_sum(1000)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert sum_of(1000, 5) == expected_sum(1000)
    assert len(fresh.threads) == 1
    monkeypatch.undo()
    monkeypatch.setattr(team, "_team", fresh)
    assert sum_of(1000, 5) == expected_sum(1000)
    assert len(fresh.threads) == 4
    fresh.dismiss()


def test_a_dismissed_team_can_be_used_again(monkeypatch):
    fresh = team._Team()
    monkeypatch.setattr(team, "_team", fresh)
    for _ in range(3):
        results = []
        worker = threading.Thread(target=lambda: results.append(sum_of(1000, 3)), daemon=True)  # noqa: B023
        worker.start()
        worker.join(10)
        assert results == [expected_sum(1000)], "hangs"
        begun = time.monotonic()
        fresh.dismiss()
        assert time.monotonic() - begun < 5, "waits for itself"
        assert not any(member.is_alive() for member in fresh.threads)


# --- signals ----------------------------------------------------------------------------------------


class Alarm(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_interrupt_is_raised_when_the_work_is_done(threads):
    turns = 30_000_000
    sums = np.zeros(8 * 256, np.int64)

    def work():
        busy([turns, sums.ctypes.data], threads)
        time.sleep(5)  # for a signal that comes after the work, on a quick machine

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(KeyboardInterrupt):
            work()
        assert int(sums.sum()) == expected_sum(turns)  # the members have not been left at work
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sum_of(1000, threads) == expected_sum(1000)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_any_exception_of_a_signal_handler_at_any_moment():
    """A limit of time, say, that hits while members are being woken: the work is finished all the same."""
    code = """
    import signal, time

    class Alarm(Exception):
        pass

    def ring(number, frame):
        global armed
        if armed:
            armed = False
            raise Alarm

    for threads in (2, 4):
        assert sum_of(10, threads) == expected_sum(10)
        compiled = team._together

        def interrupted(*arguments):
            finished = compiled(*arguments)
            if not arguments[-1]:
                raise Alarm  # as a handler may that runs now, between two steps of the interpreter
            return finished

        time.sleep(0.05)  # the members are asleep: they have to be woken
        team._together = interrupted
        sums = np.zeros(8 * 256, np.int64)
        try:
            busy([1000, sums.ctypes.data], threads)
        except Alarm:
            team._together = compiled
        assert sums.sum() == expected_sum(1000)
        assert errors_of(rounds, threads, 10) == 0
    signal.signal(signal.SIGALRM, ring)
    counted = 0
    for i in range(300):
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + i % 40))
            sum_of(3000, 2)
            time.sleep(0.001)
            armed = False
        except Alarm:
            counted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert sum_of(1000, 3) == expected_sum(1000)
    print(counted)
    """
    assert int(process(code)) > 0


# --- forks and the end --------------------------------------------------------------------------------

FORK = """
    def child():
        assert sum_of(2000, 3) == expected_sum(2000)
        assert errors_of(rounds, 2, 50) == 0

    def forked():
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # a child that hangs is ended
            try:
                child()
            except BaseException as error:
                print(error, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_fork_after_use():
    process(FORK + "    sum_of(100, 4)\n    forked()\n    time.sleep(0.05)\n    forked()\n    sum_of(100, 4)")


@needs_fork
def test_fork_while_another_thread_is_inside_a_kernel():
    code = """
    worker = threading.Thread(target=lambda: print(sum_of(100_000_000, 2)))
    child()
    worker.start()
    time.sleep(0.05)
    assert team._team.shared[team.TAKEN]
    forked()
    forked()
    worker.join()
    child()
    """
    assert int(process(FORK + code)) == expected_sum(100_000_000)


@needs_fork
def test_a_forked_child_ends_as_usual():
    """With its own exit handlers, as multiprocessing's workers do."""
    code = """
    sum_of(100, 4)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        sum_of(100, 3)
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """
    process(code)


def test_a_spawned_process():
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(sum_of, [(1000, 2), (2000, 3)]) == [expected_sum(1000), expected_sum(2000)]


@pytest.mark.parametrize(
    "code",
    [
        "sum_of(100, 4)",
        "sum_of(100, 4); time.sleep(0.1)",
        "sum_of(100, 4); sys.exit(0)",
        "sum_of(100, 64)",
        "threading.Thread(target=sum_of, args=(20_000_000, 2)).start()",
    ],
    ids=["awake", "asleep", "exit", "many", "another thread at work"],
)
def test_the_process_ends_at_once(code):
    ended = process(f"try:\n    {code}\nfinally:\n    print(time.time(), flush=True)")
    assert time.time() - float(ended) < 5


def test_the_process_ends_while_a_daemon_thread_is_at_work():
    code = """
    def work():
        while True:
            sum_of(1_000_000, 3)

    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    """
    process(code, limit=30)


def test_exit_handlers_that_compute():
    """Those that were registered earlier run after the team has been dismissed."""
    code = "import atexit\natexit.register(lambda: print(sum_of(1000, 3)))\n"
    code += "from tests.kernels.test_team import *\nsum_of(1000, 3)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) == expected_sum(1000)


# --- networks -----------------------------------------------------------------------------------------


def bits_after_training(threads=None, seed=0):
    """A small training's parameters; whole epochs, with dropout, over pictures that are mostly paper."""
    import fastdigit as fd

    random = np.random.default_rng(seed)
    images = random.integers(1, 256, (200, 60)) * (random.random((200, 60)) < 0.2)
    net = fd.Network([60, 40, 20, 4], backend="cpu", seed=seed, dropout=0.2, pixels=False)
    labels = images[:, :3].sum(axis=1) % 4
    options = {"epochs": 3, "batch_size": 16, "optimizer": fd.Adam(0.01), "threads": threads}
    fd.fit(net, (images.astype(np.uint8), labels), **options)
    return [value.tobytes() for value in net.get_parameters().values()]


def test_networks_trained_at_once_get_the_bits_of_one_after_the_other():
    seeds = (0, 1, 2)
    expected, found = [bits_after_training(seed=seed) for seed in seeds], {}

    def work(seed):
        found[seed] = bits_after_training(2, seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [found[seed] for seed in seeds] == expected


def test_many_more_threads_than_processors():
    assert bits_after_training(64) == bits_after_training(1)


@needs_fork
def test_a_child_trains_after_its_parent():
    code = """
    from tests.kernels.test_team import bits_after_training
    expected = bits_after_training(2)

    def child():
        assert bits_after_training(2) == expected

    forked()
    child()
    """
    process(FORK + code)


@pytest.mark.parametrize(("value", "said"), [("3", ""), ("64", ""), ("0", "'0'"), ("many", "'many'")])
def test_threads_from_the_environment(value, said):
    code = "import fastdigit as fd\ntry:\n    fd.Network([4, 3, 2], backend='cpu')\n"
    code += "except fd.BackendError as error:\n    print(error)\n"
    printed = process(code, FASTDIGIT_THREADS=value)
    if not said:
        assert printed == ""
    else:
        assert printed.count("\n") == 1
        assert f"FASTDIGIT_THREADS must be a number of threads of at least 1, got {said}" in printed


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="kernels change the setting on x86 alone"
)
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_are_zero_in_kernels_and_nowhere_else(threads):
    """Velocities that fade away would slow a training down to half its speed."""
    tiny = np.float32(2e-38)
    p, g, v = (np.zeros(100_000, np.float32) for _ in range(3))
    v[:] = tiny
    optimizer.sgd(p, g, v, 1.0, 0.25, 0.0, False, False, threads=threads)
    assert not v.any()
    assert not p.any()
    assert tiny * np.float32(0.25) > 0
    assert np.nextafter(np.float32(0), np.float32(1)) > 0
