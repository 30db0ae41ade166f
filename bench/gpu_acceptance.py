"""What the cuda backend promises, from what ``bench.gpu`` has measured: one table of asked and measured.

    python -m fastdigit.bench.gpu_acceptance [FILE …] [--json FILE] [--readme kernels/README.md]

The files are those of one or several runs of ``bench.gpu``, or of ``fastdigit bench gpu``: of a part that
several have measured the last counts, of ``bandwidth`` the last of each operation, of ``train`` the last of
each network that has any times. What none has measured is said to be not measured. Exit status 1 if anything
asked is missed or not measured.
"""

import argparse
import json
import sys
from pathlib import Path

from fastdigit.errors import ConfigError

from . import checks
from .acceptance import report
from .gpu.multiplication import FORMS, WAYS
from .gpu.parts import PARTS
from .gpu.products import ASKED_SIZE, ASKED_SIZE_BF16
from .gpu.sanitizer import ASKED
from .peers import SIDES
from .train import FEWEST_ROUNDS

# What is asked at least, or at most, and what is aimed at.
EPOCH_MILLISECONDS = 8, 2.5
EPOCH_TO_PEERS = 3, 8
SECONDS_TO = {0.98: (0.1, 0.03), 0.99: (2, 0.5)}
OF_CUBLAS = {
    "simt": (0.75, 0.95),
    "mma bf16": (0.45, None),
    "wgmma bf16": (0.70, 1.0),
    "tf32": (0.45, 0.90),
}
# Where there are several ways to do what is asked, of which the last that was tried is the one that is taken.
WAYS_OF = {"tf32": ("mma tf32", "wgmma tf32")}
DEEP_TO_PEERS = 1.0, 1.4
OF_COPY = 0.85, 0.95
COMPARISON_SECONDS = 0.10, 0.03
HOST_SHARE = 0.05, 0.0


def read(files):
    """(what all files have found, as of one run, [(machine, devices and driver) of each file]).

    Errors: ConfigError for a file that is none of ``bench.gpu``'s."""
    merged, machines = {}, []
    for file in files:
        try:
            results = json.loads(Path(file).read_text(encoding="utf-8"))
            found = results["gpu"]
            machines.append(
                {**results["machine"], "gpu": found.get("devices"), "driver": found.get("driver")}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} holds no results of bench.gpu: {error!r}") from None
        device = found.get("devices", {}).get("cuda", "").partition(",")[0]
        for part in PARTS:
            content = found.get(part)
            if not content or "no_time" in content:
                continue
            if part == "train":
                before = merged.get(part, ({}, ""))[0]
                named = {network["name"]: network for network in content}
                timed = {name for name, network in named.items() if _any_time(network)}
                kept = {name: named[name] for name in named if name in timed or name not in before}
                merged[part] = before | kept, device
            elif part == "bandwidth":
                before = {row["operation"]: row for row in merged.get(part, ([], ""))[0]}
                merged[part] = [*(before | {row["operation"]: row for row in content}).values()], device
            else:
                merged[part] = content, device
    return merged, machines


def _any_time(network):
    return any("no_time" not in row for row in network["rows"])


class Found:
    """What was measured, part by part: ``of(part)``, or nothing of its kind; ``how(part)`` in words."""

    def __init__(self, merged):
        self.merged = merged

    def of(self, part, nothing):
        return self.merged.get(part, (nothing, ""))[0]

    def how(self, part):
        device = self.merged.get(part, (None, ""))[1]
        return f"bench.gpu {part}" + (f", {device}" if device else "")


def rows(merged):
    """(asked, measured, met, how) of each line; met is None for what was not measured."""
    found = Found(merged)
    yield _kernels(found)
    yield _epochs(found)
    yield from _sanitizer(found)
    yield _epoch(found)
    yield _ratio(
        *(found, "small-128", "fastdigit-cuda", EPOCH_TO_PEERS),
        "784-128-10, batch 128, in float32, against torch's CUDA graphs and torch.compile and JAX",
    )
    yield from (_accuracy(found, target) for target in SECONDS_TO)
    for technique, sizes in (
        ("simt", (ASKED_SIZE,)),
        ("mma bf16", (ASKED_SIZE, ASKED_SIZE_BF16)),
        ("wgmma bf16", (ASKED_SIZE, ASKED_SIZE_BF16)),
        ("tf32", (ASKED_SIZE,)),
    ):
        yield _product(found, technique, sizes)
    for name in "deep-512", "deep-4096":
        what = f"784-2500-2000-1500-1000-500-10, batch {name[5:]}, in bf16, against torch.compile and JAX"
        yield _ratio(found, name, "fastdigit-cuda-bf16", DEEP_TO_PEERS, what)
    yield _bandwidth(found)
    yield _comparison(found)
    yield _host(found)


def _missing(asked, how, why="not measured"):
    return asked, why, None, how


