"""Temperatures, calibration errors and thresholds, held to formulas and loops written here."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

import fastdigit as fd
from fastdigit import probabilities


def evaluation_of(logits, targets, temperature=1.0):
    logits = np.asarray(logits)
    return fd.Evaluation(np.arange(logits.shape[1]), np.asarray(targets), logits, temperature)


def with_confidence(confidence, right):
    """An Evaluation of two classes with these confidences (above 1/2), right or wrong."""
    p = np.asarray(confidence, np.float64)
    logits = np.log(np.stack([p, 1 - p], axis=1))
    return evaluation_of(logits, np.where(right, 0, 1))


def honest(count, scale=1.0, seed=0):
    """Logits, times ``scale``, and targets that were drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = 3 * random.standard_normal((count, 10))
    targets = (softmax(logits, axis=1).cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return evaluation_of((scale * logits).astype(np.float32), targets)


# --- temperature ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.2, 1, 3])
def test_the_temperature_is_the_factor_that_logits_were_scaled_by(scale):
    """20,000 targets know the temperature to about 1 %."""
    assert fd.fit_temperature(honest(20_000, scale)) == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e4])
def test_the_temperature_follows_the_size_of_the_logits(scale):
    evaluation = honest(500)
    logits = evaluation.logits.astype(np.float64)
    expected = scale * fd.fit_temperature(replace(evaluation, logits=logits))
    assert fd.fit_temperature(replace(evaluation, logits=scale * logits)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_temperature_has_a_smaller_loss(seed):
    evaluation = honest(300, 2.0, seed)

    def loss(log_temperature):
        log_p = log_softmax(evaluation.logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return -log_p[np.arange(300), evaluation.targets].mean()

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    temperature = fd.fit_temperature(evaluation)
    assert temperature == pytest.approx(np.exp(best.x), rel=1e-5)
    fitted = replace(evaluation, temperature=temperature)
    assert fd.log_loss(fitted) == pytest.approx(best.fun, rel=1e-12)
    assert fd.log_loss(fitted) < fd.log_loss(evaluation)
    assert fitted.loss == evaluation.loss  # which is that of the logits
    assert np.array_equal(fitted.predicted, evaluation.predicted)


def test_a_constant_added_to_a_row_changes_nothing():
    evaluation = honest(200)
    shifted = replace(evaluation, logits=evaluation.logits + 1e3 * np.arange(200.0)[:, None])
    assert fd.fit_temperature(shifted) == pytest.approx(fd.fit_temperature(evaluation), rel=1e-6)


def test_images_that_know_no_temperature():
    right = evaluation_of([[2.0, 0.0], [0.0, 1.0]], [0, 1])
    with pytest.raises(fd.DataError, match=r"all 2 images are read correctly.*more images"):
        fd.fit_temperature(right)
    with pytest.raises(fd.DataError, match="no better than by chance"):
        fd.fit_temperature(replace(right, targets=np.array([1, 0])))
    with pytest.raises(fd.DataError, match="no better than by chance"):
        fd.fit_temperature(evaluation_of(np.zeros((5, 3)), np.zeros(5, int)))
    with pytest.raises(fd.DataError, match="no better than by chance"):
        fd.fit_temperature(evaluation_of(np.ones((5, 1)), np.zeros(5, int)))


def test_images_of_one_class_only():
    """Three right, one wrong, all by the margin d: right with the probability 3/4 where d/T = log 3."""
    evaluation = evaluation_of([[2.0, 0.0]] * 3 + [[0.0, 2.0]], [0, 0, 0, 0])
    assert fd.fit_temperature(evaluation) == pytest.approx(2 / np.log(3), rel=1e-9)


@pytest.mark.parametrize("function", [fd.fit_temperature, fd.reliability, fd.risk_coverage, fd.log_loss])
def test_evaluations_that_hold_nothing_or_no_numbers(function):
    with pytest.raises(fd.DataError, match="there are no images"):
        function(evaluation_of(np.zeros((0, 3)), np.zeros(0, int)))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(fd.DataError, match="row 1 holds NaN or infinity"):
            function(evaluation_of([[0.0, 1.0], [bad, 0.0], [bad, 1.0]], [0, 0, 0]))


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 0.7, 1.0, 5.0, 1e300])
def test_log_softmax(temperature):
    """Also of logits whose exponentials do not exist, at temperatures that make them larger still."""
    logits = np.array([[1e4, -1e4, 0], [3, 2, 1], [0, 0, 0]], np.float32)
    z = logits.astype(np.longdouble) / np.longdouble(temperature)
    z -= z.max(axis=1, keepdims=True)
    expected = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    actual = probabilities.log_softmax(logits, temperature)
    assert np.allclose(actual, expected.astype(np.float64), rtol=1e-14, atol=0)
    assert np.exp(actual).sum(axis=1) == pytest.approx(1)
    assert np.isfinite(probabilities.log_softmax(logits, 5e-324)).any(axis=1).all()  # and no warning


