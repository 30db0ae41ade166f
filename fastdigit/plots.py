"""Pictures of what a network knows and does: PNG files, drawn by matplotlib.

Matplotlib is optional (``pip install 'fastdigit[plot]'``), and nothing of its global state is used.

Errors of all functions: MissingExtraError without matplotlib; OSError when the file cannot be
written; a file that stood there before is then intact.
"""

import io
import math
from pathlib import Path

import numpy as np

from .calibration import reliability, risk_coverage
from .errors import ConfigError, DataError, MissingExtraError
from .evaluation import wilson_interval
from .files import atomic_write

RIGHT, WRONG, VALIDATION = "#1a7f5a", "#c0392b", "#2c5d9b"
DPI = 150
FORMATS = ("png", "jpg", "pdf", "svg")


def confusion_and_mistakes(evaluation, images, path, count=24):
    """Left: how many images of each class were taken for which. Right: the ``count`` images that were
    misread with the most confidence, each with its label, the guess and the guess's probability.

    ``images`` u8[N,H,W] are those that ``evaluation`` is of.
    """
    figure = _figure(13, 6.6)
    low, high = evaluation.interval
    figure.suptitle(
        f"{100 * evaluation.accuracy:.2f} % of {evaluation.count:,} images right "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)",
        fontsize=15,
    )
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))
    _draw_confusion(left, evaluation)
    shown = _mistakes(evaluation, count)
    _draw_mistakes(right, evaluation, images, shown, columns=min(6, max(1, math.isqrt(2 * len(shown)))))
    _save(figure, path)


def first_layer_weights(net, path, count=40, evaluation=None, images=None):
    """What the first layer looks at: the weights of ``count`` hidden units as pictures.

    Red pixels make a unit more active, blue ones less. Chosen are the units with the most say (the
    largest product of the norms of incoming and outgoing weights); a label above each names the
    class that it speaks for most in the next layer, where that is the last one. With an
    ``evaluation`` and its ``images`` the misread images are shown below.

    Errors: DataError if the inputs of the network are no square pictures.
    """
    side = math.isqrt(net.layer_sizes[0])
    if side * side != net.layer_sizes[0]:
        raise DataError(f"{net.layer_sizes[0]} inputs are no square picture: its weights cannot be drawn")
    parameters = net.get_parameters()
    incoming = parameters["w1"]
    # A network without hidden layers has one unit per class, which speaks for nothing but it.
    outgoing = parameters.get("w2", np.eye(incoming.shape[1]))
    say = np.linalg.norm(incoming, axis=0) * np.linalg.norm(outgoing, axis=1)
    units = np.argsort(-say, kind="stable")[:count]
    votes = None
    if len(net.layer_sizes) <= 3:
        centred = outgoing - outgoing.mean(axis=1, keepdims=True)
        votes = centred.argmax(axis=1)
        units = units[np.argsort(votes[units], kind="stable")]

    columns = min(10, len(units))
    rows = math.ceil(len(units) / columns)
    heights = [1.35 * rows + 0.5]
    if evaluation is not None:
        misread = _mistakes(evaluation, 2 * columns)
        heights.append(1.6 * max(1, math.ceil(len(misread) / columns)) + 0.5)
    figure = _figure(1.15 * columns + 0.4, sum(heights))
    top, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel()
    sizes = "-".join(map(str, net.layer_sizes))
    top.suptitle(
        f"What the first layer of {sizes} looks at (red: ink speaks for it, blue: against)", fontsize=13
    )
    for axes, unit in zip(_grid(top, rows, columns, len(units)), units, strict=True):
        weights = incoming[:, unit].reshape(side, side)
        limit = np.abs(weights).max()
        axes.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
        if votes is not None:
            axes.set_title(f"for {net.classes[votes[unit]]}", fontsize=10, pad=3)
    for part in below:
        _draw_mistakes(part, evaluation, images, misread, columns)
    _save(figure, path)


