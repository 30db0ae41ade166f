"""The pictures of limits: what is drawn on them, and that they are sound files."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import fastdigit as fd
from fastdigit import plots, plots_limits
from fastdigit.corruptions import CORRUPTIONS, STRENGTHS
from fastdigit.groups import GroupAccuracy


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved last, as ``drawn()``, nothing on it cut off; it is saved nevertheless."""
    figures, save = [], plots._save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    def last():
        figure = figures[-1]
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
        assert 0 <= box.x0 <= box.x1 <= width
        assert 0 <= box.y0 <= box.y1 <= height
        return figure

    monkeypatch.setattr(plots, "_save", keep)
    return last


def groups_of(rows):
    """A GroupAccuracy of (name, images, right)."""
    names, count, correct = zip(*rows, strict=True)
    return GroupAccuracy(np.array(names), np.array(count), np.array(correct))


def cell(axes, images, row, column):
    """What a sheet shows in a cell of so many images side by side; beyond it is nothing."""
    sheet, gap = axes.images[0].get_array().filled(-1), plots_limits.GAP
    height, width = images.shape[1], images.shape[2] * len(images)
    top, left = row * (height + gap), column * (width + gap)
    assert (sheet[top : top + height, left + width : left + width + gap] == -1).all()
    assert (sheet[top + height : top + height + gap, left : left + width] == -1).all()
    return sheet[top : top + height, left : left + width]


def test_sheet_of_corruptions(drawn, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 10)).astype(np.uint8)
    plots_limits.corruption_sheet(images, tmp_path / "a.png", seed=2)
    (axes,) = drawn().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CORRUPTIONS)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["as it is", *map(str, STRENGTHS)]
    for row, corrupt in enumerate(CORRUPTIONS.values()):
        assert np.array_equal(cell(axes, images[:3], row, 0), np.hstack(images[:3]))
        for strength in STRENGTHS:
            expected = np.hstack(corrupt(images[:3], strength, seed=2))
            assert np.array_equal(cell(axes, images[:3], row, strength), expected)
    with Image.open(tmp_path / "a.png") as image:
        image.load()


def test_curves_of_robustness(drawn, tmp_path):
    values = {name: (0.9 - number / 20, 0.3) for number, name in enumerate(CORRUPTIONS)}
    found = fd.CorruptionRobustness(images=40, strengths=(2, 5), seed=0, clean=0.95, accuracy=values)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    plots_limits.robustness(found, images, tmp_path / "a.png")
    curves, sheet = drawn().axes
    expected = CORRUPTIONS["contrast"](images[:1], 5)[0]
    assert np.array_equal(cell(sheet, images[:1], list(CORRUPTIONS).index("contrast"), 2), expected)
    assert [line.get_label().split(",")[0] for line in curves.lines] == list(CORRUPTIONS)  # the best first
    assert curves.lines[1].get_xdata().tolist() == [0, 2, 5]
    assert curves.lines[1].get_ydata() == pytest.approx([95, 85, 30])
    assert len({line.get_color() for line in curves.lines}) == len(CORRUPTIONS)


def test_few_groups_have_bars_with_intervals(drawn, tmp_path):
    found = groups_of([("quill", 8, 4), ("ball pen", 400, 380), ("pencil", 100, 100)])
    plots_limits.groups(found, "pen", tmp_path / "a.png")
    (axes,) = drawn().axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 5, 0])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["quill (8 images, too few)", "ball pen (400 images)", "pencil (100 images)"]
    assert "4.72 % of all" in axes.get_title()  # 24 of 508
    (whiskers,) = axes.collections
    for segment, (low, high) in zip(whiskers.get_segments(), found.interval, strict=True):
        assert segment[:, 0] == pytest.approx([100 * (1 - high), 100 * (1 - low)], abs=1e-9)


def test_many_groups_are_a_curve_beside_chance(drawn, tmp_path):
    rows = [(f"w{i:02}", 50, 30 + i // 2) for i in range(40)] + [("tiny", 2, 2)]
    found = groups_of(rows)
    plots_limits.groups(found, "writer", tmp_path / "a.png")
    (axes,) = drawn().axes
    chance, measured = axes.lines
    assert measured.get_ydata() == pytest.approx([100 * (1 - (30 + i // 2) / 50) for i in range(40)])
    assert chance.get_ydata() == pytest.approx(100 * found.by_chance().mean(axis=0))
    assert "40 groups of at least 10 images; 1 with fewer left out" in axes.get_title()


def test_many_groups_all_too_small(drawn, tmp_path):
    plots_limits.groups(groups_of([(i, 2, 1) for i in range(50)]), "pen", tmp_path / "a.png")
    assert "nothing to show" in drawn().axes[0].get_title()
