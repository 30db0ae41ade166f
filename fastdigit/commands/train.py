"""``fastdigit train``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import CheckpointError, ConfigError, DataError
from .common import (
    BackendName,
    DataName,
    Debug,
    accuracy_of,
    members_of,
    quoted,
    result_of,
    say,
    say_members,
    this_command,
    write_json,
)


def _option(panel, name, metavar, help, default=None, **more):
    """An option of ``train`` that has no value unless the user gives one; ``default`` is only shown."""
    shown = f"{help} [dim]default: {default}[/dim]" if default else help
    return typer.Option(name, metavar=metavar, help=shown, rich_help_panel=panel, show_default=False, **more)


def train(
    context: typer.Context,
    data: DataName = None,
    classes: Annotated[str | None, _option("Data", "--classes", "0,1,…", "Only these digits.", "all")] = None,
    validation: Annotated[
        float | None,
        _option("Data", "--validation", "SHARE", "Hold this share of the images back: 0.1, say."),
    ] = None,
    series: Annotated[
        int | None,
        _option("Data", "--series", "0|4", "MNIST: only those by census employees (0) or students (4)."),
    ] = None,
    balance: Annotated[
        Literal["series", "writer", "class"] | None,
        _option("Data", "--balance", "series|writer|class", "Let each of these groups count alike."),
    ] = None,
    balance_by: Annotated[
        Literal["weight", "resample"] | None,
        _option(
            "Data",
            "--balance-by",
            "weight|resample",
            "Weigh images, or draw as many of each group.",
            "weight",
        ),
    ] = None,
    members: Annotated[
        int | None,
        _option(
            "Network", "--members", "N", "A committee of so many networks, each of its own seed.", "1", min=1
        ),
    ] = None,
    hidden: Annotated[
        str | None, _option("Network", "--hidden", "512,256,…", "Sizes of the hidden layers.", "128")
    ] = None,
    dropout: Annotated[
        float | None,
        _option("Network", "--dropout", "SHARE", "Of hidden outputs to drop.", "0, small data 0.3"),
    ] = None,
    augment: Annotated[
        str | None,
        _option(
            "Data",
            "--augment",
            "standard|NAME=STRENGTH,…",
            "Deform images anew each time by rotation, scale, shear, shift, elastic, smoothness, thickness, "
            "noise, erase, faint; see [bold]fastdigit show augment[/bold].",
        ),
    ] = None,
    input_dropout: Annotated[
        float | None, _option("Network", "--input-dropout", "SHARE", "Of pixels to drop.", "0")
    ] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "bf16x3"] | None,
        _option(
            "Network",
            "--precision",
            "NAME",
            "Of products while training, as the backend offers: float32, bf16 …",
            "float32",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        _option("Training", "--epochs", "N", "Times through the data.", "6, more for small data", min=1),
    ] = None,
    batch_size: Annotated[
        int | None,
        _option("Training", "--batch-size", "N", "Images in one step.", "128; 32 for small data", min=1),
    ] = None,
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"] | None,
        _option("Training", "--optimizer", "NAME", "sgd, adam or adamw.", "sgd"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        _option(
            "Training",
            "--learning-rate",
            "RATE",
            "At its peak.",
            "0.2; 0.1 for batches below 128; adam, adamw 0.005",
        ),
    ] = None,
    momentum: Annotated[
        float | None, _option("Training", "--momentum", "SHARE", "Of the last update; sgd only.", "0.9")
    ] = None,
    nesterov: Annotated[
        bool | None,
        _option("Training", "--nesterov/--no-nesterov", None, "Nesterov's momentum; sgd only.", "yes"),
    ] = None,
    weight_decay: Annotated[
        float | None,
        _option("Training", "--weight-decay", "RATE", "Pull towards 0.", "0, small data 0.001, adamw 0.01"),
    ] = None,
    schedule: Annotated[
        Literal["constant", "step", "cosine", "onecycle"] | None,
        _option(
            "Training",
            "--schedule",
            "NAME",
            "Of the learning rate: constant, step, cosine or onecycle.",
            "onecycle",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        _option("Training", "--label-smoothing", "SHARE", "Of each label to spread over all classes.", "0"),
    ] = None,
    max_norm: Annotated[
        float | None, _option("Training", "--max-norm", "LENGTH", "Shorten each unit's weights to this.")
    ] = None,
    average: Annotated[
        float | None,
        _option("Training", "--average", "DECAY", "Keep a running mean of the weights: 0.999, say."),
    ] = None,
    clip_norm: Annotated[
        float | None, _option("Training", "--clip-norm", "LENGTH", "Shorten longer gradients to this.")
    ] = None,
    adversary: Annotated[
        Literal["fgsm", "pgd"] | None,
        _option(
            "Adversary", "--adversary", "NAME", "Attack each batch first: fgsm (one step) or pgd (many)."
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        _option("Adversary", "--epsilon", "NUMBER", "How far it may move a pixel of 0 … 1: 0.1, say."),
    ] = None,
    adversary_steps: Annotated[
        int | None, _option("Adversary", "--adversary-steps", "N", "Of pgd.", "7", min=1)
    ] = None,
    adversary_step: Annotated[
        float | None,
        _option("Adversary", "--adversary-step", "NUMBER", "Length of one, of pgd.", "2.5 epsilon / steps"),
    ] = None,
    clean_share: Annotated[
        float | None, _option("Adversary", "--clean-share", "SHARE", "Of a batch to leave as it is.", "0")
    ] = None,
    early_stopping: Annotated[
        int | None,
        _option(
            "Training",
            "--early-stopping",
            "PATIENCE",
            "Stop after so many epochs without a better validation accuracy; implies --validation 0.1.",
            min=1,
        ),
    ] = None,
    seed: Annotated[
        int | None, _option("Training", "--seed", "N", "Of all random numbers.", "0", min=0)
    ] = None,
    backend: BackendName = None,
    out: Annotated[
        Path | None, _option("Run", "--out", "FOLDER", "Where to save.", "runs/001, runs/002, …")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        _option(
            "Run",
            "--checkpoint-every",
            "STEPS",
            "Save the state after so many steps too, not only after every epoch.",
            min=1,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        _option(
            "Run",
            "--resume",
            "FOLDER",
            "Go on with an interrupted run, bit for bit; --epochs may be raised.",
        ),
    ] = None,
    png: Annotated[
        Path | None, _option("Run", "--png", "FILE", "Draw the curves at the end (needs matplotlib).")
    ] = None,
    quiet: Annotated[bool, _option("Run", "--quiet", None, "Show only the result.")] = False,
    debug: Debug = False,
):
    """Train a network, test it and save it.

    The folder of the run holds the network, its test result, the log, and what it takes to go on.

    [bold]Examples[/bold]
      fastdigit train
      fastdigit train --data mnist --hidden 512,256 --dropout 0.2
      fastdigit train --data mnist --classes 0,1
      fastdigit train --data mnist --hidden 800 --augment standard --epochs 30
      fastdigit train --data mnist --balance series
      fastdigit train --data mnist --adversary pgd --epsilon 0.1
      fastdigit train --optimizer adamw --early-stopping 5 --epochs 200
      fastdigit train --data mnist --members 7 --validation 0.1
      fastdigit train --resume runs/001
    """
    from dataclasses import fields, replace

    from ..runs import Run, Settings

    if png:
        from .. import plots

        plots.check(png)
    names = {field.name for field in fields(Settings)}
    chosen = {name: value for name, value in context.params.items() if name in names and value is not None}
    if resume is None:
        settings, dataset = _new_settings(chosen)
    else:
        if out is not None:
            raise ConfigError("--resume saves where the run is: leave out --out")
        run = Run(resume)
        settings, dataset = _resumed_settings(run, chosen)
    networks = settings.networks(dataset.train.images[0].size)
    settings = replace(settings, backend=networks[0].backend.name)
    options = settings.fit_options()
    if resume is None:
        run = Run.create(settings, out)
    else:
        _check_resumable(run, networks, settings)
    if not quiet:
        _show_plan(run, settings, dataset, networks[0], automatic=backend is None and resume is None)
    try:
        _train(run, settings, dataset, networks, options, resume is not None, quiet, png)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: fastdigit train --resume {quoted(run.folder)}", file=sys.stderr)
        return 130
    return 0


def _new_settings(chosen):
    """(settings, data) of a new run from what the user chose."""
    import numpy as np

    from ..runs import DATA, Settings, training_data

    chosen = {"data": "digits", "backend": "auto", **chosen}
    if "hidden" in chosen:
        chosen["hidden"] = _whole_numbers("--hidden", chosen["hidden"])
    if "classes" in chosen:
        chosen["classes"] = _whole_numbers("--classes", chosen["classes"])
        if len(set(chosen["classes"])) < max(2, len(chosen["classes"])):
            raise ConfigError("--classes needs at least two different digits, such as 0,1")
    dataset = training_data(chosen["data"], chosen.get("classes"), chosen.get("series"))
    if chosen["data"] not in DATA:
        chosen["data"] = str(Path(chosen["data"]).resolve())  # a run may be resumed from elsewhere
    chosen.setdefault("classes", np.unique(dataset.train.labels).tolist())
    return Settings.complete(len(dataset.train), **chosen), dataset


def _resumed_settings(run, chosen):
    """(settings, data) of a run that goes on. More epochs make it incomplete again."""
    from dataclasses import replace

    from ..runs import training_data

    foreign = [f"--{name.replace('_', '-')}" for name in chosen if name not in ("epochs", "backend")]
    if foreign:
        raise ConfigError(f"--resume takes the settings of the run: leave out {', '.join(foreign)}")
    settings = run.read_settings()
    dataset = training_data(settings.data, settings.classes, settings.series)
    if chosen.get("epochs", settings.epochs) < settings.epochs:
        raise ConfigError(f"{run.folder} is a run of {settings.epochs} epochs: --epochs can only raise that")
    return replace(settings, **chosen), dataset


def _check_resumable(run, networks, settings):
    """Only when the checkpoints are known to be sound is anything in the folder changed."""
    from ..checkpoint import load_checkpoint

    if run.complete and settings.epochs == run.read_settings().epochs:
        return
    for net, (checkpoint, _) in zip(networks, run.trainings(len(networks)), strict=True):
        if checkpoint.exists():
            load_checkpoint(checkpoint, net)
        elif run.model.exists():
            raise CheckpointError(f"{checkpoint} is gone: this run cannot go on, start a new one")
    run.write_settings(settings)
    run.result.unlink(missing_ok=True)


def _whole_numbers(option, text):
    """ "512,256" → [512, 256]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} takes whole numbers with commas between them, such as 1,2, not {text!r}"
        ) from None