def calibration(evaluation, path):
    """What the probabilities of a network are worth. Left: how often answers are right that claim to be so
    with a certain probability. Middle: how many answers claim what. Right: how many are wrong if the least
    sure ones are withheld.
    """
    figure = _figure(15, 4.8)
    bins = reliability(evaluation)
    figure.suptitle(
        f"{evaluation.count:,} images at temperature {evaluation.temperature:.4g}: "
        f"expected calibration error {100 * bins.error:.2f} %",
        fontsize=14,
    )
    left, middle, right = figure.subplots(1, 3)
    _draw_reliability(left, bins)
    correct = evaluation.predicted == evaluation.targets
    for what, part, colour in (("right", correct, RIGHT), ("wrong", ~correct, WRONG)):
        confidence, edges = 100 * evaluation.confidence[part], np.linspace(0, 100, 41)
        middle.hist(confidence, edges, color=colour, alpha=0.6, label=f"{what} ({part.sum():,})")
    middle.set(yscale="log", xlabel="probability of the answer, %", ylabel="answers")
    curve = risk_coverage(evaluation)
    right.plot(100 * curve.coverage, 100 * curve.error, color=WRONG)
    right.set(
        xlabel="share of the images that is answered, %", ylabel="wrong among the answers, %", ylim=(0, None)
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (left, middle):
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    _save(figure, path)


def ambiguous_digits(evaluation, images, path, count=24):
    """Above: the ``count`` images whose two most probable classes are closest to each other, with both, their
    probabilities, and the digit meant. Below: those misread with the most confidence.

    ``images`` u8[N,H,W] are those that ``evaluation`` is of. Errors: also DataError for a single class.
    """
    if len(evaluation.classes) < 2:
        raise DataError("a network with a single class is never in two minds")
    columns = 8
    unclear = np.argsort(evaluation.margin, kind="stable")[:count]
    misread = _mistakes(evaluation, count)
    heights = [1.75 * math.ceil(len(part) / columns) + 0.6 for part in (unclear, misread)]
    figure = _figure(1.5 * columns, sum(heights))
    top, below = figure.subfigures(2, 1, height_ratios=heights)
    top.suptitle("least clear (the two best guesses; below, the digit meant)", fontsize=13)
    rows = math.ceil(len(unclear) / columns)
    for axes, index in zip(_grid(top, rows, columns, len(unclear)), unclear, strict=True):
        p, target = evaluation.probabilities[index], evaluation.targets[index]
        best, second = np.argsort(-p, kind="stable")[:2]
        guesses = (f"{evaluation.classes[guess]}: {100 * p[guess]:.0f} %" for guess in (best, second))
        axes.imshow(images[index], cmap="gray_r", vmin=0, vmax=255)
        axes.set_title("  ".join(guesses), fontsize=10, pad=3, color=RIGHT if best == target else WRONG)
        axes.set_xlabel(f"{evaluation.classes[target]}", fontsize=10, labelpad=2)
    _draw_mistakes(below, evaluation, images, misread, columns)
    _save(figure, path)


def preparation_steps(steps, path, title=None):
    """The stages of :func:`fastdigit.prepare_steps`, side by side, under ``title``."""
    explained = {
        "input": "the picture",
        "ink": "distance from\nthe background",
        "contrast": "noise and specks\nremoved",
        "cropped": "the box that\nholds the ink",
        "scaled": "longer side\n20 pixels",
        "centred": "28×28, centre of mass\nin the middle",
    }
    figure = _figure(2.3 * len(steps), 3.4 if title else 3.0)
    if title:
        figure.suptitle(title, fontsize=14)
    for axes, (name, pixels) in zip(_grid(figure, 1, len(steps), len(steps)), steps.items(), strict=True):
        # Not every stage is square; imshow wants [H,W] for grey.
        grey = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=12, fontweight="bold")
        axes.set_xlabel(explained.get(name, ""), fontsize=10)
        axes.set_anchor("N")  # the titles in one line
        axes.spines[:].set(visible=True, color="0.7")
    _save(figure, path)


def deformed_digits(images, augment, path, *, seed=0, columns=12):
    """A digit of each class and, beside it, how ``columns`` - 1 training steps see it.

    ``images``: what has images u8[N,H,W] and labels; ``augment``: a fastdigit.Augment.
    """
    first = [int(np.argmax(images.labels == label)) for label in np.unique(images.labels)]
    originals = images.images[first]
    shown = [originals, *(augment.apply(originals, seed=seed, step=step) for step in range(columns - 1))]
    figure = _figure(0.8 * columns, 0.8 * len(first) + 0.6)
    figure.suptitle(f"left: as they are; then deformed by {augment}", fontsize=11)
    axes = _grid(figure, len(first), columns, columns * len(first))
    for place, pixels in zip(
        axes, (column[row] for row in range(len(first)) for column in shown), strict=True
    ):
        place.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
    _save(figure, path)


