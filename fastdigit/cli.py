"""The ``fastdigit`` command: train, evaluate, predict, info.

What a command needs is imported inside its function, so that ``--help`` is there at once.
"""

import json
import os
import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import __version__
from .bench.commands import bench as bench_commands
from .errors import CheckpointError, ConfigError, DataError, FastdigitError

MAX_STDIN = 256 * 2**20  # bytes; no picture is larger, an endless stream is

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
            _complain(message)
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


def _complain(message):
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


# --- options that several commands have -----------------------------------------------------------


def _show_version(wanted: bool):
    if wanted:
        print(f"fastdigit {__version__}")
        raise typer.Exit


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
      fastdigit info                        [dim]what can compute here[/dim]
    """


app.add_typer(bench_commands, name="bench")


# --- train ----------------------------------------------------------------------------------------


def _option(panel, name, metavar, help, default=None, **more):
    """An option of ``train`` that has no value unless the user gives one; ``default`` is only shown."""
    shown = f"{help} [dim]default: {default}[/dim]" if default else help
    return typer.Option(name, metavar=metavar, help=shown, rich_help_panel=panel, show_default=False, **more)


@app.command()
def train(
    context: typer.Context,
    data: DataName = None,
    classes: Annotated[str | None, _option("Data", "--classes", "0,1,…", "Only these digits.", "all")] = None,
    validation: Annotated[
        float | None,
        _option("Data", "--validation", "SHARE", "Hold this share of the images back: 0.1, say."),
    ] = None,
    hidden: Annotated[
        str | None, _option("Network", "--hidden", "512,256,…", "Sizes of the hidden layers.", "128")
    ] = None,
    dropout: Annotated[
        float | None,
        _option("Network", "--dropout", "SHARE", "Of hidden outputs to drop.", "0, small data 0.3"),
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
    clip_norm: Annotated[
        float | None, _option("Training", "--clip-norm", "LENGTH", "Shorten longer gradients to this.")
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
    quiet: Annotated[bool, _option("Run", "--quiet", None, "Show only the result.")] = False,
    debug: Debug = False,
):
    """Train a network, test it and save it.

    The folder of the run holds the network, its test result, the log, and what it takes to go on.

    [bold]Examples[/bold]
      fastdigit train
      fastdigit train --data mnist --hidden 512,256 --dropout 0.2
      fastdigit train --data mnist --classes 0,1
      fastdigit train --optimizer adamw --early-stopping 5 --epochs 200
      fastdigit train --resume runs/001
    """
    from dataclasses import fields, replace

    from .runs import Run, Settings

    names = {field.name for field in fields(Settings)}
    chosen = {name: value for name, value in context.params.items() if name in names and value is not None}
    if resume is None:
        settings, dataset = _new_settings(chosen)
    else:
        if out is not None:
            raise ConfigError("--resume saves where the run is: leave out --out")
        run = Run(resume)
        settings, dataset = _resumed_settings(run, chosen)
    net = settings.network(dataset.train.images[0].size)
    settings = replace(settings, backend=net.backend.name)
    options = settings.fit_options()
    if resume is None:
        run = Run.create(settings, out)
    else:
        _check_resumable(run, net, settings)
    if not quiet:
        _show_plan(run, settings, dataset, net, automatic=backend is None and resume is None)
    try:
        _train(run, dataset, net, options, resume is not None, quiet)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: fastdigit train --resume {_quoted(run.folder)}", file=sys.stderr)
        return 130
    return 0


def _new_settings(chosen):
    """(settings, data) of a new run from what the user chose."""
    import numpy as np

    from .runs import DATA, Settings, training_data

    chosen = {"data": "digits", "backend": "auto", **chosen}
    if "hidden" in chosen:
        chosen["hidden"] = _whole_numbers("--hidden", chosen["hidden"])
    if "classes" in chosen:
        chosen["classes"] = _whole_numbers("--classes", chosen["classes"])
        if len(set(chosen["classes"])) < max(2, len(chosen["classes"])):
            raise ConfigError("--classes needs at least two different digits, such as 0,1")
    dataset = training_data(chosen["data"], chosen.get("classes"))
    if chosen["data"] not in DATA:
        chosen["data"] = str(Path(chosen["data"]).resolve())  # a run may be resumed from elsewhere
    chosen.setdefault("classes", np.unique(dataset.train.labels).tolist())
    return Settings.complete(len(dataset.train), **chosen), dataset


def _resumed_settings(run, chosen):
    """(settings, data) of a run that goes on. More epochs make it incomplete again."""
    from dataclasses import replace

    from .runs import training_data

    foreign = [f"--{name.replace('_', '-')}" for name in chosen if name not in ("epochs", "backend")]
    if foreign:
        raise ConfigError(f"--resume takes the settings of the run: leave out {', '.join(foreign)}")
    settings = run.read_settings()
    dataset = training_data(settings.data, settings.classes)
    if chosen.get("epochs", settings.epochs) < settings.epochs:
        raise ConfigError(f"{run.folder} is a run of {settings.epochs} epochs: --epochs can only raise that")
    return replace(settings, **chosen), dataset


def _check_resumable(run, net, settings):
    """Only when the checkpoint is known to be sound is anything in the folder changed."""
    from .checkpoint import load_checkpoint

    if run.complete and settings.epochs == run.read_settings().epochs:
        return
    if run.checkpoint.exists():
        load_checkpoint(run.checkpoint, net)
    elif run.model.exists():
        raise CheckpointError(f"{run.checkpoint} is gone: this run cannot go on, start a new one")
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
    """What is about to be trained, in five lines."""
    shape = "×".join(map(str, dataset.train.images.shape[1:]))
    held_back = f", {100 * settings.validation:g} % of them for validation" if settings.validation else ""
    _say(
        "data",
        f"{settings.data}: {len(dataset.train):,} training images{held_back}, {len(dataset.test):,} test "
        f"images, {shape}, digits {' '.join(map(str, settings.classes))}",
    )
    _say("network", f"{'-'.join(map(str, net.layer_sizes))}, {net.layout.parameter_count:,} parameters")
    _say(
        "training",
        f"{settings.epochs} epochs, batches of {settings.batch_size}, {settings.optimizer}, "
        f"{settings.schedule} learning rate {settings.learning_rate:g}",
    )
    _say("backend", f"{net.backend.name} ({net.backend.device}){', chosen by auto' if automatic else ''}")
    _say("folder", run.folder)


def _train(run, dataset, net, options, resumed, quiet):
    """Train what is not trained yet, then test, save and show the result."""
    from .evaluation import evaluate
    from .network import Network
    from .progress import Progress
    from .training import fit

    if run.complete:
        net = Network.load(run.model, backend=net.backend)
        _say("complete", "this run is trained to its end; --epochs N trains it further")
    else:
        try:
            log = fit(
                net,
                dataset.train,
                checkpoint=run.checkpoint,
                log_file=run.log,
                resume=resumed,
                progress=None if quiet else Progress(),
                **options,
            )
        except (ConfigError, DataError):
            # These come before the first step: what the user has to correct leaves no run behind.
            if not resumed:
                run.discard()
            raise
        net.save(run.model)
        if log.stopped:
            _say("stopped", f"{log.stopped}; the weights of epoch {log.best_epoch} are kept")
    evaluation = evaluate(net, dataset.test)
    _write_json(run.result, _result(evaluation, run.model, dataset.name, "test"))
    _say("test", _accuracy(evaluation))
    _say("model", run.model)
    if not quiet:
        _say("next", f"{_this_command()} evaluate {_quoted(run.folder)}")


def _this_command():
    """How to call this program again: with its path where its name alone is not found."""
    called = Path(sys.argv[0])
    return _quoted(called) if called.name == "fastdigit" and not shutil.which("fastdigit") else "fastdigit"


# --- evaluate -------------------------------------------------------------------------------------


@app.command()
def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="A run's folder or a .safetensors file. [dim]default: the newest in runs/[/dim]",
            show_default=False,
        ),
    ] = None,
    data: DataName = None,
    split: Annotated[Literal["test", "train"], typer.Option(help="Which half of the data.")] = "test",
    backend: BackendName = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to a JSON file.")
    ] = None,
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
    from .evaluation import evaluate
    from .runs import load_data, only_classes

    if png_file:
        from . import plots

        plots.check(png_file)
    net, path, run = _load_network(model, backend)
    if data is None and run is None:
        raise ConfigError(f"{path} does not say what it was trained on: add --data digits, mnist or a folder")
    name = data or run.read_settings().data
    whole = getattr(load_data(name), split)
    images = only_classes(whole, net.classes)
    evaluation = evaluate(net, images)
    _say("model", path)
    _say("data", f"{name}, {split}: {len(images):,} images")
    if len(images) < len(whole):
        digits = " ".join(map(str, net.classes))
        _say("", f"only those of the network's digits {digits}; {len(whole) - len(images):,} others left out")
    _say("accuracy", _accuracy(evaluation))
    _show_tables(evaluation)
    if json_file:
        _write_json(json_file, _result(evaluation, path, name, split))
        _say("figures", json_file)
    if png_file:
        plots.confusion_and_mistakes(evaluation, images.images, png_file)
        _say("picture", png_file)


def _load_network(path, backend):
    """(network, its file, its run or None)."""
    from .network import Network
    from .runs import find_model

    path, run = find_model(path)
    return Network.load(path, backend=backend or "auto"), path, run


def _result(evaluation, model, data, split):
    return {"model": str(model), "data": data, "split": split, **evaluation.as_dict()}


def _accuracy(evaluation):
    low, high = evaluation.interval
    return (
        f"{_percent(evaluation.accuracy)} of {evaluation.count:,} images right "
        f"(95 % interval {100 * low:.2f} to {_percent(high)})"
    )


def _percent(share):
    return f"{100 * share:.2f} %"


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
        shares = (_percent(row[name]) for name in ("precision", "recall", "f1"))
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


# --- predict --------------------------------------------------------------------------------------


@app.command()
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
    """
    from .datasets import prepare_steps

    if steps:
        from . import plots

        plots.check(steps)
    net, path, run = _load_network(model, backend)
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
            _complain(f"{name}: {problem}")
    if prepared:
        import numpy as np

        digits = np.stack([pictures["centred"] for pictures in prepared.values()])
        for name, probabilities in zip(prepared, net.predict_proba(digits), strict=True):
            answers[name] = {"image": name, **_guesses(net.classes, probabilities)}
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
        line = f"{answer['image']:{width}}  {answer['label']}  {_percent(answer['probability']):>8}"
        if "runner_up" in answer:
            line += f"   then {answer['runner_up']} {_percent(answer['runner_up_probability']):>8}"
        print(line)


