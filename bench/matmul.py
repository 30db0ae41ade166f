"""The hand-written matrix product against NumPy's BLAS, and against the processor's own limit.

    python -m fastdigit.bench.matmul [--rounds 15] [--select TEXT …] [--json FILE]

Each side computes in a process of its own: in one process their pools of threads would disturb each other
(threads of OpenBLAS wait by spinning, on the core that the others need). Both live for the whole run and take
turns, product by product, some hundredths of a second each; who waits is stopped by a signal (Linux, macOS),
spinning threads and all. So a ratio compares neighbouring moments, whatever else the machine does in the
course of a minute. The limit is that of ``bench.ceilings``, measured in our process before and after.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from . import cases, machine

# y = x·w (nn), dx = dy·wᵀ (nt) and dw = xᵀ·dy (tn) of these layers.
SHAPES = (
    *dict.fromkeys(layer for network in cases.NETWORKS for layer in network.layers),
    cases.Matmul(1024, 1024, 1024),
    cases.Matmul(2048, 2048, 2048),
)
PRODUCTS = {f"{case} {kind}": (case, kind) for case in SHAPES for kind in ("nn", "nt", "tn")}
SECONDS, REPEAT = 0.004, 7  # a turn is the median of so many measurements of about so long each


# --- in the processes of the sides --------------------------------------------------------------


def operands(case, kind):
    """a, b and a place for their product."""
    random = np.random.default_rng(0)
    x, w, dy = (
        random.standard_normal(shape, dtype=np.float32)
        for shape in ((case.batch, case.inputs), (case.inputs, case.outputs), (case.batch, case.outputs))
    )
    a, b = {"nn": (x, w), "nt": (dy, w.T), "tn": (x.T, dy)}[kind]
    return a, b, np.empty((a.shape[0], b.shape[1]), np.float32)


def error_to_bound(a, b, product):
    """The largest error of a product of float32, as a share of its bound γ_K·(|a|·|b|).

    Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1: for any order of the sum.
    """
    gamma = a.shape[1] * 2.0**-24 / (1 - a.shape[1] * 2.0**-24)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((np.abs(product - a @ b) / (gamma * (np.abs(a) @ np.abs(b)))).max())


def child(who):
    """Answer each line, the name of a product or "limit", with JSON: GFLOP/s, or why there is no time."""
    if who == "fastdigit":
        from fastdigit.kernels.matmul.cpu import matmul as product

        from . import ceilings
    else:

        def product(a, b, out):
            np.matmul(a, b, out=out)

    name = None
    for line in sys.stdin:
        if line.strip() == "limit":
            print(json.dumps(ceilings.multiply_add()), flush=True)
            continue
        if line.strip() != name:
            name = line.strip()
            case, kind = PRODUCTS[name]
            arrays = operands(case, kind)
            calls = max(1, int(SECONDS * 1.5e11 / case.flops))
            product(*arrays)
            error = error_to_bound(*arrays)
        if not error <= 1:  # also if it is not a number
            print(json.dumps(f"refused: its error is {error:.3g} times the bound"), flush=True)
            continue
        product(*arrays)  # wakes the threads
        seconds = []
        for _ in range(REPEAT):
            begun = time.perf_counter()
            for _ in range(calls):
                product(*arrays)
            seconds.append((time.perf_counter() - begun) / calls)
        print(json.dumps(case.flops / float(np.median(seconds)) / 1e9), flush=True)


# --- in the process that compares ---------------------------------------------------------------


class Side:
    """The process of a side, stopped except in its turns."""

    def __init__(self, who):
        command = [sys.executable, "-m", "fastdigit.bench.matmul", "--child", who]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self, name):
        self.process.send_signal(signal.SIGCONT)
        print(name, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that multiplies ended with status {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def end(self):
        self.process.kill()
        self.process.communicate()


@contextmanager
def both_sides():
    sides = {}
    try:
        for who in ("fastdigit", "numpy"):
            sides[who] = Side(who)
        yield sides
    finally:
        for side in sides.values():
            side.end()


def compare(rounds, select=("",)):
    """(the limit in GFLOP/s, a row for each selected product): medians and quartiles over the rounds."""
    rows = []
    with both_sides() as sides:
        limits = [sides["fastdigit"].turn("limit")]
        for name in PRODUCTS:
            if not any(text in name for text in select):
                continue
            speeds = {who: [] for who in sides}
            for turn in range(rounds + 1):  # the first gets memory and caches ready
                for who in list(sides)[:: 1 if turn % 2 else -1]:
                    speeds[who].append(sides[who].turn(name))
            refused = {who: found[0] for who, found in speeds.items() if isinstance(found[0], str)}
            if refused:
                rows.append({"product": name, "no_time": refused})
                continue
            ours, theirs = (np.array(speeds[who][1:]) for who in ("fastdigit", "numpy"))
            low, middle, high = np.percentile(ours / theirs, [25, 50, 75])
            rows.append(
                {
                    "product": name,
                    "gflops_fastdigit": float(np.median(ours)),
                    "gflops_numpy": float(np.median(theirs)),
                    "ratio_median": float(middle),
                    "ratio_quartiles": [float(low), float(high)],
                }
            )
        limits.append(sides["fastdigit"].turn("limit"))
    limit = max(limits)  # what the processor can do: less was measured only where others used it
    for row in rows:
        if "no_time" not in row:
            row["share_of_limit"] = row["gflops_fastdigit"] / limit
    return limit, rows


def geometric_mean(rows):
    """Of the ratios to NumPy; a product without a time makes it NaN, as there is no mean of all then."""
    return float(np.exp(np.mean([np.log(row.get("ratio_median", np.nan)) for row in rows])))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--select", nargs="+", default=[""], help="only products with one of these in the name"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("fastdigit", "numpy"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child)
        return
    limit, rows = compare(options.rounds, options.select)
    for row in rows:
        if "no_time" in row:
            print(f"{row['product']:>20} {row['no_time']}")
            continue
        (low, high), share = row["ratio_quartiles"], row["share_of_limit"]
        print(
            f"{row['product']:>20} {row['gflops_fastdigit']:6.0f} GFLOP/s ({share:4.0%} of the limit), "
            f"{row['ratio_median']:.2f} times NumPy ({low:.2f} to {high:.2f})"
        )
    mean = geometric_mean(rows)
    print(f"limit {limit:.0f} GFLOP/s; geometric mean {mean:.2f} times NumPy")
    if options.json:
        machine.write(options.json, limit_gflops=limit, geometric_mean_ratio=mean, rows=rows)


if __name__ == "__main__":
    main()
