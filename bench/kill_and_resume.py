"""Kill a training with SIGKILL at random moments and resume it: does it end with the same bits?

    python -m fastdigit.bench.kill_and_resume [--kills 50] [--seed 0] [--json FILE]

A child process trains a network with dropout, momentum and validation, saving a checkpoint every
few steps, and is killed after a random time. The checkpoint, if there is one yet, must then load;
the next child resumes from it and is killed too, and so on. After the last kill a child runs to
the end, and its parameters are compared bit by bit with those of a training that nobody disturbed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fastdigit as fd

from . import machine

FILE = "checkpoint.safetensors"


def train(folder):
    """What a child does: train to the end, from the checkpoint in ``folder`` if there is one."""
    data = fd.load_digits()
    net = fd.Network([784, 48, 32, 10], backend="numpy", seed=1, dropout=0.1)
    fd.fit(
        net,
        data.train,
        optimizer=fd.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        epochs=20,
        batch_size=32,
        validation=0.1,
        early_stopping=fd.EarlyStopping(20),
        checkpoint=Path(folder) / FILE,
        checkpoint_every=3,
        resume=True,
        log_file=Path(folder) / "log.jsonl",
    )
    net.save(Path(folder) / "final.safetensors")


def start(folder):
    command = [sys.executable, "-m", "fastdigit.bench.kill_and_resume", "--child", str(folder)]
    # One thread: the network is tiny, and threads that wait for a busy core would dominate.
    return subprocess.Popen(command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})


def run(kills, seed):
    """Kill ``kills`` times; returns what was seen. Raises if a checkpoint does not load."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        undisturbed, disturbed = Path(one), Path(other)
        if start(undisturbed).wait():
            raise SystemExit("the undisturbed training failed")
        killed = loaded = before_first = finished = 0
        while killed < kills:
            child, begun = start(disturbed), time.monotonic()
            # Importing takes about a second; wait for signs of training, so that kills hit it.
            log = disturbed / "log.jsonl"
            size = log.stat().st_size if log.exists() else -1
            while child.poll() is None and (log.stat().st_size if log.exists() else -1) == size:
                if time.monotonic() - begun > 60:
                    raise SystemExit("the child does not start to train")
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.15))
            child.send_signal(signal.SIGKILL)
            status = child.wait()
            if status not in (0, -signal.SIGKILL):
                raise SystemExit(f"a child failed by itself, with status {status}")
            if status == 0:  # it was faster: this one does not count, and it starts again
                finished += 1
                for path in disturbed.iterdir():
                    path.unlink()
                continue
            killed += 1
            if (disturbed / FILE).exists():
                fd.Network.load(disturbed / FILE, backend="numpy")
                loaded += 1
            else:
                before_first += 1
        if start(disturbed).wait():
            raise SystemExit("the resumed training failed")
        results = [
            fd.Network.load(folder / "final.safetensors", backend="numpy")
            for folder in (undisturbed, disturbed)
        ]
        a, b = (net.get_parameters() for net in results)
        identical = all(a[name].tobytes() == b[name].tobytes() for name in a)
        leftovers = [path.name for path in disturbed.iterdir() if path.name.endswith(".tmp")]
    return {
        "kills": killed,
        "checkpoints_loaded": loaded,
        "killed_before_the_first_checkpoint": before_first,
        "children_that_finished_first": finished,
        "bit_identical": identical,
        "leftover_files": leftovers,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        train(options.child)
        return None
    result = run(options.kills, options.seed)
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in result.items()))
    if options.json:
        machine.write(options.json, **result)
    return result


if __name__ == "__main__":
    result = main()
    if result and not (result["bit_identical"] and not result["leftover_files"]):
        sys.exit(1)
