"""Whether compute-sanitizer finds anything in small checks: accesses out of bounds (memcheck) and races in
shared memory (racecheck).

Under it a kernel takes many times as long, and each process first compiles its kernels. So each check is as
small as can be and has a process of its own, several at the same time, those that decide most first: one that
does not come to its end takes no other with it. A check whose time is over ends by itself, so that the tool
can, too; what counts is what tools that ended well have said. Whatever can be computed on the host is: the
libraries of a GPU are large and would be looked at as well. CuPy asks the driver for each array: within one
allocation memcheck sees no bounds.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import fastdigit as fd
from fastdigit.files import atomic_write

from .. import peers
from .correctness import TRAININGS, check_all, check_epochs, check_products, operations_of
from .multiplication import WAYS, capability, techniques

TOOLS = ("memcheck", "racecheck")
NAME = "compute-sanitizer"
CHILD = (sys.executable, "-m", "fastdigit.bench.gpu.sanitizer")
SECONDS = 120  # for all of it at most
EACH = 60  # for one process at most
LEAST = 8  # seconds without which none is begun
SHARE = 0.7  # of its seconds, after which a check ends itself: the rest is for the tool
LAST = 5  # seconds for the tool to end after the check was ended
MOST = 8  # processes at a time
SUMMARY = re.compile(r"SUMMARY: (\d+) (?:error|hazard)")
LINES = 12  # of what it says, that are kept
# Where on the host something was asked for takes long to find out, and every time, for Python.
OPTIONS = ("--show-backtrace", "device", "--target-processes", "application-only")
MORE_OPTIONS = {
    # Libraries ask for what may not be there, and no kernel of ours asks for memory.
    "memcheck": ("--report-api-errors", "no", "--check-device-heap", "no"),
}
# At least two blocks to a product, and a batch that is not the last; as small as can be otherwise.
ONE_HIDDEN, TWO_HIDDEN = (64, 24, 10), (64, 40, 24, 10)
EPOCHS = {"count": 24, "batch": 16}
SHAPE = (66, 130, 72)
GROUPS = 3  # that the operations are parted into


def _epochs(training, sizes, precision):
    name = f"{training}, {'-'.join(map(str, sizes))}, {precision}"
    return name, ("epochs", (training, sizes, precision))


# {name: (kind, what)}: what is asked for, the quickest and most important first, and what comes after it.
ASKED = dict(
    [
        _epochs("SGD", ONE_HIDDEN, "float32"),
        *((f"product, {way}", ("products", way)) for way in WAYS),
        *(_epochs("SGD", TWO_HIDDEN, precision) for precision in ("float32", "bf16", "tf32")),
        *((f"operations, {number + 1} of {GROUPS}", ("checks", number)) for number in range(GROUPS)),
    ]
)
OTHERS = [name for name in TRAININGS if name != "SGD"]
MORE = dict(
    [
        *(_epochs(name, sizes, "float32") for name in OTHERS for sizes in (ONE_HIDDEN, TWO_HIDDEN)),
        *(_epochs(name, TWO_HIDDEN, precision) for precision in ("bf16", "tf32") for name in OTHERS),
    ]
)
ALL = ASKED | MORE


def sanitizer(seconds=SECONDS, command=CHILD, save=lambda rows: None, names=tuple(ALL)):
    """A row for each tool: "errors" in what was "done", {check: how}, of which "checked" counts the kinds;
    "unfinished", {check: why}; the first "lines" that the tool said. "no_time", why, if nothing is known.
    ``save`` gets them all after each check."""
    program = path()
    if program is None:
        return [{"tool": tool, "no_time": f"{NAME} is neither on PATH nor under CUDA_HOME"} for tool in TOOLS]
    found, lock, until = {tool: {} for tool in TOOLS}, threading.Lock(), time.monotonic() + seconds

    def run(asked):
        name, tool = asked
        outcome = _run(program, tool, name, min(EACH, until - time.monotonic()), command)
        with lock:
            found[tool][name] = outcome
            save(rows())

    def rows():
        return [_row(tool, {name: found[tool].get(name, NOT_BEGUN) for name in names}) for tool in TOOLS]

    with ThreadPoolExecutor(max(2, min(MOST, peers.cores() // 2))) as pool:
        list(pool.map(run, [(name, tool) for name in names for tool in TOOLS]))
    return rows()


def path():
    """Of the program, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [os.environ.get("PATH", "")]
    if home:
        folders += [str(Path(home, "bin")), str(Path(home, NAME))]
    return shutil.which(NAME, path=os.pathsep.join(folders))


NOT_BEGUN = {"why": "no time was left for it", "lines": []}