def training_curve(log, path):
    """The loss of every step, and loss and accuracy after every epoch, of a ``TrainingLog``.

    Those of the validation images beside them, and a line where overfitting began.
    """
    if not log.epochs:
        raise DataError("the log has no epoch yet: train first")
    figure = _figure(11, 4.4)
    loss, accuracy = figure.subplots(1, 2)
    steps = np.arange(1, len(log.step_losses) + 1)
    steps_per_epoch = len(steps) / len(log.epochs)
    loss.plot(steps / steps_per_epoch, log.step_losses, color="0.75", linewidth=0.8, label="each step")
    epochs = [record.epoch for record in log.epochs]
    loss.plot(
        epochs, [r.loss for r in log.epochs], color=WRONG, marker="o", markersize=4, label="epoch's mean"
    )
    validated = log.epochs[0].validation_loss is not None
    if validated:
        held_back = [r.validation_loss for r in log.epochs]
        loss.plot(epochs, held_back, color=VALIDATION, marker="o", markersize=4, label="validation")
    loss.set(yscale="log", xlabel="epoch", ylabel="loss (cross-entropy)")

    accuracy.plot(
        epochs,
        [100 * r.accuracy for r in log.epochs],
        color=RIGHT,
        marker="o",
        markersize=4,
        label="training",
    )
    if validated:
        held_back = [100 * r.validation_accuracy for r in log.epochs]
        accuracy.plot(epochs, held_back, color=VALIDATION, marker="o", markersize=4, label="validation")
    accuracy.set(xlabel="epoch", ylabel="accuracy, %")
    for axes in (loss, accuracy):
        if log.overfitting:
            since = f"overfitting since epoch {log.overfitting}"
            axes.axvline(log.overfitting, color="0.4", linestyle="--", linewidth=1, label=since)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    _save(figure, path)


def adversarial_examples(robustness, examples, epsilon, path):
    """Left: images before and after an attack at one epsilon, what was added between them, and what the
    network took each for, with the probability. Right: the accuracy that is left at each epsilon.

    ``robustness`` is a :class:`fastdigit.AdversarialRobustness`; ``examples`` a list of (image,
    adversarial image, label, guess, probability), the images [H,W] with pixels in 0 … 1.
    """
    columns = max(1, len(examples))
    figure = _figure(1.25 * columns + 5.2, 5)
    left, right = figure.subfigures(1, 2, width_ratios=(1.25 * columns + 0.4, 4.6))
    ball = (
        "no pixel moved by more than" if robustness.method.norm == "linf" else "moved by a length of at most"
    )
    left.suptitle(
        f"{ball} {epsilon:g}" if examples else f"nothing is misread within {epsilon:g}", fontsize=13
    )
    if examples:
        _draw_examples(left, examples)
    _draw_holding_out(right, robustness)
    _save(figure, path)


# --- parts ----------------------------------------------------------------------------------------


def _draw_reliability(axes, bins):
    """A bar for the accuracy of each bin with its 95 % interval, and what the answers in it claim."""
    accuracy, confidence = 100 * bins.accuracy, 100 * bins.confidence
    counts = zip(np.rint(bins.accuracy * bins.count), bins.count, strict=True)
    intervals = 100 * np.array([wilson_interval(right, count) for right, count in counts])
    axes.bar(
        100 * bins.low,
        accuracy,
        100 * (bins.high - bins.low),
        align="edge",
        color=RIGHT,
        alpha=0.35,
        edgecolor="white",
        label="right (with 95 % interval)",
    )
    axes.errorbar(
        confidence,
        accuracy,
        np.abs(intervals.T - accuracy),
        fmt="none",
        ecolor=RIGHT,
        elinewidth=1.2,
        capsize=2,
    )
    axes.plot([0, 100], [0, 100], color="0.5", linewidth=0.8, linestyle="--")
    axes.plot(confidence, confidence, "o", color=WRONG, markersize=4, label="claimed")
    axes.set(xlabel="probability of the answer, %", ylabel="%", xlim=(0, 100), ylim=(0, 105))


def _draw_examples(figure, examples):
    """Three rows: the image, what was added (its largest change in full colour), the sum."""
    count = len(examples)
    grid = _grid(figure, 3, count, 3 * count).reshape(3, count)
    for (above, between, below), (image, moved, label, guess, probability) in zip(
        grid.T, examples, strict=True
    ):
        change = moved - image
        limit = np.abs(change).max() or 1
        above.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        above.set_title(f"{label}", fontsize=12, color=RIGHT, pad=3)
        between.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
        between.set_title(f"× {1 / limit:.0f}", fontsize=9, color="0.4", pad=3)
        below.imshow(moved, cmap="gray_r", vmin=0, vmax=1)
        below.set_title(f"→ {guess}", fontsize=12, color=WRONG, pad=3)
        below.set_xlabel(f"{100 * probability:.0f} %", fontsize=9, labelpad=2)
    for axes, name in zip(grid[:, 0], ("before", "added", "after"), strict=True):
        axes.set_ylabel(name, fontsize=10)


