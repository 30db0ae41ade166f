"""Recipes: they can be read and trained, and pages show what was measured."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import measures, recipe_tables, recipes, tables
from fastdigit.datasets import Dataset, Writers
from fastdigit.runs import with_later

NAMES = recipes.names()


@pytest.mark.parametrize("name", NAMES)
def test_settings_make_sense(name):
    recipe = recipes.read(name)
    for figure in recipes.figures(recipe):
        asked, less = (
            recipe[figure],
            measures.FIGURES[figure].less_is_better and "against" not in recipe[figure],
        )
        if "asked" in asked:
            assert min(asked["asked"], asked["aim"]) > 0
            assert (asked["aim"] < asked["asked"]) == less
        if "against" in asked:
            assert figure in recipes.figures(recipes.read(asked["against"]))
    settings = recipes.settings_of(recipe, 7, "numpy", 60_000)
    assert settings.seed == 7
    settings.fit_options()
    if measures.calibration in measures.of(recipes.figures(recipe)):
        assert settings.validation


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a recipe of that name with other figures, in a folder of its own."""
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    monkeypatch.setattr(recipes, "RESULTS", tmp_path)

    def write(name, figures, train="", hidden=9, epochs=2):
        recipe = f'title = "tiny"\nsource = "here"\n[train]\nhidden = [{hidden}]\nepochs = {epochs}\n'
        (tmp_path / f"{name}.toml").write_text(recipe + train + figures)
        return tmp_path / f"recipe_{name}.json"

    return write


def test_a_recipe_trains_and_says_what_came_out(written, capsys):
    out = written("tiny", "[accuracy]\nasked = 0.91\naim = 0.92\n")
    data = fd.load_digits()
    data = Dataset(data.name, data.train.take(np.arange(200)), data.test)
    results = recipes.run("tiny", [0, 3], "numpy", data, out)
    assert [row["seed"] for row in results["seeds"]] == [0, 3]
    settings = recipes.settings_of(recipes.read("tiny"), 3, "numpy", 200)
    (net,) = settings.networks(784)
    fd.fit(net, data.train, seed=3, **settings.fit_options())
    accuracy = fd.evaluate(net, data.test).accuracy
    assert results["seeds"][1]["accuracy"] == accuracy
    assert f"read right {accuracy:.2%}" in capsys.readouterr().out
    assert json.loads(out.read_text())["seeds"] == results["seeds"]
    found = [row["accuracy"] for row in results["seeds"]]
    text = f"{sum(found) / 2:.2%} ({min(found):.2%} to {max(found):.2%})"
    row = ("[tiny](tiny.toml)", "read right", "≥ 91%", "≥ 92%")
    assert recipe_tables.all_recipes().rows == [(*row, text, "2")]
    out.unlink()
    assert recipe_tables.all_recipes().rows == [(*row, "–", "–")]


