"""Parts of ``bench.gpu`` in processes of their own, each with a time limit, and what they find kept."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fastdigit as fd
from fastdigit.files import atomic_write

from .correctness import Fault
from .parts import LONGEST, NETWORKS, PARTS

BACKENDS = ("cuda", "cupy")
ROUNDS, TURN_SECONDS = 5, 0.5
BUDGET = 540  # seconds: a call ends within ten minutes
LEAST = 10  # seconds without which no part is begun
LOOK = 1.0  # seconds after which a part's answer is looked at again
MOST_FAULTS = 8  # processes of the checks that may end with one
FAULT = 3  # the exit status of such


def measure(
    parts=tuple(PARTS),
    networks=NETWORKS,
    rounds=ROUNDS,
    seconds=TURN_SECONDS,
    python=sys.executable,
    budget=BUDGET,
    say=lambda line: None,
    save=lambda found: None,
    longest=None,
):
    """{"devices": {backend: device}, part: its result, …}; {"no_time": why} if no backend runs on a GPU.

    ``save`` gets what there is whenever a part has found something, and after each part. All takes less than
    ``budget`` seconds, and each part no longer than ``longest``, {part: seconds}, says; else LONGEST.
    """
    longest = LONGEST | (longest or {})
    states, until = fd.backends(), time.monotonic() + budget
    usable = [name for name in BACKENDS if states.get(name) == "ok"]
    if not usable:
        return {"no_time": "; ".join(f"{name}: {states.get(name, 'unknown')}" for name in BACKENDS)}
    options = {"usable": usable, "networks": networks, "rounds": rounds, "seconds": seconds, "python": python}
    found = {"devices": {name: fd.get_backend(name).device for name in usable}, "driver": _driver()}

    def keep(part, result):
        found[part] = result
        save(found)

    for part in parts:
        say(f"gpu, {part} …")
        begun, why = time.monotonic(), None
        last = min(until, begun + longest[part])
        if last - begun < LEAST:
            found[part] = {"no_time": "no time was left for it"}
        for _ in range(MOST_FAULTS if last - begun >= LEAST else 0):
            asked = {**options, "found": found.get(part), "left": last - time.monotonic()}
            found[part], status, why = _in_a_process(
                part, asked, last, lambda now, part=part: keep(part, now)
            )
            if status != FAULT:
                break
        if why:
            found[f"{part}_ended"] = why
        say(f"gpu, {part}: {time.monotonic() - begun:.0f} s" + (f", {why}" if why else ""))
        save(found)
    return found


def _in_a_process(part, options, until, keep=lambda found: None):
    """The result of a part, or what it had saved when its time was over or it died; its exit status, None
    if it had to be ended; and why it did not end well, or None. ``keep`` gets what it saves meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer, said = (Path(folder) / name for name in ("asked.json", "answer.json", "said"))
        asked.write_text(json.dumps(options))
        command = [sys.executable, "-m", "fastdigit.bench.gpu", part, "--child", str(asked), str(answer)]
        with said.open("w") as errors:
            process = subprocess.Popen(command, stderr=errors)
        left, seen = max(1.0, until - time.monotonic()), None
        status = _wait(process, min(LOOK, left))
        while status is None and time.monotonic() < until:
            if answer.exists() and (now := answer.read_text()) != seen:
                keep(json.loads(now))
                seen = now
            status = _wait(process, LOOK)
        why = None
        if status:
            lines = said.read_text().strip().splitlines()
            why = lines[-1] if lines else f"exit status {status}"
        elif status is None:
            why = f"not finished after {left:.0f} s"
            process.terminate()  # so that it can end the processes that it has started
            if _wait(process, 5) is None:
                process.kill()
                process.wait()
        found = json.loads(answer.read_text()) if answer.exists() else {"no_time": why or "no answer"}
        return found, status, why


def _wait(process, seconds):
    """Its exit status, or None if it goes on after so many seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def answer_part(part, asked, answer):
    """In the process of a part: its result goes to a file as soon as there is some. The exit status."""

    def save(found):
        atomic_write(answer, json.dumps(found, allow_nan=False).encode())

    signal.signal(signal.SIGTERM, lambda *about: sys.exit(1))
    try:
        save(PARTS[part](json.loads(asked.read_text()), save))
    except Fault as fault:
        print(fault, file=sys.stderr)
        return FAULT
    return 0


def _driver():
    """What nvidia-smi says of the first GPU's driver and clocks, or None."""
    asked = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return dict(zip(asked.split(","), map(str.strip, said.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
