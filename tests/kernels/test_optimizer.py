"""Optimizer updates and clipping on every backend."""

import numpy as np
import pytest

from fastdigit.bench import checks


@pytest.mark.parametrize(
    ("operation", "check", "case"),
    [
        pytest.param(operation, *case.values, id=f"{operation}-{case.id}")
        for operation in ("sgd", "adam", "clip_norm")
        for case in checks.parameters(operation)
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_checks(backend, dtype, operation, check, case, record_property):
    if dtype not in backend.precisions:
        pytest.skip(f"{backend.name} computes in {', '.join(backend.precisions)} only")
    record_property("worst error/bound", check(getattr(backend, operation), backend, case, dtype))


def buffers(backend, *vectors):
    return [backend.to_device(np.array(vector, np.float32)) for vector in vectors]


def test_momentum_worked_out_by_hand(backend):
    """p = 1, g = 1, twice, lr 0.5, momentum 0.5: v = 1 then 1.5; p = 0.5 then -0.25."""
    p, g, v = buffers(backend, [1], [1], [0])
    backend.sgd(p, g, v, 0.5, 0.5, 0.0, False, False)
    backend.sgd(p, g, v, 0.5, 0.5, 0.0, False, False)
    backend.synchronize()
    assert backend.to_host(p).tolist() == [-0.25]
    assert backend.to_host(v).tolist() == [1.5]


def test_nesterov_worked_out_by_hand(backend):
    """As above, steps of g + 0.5·v = 1.5 then 1.75: p = 0.25 then -0.625."""
    p, g, v = buffers(backend, [1], [1], [0])
    backend.sgd(p, g, v, 0.5, 0.5, 0.0, True, False)
    backend.sgd(p, g, v, 0.5, 0.5, 0.0, True, False)
    backend.synchronize()
    assert backend.to_host(p).tolist() == [-0.625]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adams_first_step_is_the_learning_rate_whatever_the_gradient(backend, scale):
    """Bias correction makes m̂/√v̂ = g/|g| at t = 1."""
    gradient = scale * np.array([1, -2, 0.5, -0.25])
    p, g, m, v = buffers(backend, np.zeros(4), gradient, np.zeros(4), np.zeros(4))
    backend.adam(p, g, m, v, 1, 0.01, 0.9, 0.999, 1e-8, 0.0, False)
    backend.synchronize()
    np.testing.assert_allclose(backend.to_host(p), -0.01 * np.sign(gradient), rtol=1e-4)


def test_decoupled_decay_does_not_depend_on_the_gradient(backend):
    """With a zero gradient AdamW shrinks p by lr·decay; L2 goes through m̂/√v̂: a full step of lr."""
    for decoupled, expected in ((True, 2 * (1 - 0.01 * 0.5)), (False, 2 - 0.01)):
        p, g, m, v = buffers(backend, [2], [0], [0], [0])
        backend.adam(p, g, m, v, 1, 0.01, 0.9, 0.999, 1e-8, 0.5, decoupled)
        backend.synchronize()
        np.testing.assert_allclose(backend.to_host(p), expected, rtol=1e-6)


def test_equal_calls_give_equal_bits(backend):
    random = np.random.default_rng(0)
    start, gradient = random.standard_normal((2, 100_003)).astype("float32")

    def run():
        p, g, m, v = buffers(backend, start, gradient, np.zeros_like(start), np.zeros_like(start))
        backend.clip_norm(g, 1.0)
        backend.adam(p, g, m, v, 1, 0.01, 0.9, 0.999, 1e-8, 0.5, True)
        backend.sgd(p, g, m, 0.1, 0.9, 0.01, True, False)
        backend.synchronize()
        return b"".join(np.array(backend.to_host(a)).tobytes() for a in (p, g, m, v))

    first = run()
    assert all(run() == first for _ in range(3))
