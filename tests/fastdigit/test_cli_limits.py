"""The command about limits: corruptions, groups of people, and training that lets groups count alike."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fastdigit as fd
from fastdigit import training
from fastdigit.cli import main
from fastdigit.datasets import Writers
from fastdigit.inputs import as_weights

from .conftest import error_of

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
QUICK = ["--epochs", "2", "--hidden", "16", "--backend", "numpy", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on the digits data; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def small_mnist(monkeypatch):
    """The embedded digits pass for MNIST: of series 4 are every other image and the first 900 to train on;
    a writer has 20 images."""
    data = fd.load_digits()

    def writers(split, labels=None):
        half = getattr(data, split)
        at = np.arange(len(half))
        series = np.where(at % 2, 4, 0)
        if split == "train":
            series[:900] = 4
        found = Writers(half.labels, series.astype(np.int32), (at // 20).astype(np.int32))
        if labels is not None:
            found.check(labels)
        return found

    monkeypatch.setattr("fastdigit.runs.DATA", {"digits": fd.load_digits, "mnist": lambda: data})
    monkeypatch.setattr("fastdigit.runs.find_mnist", lambda: ("here", True))
    monkeypatch.setattr("fastdigit.runs.load_writers", writers)
    return SimpleNamespace(train=data.train, test=data.test, writers=writers)


def figures(path):
    return json.loads(Path(path).read_text())


def is_png(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG"


# --- corruptions ----------------------------------------------------------------------------------


def test_evaluate_corruptions(trained, capsys):
    files = ["--corruptions-png", "c.png", "--json", "a.json"]
    assert main(["evaluate", str(trained), "--backend", "numpy", *files]) == 0
    output = capsys.readouterr().out
    found = fd.corruption_robustness(
        fd.Network.load(trained / "model.safetensors", backend="numpy"), fd.load_digits().test
    )
    result = figures("a.json")
    assert result["corruptions"] == found.as_dict()
    assert result["accuracy"] == found.clean
    table = output[output.index("corruption ") :]
    for name, values in found.accuracy.items():
        cells = " +".join(re.escape(f"{100 * share:.2f} %") for share in (*values, found.mean_of[name]))
        assert re.search(rf"^ *{name} +{cells} *$", table, re.MULTILINE), name
    assert f"{100 * found.mean:.2f} % right, the mean over all" in output
    assert all(len(line) <= 80 for line in output.splitlines() if "%" in line)
    assert is_png("c.png")


def test_evaluate_says_nothing_of_corruptions_unless_asked(trained, capsys):
    assert main(["evaluate", str(trained), "--json", "a.json"]) == 0
    assert "corrupt" not in capsys.readouterr().out
    assert not {"corruptions", "groups"} & figures("a.json").keys()


def test_show_corruptions(capsys):
    assert main(["show", "corruptions", "--out", "sheet.png"]) == 0
    assert capsys.readouterr().out == "picture    sheet.png\n"
    assert is_png("sheet.png")
    assert main(["show", "corruptions", "--help"]) == 0
    assert "Examples" in capsys.readouterr().out
    assert "must end in" in error_of(capsys, ["show", "corruptions", "--out", "sheet.doc"], status=2)
    assert "mnits" in error_of(capsys, ["show", "corruptions", "--out", "a.png", "--data", "mnits"], 2)


# --- groups ---------------------------------------------------------------------------------------


def test_evaluate_by_a_column(trained, capsys):
    random = np.random.default_rng(0)
    column = random.choice(["ball pen", "[bold]quill", "pencil"], 360, p=[0.6, 0.02, 0.38])
    Path("pens.csv").write_text("\n".join(["pen", *column]))
    assert (
        main(["evaluate", str(trained), "--by", "pens.csv", "--groups-png", "g.png", "--json", "a.json"]) == 0
    )
    output = capsys.readouterr().out
    net, test = fd.Network.load(trained / "model.safetensors"), fd.load_digits().test
    right = net.predict(test.images) == test.labels
    groups = figures("a.json")["groups"]
    assert groups["too_small"] == 1
    for row in groups["groups"]:
        mine = right[column == row["group"]]
        assert (row["images"], row["correct"]) == (len(mine), mine.sum())
        low, high = (re.escape(f"{100 * edge:.2f} %") for edge in row["interval_95"])
        name = re.escape(row["group"])
        assert re.search(rf"^ *{name} +{len(mine)} +{100 * mine.mean():.2f} % +{low} to {high}", output, re.M)
    gap = groups["gap"]
    assert f"{100 * gap['difference']:.2f} points between {gap['worst']} and {gap['best']}" in output
    assert "1 of 3 groups have fewer than 10 images: their figures say little" in output
    assert is_png("g.png")


def test_evaluate_by_many_groups(trained, capsys):
    np.save("sheet.npy", np.arange(360) // 15)  # 24 of them
    assert main(["evaluate", str(trained), "--by", "sheet.npy", "--json", "a.json"]) == 0
    output = capsys.readouterr().out
    decile = figures("a.json")["groups"]["worst_decile"]
    assert "accuracy by sheet.npy, the worst 10 of 24:" in output
    assert f"{100 * decile['error']:.2f} % misread, mean of the worst 3 of 24 groups" in output
    assert f"by chance, all groups being alike, it would be {100 * decile['chance']:.2f} %" in output
    assert "gap" not in output
    assert len(re.findall(r"^ \d+ +15 ", output, re.MULTILINE)) == 10


def test_columns_follow_the_images_that_are_left(tmp_path, trained, capsys):
    """A network of two digits is asked about those alone; each keeps its group."""
    assert main(["train", "--out", "two", "--classes", "3,8", *QUICK]) == 0
    labels = fd.load_digits().test.labels
    Path("label.txt").write_text("\n".join(f"a {label}" for label in labels))
    assert main(["evaluate", "two", "--by", "label.txt", "--json", "a.json"]) == 0
    rows = figures("a.json")["groups"]["groups"]
    counts = {row["group"]: row["images"] for row in rows}
    assert counts == {f"a {label}": int((labels == label).sum()) for label in (3, 8)}


def test_evaluate_by_writers_of_a_series(small_mnist, trained, capsys):
    options = ["--data", "mnist", "--series", "4", "--json", "a.json"]
    for by, expected in (("series", {4: 180}), ("writer", dict.fromkeys(range(18), 10))):
        assert main(["evaluate", str(trained), *options, "--by", by]) == 0
        assert "mnist, test, series 4: 180 images" in capsys.readouterr().out
        result = figures("a.json")
        assert result["series"] == 4
        assert {row["group"]: row["images"] for row in result["groups"]["groups"]} == expected
    assert "series 3: there are 0 and 4" in error_of(
        capsys, ["evaluate", trained, "--data", "mnist", "--series", "3"], status=1
    )


@pytest.mark.parametrize(
    ("options", "words", "status"),
    [
        (["--by", "writer"], ["digits", "--data mnist"], 2),
        (["--series", "0"], ["digits", "--data mnist"], 2),
        (["--by", "gone.csv"], ["gone.csv"], 1),
        (["--groups-png", "a.png"], ["--groups-png", "--by"], 2),
        (["--by", "short.txt"], ["short.txt", "360 images need 360 values, got 2"], 1),
        (["--by", "short.txt", "--groups-png", "a.doc"], ["must end in"], 2),
        (["--corruptions-png", "a.doc"], ["must end in"], 2),
    ],
)
def test_a_wrong_request_is_one_line(trained, capsys, options, words, status):
    Path("short.txt").write_text("a\nb\n")
    line = error_of(capsys, ["evaluate", trained, *options], status)
    assert all(word in line for word in words), line


def test_pictures_need_matplotlib(trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (["evaluate", trained, "--corruptions-png"], ["show", "corruptions", "--out"]):
        assert "fastdigit[plot]" in error_of(capsys, [*command, "a.png"], status=2)


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def fitted(monkeypatch):
    """What ``fit`` was called with last, as ``fitted()``: (images, labels, sample_weight)."""
    calls, fit = [], fd.fit

    def spy(net, train, **options):
        calls.append((train.inputs.reshape(-1, 28, 28), train.classes[train.targets], train.weight))
        return fit(net, train, **options)

    monkeypatch.setattr("fastdigit.training.fit", spy)
    return lambda: calls[-1]


def test_train_on_a_series(small_mnist, fitted, capsys):
    options = ["train", "--data", "mnist", "--series", "0", "--out", "run", *QUICK[:-1]]
    assert main(options) == 0
    output = capsys.readouterr().out
    train = small_mnist.train
    kept = small_mnist.writers("train").series == 0
    assert np.array_equal(fitted()[0], train.images[kept])
    assert f"{kept.sum()} training images" in output
    assert "trained on series 0 alone, tested on all" in output
    assert "of 360 images right" in output
    assert figures("run/settings.json")["series"] == 0


@pytest.mark.parametrize("by", ["series", "writer", "class"])
@pytest.mark.parametrize("series", [None, 4])
def test_train_with_balance(small_mnist, fitted, capsys, by, series):
    options = ["--data", "mnist", "--balance", by, "--classes", "1,4,7", *QUICK]
    options += [] if series is None else ["--series", str(series)]
    writers, labels = small_mnist.writers("train"), small_mnist.train.labels
    kept = np.isin(labels, [1, 4, 7]) & ((series is None) | (writers.series == series))
    column = (labels if by == "class" else getattr(writers, by))[kept]
    images = small_mnist.train.images[kept]

    assert main(["train", *options, "--out", "weighed"]) == 0
    assert np.array_equal(fitted()[0], images)
    assert np.array_equal(fitted()[2], as_weights(fd.balanced_weights(column), len(column)))
    settings = figures("weighed/settings.json")
    assert (settings["balance"], settings["balance_by"]) == (by, "weight")

    assert main(["train", *options, "--balance-by", "resample", "--seed", "3", "--out", "drawn"]) == 0
    chosen = fd.balanced_sample(column, 3)
    assert np.array_equal(fitted()[0], images[chosen])
    assert np.array_equal(fitted()[1], labels[kept][chosen])
    assert fitted()[2] is None


@pytest.mark.parametrize("how", ["weight", "resample"])
def test_balance_is_resumed_bit_for_bit(small_mnist, monkeypatch, how):
    options = ["--data", "mnist", "--balance", "series", "--balance-by", how, "--series", "4", "--seed", "2"]
    assert main(["train", "--out", "whole", *options, *QUICK]) == 0
    end = training._Training._end_of_epoch

    def stop_after_one(self, *arguments):
        end(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "_end_of_epoch", stop_after_one)
        assert main(["train", "--out", "cut", *options, *QUICK]) == 130
    assert main(["train", "--resume", "cut", "--quiet"]) == 0
    assert Path("cut/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_resume_takes_no_other_balance(small_mnist, capsys):
    assert main(["train", "--data", "mnist", "--balance", "class", "--out", "run", *QUICK]) == 0
    capsys.readouterr()
    line = error_of(capsys, ["train", "--resume", "run", "--balance", "series", "--series", "0"], status=2)
    assert "--balance, --series" in line


def test_writers_that_do_not_belong_leave_no_run(small_mnist, capsys, monkeypatch, tmp_path):
    wrong = small_mnist.writers("train")
    wrong = Writers(wrong.digit.copy(), wrong.series, wrong.writer)
    wrong.digit[5] += 1 if wrong.digit[5] < 9 else -1
    monkeypatch.setattr("fastdigit.runs.load_writers", lambda split, labels=None: wrong)
    line = error_of(capsys, ["train", "--data", "mnist", "--balance", "writer"], status=1)
    assert "index 5" in line
    assert not list(tmp_path.glob("runs/*"))


def test_real_series(mnist_root, monkeypatch, capsys):
    if not (mnist_root.parent / "writers").is_dir():
        pytest.skip(f"there is no folder writers/ beside {mnist_root}")
    monkeypatch.setenv("FASTDIGIT_DATA", str(mnist_root.parent))
    options = ["--data", "mnist", "--epochs", "1", "--hidden", "32"]
    assert main(["train", *options, "--series", "0", "--balance", "writer", "--out", "run"]) == 0
    assert "30,950 training images" in capsys.readouterr().out
    assert main(["evaluate", "run", "--by", "series", "--json", "a.json"]) == 0
    rows = {row["group"]: row for row in figures("a.json")["groups"]["groups"]}
    assert {group: row["images"] for group, row in rows.items()} == {0: 4999, 4: 5001}
    assert rows[0]["accuracy"] > rows[4]["accuracy"] > 0.5
