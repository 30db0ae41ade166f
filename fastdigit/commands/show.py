"""``fastdigit show``: pictures of what happens to images."""

from pathlib import Path
from typing import Annotated

import typer

from .common import DataName, Debug, say

show = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Draw what training and tests do to images (needs matplotlib).",
)

Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn by chance.", min=0)]
Picture = Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: .png, .jpg, .pdf, .svg.")]


@show.command()
def augment(
    strengths: Annotated[
        str,
        typer.Argument(
            metavar="STRENGTHS", help="standard, or such as rotation=10,elastic=1.2: as for train --augment."
        ),
    ] = "standard",
    data: DataName = "digits",
    seed: Seed = 0,
    out: Picture = Path("augment.png"),
    debug: Debug = False,
):
    """Draw digits as a training with --augment sees them.

    [bold]Examples[/bold]
      fastdigit show augment
      fastdigit show augment rotation=15,elastic=1.4 --data mnist --out deformed.png
    """
    from .. import plots
    from ..augmentation import Augment
    from ..runs import load_data

    plots.check(out)
    chosen = Augment.parse(strengths)
    plots.deformed_digits(load_data(data).train, chosen, out, seed=seed)
    say("strengths", chosen)
    say("picture", out)


@show.command()
def corruptions(
    data: DataName = "digits",
    seed: Seed = 0,
    out: Picture = Path("corruptions.png"),
    debug: Debug = False,
):
    """Digits under every corruption of [bold]evaluate --corruptions[/bold], in five strengths.

    The table on top of fastdigit/corruptions.py says what each strength means.

    [bold]Examples[/bold]
      fastdigit show corruptions
      fastdigit show corruptions --data mnist --seed 1 --out sheet.pdf
    """
    from .. import plots, plots_limits
    from ..runs import load_data

    plots.check(out)
    plots_limits.corruption_sheet(load_data(data).test.images, out, seed)
    say("picture", out)
