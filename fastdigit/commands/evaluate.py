"""``fastdigit evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .common import (
    BackendName,
    DataName,
    Debug,
    JsonFile,
    ModelName,
    Split,
    accuracy_of,
    load_network,
    percent,
    result_of,
    say,
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
    debug: Debug = False,
):
    """Measure how good a network is.

    Shows accuracy, figures for each digit, and what is taken for what.
    The data is what the network was trained on, unless --data names other.

    [bold]Examples[/bold]
      fastdigit evaluate
      fastdigit evaluate runs/001 --png mistakes.png
      fastdigit evaluate digits.safetensors --data mnist --json result.json
    """
    from ..evaluation import evaluate
    from ..runs import load_data, only_classes

    if png_file:
        from .. import plots

        plots.check(png_file)
    net, path, run = load_network(model, backend)
    if data is None and run is None:
        raise ConfigError(f"{path} does not say what it was trained on: add --data digits, mnist or a folder")
    name = data or run.read_settings().data
    whole = getattr(load_data(name), split)
    images = only_classes(whole, net.classes)
    evaluation = evaluate(net, images)
    say("model", path)
    say("data", f"{name}, {split}: {len(images):,} images")
    if len(images) < len(whole):
        digits = " ".join(map(str, net.classes))
        say("", f"only those of the network's digits {digits}; {len(whole) - len(images):,} others left out")
    say("accuracy", accuracy_of(evaluation))
    _show_tables(evaluation)
    if json_file:
        write_json(json_file, result_of(evaluation, path, name, split))
        say("figures", json_file)
    if png_file:
        plots.confusion_and_mistakes(evaluation, images.images, png_file)
        say("picture", png_file)


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
