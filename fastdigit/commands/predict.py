"""``fastdigit predict``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from .common import BackendName, Debug, RejectBelow, complain, load_model, percent

MAX_STDIN = 256 * 2**20  # bytes; no picture is larger, an endless stream is


def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE…", help="Pictures of one digit each; - reads one from stdin."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A run's folder or a .safetensors file. [dim]default: the newest in runs/[/dim]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    reject_below: RejectBelow = None,
    backend: BackendName = None,
    steps: Annotated[
        Path | None,
        typer.Option(
            "--steps",
            metavar="FILE.png",
            help="Draw how the first image was prepared (needs matplotlib).",
        ),
    ] = None,
    debug: Debug = False,
):
    """Read the digit in pictures.

    Photos, scans or drawings of one digit each, dark on light or light on dark.

    [bold]Examples[/bold]
      fastdigit predict seven.png
      fastdigit predict *.jpg --model runs/001 --json
      curl -s https://example.org/digit.png | fastdigit predict -
      fastdigit predict photo.jpg --steps prepared.png
      fastdigit predict *.png --reject-below 0.9
    """
    from ..datasets import prepare_steps

    if steps:
        from .. import plots

        plots.check(steps)
    net, path, run = load_model(model, backend)
    if model is None:  # say which one was taken
        trained_on = f", trained on {run.read_settings().data}" if run else ""
        digits = " ".join(map(str, net.classes))
        print(f"model {path}: digits {digits}{trained_on}", file=sys.stderr)
    prepared, answers, failed = {}, {}, False
    for name in dict.fromkeys(images):
        try:
            prepared[name] = prepare_steps(_stdin() if name == "-" else name)
        except DataError as error:
            failed = True
            problem = str(error).removeprefix("the bytes given: " if name == "-" else f"{name}: ")
            answers[name] = {"image": name, "error": problem}
            complain(f"{name}: {problem}")
    if prepared:
        import numpy as np

        digits = np.stack([pictures["centred"] for pictures in prepared.values()])
        for name, probabilities in zip(prepared, net.predict_proba(digits), strict=True):
            answers[name] = {"image": name, **_guesses(net.classes, probabilities)}
            if reject_below is not None:
                answers[name]["rejected"] = answers[name]["probability"] < reject_below
    answers = [answers[name] for name in images]
    if as_json:
        print(json.dumps(answers, indent=2))
    else:
        _show_answers(answers)
    if steps and prepared:
        first = next(iter(prepared))
        plots.preparation_steps(prepared[first], steps)
    return 1 if failed else 0


def _stdin():
    """What comes in on stdin, all of it."""
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise DataError(f"more than {MAX_STDIN // 2**20} MiB on stdin: give one picture")
    return data


def _guesses(classes, probabilities):
    """The most probable digit and, where there is one, the runner-up."""
    best, *others = probabilities.argsort(kind="stable")[::-1][:2]
    guesses = {"label": int(classes[best]), "probability": float(probabilities[best])}
    for other in others:
        guesses["runner_up"] = int(classes[other])
        guesses["runner_up_probability"] = float(probabilities[other])
    return guesses


def _show_answers(answers):
    """One line for each image that could be read."""
    width = max(len(answer["image"]) for answer in answers)
    for answer in answers:
        if "error" in answer:
            continue
        label = f"?  perhaps {answer['label']}" if answer.get("rejected") else answer["label"]
        line = f"{answer['image']:{width}}  {label}  {percent(answer['probability']):>8}"
        if "runner_up" in answer:
            line += f"   then {answer['runner_up']} {percent(answer['runner_up_probability']):>8}"
        print(line)
