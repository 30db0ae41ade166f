"""The command where networks are unsure, or several: calibrate, thresholds, committees."""

import json
import re
import shutil
from functools import cache

import numpy as np
import pytest
from PIL import Image

import fastdigit as fd
from fastdigit import runs
from fastdigit.cli import main
from fastdigit.progress import Progress

from .conftest import QUICK, contents, error_of, same_bits

HELD_BACK = (*QUICK, "--validation", "0.25")
digits = cache(fd.load_digits)


@pytest.fixture(autouse=True)
def quickly(in_an_empty_folder, monkeypatch):
    """Nothing is compiled, and the digits are scaled to 28×28 once for all tests here."""
    monkeypatch.setenv("FASTDIGIT_BACKEND", "numpy")
    monkeypatch.setitem(runs.DATA, "digits", digits)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on the digits data that held a quarter back; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--out", str(folder), *HELD_BACK]) == 0
    return folder


@pytest.fixture(scope="module")
def committee(tmp_path_factory):
    """The folder of a committee of three; tests must not change it."""
    folder = tmp_path_factory.mktemp("committee") / "run"
    assert main(["train", "--out", str(folder), "--members", "3", "--seed", "5", *HELD_BACK]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of ``trained``."""
    return shutil.copytree(trained, tmp_path / "run")


def held_back_of(folder, net):
    """What the run with these settings did not train on, by way of the Python interface."""
    settings = json.loads((folder / "settings.json").read_text())
    return fd.TrainingData.of(net, digits().train, 0.25, seed=settings["seed"]).validation


# --- calibrate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trained", "committee"])
def test_calibrate(kind, request, tmp_path, capsys):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "run")
    before = fd.load_model(folder / "model.safetensors", backend="numpy")
    assert main(["calibrate", "run", "--backend", "numpy", "--json", "result.json"]) == 0
    output = capsys.readouterr().out
    after = fd.load_model(folder / "model.safetensors", backend="numpy")
    held_back = fd.evaluate(before, held_back_of(folder, before))
    assert after.temperature == pytest.approx(fd.fit_temperature(held_back), rel=1e-6)
    assert after.temperature != 1
    for mine, theirs in zip(*(getattr(m, "networks", [m]) for m in (before, after)), strict=True):
        assert same_bits(mine, theirs)
    test = digits().test
    assert np.array_equal(after.predict(test.images), before.predict(test.images))

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["temperature"] == [1, after.temperature]
    for name, data in (("fitted_on", held_back_of(folder, before)), ("test", test)):
        evaluations = fd.evaluate(before, data), fd.evaluate(after, data)
        assert result[name]["images"] == evaluations[0].count
        assert result[name]["loss"] == pytest.approx([fd.log_loss(e) for e in evaluations], rel=1e-6)
        assert result[name]["calibration_error"] == pytest.approx(
            [fd.reliability(e).error for e in evaluations]
        )
    assert result["fitted_on"]["loss"][1] < result["fitted_on"]["loss"][0]
    assert "digits: 360 images that the training held back" in output
    assert f"temperature 1 → {after.temperature:.4g}" in output
    losses = "loss {:.4f} → {:.4f}".format(*result["fitted_on"]["loss"])
    assert re.search(rf"^fitted on +360 images: {losses}, calibration error", output, re.MULTILINE)

    assert main(["calibrate", "run"]) == 0  # once more changes nothing
    again = fd.load_model(folder / "model.safetensors")
    assert again.temperature == pytest.approx(after.temperature, rel=1e-4)


def test_what_the_training_held_back_is_what_it_was_validated_on(trained):
    net = fd.Network.load(trained / "model.safetensors", backend="numpy")
    images, labels = runs.Run(trained).held_back(net)
    last = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])
    assert fd.evaluate(net, (images, labels)).accuracy == last["validation_accuracy"]
    assert fd.evaluate(net, (images, labels)).loss == last["validation_loss"]
    expected = held_back_of(trained, net)
    assert np.array_equal(images, expected[0])
    assert np.array_equal(labels, expected[1])


def test_data_that_has_changed_since_the_training(tmp_path, capsys):
    """The split would be another, with images in it that the network was trained on."""
    data = digits()
    for images, name in ((data.train, "train"), (data.test, "t10k")):
        fd.write_idx(tmp_path / f"{name}-images-idx3-ubyte", images.images)
        fd.write_idx(tmp_path / f"{name}-labels-idx1-ubyte", images.labels)
    assert main(["train", "--data", ".", "--out", "run", *HELD_BACK]) == 0
    images, labels = data.train.images[::-1], data.train.labels[::-1]
    fd.write_idx(tmp_path / "train-images-idx3-ubyte", np.ascontiguousarray(images))
    fd.write_idx(tmp_path / "train-labels-idx1-ubyte", np.ascontiguousarray(labels))
    before = contents(tmp_path / "run")
    for command in (["calibrate", "run"], ["evaluate", "run", "--error-rate", "0.1"]):
        assert "has changed since run was trained on it" in error_of(capsys, command, status=1)
    assert contents(tmp_path / "run") == before


def test_calibrate_with_other_images(run, capsys):
    shutil.move("run/model.safetensors", "net.safetensors")
    assert "--data digits" in error_of(capsys, ["calibrate", "net.safetensors"], status=2)
    assert main(["calibrate", "net.safetensors", "--data", "digits"]) == 0
    assert "digits: 360 test images" in capsys.readouterr().out
    net = fd.Network.load("net.safetensors")
    warm = fd.evaluate(net, digits().test)
    assert net.temperature == pytest.approx(fd.fit_temperature(warm), rel=1e-4)


def test_calibrate_without_images_to_do_it_on(trained, tmp_path, capsys):
    assert main(["train", "--out", "all", *QUICK]) == 0
    before = contents(tmp_path / "all")
    line = error_of(capsys, ["calibrate", "all"], status=2)
    assert "held no images back: train with --validation 0.1" in line
    assert main(["train", "--out", "two", "--classes", "0,1", "--validation", "0.2", *QUICK]) == 0
    assert "read correctly" in error_of(capsys, ["calibrate", "two"], status=1)
    assert contents(tmp_path / "all") == before


def test_a_checkpoint_is_not_calibrated(run, capsys):
    (run / "model.safetensors").unlink()
    before = contents(run)
    assert "checkpoint.safetensors is a checkpoint" in error_of(capsys, ["calibrate", "run"], status=1)
    assert contents(run) == before


def test_a_calibration_that_cannot_be_written_leaves_the_model(run, capsys, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fastdigit.checkpoint.atomic_write", refuse)
    before = contents(run)
    assert "No space left" in error_of(capsys, ["calibrate", "run"], status=1)
    assert contents(run) == before


def test_a_calibrated_run_trains_on_as_if_it_were_not(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "plain")
    assert main(["calibrate", "run"]) == 0
    for folder in ("run", "plain"):
        assert main(["train", "--resume", folder, "--epochs", "14"]) == 0
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("run", "plain")]
    assert files[0] == files[1]


# --- thresholds -----------------------------------------------------------------------------------


def test_predict_rejects(trained, picture, capsys):
    command = ["predict", "--model", str(trained), "seven.png"]
    assert main([*command, "--reject-below", "1"]) == 0
    text = r"seven\.png  \?  perhaps 7  +\d+\.\d\d %   then [0-689]  +\d+\.\d\d %\n"
    assert re.fullmatch(text, capsys.readouterr().out)
    for threshold, rejected in (("1", True), ("0.1", False)):
        assert main([*command, "--json", "--reject-below", threshold]) == 0
        (answer,) = json.loads(capsys.readouterr().out)
        assert answer["rejected"] is rejected
        assert (answer["label"], answer["runner_up"] in range(10)) == (7, True)
    assert main([*command, "--json"]) == 0
    assert "rejected" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [["predict", "x.png"], ["evaluate"]])
def test_thresholds_that_make_no_sense(command, capsys):
    for bad in ("1.5", "-0.1", "much"):
        assert "--reject-below" in error_of(capsys, [*command, f"--reject-below={bad}"], status=2)


def test_evaluate_with_a_threshold(trained, tmp_path, capsys):
    command = ["evaluate", str(trained), "--json", "result.json", "--reject-below"]
    assert main([*command, "0.9"]) == 0
    answered = json.loads((tmp_path / "result.json").read_text())["answered"]
    test = digits().test
    evaluation = fd.evaluate(fd.Network.load(trained / "model.safetensors"), test)
    sure = evaluation.probabilities.max(axis=1) >= 0.9
    wrong = int((evaluation.predicted != evaluation.targets)[sure].sum())
    assert answered == {
        "threshold": 0.9,
        "coverage": sure.sum() / 360,
        "error": wrong / sure.sum(),
        "answered": sure.sum(),
        "rejected": 360 - sure.sum(),
        "wrong": wrong,
        "threshold_from": "--reject-below",
    }
    output = capsys.readouterr().out
    line = (
        rf"^answered +{sure.sum()} images \({100 * sure.mean():.2f} %\), {100 * answered['error']:.2f} % of"
    )
    assert re.search(line, output, re.MULTILINE)
    assert "threshold  90 % probability, from --reject-below" in output
    assert main([*command, "1"]) == 0
    assert "answered   0 images (0.00 %); 360 rejected" in capsys.readouterr().out


def test_evaluate_for_an_error_rate(trained, tmp_path, capsys):
    """The threshold comes from what was held back, not from the images that it is tried on."""
    net = fd.Network.load(trained / "model.safetensors")
    curve = fd.risk_coverage(fd.evaluate(net, held_back_of(trained, net)))
    assert curve.at(0).error > 0.01  # else there is nothing to do
    assert main(["evaluate", str(trained), "--error-rate", "0.01", "--json", "result.json"]) == 0
    answered = json.loads((tmp_path / "result.json").read_text())["answered"]
    assert answered["threshold"] == pytest.approx(curve.threshold_for_error(0.01), rel=1e-5)
    test = fd.risk_coverage(fd.evaluate(net, digits().test))
    assert answered["answered"] == test.at(answered["threshold"]).answered
    assert "from the 360 images that the training held back" in capsys.readouterr().out
    assert "leave one out" in error_of(
        capsys, ["evaluate", trained, "--error-rate", "0.1", "--reject-below", "0.5"], status=2
    )


def test_evaluate_for_an_error_rate_without_images_held_back(trained, tmp_path, capsys):
    shutil.copy(trained / "model.safetensors", "net.safetensors")
    options = ["--data", "digits", "--error-rate", "0.005", "--json", "result.json"]
    assert main(["evaluate", "net.safetensors", *options]) == 0
    assert "from these very images, which flatters" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["answered"]["error"] <= 0.005


def test_evaluate_draws_calibration_and_ambiguity(trained, tmp_path, capsys):
    files = ["--calibration", "trust.png", "--ambiguous", "unclear.png", "--json", "result.json"]
    assert main(["evaluate", str(trained), *files]) == 0
    output = capsys.readouterr().out
    figures = json.loads((tmp_path / "result.json").read_text())["calibration"]
    error = figures["expected_calibration_error"]
    assert f"calibration error {100 * error:.2f} %, loss {figures['loss']:.4f} at temperature 1\n" in output
    assert sum(row["count"] for row in figures["bins"]) == figures["risk_coverage"]["images"] == 360
    for name in ("trust.png", "unclear.png"):
        assert f"picture    {name}" in output
        with Image.open(name) as image:
            image.load()
            assert min(image.size) > 600
    assert "must end in" in error_of(capsys, ["evaluate", trained, "--ambiguous", "x.xyz"], status=2)


# --- committees -----------------------------------------------------------------------------------


def test_train_a_committee(committee, trained, tmp_path, capsys):
    assert {path.name for path in committee.iterdir()} == {
        "settings.json",
        "model.safetensors",
        "evaluation.json",
        *(f"checkpoint-{member}.safetensors" for member in (1, 2, 3)),
        *(f"log-{member}.jsonl" for member in (1, 2, 3)),
    }
    model = fd.Committee.load(committee / "model.safetensors")
    assert [net.seed for net in model.networks] == [5, 6, 7]
    test = digits().test
    result = json.loads((committee / "evaluation.json").read_text())
    assert result["accuracy"] == fd.evaluate(model, test).accuracy
    assert result["members"] == [fd.evaluate(net, test).accuracy for net in model.networks]
    assert result["members_mean"] == pytest.approx(np.mean(result["members"]))
    assert len(set(result["members"])) > 1

    assert main(["evaluate", str(committee), "--backend", "numpy", "--json", "result.json"]) == 0
    output = capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text()) == result
    each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in result["members"])
    assert f"members    {each} %; mean {100 * result['members_mean']:.2f} %" in output


def test_the_first_member_is_the_network_of_the_same_seed(committee):
    assert main(["train", "--out", "alone", "--seed", "5", *HELD_BACK]) == 0
    model = fd.Committee.load(committee / "model.safetensors", backend="numpy")
    assert same_bits(model.networks[0], fd.Network.load("alone/model.safetensors", backend="numpy"))


def test_predict_with_a_committee(committee, picture, capsys):
    assert main(["predict", "--model", str(committee), "seven.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"] == 7


def test_a_committee_interrupted_and_resumed_has_the_same_bits(committee, tmp_path, monkeypatch, capsys):
    epochs = []

    def interrupted(self, record):
        epochs.append(record.epoch)
        if len(epochs) == 17:  # the fifth of the second member
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "epoch", interrupted)
        options = ["--members", "3", "--seed", "5", *HELD_BACK]
        assert main(["train", "--out", "run", *options]) == 130
    assert capsys.readouterr().err == "interrupted; go on with: fastdigit train --resume run\n"
    assert (tmp_path / "run" / "checkpoint-2.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoint-3.safetensors").exists()
    line = error_of(capsys, ["evaluate", "run"], status=1)
    assert "go on with 'fastdigit train --resume run'" in line
    assert main(["train", "--resume", "run"]) == 0
    output = capsys.readouterr().out
    assert [int(n) for n in re.findall(r"^epoch +(\d+)/", output, re.MULTILINE)] == [
        *range(5, 13),
        *range(1, 13),
    ]
    for name in ("model.safetensors", "settings.json"):
        assert (tmp_path / "run" / name).read_bytes() == (committee / name).read_bytes()


def test_a_complete_committee_is_trained_further(committee, tmp_path, capsys):
    run = shutil.copytree(committee, tmp_path / "run")
    assert main(["train", "--resume", "run"]) == 0
    assert "complete" in capsys.readouterr().out
    assert (run / "model.safetensors").read_bytes() == (committee / "model.safetensors").read_bytes()
    assert main(["train", "--resume", "run", "--epochs", "13"]) == 0
    assert capsys.readouterr().out.count("epoch 13/13") == 3
    assert (run / "model.safetensors").read_bytes() != (committee / "model.safetensors").read_bytes()
    assert "--members" in error_of(capsys, ["train", "--resume", "run", "--members", "4"], status=2)
    (run / "checkpoint-2.safetensors").unlink()
    before = contents(run)
    assert "checkpoint-2.safetensors is gone" in error_of(
        capsys, ["train", "--resume", "run", "--epochs", "20"], status=1
    )
    assert contents(run) == before


def test_a_committee_that_makes_no_sense_leaves_nothing_and_takes_nothing(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "log-2.jsonl").write_text("precious")
    options = ["--members", "2", *QUICK]
    assert "holds a run already" in error_of(capsys, ["train", "--out", folder, *options], status=2)
    (folder / "log-2.jsonl").rename(folder / "precious")
    bad = ["--validation", "0.999", *options]
    assert "validation" in error_of(capsys, ["train", "--out", folder, *bad], status=1)
    assert contents(folder) == {"precious": b"precious"}
