"""The hand-written matrix product against NumPy's BLAS, and against the processor's own limit.

    python -m fastdigit.bench.matmul [--rounds 3] [--select TEXT …] [--json FILE]

Each of the two runs in processes of its own, in turns: in one process their pools of threads would
disturb each other (threads of OpenBLAS wait by spinning, on the core that the others need). The limit
is that of ``bench.ceilings``, measured in our process.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from . import cases, machine

# y = x·w (nn), dx = dy·wᵀ (nt) and dw = xᵀ·dy (tn) of these layers.
SHAPES = (
    *dict.fromkeys(layer for network in cases.NETWORKS for layer in network.layers),
    cases.Matmul(1024, 1024, 1024),
    cases.Matmul(2048, 2048, 2048),
)
SECONDS = 0.004  # a measurement takes about so long
REPEAT = 15


def measure(product, select):
    """{"BxIxO nn": GFLOP/s, …}: the median of REPEAT measurements of each selected product."""
    random, speeds = np.random.default_rng(0), {}
    for case in SHAPES:
        x, w, dy = (
            random.standard_normal(shape, dtype=np.float32)
            for shape in ((case.batch, case.inputs), (case.inputs, case.outputs), (case.batch, case.outputs))
        )
        for kind, a, b in (("nn", x, w), ("nt", dy, w.T), ("tn", x.T, dy)):
            name = f"{case} {kind}"
            if not any(text in name for text in select):
                continue
            out = np.empty((a.shape[0], b.shape[1]), np.float32)
            product(a, b, out)
            calls = max(1, int(SECONDS * 1.5e11 / case.flops))
            seconds = []
            for _ in range(REPEAT):
                begun = time.perf_counter()
                for _ in range(calls):
                    product(a, b, out)
                seconds.append((time.perf_counter() - begun) / calls)
            speeds[name] = case.flops / float(np.median(seconds)) / 1e9
    return speeds


def fastdigit(select):
    """Our speeds, and first the limit: {"limit": GFLOP/s, …}."""
    from fastdigit.kernels.matmul import cpu

    from . import ceilings

    return {"limit": ceilings.multiply_add(), **measure(cpu.matmul, select)}


def numpy(select):
    return measure(lambda a, b, out: np.matmul(a, b, out=out), select)


def compare(rounds, select=("",)):
    """(the limit in GFLOP/s, a row for each selected product): medians over the rounds."""
    found = {"fastdigit": [], "numpy": []}
    for _ in range(rounds):
        for who, speeds in found.items():
            command = [sys.executable, "-m", "fastdigit.bench.matmul", "--child", who, "--select", *select]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            speeds.append(json.loads(result.stdout))
    limit = float(np.median([speeds["limit"] for speeds in found["fastdigit"]]))
    rows = []
    for name in found["numpy"][0]:
        ours, theirs = ([speeds[name] for speeds in found[who]] for who in ("fastdigit", "numpy"))
        ratios = np.divide(ours, theirs)
        rows.append(
            {
                "product": name,
                "gflops_fastdigit": float(np.median(ours)),
                "gflops_numpy": float(np.median(theirs)),
                "ratio_median": float(np.median(ratios)),
                "ratio_range": [float(ratios.min()), float(ratios.max())],
                "share_of_limit": float(np.median(ours)) / limit,
            }
        )
    return limit, rows


def geometric_mean(rows):
    """Of the ratios to NumPy."""
    return float(np.exp(np.mean([np.log(row["ratio_median"]) for row in rows])))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--select", nargs="+", default=[""], help="only products with one of these in the name"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("fastdigit", "numpy"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps({"fastdigit": fastdigit, "numpy": numpy}[options.child](options.select)))
        return
    limit, rows = compare(options.rounds, options.select)
    for row in rows:
        print(
            f"{row['product']:>20} {row['gflops_fastdigit']:6.0f} GFLOP/s "
            f"({row['share_of_limit']:4.0%} of the limit), {row['ratio_median']:.2f} times NumPy"
        )
    mean = geometric_mean(rows)
    print(f"limit {limit:.0f} GFLOP/s; geometric mean {mean:.2f} times NumPy")
    if options.json:
        machine.write(options.json, limit_gflops=limit, geometric_mean_ratio=mean, rows=rows)


if __name__ == "__main__":
    main()