def _aim(must, aim, unit):
    """The bound of a figure in words; a share has no unit."""
    shown = [
        f"{bound:.0%}" if unit == "%" else f"{bound:g}{unit}" for bound in (must, aim) if bound is not None
    ]
    return shown[0] + (f" (aim {shown[1]})" if len(shown) > 1 else "")


def _kernels(found):
    asked, how = "every operation and every way to multiply is right: all", found.how("checks")
    results = found.of("checks", {}).get("cuda")
    if not results:
        return _missing(asked, how)
    ways = [f"product, {name}" for name in WAYS]
    absent = [name for name in (*checks.CHECKS, *ways) if name not in results]
    wrong = [name for name, result in results.items() if "rejected" in result]
    said = f"{len(results) - len(wrong)} of {len(results) + len(absent)}"
    said += f"; wrong: {', '.join(wrong)}" if wrong else ""
    said += f"; not reached: {', '.join(absent)}" if absent else ""
    return asked, said, not wrong and not absent, how


def _epochs(found):
    asked, how = "weights of whole trainings by both paths as float64's and the cpu backend's: all", "epochs"
    results = found.of("epochs", [])
    if not results:
        return _missing(asked, found.how(how))
    wrong = [row for row in results if "rejected" in row]
    paths = {
        "persistent kernel": any("persistent" in row.get("path", "").partition(",")[0] for row in results),
        "graph of steps": any("a graph of steps" in row.get("path", "") for row in results),
    }
    said = f"{len(results) - len(wrong)} of {len(results)}"
    said += (
        f"; wrong: {wrong[0]['training']}, {wrong[0]['network']}, {wrong[0]['precision']}" if wrong else ""
    )
    said += "".join(f"; no {name}" for name, there in paths.items() if not there)
    return asked, said, not wrong and all(paths.values()), found.how(how)


def _sanitizer(found):
    results, how = {row["tool"]: row for row in found.of("sanitizer", [])}, found.how("sanitizer")
    for tool in "memcheck", "racecheck":
        asked, row = f"compute-sanitizer, {tool}: nothing", results.get(tool)
        if row is None or "no_time" in row:
            why = f"not measured: {row['no_time']}" if row else "not measured"
            yield _missing(asked, how, why)
            continue
        counts = ", ".join(f"{count} {part}" for part, count in row["checked"].items())
        said = f"{row['errors']} errors in {counts}"
        said += f"; wrong under it: {row['rejected'][0]}" if row["rejected"] else ""
        missing = [name for name in ASKED if name not in row["done"]]
        said += f"; not finished: {', '.join(missing)}" if missing else ""
        yield asked, said, row["errors"] == 0 and not row["rejected"] and not missing, how


def _quickest(rows, figure, precisions=None):
    """The row with the smallest figure of those that have one."""
    timed = [row for row in rows if figure in row and (not precisions or row["precision"] in precisions)]
    return min(timed, key=lambda row: row[figure], default=None)


def _best_epoch(found):
    """The quickest of an epoch in numbers as exact as is asked."""
    return _quickest(found.of("goals", {}).get("epoch", []), "milliseconds", ("float32", "tf32"))


def _epoch(found):
    must, aim = EPOCH_MILLISECONDS
    asked = f"an epoch of 784-128-10, batch 128, float32 or tf32: <= {_aim(must, aim, ' ms')}"
    row = _best_epoch(found)
    if row is None:
        return _missing(asked, found.how("goals"))
    low, high = row["milliseconds_quartiles"]
    said = f"{row['milliseconds']:.2f} ms ({low:.2f} to {high:.2f}) in {row['precision']}, "
    said += f"{row['milliseconds_of_steps']:.2f} of them steps; loss {row['loss_apart']:.1e} from cpu's"
    return asked, said, row["milliseconds"] <= must, found.how("goals")


def _ratio(found, name, side, bounds, what):
    must, aim = bounds
    asked = f"{what}: >= {_aim(must, aim, '')} times the best"
    network = found.of("train", {}).get(name)
    row = network and next((row for row in network["rows"] if row["side"] == side), None)
    if not row or "ratio_to_best_peer" not in row:
        why = f"not measured: {row['no_time']}" if row and "no_time" in row else "not measured"
        return _missing(asked, found.how("train"), why)
    precision = SIDES[side].precision
    rivals = [each for each in network["rows"] if each["precision"] == precision and each is not row]
    absent = [each["side"] for each in rivals if "no_time" in each and "turns" not in each]
    refused = [each["side"] for each in rivals if "no_time" in each and "turns" in each]
    ratio = row["ratio_to_best_peer"]
    low, high = ratio["quartiles"]
    said = f"{ratio['median']:.2f} times {network['best_peers'][precision]} ({low:.2f} to {high:.2f})"
    said += f"; refused for its losses, and a rival all the same: {', '.join(refused)}" if refused else ""
    said += f"; without a time: {', '.join(absent)}" if absent else ""
    rounds = len(row.get("turns", ()))
    said += f"; of {rounds} rounds alone" if 0 < rounds < FEWEST_ROUNDS else ""
    return asked, said, ratio["median"] >= must and not absent, found.how("train")