def test_every_figure_comes_of_its_measure(written, monkeypatch):
    """Against what fastdigit says of the same network."""
    trained_well = "validation = 0.2\n"
    written("tiny", "".join(f"[{name}]\n" for name in measures.FIGURES), trained_well, hidden=40, epochs=10)
    data, kept = fd.load_digits(), []
    data = Dataset(data.name, data.train, data.test.take(np.arange(100)))
    writers = Writers(data.test.labels, np.zeros(100, int), np.arange(100) // 10)
    monkeypatch.setattr(fd, "load_writers", lambda split, labels: writers)
    fit = fd.fit
    monkeypatch.setattr(fd, "fit", lambda net, *a, **k: (kept.append((net, a[0])), fit(net, *a, **k))[1])
    (row,) = recipes.run("tiny", [0], "cpu", data)["seeds"]
    figures = {name: figure.value(row) for name, figure in measures.FIGURES.items()}
    net, training = kept[0]
    assert figures["accuracy"] > figures["pgd"] + 0.1 > figures["fgsm"] + 0.2  # one cannot pass for another
    assert figures["accuracy"] == fd.evaluate(net, data.test).accuracy
    for name, method in (("pgd", fd.PGD(0.1, step=0.01, steps=40)), ("fgsm", fd.FGSM(0.25))):
        attacked = fd.attack(net, data.test.images, data.test.labels, method)
        assert figures[name] == pytest.approx((net.predict(attacked) == data.test.labels).mean(), abs=0.02)
    assert figures["corrupted"] == fd.corruption_robustness(net, data.test).mean
    worst = max(
        1 - (net.predict(data.test.images[i : i + 10]) == data.test.labels[i : i + 10]).mean()
        for i in range(0, 100, 10)
    )
    assert figures["worst_writers"] == pytest.approx(worst)
    net.temperature = fd.fit_temperature(fd.evaluate(net, training.validation))
    evaluation = fd.evaluate(net, data.test)
    assert figures["calibration_error"] == pytest.approx(fd.reliability(evaluation).error)
    surest = np.argsort(-evaluation.probabilities.max(axis=1))
    right = evaluation.predicted == data.test.labels
    assert figures["error_at_99"] == pytest.approx(1 - right[surest[:99]].mean())


def test_what_is_asked_in_comparison(written):
    plain, more = (
        written("a", "[worst_writers]\n"),
        written("b", '[worst_writers]\nagainst = "a"\nasked = 0.3\n'),
    )
    for out, errors in ((plain, (0.1, 0.3)), (more, (0.1, 0.15))):
        out.write_text(json.dumps({"seeds": [{"writers": {"error": error}} for error in errors]}))
    rows = recipe_tables.all_recipes().rows
    assert rows[0][1:] == ("misread, worst tenth of writers", "", "", "20.00% (10.00% to 30.00%)", "2")
    text = "37.50% (25.00% to 50.00%)"
    assert rows[1][1:] == ("less misread of the worst tenth of writers than a", "≥ 30%", "", text, "2")
    plain.unlink()
    assert recipe_tables.all_recipes().rows[1][4:] == ("–", "–")


def test_seeds_that_are_no_numbers(capsys):
    with pytest.raises(SystemExit):
        recipes.main(["plain-256", "--seeds", "x"])
    assert "--seeds: invalid" in capsys.readouterr().err


def test_a_recipe_that_is_not_there(capsys, monkeypatch):
    with pytest.raises(fd.ConfigError, match=f"choose one of {NAMES[0]}"):
        recipes.read("nonsense")
    monkeypatch.setattr(recipes, "run", None)  # nothing is trained before all names are known to be right
    with pytest.raises(SystemExit):
        recipes.main([NAMES[0], "nonsense"])
    assert "there is no recipe 'nonsense': choose one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figures", "message"),
    [("[speed]\n", "no figure 'speed'"), ("[accuracy]\nmust = 1\n", r"\[accuracy\] has no must")],
)
def test_a_recipe_that_is_not_sound(written, figures, message):
    written("tiny", figures)
    with pytest.raises(fd.ConfigError, match=message):
        recipes.read("tiny")


@pytest.mark.parametrize(
    ("page", "make"), recipe_tables.TABLES, ids=lambda part: getattr(part, "__name__", "")
)
def test_pages_show_the_results(page, make):
    table = make()
    assert recipe_tables.in_page(page, table.name) == tables.markdown(table)


@pytest.mark.parametrize("file", sorted(recipes.RESULTS.glob("recipe_*.json")), ids=lambda file: file.stem)
def test_results_are_of_the_recipe_as_it_is(file):
    results = json.loads(file.read_text())
    recipe, found = recipes.read(results["recipe"]), results["settings"]
    settings = recipes.settings_of(recipe, found["seed"], found["backend"], 60_000)
    assert with_later(found) == asdict(settings)
    for row in results["seeds"]:
        assert row["correct"] / 10_000 == row["accuracy"]
        for figure in recipes.figures(recipe):
            assert 0 <= measures.FIGURES[figure].value(row) <= 1
