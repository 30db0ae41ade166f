"""Training throughput beside the libraries that one would use instead: images per second of whole steps.

    python -m fastdigit.bench.train [--networks small-64 …] [--sides numpy torch …] [--rounds 12]
        [--seconds 0.5] [--data DIR] [--backend auto] [--python INTERPRETER] [--json FILE]

A step is forward, cross-entropy, backward and an update by plain SGD, in float32 (other precisions are
rows apart), on real MNIST. Every side starts from the same weights and trains on the same batches in the
same order with the same rate. It gets a time only if the loss of each of its first steps is within 1e-3
(in bfloat16 and TF32 5e-3) of what a loop in float64 gives. A peer that is refused for its losses and within
twice of that is a rival all the same: its row says so, with its speed.

Each side runs in a process of its own, and the sides take turns (``bench.turns``). The rounds of a network
are spread over the whole run, in PASSES over all networks, with new processes in each. A turn is one speed,
the median of its chunks of about 0.3 s (ours: of its epochs); over all turns stand the median and the
quartiles, and the ratio of ours to the best peer is taken turn by turn. Where the quartiles lie further apart
than 10 % of the median, the row says that it is noisy; and it says how much of the machine others used
meanwhile. "First call" is what the first steps took beyond the same steps later: compiling, mostly.

Before and after every turn the processor's limit and the time in which its threads meet are measured
(``bench.ceilings``): the first moves with the clock, the second with the cores of a virtual machine, which
may be neighbours at one time and far apart at another. Rounds in which they were far apart are made up for,
up to a third of all; figures are those of the others, where there are three or more. A turn's speed stands
with the limit that it had, for ``bench.compare``: most of what a turn is slower than the one before, the
limit is too.

Peers get more than they would in real life: their images are shuffled, scaled to float32 and made contiguous
before any time is taken, so that a batch is a slice. Ours gathers and scales shuffled uint8 within it. On
the other hand ours is timed by its log, which counts the steps alone; the speed by the wall clock of the
whole ``fd.fit`` stands beside it.

GFLOP/s counts the products of the network as if no pixel were zero, for every side alike: one that skips
zeros can come out above the limit of the processor.

``--python`` names the interpreter for the peers' processes: pip install -r bench/requirements-peers.txt in a
virtual environment that also has fastdigit.
"""

import argparse
import os
import sys
import tempfile
import time
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import cases, ceilings, machine, peers, turns

NAMES = {cases.SMALL: "small", cases.MEDIUM: "medium", cases.WIDE: "wide", cases.DEEP: "deep"}
NETWORKS, ONLY_BY_NAME = (
    {f"{NAMES[network.layer_sizes]}-{network.batch}": network for network in networks}
    for networks in (cases.NETWORKS, cases.GPU_NETWORKS)
)
ALL_NETWORKS = NETWORKS | ONLY_BY_NAME
# At 0.1 the deep network's loss jumps up and down, and roundings grow in each step until even float32 and
# float64 are 7e-3 apart after ten of them; at 0.01 it is 7e-6.
RATE, RATE_DEEP = 0.1, 0.01
CHILD = ("-m", "fastdigit.bench.train", "--child")
CHECKED_STEPS = 50
# Of a step's loss, relative. Operands of 8 bits move those of the middle networks by up to 3.3e-3; those of
# 11 bits (TF32) get as much.
TOLERANCE, TOLERANCE_ROUNDED = 1e-3, 5e-3
NEAR = 2  # times that, from which on a peer computes something else
BUSY = 0.1  # cores used by other processes that are worth a word
EPOCH_FLOPS, FEWEST_STEPS = 1.5e11, 10  # an epoch is cut to so many, but has at least so many steps
LIMIT = "the processor's limit"  # asked between the turns
FAR = 2.0  # times the shortest meeting of threads that was seen
FEWEST_ROUNDS = 3
ROUNDS, SECONDS = 12, 0.5
# A process's place in memory moves its speed by 1 to 4 % (kernels/README.md): so many processes of each side.
PASSES = 4
SHORT = 0.3  # seconds of training that tell how long a step takes

# --- in the processes of the sides ------------------------------------------------------------


