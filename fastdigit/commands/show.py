"""``fastdigit show``: pictures that need no network."""

from pathlib import Path
from typing import Annotated

import typer

from .common import DataName, Debug, say

show = typer.Typer(
    help="Draw what training and tests do to images (needs matplotlib).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@show.command()
def corruptions(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: .png, .jpg, .pdf, .svg.")],
    data: DataName = "digits",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of what is drawn by chance.")] = 0,
    debug: Debug = False,
):
    """Digits under every corruption of [bold]evaluate --corruptions[/bold], in five strengths.

    The table on top of fastdigit/corruptions.py says what each strength means.

    [bold]Examples[/bold]
      fastdigit show corruptions --out corruptions.png
      fastdigit show corruptions --data mnist --seed 1 --out sheet.pdf
    """
    from .. import plots, plots_limits
    from ..runs import load_data

    plots.check(out)
    plots_limits.corruption_sheet(load_data(data).test.images, out, seed)
    say("picture", out)
