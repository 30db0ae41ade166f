"""The pieces of an attack between two products, on every backend."""

import numpy as np
import pytest

from fastdigit.bench import checks

OPERATIONS = ("log_odds", "ascend", "add_noise")
CASES = [
    pytest.param(operation, *case.values, id=f"{operation}-{case.id}")
    for operation in OPERATIONS
    for case in checks.parameters(operation)
]


@pytest.mark.parametrize(("operation", "check", "case"), CASES)
def test_checks(backend, operation, check, case):
    check(getattr(backend, operation), backend, case)


@pytest.mark.parametrize(("operation", "check", "case"), CASES)
def test_float64(float64_backend, operation, check, case):
    check(getattr(float64_backend, operation), float64_backend, case, "float64")


def test_the_direction_is_that_of_the_cross_entropy(backend):
    """∂L/∂z = (1 - p_t)·dz, with 1 - p_t = 1 / (1 + exp(-loss))."""
    random = np.random.default_rng(0)
    z, t = random.standard_normal((40, 10)).astype(np.float32), random.integers(10, size=40).astype(np.int32)
    z, t = backend.to_device(z), backend.to_device(t)
    (loss, other), correct = (
        (backend.zeros((40,), "float32") for _ in range(2)),
        backend.zeros((40,), "uint8"),
    )
    slope, expected = backend.zeros((40, 10), "float32"), backend.zeros((40, 10), "float32")
    backend.log_odds(z, t, loss, correct, slope)
    backend.softmax_xent(z, t, None, other, correct, expected)
    loss, other, slope, expected = map(backend.to_host, (loss, other, slope, expected))
    np.testing.assert_allclose(np.logaddexp(0, loss), other, rtol=1e-5)
    np.testing.assert_allclose(slope / (1 + np.exp(-loss[:, None])), 40 * expected, rtol=1e-4, atol=1e-6)


def test_a_sure_network_has_a_direction_left(backend):
    """Where softmax_xent says only that the second class should grow."""
    z, t = np.array([[30, 1, 0]], np.float32), np.zeros(1, np.int32)
    loss, correct = backend.zeros((1,), "float32"), backend.zeros((1,), "uint8")
    slope, rounded = backend.zeros((1, 3), "float32"), backend.zeros((1, 3), "float32")
    z, t = backend.to_device(z), backend.to_device(t)
    backend.log_odds(z, t, loss, correct, slope)
    backend.softmax_xent(z, t, None, loss, correct, rounded)
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(backend.to_host(slope)[0], [-1, share, 1 - share], rtol=1e-6)
    assert backend.to_host(rounded)[0, 0] == 0


@pytest.mark.parametrize("norm", ["l1", "", None, 2])
def test_a_norm_that_there_is_not(norm):
    from fastdigit.kernels.attack import cpu

    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="norm must be one of linf, l2"):
        cpu.ascend(x, x.copy(), x.copy(), 0.1, 0.1, norm)
