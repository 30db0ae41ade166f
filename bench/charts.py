"""Pictures of results: SVG for the page, which follows its light or dark colours, and PNG files for a README.

Drawn by matplotlib, which is optional: without it :func:`draw` gives nothing.
"""

import io
import re

# The colours that a page sets; in files, the values.
INK, FAINT, OURS, PEER = "#1b1f24", "#9aa4ae", "#c2410c", "#5b7083"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", OURS: "var(--ours)", PEER: "var(--peer)"}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.4,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(results):
    """{name: (title, matplotlib figure)} of what the results hold; {} without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return {}
    found = {}
    with matplotlib.rc_context(STYLE):
        for part, (title, make) in CHARTS.items():
            content = results.get(part)
            if content and "no_time" not in content:
                found[part] = title, make(content, results)
    return found


def as_svg(figure):
    """An ``<svg>`` element with the page's colours."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "fastdigit"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    # The page says how wide it is; the viewBox keeps the proportions.
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|$^', r"\1", text, count=1)


def save_png(figure, path, source):
    """For a README: on white, whatever the reader's colours are. The file says of what ``source`` it is."""
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white", metadata={"Source": source})


def _figure(rows, columns, width, height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _training(networks, results):
    """Bars of images per second, relative to the best peer; for PNG files (the page has bars of its own)."""
    figure, axes = _figure(len(networks), 1, 7, 0.5 + sum(0.4 + 0.24 * len(n["rows"]) for n in networks))
    for axis, network in zip(axes[:, 0], networks, strict=True):
        rows = sorted(
            (row for row in network["rows"] if "no_time" not in row), key=lambda row: row["images_per_second"]
        )
        names = [row["side"] for row in rows]
        speeds = [row["images_per_second"] for row in rows]
        ours = [row["side"].startswith("fastdigit") for row in rows]
        bars = axis.barh(names, speeds, color=[OURS if one else PEER for one in ours], height=0.7)
        axis.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=4, fontsize=8.5)
        axis.set_title(network["network"].replace("@", ", batch ") + ", images/s", loc="left")
        axis.set_xlim(0, max(speeds, default=1) * 1.16)
        axis.grid(False)
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(left=False, bottom=False, labelbottom=False)
    return figure


def _accuracy(rows, results):
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _figure(1, 1, 5.2, 3.2)
    axis, rows = axes[0, 0], [row for row in rows if "no_time" not in row]
    marks = dict(zip(dict.fromkeys(row["side"] for row in rows), "osD^v", strict=False))
    for side, mark in marks.items():
        colour = OURS if side.startswith("fastdigit") else PEER
        of_side = [row for row in rows if row["side"] == side]
        seconds, accuracies = [r["seconds"] for r in of_side], [100 * r["accuracy"] for r in of_side]
        axis.plot(seconds, accuracies, mark, color=colour, markersize=6, label=side)
        for row, x, y in zip(of_side, seconds, accuracies, strict=True):
            axis.plot(row["seconds_range"], [y, y], color=colour, linewidth=1)
            axis.plot([x, x], [100 * value for value in row["accuracy_range"]], color=colour, linewidth=1)
    axis.legend(loc="lower right", frameon=False, fontsize=8.5)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    fastest, slowest = min(row["seconds"] for row in rows), max(row["seconds"] for row in rows)
    axis.set_xlim(fastest / 1.6, slowest * 4)
    axis.margins(y=0.2)
    axis.set_xlabel("seconds of training")
    axis.set_ylabel("test images read right, %")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def _roofline(content, results):
    figure, axes = _figure(1, 1, 5.2, 4)
    axis, limits = axes[0, 0], content["limits"]
    rows = [row for row in content["rows"] if "no_time" not in row]
    left = min(row["flops_per_byte"] for row in rows) / 1.5
    right = max(row["flops_per_byte"] for row in rows) * 1.5
    knee = limits["gflops"] / limits["copy"]
    axis.plot([left, knee, right], [left * limits["copy"], limits["gflops"], limits["gflops"]], color=INK)
    axis.annotate(
        f"{limits['gflops']:.0f} GFLOP/s",
        (right, limits["gflops"]),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
    )
    axis.annotate(
        f"{limits['copy']:.0f} GB/s copied",
        (knee, limits["gflops"]),
        xytext=(-14, -8),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
    )
    marks = {"dense": "o", "dense_grad_input": "s", "dense_grad_weight": "^"}
    named = {}
    for row in rows:
        ours, operation = row["backend"] != "numpy", row["operation"]
        mark = marks.get(operation, "D")
        label = f"{row['backend']}: {'products' if operation in marks else 'the rest'}"
        (point,) = axis.plot(
            row["flops_per_byte"],
            row["gflops"],
            mark,
            color=OURS if ours else PEER,
            markersize=5,
            alpha=0.85,
            linestyle="none",
        )
        named.setdefault(label, point)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("flops for each byte that must be moved")
    axis.set_ylabel("GFLOP/s")
    for part in (axis.xaxis, axis.yaxis):
        part.set_major_formatter(lambda value, _: f"{value:g}")
    axis.legend(named.values(), named.keys(), loc="lower right", frameon=False, fontsize=8.5)
    return figure


def _scaling(rows, results):
    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = _figure(-(-len(names) // 2), 2, 5.4, 2.1 * -(-len(names) // 2))
    for axis, name in zip(axes.flat, names, strict=False):
        points = [row for row in rows if row["axis"] == name]
        values, speeds = [p["value"] for p in points], [p["images_per_second"] for p in points]
        axis.plot(values, speeds, "o-", color=OURS, markersize=4)
        axis.set_ylim(0, max(speeds) * 1.1)
        if name in ("batch", "width"):
            axis.set_xscale("log", base=2)
        axis.set_xticks(values, [str(value) for value in values], fontsize=7)
        axis.minorticks_off()
        axis.set_title(f"{name}: images/s", loc="left")
        axis.yaxis.set_major_formatter(
            lambda value, _: f"{value / 1000:g}k" if value < 1e6 else f"{value / 1e6:g}M"
        )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    return figure


CHARTS = {
    "train": ("Training", _training),
    "accuracy": ("Accuracy against seconds", _accuracy),
    "kernels": ("Roofline: every kernel against what the processor can do", _roofline),
    "scaling": ("How the speed of training changes", _scaling),
}