# --- calibration error ----------------------------------------------------------------------------


SIX = with_confidence([0.51, 0.59, 0.78, 0.72, 0.95, 0.99], [True, False, True, True, True, False])


def test_calibration_error_of_six_answers_by_hand():
    """Five bins: (0.4, 0.6] claims 0.55 and keeps 1/2, (0.6, 0.8] 0.75 and 1, (0.8, 1] 0.97 and 1/2."""
    bins = fd.reliability(SIX, bins=5)
    assert bins.count.tolist() == [2, 2, 2]
    assert bins.confidence == pytest.approx([0.55, 0.75, 0.97])
    assert bins.accuracy.tolist() == [0.5, 1, 0.5]
    assert (bins.low, bins.high) == (pytest.approx([0.4, 0.6, 0.8]), pytest.approx([0.6, 0.8, 1]))
    assert bins.error == pytest.approx((2 * 0.05 + 2 * 0.25 + 2 * 0.47) / 6)
    one = fd.reliability(SIX, bins=1)
    assert one.error == pytest.approx((0.51 + 0.59 + 0.78 + 0.72 + 0.95 + 0.99) / 6 - 4 / 6)


def test_bins_of_equal_mass():
    """Two bins of three: 0.51 0.59 0.72 claim 1.82 of 3 and keep 2, 0.78 0.95 0.99 claim 2.72 and keep 2."""
    bins = fd.reliability(SIX, bins=2, equal_mass=True)
    assert bins.count.tolist() == [3, 3]
    assert bins.error == pytest.approx((0.18 + 0.72) / 6)
    same = fd.reliability(with_confidence([0.9] * 10, [True] * 10), bins=3, equal_mass=True)
    assert same.count.tolist() == [10]  # equals stay together
    assert same.error == pytest.approx(0.1)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    half = evaluation_of([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]], [0, 1, 0])
    bins = fd.reliability(half, bins=2)
    assert bins.count.tolist() == [2, 1]
    assert (bins.low.tolist(), bins.high.tolist()) == ([0, 0.5], [0.5, 1])


def test_a_network_that_is_always_sure_and_one_with_a_single_class():
    sure = fd.reliability(evaluation_of([[900.0, 0.0]] * 4, [0, 0, 0, 1]))
    assert (sure.count.tolist(), sure.error) == ([4], 0.25)
    single = evaluation_of(np.ones((3, 1)), [0, 0, 0])
    assert fd.reliability(single).error == 0
    assert single.margin.tolist() == [1, 1, 1]


def test_answers_drawn_from_their_probabilities_are_calibrated():
    """The noise of 20,000 answers in 15 bins is about Σ √(n_b)/2 / n ≤ √(15/n)/2 = 1.4 %."""
    assert fd.reliability(honest(20_000)).error < 0.015
    assert fd.reliability(honest(20_000, 3)).error > 0.1
    assert fd.reliability(replace(honest(20_000, 3), temperature=3.0)).error < 0.015


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_numbers_of_bins_that_make_no_sense(bins):
    with pytest.raises(fd.ConfigError, match="bins"):
        fd.reliability(SIX, bins=bins)


