"""The page about limits: its tables are those of the results, and the trainings are what they say."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import acceptance, augment_cost, bias, robustness, tables
from fastdigit.corruptions import CORRUPTIONS
from fastdigit.datasets import Writers
from tests.conftest import PROJECT

PAGE = PROJECT / "bench" / "LIMITS.md"


@pytest.mark.parametrize("part", [augment_cost, bias, robustness])
def test_a_table_of_the_page_is_the_one_of_the_results(part):
    results = json.loads((PROJECT / "bench" / "results" / f"{part.NAME}.json").read_text())
    table = PAGE.read_text(encoding="utf-8").split(f"<!-- table: {part.NAME} -->")[1].split(acceptance.END)[0]
    assert table.strip() == tables.markdown(part.table(results))


def test_links_and_pictures_of_the_page_exist():
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE.read_text(encoding="utf-8")):
        assert "://" in target or (PAGE.parent / target).exists(), target


def test_a_table_goes_between_its_marks(tmp_path):
    page = tmp_path / "PAGE.md"
    marks = (
        "a\n<!-- table: x -->\nold\n<!-- end of table -->\nb\n<!-- table: y -->\nY\n<!-- end of table -->\n"
    )
    page.write_text(marks)
    acceptance.put_between_marks(page, "x", "| new |")
    assert page.read_text() == marks.replace("old", "| new |")


@pytest.fixture
def writers():
    """70 images of employees, 50 of students, in mixed order."""
    series = np.random.default_rng(0).permutation(np.repeat([0, 4], [70, 50]))
    return Writers(np.zeros(120, np.uint8), series, np.arange(120) // 10)


def test_trainings_have_the_images_they_name(writers):
    found = {name: (indices, weight) for name, indices, weight in bias.trainings(writers, seed=1)}
    employees = {name: (writers.series[indices] == 0).sum() for name, (indices, _) in found.items()}
    assert employees["50: employees"] == 50
    assert employees["50: students"] == 0
    assert employees["50: half of each"] == 25
    assert employees["50: one in ten a student's"] == 45
    assert employees["50: one in ten a student's, by series: resample"] == 25
    assert employees["all, by series: resample"] == 60
    for name, (indices, weight) in found.items():
        assert len(indices) == (120 if name.startswith("all") else 50)
        assert name.endswith("resample") or len(set(indices.tolist())) == len(indices)
        assert (weight is None) != name.endswith("weight")
    few, weight = found["50: one in ten a student's, by series: weight"]
    assert weight[writers.series[few] == 4].sum() == pytest.approx(25)


def test_what_is_measured_and_shown(writers, monkeypatch):
    """The stand-in for a network reads all employees' digits and every second of the students'."""
    images = np.arange(120, dtype=np.uint8).reshape(-1, 1, 1)
    data = fd.Dataset("x", *[fd.Images(images, np.zeros(120, np.uint8))] * 2)
    right = (writers.series == 0) | (np.arange(120) % 2 == 0)
    evaluation = fd.Evaluation(
        np.arange(2), np.zeros(120, np.int32), np.stack([right, ~right], 1).astype(np.float32)
    )
    monkeypatch.setattr(bias, "train", lambda images, seed, weight: None)
    monkeypatch.setattr(fd, "evaluate", lambda net, data: evaluation)
    rows, first = bias.measure(data, {"train": writers, "test": writers}, seeds=range(2))
    assert first is evaluation
    students = right[writers.series == 4].mean()
    for row in rows:
        assert [seed["students"] for seed in row["seeds"]] == [students] * 2
        assert [seed["employees"] for seed in row["seeds"]] == [1.0, 1.0]
    for row in bias.table({"rows": rows}).rows:
        assert row[2] == "100.00% (100.00% to 100.00%)"
        assert row[3].startswith(f"{students:.2%} ")
        assert row[4].startswith(f"{100 * (1 - students):.2f} ")


def test_table_of_corruptions():
    def of(seed, accuracy):
        return {
            "strengths": [1, 2],
            "clean": 0.98,
            "mean": float(np.mean(accuracy)),
            "accuracy": dict.fromkeys(CORRUPTIONS, accuracy),
        }

    rows = robustness.table({"seeds": [of(0, [0.9, 0.5]), of(1, [0.8, 0.4])]}).rows
    assert rows[0] == ("rotation", "85.0%", "45.0%", "65.0%")
    assert rows[-1] == ("all (as they are: 98.00%)", "", "", "65.0%")


def test_what_deforming_costs(monkeypatch):
    seconds = iter([9.0] * 4 + [1.0, 1.1, 1.2, 1.5] * 3)  # the first ones compile
    monkeypatch.setattr(fd, "load_mnist", fd.load_digits)

    def fit(net, images, epochs, augment):
        assert epochs == 1
        return SimpleNamespace(epochs=[SimpleNamespace(seconds=next(seconds))])

    monkeypatch.setattr(fd, "fit", fit)
    rows = augment_cost.table(augment_cost.measure("numpy", rounds=3)).rows
    assert rows[0] == ("as they are", "1.00 s", "", "")
    assert [row[1:3] for row in rows[1:]] == [("1.10 s", "1.10"), ("1.20 s", "1.20"), ("1.50 s", "1.50")]
