"""The command as a user meets it: what it prints, what it leaves on disk, its exit status."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import fastdigit as fd
from fastdigit.cli import main
from fastdigit.plots import DPI
from fastdigit.runs import LATER

from .conftest import QUICK, contents, error_of

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def trained_on_two(tmp_path_factory):
    """A run on the digits 0 and 1 alone."""
    folder = tmp_path_factory.mktemp("two") / "run"
    assert main(["train", "--out", str(folder), "--classes", "0,1", "--epochs", "5", "--hidden", "16"]) == 0
    return folder


# --- help and usage -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate", "calibrate", "predict", "attack", "info"])
def test_help_shows_examples(command, capsys):
    assert main([command, "--help"]) == 0
    help_page = capsys.readouterr().out
    examples = help_page.partition("Examples")[2].partition("╭")[0]
    assert f"fastdigit {command}" in examples
    assert all(len(line) <= 80 for line in help_page.splitlines())


def test_help_names_all_commands(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    commands = ("train", "evaluate", "calibrate", "predict", "attack", "info")
    assert all(f"│ {command} " in page for command in commands)


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Usage: fastdigit" in captured.out
    assert captured.err == ""


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdigit {fd.__version__}\n"


def test_help_is_light():
    code = (
        "import sys; from fastdigit.cli import main; main(['--help']); "
        "heavy = {'numpy', 'numba', 'sklearn', 'PIL', 'matplotlib', 'pooch'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["train", "fastdigit --help"]),
        (["train", "--epohs", "3"], ["--epochs", "fastdigit train --help"]),
        (["train", "--epochs", "0"], ["--epochs", "1"]),
        (["train", "--epochs", "many"], ["--epochs", "integer"]),
        (["train", "--optimizer", "sdg"], ["sdg", "sgd", "adamw"]),
        (["train", "--data", "mnits"], ["mnits", "did you mean mnist?"]),
        (["train", "--data", "nowhere"], ["nowhere", "digits, mnist, or a folder"]),
        (["train", "--classes", "0,x"], ["--classes", "0,x"]),
        (["train", "--classes", "3"], ["--classes", "two"]),
        (["train", "--classes", "3,3"], ["--classes", "two"]),
        (["train", "--hidden", "0"], ["layer sizes"]),
        (["train", "--optimizer", "adam", "--momentum", "0.5"], ["--momentum", "adam"]),
        (["train", "--momentum", "1.5"], ["momentum", "1.5"]),
        (["train", "--momentum", "0", "--nesterov"], ["nesterov", "momentum"]),
        (["train", "--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["train", "--dropout", "1"], ["dropout", "1"]),
        (["train", "--members", "0"], ["--members", "1"]),
        (["train", "--members", "2", "--seed", "4294967295"], ["seed", "4294967296"]),
        (["train", "--validation", "2"], ["validation", "2"]),
        (["train", "--clip-norm", "0"], ["clip_norm", "0"]),
        (["train", "--adversary", "cw"], ["cw", "fgsm", "pgd"]),
        (["train", "--adversary", "pgd"], ["--epsilon", "0.1"]),
        (["train", "--adversary", "pgd", "--epsilon", "0"], ["epsilon", "0.0"]),
        (["train", "--epsilon", "0.1", "--clean-share", "0"], ["--epsilon, --clean-share", "--adversary"]),
        (["train", "--adversary", "fgsm", "--epsilon", "1", "--adversary-step", "2"], ["belong to pgd"]),
        (["train", "--adversary", "fgsm", "--epsilon", "1", "--clean-share", "1"], ["clean_share", "1.0"]),
        (["train", "--input-dropout", "1"], ["input_dropout", "1"]),
        (["train", "--precision", "half"], ["half", "bf16"]),
        (["train", "--precision", "bf16", "--backend", "numpy"], ["'bf16'", "float32, float64"]),
        (["train", "--label-smoothing", "1"], ["label_smoothing", "1"]),
        (["train", "--max-norm", "0"], ["max_norm", "0"]),
        (["train", "--average", "1"], ["--average", "1"]),
        (["train", "--png", "curves.txt"], ["curves.txt", ".png"]),
        (["train", "--backend", "quantum"], ["quantum", "numpy"]),
        (["train", "--series", "0"], ["digits", "--data mnist"]),
        (["train", "--balance", "writer"], ["digits", "--data mnist"]),
        (["train", "--balance", "pen"], ["pen", "series"]),
        (["train", "--balance-by", "weight"], ["--balance-by", "--balance"]),
        (
            ["train", "--balance", "class", "--balance-by", "resample", "--validation", "0.1"],
            ["--balance-by weight", "validation"],
        ),
        (["train", "--resume", "nowhere"], ["nowhere", "settings.json"]),
        (["train", "--resume", "x", "--out", "y"], ["--out"]),
        (["predict"], ["IMAGE"]),
    ],
    ids=lambda value: " ".join(value) if value[:1] in (["train"], ["predict"], ["trian"]) else "",
)
def test_a_wrong_request_is_one_line_and_status_2(arguments, words, capsys, tmp_path):
    line = error_of(capsys, arguments, status=2)
    assert all(word in line for word in words), line
    assert not list(tmp_path.glob("runs/*"))  # what was not trained leaves no run behind


def test_digits_that_the_data_lacks(capsys):
    assert "11" in error_of(capsys, ["train", "--classes", "1,11"], status=1)


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback(arguments, capsys):
    assert main([*arguments, "--backend", "quantum"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("error: ")


def test_backend_of_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("FASTDIGIT_BACKEND", "quantum")
    assert "FASTDIGIT_BACKEND" in error_of(capsys, ["train"], status=2)


# --- train ----------------------------------------------------------------------------------------


def accuracy_of(folder):
    return json.loads((folder / "evaluation.json").read_text())["accuracy"]


def test_train_by_default(capsys, tmp_path):
    """No option at all: 97 % on the digits data, in the next free folder, with all files."""
    assert main(["train"]) == 0
    output = capsys.readouterr().out
    run = tmp_path / "runs" / "001"
    assert {path.name for path in run.iterdir()} == {
        "settings.json",
        "checkpoint.safetensors",
        "model.safetensors",
        "log.jsonl",
        "evaluation.json",
    }
    assert accuracy_of(run) >= 0.97
    assert "784-128-10, 101,770 parameters" in output
    assert "1,437 training images" in output
    assert f"{100 * accuracy_of(run):.2f} % of 360 images right (95 % interval" in output
    assert "fastdigit evaluate runs/001" in output
    # Plain lines, one for each epoch, where stdout is no terminal.
    epochs = re.findall(r"^epoch +(\d+)/\d+  loss \d\.\d{4}  accuracy", output, re.MULTILINE)
    assert [int(epoch) for epoch in epochs] == list(range(1, len(epochs) + 1))
    assert json.loads((run / "settings.json").read_text())["epochs"] == len(epochs)
    assert "\x1b" not in output


def test_train_takes_the_next_free_folder(tmp_path):
    (tmp_path / "runs" / "007").mkdir(parents=True)
    (tmp_path / "runs" / "best").mkdir()
    assert main(["train", *QUICK, "--epochs", "1"]) == 0
    assert (tmp_path / "runs" / "008" / "model.safetensors").exists()


def test_train_two_digits(trained_on_two):
    net = fd.Network.load(trained_on_two / "model.safetensors")
    assert net.layer_sizes == (784, 16, 2)
    assert net.classes.tolist() == [0, 1]
    assert accuracy_of(trained_on_two) == 1


def test_train_quietly(capsys):
    assert main(["train", "--quiet", *QUICK, "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["test", "model"]
    assert captured.err == ""


def test_train_with_every_option(tmp_path):
    options = (
        "--hidden 24,16 --epochs 3 --batch-size 64 --optimizer adamw --learning-rate 0.002 "
        "--weight-decay 0.1 --schedule cosine --dropout 0.1 --clip-norm 2 --validation 0.2 "
        "--early-stopping 2 --seed 5 --checkpoint-every 7 --backend numpy --out here --classes 1,7,8 "
        "--balance class --augment shift=1 "
        "--adversary pgd --epsilon 0.1 --adversary-steps 2 --adversary-step 0.05 --clean-share 0.5 "
        "--input-dropout 0.05 --label-smoothing 0.1 --max-norm 3 --average 0.99 --precision float32"
    )
    assert main(["train", *options.split()]) == 0
    assert fd.Network.load("here/model.safetensors").input_dropout == 0.05
    settings = json.loads((tmp_path / "here" / "settings.json").read_text())
    assert settings == {
        "data": "digits",
        "classes": [1, 7, 8],
        "hidden": [24, 16],
        "epochs": 3,
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 0.002,
        "momentum": None,
        "nesterov": None,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "dropout": 0.1,
        "input_dropout": 0.05,
        "label_smoothing": 0.1,
        "max_norm": 3.0,
        "average": 0.99,
        "precision": "float32",
        "clip_norm": 2.0,
        "adversary": "pgd",
        "epsilon": 0.1,
        "adversary_steps": 2,
        "adversary_step": 0.05,
        "clean_share": 0.5,
        "validation": 0.2,
        "early_stopping": 2,
        "seed": 5,
        "backend": "numpy",
        "checkpoint_every": 7,
        "series": None,
        "balance": "class",
        "balance_by": "weight",
        "augment": "shift=1",
        "members": 1,
    }


def test_train_without_momentum(tmp_path):
    assert main(["train", "--momentum", "0", "--out", "run", *QUICK, "--epochs", "1"]) == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["momentum"], settings["nesterov"]) == (0.0, False)


def test_early_stopping_says_so(capsys):
    options = ("--early-stopping", "1", "--learning-rate", "0.5", "--schedule", "constant")
    assert main(["train", *options, "--epochs", "100", "--hidden", "32"]) == 0
    output = capsys.readouterr().out
    assert "10 % of them for validation" in output
    stopped = re.search(r"^stopped .* the weights of epoch (\d+) are kept$", output, re.MULTILINE)
    assert stopped
    assert int(stopped[1]) < 100


def test_overfitting_is_told_once_and_drawn(capsys, tmp_path):
    """Only what is not used yet is advised. A run that is complete is drawn again."""
    options = "--hidden 256 --dropout 0 --weight-decay 0 --optimizer adam --learning-rate 0.003 --out run"
    options += " --schedule constant --validation 0.8 --epochs 40 --input-dropout 0.01"
    assert main(["train", "--png", "curves.png", *options.split()]) == 0
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if line.startswith("overfit"))
    advice = "--augment standard, --dropout 0.5, --early-stopping 5, or more images"
    assert re.search(rf"since epoch \d+ .*: try {advice}$", line)
    assert output.count("picture    curves.png") == 1
    assert main(["train", "--resume", "run", "--png", "again.png"]) == 0
    for name in ("curves.png", "again.png"):
        with Image.open(name) as image:
            image.load()
            assert min(image.size) > 3 * DPI
    assert (tmp_path / "curves.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_divergence(capsys, tmp_path):
    options = ("--learning-rate", "1e30", "--schedule", "constant", *QUICK, "--quiet")
    assert "smaller learning rate" in error_of(capsys, ["train", *options], status=1)
    assert not (tmp_path / "runs" / "001" / "model.safetensors").exists()


def test_out_that_holds_a_run(trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert f"--resume {trained}" in error_of(capsys, ["train", "--out", trained, *QUICK], status=2)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_out_that_is_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("precious")
    line = error_of(capsys, ["train", "--out", "file"], status=1)
    assert "file: " in line
    assert "--out" in line
    assert (tmp_path / "file").read_text() == "precious"


def test_out_that_cannot_be_written(capsys, monkeypatch):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fastdigit.runs.atomic_write", refuse)
    line = error_of(capsys, ["train", "--out", "locked"], status=1)
    assert line == "error: locked: Permission denied; choose another folder with --out"


def test_data_in_a_folder(tmp_path, capsys):
    """Images of three digits only to train on: the network gets three outputs."""
    data = fd.load_digits()
    for half, name in ((data.train.subset([2, 3, 9]), "train"), (data.test.subset([0, 2, 3]), "t10k")):
        fd.write_idx(tmp_path / f"{name}-images-idx3-ubyte", half.images)
        fd.write_idx(tmp_path / f"{name}-labels-idx1-ubyte", half.labels)
    assert main(["train", "--data", ".", "--out", "run", *QUICK]) == 0
    assert fd.Network.load("run/model.safetensors").classes.tolist() == [2, 3, 9]
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["data"] == str(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    capsys.readouterr()
    assert "t10k-labels-idx1-ubyte" in error_of(capsys, ["train", "--data", "."], status=1)


@pytest.mark.parametrize(("options", "wanted"), [((), 0.977), (("--classes", "0,1"), 0.998)])
def test_mnist_with_the_defaults(mnist_root, monkeypatch, tmp_path, options, wanted):
    monkeypatch.setenv("FASTDIGIT_DATA", str(mnist_root.parent))
    assert main(["train", "--data", "mnist", "--out", "run", *options]) == 0
    assert accuracy_of(tmp_path / "run") >= wanted


# --- interrupt and resume -------------------------------------------------------------------------


def test_interrupted_and_resumed_gives_the_same_bits(tmp_path, capsys):
    options = [
        "--epochs",
        "20",
        "--hidden",
        "64,32",
        "--dropout",
        "0.2",
        "--validation",
        "0.1",
        "--seed",
        "3",
    ]
    options += ["--checkpoint-every", "5", "--backend", "numpy"]
    assert main(["train", "--out", "whole", *options]) == 0

    process = subprocess.Popen(
        [sys.executable, "-m", "fastdigit", "train", "--out", "my run", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has the signal ignored, and they inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log, deadline = tmp_path / "my run" / "log.jsonl", time.monotonic() + 30
    while not (log.exists() and len(log.read_text().splitlines()) > 40):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    said = "interrupted; go on with: fastdigit train --resume 'my run'\n"
    assert (process.returncode, errors) == (130, said)
    assert not (tmp_path / "my run" / "model.safetensors").exists()
    assert main(["evaluate", "my run"]) == 0  # of the checkpoint

    assert main(["train", "--resume", "my run"]) == 0
    for name in ("model.safetensors", "settings.json"):
        assert (tmp_path / "my run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("my run", "whole")
    ]
    assert losses[0] == losses[1]


def test_resume_before_the_first_checkpoint(trained, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "settings.json", "run")
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()


def test_resume_of_a_run_from_before_there_were_balances(trained, tmp_path):
    """A settings.json that lacks the newer settings describes the training that it always was."""
    settings = json.loads((trained / "settings.json").read_text())
    for name in LATER:
        del settings[name]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()


def test_resume_of_a_complete_run(trained, capsys):
    before = (trained / "model.safetensors").read_bytes()
    assert main(["train", "--resume", str(trained)]) == 0
    output = capsys.readouterr().out
    assert "complete" in output
    assert f"{100 * accuracy_of(trained):.2f} % of 360" in output
    assert (trained / "model.safetensors").read_bytes() == before


def test_resume_for_more_epochs(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    assert main(["train", "--resume", "run", "--epochs", "14"]) == 0
    assert "epoch 14/14" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["epochs"] == 14
    assert "12 epochs" not in error_of(capsys, ["train", "--resume", "run", "--epochs", "3"], status=2)


def test_resume_takes_no_other_settings(trained, capsys):
    line = error_of(capsys, ["train", "--resume", trained, "--hidden", "8", "--learning-rate", "1"], status=2)
    assert "--hidden, --learning-rate" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.pop("seed"),
        lambda settings: settings.update(extra=1),
        lambda settings: settings.update(epochs="12"),
        lambda settings: settings.update(epochs=True),
        lambda settings: settings.update(optimizer="magic"),
        lambda settings: settings.update(hidden=[16, "x"]),
        lambda settings: settings.update(members=0),
    ],
)
def test_settings_of_another_schema(trained, tmp_path, capsys, change):
    shutil.copytree(trained, tmp_path / "run")
    settings = json.loads((trained / "settings.json").read_text())
    change(settings)
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    assert "run/settings.json: " in error_of(capsys, ["train", "--resume", "run"], status=1)


def test_settings_of_before_committees(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    settings = json.loads((trained / "settings.json").read_text())
    del settings["members"]
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", "run"]) == 0
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_damaged_settings(trained, tmp_path, capsys, content):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_bytes(content)
    assert "run/settings.json" in error_of(capsys, ["train", "--resume", "run"], status=1)


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate(trained, tmp_path, capsys):
    files = ["--json", "result.json", "--png", "mistakes.png"]
    arguments = ["evaluate", str(trained), "--backend", "numpy", *files]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads((trained / "evaluation.json").read_text())
    assert f"{100 * result['accuracy']:.2f} % of 360 images right" in output
    tables = output[output.index("digit") : output.index("figures")]
    assert all(len(line) <= 80 for line in tables.splitlines())
    for row in result["per_class"]:
        assert re.search(
            rf"^ +{row['label']} .* {100 * row['f1']:.2f} % +{row['count']} *$", tables, re.MULTILINE
        )
    for label, counts in zip(result["classes"], result["confusion"], strict=True):
        cells = " +".join(str(count) if count else r"\." for count in counts)
        assert re.search(rf"^ +{label} +{cells} *$", tables, re.MULTILINE)
    with Image.open("mistakes.png") as image:
        image.load()
        assert min(image.size) > 5 * DPI


def test_evaluate_takes_the_newest_run(trained, trained_on_two, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "runs" / "001")
    shutil.copytree(trained_on_two, tmp_path / "runs" / "002")
    (tmp_path / "runs" / "003").mkdir()  # without a network
    os.utime(tmp_path / "runs" / "001" / "model.safetensors")
    assert main(["evaluate"]) == 0
    assert "model      runs/001/model.safetensors" in capsys.readouterr().out


def test_evaluate_the_training_images(trained, capsys):
    assert main(["evaluate", str(trained), "--split", "train"]) == 0
    assert "of 1,437 images right" in capsys.readouterr().out


def test_evaluate_leaves_out_digits_that_the_network_does_not_know(trained_on_two, capsys):
    assert main(["evaluate", str(trained_on_two)]) == 0
    output = capsys.readouterr().out
    assert "100.00 % of 72 images right" in output
    assert "only those of the network's digits 0 1; 288 others left out" in output


def test_evaluate_a_file_that_stands_alone(trained, capsys):
    shutil.copy(trained / "model.safetensors", "net.safetensors")
    assert "--data" in error_of(capsys, ["evaluate", "net.safetensors"], status=2)
    assert main(["evaluate", "net.safetensors", "--data", "digits"]) == 0
    assert "of 360 images right" in capsys.readouterr().out


def test_evaluate_nothing(capsys):
    assert "fastdigit train" in error_of(capsys, ["evaluate"], status=1)
    assert "gone.safetensors" in error_of(capsys, ["evaluate", "gone.safetensors"], status=1)
    assert "there is no network in ." in error_of(capsys, ["evaluate", "."], status=1)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("damage", ["truncated", "random", "pickle", "empty"])
def test_evaluate_a_damaged_model(trained, tmp_path, capsys, damage):
    whole = (trained / "model.safetensors").read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "random": np.random.default_rng(1).bytes(5000),
        "pickle": pickle.dumps(Bomb()),
        "empty": b"",
    }
    (tmp_path / "bad.safetensors").write_bytes(content[damage])
    assert "bad.safetensors" in error_of(
        capsys, ["evaluate", "bad.safetensors", "--data", "digits"], status=1
    )
    assert not (tmp_path / "exploded").exists()


def test_a_picture_that_cannot_be_drawn_is_known_before_any_work(trained, picture, capsys, monkeypatch):
    evaluating, predicting = ["evaluate", trained, "--png"], ["predict", "seven.png", "--steps"]
    for command in (evaluating, predicting):
        assert "must end in .png, .jpg" in error_of(capsys, [*command, "picture.xyz"], status=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (evaluating, predicting):
        assert "pip install 'fastdigit[plot]'" in error_of(capsys, [*command, "picture.png"], status=2)


# --- predict --------------------------------------------------------------------------------------


def test_predict(trained, picture, capsys):
    assert main(["predict", "--model", str(trained), "seven.png", "--steps", "steps.png"]) == 0
    assert re.fullmatch(
        r"seven\.png  7  +\d+\.\d\d %   then [0-689]  +\d+\.\d\d %\n", capsys.readouterr().out
    )
    with Image.open("steps.png") as image:
        image.load()
        assert image.width > 2 * image.height


def test_predict_goes_on_after_a_bad_image(trained, picture, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:50])
    Image.new("L", (50, 50), 255).save("blank.png")
    names = ["broken.png", "seven.png", "blank.png", "gone.png"]
    assert main(["predict", "--model", str(trained), "--json", *names]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["error", " broken.png"],
        ["error", " blank.png"],
        ["error", " gone.png"],
    ]
    assert all(line.count(".png") == 1 for line in lines)
    answers = json.loads(captured.out)
    assert [answer["image"] for answer in answers] == names
    assert ["error" in answer for answer in answers] == [True, False, True, True]
    seven = answers[1]
    assert seven["label"] == 7
    assert seven["runner_up"] != 7
    assert 1 >= seven["probability"] > seven["runner_up_probability"] >= 0


def test_predict_from_stdin(trained, picture, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    assert main(["predict", "--model", str(trained), "-"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["-", "7"]


def test_predict_nonsense_from_stdin(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nonsense")))
    line = error_of(capsys, ["predict", "--model", trained, "-"], status=1)
    assert line.startswith("error: -: not a picture")


def test_predict_an_endless_stdin(trained, capsys, monkeypatch):
    monkeypatch.setattr("fastdigit.commands.predict.MAX_STDIN", 2**20)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(2**21))))
    assert "more than 1 MiB" in error_of(capsys, ["predict", "--model", trained, "-"], status=1)


def test_predict_knows_only_the_labels_of_its_network(trained_on_two, picture, capsys):
    assert main(["predict", "--model", str(trained_on_two), "seven.png", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert {answer["label"], answer["runner_up"]} == {0, 1}
    assert answer["probability"] + answer["runner_up_probability"] == pytest.approx(1, abs=1e-6)


def test_a_reader_that_leaves_early_is_no_error(trained):
    """``fastdigit predict … | head -0``: quiet, no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "fastdigit", "evaluate", str(trained)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert process.stderr == ""
    assert process.returncode != 0


