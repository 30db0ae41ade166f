"""``fastdigit bench``: what is measured, shown, compared, and refused."""

import copy
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdigit as fd
from fastdigit.bench import (
    accuracy,
    cases,
    checks,
    commands,
    compare,
    kernels,
    profile,
    report,
    scaling,
    start,
    suite,
    tables,
    train,
    turns,
)
from fastdigit.cli import main
from fastdigit.errors import BackendError, ConfigError
from fastdigit.kernels import matmul

TINY = cases.Network((784, 16, 10), 32)
KERNELS = Path(matmul.__file__).resolve().parents[1]  # beside whose sources compiled code is kept


@pytest.fixture(scope="module")
def digits():
    return fd.load_digits()


@pytest.fixture(scope="module")
def results():
    """What a run might have found, with every kind of row."""

    def side(name, speed, **more):
        return {
            "side": name,
            "precision": "float32",
            "images_per_second": speed,
            "quartiles": [speed * 0.99, speed * 1.01],
            "turns": [speed * 0.98, speed, speed * 1.02],
            "noisy": False,
            "gflops": speed / 1e4,
            "first_call_seconds": 0.1,
            "largest_loss_difference": 2e-6,
            **more,
        }

    def kernel(backend, time, **more):
        return {
            "operation": "dense",
            "shape": "128x784x128",
            "backend": backend,
            "microseconds": time,
            "microseconds_quartiles": [time * 0.98, time * 1.02],
            "noisy": False,
            "gflops": 100.0,
            "gigabytes_per_second": 5.0,
            "flops_per_byte": 20.0,
            "share_of_ceiling": 0.5,
            **more,
        }

    return {
        "format": suite.FORMAT,
        "machine": {
            "cpu": "a <processor>",
            "cores": 2,
            "system": "Linux x86_64",
            "python": "3.11.7",
            "versions": {"fastdigit": "0.1"},
            "commit": "abc",
            "date": "2026-01-01",
        },
        "settings": {"backends": ["cpu", "numpy"]},
        "data": "mnist",
        "limits": {"gflops": 200.0, "copy": 20.0},
        "start": {"backend": "cpu", "python": 0.02, "import": 0.2, "cached": 0.8, "cold": 20.0},
        "train": [
            {
                "name": "small-128",
                "network": "784-128-10@128",
                "best_peers": {"float32": "numpy"},
                "steps_checked": 50,
                "limits": [200.0] * 3,
                "meetings": [40.0] * 3,
                "shortest_meeting": 40.0,
                "rounds_far_apart": 0,
                "rounds_that_count": [0, 1, 2],
                "rows": [
                    side("numpy", 200_000.0),
                    side(
                        "fastdigit",
                        612_345.0,
                        ratio_to_best_peer={"median": 3.06, "quartiles": [3.0, 3.1]},
                        images_per_second_wall=540_321.0,
                    ),
                    side("jax", 1.0) | {"noisy": True},
                    {"side": "torch", "precision": "float32", "no_time": "torch is not installed"},
                ],
            }
        ],
        "predict": [
            {
                "side": "fastdigit",
                "microseconds_label": 7.0,
                "microseconds_label_quartiles": [6.9, 7.1],
                "microseconds_probabilities": 8.0,
                "microseconds_probabilities_quartiles": [7.9, 8.1],
                "images_per_second": 1e6,
            },
            {"side": "torch", "no_time": "torch is not installed"},
        ],
        "accuracy": [
            {
                "target": 0.98,
                "side": "fastdigit",
                "recipe": "784-128-10, 6 epochs, batch 128",
                "seconds": 0.5,
                "seconds_range": [0.4, 0.6],
                "accuracy": 0.981,
                "accuracy_range": [0.98, 0.982],
                "seeds": 5,
                "reached": True,
            },
            {
                "target": 0.98,
                "side": "torch",
                "recipe": "784-128-10, 6 epochs, batch 128",
                "no_time": "torch is not installed",
            },
        ],
        "kernels": {
            "limits": {"gflops": 200.0, "copy": 20.0},
            "rows": [
                kernel("numpy", 250.0),
                kernel("cpu", 125.0, ratio_to="numpy", ratio=2.0, ratio_quartiles=[1.9, 2.1]),
                {"operation": "sgd", "shape": "784-128-10", "backend": "cpu", "no_time": "refused: p: wrong"},
            ],
        },
        "profile": [
            {
                "network": "784-128-10@128",
                "backend": "cpu",
                "limits": {"gflops": 200.0, "copy": 20.0},
                "microseconds_in_pieces": 400.0,
                "microseconds_as_trained": 200.0,
                "rows": [
                    {
                        "operation": "dense",
                        "shape": "128x784x128",
                        "calls": 1,
                        "microseconds": 125.0,
                        "noisy": False,
                        "share_of_step": 0.3,
                        "flops": 25_690_112,
                        "bytes": 868_352,
                        "share_of_ceiling": 0.9,
                    }
                ],
            }
        ],
        "scaling": [
            {
                "axis": "batch",
                "value": batch,
                "network": f"784-512-256-10@{batch}",
                "images_per_second": 1e5,
                "quartiles": [9.9e4, 1.01e5],
                "gflops": 150.0,
            }
            for batch in (32, 64)
        ],
        "gpu": {"no_time": "CuPy is not installed"},
    }


