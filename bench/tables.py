"""Results of ``bench.suite`` as tables: for the terminal, for Markdown, and for the page of ``bench.report``.

A table is a :class:`Table` of strings. Numbers are rounded here and nowhere else.
"""

import textwrap
from dataclasses import dataclass, field

import numpy as np

from . import turns

NOTE = "noisy"
WIDE = 110  # characters of a terminal
FIGURE = 24  # characters of a cell that is not broken


@dataclass
class Table:
    """``name`` marks it in a README. The first column is text, the others are aligned to the right where
    ``numbers`` says so. ``bars`` are the lengths, 0 … 1, of bars beside each row, with one of the ``kinds``
    ("ours", "peer")."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    bars: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    text: str = ""
    minor: tuple[str, ...] = ()  # columns that a narrow terminal and a phone leave out


def count(number):
    """Three digits and thousands: 1,234,567 → 1,230,000."""
    if number == 0:
        return "0"
    digits = len(str(int(abs(number))))
    return f"{round(number, -max(0, digits - 3)):,.0f}" if digits >= 3 else f"{number:.3g}"


def microseconds(number):
    return f"{number:.1f} µs" if number < 1000 else f"{number / 1000:.2f} ms"


def of_results(results):
    """All tables of one file of results."""
    found = []
    for part, make in MAKERS.items():
        if part not in results:
            continue
        content = results[part]
        if isinstance(content, dict) and "no_time" in content:
            found.append(Table(part, TITLES[part], ("",), [(content["no_time"],)]))
        else:
            found += make(content, results)
    return found


TITLES = {
    "train": "Training",
    "predict": "Prediction with 784-128-10",
    "accuracy": "Time to an accuracy on MNIST",
    "kernels": "Kernels",
    "profile": "Where a step's time goes",
    "scaling": "Scaling",
    "start": "Start",
    "gpu": "GPU",
}


def _train(networks, results):
    yield _all_networks(networks)
    yield from each_network(networks)


def each_network(networks):
    for result in networks:
        limit = float(np.median(result["limits"])) if result["limits"] else np.nan
        table = Table(
            f"train-{result['name']}",
            f"Training {result['network'].replace('@', ', batch ')}",
            (
                *("side", "images/s", "quartiles", "GFLOP/s", "of the limit"),
                *("to the best peer", "in half of the turns", "first call"),
            ),
            minor=("quartiles", "GFLOP/s", "in half of the turns"),
            text="Forward, cross-entropy, backward and update by plain SGD. A ratio is the median of pairs "
            "of neighbouring turns. GFLOP/s count zeros too, which ours skips."
            + _wall(result)
            + _losses(result)
            + _far(result),
        )
        timed = [row for row in result["rows"] if "no_time" not in row]
        most = max((row["images_per_second"] for row in timed), default=1)
        for row in sorted(result["rows"], key=lambda row: -row.get("images_per_second", 0)):
            kind = "ours" if row["side"].startswith("fastdigit") else "peer"
            if "no_time" in row:
                table.rows.append((row["side"], row["no_time"], *[""] * 6))
                table.bars.append(0.0)
            else:
                low, high = row["quartiles"]
                ratio = row.get("ratio_to_best_peer")
                best = result["best_peers"].get(row["precision"])
                rounded = row["precision"] != "float32"
                table.rows.append(
                    (
                        row["side"] + (f" ({NOTE})" if row["noisy"] else ""),
                        count(row["images_per_second"]),
                        f"{count(low)} to {count(high)}",
                        f"{row['gflops']:.0f}",
                        "" if rounded else f"{row['gflops'] / limit:.0%}",
                        f"{ratio['median']:.2f} × {best}" if ratio else "best peer" * (row["side"] == best),
                        "{:.2f} to {:.2f} ×".format(*ratio["quartiles"]) if ratio else "",
                        f"{row['first_call_seconds']:.1f} s",
                    )
                )
                table.bars.append(row["images_per_second"] / most)
            table.kinds.append(kind)
        yield table


def _wall(result):
    """What ours does by the clock of a user, beside its log's."""
    for row in result["rows"]:
        if row["side"] == "fastdigit" and "images_per_second_wall" in row:
            speed = count(row["images_per_second_wall"])
            return (
                " The time of fastdigit is that of its steps, with gathering and scaling; whole calls of "
                f"fit, which also check and copy the data, do {speed} images/s in calls as short as these. "
                "The others' batches lie ready before their time begins."
            )
    return ""


def _losses(result):
    """How near the losses of all sides are to those of float64."""
    worst = {}
    for row in result["rows"]:
        if "no_time" not in row:
            kind = row["precision"]
            worst[kind] = max(worst.get(kind, 0.0), row["largest_loss_difference"])
    found = ", ".join(f"{difference:.1g} ({kind})" for kind, difference in worst.items())
    steps = result["steps_checked"]
    return f" Losses of the first {steps} steps differ from float64's by at most {found}." if found else ""