def _accuracy(found, target):
    must, aim = SECONDS_TO[target]
    asked = f"{target:.0%} on MNIST's test images: <= {_aim(must, aim, ' s')}"
    results = [row for row in found.of("goals", {}).get("accuracy", []) if row["target"] == target]
    row = _quickest([row for row in results if row.get("reached")], "seconds") or _quickest(
        results, "seconds"
    )
    if row is None:
        return _missing(asked, found.how("goals"))
    low, high = row["accuracy_range"]
    said = f"{row['seconds']:.3f} s in {row['precision']} (median of {row['seeds']} seeds), "
    said += f"{row['accuracy']:.2%} ({low:.2%} to {high:.2%})"
    return asked, said, row["seconds"] <= must and row["reached"], found.how("goals")


def _product(found, technique, sizes):
    must, aim = OF_CUBLAS[technique]
    shapes = [f"{size}x{size}x{size}" for size in sizes]
    squares = " and ".join(f"{size}³" for size in sizes)
    asked = f"{technique} at {squares}, nn, nt, tn, against cuBLAS: >= {_aim(must, aim, '%')} each"
    results = {
        (row["shape"], row["form"]): row
        for way in WAYS_OF.get(technique, (technique,))
        for row in found.of("products", [])
        if row["technique"] == way and row["shape"] in shapes
    }
    wanted = [(shape, form) for shape in shapes for form in FORMS]
    timed = {case: results[case] for case in wanted if "share" in results.get(case, {})}
    if not timed:
        refused = [row["no_time"] for row in results.values() if "no_time" in row]
        return _missing(asked, found.how("products"), ": ".join(["not measured", *refused[:1]]))
    (shape, form), least = min(timed.items(), key=lambda item: item[1]["share"])
    share = f"{least['share']:.0%}"
    if least["share"] < must and share == f"{must:.0%}":  # rounded it would look as if it were met
        share = f"{least['share']:.1%}"
    said = f"least {share} ({least['tflops']:.0f} TFLOP/s, {shape} {form}"
    said += ")" if least["technique"] == technique else f", {least['technique']})"
    absent = [" ".join(case) for case in wanted if case not in timed]
    said += f"; without a time: {', '.join(absent)}" if absent else ""
    return asked, said, least["share"] >= must and not absent, found.how("products")


def _bandwidth(found):
    asked = f"softmax_xent, relu, dropout, optimizers against a copy: >= {_aim(*OF_COPY, '%')} each"
    results = found.of("bandwidth", [])
    timed = [row for row in results if "share" in row]
    if not timed:
        return _missing(asked, found.how("bandwidth"))
    least, absent = (
        min(timed, key=lambda row: row["share"]),
        [r["operation"] for r in results if "share" not in r],
    )
    said = (
        f"least {least['share']:.0%} of {least['copy_gigabytes_per_second']:.0f} GB/s ({least['operation']})"
    )
    said += f"; without a time: {', '.join(absent)}" if absent else ""
    kinds = "softmax_xent", "relu", "dropout", "sgd", "adam"
    absent += [kind for kind in kinds if not any(row["operation"].startswith(kind) for row in results)]
    return asked, said, least["share"] >= OF_COPY[0] and not absent, found.how("bandwidth")


def _comparison(found):
    must, aim = COMPARISON_SECONDS
    asked = f"784-1024-10, batch 32, 10 epochs of 10,000 images: <= {_aim(must, aim, ' s')}"
    row = _quickest(found.of("goals", {}).get("comparison", []), "seconds")
    if row is None:
        return _missing(asked, found.how("goals"))
    low, high = row["seconds_range"]
    said = f"{row['seconds']:.3f} s ({low:.3f} to {high:.3f}) in {row['precision']}, {row['steps']:,} steps"
    return asked, said, row["seconds"] <= must, found.how("goals")


def _host(found):
    must, aim = HOST_SHARE
    asked = f"the host's time while the GPU works on that epoch: < {_aim(must, aim, '%')}"
    row = _best_epoch(found)
    if row is None:
        return _missing(asked, found.how("goals"))
    share = row["host_share_while_gpu_works"]
    said = f"at most {share:.1%} in {row['precision']}, what it prepares before counted; of whole epochs "
    said += f"{row['host_share_of_epoch']:.0%}"
    return asked, said, share < must, found.how("goals")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args(arguments)
    try:
        merged, machines = read(options.files)
    except ConfigError as error:
        parser.error(str(error))
    return report(rows(merged), "gpu", options.json, options.readme, {"measured_on": machines})


if __name__ == "__main__":
    sys.exit(main())