# --- tables ---------------------------------------------------------------------------------------


def test_every_part_becomes_a_table(results):
    made = tables.of_results(results)
    assert {table.name.partition("-")[0] for table in made} == set(suite.PARTS)
    for table in made:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert len(table.bars) in (0, len(table.rows))
        assert len(table.kinds) in (0, len(table.rows))
        assert all(0 <= bar <= 1 for bar in table.bars)


def test_the_figures_are_those_of_the_file(results):
    by_name = {table.name: table for table in tables.of_results(results)}
    names = [row[0] for row in by_name["train-small-128"].rows]
    assert names == ["fastdigit", "numpy", "jax (noisy)", "torch"]  # by speed; what has none comes last
    ours, best, _, absent = by_name["train-small-128"].rows
    figures = "612,000", "606,000 to 618,000", "61", "31%", "3.06 × numpy", "3.00 to 3.10 ×", "0.1 s"
    assert ours[1:] == figures
    assert best[5] == "best peer"
    assert by_name["train"].columns == (
        "network, batch",
        "numpy",
        "jax",
        "fastdigit",
        "fastdigit to the best",
    )
    # Those with a time.
    assert by_name["train"].rows == [("784-128-10, 128", "200,000", "~1", "612,000", "3.06 ×")]
    text = by_name["train-small-128"].text
    assert "Losses of the first 50 steps differ from float64's by at most 2e-06 (float32)." in text
    assert "whole calls of fit, which also check and copy the data, do 540,000 images/s" in text
    assert absent[1] == "torch is not installed"
    assert by_name["kernels"].columns[-1] == "to numpy"
    assert by_name["kernels"].rows[1][-1] == "2.00 ×"
    assert by_name["kernels"].rows[2][:2] == ("sgd 784-128-10, cpu", "refused: p: wrong")
    assert by_name["profile-784-128-10@128"].rows[-1][:4] == ("Python in between", "", "280.0 µs", "70.0%")
    assert by_name["gpu"].rows == [("CuPy is not installed",)]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1_234_567, "1,230,000")]
)
def test_counts_have_three_digits(number, text):
    assert tables.count(number) == text


