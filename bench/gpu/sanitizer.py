"""Whether compute-sanitizer finds anything in small checks: accesses out of bounds (memcheck) and races in
shared memory (racecheck), both at the same time, each in a process of its own.

Under it a kernel takes many times as long, so the checks are few, and no new one is begun when most of the
time is over. CuPy asks the driver for each array then: within one allocation memcheck sees no bounds.
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
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fastdigit as fd
from fastdigit.files import atomic_write

from .correctness import APART, check_all, check_epochs, check_products
from .multiplication import capability

TOOLS = ("memcheck", "racecheck")
NAME = "compute-sanitizer"
CHILD = (sys.executable, "-m", "fastdigit.bench.gpu.sanitizer")
SECONDS = 120  # for each tool at most
SHARE = 0.6  # of its seconds, after which no check is begun
SUMMARY = re.compile(r"SUMMARY: (\d+) (?:error|hazard)")
LINES = 12  # of what it says, that are kept
# At least two blocks to a product, and a batch that is not the last; as small as can be otherwise.
EPOCHS = {"sizes": ((64, 24, 10), (64, 40, 24, 10)), "count": 40, "batch": 16}
SHAPE = (66, 130, 72)


def sanitizer(seconds=SECONDS, command=CHILD, save=lambda rows: None):
    """A row for each tool: "errors", the first "lines" that it says, and what was "checked"; or "no_time",
    why nothing is known. ``save`` gets them all after each."""
    rows, program = [], path()
    if program is None:
        return [{"tool": tool, "no_time": f"{NAME} is neither on PATH nor under CUDA_HOME"} for tool in TOOLS]
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        for row in pool.map(lambda tool: _run(program, tool, seconds, command), TOOLS):
            rows.append(row)
            save(rows)
    return rows


def path():
    """Of the program, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [os.environ.get("PATH", "")]
    if home:
        folders += [str(Path(home, "bin")), str(Path(home, NAME))]
    return shutil.which(NAME, path=os.pathsep.join(folders))


def _run(program, tool, seconds, command):
    options = ["--tool", tool]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # libraries ask for what may not be there
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        asked = [program, *options, *command, str(answer), str(SHARE * seconds)]
        process = subprocess.Popen(
            asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            said, late = process.communicate(timeout=seconds)[0], False
        except subprocess.TimeoutExpired:
            _kill(process)
            said, late = process.communicate()[0], True
        finally:
            _kill(process)
        found = json.loads(answer.read_text()) if answer.exists() else {}
    lines = said.strip().splitlines()
    own = [line for line in lines if line.startswith("=========")]
    summary = next((match for line in own if (match := SUMMARY.search(line))), None)
    row = {"tool": tool, "checked": {part: len(results) for part, results in found.items()}}
    row["rejected"] = _rejected(found)
    errors = None if summary is None else int(summary[1])
    if errors or (errors == 0 and found and process.returncode == 0):
        row["errors"] = errors
    elif late:
        row["no_time"] = f"not finished after {seconds:.0f} s"
    else:
        theirs = [
            line for line in lines if line not in own
        ]  # the checks' last words, if it was they who failed
        last = theirs if process.returncode and theirs else lines or [f"exit status {process.returncode}"]
        row["no_time"] = f"failed: {last[-1]}"
    return {**row, "lines": own[:LINES]}


def _kill(process):
    """It and what it has started, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _rejected(found):
    """What was wrong in the checks' results, whatever the tool says, a line each."""
    each = [(row["training"], row) for row in found.get("epochs", [])]
    each += [*found.get("products", {}).items(), *found.get("checks", {}).items()]
    return [f"{name}: {result['rejected']}" for name, result in each if "rejected" in result]


# --- in the process that it looks at ----------------------------------------------------------------


class TimeOver(Exception):
    pass


def small_checks(backend, xp, capability, until, save):
    """{"epochs": rows, "products": results, "checks": results}, as far as one comes until that time by
    time.monotonic, each at least once begun."""
    found = {}

    def keep(part, results):
        found[part] = results
        save(found)
        if time.monotonic() > until:
            raise TimeOver

    with contextlib.suppress(TimeOver):
        precisions = [name for name in APART if name in backend.precisions]
        check_epochs(backend, precisions, **EPOCHS, save=partial(keep, "epochs"))
        check_products(xp, capability, save=partial(keep, "products"), odd=(SHAPE,))
        check_all(backend, most=1, save=partial(keep, "checks"))
    return found


def main(answer, seconds):
    until = time.monotonic() + float(seconds)
    import cupy

    cupy.cuda.set_allocator(None)

    def save(found):
        atomic_write(Path(answer), json.dumps(found, allow_nan=False).encode())

    small_checks(fd.get_backend("cuda"), cupy, capability(), until, save)


if __name__ == "__main__":
    main(*sys.argv[1:])
