"""What the cpu backend promises, measured afresh: one table of asked and measured.

    python -m fastdigit.bench.cpu_acceptance [--parts matmul train …] [--rounds 9] [--seconds 1]
        [--python INTERPRETER] [--suite FILE] [--json FILE] [--readme README.md]

Speeds are ratios within one run, each side in processes of its own that take turns (``bench.matmul``,
``bench.train``, ``bench.predict`` say how); ``--python`` names an interpreter that has the peers. ``--suite``
takes training, prediction, accuracy and start from a file that ``fastdigit bench`` has written since
fastdigit and its kernels changed last. Nothing else should run meanwhile. ``--json`` also keeps the details
of the parts. Exit status 1 if anything asked is missed.
"""

import argparse
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np

import fastdigit as fd
from fastdigit.errors import ConfigError

from . import accuracy, cases, ceilings, matmul, predict, start, suite, train
from .acceptance import report

NETWORKS = {  # asked ratios to the best peer
    "small-64": 2.0,
    "small-128": 2.0,
    "medium-128": 1.4,
    "wide-256": 1.4,
    "deep-512": 1.2,
}


def of_suite(options, part):
    """A part of the results of ``fastdigit bench``, or None where there are none."""
    if options.suite is None:
        return None
    results = suite.read(options.suite)
    commit, here = results["machine"]["commit"] or "", Path(__file__).resolve().parent.parent
    changes = ["git", "-C", here, "diff", "--quiet", commit, "--", "fastdigit/*.py", "kernels/*.py"]
    if commit.endswith("-dirty") or subprocess.run(changes).returncode != 0:
        raise ConfigError(f"{options.suite} is of commit {commit!r}, and fastdigit has changed since")
    if results["settings"]["backends"][0] != "cpu":
        raise ConfigError(f"{options.suite} is not of the cpu backend")
    return results.get(part)


def products(details, options):
    limit, rows = matmul.compare(15)
    details["matmul"] = {"limit_gflops": limit, "rows": rows}
    large = [row for row in rows if row["product"].startswith(("1024x1024", "2048x2048"))]
    others = [row for row in rows if row not in large]
    shapes = "all shapes of the networks: >= 1.0 times NumPy, geometric mean; each >= 0.85"
    for what, some, each in (
        ("matmul nn, nt, tn at 1024³ and 2048³: >= 1.0 times NumPy each", large, 1.0),
        (f"matmul at {shapes}", others, 0.85),
    ):
        mean, least = matmul.geometric_mean(some), min(some, key=lambda row: row.get("ratio_median", 0))
        if "no_time" in least:
            yield what, f"{least['product']}: {least['no_time']}", False, "bench.matmul"
            continue
        low, high = least["ratio_quartiles"]
        yield (
            what,
            f"{mean:.2f}; least {least['ratio_median']:.2f} ({low:.2f} to {high:.2f}, {least['product']}); "
            f"{np.median([row['share_of_limit'] for row in some]):.0%} of the limit of {limit:.0f} GFLOP/s",
            mean >= 1 and least["ratio_median"] >= each,
            "bench.matmul, quartiles",
        )


def errors(details, options):
    """The largest error of any product relative to its bound γ_K·(|a|·|b|)."""
    from fastdigit.kernels.matmul.cpu import matmul as product

    worst = (0.0, "")
    for name, (case, kind) in matmul.PRODUCTS.items():
        a, b, out = matmul.operands(case, kind)
        worst = max(worst, (matmul.error_to_bound(a, b, product(a, b, out)), name))
    yield (
        "matmul: error below γ_K·(|A|·|B|) at each of these shapes",
        f"at most {worst[0]:.3f} of it ({worst[1]})",
        worst[0] < 1,
        "against float64",
    )