def test_tables_between_marks_of_a_readme(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench: start -->\nold\n<!-- end of bench -->\nb\n")
    assert report.fill(readme, results)
    text = readme.read_text()
    assert text.startswith("a\n<!-- bench: start -->\n| what | seconds |\n|")
    assert "old" not in text
    assert text.endswith("<!-- end of bench -->\nb\n")
    assert "| import fastdigit | 0.20 |" in text
    assert not report.fill(readme, results)  # it is up to date
    readme.write_text("<!-- bench: nonsense -->\n<!-- end of bench -->\n")
    with pytest.raises(ConfigError, match="no table 'nonsense'; they have train, train-small-128, predict"):
        report.fill(readme, results)


# --- the page -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Notes what a page holds; every tag must be closed in order."""

    VOID = ("meta", "br", "path", "use")

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(results):
    text = report.page(results)
    read = Reader(text)
    assert read.open == []
    for name, value in read.attributes:
        assert name not in ("src", "srcset")
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
    assert "<script" not in text
    assert "@import" not in text
    assert "url(http" not in text
    said = "".join(read.text)
    for part in ("a <processor>", "612,000", "torch is not installed", "refused: p: wrong", "Roofline"):
        assert part in said
    assert text.count("<svg") == 3  # the roofline, accuracy, scaling
    assert "var(--ours)" in text
    assert "#c2410c" not in text.partition("</style>")[2]  # else a chart would not follow the colours
    assert text == report.page(results)


def test_sentences_on_the_page_are_not_one_long_line(results):
    reason = "a reason that has more words than a line of the page has room for " * 3
    text = report.page({**results, "gpu": {"no_time": reason}})
    assert f'<td class="words">{reason}</td>' in text
    assert "td.words { text-align: left; white-space: normal; }" in text


def test_the_page_without_matplotlib_says_how_to_get_charts(results, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = report.page(results)
    assert Reader(text).open == []
    assert "<svg" not in text
    assert "pip install" in text
    with pytest.raises(ConfigError, match="matplotlib"):
        report.write_pictures(results, "nowhere")


def test_pictures_of_all_charts(results, tmp_path):
    paths = report.write_pictures(results, tmp_path / "new")
    assert [path.name for path in paths] == [
        "bench_train.png",
        "bench_accuracy.png",
        "bench_kernels.png",
        "bench_scaling.png",
    ]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.info["Source"] == report.fingerprint(results)
    assert report.fingerprint(changed(results, 1.5)) != report.fingerprint(results)


RESULTS = Path(report.__file__).parent / "results"


def test_the_tables_and_pictures_of_the_readme_are_those_of_the_committed_results():
    committed = suite.read(RESULTS / "bench.json")
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert len(report.MARK.findall(readme)) >= 2
    assert report.filled(readme, committed) == readme
    shown = re.findall(r"\(bench/results/(bench_\w+\.png)\)", readme)
    assert shown
    for name in shown:
        with Image.open(RESULTS / name) as picture:
            assert picture.info["Source"] == report.fingerprint(committed)


@pytest.mark.parametrize(
    ("mark", "file", "part"),
    [("epyc", "bench_epyc.json", "train"), ("to accuracy", "accuracy.json", "accuracy")],
)
def test_the_readme_shows_tables_of_other_runs_too(mark, file, part):
    (table,) = (made for made in tables.of_results(suite.read(RESULTS / file)) if made.name == part)
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"<!-- table: {mark} -->\n{tables.markdown(table)}\n<!-- end of table -->" in readme


# --- comparing --------------------------------------------------------------------------------------


def changed(results, factor, noise=0.01):
    """The same with another speed of ours, and quartiles so far from the median."""
    other = copy.deepcopy(results)
    row = other["train"][0]["rows"][1]
    row["images_per_second"] *= factor
    row["turns"] = [row["images_per_second"] * (1 + 2 * i * noise) for i in (-1, 0, 1)]
    return other


def test_the_same_results_are_as_fast(results):
    rows = compare.compare(results, results)
    assert len(rows) == 3 + 2 + 2 + 2  # training, prediction, kernels, scaling
    assert all(row.ratio == 1 and not row.slower(0.0) and not row.faster(0.0) for row in rows)
    assert compare.missing(results, results) == []


def test_what_is_missing_is_named_but_for_whole_parts(results):
    less = copy.deepcopy(results)
    less["train"][0]["rows"].pop(0)
    del less["kernels"]
    assert compare.missing(results, less) == ["train small-128 numpy"]
    assert compare.missing(results, less, ("scaling",)) == []
    assert compare.missing(results, less, ("kernels",)) == []


def test_what_is_slower_by_more_than_its_noise(results):
    def of_ours(factor, noise):
        rows = compare.compare(results, changed(results, factor, noise))
        return next(row for row in rows if row.name == "train small-128 fastdigit")

    assert of_ours(0.9, 0.01).slower(0.05)
    assert not of_ours(0.9, 0.01).slower(0.15)
    assert not of_ours(0.9, 0.2).slower(0.05)  # half the distance of its quartiles is 20 %
    assert of_ours(1.1, 0.01).faster(0.05)


def test_another_clock_of_the_processor_is_no_regression(results):
    slow = copy.deepcopy(results)
    slow["train"][0]["limits"] = [200.0, 150.0, 100.0]
    for row in slow["train"][0]["rows"][:3]:
        row["turns"] = [speed * share for speed, share in zip(row["turns"], (1, 0.75, 0.5), strict=True)]
    rows = [row for row in compare.compare(results, slow) if row.name.startswith("train")]
    assert [row.ratio for row in rows] == [1, 1, 1]
    assert rows[0].noise == compare.compare(results, results)[0].noise


def test_predictions_count_relative_to_the_limit_before_them(results):
    slow = copy.deepcopy(results)
    slow["limits"] |= {"predict": 100.0}
    row = slow["predict"][0]
    for what in "microseconds_label", "microseconds_probabilities":
        row[what] *= 2
        row[f"{what}_quartiles"] = [2 * time for time in row[f"{what}_quartiles"]]
    rows = [row for row in compare.compare(results, slow) if row.name.startswith("predict")]
    assert [row.ratio for row in rows] == [1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "digits"}, "data mnist in one, digits in the other"),
        ({"settings": {"backends": ["cuda"]}}, "backends cpu, numpy in one, cuda in the other"),
    ],
)
def test_what_was_measured_on_something_else_is_not_compared(results, change, said, tmp_path, capsys):
    files = before, after = tmp_path / "before.json", tmp_path / "after.json"
    suite.write(before, results)
    suite.write(after, {**results, **change})
    assert main(["bench", "compare", *map(str, files)]) == 2
    assert capsys.readouterr().err == f"error: these two cannot be compared: {said}\n"