class Answers:
    """Of one side, to whether it is "ready", i.e. made: nothing, if it is; to "check" the facts of its first
    steps; to a number of seconds its speeds."""

    def __init__(self, name, folder):
        self.side, self.trainer, self.ready = peers.SIDES[name], None, {}
        self.task, self.folder = peers.Task.load(folder), Path(folder)
        try:
            self.trainer = self.side.make(self.task)
        except ModuleNotFoundError as error:
            how = "pip install -r bench/requirements-peers.txt"
            self.ready = {"no_time": f"{error.name} is not installed: {how}"}
        except (fd.ConfigError, fd.BackendError) as error:
            self.ready = {"no_time": str(error)}

    def __call__(self, question):
        if question == "ready" or "no_time" in self.ready:
            return self.ready
        return self.check() if question == "check" else self.time(question)

    def check(self):
        task, expected = self.task, np.load(self.folder / "expected.npy")
        begun = time.perf_counter()
        losses = self.trainer.first(len(expected))
        first = time.perf_counter() - begun
        apart = differences(losses, expected)
        difference = float(np.abs(apart).max())
        facts = {"used": self.trainer.used, "loss": losses[-1], "largest_loss_difference": difference}
        facts["package"] = str(Path(fd.__file__).parent)
        if np.isfinite(apart).all():  # JSON has no others
            facts["loss_differences"] = [float(f"{each:.3g}") for each in apart]
        most = TOLERANCE_ROUNDED if self.side.precision in ("bf16", "tf32") else TOLERANCE
        if not difference <= most:  # also if it is not a number
            facts["no_time"] = f"refused: loss differs by {difference:.2g}, more than {most:g}"
            # A peer that comes near is held against ours all the same: nobody wins by its being refused.
            facts["timed"] = not self.side.ours and difference <= NEAR * most
            if facts["timed"]:
                self.trainer.speeds(SHORT)  # compiles what its turns need
            kept = "used", "package", "no_time", "timed", "loss_differences"
            return {name: facts[name] for name in kept if name in facts}
        again = len(losses) * task.network.batch / float(np.median(self.trainer.speeds(SHORT)))
        return {**facts, "first_call_seconds": max(0.0, first - again)}

    def time(self, seconds):
        others = OtherProcesses()
        speeds = self.trainer.speeds(seconds)
        wall = getattr(self.trainer, "wall", None)
        return {"speed": float(np.median(speeds)), "wall": wall, "others": others.cores()}


class OtherProcesses:
    """How many cores other processes have used since this was made, of all of the machine's.

    On Linux; elsewhere it does not tell. Threads that wait by spinning wait long where a core is taken:
    half a core can cost a side most of its speed.
    """

    def __init__(self):
        self.begun = self._seconds()

    def cores(self):
        if self.begun is None:
            return None
        wall, busy, own = (now - then for now, then in zip(self._seconds(), self.begun, strict=True))
        return max(0.0, (busy - own) / wall)

    @staticmethod
    def _seconds():
        """(by the clock, of all cores at work, of this process)"""
        try:
            line = Path("/proc/stat").read_text().split("\n", 1)[0]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, stolen = map(int, line.split()[1:9])
        ticks = user + nice + system + irq + softirq + stolen
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def differences(losses, expected):
    """Of the losses of the steps that are expected, relative to these; not numbers where some are missing."""
    if len(losses) < len(expected):
        return np.full(len(expected), np.nan)
    return (np.array(losses[: len(expected)], np.float64) - expected) / np.abs(expected)


def largest_difference(losses, expected):
    return float(np.abs(differences(losses, expected)).max())


# --- in the process that compares -------------------------------------------------------------


def expected_losses(task, steps):
    """The loss of each of the first steps, by the textbook in float64."""
    layers = [(w.astype(np.float64), b.astype(np.float64)) for w, b in task.layers]
    batch, losses = task.network.batch, []
    for step in range(steps):
        chosen = task.order[step * batch : (step + 1) * batch]
        x, true = [task.images[chosen] / 255], task.labels[chosen]
        for w, b in layers[:-1]:
            x.append(np.maximum(x[-1] @ w + b, 0))
        z = x[-1] @ layers[-1][0] + layers[-1][1]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(batch), true]).mean())
        p[np.arange(batch), true] -= 1
        dy = p / batch
        for layer in reversed(range(len(layers))):
            w, b = layers[layer]
            dx = (dy @ w.T) * (x[layer] > 0)
            layers[layer] = w - task.rate * (x[layer].T @ dy), b - task.rate * dy.sum(axis=0)
            dy = dx
    return np.array(losses)


