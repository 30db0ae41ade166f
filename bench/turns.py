"""Processes that take turns: ratios of neighbouring moments.

Each side lives in a process of its own for the whole run: in one process their pools of threads would
disturb each other (threads of OpenBLAS wait by spinning, on the core that the others need). Who waits for its
turn is stopped by a signal (Linux, macOS), spinning threads and all. So all sides meet alike whatever else
the machine does in the course of a minute.

Questions and answers are lines of JSON; an answer is a dict, with ``no_time`` if there is none to report.
"""

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

REPEAT = 7
NOISY = 0.1  # distance of the quartiles, relative to the median
PATIENCE = 900  # seconds for one answer
SETTLE = 0.06  # seconds


def in_order(number, names):
    """The names in the order of a round."""
    return names[:: -1 if number % 2 else 1]


class Turns:
    """The sides of a comparison, by name. Their processes end with the ``with`` block. ``patience``: seconds
    that each has for an answer, by default PATIENCE."""

    def __init__(self, patience=None):
        self.sides, self.patience = {}, patience

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for side in self.sides.values():
            side.end()

    def start(self, name, command, environment=None):
        self.sides[name] = _Side(command, environment, self.patience_of())

    def ask(self, name, question):
        return self.sides[name].ask(question)

    def ask_all(self, question, rounds, names=None):
        """{name: its answers}: each side is asked so many times, the order turns round. What it answers in
        a round before, which gets memory and caches ready, does not count."""
        names = list(self.sides) if names is None else list(names)
        found = [self.round(question, number, names) for number in range(-1, rounds)]
        return {name: [answers[name] for answers in found[1:]] for name in names}

    def ask_at_once(self, question, names, patience=None, heard=lambda name, answer: None):
        """{name: its answer}: all are asked and work at the same time, each until it has answered. Who has
        not within ``patience`` seconds, by default those of all answers, ends. ``heard`` gets each answer as
        it comes."""
        patience = self.patience_of(patience)
        sides, found, until = {name: self.sides[name] for name in names}, {}, time.monotonic() + patience
        for side in sides.values():
            side.send(question)
        while len(found) < len(sides):
            missing = {name: side for name, side in sides.items() if name not in found}
            _wait_for_any(missing.values(), until)
            late = time.monotonic() >= until
            for name, side in missing.items():
                answer = side.answer_within(0, patience) if late else side.answer_so_far()
                if answer is not None:
                    found[name] = answer
                    heard(name, answer)
        return found

    def patience_of(self, asked=None):
        """Seconds: those asked for, else those of all answers here."""
        given = self.patience if asked is None else asked
        return PATIENCE if given is None else given

    def round(self, question, number, names):
        """{name: its answer}: each side is asked once, in every other round in reverse order."""
        return {name: self.ask(name, question) for name in in_order(number, names)}


class _Side:
    """A process that is stopped except in its turns, and all that it has started."""

    def __init__(self, command, environment, patience):
        self.ended, self.process, self.read, self.patience = None, None, b"", patience
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a group of its own for the signals
            )
        except OSError as error:
            self.ended = f"failed: {error}"

    def ask(self, question):
        self.send(question)
        return self.answer_within(self.patience, self.patience)

    def send(self, question):
        """Let it go on, with a question."""
        if self.ended is None:
            try:
                self._signal(signal.SIGCONT)
                print(json.dumps(question), file=self.process.stdin, flush=True)
            except (BrokenPipeError, ProcessLookupError):
                self._end_with(self._last_words())

    def answer_within(self, seconds, patience):
        """Its answer, after which it stands still. Without one after these seconds it ends, as one that had
        ``patience`` for it."""
        answer = self.answer_so_far(time.monotonic() + seconds)
        if answer is None:
            self._end_with(f"failed: no answer within {patience:.3g} s")
            return {"no_time": self.ended}
        return answer

    def answer_so_far(self, until=0.0):
        """The same, or None if it works on it until then."""
        if self.ended is None:
            try:
                answer = self._answer(until)
                if answer is not None:
                    self._signal(signal.SIGSTOP)
                    return answer
            except ProcessLookupError:
                self._end_with(self._last_words())
        return None if self.ended is None else {"no_time": self.ended}

    def _answer(self, until):
        """The next line of JSON, or None if there is none until then or, as ``ended`` says, ever."""
        while True:
            line, newline, rest = self.read.partition(b"\n")
            if newline:
                self.read = rest
                if line.startswith(b"{"):  # else a library's, printed while it was imported
                    return json.loads(line)
            elif not select.select([self.output], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            elif more := os.read(self.output, 65536):
                self.read += more
            else:
                self._end_with(self._last_words())
                return None

    @property
    def output(self):
        return self.process.stdout.fileno()

    def _end_with(self, why):
        self.ended = why
        self.end()

    def end(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._signal(signal.SIGKILL)  # and to what it has started
            self.process.wait()
            self.process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.errors.close()

    def _signal(self, number):
        os.killpg(self.process.pid, number)

    def _last_words(self):
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"failed: {said[-1] if said else f'exit status {status}'}"


def _wait_for_any(sides, until):
    """Until one that lives has said something, if one does; until that time at most."""
    if outputs := [side.output for side in sides if side.ended is None]:
        select.select(outputs, [], [], max(0.0, until - time.monotonic()))


def answer_all(answer):
    """In the process of a side: answer each question until there are no more.

    What libraries print on the way goes where errors go.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


def settle(calls):
    """At the start of a turn: make these calls, round and round, for a moment.

    Threads that were stopped while they waited for each other may all be on one core when they go on, and
    there for up to 40 ms, until the system moves them apart; a call takes several times as long meanwhile.
    """
    until = time.perf_counter() + SETTLE
    for call in itertools.cycle(calls):
        call()
        if time.perf_counter() > until:
            return


def seconds_of(call, wanted, calls=None):
    """Of one call: the median of REPEAT measurements of about ``wanted`` seconds each."""
    if calls is None:
        begun = time.perf_counter()
        call()
        calls = max(1, int(wanted / max(time.perf_counter() - begun, 1e-7)))
    seconds = []
    for _ in range(REPEAT):
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - begun) / calls)
    return float(np.median(seconds))