def test_where_nothing_could_be_compared_it_is_no_success(results, tmp_path):
    far = copy.deepcopy(results)
    far["train"][0] |= {"meetings": [150.0] * 3, "rounds_far_apart": 3}
    files = before, after = tmp_path / "before.json", tmp_path / "after.json"
    for file, content in ((before, results), (after, far)):
        suite.write(file, {name: part for name, part in content.items() if name not in OTHER_PARTS})
    assert main(["bench", "compare", *map(str, files)]) == 1


OTHER_PARTS = ("predict", "kernels", "scaling")


def test_cores_far_apart_are_no_regression(results, tmp_path, capsys):
    far = changed(results, 0.5)
    far["train"][0] |= {"meetings": [150.0] * 3, "rounds_far_apart": 3}
    assert not [row for row in compare.compare(results, far) if row.name.startswith("train")]
    assert "train small-128 fastdigit" in compare.apart(results, far)
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    suite.write(before, results)
    suite.write(after, far)
    assert main(["bench", "compare", str(before), str(after)]) == 0
    said = capsys.readouterr().out
    assert "not compared train small-128 fastdigit: in one run the cores were far apart" in said
    text = next(table.text for table in tables.of_results(far) if table.name == "train-small-128")
    assert "In 3 of 3 rounds the cores were far apart (a barrier took 150 ns, otherwise 40)" in text
    assert text.endswith("counted all the same.")


