"""The hand-written matrix product against NumPy's BLAS, and against the processor's own limit.

    python -m fastdigit.bench.matmul [--rounds 15] [--select TEXT …] [--json FILE]

The two take turns (``bench.turns``). The limit is that of ``bench.ceilings``, measured in our process before
and after. A product gets a time only if its error is within the bound γ_K·(|a|·|b|), against float64.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from . import cases, ceilings, machine, turns

# y = x·w (nn), dx = dy·wᵀ (nt) and dw = xᵀ·dy (tn) of these layers.
SHAPES = (
    *dict.fromkeys(layer for network in cases.NETWORKS for layer in network.layers),
    cases.Matmul(1024, 1024, 1024),
    cases.Matmul(2048, 2048, 2048),
)
PRODUCTS = {f"{case} {kind}": (case, kind) for case in SHAPES for kind in ("nn", "nt", "tn")}
SECONDS = 0.004  # of one measurement
COMMAND = (sys.executable, "-m", "fastdigit.bench.matmul", "--child")


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


class Answers:
    """Of "fastdigit" or "numpy": to the name of a product its GFLOP/s."""

    def __init__(self, who):
        self.name, self.arrays, self.error = None, None, None
        if who == "fastdigit":
            from fastdigit.kernels.matmul.cpu import matmul

            self.product = matmul
        else:
            self.product = lambda a, b, out: np.matmul(a, b, out=out)

    def __call__(self, name):
        if name == "limit":
            return {"gflops": ceilings.multiply_add()}
        case, kind = PRODUCTS[name]
        if name != self.name:
            self.name, self.arrays = name, operands(case, kind)
            self.product(*self.arrays)
            self.error = error_to_bound(*self.arrays)
        if not self.error <= 1:  # also if it is not a number
            return {"no_time": f"refused: its error is {self.error:.3g} times the bound"}
        calls = max(1, int(SECONDS * 1.5e11 / case.flops))
        turns.settle([self._multiply])
        seconds = turns.seconds_of(self._multiply, SECONDS, calls)
        return {"gflops": case.flops / seconds / 1e9}

    def _multiply(self):
        self.product(*self.arrays)


# --- in the process that compares ---------------------------------------------------------------


def compare(rounds, select=("",)):
    """(the limit in GFLOP/s, a row for each selected product): medians and quartiles over the rounds."""
    rows = []
    with turns.Turns() as sides:
        for who in ("fastdigit", "numpy"):
            sides.start(who, [*COMMAND, who])
        limits = [sides.ask("fastdigit", "limit")]
        for name in PRODUCTS:
            if not any(text in name for text in select):
                continue
            answers = sides.ask_all(name, rounds)
            refused = {who: found[-1]["no_time"] for who, found in answers.items() if "no_time" in found[-1]}
            if refused:
                rows.append({"product": name, "no_time": refused})
                continue
            ours, theirs = (np.array([answer["gflops"] for answer in answers[who]]) for who in answers)
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
        limits.append(sides.ask("fastdigit", "limit"))
    # What the processor can do: less was measured only where others used it. A process that failed has none.
    limit = max(answer.get("gflops", 0.0) for answer in limits)
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
        turns.answer_all(Answers(options.child))
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
