"""``fastdigit show``: pictures of what happens to images."""

from pathlib import Path
from typing import Annotated

import typer

from .common import DataName, Debug, say

show = typer.Typer(
    name="show",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Draw what is done to images (needs matplotlib).",
)


@show.command()
def augment(
    strengths: Annotated[
        str,
        typer.Argument(
            metavar="STRENGTHS", help="standard, or such as rotation=10,elastic=1.2: as for train --augment."
        ),
    ] = "standard",
    data: DataName = "digits",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the random numbers.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture.")] = Path("augment.png"),
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