# --- info -----------------------------------------------------------------------------------------


def test_info(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDIGIT_DATA", str(tmp_path))
    monkeypatch.setenv("FASTDIGIT_BACKEND", "numpy")
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fastdigit"] == fd.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["cpu"]["cores"] >= 1
    assert facts["backends"].keys() == fd.backends().keys()
    assert facts["backends"]["numpy"]["usable"] is True
    assert facts["auto"] == {"backend": "numpy"}
    assert facts["FASTDIGIT_BACKEND"] == "numpy"
    assert facts["mnist"] == {"found": False, "folder": str(tmp_path / "mnist"), "downloadable": False}
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "FASTDIGIT_BACKEND=numpy" in text
    assert f"not in {tmp_path / 'mnist'}" in text


def test_info_survives_a_backend_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setenv("FASTDIGIT_BACKEND", "quantum")
    assert main(["info", "--json"]) == 0
    assert "quantum" in json.loads(capsys.readouterr().out)["auto"]["error"]


# --- terminals, and what must not be lost -----------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_terminal_that_lacks_characters_is_no_error(tmp_path, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for arguments in (["train", "--help"], ["train", "--epochs", "1"], ["evaluate"]):
        command = [sys.executable, "-m", "fastdigit", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
        assert b"Traceback" not in result.stderr


def test_a_closed_stdout_is_no_error(tmp_path):
    command = f"{sys.executable} -m fastdigit train --epochs 1 >&-"
    result = subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "runs" / "001" / "model.safetensors").exists()


def test_a_resume_that_fails_changes_nothing(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = contents(run)
    more = ["train", "--resume", run, "--epochs", "900"]
    error_of(capsys, [*more, "--backend", "nope"], status=2)
    assert contents(run) == before
    (run / "checkpoint.safetensors").write_bytes(b"damaged")
    before = contents(run)
    assert "damaged" in error_of(capsys, more, status=1)
    assert contents(run) == before
    (run / "checkpoint.safetensors").unlink()
    before = contents(run)
    assert "is gone" in error_of(capsys, more, status=1)
    assert contents(run) == before


def test_a_request_that_makes_no_sense_leaves_other_files_alone(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious").write_text("x")
    assert "clip_norm" in error_of(capsys, ["train", "--out", folder, "--clip-norm", "-1"], status=2)
    assert contents(folder) == {"precious": b"x"}


@pytest.mark.parametrize("share", ["nan", "-inf", "0", "1", "2"])
def test_validation_shares_that_make_no_sense(capsys, share):
    assert "--validation must be a number in (0, 1)" in error_of(
        capsys, ["train", f"--validation={share}"], status=2
    )


def test_the_newest_complete_run_is_the_default(trained, tmp_path, picture, capsys):
    shutil.copytree(trained, tmp_path / "runs" / "001")
    started = tmp_path / "runs" / "002"
    started.mkdir()
    shutil.copy(trained / "checkpoint.safetensors", started)
    assert main(["predict", str(picture)]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "model runs/001/model.safetensors: digits 0 1 2 3 4 5 6 7 8 9, trained on digits"
    )