# --- risk and coverage ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.55, 0.6, 0.7, 0.8, 0.99]), st.booleans()), min_size=1, max_size=30)
)
def test_risk_and_coverage_against_a_loop(answers):
    """Few confidences, so that many are equal: those are answered together or not at all."""
    evaluation = with_confidence(*zip(*answers, strict=True))
    confidence = evaluation.probabilities.max(axis=1)
    right = evaluation.predicted == evaluation.targets
    curve = fd.risk_coverage(evaluation)
    assert curve.threshold.tolist() == sorted(set(confidence.tolist()), reverse=True)
    errors, coverages = {}, {}
    for threshold in [*curve.threshold.tolist(), 0.65, 0.0, 1.0]:
        given_answers = [bool(r) for c, r in zip(confidence, right, strict=True) if c >= threshold]
        found = curve.at(threshold)
        assert (found.answered, found.wrong) == (len(given_answers), given_answers.count(False))
        assert found.rejected == len(answers) - len(given_answers)
        assert found.coverage == len(given_answers) / len(answers)
        if not given_answers:
            assert found.error is None
            continue
        assert found.error == given_answers.count(False) / len(given_answers)
        errors[threshold], coverages[threshold] = found.error, found.coverage
    thresholds = curve.threshold.tolist()
    assert curve.error.tolist() == [errors[t] for t in thresholds]
    assert curve.coverage.tolist() == [coverages[t] for t in thresholds]
    for share in (0.01, 0.3, 0.5, 0.99, 1.0):
        enough = [t for t in thresholds if coverages[t] >= share]
        assert curve.threshold_for_coverage(share) == max(enough)
    for rate in (0.0, 0.2, 0.5, 1.0):
        low_enough = [t for t in thresholds if errors[t] <= rate]
        if low_enough:
            assert curve.threshold_for_error(rate) == min(low_enough)
        else:
            with pytest.raises(fd.DataError, match="no threshold"):
                curve.threshold_for_error(rate)


def test_a_share_that_rounds_is_no_answer_more():
    """0.07 · 100 is 7.000000000000001 in floating point."""
    curve = fd.risk_coverage(with_confidence(np.linspace(0.6, 0.9, 100), [True] * 100))
    assert curve.at(curve.threshold_for_coverage(0.07)).answered == 7


def test_thresholds_that_make_no_sense():
    curve = fd.risk_coverage(SIX)
    for bad in (0, -0.1, 1.1, np.nan, "1"):
        with pytest.raises(fd.ConfigError, match="coverage"):
            curve.threshold_for_coverage(bad)
    for bad in (-0.1, 1.1, np.nan, None):
        with pytest.raises(fd.ConfigError, match="error rate"):
            curve.threshold_for_error(bad)
        with pytest.raises(fd.ConfigError, match="threshold"):
            curve.at(bad)
    with pytest.raises(fd.DataError, match=r"down to 10 %: at best it is 25\.00 %"):
        curve.threshold_for_error(0.1)


def test_figures_are_plain_json():
    for record in (fd.reliability(SIX), fd.risk_coverage(SIX), fd.risk_coverage(SIX).at(1)):
        assert json.loads(json.dumps(record.as_dict(), allow_nan=False)) == record.as_dict()
    bins = fd.reliability(SIX, bins=5).as_dict()["bins"]
    assert [row["count"] for row in bins] == [2, 2, 2]
    curve = fd.risk_coverage(SIX).as_dict()["curve"]
    assert [row["answered"] for row in curve] == [1, 2, 3, 4, 5, 6]


# --- networks -------------------------------------------------------------------------------------


def test_mnist_is_read_with_the_certainty_that_is_claimed(mnist_root):
    """784-256-10 after six epochs: calibrated to 0.5 %, and at most 1.3 % wrong where it answers 99 %."""
    data = fd.load_mnist(mnist_root)
    net = fd.Network([784, 256, 10], backend="auto", seed=0)
    training = fd.TrainingData.of(net, data.train, validation=0.1, seed=0)
    fd.fit(
        net, training, optimizer=fd.SGD(0.2, momentum=0.9, nesterov=True), epochs=6, batch_size=128, seed=0
    )
    net.temperature = fd.fit_temperature(fd.evaluate(net, training.validation))
    evaluation = fd.evaluate(net, data.test)
    assert evaluation.accuracy > 0.98
    assert fd.reliability(evaluation).error <= 0.005
    curve = fd.risk_coverage(evaluation)
    at_99 = curve.at(curve.threshold_for_coverage(0.99))
    assert at_99.coverage == pytest.approx(0.99, abs=1e-3)
    assert at_99.error <= 0.013
    # The threshold can be found on what was held back; the test images then do about the same.
    held_back = fd.risk_coverage(fd.evaluate(net, training.validation))
    chosen = curve.at(held_back.threshold_for_coverage(0.99))
    assert 0.98 < chosen.coverage < 0.998
    assert chosen.error < 1 - evaluation.accuracy