def _show_plan(run, settings, dataset, net, automatic):
    """What is about to be trained, in five or six lines."""
    shape = "×".join(map(str, dataset.train.images.shape[1:]))
    held_back = f", {100 * settings.validation:g} % of them for validation" if settings.validation else ""
    say(
        "data",
        f"{settings.data}: {len(dataset.train):,} training images{held_back}, {len(dataset.test):,} test "
        f"images, {shape}, digits {' '.join(map(str, settings.classes))}",
    )
    if settings.series is not None:
        say("", f"trained on series {settings.series} alone, tested on all")
    if settings.balance is not None:
        how = {"weight": "by weights", "resample": "by drawing as many of each"}[settings.balance_by]
        say("", f"each {settings.balance} counts alike, {how}")
    committee = f"a committee of {settings.members}, each " if settings.members > 1 else ""
    sizes = "-".join(map(str, net.layer_sizes))
    rounded = f", products in {net.precision}" if net.precision != "float32" else ""
    say("network", f"{committee}{sizes}, {net.layout.parameter_count:,} parameters{rounded}")
    say(
        "training",
        f"{settings.epochs} epochs, batches of {settings.batch_size}, {settings.optimizer}, "
        f"{settings.schedule} learning rate {settings.learning_rate:g}",
    )
    if settings.adversary:
        say("adversary", _adversary_in_words(settings))
    say("backend", f"{net.backend.name} ({net.backend.device}){', chosen by auto' if automatic else ''}")
    say("folder", run.folder)


