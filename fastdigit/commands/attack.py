"""``fastdigit attack``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import ConfigError, check_number
from .common import (
    BackendName,
    DataName,
    Debug,
    JsonFile,
    ModelName,
    Split,
    load_network,
    percent,
    say,
    write_json,
)

EXAMPLES = 8  # in the picture
LOOKED_AT = 500  # images that they are chosen from


def attack(
    model: ModelName = None,
    epsilon: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER,…",
            help="How far an image may be moved. [dim]default: 0.05,0.1,0.2; with l2 0.5,1,2[/dim]",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Literal["pgd", "fgsm"], typer.Option(help="Many small steps, or a single one.")
    ] = "pgd",
    norm: Annotated[
        Literal["linf", "l2"],
        typer.Option(help="Epsilon is for each pixel (linf), or for all together (l2)."),
    ] = "linf",
    steps: Annotated[int, typer.Option(help="Of pgd.", min=1)] = 40,
    step: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Length of a step of pgd. [dim]default: 2.5 epsilon / steps[/dim]",
            show_default=False,
        ),
    ] = None,
    restarts: Annotated[int, typer.Option(help="Random places that pgd starts from.", min=1)] = 1,
    targeted: Annotated[
        int | None,
        typer.Option(
            metavar="DIGIT", help="Have the images of all others taken for this.", show_default=False
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the first N images.", min=1, show_default=False),
    ] = None,
    transfer: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Another network, whose adversarial images are tried on this one in the checks. "
            "[dim]default: a small one is trained[/dim]",
            show_default=False,
        ),
    ] = None,
    checks: Annotated[bool, typer.Option(help="Check whether the attack is to be believed.")] = True,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random numbers.", min=0)] = 0,
    data: DataName = None,
    split: Split = "test",
    backend: BackendName = None,
    json_file: JsonFile = None,
    png_file: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Draw examples and the curve (needs matplotlib)."),
    ] = None,
    debug: Debug = False,
):
    """See how little it takes to mislead a network.

    Moves images as far as epsilon allows, away from what they show, and counts
    how many are still read right. Checks tell whether the attack is a good one.

    [bold]Examples[/bold]
      fastdigit attack
      fastdigit attack runs/001 --epsilon 0.1 --step 0.01 --png attacked.png
      fastdigit attack --method fgsm --epsilon 0.1,0.25
      fastdigit attack --norm l2 --restarts 3 --images 1000
      fastdigit attack --targeted 3 --json attacked.json
    """
    from ..datasets import Images
    from ..robust import EPSILONS, adversarial_robustness
    from ..runs import load_data, only_classes

    chosen = _method(method, step, steps=steps, restarts=restarts, norm=norm, targeted=targeted is not None)
    epsilons = EPSILONS[norm] if epsilon is None else _numbers(epsilon)
    if png_file:
        from .. import plots

        plots.check(png_file)
    net, path, run = load_network(model, backend)
    if data is None and run is None:
        raise ConfigError(f"{path} does not say what it was trained on: add --data digits, mnist or a folder")
    name = data or run.read_settings().data
    whole = load_data(name)
    shown = only_classes(getattr(whole, split), net.classes)
    shown = Images(shown.images[:images], shown.labels[:images])
    other = _other(transfer, backend, whole.train, net, seed) if checks else None
    say("model", path)
    say("data", f"{name}, {split}: {len(shown):,} images")
    say("attack", _in_words(chosen))
    found = adversarial_robustness(
        net, shown, chosen, epsilons, target=targeted, checks=checks, other=other, seed=seed
    )
    _show(found)
    if json_file:
        write_json(json_file, {"model": str(path), "data": name, "split": split, **found.as_dict()})
        say("figures", json_file)
    if png_file:
        middle = sorted(epsilons)[len(epsilons) // 2]
        plots.adversarial_examples(found, _examples(net, shown, found, middle, seed), middle, png_file)
        say("picture", png_file)


def _method(name, step, steps, restarts, **common):
    """The record of a method; its epsilon is replaced later. Errors: ConfigError for options of another."""
    from ..attacks import FGSM, PGD

    if name == "pgd":
        return PGD(1.0, step=step, steps=steps, restarts=restarts, **common)
    if step is not None or restarts > 1:
        raise ConfigError("--step and --restarts belong to pgd: leave them out with --method fgsm")
    return FGSM(1.0, **common)


def _numbers(text):
    """ "0.05,0.1" → (0.05, 0.1)."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--epsilon takes numbers with commas between them, such as 0.05,0.1, not {text!r}"
        ) from None
    for number in numbers:
        check_number("--epsilon", number, "(0, inf)")
    return numbers


def _other(path, backend, train, net, seed):
    """The network to transfer attacks from: that of a file, or a small one."""
    from ..robust import substitute
    from ..runs import only_classes

    if path is None:
        return substitute(only_classes(train, net.classes), net.classes, seed + 1)
    other, path, _ = load_network(path, backend)
    if other.layer_sizes[0] != net.layer_sizes[0] or set(other.classes) != set(net.classes):
        raise ConfigError(f"--transfer {path} reads other images or digits than the network: name another")
    return other


def _in_words(method):
    ball = "each pixel by at most epsilon" if method.norm == "linf" else "by a length of at most epsilon"
    if not method.noise:
        return f"FGSM, one step, {ball}"
    step = f"{2.5 / method.steps:g} epsilon" if method.step is None else f"{method.step:g}"
    restarts = f", {method.restarts} random starts" if method.restarts > 1 else ""
    return f"PGD, {method.steps} steps of {step}{restarts}, {ball}"


def _show(found):
    """A table of what is left, and the checks: readable without colours, in 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    target = found.target
    for column in ("epsilon", "read right", "95 % interval", *([] if target is None else [f"as {target}"])):
        table.add_column(column, justify="right")
    table.add_row("0", percent(found.clean))
    for each in found.attacked:
        low, high = each.interval
        row = [f"{each.epsilon:g}", percent(each.accuracy), f"{100 * low:.2f} to {percent(high)}"]
        table.add_row(*row, *([] if target is None else [percent(each.reached)]))
    console.print(table)
    for check in found.checks:
        say("passed" if check.passed else "FAILED", check.name)
        if not check.passed:
            say("", f"expected: {check.meaning}")
    if not found.believable:
        say("", "so stronger attacks may find more: try more steps, restarts, another step")


def _examples(net, shown, found, epsilon, seed):
    """Of different digits as far as there are any: (image, moved, label, guess, its probability)."""
    from dataclasses import replace

    import numpy as np

    from ..attacks import attack

    images, labels = shown.images[:LOOKED_AT], shown.labels[:LOOKED_AT]
    if found.target is not None:
        images, labels = images[labels != found.target], labels[labels != found.target]
    wanted = labels if found.target is None else np.full(len(labels), found.target)
    moved = attack(net, images, wanted, replace(found.method, epsilon=epsilon), seed=seed)
    before, after = net.predict(images), net.predict_proba(moved)
    guesses = net.classes[after.argmax(axis=1)]
    misled = np.flatnonzero((before == labels) & (guesses != labels))
    # The first of each digit, then the second …
    rank = [int((labels[misled[:i]] == labels[index]).sum()) for i, index in enumerate(misled)]
    misled = misled[np.argsort(rank, kind="stable")][:EXAMPLES]
    misled = misled[np.argsort(labels[misled], kind="stable")]
    return [(images[i] / 255, moved[i], labels[i], guesses[i], after[i].max()) for i in misled]