def steps_of(network):
    """That make an epoch of sensible length on a CPU."""
    return max(FEWEST_STEPS, int(EPOCH_FLOPS / (network.batch * network.flops_per_image)))


def task_of(network, data, backend="auto", whole=False):
    """The task of a network, on as many of the images as :func:`steps_of` it take; on all if ``whole``."""
    steps = len(data.labels) // network.batch
    count = (steps if whole else min(steps, steps_of(network))) * network.batch
    parameters = fd.Network(network.layer_sizes, backend="numpy", seed=0).get_parameters()
    images = data.images[:count].reshape(count, -1)
    rate = RATE_DEEP if network.layer_sizes == cases.DEEP else RATE
    return peers.Task(network, images, data.labels[:count], parameters, rate, backend)


def measure(network, data, sides, *how):
    """A network's results: a row for each side, the best peer of each precision, our ratios to it.
    ``how`` as for :func:`measure_all`."""
    return measure_all([(network, sides)], data, *how)[0]


def measure_all(
    networks,
    data,
    rounds,
    seconds,
    backend="auto",
    python=sys.executable,
    passes=PASSES,
):
    """The results of each of ``networks``, [(network, names of its sides)], on :func:`steps_of` the images.

    The rounds are parted into passes over all networks, so that those of each are spread over the whole
    time, and its processes are started anew in each: what a machine does for some minutes, and where a
    process happens to have its memory, is not all that one network sees.
    """
    comparisons = [Comparison(task_of(network, data, backend), sides, python) for network, sides in networks]
    for part in range(min(passes, rounds)):
        for comparison in comparisons:
            comparison.take_turns(len(range(part, rounds, passes)), seconds)
    return [comparison.result() for comparison in comparisons]


NOT_READY = {"no_time": "its time was over before it was ready"}


class Comparison:
    """Of the sides of one network."""

    def __init__(self, task, sides, python=sys.executable):
        self.task, self.sides, self.commands = task, sides, {}
        for name in sides:
            side = peers.SIDES[name]
            self.commands[name] = [sys.executable if side.ours else python, *CHILD, name], side.environment
        self.facts, self.answers, self.state = {}, {name: [] for name in sides}, State()

    @cached_property
    def expected(self):
        steps = min(CHECKED_STEPS, self.task.steps, steps_of(self.task.network))
        return expected_losses(self.task, steps)

    def take_turns(self, rounds, seconds):
        """In new processes: check, then so many rounds, or more to make up for cores far apart."""
        how = rounds, seconds, self.state
        facts, answers = in_turns(self.task, self.expected, self.commands, *how)
        for name in self.sides:
            self.facts.setdefault(name, facts[name])  # "first call": that of the first pass
            self.answers[name] += answers[name] if name in answers else [facts[name]]

    def take_turns_at_once(self, rounds, seconds, patience, until, save=lambda result: None):
        """The same where it is not the processor that is compared and time is short: its limit is not
        measured, and the sides compile all at the same time. Who is not ready within ``patience`` seconds is
        left out; those that are take turns until the time by time.monotonic is ``until``, or a round more
        would go beyond it. ``save`` gets the result so far when a side is ready and after each round.

        First calls take longer than they would alone. A library that measures which of its kernels is
        quickest does so while others compile, which is the processor's work for the most part.
        """
        self.facts = dict.fromkeys(self.sides, NOT_READY)
        with tempfile.TemporaryDirectory() as folder, turns.Turns(patience) as running:
            self.task.save(folder)
            for name, (command, environment) in self.commands.items():
                running.start(name, [*command, "--task", folder], environment)
            begun = time.monotonic()
            np.save(Path(folder) / "expected.npy", self.expected)  # meanwhile they import and build
            left = max(1.0, patience - (time.monotonic() - begun))

            def heard(name, facts):
                self.facts[name] = facts
                save(self.result())

            running.ask_at_once("check", self.sides, left, heard)
            checked = [name for name in self.sides if _takes_turns(self.facts[name])]
            longest = 0.0
            for number in range(rounds if checked else 0):
                begun = time.monotonic()
                if begun + longest > until:
                    break
                for name, answer in running.round(seconds, number, checked).items():
                    self.answers[name].append(_refused_as(self.facts[name], answer))
                self.state.unnoted += 1
                longest = max(longest, time.monotonic() - begun)
                save(self.result())
        return self.result()

    def give_up(self, why):
        """Why the sides that have had no turn have no time."""
        for name in self.sides:
            known = self.facts.get(name, NOT_READY)
            if known == NOT_READY or not ("no_time" in known or self.answers[name]):
                self.facts[name] = {"no_time": why}

    def result(self):
        network, state, near = self.task.network, self.state, self.state.rounds_that_count()
        expected = [float(loss) for loss in vars(self).get("expected", ())]  # what it gave up without
        rows = [row_of(name, network, self.facts[name], self.answers[name], near) for name in self.sides]
        return {
            "network": str(network),
            "images": len(self.task.images),
            "rate": self.task.rate,
            "steps_checked": len(expected),
            "expected_losses": [expected[0], expected[-1]] if expected else None,
            "best_peers": compare(rows, near),
            "limits": state.limits,
            "meetings": state.meetings,
            "shortest_meeting": State.shortest if state.meetings else None,
            "rounds_far_apart": sum(state.far()),
            "rounds_that_count": near,
            "rows": rows,
        }