def _adversary_in_words(settings):
    steps = f", {settings.adversary_steps} steps" if settings.adversary == "pgd" else ""
    clean = f", {100 * settings.clean_share:g} % of each batch left clean" if settings.clean_share else ""
    return f"{settings.adversary}, epsilon {settings.epsilon:g}{steps}{clean}: figures below are under attack"


def _tell_of_overfitting(settings):
    """A callback of ``fit`` that says so once, with what helps and is not used yet."""
    unused = [
        option
        for option, used in (
            ("--augment standard", settings.augment),
            ("--dropout 0.5", settings.dropout),
            ("--input-dropout 0.2", settings.input_dropout),
            ("--early-stopping 5", settings.early_stopping),
        )
        if not used
    ]
    told = []

    def tell(net, log):
        if log.overfitting and not told:
            told.append(log.overfitting)
            say(
                "overfit",
                f"since epoch {log.overfitting} the validation loss rises while the training loss falls: "
                f"try {', '.join([*unused, 'or more images'] if unused else ['more images'])}",
            )

    return tell


def _train(run, settings, dataset, networks, options, resumed, quiet, png):
    """Train what is not trained yet, then test, save and show the result."""
    from ..checkpoint import load_checkpoint, load_model
    from ..committee import Committee
    from ..evaluation import evaluate

    if run.complete:
        first, _ = run.trainings(len(networks))[0]
        log = load_checkpoint(first, networks[0]).log if png else None
        model = load_model(run.model, backend=networks[0].backend)
        say("complete", "this run is trained to its end; --epochs N trains it further")
    else:
        log = _fit(run, settings, dataset, networks, options, resumed, quiet)
        model = networks[0] if len(networks) == 1 else Committee(networks)
        model.save(run.model)
    evaluation, members = evaluate(model, dataset.test), members_of(model, dataset.test)
    write_json(run.result, {**result_of(evaluation, run.model, dataset.name, "test"), **members})
    say_members(members)
    say("test", accuracy_of(evaluation))
    say("model", run.model)
    if png:
        from .. import plots

        plots.training_curve(log, png)
        say("picture", png)
    if not quiet:
        say("next", f"{this_command()} evaluate {quoted(run.folder)}")


def _fit(run, settings, dataset, networks, options, resumed, quiet):
    """Train the networks one after the other, on the same data: the log of the first.

    What is trained to its end is only read.
    """
    from ..progress import Progress
    from ..training import fit

    logs = []
    try:
        data = settings.prepare(networks[0], dataset)
        for number, (checkpoint, log_file) in enumerate(run.trainings(len(networks))):
            net = networks[number]
            if len(networks) > 1 and not quiet:
                say("member", f"{number + 1} of {len(networks)}, seed {net.seed}")
            log = fit(
                net,
                data,
                seed=net.seed,
                checkpoint=checkpoint,
                log_file=log_file,
                resume=resumed,
                progress=None if quiet else Progress(),
                callbacks=() if quiet else _tell_of_overfitting(settings),
                **options,
            )
            logs.append(log)
            if log.stopped:
                say("stopped", f"{log.stopped}; the weights of epoch {log.best_epoch} are kept")
    except (ConfigError, DataError):
        # These come before the first step: what the user has to correct leaves no run behind.
        if not resumed:
            run.discard(len(networks))
        raise
    return logs[0]
