"""Recipes: they can be read and trained, and the page shows what was measured."""

import json

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import recipes
from fastdigit.datasets import Dataset

NAMES = sorted(path.stem for path in recipes.FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_settings_make_sense(name):
    recipe = recipes.read(name)
    assert 0.9 < recipe["asked"] <= recipe["aim"] < 1
    settings = recipes.settings_of(recipe, 7, "numpy", 60_000)
    assert settings.seed == 7
    settings.fit_options()


def test_a_recipe_trains_and_says_what_came_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.toml").write_text(
        'title = "tiny"\nasked = 0.91\naim = 0.92\nsource = "here"\n[train]\nhidden = [9]\nepochs = 2\n'
    )
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    data = fd.load_digits()
    data = Dataset(data.name, data.train.take(np.arange(200)), data.test)
    out = tmp_path / "recipe_tiny.json"
    results = recipes.run("tiny", [0, 3], "numpy", data, out)
    assert [row["seed"] for row in results["seeds"]] == [0, 3]
    settings = recipes.settings_of(recipes.read("tiny"), 3, "numpy", 200)
    (net,) = settings.networks(784)
    fd.fit(net, data.train, seed=3, **settings.fit_options())
    accuracy = fd.evaluate(net, data.test).accuracy
    assert results["seeds"][1]["accuracy"] == accuracy
    assert results["accuracy"]["least"] <= results["accuracy"]["mean"] <= results["accuracy"]["most"]
    assert json.loads(out.read_text())["seeds"] == results["seeds"]
    monkeypatch.setattr(recipes, "RESULTS", tmp_path)
    assert f"{results['accuracy']['mean']:.2%}" in recipes.markdown()
    out.unlink()
    assert "| – | – |" in recipes.markdown()


def test_a_recipe_that_is_not_there():
    with pytest.raises(fd.ConfigError, match=f"choose one of {NAMES[0]}"):
        recipes.read("nonsense")


def test_the_page_is_that_of_the_results():
    page = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.filled(page) == page


@pytest.mark.parametrize("file", sorted(recipes.RESULTS.glob("recipe_*.json")), ids=lambda file: file.stem)
def test_results_are_of_the_recipe_as_it_is(file):
    results = json.loads(file.read_text())
    recipe = recipes.read(results["recipe"])
    for name, value in recipe["train"].items():
        assert results["settings"][name] == value
    assert all(row["correct"] / 10_000 == row["accuracy"] for row in results["seeds"])