def _run(program, tool, name, seconds, command):
    """What came of a check under a tool: "errors", their number, if both ended well or there were some;
    "absent" if it is for other GPUs; else "why", in words. And the "lines" that the tool said, and what the
    check has found."""
    if seconds < LEAST:
        return NOT_BEGUN
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        options = ["--tool", tool, *OPTIONS, *MORE_OPTIONS.get(tool, ())]
        asked = [program, *options, *command, name, str(answer), str(SHARE * seconds)]
        process = subprocess.Popen(
            asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            said, late = process.communicate(timeout=max(1.0, seconds - LAST))[0], False
        except subprocess.TimeoutExpired:
            said, late = _end(process, answer), True
        finally:
            _kill(process)
        found = json.loads(answer.read_text()) if answer.exists() else {}
    lines = said.strip().splitlines()
    own = [line for line in lines if line.startswith("=========")]
    summary = next((match for line in own if (match := SUMMARY.search(line))), None)
    outcome = {**found, "lines": own[:LINES]}
    errors = None if summary is None else int(summary[1])
    whole = found.get("whole") and process.returncode == 0 and not late
    if errors or (errors == 0 and whole):
        outcome["errors"] = errors
    elif found.get("absent"):
        pass
    elif late or found.get("over"):
        so_far = "" if errors is None else f", {errors} errors so far"
        outcome["why"] = f"not finished after {seconds:.0f} s{so_far}"
    else:
        theirs = [line for line in lines if line not in own]  # last words of the check, if it failed
        last = theirs if process.returncode and theirs else lines or [f"exit status {process.returncode}"]
        outcome["why"] = f"failed: {last[-1]}"
    return outcome


def _end(process, answer):
    """End a check that cannot end itself, so that the tool can say what it has seen; what it said."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        os.kill(json.loads(answer.read_text())["process"], signal.SIGKILL)
    try:
        return process.communicate(timeout=LAST)[0]
    except subprocess.TimeoutExpired:
        _kill(process)
        return process.communicate()[0]


def _kill(process):
    """It and what it has started, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _row(tool, outcomes):
    """The row of a tool, from {check: what came of it}."""
    here = {name: outcome for name, outcome in outcomes.items() if not outcome.get("absent")}
    done = {name: outcome for name, outcome in here.items() if "errors" in outcome}
    checked = {}
    for name, outcome in done.items():
        kind = ALL[name][0]
        checked[kind] = checked.get(kind, 0) + outcome.get("count", 0)
    row = {
        "tool": tool,
        "checked": checked,
        "done": {name: outcome.get("how", "") for name, outcome in done.items()},
        "unfinished": {name: outcome["why"] for name, outcome in here.items() if "why" in outcome},
        "rejected": [line for outcome in here.values() for line in outcome.get("rejected", ())],
    }
    if done:
        row["errors"] = sum(outcome["errors"] for outcome in done.values())
    else:
        row["no_time"] = next(iter(row["unfinished"].values()), "no check is for this GPU")
    bad = [outcome for outcome in done.values() if outcome["errors"]]
    said = bad or [outcome for outcome in here.values() if outcome["lines"]]
    return {**row, "lines": [line for outcome in said for line in outcome["lines"]][:LINES]}


# --- in the process that it looks at ----------------------------------------------------------------


class TimeOver(BaseException):
    """Nobody's mistake: what checks catch and write down as one must not be this."""


def check(name, backend, xp, capability, save):
    """(how many checks there were, how in words, what was wrong in lines), None of a check that is for other
    GPUs; ``save`` gets the count so far."""
    kind, what = ALL[name]
    if kind == "epochs":
        training, sizes, precision = what
        if precision not in backend.precisions:
            return None
        (row,) = check_epochs(
            backend, [precision], (sizes,), **EPOCHS, trainings=(training,), against_cpu=False
        )
        results = {name: row}
        how = row.get("path", "").partition(",")[0]
    elif kind == "products":
        ways = techniques(capability)
        if what not in ways:
            return None
        format, multiply = ways[what]
        ways = {what: (format, from_host(multiply, xp))}
        results = check_products(np, capability, odd=(SHAPE,), ways=ways)
        how = f"{results[name].get('checks', 0)} products"
    else:
        chosen = list(operations_of(backend))[what::GROUPS]
        others = tuple(each for each in operations_of(backend) if each not in chosen)
        results = check_all(backend, most=1, done=others, save=lambda found: save(len(found)))
        how = ", ".join(results)
    wrong = [f"{each}: {result['rejected']}" for each, result in results.items() if "rejected" in result]
    return len(results), how, wrong


def from_host(multiply, xp):
    """The same for arrays of NumPy, as ``multiplication.drawn`` makes them: sent to the GPU and fetched."""

    def sent(array):
        """(it, all that it is a part of), in the GPU's memory"""
        if not isinstance(array, np.ndarray):
            return array, array
        whole = xp.array(array if array.base is None else array.base)
        return whole[tuple(map(slice, array.shape))], whole

    def multiplied(a, b, c, turned, **then):
        product, whole = sent(c)
        given = {name: sent(value)[0] for name, value in then.items()}
        multiply(sent(a)[0], sent(b)[0], product, turned, **given)
        c.base[...] = whole.get() if hasattr(whole, "get") else whole

    return multiplied


def main(name, answer, seconds):
    found = {"process": os.getpid(), "count": 0}

    def save(**more):
        found.update(more)
        atomic_write(Path(answer), json.dumps(found, allow_nan=False).encode())

    def over(*about):
        raise TimeOver

    save()
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, float(seconds), 1)  # again, where it was lost in a callback
    try:
        import cupy

        cupy.cuda.set_allocator(None)
        result = check(name, fd.get_backend("cuda"), cupy, capability(), lambda count: save(count=count))
        signal.setitimer(signal.ITIMER_REAL, 0)
        if result is None:
            save(absent=True)
        else:
            save(whole=True, **dict(zip(("count", "how", "rejected"), result, strict=True)))
    except TimeOver:
        signal.setitimer(signal.ITIMER_REAL, 0)
        save(over=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
