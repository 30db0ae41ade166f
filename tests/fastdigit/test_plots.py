"""The pictures: what is drawn on them, and that they are sound PNG files."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

import fastdigit as fd
from fastdigit import plots
from fastdigit.log import Epoch


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved last, as ``drawn()``; it is saved nevertheless."""
    figures, save = [], plots._save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return lambda: figures[-1]


def size_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def evaluation_of(targets, predicted, confidence, classes=(0, 1, 2)):
    """An Evaluation in which each image is taken for ``predicted`` with that probability."""
    probabilities = np.zeros((len(targets), len(classes)))
    for row, guess, p in zip(probabilities, predicted, confidence, strict=True):
        row[:] = (1 - p) / max(1, len(classes) - 1)
        row[guess] = p
    return fd.Evaluation(np.array(classes), np.array(targets), np.log(np.maximum(probabilities, 1e-30)))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_mistakes_are_shown_the_most_confident_first(drawn, images, tmp_path):
    confidence = [0.99, 0.6, 0.9, 0.8, 0.95, 0.7]
    evaluation = evaluation_of([0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 0, 1], confidence, classes=(3, 5, 8))
    plots.confusion_and_mistakes(evaluation, images, tmp_path / "a.png", count=3)
    matrix, *mistakes = drawn().axes
    shown = [axes for axes in mistakes if axes.images]
    assert [axes.get_title() for axes in shown] == ["8 → 3", "5 → 8", "8 → 5"]
    assert [axes.get_xlabel() for axes in shown] == ["95 %", "90 %", "70 %"]
    assert np.array_equal(shown[0].images[0].get_array(), images[4])
    assert sorted(text.get_text() for text in matrix.texts) == ["1"] * 6
    assert [label.get_text() for label in matrix.get_xticklabels()] == ["3", "5", "8"]
    assert "4 misread, here the 3 most confident" in drawn().subfigs[1].get_suptitle()
    width, height = size_of(tmp_path / "a.png")
    assert width > 1500
    assert height > 800


def test_nothing_is_cut_off(drawn, images, tmp_path):
    evaluation = evaluation_of([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0], [0.9] * 6)
    plots.confusion_and_mistakes(evaluation, images, tmp_path / "a.png")
    figure = drawn()
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert len(texts) > 20
    for text in texts:
        box = text.get_window_extent(renderer)
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


def test_a_faultless_network(drawn, images, tmp_path):
    evaluation = evaluation_of([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0.9] * 6)
    plots.confusion_and_mistakes(evaluation, images, tmp_path / "a.png")
    assert drawn().subfigs[1].get_suptitle() == "no image is misread"
    size_of(tmp_path / "a.png")


def test_first_layer_shows_the_units_with_the_most_say(drawn, tmp_path):
    net = fd.Network([16, 5, 2], classes=[3, 8], backend="numpy")
    weights = net.get_parameters()
    weights["w1"] *= np.float32(0.001)
    weights["w1"][:, 2], weights["w1"][:, 4] = 1, 2
    weights["w1"][0, 2] = -1
    weights["w2"][2], weights["w2"][4] = (0, 1), (1, 0)
    net.set_parameters(weights)
    plots.first_layer_weights(net, tmp_path / "a.png", count=2)
    shown = [axes for axes in drawn().axes if axes.images]
    assert titles(drawn()) == ["for 3", "for 8"]
    assert np.array_equal(shown[0].images[0].get_array(), np.full((4, 4), 2))
    assert shown[1].images[0].get_array()[0, 0] == -1
    assert shown[1].images[0].get_clim() == (-1, 1)
    size_of(tmp_path / "a.png")


@pytest.mark.parametrize("sizes", [[784, 3], [784, 12, 3], [784, 50, 20, 3]])
def test_first_layer_of_any_network_with_its_mistakes(drawn, images, tmp_path, sizes):
    net = fd.Network(sizes, backend="numpy")
    evaluation = evaluation_of([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [0.9] * 6)
    plots.first_layer_weights(net, tmp_path / "a.png", evaluation=evaluation, images=images)
    assert titles(drawn())[-1] == "0 → 1"
    size_of(tmp_path / "a.png")


def test_first_layer_that_is_no_picture(tmp_path):
    with pytest.raises(fd.DataError, match="10 inputs"):
        plots.first_layer_weights(fd.Network([10, 4, 2], backend="numpy"), tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(90, 60), (60, 90, 3)], ids=["grey", "colour"])
def test_preparation_steps(drawn, tmp_path, shape):
    photo = np.full(shape, 220, np.uint8)
    photo[20:50, 25:32] = 30
    steps = fd.prepare_steps(photo)
    plots.preparation_steps(steps, tmp_path / "a.png", title="a one")
    assert titles(drawn()) == ["input", "ink", "contrast", "cropped", "scaled", "centred"]
    assert np.array_equal(drawn().axes[-1].images[0].get_array(), steps["centred"])
    assert drawn().get_suptitle() == "a one"
    size_of(tmp_path / "a.png")


@pytest.mark.parametrize("validation", [None, 0.9])
def test_training_curve(drawn, tmp_path, validation):
    epochs = [
        Epoch(number, 1 / number, 0.8 + number / 20, 0.1, 1.0, 100.0, validation and 0.3, validation)
        for number in (1, 2, 3)
    ]
    log = fd.TrainingLog(epochs=epochs, step_losses=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    plots.training_curve(log, tmp_path / "a.png")
    loss, accuracy = drawn().axes
    steps, means = loss.lines[:2]
    assert steps.get_xdata().tolist() == [0.5, 1, 1.5, 2, 2.5, 3]
    assert steps.get_ydata().tolist() == log.step_losses
    assert list(means.get_ydata()) == [1, 1 / 2, 1 / 3]
    assert len(accuracy.lines) == (1 if validation is None else 2)
    assert len(loss.lines) == (2 if validation is None else 3)
    assert all(list(line.get_ydata()) == [0.3] * 3 for line in loss.lines[2:])
    assert accuracy.lines[0].get_ydata() == pytest.approx([85, 90, 95])
    size_of(tmp_path / "a.png")


def test_training_curve_shows_where_overfitting_began(drawn, tmp_path):
    epochs = [
        Epoch(n, 1 / n, 0.9, 0.1, 1.0, 100.0, 0.2 + abs(n - 7) / 20, 0.9 - n / 100) for n in range(1, 26)
    ]
    plots.training_curve(fd.TrainingLog(epochs=epochs, step_losses=[1.0] * 25), tmp_path / "a.png")
    for axes in drawn().axes:
        assert axes.lines[-1].get_xdata() == [7, 7]
        assert "overfitting since epoch 7" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_training_curve_of_nothing(tmp_path):
    with pytest.raises(fd.DataError, match="train first"):
        plots.training_curve(fd.TrainingLog(), tmp_path / "a.png")


def test_without_matplotlib_the_extra_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "a.png").write_bytes(b"older")
    with pytest.raises(fd.MissingExtraError, match=r"pip install 'fastdigit\[plot\]'"):
        plots.confusion_and_mistakes(evaluation_of([0] * 6, [1] * 6, [0.9] * 6), images, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"older"


def test_pyplot_is_left_alone(tmp_path):
    code = (
        "import sys; import fastdigit as fd; from fastdigit import plots; "
        f"plots.first_layer_weights(fd.Network([16, 2], backend='numpy'), {str(tmp_path / 'a.png')!r}); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
