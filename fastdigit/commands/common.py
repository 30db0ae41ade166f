"""Options, figures and lines that several commands share."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
BackendName = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="What computes: a name from [bold]fastdigit info[/bold]."),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="digits|mnist|FOLDER",
        help="1,797 digits that need no download, MNIST, or your own four idx files.",
    ),
]
ModelName = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="A run's folder or a .safetensors file. [dim]default: the newest in runs/[/dim]",
        show_default=False,
    ),
]
Split = Annotated[Literal["test", "train"], typer.Option(help="Which half of the data.")]
RejectBelow = Annotated[
    float | None,
    typer.Option(
        "--reject-below",
        metavar="P",
        help="Give no answer that is less probable than this: 0.9, say.",
        min=0,
        max=1,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to a JSON file.")
]


def say(what, text):
    """One line: what it is about, then the fact."""
    print(f"{what:<10} {text}", flush=True)


def quoted(path):
    return shlex.quote(str(path))


def write_json(path, value):
    from ..files import atomic_write

    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def complain(message):
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def this_command():
    """How to call this program again: with its path where its name alone is not found."""
    called = Path(sys.argv[0])
    return quoted(called) if called.name == "fastdigit" and not shutil.which("fastdigit") else "fastdigit"


def load_network(path, backend):
    """(network, its file, its run or None). Errors: CheckpointError, also for a committee."""
    from ..network import Network
    from ..runs import find_model

    path, run = find_model(path)
    return Network.load(path, backend=backend or "auto"), path, run


def load_model(path, backend):
    """(network or committee, its file, its run or None)."""
    from ..checkpoint import load_model
    from ..runs import find_model

    path, run = find_model(path)
    return load_model(path, backend=backend or "auto"), path, run


def members_of(model, images):
    """The accuracy of each member of a committee alone, and their mean, for JSON; nothing of a network."""
    from ..committee import Committee
    from ..evaluation import evaluate

    if not isinstance(model, Committee):
        return {}
    accuracies = [evaluate(net, images).accuracy for net in model.networks]
    return {"members": accuracies, "members_mean": sum(accuracies) / len(accuracies)}


def say_members(figures):
    """The line for what :func:`members_of` gave, if that is something."""
    if figures:
        each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in figures["members"])
        say("members", f"{each} %; mean {percent(figures['members_mean'])}")


def result_of(evaluation, model, data, split):
    return {"model": str(model), "data": data, "split": split, **evaluation.as_dict()}


def accuracy_of(evaluation):
    low, high = evaluation.interval
    return (
        f"{percent(evaluation.accuracy)} of {evaluation.count:,} images right "
        f"(95 % interval {100 * low:.2f} to {percent(high)})"
    )


def percent(share):
    return f"{100 * share:.2f} %"