def _draw_holding_out(figure, robustness):
    axes = figure.subplots()
    at = [0.0, *(each.epsilon for each in robustness.attacked)]
    left = [100 * robustness.clean, *(100 * each.accuracy for each in robustness.attacked)]
    axes.plot(at, left, color=WRONG, marker="o", markersize=5, label="read right")
    if robustness.target is not None:
        reached = [100 * each.reached for each in robustness.attacked]
        label = f"taken for {robustness.target}"
        axes.plot(at[1:], reached, color="#2c5d9b", marker="o", markersize=5, label=label)
        axes.legend(frameon=False)
    for epsilon, percent in zip(at, left, strict=True):
        axes.annotate(f"{percent:.1f}", (epsilon, percent), (5, 6), textcoords="offset points", fontsize=9)
    method = type(robustness.method).__name__
    axes.set(
        xlabel=f"epsilon ({robustness.method.norm})",
        ylabel="read right, %" if robustness.target is None else "images, %",
        ylim=(-4, 108),
    )
    axes.set_xlim(0, 1.12 * at[-1])
    axes.set_xticks(at, [f"{epsilon:g}" for epsilon in at])
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(f"{method}, {robustness.attacked[0].count:,} images", fontsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_confusion(figure, evaluation):
    """The confusion matrix; the colour is the share of the row, so that rare classes count as much."""
    counts, labels = evaluation.confusion, evaluation.classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = figure.subplots()
    # Mistakes are a few percent: on a scale up to 1 all of them would be white. The scale ends well
    # above the largest, so that black figures can be read on it.
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, shares)
    axes.imshow(np.where(mistakes > 0, mistakes, np.nan), cmap="Reds", vmin=0, vmax=1.6 * mistakes.max() or 1)
    size = 10 if len(labels) > 5 else 16
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            right = row == column
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=size,
                color=RIGHT if right else "black",
                fontweight="bold" if right else "normal",
            )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("taken for", fontsize=12)
    axes.set_ylabel("digit shown", fontsize=12)
    axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.8)
    axes.tick_params(which="both", length=0)


def _mistakes(evaluation, count):
    """Indices of the ``count`` misread images with the most probable wrong guesses, those first."""
    wrong = np.flatnonzero(evaluation.predicted != evaluation.targets)
    confidence = evaluation.probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")][:count]


def _draw_mistakes(figure, evaluation, images, shown, columns):
    """The images with the indices ``shown``: the digit, what it was taken for, how probable that was."""
    total = evaluation.count - evaluation.correct
    if total == 0:
        figure.suptitle("no image is misread", fontsize=13)
        return
    chosen = f", here the {len(shown)} most confident" if len(shown) < total else ""
    figure.suptitle(f"{total:,} misread{chosen} (digit shown → taken for)", fontsize=13)
    rows = math.ceil(len(shown) / columns)
    for axes, index in zip(_grid(figure, rows, columns, len(shown)), shown, strict=True):
        axes.imshow(images[index], cmap="gray_r", vmin=0, vmax=255)
        label, guess = (
            evaluation.classes[part[index]] for part in (evaluation.targets, evaluation.predicted)
        )
        axes.set_title(f"{label} → {guess}", fontsize=12, color=WRONG, pad=3)
        axes.set_xlabel(f"{100 * evaluation.probabilities[index].max():.0f} %", fontsize=9, labelpad=2)


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            f"pictures need matplotlib: pip install 'fastdigit[plot]' ({error})"
        ) from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _grid(figure, rows, columns, count):
    """The first ``count`` axes of a grid, without ticks and frames; the others are left empty."""
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in every:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return every[:count]


def check(path):
    """Errors that a picture for ``path`` would meet, before the work is done: ConfigError for a name
    that does not end in .png, .jpg, .pdf or .svg, MissingExtraError without matplotlib."""
    _format(path)
    _figure(1, 1)


def _format(path):
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ConfigError(f"{path}: the name of a picture must end in .{', .'.join(FORMATS)}")
    return kind


def _save(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=_format(path), dpi=DPI)
    atomic_write(path, buffer.getvalue())
