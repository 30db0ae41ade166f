"""Softmax and cross-entropy on every backend."""

import numpy as np
import pytest

from fastdigit.bench import cases, checks


@pytest.mark.parametrize(("check", "case"), checks.parameters("softmax"))
def test_softmax(backend, check, case, record_property):
    record_property("worst error/bound", check(backend.softmax, backend, case))


@pytest.mark.parametrize(("check", "case"), checks.parameters("softmax_xent"))
def test_softmax_xent(backend, check, case, record_property):
    record_property("worst error/bound", check(backend.softmax_xent, backend, case))


@pytest.mark.parametrize("case", cases.LOGITS, ids=str)
def test_float64(float64_backend, case):
    checks.check_softmax(float64_backend.softmax, float64_backend, case, "float64")
    checks.check_softmax_xent(float64_backend.softmax_xent, float64_backend, case, "float64")


def run(backend, z, t, dtype="float32", smoothing=0.0):
    """loss, correct and dz of softmax_xent without weights."""
    device = [backend.to_device(a) for a in (np.asarray(z, dtype), np.asarray(t, "int32"))]
    loss, correct, dz = (
        backend.zeros(shape, kind)
        for shape, kind in (((len(t),), dtype), ((len(t),), "uint8"), (np.shape(z), dtype))
    )
    backend.softmax_xent(*device, None, loss, correct, dz, smoothing)
    backend.synchronize()
    return tuple(np.array(backend.to_host(a)) for a in (loss, correct, dz))


def test_values_worked_out_by_hand(backend):
    """Two classes, logits 0 and log 3: probabilities 1/4 and 3/4; two equal rows, so 1/B = 1/2."""
    z = [[0, np.log(3)], [0, np.log(3)]]
    loss, correct, dz = run(backend, z, [0, 1])
    np.testing.assert_allclose(loss, [np.log(4), np.log(4 / 3)], rtol=1e-6)
    assert correct.tolist() == [0, 1]
    np.testing.assert_allclose(dz, [[-3 / 8, 3 / 8], [1 / 8, -1 / 8]], rtol=1e-6)


def test_smoothed_values_worked_out_by_hand(backend):
    """The same, with targets of 0.9 and 0.1."""
    z = [[0, np.log(3)], [0, np.log(3)]]
    loss, correct, dz = run(backend, z, [0, 1], smoothing=0.2)
    small, large = np.log(4 / 3), np.log(4)
    np.testing.assert_allclose(loss, [0.9 * large + 0.1 * small, 0.1 * large + 0.9 * small], rtol=1e-6)
    assert correct.tolist() == [0, 1]
    np.testing.assert_allclose(dz, [[-0.325, 0.325], [0.075, -0.075]], rtol=1e-6)


def test_without_smoothing_an_infinite_logit_of_another_class_costs_nothing(backend):
    """The sum over all classes, which smoothing needs, would be infinite times nothing."""
    loss, _, dz = run(backend, [[0, -np.inf, 0]], [0])
    np.testing.assert_allclose(loss, [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(dz, [[-0.5, 0, 0.5]], rtol=1e-6)


def test_logits_of_ten_thousand_give_finite_loss_and_gradient(backend):
    z = [[1e4, -1e4, 0], [1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]]
    loss, correct, dz = run(backend, z, [0, 1, 2, 0])
    np.testing.assert_allclose(loss, [0, 2e4, np.log(3), np.log(3)], rtol=1e-6)
    assert correct.tolist() == [1, 0, 0, 1]  # of equal logits the first counts
    third = 1 / 3
    by_row = [[0, 0, 0], [1, -1, 0], [third, third, third - 1], [third - 1, third, third]]
    np.testing.assert_allclose(dz, np.array(by_row) / 4, atol=1e-7)


def test_a_shift_of_all_logits_changes_nothing(backend):
    z = np.random.default_rng(0).integers(-8, 8, (20, 10)).astype("float32")
    t = np.arange(20) % 10
    plain, shifted = run(backend, z, t), run(backend, z + 4096, t)  # both exact in float32
    for a, b in zip(plain, shifted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nan_is_passed_on(backend):
    """A diverged network must be seen in its loss, and must not count as correct."""
    loss, _, dz = run(backend, [[np.nan, 0.0, 1.0], [0.0, 1.0, 2.0]], [1, 1])
    assert np.isnan(loss[0])
    assert np.isnan(dz[0]).all()
    assert np.isfinite(loss[1])
    assert np.isfinite(dz[1]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_gradient_is_the_slope_of_the_mean_loss(float64_backend, smoothing):
    random = np.random.default_rng(1)
    z, t, step = random.standard_normal((4, 6)), np.array([0, 5, 2, 2]), 1e-5
    _, _, dz = run(float64_backend, z, t, "float64", smoothing)
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        rise = (
            run(float64_backend, up, t, "float64", smoothing)[0].mean()
            - run(float64_backend, down, t, "float64", smoothing)[0].mean()
        )
        assert dz[index] == pytest.approx(rise / (2 * step), rel=1e-7, abs=1e-10)
