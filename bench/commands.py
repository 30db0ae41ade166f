"""``fastdigit bench`` and its commands."""

from pathlib import Path
from typing import Annotated

import typer

from fastdigit.errors import ConfigError

bench = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
DEFAULT = Path("fastdigit-bench.json")
# As in suite.PARTS, which is not imported before something is to be measured.
PARTS = {
    "start": "Seconds of importing, of compiling from nothing, and from a start to the first step.",
    "train": "Images per second of training, beside other libraries.",
    "predict": "Latency of one image and throughput of many, beside other libraries.",
    "accuracy": "Seconds of training to 97, 98, 98.5 and 99 % on MNIST.",
    "kernels": "Each operation of each backend, and how much of the processor's limit it reaches.",
    "profile": "Where the time of a training step goes, operation by operation.",
    "scaling": "How speed grows with threads, batch size, width and depth.",
    "gpu": "What runs on a GPU here.",
}


def _option(name, metavar, help, **more):
    return typer.Option(name, metavar=metavar, help=help, show_default=False, **more)


Quick = Annotated[bool, typer.Option("--quick", help="About a minute: two networks, few rounds.")]
Backends = Annotated[
    str | None, _option("--backend", "NAME,…", "Which of ours. [dim]default: all that run here[/dim]")
]
Networks = Annotated[
    str | None, _option("--network", "NAME,…", "Of small-64, small-128, medium-128, wide-256, deep-512.")
]
Batch = Annotated[int | None, _option("--batch", "N", "Train these networks with batches of N.", min=1)]
Rounds = Annotated[int | None, _option("--rounds", "N", "Turns of each side.", min=1)]
Seconds = Annotated[float | None, _option("--seconds", "S", "Of training in each turn.", min=0.05)]
Python = Annotated[
    str | None,
    _option("--python", "FILE", "Interpreter that has the others; see bench/requirements-peers.txt."),
]
Out = Annotated[
    Path | None,
    _option("--out", "FILE.json", f"The results; a page goes beside it. [dim]default: {DEFAULT}[/dim]"),
]
ResultFile = Annotated[Path, typer.Argument(metavar="FILE", help="Results of [bold]fastdigit bench[/bold].")]


@bench.callback()
def everything(
    context: typer.Context,
    quick: Quick = False,
    backend: Backends = None,
    network: Networks = None,
    batch: Batch = None,
    rounds: Rounds = None,
    seconds: Seconds = None,
    python: Python = None,
    out: Out = None,
):
    """Measure how fast this machine trains and predicts, beside other libraries.

    Without a command everything is measured, which takes most of an hour; --quick takes about a minute.
    Nothing else should run meanwhile. A library that is not installed is a row that says so.

    [bold]Examples[/bold]
      fastdigit bench --quick
      fastdigit bench train --network deep-512
      fastdigit bench kernels --backend cpu
      fastdigit bench report fastdigit-bench.json --html page.html
      fastdigit bench compare before.json after.json
    """
    if context.invoked_subcommand is None:
        _measure(None, quick, backend, network, batch, rounds, seconds, python, out or DEFAULT)


def _add(part, help):
    def measure(
        quick: Quick = False,
        backend: Backends = None,
        network: Networks = None,
        batch: Batch = None,
        rounds: Rounds = None,
        seconds: Seconds = None,
        python: Python = None,
        out: Out = None,
    ):
        _measure((part,), quick, backend, network, batch, rounds, seconds, python, out)

    bench.command(part, help=help)(measure)


for _part, _help in PARTS.items():
    _add(_part, _help)