def _far(result):
    far, shortest = result["rounds_far_apart"], result["shortest_meeting"]
    if not far:
        return ""
    count, longest = len(result["meetings"]), max(result["meetings"])
    left_out = len(result["rounds_that_count"]) < count
    return (
        f" In {far} of {count} rounds the cores were far apart (a barrier took {longest:.0f} ns, otherwise "
        f"{shortest:.0f}): {'left out' if left_out else 'counted all the same'}."
    )


def _all_networks(networks):
    """A line for each network and precision, a column for each side."""
    lines, sides = {}, {}
    for result in networks:
        for row in result["rows"]:
            kind = "" if row["precision"] == "float32" else row["precision"]
            side = row["side"].removesuffix(f"-{kind}")
            if not side.startswith("fastdigit-") and "no_time" not in row:
                sides[side] = None
                name = result["network"].replace("@", ", ") + (kind and f", {kind}")
                lines.setdefault(name, {})[side] = row
    sides = sorted(sides, key="fastdigit".__eq__)  # ours last
    last = "fastdigit to the best"
    # Narrow screens show the best peers, mostly.
    minor = tuple(side for side in sides if side in ("torch", "torch-compile", "scikit-learn"))
    noisy = any(row["noisy"] for line in lines.values() for row in line.values())
    text = f"~: {NOTE}, the quartiles of its turns are more than {turns.NOISY:.0%} apart." if noisy else ""
    table = Table(
        "train", "Training: images per second", ("network, batch", *sides, last), minor=minor, text=text
    )
    for name, line in lines.items():
        ratio = line.get("fastdigit", {}).get("ratio_to_best_peer")
        shown = [_speed(line[side]) if side in line else "–" for side in sides]
        table.rows.append((name, *shown, f"{ratio['median']:.2f} ×" if ratio else "–"))
    return table


def _speed(row):
    return ("~" if row["noisy"] else "") + count(row["images_per_second"])


def _predict(rows, results):
    table = Table(
        "predict",
        TITLES["predict"],
        ("side", "one label", "one image's probabilities", "images/s of 10,000"),
        text="Latency of one call from Python, median. Ours is handed uint8, the others float32 in 0 … 1.",
    )
    timed = [row for row in rows if "no_time" not in row]
    most = max((1 / row["microseconds_label"] for row in timed), default=1)
    for row in sorted(rows, key=lambda row: row.get("microseconds_label", 1e9)):
        table.kinds.append("ours" if row["side"] == "fastdigit" else "peer")
        if "no_time" in row:
            table.rows.append((row["side"], row["no_time"], "", ""))
            table.bars.append(0.0)
            continue
        table.rows.append(
            (
                row["side"] + (f" ({NOTE})" if row.get("noisy") else ""),
                microseconds(row["microseconds_label"]),
                microseconds(row["microseconds_probabilities"]),
                count(row["images_per_second"]),
            )
        )
        table.bars.append(1 / row["microseconds_label"] / most)
    yield table


def _accuracy(rows, results):
    table = Table(
        "accuracy",
        TITLES["accuracy"],
        ("side", "asked", "seconds", "reached", "recipe"),
        text="Seconds of training, by the clock, compiled before. torch is eager, with the same recipe. "
        "Medians over seeds, in brackets the range.",
    )
    for row in rows:
        table.kinds.append("ours" if row["side"].startswith("fastdigit") else "peer")
        if "no_time" in row:
            table.rows.append((row["side"], row["no_time"], "", "", ""))
            continue
        low, high = row["accuracy_range"]
        fast, slow = row["seconds_range"]
        table.rows.append(
            (
                row["side"],
                f"{row['target']:.1%}",
                f"{row['seconds']:.2f}" + (f" ({fast:.2f} to {slow:.2f})" if row["seeds"] > 1 else ""),
                f"{row['accuracy']:.2%}"
                + (f" ({low:.2%} to {high:.2%})" if row["seeds"] > 1 else "")
                + ("" if row["reached"] else ", missed"),
                row["recipe"],
            )
        )
    yield table


def _kernels(content, results):
    limits = content["limits"]
    base = next((row["ratio_to"] for row in content["rows"] if "ratio_to" in row), "another")
    table = Table(
        "kernels",
        TITLES["kernels"],
        ("operation", "backend", "one call", "GFLOP/s", "GB/s", "of ceiling", f"to {base}"),
        minor=("GFLOP/s", "GB/s", "bars"),
        text=f"The ceiling is {limits['gflops']:.0f} GFLOP/s or {limits['copy']:.0f} GB/s copied, whichever "
        "an operation meets first; more than 100 % comes from a cache.",
    )
    most = {}
    for row in content["rows"]:
        if "no_time" not in row:
            name = row["operation"], row["shape"]
            most[name] = min(most.get(name, 1e12), row["microseconds"])
    for row in content["rows"]:
        name = f"{row['operation']} {row['shape']}"
        table.kinds.append("peer" if row["backend"] == "numpy" else "ours")
        if "no_time" in row:
            table.rows.append((f"{name}, {row['backend']}", row["no_time"], "", "", "", "", ""))
            table.bars.append(0.0)
            continue
        ratio = f"{row['ratio']:.2f} ×" if "ratio" in row else ""
        table.rows.append(
            (
                name,
                row["backend"] + (f" ({NOTE})" if row["noisy"] else ""),
                microseconds(row["microseconds"]),
                f"{row['gflops']:.1f}",
                f"{row['gigabytes_per_second']:.1f}",
                f"{row['share_of_ceiling']:.0%}",
                ratio,
            )
        )
        table.bars.append(most[row["operation"], row["shape"]] / row["microseconds"])
    yield table