def test_the_command_compare(results, tmp_path, capsys):
    before, after, gone = (tmp_path / name for name in ("before.json", "after.json", "gone.json"))
    suite.write(before, results)
    suite.write(after, changed(results, 0.8))
    suite.write(gone, {**results, "scaling": {"no_time": "reason"}})
    assert main(["bench", "compare", str(before), str(before)]) == 0
    capsys.readouterr()
    assert main(["bench", "compare", str(before), str(after)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(" 0.800 ± 0.0")
    assert said[0].endswith("train small-128 fastdigit  slower")
    assert said[-1] == "9 rows, 1 slower by more than 5% and their noise"
    assert main(["bench", "compare", str(before), str(after), "--threshold", "0.3"]) == 0
    capsys.readouterr()
    assert main(["bench", "compare", str(before), str(gone)]) == 1
    assert "gone         scaling batch 32" in capsys.readouterr().out


def test_a_missing_file_is_no_regression(results, tmp_path, capsys):
    before = tmp_path / "before.json"
    suite.write(before, results)
    assert main(["bench", "compare", str(before), str(tmp_path / "after.json")]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no file {tmp_path / 'after.json'}: ")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}', ""])
def test_a_file_that_is_none_of_ours(content, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(content)
    assert main(["bench", "show", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(file) in error
    assert error.count("\n") == 1


# --- measuring ------------------------------------------------------------------------------------


def test_all_operations_of_a_tiny_network_in_turns():
    limits, rows = kernels.measure(("cpu",), [TINY], 2)
    assert limits["gflops"] > 1
    assert limits["copy"] > 0.1
    assert {case.operation for case in kernels.cases_of(TINY).values()} == set(checks.CHECKS) - {
        "relu",
        "relu_grad",
    }  # parts of others
    names = {str(case) for case in kernels.cases_of(TINY).values()}
    for backend in ("numpy", "cpu"):
        found = [row for row in rows if row["backend"] == backend]
        assert {f"{row['operation']} {row['shape']}" for row in found} == names
        for row in found:
            low, high = row["microseconds_quartiles"]
            assert 0 < low <= row["microseconds"] <= high
            assert row["share_of_ceiling"] > 0
            assert ("ratio" in row) == (backend == "cpu")
    json.dumps(rows, allow_nan=False)


DENSE, GRAD_WEIGHT = "dense 32x784x16", "dense_grad_weight 32x784x16"


def answers_of(backend, names=(DENSE, GRAD_WEIGHT), turns=2):
    """What it answers in so many turns, after the one in which it gets ready."""
    answers, question = kernels.Answers(backend), [list(TINY.layer_sizes), TINY.batch, list(names)]
    assert answers(question) == {}
    return [answers(question) for _ in range(turns)]


def test_a_wrong_kernel_is_refused_a_time(monkeypatch):
    right = fd.get_backend("cpu")

    def wrong(x, w, b, y, relu):
        right.dense(x, w, b, y, relu)
        y[0, 0] += 1

    monkeypatch.setattr(kernels.fd, "get_backend", lambda name: replace(right, dense=wrong))
    found = answers_of("cpu")
    for answer in found:
        assert answer["no_times"][DENSE].startswith("refused: y")
        assert list(answer["seconds"]) == [GRAD_WEIGHT]
        assert answer["seconds"][GRAD_WEIGHT] > 0
    row = row_of(DENSE, "cpu", cpu=found, numpy=[seconds_of(DENSE, 1e-5)] * 2)
    assert row["no_time"] == found[0]["no_times"][DENSE]
    assert "microseconds" not in row
    assert "ratio" not in row_of(DENSE, "numpy", "cpu", cpu=found, numpy=[seconds_of(DENSE, 1e-5)] * 2)


def seconds_of(name, seconds):
    return {"seconds": {name: seconds}, "no_times": {}}


def row_of(name, side, baseline="numpy", **answers):
    return kernels.row_of(kernels.cases_of(TINY)[name], side, answers, {"gflops": 100, "copy": 10}, baseline)


def test_a_backend_that_cannot_run_here_has_no_time(monkeypatch):
    def missing(name):
        raise BackendError("not here")

    monkeypatch.setattr(kernels.fd, "get_backend", missing)
    for answer in answers_of("cupy"):
        assert answer == {"seconds": {}, "no_times": {DENSE: "not here", GRAD_WEIGHT: "not here"}}


def test_a_process_that_ended_has_no_time():
    row = row_of(DENSE, "cpu", cpu=[{"no_time": "failed: it fell over"}], numpy=[seconds_of(DENSE, 1e-5)])
    assert row["no_time"] == "failed: it fell over"


@pytest.mark.parametrize(("spread", "noisy"), [(0.01, False), (0.3, True)])
def test_a_noisy_kernel_is_flagged(spread, noisy):
    answers = [seconds_of(DENSE, s) for s in 1e-4 * (1 + spread * np.linspace(-1, 1, 9))]
    assert row_of(DENSE, "cpu", "cpu", cpu=answers)["noisy"] is noisy


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_a_profile_accounts_for_the_whole_step(backend, digits, monkeypatch):
    monkeypatch.setattr(profile, "STEPS", 12)
    found = profile.measure(TINY, digits.train, backend)
    assert [f"{row['operation']} {row['shape']}" for row in found["rows"]] == [
        "gather 32x784",
        "gather_values 32",
        "dense 32x784x16",
        "dense 32x16x10",
        "softmax_xent 32x10",
        "dense_grad_weight 32x16x10",
        "dense_grad_input 32x16x10",
        "dense_grad_weight 32x784x16",
        "sgd 784-16-10",
    ]
    assert all(row["calls"] == 1 and row["microseconds"] > 0 for row in found["rows"])
    assert 0.2 < sum(row["share_of_step"] for row in found["rows"]) < 1.2
    assert found["microseconds_as_trained"] > 0
    json.dumps(found, allow_nan=False)


def test_two_layers_of_one_shape_are_one_row_of_the_profile(digits, monkeypatch):
    monkeypatch.setattr(profile, "STEPS", 12)
    found = profile.measure(cases.Network((784, 16, 16, 16, 10), 32), digits.train, "numpy")
    calls = {(row["operation"], row["shape"]): row["calls"] for row in found["rows"]}
    assert calls["dense", "32x16x16"] == 2
    assert calls["dense_grad_input", "32x16x16"] == 2
    assert calls["dense", "32x784x16"] == 1


def test_scaling_has_a_row_for_each_point(digits, monkeypatch):
    monkeypatch.setattr(scaling, "FLOPS", 1e7)
    rows = scaling.measure(digits.train, "numpy", rounds=1, chosen=("depth", "threads"))
    assert [(row["axis"], row["value"]) for row in rows] == [("depth", n) for n in (1, 2, 3, 4, 6, 8)]
    assert all(row["images_per_second"] > 0 for row in rows)


def test_accuracy_is_that_of_the_test_images(digits, monkeypatch):
    easy = accuracy.Recipe(0.5, (784, 32, 10), 8, batch=32, rate=0.1, augment=fd.Augment(rotation=5))
    hard = replace(easy, target=0.9999, epochs=1)
    monkeypatch.setattr(accuracy, "RECIPES", {0.5: easy, 0.9999: hard})
    monkeypatch.setattr(accuracy.fd, "load_mnist", lambda: digits)
    side, asked = accuracy.Answers("fastdigit", "numpy"), []

    class Here(turns.Turns):
        """Answers in this process."""

        def start(self, name, command):
            assert command[1:4] == list(accuracy.CHILD)

        def ask(self, name, question):
            asked.append((name, *question))
            return side(json.loads(json.dumps(question))) if name == "fastdigit" else {"no_time": "missing"}

    monkeypatch.setattr(accuracy.turns, "Turns", Here)
    rows = accuracy.measure(["numpy"], seeds=2, most=1)
    assert [(row["target"], row["side"]) for row in rows] == [
        (0.5, "fastdigit"),
        (0.5, "torch"),
        (0.9999, "fastdigit"),
        (0.9999, "torch"),
    ]
    assert asked[:5] == [
        ("fastdigit", 0.5, 0),
        ("torch", 0.5, 0),
        ("fastdigit", 0.5, 1),
        ("fastdigit", 0.5, 2),
        ("fastdigit", 0.9999, 0),
    ]
    assert rows[1]["no_time"] == "missing"
    assert [rows[0]["reached"], rows[2]["reached"]] == [True, False]
    assert rows[0]["accuracy_range"][0] <= rows[0]["accuracy"] <= rows[0]["accuracy_range"][1]
    net = fd.Network(easy.layer_sizes, backend="numpy", seed=1)
    fd.fit(
        net,
        digits.train,
        optimizer=fd.SGD(easy.rate, momentum=0.9, nesterov=True),
        schedule=fd.OneCycle(),
        epochs=8,
        batch_size=32,
        label_smoothing=0.1,
        augment=fd.Augment(rotation=5),
        seed=1,
    )
    assert fd.evaluate(net, digits.test).accuracy in rows[0]["accuracy_range"]
    assert len(accuracy.measure(["numpy"], seeds=1, most=0.6)) == 2


def test_a_recipe_may_shift_images(digits):
    images, labels = accuracy.Recipe(0.5, (784, 32, 10), 1, shifts=4).training_set(digits.train)
    count = len(digits.train)
    assert len(images) == len(labels) == 5 * count
    left, right = images[:count, :, 1:], images[count : 2 * count]
    np.testing.assert_array_equal(images[:count], digits.train.images)
    distances = [
        abs(images[i * count : (i + 1) * count].astype(int) - images[:count]).sum() for i in range(5)
    ]
    assert distances[0] == 0
    assert min(distances[1:]) > 0
    np.testing.assert_array_equal(right[:, :, :-1], left)
    np.testing.assert_array_equal(labels.reshape(5, -1), [digits.train.labels] * 5)


def test_a_quick_run_compiles_all_that_it_measures_beforehand():
    place, network = Path(os.environ.get("NUMBA_CACHE_DIR", KERNELS)), TINY

    def kept():
        return {file: file.stat().st_mtime_ns for file in place.rglob("*.nbi")}  # of all that is compiled

    start.compile_all("cpu", network)
    found = kept()
    # One that predictions need, and one that is measured alone.
    missing = {file for file in found if re.match(r"cpu\.(_infer|_softmax)-", file.name)}
    assert len({file.name.partition("-")[0] for file in missing}) == 2
    for file in missing:
        file.unlink()
    start.compile_all("cpu", network)  # other processes, with nothing else left to compile
    again = kept()
    assert set(again) == set(found)
    assert all(again[file] == found[file] for file in found if file not in missing)


def test_compiling_that_fails_is_said():
    with pytest.raises(RuntimeError, match="exit status 1"):
        start.compile_all("no such backend", TINY)


def test_start_is_measured_in_new_processes():
    found = start.measure("numpy", repeat=1)
    # An import costs a few milliseconds, less than one start differs from another; a training imports NumPy.
    assert 0 < found["python"] < min(found["cached"], found["cold"])
    assert 0 < found["import"] < min(found["cached"], found["cold"])
    assert "cold" not in start.measure("numpy", cold=False, repeat=1)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_network(monkeypatch):
    """One tiny network instead of those of the table."""
    monkeypatch.setattr(train, "NETWORKS", {"small-128": TINY})


def test_the_whole_command_at_tiny_size(tiny_network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "data_set", lambda: ("digits", fd.load_digits()))
    out = tmp_path / "found.json"
    options = ["--network", "small-128", "--rounds", "1", "--seconds", "0.05", "--out", str(out)]
    options += ["--backend", "cpu,numpy"]
    assert main(["bench", "--quick", *options]) == 0
    said = capsys.readouterr().out
    results = suite.read(out)
    assert set(results) >= {
        "machine",
        "limits",
        "start",
        "train",
        "predict",
        "accuracy",
        "kernels",
        "profile",
    }
    assert results["accuracy"]["no_time"].startswith("needs MNIST")
    sides = {row["side"]: row for row in results["train"][0]["rows"]}
    assert "no_time" not in sides["fastdigit"]
    assert "no_time" not in sides["fastdigit-numpy"]
    assert "no_time" not in sides["scikit-learn"]
    assert Reader(out.with_suffix(".html").read_text()).open == []
    assert "Training 784-16-10, batch 32" in said
    assert said.endswith(f"results: {out}\npage:    {out.with_suffix('.html')}\n")


def test_a_part_that_fails_leaves_its_reason_and_the_rest(monkeypatch):
    def fails(settings, name, data):
        raise OSError("no space left")

    monkeypatch.setitem(suite.MEASURE, "predict", fails)
    monkeypatch.setitem(suite.MEASURE, "start", lambda *arguments: {"backend": "numpy", "python": 0.1})
    monkeypatch.setattr(suite, "data_set", lambda: ("digits", fd.load_digits()))
    saved = []
    found = suite.run(suite.Settings(parts=("predict", "start")), lambda text: None, saved.append)
    assert found["predict"] == {"no_time": "OSError: no space left"}
    assert found["start"]["python"] == 0.1
    assert len(saved) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--network", "tiny"], "there is no network 'tiny': choose from small-64, small-128"),
        (["--backend", "gpu"], "there is no backend 'gpu': choose from"),
        (["--python", "/no/such/python"], "there is no interpreter /no/such/python"),
        (["--out", "/no/such/folder/x.json"], "make the folder /no/such/folder first"),
        (["train", "--batch", "0"], "batch"),
        (["nonsense"], "nonsense"),
    ],
)
def test_what_does_not_exist_is_said_in_one_line(options, said, capsys):
    assert main(["bench", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_batch_replaces_those_of_the_networks():
    chosen = suite.Settings(networks=("small-64", "small-128", "deep-512"), batch=32).chosen_networks()
    assert {name: str(network) for name, network in chosen.items()} == {
        "small-32": "784-128-10@32",
        "deep-32": "784-2500-2000-1500-1000-500-10@32",
    }


def test_the_command_has_every_part():
    assert tuple(commands.PARTS) == suite.PARTS


def test_report_makes_what_is_asked_for(results, tmp_path, capsys):
    file, readme = tmp_path / "found.json", tmp_path / "README.md"
    suite.write(file, results)
    readme.write_text("<!-- bench: start -->\n<!-- end of bench -->\n")
    options = ["--html", str(tmp_path / "page.html"), "--png", str(tmp_path), "--readme", str(readme)]
    assert main(["bench", "report", str(file), *options]) == 0
    assert (tmp_path / "page.html").read_text() == report.page(results)
    assert (tmp_path / "bench_kernels.png").exists()
    assert "import fastdigit" in readme.read_text()
    assert "brought up to date" in capsys.readouterr().out
    assert main(["bench", "report", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_the_terminal_shows_what_is_in_brackets():
    from rich.console import Console

    reason = "CuPy is not installed: pip install 'fastdigit[cuda13]', or [cuda12] for a driver of CUDA 12"
    console = Console(width=60, record=True, file=io.StringIO())
    tables.show(tables.Table("gpu", "GPU", ("no time",), [(reason,)], text="see [cuda13]"), console)
    shown = " ".join(console.export_text().split())
    assert reason in shown
    assert "see [cuda13]" in shown


@pytest.mark.parametrize("width", [80, 100, 200])
def test_figures_are_whole_in_a_narrow_terminal(width):
    from rich.console import Console

    for table in tables.of_results(suite.read(RESULTS / "train_xeon.json")):
        console = Console(width=width, record=True, file=io.StringIO())
        tables.show(table, console)
        shown = console.export_text()
        assert "…" not in shown, shown
        minor = table.minor if width < tables.WIDE else ()
        columns = [i for i, name in enumerate(table.columns) if i and name not in minor]
        figures = [row[i] for row in table.rows for i in columns if row[i] and not tables.is_reason(row)]
        assert all(word in shown for figure in figures for word in figure.split()), shown
