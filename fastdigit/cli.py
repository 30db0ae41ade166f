"""The ``fastdigit`` command. What a command needs is imported inside its function, so that ``--help`` is
there at once.
"""

import os
import sys
import traceback
from typing import Annotated

import typer

from . import __version__
from .bench.commands import bench as bench_commands
from .commands.attack import attack
from .commands.calibrate import calibrate
from .commands.common import Debug, complain
from .commands.evaluate import evaluate
from .commands.info import info
from .commands.predict import predict
from .commands.show import show
from .commands.train import train
from .errors import FastdigitError

app = typer.Typer(
    name="fastdigit",
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main(arguments=None):
    """Run the command with these arguments (by default the process's): the exit status.

    0: done. 1: it failed (data, files, divergence). 2: it was asked for wrongly (usage, options, a
    backend that cannot run here). 130: interrupted. An error is one line on stderr.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _make_output_safe()
    try:
        return app(arguments, prog_name="fastdigit", standalone_mode=False) or 0
    except (FastdigitError, typer.TyperException, OSError, MemoryError) as error:
        # Looked up in the raw arguments: a usage error comes before any option is known.
        if "--debug" in arguments:
            traceback.print_exc()
        message, status = _describe(error)
        if message:
            complain(message)
        return status


def _make_output_safe():
    """Whatever the terminal: characters that it cannot show become "?", and a closed one is no error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _describe(error):
    """(message, exit status) of an error that main() expects."""
    if isinstance(error, FastdigitError):
        return str(error), error.exit_status
    if isinstance(error, typer.TyperException):
        message = error.format_message().replace("Value error, ", "")  # pydantic's, in typer 0.29
        command = getattr(getattr(error, "ctx", None), "command_path", "fastdigit")
        # Without arguments at all, typer has shown the help and has no message.
        return message and f"{message.rstrip('.')}; see: {command} --help", error.exit_code
    if isinstance(error, MemoryError):
        return f"out of memory ({error}): try a smaller --hidden or --batch-size", 1
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}", 1


def _show_version(wanted: bool):
    if wanted:
        print(f"fastdigit {__version__}")
        raise typer.Exit


@app.callback()
def fastdigit(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
):
    """Train handwritten-digit classifiers with kernels written by hand in Python.

    Every command has its own --help.

    [bold]Examples[/bold]
      fastdigit train                       [dim]a network in a second, no download[/dim]
      fastdigit train --data mnist          [dim]98 % on MNIST[/dim]
      fastdigit evaluate --png errors.png   [dim]how good it is, what it misreads[/dim]
      fastdigit predict photo.jpg           [dim]which digit is this?[/dim]
      fastdigit attack --png attacked.png   [dim]how little misleads it[/dim]
      fastdigit info                        [dim]what can compute here[/dim]
    """


for command in (train, evaluate, calibrate, predict, attack, info):
    app.command()(command)
app.add_typer(show, name="show")
app.add_typer(bench_commands, name="bench")
