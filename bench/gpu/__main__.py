"""``python -m fastdigit.bench.gpu``: see the package's own words."""

import argparse
import sys
from pathlib import Path

from .. import machine, train
from .parts import LONGEST, NETWORKS, PARTS
from .run import BUDGET, ROUNDS, TURN_SECONDS, answer_part, measure


def _seconds_of(text):
    """train=200 as ("train", 200.0)"""
    part, _, seconds = text.partition("=")
    try:
        if part in PARTS and 0 < float(seconds) < float("inf"):
            return part, float(seconds)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no part and its seconds, such as train=200")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fastdigit.bench.gpu", description="What runs on a GPU here."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--networks", nargs="+", choices=train.ALL_NETWORKS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=TURN_SECONDS)
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds in all, default: {BUDGET}")
    usual = ", ".join(f"{part}={seconds}" for part, seconds in LONGEST.items())
    parser.add_argument(
        "--seconds-of",
        nargs="+",
        type=_seconds_of,
        default=[],
        metavar="PART=SECONDS",
        help=f"that a part may take, within the budget; default: {usual}",
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and jax")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="default: gpu.json")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if options.child:
        return answer_part(options.parts[0], *options.child)
    from rich.console import Console

    from .. import tables
    from . import tables as ours

    about = machine.describe(options.python)
    found = measure(
        tuple(options.parts) or tuple(PARTS),
        *(options.networks, options.rounds, options.seconds, options.python, options.budget, print),
        save=lambda found: machine.save(options.json, {"machine": about, "gpu": found}),
        longest=dict(options.seconds_of),
    )
    console = Console()
    for table in ours.of_gpu(found):
        tables.show(table, console)
    return 1 if ours.failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
