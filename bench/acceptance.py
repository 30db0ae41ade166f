"""What the trainer promises, measured afresh: one table of asked and measured.

    python -m fastdigit.bench.acceptance [--quick] [--json FILE] [--readme README.md]

Runs the command as a user would, in processes of their own, on MNIST and on the embedded digits;
the benchmarks of this folder; and the tests that prove the rest. ``--quick`` kills and prepares
less. ``--readme`` puts the table between its marks in that file. Exit status 1 if anything asked
is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import fastdigit as fd
from fastdigit.files import atomic_write

from . import kill_and_resume, machine, numpy_loop, prepared_pictures

PROJECT = Path(__file__).resolve().parent.parent
END = "<!-- end of table -->"
MET = {True: ("yes", "met"), False: ("NO", "MISSED"), None: ("?", "OPEN")}  # in the table, and line by line


def train(*options):
    """Run ``fastdigit train``: its test accuracy, and the wall time in seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fastdigit", "train", "--out", str(out), *options]
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - begun
        return json.loads((out / "evaluation.json").read_text())["accuracy"], seconds


def tests(*selected):
    """Whether these tests pass, and the last line that pytest prints."""
    command = [sys.executable, "-m", "pytest", *selected]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    return result.returncode == 0, result.stdout.strip().splitlines()[-1]


def import_cost():
    """Seconds that ``import fastdigit`` takes beyond ``import numpy``: the median of 11 pairs."""

    def once(module):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - begun

    once("fastdigit")
    return sorted(once("numpy, fastdigit") - once("numpy") for _ in range(11))[5]


def rows(data, quick):
    """Yield (asked, measured, met, how) one by one."""
    cost = import_cost()
    yield (
        "import fastdigit: < 0.1 s beyond import numpy",
        f"{cost:.3f} s",
        cost < 0.1,
        "11 pairs of processes",
    )

    accuracy, seconds = train("--data", "mnist", "--hidden", "128", "--epochs", "6")
    yield (
        "MNIST, 784-128-10: >= 97.7 % within 6 epochs and one minute",
        f"{accuracy:.2%} in {seconds:.0f} s",
        accuracy >= 0.977 and seconds < 60,
        "fastdigit train --data mnist --hidden 128 --epochs 6",
    )
    accuracy, seconds = train()
    yield (
        "embedded digits: >= 97 %",
        f"{accuracy:.2%} in {seconds:.0f} s",
        accuracy >= 0.97,
        "fastdigit train",
    )
    accuracy, seconds = train("--data", "mnist", "--classes", "0,1")
    yield (
        "MNIST, classes 0 and 1: >= 99.8 %",
        f"{accuracy:.2%} in {seconds:.0f} s",
        accuracy >= 0.998,
        "fastdigit train --data mnist --classes 0,1",
    )

    for row in [numpy_loop.compare(*network, data.train, 7) for network in numpy_loop.NETWORKS]:
        ratio = row["speed_ratio_median"]
        low, high = row["speed_ratio_quartiles"]
        yield (
            f"{row['network']}, batch {row['batch']}: >= 0.9 of a hand-written NumPy loop",
            f"{ratio:.3f} ({low:.3f} to {high:.3f})",
            ratio >= 0.9,
            "bench.numpy_loop",
        )

    for asked, selected in (
        (
            "gradients agree with float64 finite differences to 1e-6",
            ["tests/fastdigit/test_network.py", "-k", "slopes_of_the_loss"],
        ),
        (
            "check_estimator(DigitClassifier()) passes",
            ["tests/fastdigit/test_estimator.py", "-k", "scikit_learn_check"],
        ),
    ):
        met, line = tests(*selected)
        yield asked, line, met, f"pytest {' '.join(selected)}"

    kills = kill_and_resume.run(5 if quick else 50, seed=0)
    yield (
        f"killed {kills['kills']} times: every checkpoint loads, the same bits at the end",
        f"{kills['checkpoints_loaded']} loaded, "
        f"{kills['killed_before_the_first_checkpoint']} before the first, "
        f"identical: {kills['bit_identical']}",
        kills["bit_identical"] and not kills["leftover_files"],
        "bench.kill_and_resume",
    )

    for row in prepared_pictures.measure(data, 500 if quick else 10_000):
        yield (
            f"as JPEG pictures (quality {row['jpeg_quality']}, {row['enlarged_by']}): <= 1.5 points lost",
            f"{row['points_lost']:+.2f} ({row['accuracy_as_pictures']:.2%} of {row['images']})",
            row["points_lost"] <= 1.5,
            "bench.prepared_pictures",
        )


def report(rows, name, json_file, readme, details=None):
    """Print each row as it comes, then all; write the files that are asked for, the JSON with ``details``.
    A row's ``met`` is None where nothing was measured. The exit status."""
    table = Table("asked", "measured", "met", "how")
    results = []
    for asked, measured, met, how in rows:
        met = None if met is None else bool(met)
        results.append({"asked": asked, "measured": measured, "met": met, "how": how})
        table.add_row(asked, measured, MET[met][0], how)
        print(f"{MET[met][1]}: {asked}: {measured}", flush=True)
    Console(width=160).print(table)
    if json_file:
        machine.write(json_file, rows=results, **(details or {}))
    if readme:
        put_into(readme, name, results)
    return 0 if all(row["met"] for row in results) else 1


def markdown(results):
    """The table of a result's rows as a README shows it."""
    lines = ["| asked | measured | how |", "|---|---|---|"]
    for row in results:
        measured = row["measured"] + (" **missed**" if row["met"] is False else "")
        cells = (cell.replace("|", r"\|") for cell in (row["asked"], measured, f"`{row['how']}`"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put_into(readme, name, results):
    """Put the table of a result's rows between the marks of that name in a README."""
    put_between_marks(readme, name, markdown(results))


def put_between_marks(page, name, table):
    """Replace what stands between the marks of that name in a page."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(f"<!-- table: {name} -->")
    _, tail = rest.split(END, 1)
    atomic_write(page, f"{head}<!-- table: {name} -->\n{table}\n{END}{tail}".encode())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args(arguments)
    return report(rows(fd.load_mnist(), options.quick), "acceptance", options.json, options.readme)


if __name__ == "__main__":
    sys.exit(main())
