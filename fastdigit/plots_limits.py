"""Pictures of the limits of a network: corruptions, and groups that are read worse.

Errors of all functions: as in :mod:`fastdigit.plots`.
"""

import numpy as np

from . import plots
from .corruptions import CORRUPTIONS, STRENGTHS
from .groups import MIN_IMAGES

FEW = 30  # groups that have a bar each
SIDE_BY_SIDE = 3  # digits in each cell of a sheet
GAP = 3  # pixels between the cells
COLOURS = ("#c0392b", "#2c5d9b", "#1a7f5a", "#b07d12", "#7d3c98", "#16a0b0", "#7a5230", "#555555")


def corruption_sheet(images, path, seed=0):
    """A row for each corruption, a column for each strength, the same digits in all cells."""
    figure = plots._figure(12.6, 6)
    figure.suptitle("Corruptions, from mild to hard", fontsize=14)
    _draw_sheet(figure, images[:SIDE_BY_SIDE], STRENGTHS, seed)
    plots._save(figure, path)


def robustness(found, images, path):
    """Left: accuracy against strength, a line for each corruption. Right: what they do to a digit.

    ``found`` is a ``CorruptionRobustness`` and ``images`` u8[N,H,W] are those that it is of.
    """
    figure = plots._figure(13, 6.2)
    figure.suptitle(
        f"{100 * found.clean:.2f} % of {found.images:,} images right as they are, "
        f"{100 * found.mean:.2f} % corrupted, on average",
        fontsize=14,
    )
    left, right = figure.subfigures(1, 2, width_ratios=(1, 0.76))
    axes = left.subplots()
    strengths = (0, *found.strengths)
    colours = dict(zip(CORRUPTIONS, COLOURS, strict=True))
    # The best first: the legend in the order of the lines.
    for name, values in sorted(found.accuracy.items(), key=lambda item: -found.mean_of[item[0]]):
        shares = [100 * share for share in (found.clean, *values)]
        label = f"{name}, mean {100 * found.mean_of[name]:.1f} %"
        axes.plot(strengths, shares, color=colours[name], marker="o", markersize=4, label=label)
    axes.set(xlabel="strength (0: as they are)", ylabel="accuracy, %", ylim=(0, 102))
    axes.set_xticks(strengths)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize=10)
    _draw_sheet(right, images[:1], found.strengths, found.seed)
    plots._save(figure, path)


def _draw_sheet(figure, images, strengths, seed):
    """A single picture of all cells: an axes for each would take matplotlib seconds to lay out."""
    count, height, width = images.shape
    down, right = height + GAP, count * width + GAP
    columns = ("as it is", *strengths)
    sheet = np.full((len(CORRUPTIONS) * down - GAP, len(columns) * right - GAP), np.nan)
    for row, corrupt in enumerate(CORRUPTIONS.values()):
        for column, strength in enumerate(columns):
            shown = images if column == 0 else corrupt(images, strength, seed)
            cell = sheet[row * down : row * down + height, column * right : (column + 1) * right - GAP]
            cell[:] = np.concatenate(list(shown), axis=1)
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks(down * np.arange(len(CORRUPTIONS)) + height / 2, CORRUPTIONS, fontsize=11)
    axes.set_xticks(right * np.arange(len(columns)) + (right - GAP) / 2, columns, fontsize=11)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def groups(found, by, path):
    """Few groups: the error rate of each with its 95 % interval, the worst on top. Many: the error rates in
    order, beside the order that chance alone would give if all groups were equally hard.

    ``found`` is a ``GroupAccuracy``, ``by`` says what the groups are.
    """
    few = len(found) <= FEW
    figure = plots._figure(9, 1.8 + 0.3 * len(found) if few else 5)
    (_draw_bars if few else _draw_curve)(figure, found, by)
    plots._save(figure, path)


def _draw_bars(figure, found, by):
    axes = figure.subplots()
    errors, (low, high) = 100 * (1 - found.accuracy), 100 * (1 - found.interval[:, ::-1].T)
    where = np.arange(len(found))
    axes.barh(where, errors, 0.6, color=plots.WRONG, alpha=0.75)
    axes.errorbar(
        errors, where, xerr=np.maximum(0, [errors - low, high - errors]), fmt="none", color="0.2", capsize=3
    )
    names = [
        f"{name} ({count:,} images{', too few' if small else ''})"
        for name, count, small in zip(found.names, found.count, found.small, strict=True)
    ]
    axes.set_yticks(where, names)
    axes.invert_yaxis()
    pooled = 100 * (1 - found.correct.sum() / found.count.sum())
    axes.axvline(pooled, color="0.4", linewidth=1, linestyle=":")
    # The whiskers of small groups may leave the picture: they would make all others too short to see.
    most = high[~found.small].max(initial=0) or high.max()
    axes.set(xlabel="misread, %, and its 95 % interval", xlim=(0, max(1.05 * most, 1.02 * errors.max())))
    axes.set_title(f"Misread by {by} (dotted: {pooled:.2f} % of all)", fontsize=13)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(figure, found, by):
    axes = figure.subplots()
    large = found.count >= MIN_IMAGES
    if not large.any():
        axes.set_title(f"No group has {MIN_IMAGES} images: nothing to show", fontsize=13)
        axes.set_axis_off()
        return
    rank = np.arange(1, 1 + large.sum())
    chance = 100 * found.by_chance()
    low, high = np.quantile(chance, (0.025, 0.975), axis=0)
    axes.fill_between(rank, low, high, color="0.85", step="mid", label="95 % range by chance")
    axes.step(rank, chance.mean(axis=0), where="mid", color="0.5", label="by chance, all groups being alike")
    axes.step(rank, 100 * (1 - found.accuracy[large]), where="mid", color=plots.WRONG, label="measured")
    axes.set(
        xlabel=f"{by}, the worst first", ylabel="misread, %", ylim=(0, None), xlim=(0.5, len(rank) + 0.5)
    )
    left_out = f"; {found.small.sum():,} with fewer left out" if found.small.any() else ""
    axes.set_title(
        f"Misread by {by}: {len(rank):,} groups of at least {MIN_IMAGES} images{left_out}", fontsize=13
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