def _settings(parts, quick, backend, network, batch, rounds, seconds, python):
    from . import suite

    chosen = {
        "parts": parts,
        "backends": _names(backend),
        "networks": _names(network),
        "batch": batch,
        "rounds": rounds,
        "seconds": seconds,
        "python": python,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return suite.Settings.quickly(**chosen) if quick else suite.Settings(**chosen)


def _measure(parts, quick, backend, network, batch, rounds, seconds, python, out):
    """Measure, show, and write where ``out`` says, if it does."""
    from . import report, suite

    settings = _settings(parts, quick, backend, network, batch, rounds, seconds, python).checked()
    if out is not None and not out.resolve().parent.is_dir():
        raise ConfigError(f"{out} cannot be written: make the folder {out.resolve().parent} first")
    save = None if out is None else lambda found: suite.write(out, found)
    results = suite.run(settings, _say, save)
    _show(results)
    if out is not None:
        page = out.with_suffix(".html")
        report.write_page(results, page)
        _say(f"results: {out}\npage:    {page}")


@bench.command()
def show(file: ResultFile = DEFAULT):
    """Show the tables of a file of results."""
    from . import suite

    _show(suite.read(file))


@bench.command("report")
def make_report(
    file: ResultFile = DEFAULT,
    html: Annotated[
        Path | None, _option("--html", "FILE", "The page. [dim]default: beside the results[/dim]")
    ] = None,
    png: Annotated[Path | None, _option("--png", "FOLDER", "PNG files of the charts.")] = None,
    readme: Annotated[
        Path | None, _option("--readme", "FILE", "Bring the tables in this file up to date.")
    ] = None,
):
    """Make the page, pictures and a README's tables anew from a file of results."""
    from . import report, suite

    results = suite.read(file)
    html = html or file.with_suffix(".html")
    report.write_page(results, html)
    _say(f"page:    {html}")
    for path in report.write_pictures(results, png) if png else ():
        _say(f"picture: {path}")
    if readme:
        _say(f"{readme}: {'brought up to date' if report.fill(readme, results) else 'is up to date'}")


@bench.command("compare")
def compare_two(
    first: Annotated[str, typer.Argument(metavar="BEFORE", help="Results, or a revision in git.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="AFTER", help="Results to hold against them.", show_default=False)
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", metavar="SHARE", help="To lose more than this is an error.", min=0, max=1
        ),
    ] = 0.05,
    backend: Backends = None,
    network: Networks = None,
    batch: Batch = None,
    rounds: Rounds = None,
    seconds: Seconds = None,
):
    """What became slower or faster; exit status 1 if something became slower.

    Two files: their speeds count relative to the processor's limit, measured in each run. A revision, in a
    clone of fastdigit: its training and the one at hand are measured, in turns.

    [bold]Examples[/bold]
      fastdigit bench compare before.json after.json
      fastdigit bench compare main --network small-128
    """
    from . import compare, revisions, suite

    if second is not None:
        results = suite.read(first), suite.read(second)
        rows, lost = compare.compare(*results), compare.missing(*results)
        apart = compare.apart(*results)
    elif Path(first).is_file():
        raise ConfigError(f"{first} is to be compared with a second file: name it too")
    else:
        settings = _settings(None, False, backend, network, batch, rounds, seconds, None).checked()
        how = settings.rounds, settings.seconds, settings.backends[0]
        data = suite.data_set()[1].train
        rows, lost, apart = revisions.measure(first, settings.chosen_networks(), data, *how), [], []
    slower = [row for row in rows if row.slower(threshold)]
    for row in sorted(rows, key=lambda row: row.ratio):
        word = "slower" if row in slower else "faster" if row.faster(threshold) else ""
        _say(f"{row.ratio:6.3f} ± {row.noise:.3f}  {row.name}  {word}".rstrip())
    for name in lost:
        _say(f"   gone         {name}")
    for name in apart:
        _say(f"   not compared {name}: in one run the cores were far apart")
    _say(f"{len(rows)} rows, {len(slower)} slower by more than {threshold:.0%} and their noise")
    return 1 if slower or lost or not rows else 0


def _names(text):
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _say(text):
    print(text, flush=True)


def _show(results):
    from rich.console import Console

    from . import tables

    console = Console(highlight=False)
    for table in tables.of_results(results):
        console.print()
        tables.show(table, console)
