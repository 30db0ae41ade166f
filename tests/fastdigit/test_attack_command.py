"""``fastdigit attack`` as a user meets it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdigit as fd
from fastdigit.cli import main
from fastdigit.plots import DPI

from .conftest import error_of

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
QUICK = ("--images", "100", "--steps", "5")


def test_attack(trained, capsys):
    files = ("--json", "attacked.json", "--png", "attacked.png")
    assert main(["attack", str(trained), "--epsilon", "0.1,0.02", *QUICK, *files]) == 0
    output = capsys.readouterr().out
    assert all(len(line) <= 80 for line in output.replace(str(trained), "runs/001").splitlines())
    assert "digits, test: 100 images" in output
    assert "PGD, 5 steps of 0.5 epsilon" in output
    figures = json.loads(Path("attacked.json").read_text())
    assert [row["epsilon"] for row in figures["attacked"]] == [0.02, 0.1]
    net, test = fd.Network.load(trained / "model.safetensors"), fd.load_digits().test
    for row in figures["attacked"]:
        moved = fd.attack(net, test.images[:100], test.labels[:100], fd.PGD(row["epsilon"], steps=5))
        assert row["accuracy"] == pytest.approx((net.predict(moved) == test.labels[:100]).mean(), abs=0.02)
        line = rf"^ +{row['epsilon']:g} +{100 * row['accuracy']:.2f} % +\d+\.\d\d to \d+\.\d\d %"
        assert re.search(line, output, re.MULTILINE)
    assert len(figures["checks"]) == 5
    for check in figures["checks"]:
        assert f"{'passed' if check['passed'] else 'FAILED':<10} {check['name']}" in output
    with Image.open("attacked.png") as image:
        image.load()
        assert min(image.size) > 4 * DPI


def test_a_target(trained, capsys):
    assert main(["attack", str(trained), "--targeted", "3", *QUICK, "--json", "f.json", "--no-checks"]) == 0
    output = capsys.readouterr().out
    figures = json.loads(Path("f.json").read_text())
    test = fd.load_digits().test
    assert figures["images"] == (test.labels[:100] != 3).sum()
    assert figures["checks"] == []
    assert "as 3" in output
    assert f"{100 * figures['attacked'][-1]['reached']:.2f} %" in output


def test_a_single_step_in_a_round_ball(trained, capsys):
    assert main(["attack", str(trained), "--method", "fgsm", "--norm", "l2", "--images", "50"]) == 0
    output = capsys.readouterr().out
    assert "FGSM, one step, by a length of at most epsilon" in output
    assert re.search(r"^ +0\.5 .*\n +1 .*\n +2 ", output, re.MULTILINE)


def test_another_network_to_transfer_from(trained, capsys):
    test = fd.load_digits().test
    other = fd.Network([784, 8, 10], backend="numpy", seed=9)
    other.save("other.safetensors")
    assert main(["attack", str(trained), *QUICK, "--transfer", "other.safetensors", "--json", "f.json"]) == 0
    (check,) = (c for c in json.loads(Path("f.json").read_text())["checks"] if "transferred" in c["numbers"])
    net = fd.Network.load(trained / "model.safetensors", backend="numpy")
    images, labels = test.images[:100], test.labels[:100]
    for epsilon, left in zip(check["numbers"]["epsilons"], check["numbers"]["transferred"], strict=True):
        moved = fd.attack(other, images, labels, fd.FGSM(epsilon))
        assert left == pytest.approx((net.predict(moved) == labels).mean(), abs=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epsilon", "0.1,x"], ["--epsilon", "0.1,x"]),
        (["--epsilon", "0"], ["--epsilon must be a number"]),
        (["--method", "fgsm", "--step", "0.1"], ["--step and --restarts belong to pgd"]),
        (["--method", "fgsm", "--restarts", "2"], ["--step and --restarts belong to pgd"]),
        (["--step", "-1"], ["step must be a number"]),
        (["--norm", "l1"], ["l1", "linf"]),
        (["--steps", "0"], ["--steps"]),
        (["--images", "0"], ["--images"]),
        (["--png", "a.xyz"], ["must end in .png"]),
        (["--transfer", "small.safetensors"], ["small.safetensors reads other images"]),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(trained, capsys, options, words):
    fd.Network([36, 4], backend="numpy").save("small.safetensors")
    line = error_of(capsys, ["attack", trained, *options], status=2)
    assert all(word in line for word in words), line


def test_wrong_data(trained, capsys):
    assert "label 12" in error_of(capsys, ["attack", trained, *QUICK, "--targeted", "12"], status=1)
    fd.Network([784, 4, 10], backend="numpy").save("alone.safetensors")
    assert "add --data" in error_of(capsys, ["attack", "alone.safetensors"], status=2)
    assert "gone" in error_of(capsys, ["attack", "gone.safetensors"], status=1)


def test_a_run_that_was_trained_under_attack(capsys, tmp_path):
    options = (
        "--epochs",
        "2",
        "--hidden",
        "16",
        "--backend",
        "numpy",
        "--adversary",
        "fgsm",
        "--epsilon",
        "0.1",
    )
    assert main(["train", "--out", "run", *options]) == 0
    output = capsys.readouterr().out
    assert "adversary  fgsm, epsilon 0.1: figures below are under attack" in output
    whole = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "evaluation.json").unlink()
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == whole
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