def training(details, options):
    data, details["train"] = fd.load_mnist().train, []
    measured = {found["name"]: found for found in of_suite(options, "train") or ()}
    for name, asked in NETWORKS.items():
        network = train.NETWORKS[name]
        sides = [side for side in train.sides_for(network, None) if side != "fastdigit-1thread"]
        how = options.rounds, options.seconds, "cpu", options.python
        found = measured.get(name) or {"name": name, **train.measure(network, data, sides, *how)}
        details["train"].append(found)
        rows = {row["side"]: row for row in found["rows"]}
        asked_for = [("float32", "fastdigit", asked)]
        if network.layer_sizes == cases.DEEP:
            asked_for.append(("bf16", "fastdigit-bf16", 1.0))
        for precision, side, ratio in asked_for:
            what = f"training {network} in {precision}: >= {ratio} times the best peer"
            ratio_to_best = rows[side].get("ratio_to_best_peer")
            if ratio_to_best is None:
                yield what, rows[side].get("no_time", "no peer"), False, "bench.train"
                continue
            best = found["best_peers"][precision]
            low, high = ratio_to_best["quartiles"]
            yield (
                what,
                f"{ratio_to_best['median']:.2f} ({low:.2f} to {high:.2f}) times {best}: "
                f"{rows[side]['images_per_second']:,.0f} images/s, {rows[best]['images_per_second']:,.0f}",
                ratio_to_best["median"] >= ratio,
                f"bench.train, {len(found['rounds_that_count'])} of {len(rows[side]['turns'])} rounds",
            )


def in_turns(network, images, labels, one, other, turns=9):
    """How many times the speed of ``one`` set of options ``other`` has: trainings of an epoch, in turns.

    As in ``bench.train``, turns in which the cores were far apart are made up for, here all of them.
    """
    nets = [fd.Network(network.layer_sizes, backend="cpu", seed=0) for _ in range(2)]
    speeds, state = [[], []], train.State()

    def machine_now():
        return {"gflops": float("nan"), "meeting": ceilings.meeting()}

    before = machine_now()
    while state.rounds() < min(turns + 1 + sum(state.far()), 4 * turns):  # the first loads compiled code
        for net, options, found in zip(nets, (one, other), speeds, strict=True):
            log = fd.fit(
                net,
                (images, labels),
                optimizer=fd.SGD(0.01),
                schedule=fd.Constant(),
                epochs=1,
                batch_size=network.batch,
                seed=0,
                **options,
            )
            found.append(log.epochs[0].images_per_second)
        state.note(before, before := machine_now())
    return np.divide(speeds[1], speeds[0])[[turn for turn in state.rounds_that_count() if turn > 0]]


def threads(details, options):
    data, network = fd.load_mnist().train, train.NETWORKS["medium-128"]
    ratios = in_turns(network, data.images, data.labels, {"threads": 1}, {"threads": 2})
    details["threads"] = ratios.tolist()
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    yield (
        f"two threads against one, {network}: >= 1.8",
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        middle >= 1.8,
        "epochs in turns, quartiles",
    )


def zeros(details, options):
    """What looking for zeros costs where there are none, and what skipping them gains."""
    data, network = fd.load_mnist().train, train.NETWORKS["medium-128"]
    dense = np.random.default_rng(0).integers(1, 256, (12_800, 784), dtype=np.uint8)
    labels, details["zeros"] = data.labels[: len(dense)], {}
    ratios = in_turns(network, dense, labels, {"sparse_input": False}, {})
    details["zeros"]["dense input"] = ratios.tolist()
    yield (
        "pictures without paper: lists of ink lose <= 2 %",
        f"{np.median(ratios):.3f} times the speed without ({ratios.min():.2f} to {ratios.max():.2f})",
        np.median(ratios) >= 0.98,
        f"{network}, epochs in turns",
    )
    for name, count in (("medium-128", 60_000), ("wide-256", 24_320), ("deep-512", 5_120)):
        network = train.NETWORKS[name]
        images, labels = data.images[:count], data.labels[:count]
        ratios = in_turns(network, images, labels, {"sparse_hidden": False}, {}, turns=5)
        details["zeros"][name] = ratios.tolist()
        yield (
            f"skipping hidden zeros, {network}: not slower",
            f"{np.median(ratios):.2f} times the speed without ({ratios.min():.2f} to {ratios.max():.2f})",
            np.median(ratios) >= 1,
            "epochs in turns",
        )


def prediction(details, options):
    rows = of_suite(options, "predict") or predict.measure(
        fd.load_mnist(), ["onnxruntime", "fastdigit"], options.rounds, "cpu", options.python
    )
    details["predict"] = rows
    theirs, ours = ({row["side"]: row for row in rows}[side] for side in ("onnxruntime", "fastdigit"))
    if "no_time" in theirs or "no_time" in ours:
        yield "one image against onnxruntime: >= 1.0", str(rows), False, "bench.predict"
        return
    ratios = [theirs[what] / ours[what] for what in ("microseconds_label", "microseconds_probabilities")]
    yield (
        "one image from Python, 784-128-10, against onnxruntime: >= 1.0 times its speed",
        f"{ratios[0]:.2f} for the label ({ours['microseconds_label']:.1f} µs), "
        f"{ratios[1]:.2f} for probabilities",
        min(ratios) >= 1,
        "bench.predict",
    )


