"""What ``fastdigit evaluate`` says about the limits of a network: unusual handwriting, groups of people."""

from pathlib import Path

from .common import percent, say

FEW = 12  # groups that are compared one with another; of more, the worst are shown
SHOWN = 10


def corruptions(net, images, png):
    """Accuracy under each corruption and strength: shows it, draws it into ``png`` unless that is None;
    the figures."""
    from ..corruptions import corruption_robustness

    found = corruption_robustness(net, images)
    columns = ("corruption", *map(str, found.strengths), "mean")
    rows = [
        (name, *map(percent, values), percent(found.mean_of[name])) for name, values in found.accuracy.items()
    ]
    print(f"\n{percent(found.clean)} are right as they are; corrupted with strength 1 (mild) to 5 (hard):")
    _table(columns, rows)
    say("corrupted", f"{percent(found.mean)} right, the mean over all corruptions and strengths")
    if png:
        from .. import plots_limits

        plots_limits.robustness(found, images.images, png)
        say("picture", png)
    return found.as_dict()


def groups(evaluation, column, by, png):
    """Accuracy by group: shows it, draws it into ``png`` unless that is None; the figures."""
    from ..groups import accuracy_by

    found, by = accuracy_by(evaluation, column), Path(by).name
    rows = [
        (
            str(row["group"]),
            f"{row['images']:,}",
            percent(row["accuracy"]),
            " to ".join(map(percent, row["interval_95"])),
        )
        for row in found.rows()
    ]
    shown = rows if len(rows) <= FEW else rows[:SHOWN]
    worst = "" if shown is rows else f", the worst {SHOWN} of {len(rows):,}"
    print(f"\naccuracy by {by}{worst}:")
    _table((by, "images", "right", "95 % interval"), shown)
    _say_gap(found)
    _say_worst_decile(found)
    if png:
        from .. import plots_limits

        plots_limits.groups(found, by, png)
        say("picture", png)
    return found.as_dict()


def _say_gap(found):
    gap = found.gap() if len(found) <= FEW else None
    if gap:
        low, high = (100 * edge for edge in gap["interval_95"])
        say(
            "gap",
            f"{100 * gap['difference']:.2f} points between {gap['worst']} and {gap['best']} "
            f"(95 % interval {low:.2f} to {high:.2f})",
        )


def _say_worst_decile(found):
    """Of many groups the worst look bad by chance: what would be expected belongs beside it."""
    from ..groups import MIN_IMAGES

    decile = found.worst_decile()
    if decile:
        low, high = decile["chance_95"]
        say(
            "worst 10 %",
            f"{percent(decile['error'])} misread, mean of the worst {decile['groups']} of "
            f"{decile['of']:,} groups with {MIN_IMAGES} images or more",
        )
        say(
            "",
            f"by chance, all groups being alike, it would be {percent(decile['chance'])} "
            f"({100 * low:.2f} to {percent(high)})",
        )
    if found.small.any():
        say(
            "warning",
            f"{found.small.sum():,} of {len(found):,} groups have fewer than {MIN_IMAGES} images: "
            "their figures say little",
        )


def _table(columns, rows):
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)
