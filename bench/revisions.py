"""The training of another revision of fastdigit, from git, beside the one at hand: what a change did to it.

The other revision's network and kernels run under the benchmark at hand, in a process of their own; both
take turns (``bench.turns``), so their ratio is that of neighbouring moments.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from fastdigit.errors import ConfigError

from . import compare, train

PROJECT = Path(__file__).resolve().parent.parent
BEFORE, AFTER, SIDE = "before", "after", "fastdigit"


def unpack(revision, folder):
    """Put the package of a revision into a folder, with the benchmark at hand: the commit's short name.

    ConfigError if there is no such revision, or no git.
    """
    commit = _git(
        "rev-parse", "--verify", "--short", "--end-of-options", f"{revision}^{{commit}}", of=revision
    )
    archive = _git("archive", "--format=tar", commit.decode().strip(), "fastdigit", "kernels", of=revision)
    folder = Path(folder)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    package = folder / "fastdigit"
    (folder / "kernels").rename(package / "kernels")
    shutil.copytree(
        PROJECT / "bench", package / "bench", ignore=shutil.ignore_patterns("results", "__pycache__")
    )
    return commit.decode().strip()


def _git(*arguments, of):
    try:
        return subprocess.run(["git", "-C", PROJECT, *arguments], capture_output=True, check=True).stdout
    except OSError as error:
        raise ConfigError(f"comparing with {of!r} needs git: {error}") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(
            f"{of!r} is neither a file nor a revision of {PROJECT}: {said[-1] if said else 'git failed'}"
        ) from None


def measure(revision, networks, data, rounds, seconds, backend="auto"):
    """A :class:`compare.Row` for each of the networks: speed at hand relative to the revision's."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        unpack(revision, folder)
        for name, network in networks.items():
            task = train.task_of(network, data, backend)
            command = [sys.executable, *train.CHILD, SIDE]
            # Safe: else a clone that is the current folder would come first, and be compared with itself.
            old = {"PYTHONPATH": folder, "PYTHONSAFEPATH": "1"}
            expected = train.expected_losses(task, min(train.CHECKED_STEPS, task.steps))
            commands = {BEFORE: (command, old), AFTER: (command, None)}
            state = train.State()
            found = train.in_turns(task, expected, commands, rounds, seconds, state)
            rows.append(_row(name, *found, state, folder))
    return rows


def _row(name, facts, answers, state, folder):
    for which in (BEFORE, AFTER):
        for found in (facts[which], *answers.get(which, ())):
            if "no_time" in found:
                raise ConfigError(f"{name}, {which} the change: {found['no_time']}")
    packages = [Path(facts[which]["package"]).resolve() for which in (BEFORE, AFTER)]
    if packages[0] != Path(folder).resolve() / "fastdigit" or packages[0] == packages[1]:
        raise ConfigError(f"the revision was not what ran: {packages[0]}, {packages[1]}")
    speeds = ([answer["speed"] for answer in answers[which]] for which in (AFTER, BEFORE))
    ratios = np.divide(*speeds)[state.rounds_that_count()]
    low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return compare.Row(f"train {name} {SIDE}", middle, (high - low) / middle / 2)
