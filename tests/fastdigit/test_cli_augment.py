"""``train --augment`` and ``show augment``."""

import json
from pathlib import Path

import pytest
from PIL import Image

import fastdigit as fd
from fastdigit.cli import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
QUICK = ("--epochs", "2", "--hidden", "16", "--backend", "numpy", "--quiet", "--out", "run")


def test_a_run_keeps_its_strengths_and_trains_with_them(capsys):
    assert main(["train", *QUICK, "--augment", "rotation=15,noise=3", "--dropout", "0"]) == 0
    assert json.loads(Path("run/settings.json").read_text())["augment"] == "rotation=15,noise=3"
    data = fd.load_digits()
    net = fd.Network([784, 16, 10], backend="numpy")
    options = {"optimizer": fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3), "batch_size": 32}
    fd.fit(net, data.train, epochs=2, augment=fd.Augment(rotation=15, noise=3), **options)
    saved = fd.Network.load("run/model.safetensors", backend="numpy").get_parameters()
    assert all((saved[name] == value).all() for name, value in net.get_parameters().items())
    assert main(["train", "--resume", "run", "--epochs", "3", "--quiet"]) == 0
    assert "test" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["rotate=3", "rotation=", "rotation=200", "standard,shift=1"])
def test_strengths_that_make_no_sense_leave_no_run(text, capsys, tmp_path):
    assert main(["train", *QUICK, "--augment", text]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
    assert main(["show", "augment", text]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_sheet(capsys, tmp_path):
    assert main(["show", "augment", "shift=3", "--out", "sheet.png"]) == 0
    assert "shift=3" in capsys.readouterr().out
    with Image.open("sheet.png") as image:
        assert min(image.size) > 900
    assert main(["show", "augment", "--out", "sheet.txt"]) == 2
    assert "must end in" in capsys.readouterr().err
