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


def test_calibration_shows_bins_answers_and_risk(drawn, tmp_path):
    evaluation = evaluation_of([0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2], [0.99, 0.61, 0.9, 0.81, 0.95, 0.7])
    plots.calibration(evaluation, tmp_path / "a.png")
    reliability, histogram, risk = drawn().axes
    bins = fd.reliability(evaluation)
    bars = [(bar.get_x(), bar.get_height()) for bar in reliability.patches]
    assert bars == list(zip(100 * bins.low, 100 * bins.accuracy, strict=True))
    claimed = reliability.lines[-1]
    assert claimed.get_xdata().tolist() == claimed.get_ydata().tolist() == (100 * bins.confidence).tolist()
    assert [label.get_text() for label in histogram.get_legend().get_texts()] == ["right (4)", "wrong (2)"]
    assert risk.lines[0].get_xdata() == pytest.approx(100 * np.arange(1, 7) / 6)
    assert risk.lines[0].get_ydata() == pytest.approx([0, 0, 100 / 3, 25, 20, 100 / 3])
    assert f"calibration error {100 * bins.error:.2f} %" in drawn().get_suptitle()
    width, height = size_of(tmp_path / "a.png")
    assert width > 2 * height > 1000


@pytest.mark.parametrize("confidence", [0.9, 1.0])
def test_calibration_of_a_faultless_network(drawn, tmp_path, confidence):
    plots.calibration(evaluation_of([0, 1, 2], [0, 1, 2], [confidence] * 3), tmp_path / "a.png")
    size_of(tmp_path / "a.png")


def test_the_least_clear_images_come_first(drawn, images, tmp_path):
    p = np.array(
        [[0.5, 0.45, 0.05], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.05, 0, 0.95], [0, 1, 0], [0.43, 0.57, 0]]
    )
    evaluation = fd.Evaluation(
        np.array([3, 5, 8]), np.array([1, 1, 2, 0, 1, 0]), np.log(np.maximum(p, 1e-30)) * 2, temperature=2.0
    )
    plots.ambiguous_digits(evaluation, images, tmp_path / "a.png", count=3)
    shown = [axes for axes in drawn().axes if axes.images]
    unclear, misread = shown[:3], shown[3:]
    assert [axes.get_title() for axes in unclear] == [
        "3: 50 %  5: 45 %",
        "8: 40 %  3: 30 %",
        "5: 57 %  3: 43 %",
    ]
    assert [axes.get_xlabel() for axes in unclear] == ["5", "8", "3"]
    assert [axes.title.get_color() for axes in unclear] == [plots.WRONG, plots.RIGHT, plots.WRONG]
    for axes, index in zip(unclear, (0, 2, 5), strict=True):
        assert np.array_equal(axes.images[0].get_array(), images[index])
    assert [axes.get_title() for axes in misread] == ["3 → 8", "3 → 5", "5 → 3"]
    assert [axes.get_xlabel() for axes in misread] == ["95 %", "57 %", "50 %"]
    size_of(tmp_path / "a.png")


def test_ambiguous_digits_of_a_faultless_network_and_of_a_single_class(drawn, images, tmp_path):
    evaluation = evaluation_of([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0.9] * 6)
    plots.ambiguous_digits(evaluation, images, tmp_path / "a.png")
    assert drawn().subfigs[1].get_suptitle() == "no image is misread"
    size_of(tmp_path / "a.png")
    with pytest.raises(fd.DataError, match="single class"):
        plots.ambiguous_digits(evaluation_of([0], [0], [1], classes=(0,)), images, tmp_path / "a.png")


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


def test_deformed_digits_stand_beside_their_originals(drawn, tmp_path):
    images, augment = fd.load_digits().train, fd.Augment(rotation=30, shift=2)
    plots.deformed_digits(images, augment, tmp_path / "a.png", seed=4, columns=5)
    shown = np.stack([axes.images[0].get_array() for axes in drawn().axes]).reshape(10, 5, 28, 28)
    first = np.stack([images.images[images.labels == digit][0] for digit in range(10)])
    np.testing.assert_array_equal(shown[:, 0], first)
    np.testing.assert_array_equal(shown[:, 3], augment.apply(first, seed=4, step=2))
    assert (shown[:, 1:] != shown[:, :1]).any(axis=(2, 3)).all()
    assert "rotation=30,shift=2" in drawn()._suptitle.get_text()


def attacked(target=None):
    """Figures of attacks that were never made."""
    method = fd.PGD(0.1, norm="l2", targeted=target is not None)
    reached = (None, None) if target is None else (0.25, 0.75)
    at = [fd.UnderAttack(e, 40, a, r) for e, a, r in zip((0.5, 2.0), (0.6, 0.1), reached, strict=True)]
    return fd.AdversarialRobustness(method, 0.9, 40, tuple(at), target=target)


@pytest.mark.parametrize("target", [None, 3])
def test_adversarial_examples_and_the_curve(drawn, tmp_path, target):
    random = np.random.default_rng(0)
    before = random.uniform(0.3, 0.6, (2, 9, 7))
    after = before + random.uniform(-0.1, 0.1, before.shape)
    after[:, 0, 0] = before[:, 0, 0] + 0.125
    examples = [(before[i], after[i], label, guess, 0.8) for i, label, guess in ((0, 7, 2), (1, 4, 9))]
    plots.adversarial_examples(attacked(target), examples, 2.0, tmp_path / "a.png")
    figure = drawn()
    *grid, curve = figure.axes
    assert [axes.get_title() for axes in grid] == ["7", "4", "× 8", "× 8", "→ 2", "→ 9"]
    assert [axes.get_xlabel() for axes in grid[4:]] == ["80 %", "80 %"]
    for column in range(2):
        shown = [grid[column + 2 * row].images[0].get_array() for row in range(3)]
        np.testing.assert_allclose(shown, [before[column], after[column] - before[column], after[column]])
    left, *reached = curve.lines
    np.testing.assert_allclose(left.get_xydata(), [(0, 90), (0.5, 60), (2, 10)])
    assert [line.get_ydata().tolist() for line in reached] == ([] if target is None else [[25, 75]])
    assert "length of at most 2" in figure.subfigs[0].get_suptitle()
    assert "PGD, 40 images" in titles(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # at the resolution of this renderer
    width, height = figure.canvas.get_width_height()
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            box = text.get_window_extent(renderer)
            assert 0 <= box.x0 < box.x1 <= width, text
            assert 0 <= box.y0 < box.y1 <= height, text


def test_no_adversarial_example(drawn, tmp_path):
    plots.adversarial_examples(attacked(), [], 0.5, tmp_path / "a.png")
    assert "nothing is misread within 0.5" in drawn().subfigs[0].get_suptitle()
    assert len(drawn().axes) == 1
