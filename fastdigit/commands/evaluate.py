"""``fastdigit evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import limits
from .common import (
    BackendName,
    DataName,
    Debug,
    JsonFile,
    ModelName,
    RejectBelow,
    Split,
    accuracy_of,
    load_model,
    members_of,
    percent,
    result_of,
    say,
    say_members,
    write_json,
)


def evaluate(
    model: ModelName = None,
    data: DataName = None,
    split: Split = "test",
    backend: BackendName = None,
    json_file: JsonFile = None,
    png_file: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Draw what is misread (needs matplotlib)."),
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="How it reads rotated, noisy, hidden … digits.")
    ] = False,
    corruptions_png: Annotated[
        Path | None,
        typer.Option("--corruptions-png", metavar="FILE", help="Draw that; implies --corruptions."),
    ] = None,
    series: Annotated[
        int | None,
        typer.Option(metavar="0|4", help="MNIST: only images by census employees (0) or students (4)."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="series|writer|FILE",
            help="Whose digits are read worse: MNIST's writers, or a file with a value for each image.",
        ),
    ] = None,
    groups_png: Annotated[
        Path | None, typer.Option("--groups-png", metavar="FILE", help="Draw that; needs --by.")
    ] = None,
    reject_below: RejectBelow = None,
    error_rate: Annotated[
        float | None,
        typer.Option(
            "--error-rate",
            metavar="SHARE",
            help="Answer so few images that this share of the answers is wrong: 0.005, say.",
            min=0,
            max=1,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="FILE", help="Draw what its probabilities are worth (needs matplotlib)."
        ),
    ] = None,
    ambiguous: Annotated[
        Path | None,
        typer.Option(
            "--ambiguous", metavar="FILE", help="Draw the least clear images and the surest mistakes."
        ),
    ] = None,
    debug: Debug = False,
):
    """Measure how good a network is.

    Shows accuracy, figures for each digit, and what is taken for what.
    The data is what the network was trained on, unless --data names other.

    [bold]Examples[/bold]
      fastdigit evaluate
      fastdigit evaluate runs/001 --png mistakes.png
      fastdigit evaluate digits.safetensors --data mnist --json result.json
      fastdigit evaluate --corruptions
      fastdigit evaluate reader --by writer --groups-png writers.png
      fastdigit evaluate runs/001 --error-rate 0.005
      fastdigit evaluate runs/001 --calibration trust.png --ambiguous unclear.png
    """
    import numpy as np

    from ..evaluation import evaluate
    from ..runs import load_data, only_classes

    if reject_below is not None and error_rate is not None:
        raise ConfigError("--reject-below gives a threshold and --error-rate looks for one: leave one out")
    if groups_png and by is None:
        raise ConfigError("--groups-png draws what --by shows: add --by series, writer or a file")
    for picture in filter(None, (png_file, corruptions_png, groups_png, calibration, ambiguous)):
        from .. import plots

        plots.check(picture)
    net, path, run = load_model(model, backend)
    if data is None and run is None:
        raise ConfigError(f"{path} does not say what it was trained on: add --data digits, mnist or a folder")
    name = data or run.read_settings().data
    whole, groups = _chosen(getattr(load_data(name), split), name, split, series, by)
    images = only_classes(whole, net.classes)
    evaluation = evaluate(net, images)
    say("model", path)
    only = "" if series is None else f", series {series}"
    say("data", f"{name}, {split}{only}: {len(images):,} images")
    if len(images) < len(whole):
        digits = " ".join(map(str, net.classes))
        say("", f"only those of the network's digits {digits}; {len(whole) - len(images):,} others left out")
    say("accuracy", accuracy_of(evaluation))
    more = members_of(net, images)
    say_members(more)
    if reject_below is not None or error_rate is not None:
        more["answered"] = _answered(evaluation, reject_below, error_rate, net, run)
    if calibration:
        more["calibration"] = _calibration(evaluation)
    _show_tables(evaluation)
    result = result_of(evaluation, path, name, split)
    if series is not None:
        result["series"] = series
    if by is not None:
        groups = groups[np.isin(whole.labels, net.classes)]
        result["groups"] = limits.groups(evaluation, groups, by, groups_png)
    if corruptions or corruptions_png:
        result["corruptions"] = limits.corruptions(net, images, corruptions_png)
    if json_file:
        write_json(json_file, {**result, **more})
        say("figures", json_file)
    if png_file:
        plots.confusion_and_mistakes(evaluation, images.images, png_file)
        say("picture", png_file)
    if calibration:
        plots.calibration(evaluation, calibration)
        say("picture", calibration)
    if ambiguous:
        plots.ambiguous_digits(evaluation, images.images, ambiguous)
        say("picture", ambiguous)


def _answered(evaluation, reject_below, error_rate, net, run):
    """Say what becomes of the images if unsure answers are withheld, and return it for JSON."""
    from ..calibration import risk_coverage
    from ..evaluation import evaluate

    curve, threshold, source = risk_coverage(evaluation), reject_below, "--reject-below"
    if threshold is None:
        held_back = run and run.held_back(net)
        if held_back:
            source = f"the {len(held_back[1]):,} images that the training held back"
            threshold = risk_coverage(evaluate(net, held_back)).threshold_for_error(error_rate)
        else:
            source = "these very images, which flatters: train with --validation 0.1"
            threshold = curve.threshold_for_error(error_rate)
    answered = curve.at(threshold)
    wrong = "" if answered.error is None else f", {percent(answered.error)} of the answers wrong"
    say(
        "answered",
        f"{answered.answered:,} images ({percent(answered.coverage)}){wrong}; {answered.rejected:,} rejected",
    )
    say("threshold", f"{100 * threshold:.4g} % probability, from {source}")
    return {**answered.as_dict(), "threshold_from": source}


def _calibration(evaluation):
    """Say how far probabilities are from what they claim, and return it for JSON."""
    from ..calibration import log_loss, reliability, risk_coverage

    bins, loss = reliability(evaluation), log_loss(evaluation)
    say(
        "calibration",
        f"error {percent(bins.error)}, loss {loss:.4f} at temperature {evaluation.temperature:.4g}",
    )
    return {
        "temperature": evaluation.temperature,
        "loss": loss,
        **bins.as_dict(),
        "risk_coverage": risk_coverage(evaluation).as_dict(),
    }


def _chosen(images, name, split, series, by):
    """(images, the group of each) of a series, or all; the groups are None where nothing is asked by."""
    from ..runs import groups_of, of_series, writers_of

    groups = None if by is None else groups_of(by, name, split, images.labels)
    if series is not None:
        kept = of_series(writers_of(name, split, images.labels), series)
        images, groups = images.take(kept), None if groups is None else groups[kept]
    return images, groups


def _show_tables(evaluation):
    """Figures per class, and the confusion matrix: readable without colours, in 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("digit", "precision", "recall", "F1", "images"):
        table.add_column(column, justify="right")
    for row in evaluation.per_class:
        shares = (percent(row[name]) for name in ("precision", "recall", "f1"))
        table.add_row(str(row["label"]), *shares, f"{row['count']:,}")
    console.print(table)

    console.print("how many images of each digit (rows) were taken for which (columns):")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for label in evaluation.classes:
        table.add_column(str(label), justify="right")
    for row, counts in enumerate(evaluation.confusion):
        cells = [
            "." if count == 0 else f"[bold]{count}[/bold]" if row == column else f"[red]{count}[/red]"
            for column, count in enumerate(counts)
        ]
        table.add_row(f"[bold]{evaluation.classes[row]}[/bold]", *cells)
    console.print(table)