# --- info -----------------------------------------------------------------------------------------


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
):
    """Show what this machine offers.

    Versions, processor, backends, data: also what a bug report needs.

    [bold]Examples[/bold]
      fastdigit info
      fastdigit info --json > machine.json
    """
    from .info import gather

    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    cpu, mnist = facts["cpu"], facts["mnist"]
    _say("fastdigit", f"{facts['fastdigit']}, Python {facts['python']}, {facts['system']}")
    _say("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    _say("processor", f"{cpu['name']} ({cpu['llvm_name']}), {cpu['cores']} cores, {cpu['threads']} threads")
    _say("simd", " ".join(cpu["simd"]) or "none known")
    for name, state in facts["backends"].items():
        _say(name, f"ok, {state['device']}" if state["usable"] else f"no: {state['reason']}")
    named = facts["FASTDIGIT_BACKEND"]
    source = "" if named is None else f", named by FASTDIGIT_BACKEND={named}"
    _say("auto", facts["auto"].get("backend", facts["auto"].get("error")) + source)
    absent = "downloaded when needed" if mnist["downloadable"] else "which FASTDIGIT_DATA names"
    _say("mnist", mnist["folder"] if mnist["found"] else f"not in {mnist['folder']}, {absent}")


# --- output ---------------------------------------------------------------------------------------


def _say(what, text):
    """One line: what it is about, then the fact."""
    print(f"{what:<10} {text}", flush=True)


def _quoted(path):
    return shlex.quote(str(path))


def _write_json(path, value):
    from .files import atomic_write

    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())