def _profile(networks, results):
    for result in networks:
        pieces, whole = result["microseconds_in_pieces"], result["microseconds_as_trained"]
        table = Table(
            f"profile-{result['network']}",
            f"Where a step of {result['network'].replace('@', ', batch ')} goes",
            ("operation", "calls", "time", "of the step", "of ceiling", "MFLOP", "MB"),
            minor=("calls", "MB", "bars"),
            text=f"Operations called one by one, backend {result['backend']}: {microseconds(pieces)} a step. "
            f"As it is trained, a step takes {microseconds(whole)}: {pieces / whole:.2f} times as fast.",
        )
        for row in result["rows"]:
            known = "flops" in row
            table.rows.append(
                (
                    f"{row['operation']} {row['shape']}" + (f" ({NOTE})" if row["noisy"] else ""),
                    str(row["calls"]),
                    microseconds(row["microseconds"]),
                    f"{row['share_of_step']:.1%}",
                    f"{row['share_of_ceiling']:.0%}" if known else "",
                    f"{row['flops'] / 1e6:.3g}" if known else "",
                    f"{row['bytes'] / 1e6:.3g}" if known else "",
                )
            )
            table.bars.append(row["share_of_step"])
            table.kinds.append("ours")
        rest = 1 - sum(row["share_of_step"] for row in result["rows"])
        table.rows.append(("Python in between", "", microseconds(pieces * rest), f"{rest:.1%}", "", "", ""))
        table.bars.append(max(0.0, rest))
        table.kinds.append("peer")
        yield table


def _scaling(rows, results):
    table = Table("scaling", TITLES["scaling"], ("axis", "value", "network", "images/s", "GFLOP/s"))
    for row in rows:
        table.rows.append(
            (
                row["axis"],
                str(row["value"]),
                row["network"].replace("@", ", batch "),
                count(row["images_per_second"]),
                f"{row['gflops']:.0f}",
            )
        )
    yield table


def _start(found, results):
    table = Table(
        "start", TITLES["start"], ("what", "seconds"), text="New processes, Python's start included."
    )
    for name, what in (
        ("python", "Python alone"),
        ("import", "import fastdigit"),
        ("cached", f"first step of a training, backend {found['backend']}, compiled before"),
        ("cold", f"first step of a training, backend {found['backend']}, compiled from nothing"),
    ):
        if name in found:
            table.rows.append((what, f"{found[name]:.2f}"))
    yield table


def _gpu(found, results):
    from .gpu.tables import of_gpu  # which makes its tables as this module does

    return of_gpu(found)


MAKERS = {
    "train": _train,
    "predict": _predict,
    "accuracy": _accuracy,
    "kernels": _kernels,
    "profile": _profile,
    "scaling": _scaling,
    "start": _start,
    "gpu": _gpu,
}


def markdown(table):
    """As a README shows it."""
    right = ["---", *["--:"] * (len(table.columns) - 1)]
    lines = [table.columns, right, *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def show(table, console):
    """In the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    columns = [i for i, name in enumerate(table.columns) if console.width >= WIDE or name not in table.minor]
    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    reasons = any(map(is_reason, table.rows))
    for number in columns:
        name = table.columns[number]
        cells = [row[number] for row in table.rows if not is_reason(row)]
        widest = max(map(len, [*cells, *name.split()]))
        # Figures stay whole: names, sentences, and words above figures take several lines first.
        whole = number and widest <= FIGURE and not (number == 1 and reasons)
        title = "\n".join(textwrap.wrap(name, widest)) if whole else name
        shown.add_column(title, justify="right" if number else "left", no_wrap=bool(whole))
    for number, row in enumerate(table.rows):
        ours = table.kinds and table.kinds[number] == "ours"
        row = [escape(cell) for cell in row]  # "fastdigit[cuda13]" is no style
        if is_reason(row):  # instead of figures
            shown.add_row(row[0], row[1], style="dim")
        else:
            shown.add_row(*(row[column] for column in columns), style="bold" if ours else None)
    console.print(f"[bold]{table.title}[/bold]", shown, sep="\n", end="")
    if table.text:
        console.print(escape(table.text), style="dim")


def is_reason(row):
    """Whether a row holds no figures but, behind its name, why there are none."""
    return len(row) > 2 and bool(row[1]) and not any(row[2:])