def to_98_percent(details, options):
    """Seconds of ``fd.fit`` that bring 784-128-10 to 98 %: all but the compiling, for several seeds."""
    rows = of_suite(options, "accuracy") or accuracy.measure(["cpu"], most=0.98, python=options.python)
    found = next(row for row in rows if row["target"] == 0.98 and row["side"] == "fastdigit")
    details["accuracy"] = rows
    low, high = found["accuracy_range"]
    yield (
        "98.0 % on MNIST's test images: <= 1.5 s",
        f"{found['seconds']:.2f} s (median of {found['seeds']} seeds), {found['accuracy']:.2%} "
        f"({low:.2%} to {high:.2%})",
        found["seconds"] <= 1.5 and found["reached"],
        found["recipe"],
    )


def first_step(details, options):
    """Seconds from the start of Python to the end of a first step, with an empty and with a full cache."""
    found = of_suite(options, "start") or start.measure("cpu")
    details["start"], cold, cached = found, found["cold"], found["cached"]
    yield "cold compile of all that training needs: <= 25 s", f"{cold:.1f} s", cold <= 25, "a new process"
    yield (
        "cached start to the first step: <= 1.5 s",
        f"{cached:.2f} s",
        cached <= 1.5,
        f"median of {found['processes']} new processes, with Python's own start",
    )


def memory(details, options):
    """What a step allocates beside parameters, optimizer's state and batch: gradients and working space."""
    found, data, cpu = {}, fd.load_mnist().train, fd.get_backend("cpu")
    for network in cases.NETWORKS:
        peaks = []

        def traced(*arguments, peaks=peaks):
            tracemalloc.start()
            try:
                cpu.train_epoch(*arguments)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()

        net = fd.Network(network.layer_sizes, backend=replace(cpu, train_epoch=traced), seed=0)
        count = 2 * network.batch
        images = data.images[:count]
        fd.fit(net, (images, data.labels[:count]), optimizer=fd.SGD(0.1), epochs=1, batch_size=network.batch)
        weights = net.layout.size * 4
        found[str(network)] = (max(peaks) + weights) / weights  # the gradients are as large as the weights
    details["memory"] = found
    worst = max(found, key=found.get)
    yield (
        "memory of a step over parameters, state and batch: <= 2 times the weights",
        f"at most {found[worst]:.2f} ({worst}), {found[str(cases.NETWORKS[-1])]:.2f} for the deep network",
        found[worst] <= 2,
        "tracemalloc, gradients counted",
    )


def sameness(details, options):
    data, losses, bits = fd.load_mnist().train, {}, {}
    for backend, threads in (("numpy", None), ("cpu", 1), ("cpu", 2)):
        net = fd.Network(cases.SMALL, backend=backend, seed=0)
        log = fd.fit(net, data, optimizer=fd.SGD(0.1), epochs=1, batch_size=128, seed=0, threads=threads)
        losses[backend] = log.epochs[-1].loss
        bits[threads] = [value.tobytes() for value in net.get_parameters().values()]
    difference = abs(losses["cpu"] / losses["numpy"] - 1)
    details["sameness"] = {"losses": losses, "relative_difference": difference}
    yield (
        "loss of an epoch as with the numpy backend: within 1e-4",
        f"{difference:.1e} apart",
        difference <= 1e-4,
        "784-128-10, batch 128, same seed",
    )
    yield "1 and 2 threads: the same bits", f"{bits[1] == bits[2]}", bits[1] == bits[2], "after that epoch"


PARTS = {
    "matmul": products,
    "train": training,
    "threads": threads,
    "zeros": zeros,
    "predict": prediction,
    "accuracy": to_98_percent,
    "start": first_step,
    "memory": memory,
    "same": sameness,
    "errors": errors,
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of training, for each side and turn")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the peers")
    parser.add_argument("--suite", type=Path, help="results of fastdigit bench to take parts from")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args(arguments)
    details = {}
    rows = (row for part in options.parts for row in PARTS[part](details, options))
    return report(rows, "cpu", options.json, options.readme, details)


if __name__ == "__main__":
    sys.exit(main())
