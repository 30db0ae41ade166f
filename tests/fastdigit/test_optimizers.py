"""The optimizer records: their numbers are checked, and reach the kernels in the right places."""

import dataclasses
import math

import numpy as np
import pytest

import fastdigit as fd


@pytest.mark.parametrize("make", [fd.SGD, fd.Adam, fd.AdamW])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "0.1"),
        ("learning_rate", None),
        ("learning_rate", True),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
    ],
)
def test_numbers_out_of_range(make, field, value):
    with pytest.raises(fd.ConfigError, match=field):
        make(**{field: value})


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan, "0.9"])
def test_fractions_out_of_range(value):
    with pytest.raises(fd.ConfigError, match="momentum"):
        fd.SGD(momentum=value)
    for field in ("beta1", "beta2"):
        with pytest.raises(fd.ConfigError, match=field):
            fd.Adam(**{field: value})


def test_epsilon_must_be_positive():
    with pytest.raises(fd.ConfigError, match="epsilon"):
        fd.Adam(epsilon=0)


def test_nesterov_needs_momentum():
    with pytest.raises(fd.ConfigError, match="nesterov"):
        fd.SGD(nesterov=True)


def test_a_config_error_is_a_value_error():
    with pytest.raises(ValueError, match="momentum"):
        fd.SGD(momentum=2)


def test_records_are_frozen_and_compare_by_value():
    assert fd.SGD(0.1, momentum=0.9) == fd.SGD(0.1, momentum=0.9)
    assert fd.AdamW(0.01) == fd.Adam(0.01, weight_decay=0.01, decoupled=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fd.SGD().learning_rate = 1


OPTIMIZERS = (
    fd.SGD(0.5),
    fd.SGD(0.5, momentum=0.75),
    fd.SGD(0.5, momentum=0.75, nesterov=True),
    fd.SGD(0.5, momentum=0.75, weight_decay=0.25),
    fd.SGD(0.5, weight_decay=0.25, decoupled=True),
    fd.Adam(0.5),
    fd.Adam(0.5, beta1=0.25, beta2=0.5, epsilon=2.0, weight_decay=0.125),
    fd.AdamW(0.5, weight_decay=0.125),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_two_updates_with_different_rates(backend, optimizer):
    """Scalars in float64: nothing of the record may be lost or exchanged on its way."""
    p, state = 2.0, [0.0] * len(optimizer.state_names)
    device_p = backend.to_device(np.array([p], np.float32))
    device_state = tuple(backend.zeros((1,), "float32") for _ in state)
    for t, (rate, slope) in enumerate([(0.5, 1.5), (0.25, -0.5)], start=1):
        g = backend.to_device(np.array([slope], np.float32))
        optimizer.update(backend, device_p, g, device_state, rate, t)
        backend.synchronize()
        if optimizer.decoupled:
            p -= rate * optimizer.weight_decay * p
        else:
            slope += optimizer.weight_decay * p
        if isinstance(optimizer, fd.Adam):
            b1, b2 = optimizer.beta1, optimizer.beta2
            state = [b1 * state[0] + (1 - b1) * slope, b2 * state[1] + (1 - b2) * slope**2]
            p -= rate * state[0] / (1 - b1**t) / (math.sqrt(state[1] / (1 - b2**t)) + optimizer.epsilon)
        else:
            velocity = optimizer.momentum * (state[0] if state else 0) + slope
            state = [velocity] if state else []
            p -= rate * (slope + optimizer.momentum * velocity if optimizer.nesterov else velocity)
    assert float(backend.to_host(device_p)[0]) == pytest.approx(p, rel=1e-6)
    for mine, expected in zip(device_state, state, strict=True):
        assert float(backend.to_host(mine)[0]) == pytest.approx(expected, rel=1e-6)