def _takes_turns(facts):
    return "no_time" not in facts or facts.get("timed", False)


def _refused_as(facts, answer):
    """An answer, of a side that was refused with why its time does not count."""
    return {**answer, "no_time": facts["no_time"]} if "no_time" in facts else answer


def in_turns(task, expected, commands, rounds, seconds, state):
    """Train a task by ``commands``, {name: (command, environment)}, in turns; ``state`` takes notes.

    {name: what was found when its losses were held against the ``expected``}, and {name: its turns} of
    those that passed or came near.
    """
    with tempfile.TemporaryDirectory() as folder, turns.Turns() as running:
        task.save(folder)
        np.save(Path(folder) / "expected.npy", expected)
        for name, (command, environment) in commands.items():
            running.start(name, [*command, "--task", folder], environment)
        for question in "ready", "check":  # they get ready all at once, which takes half as long
            facts = {name: running.ask(name, question) for name in commands}
        checked = [name for name in commands if _takes_turns(facts[name])]
        running.start(LIMIT, [sys.executable, *ceilings.COMMAND])
        answers, number, begun = {name: [] for name in checked}, 0, state.rounds()
        while number < rounds + min(sum(state.far()[begun:]), rounds // 3):
            names, measured = turns.in_order(number, checked), [running.ask(LIMIT, None)]
            for name in names:
                answers[name].append(_refused_as(facts[name], running.ask(name, seconds)))
                measured.append(running.ask(LIMIT, None))
            state.note(*measured)
            for name, (before, after) in zip(names, pairwise(measured), strict=True):
                answers[name][-1]["limit"] = (before["gflops"] + after["gflops"]) / 2
            number += 1
    return facts, answers


class State:
    """Of the machine in each round: the processor's limit, and the time in which threads met; of what was
    measured before, between and after the turns, the medians."""

    shortest = float("inf")  # meeting that was seen, in any measurement of this process

    def __init__(self):
        self.limits, self.meetings, self.unnoted = [], [], 0  # the last: rounds of which nothing is known

    def note(self, *answers):
        for answer in answers:
            if "no_time" in answer:
                raise RuntimeError(f"the processor's limit could not be measured: {answer['no_time']}")
        for noted, what in ((self.limits, "gflops"), (self.meetings, "meeting")):
            noted.append(float(np.median([answer[what] for answer in answers])))
        State.shortest = min(State.shortest, *(answer["meeting"] for answer in answers))

    def rounds(self):
        return self.unnoted + len(self.meetings)

    def far(self):
        """For each round whether the cores were far apart."""
        return [False] * self.unnoted + [meeting > FAR * State.shortest for meeting in self.meetings]

    def rounds_that_count(self):
        near = [number for number, far in enumerate(self.far()) if not far]
        return near if len(near) >= FEWEST_ROUNDS else list(range(self.rounds()))


def row_of(name, network, facts, answers, chosen):
    """One side's row, from its first steps and its turns, of which the ``chosen`` rounds count."""
    row = {"side": name, "precision": peers.SIDES[name].precision, "used": facts.get("used")}
    if peers.SIDES[name].precision in ("bf16", "tf32") and "loss_differences" in facts:
        row["loss_differences"] = facts["loss_differences"]  # how they come about is worth to be known
    failed = [found["no_time"] for found in (facts, *answers) if "no_time" in found]
    if not failed and not answers:
        failed = ["its time was over before the first round"]
    speeds = [answer.get("speed") for answer in answers]
    if failed and answers and None not in speeds:
        speed = float(np.median([speeds[i] for i in chosen]))
        why = f"{failed[0]} ({speed:,.0f} images/s all the same)"
        return {**row, "no_time": why, "images_per_second": speed, "turns": speeds}
    if failed:
        return {**row, "no_time": failed[0]}
    low, middle, high = np.percentile([speeds[i] for i in chosen], [25, 50, 75]).tolist()
    others = [answer["others"] for answer in answers if answer["others"] is not None]
    walls = [answers[i]["wall"] for i in chosen if answers[i]["wall"]]
    return {
        **row,
        "images_per_second": middle,
        "quartiles": [low, high],
        "noisy": high - low > turns.NOISY * middle,
        "cores_used_by_others": max(others, default=None),
        "gflops": middle * network.flops_per_image / 1e9,
        "first_call_seconds": facts["first_call_seconds"],
        "turns": speeds,
        "limits": [answer["limit"] for answer in answers if "limit" in answer],
        "largest_loss_difference": facts["largest_loss_difference"],
        **({"images_per_second_wall": float(np.median(walls))} if walls else {}),
    }


def compare(rows, chosen):
    """The best peer of each precision, one that was refused and came near among them; the rows of ours get
    their ratio to it, turn by turn, of the ``chosen`` rounds."""
    best = {}
    ours = [row for row in rows if peers.SIDES[row["side"]].ours and "no_time" not in row]
    for row in rows:
        kind = row["precision"]
        if "turns" not in row or peers.SIDES[row["side"]].ours:
            continue
        if kind not in best or row["images_per_second"] > best[kind]["images_per_second"]:
            best[kind] = row
    for kind, other in peers.AS_EXACT_AS.items():
        if other in best and any(row["precision"] == kind for row in ours):
            best[kind] = best[other]
    for row in ours:
        if row["precision"] in best:
            ratios = np.divide(row["turns"], best[row["precision"]]["turns"])[chosen]
            low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
            row["ratio_to_best_peer"] = {"median": middle, "quartiles": [low, high]}
    return {kind: row["side"] for kind, row in best.items()}


def show(result):
    print(f"{result['network']}, {result['images']:,} images")
    for row in result["rows"]:
        if "no_time" in row:
            print(f"{row['side']:>20}  {row['no_time']}")
            continue
        low, high = row["quartiles"]
        line = f"{row['side']:>20} {row['images_per_second']:>9,.0f} images/s ({low:,.0f} … {high:,.0f})"
        line += f", {row['gflops']:.0f} GFLOP/s, first call {row['first_call_seconds']:.1f} s"
        if "images_per_second_wall" in row:
            line += f", {row['images_per_second_wall']:,.0f} by the wall clock"
        if "ratio_to_best_peer" in row:
            ratio, best = row["ratio_to_best_peer"], result["best_peers"][row["precision"]]
            low, high = ratio["quartiles"]
            line += f"; {ratio['median']:.2f} times {best} ({low:.2f} … {high:.2f})"
        line += " NOISY" if row["noisy"] else ""
        if (row["cores_used_by_others"] or 0) > BUSY:
            line += f", other processes used {row['cores_used_by_others']:.1f} cores"
        print(line, flush=True)


def sides_for(network, asked):
    """The sides that were asked for; by default all, those not in float32 where there is much to multiply."""
    if asked:
        return asked
    large = network.layer_sizes != cases.SMALL
    return [
        name
        for name, side in peers.SIDES.items()
        if (side.precision == "float32" or large) and not side.only_by_name
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=ALL_NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sides", nargs="+", choices=peers.SIDES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training in each turn")
    parser.add_argument("--data", help="folder of the MNIST files (default: as fastdigit.load_mnist)")
    parser.add_argument("--backend", default="auto", help="of fastdigit")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the peers")
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    parser.add_argument("--child", choices=peers.SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        turns.answer_all(Answers(options.child, options.task))
        return None
    chosen = [ALL_NETWORKS[name] for name in options.networks]
    networks = [(network, sides_for(network, options.sides)) for network in chosen]
    how = options.rounds, options.seconds, options.backend, options.python
    found = measure_all(networks, fd.load_mnist(options.data).train, *how)
    results = [{"name": name, **result} for name, result in zip(options.networks, found, strict=True)]
    for result in results:
        show(result)
    if options.json:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "backend": options.backend}
        machine.write(options.json, **settings, networks=results)
    return results


if __name__ == "__main__":
    main()
