"""Checks of updates of the parameters, and of what bounds gradients and weights."""

import math
from dataclasses import dataclass

import numpy as np

from fastdigit.layout import Layout

from .common import SENTINEL, Operand, Rejected, both_layouts, gamma, random_for, same, within

# --- optimizers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sgd:
    lr: float = 0.1
    momentum: float = 0.0
    decay: float = 0.0
    nesterov: bool = False
    decoupled: bool = False

    def __str__(self):
        return " ".join(f"{name}={value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class Adam:
    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.0
    decoupled: bool = False
    first: int = 1  # number of the first update

    def __str__(self):
        return " ".join(f"{name}={value}" for name, value in vars(self).items())


SGD = (
    Sgd(),
    Sgd(decay=0.05),
    Sgd(decay=0.05, decoupled=True),
    Sgd(momentum=0.9),
    Sgd(momentum=0.9, nesterov=True),
    Sgd(momentum=0.5, decay=0.1),
    Sgd(momentum=0.9, decay=0.05, nesterov=True),
    Sgd(momentum=0.9, decay=0.05, decoupled=True),
    Sgd(momentum=0.9, decay=0.05, nesterov=True, decoupled=True),
)
ADAM = (
    Adam(),
    Adam(beta1=0.5, beta2=0.9),
    Adam(beta1=0.0, beta2=0.0),
    Adam(epsilon=0.1),  # large enough to see which side of the square root it stands on
    Adam(decay=0.3),
    Adam(decay=0.3, decoupled=True),
    Adam(first=1000),
)
UPDATES = 5


def _flat_operands(backend, names, dtype, seed, extra):
    """A parameter buffer of a small network with its state, gradients for all updates, and where
    the padding is."""
    layout = Layout((7, 21, 3), backend.row_align)
    is_parameter = np.zeros(layout.size, bool)
    for view in layout.views(is_parameter).values():
        view[...] = True
    random = np.random.default_rng(seed)
    p = np.where(is_parameter, random.standard_normal(layout.size), 0).astype(dtype)
    # From tiny to large: Adam must divide that out.
    size = 10.0 ** random.integers(-4, 2, layout.size)
    gradients = [
        np.where(is_parameter, size * random.standard_normal(layout.size), 0).astype(dtype)
        for _ in range(extra)
    ]
    state = [Operand(name, backend, np.zeros(layout.size, dtype), around=SENTINEL) for name in names]
    return Operand("p", backend, p, around=SENTINEL), state, gradients, ~is_parameter


def _compare_updates(operands, references, scale, padding, dtype):
    """Errors of a few updates: a few roundings each, of the largest number that took part."""
    worst = 0.0
    for operand, reference in zip(operands, references, strict=True):
        result = operand.read()
        if result[padding].any():
            raise Rejected(f"{operand.name}: the padding is no longer zero")
        bound = 16 * UPDATES * gamma(1, dtype) * scale[operand.name]
        worst = max(worst, within(operand.name, result, reference, bound))
    return worst


def check_sgd(sgd, backend, case, dtype="float32"):
    """Five updates against float64, in the form that torch.optim.SGD documents."""
    names = ("v",) if case.momentum else ()
    p, state, gradients, padding = _flat_operands(backend, names, dtype, 1, UPDATES)
    theta = p.read().astype(np.float64)
    buffer = np.zeros_like(theta)
    largest_p, largest_v = np.abs(theta), np.zeros_like(theta)
    for gradient in gradients:
        g = Operand("g", backend, gradient)
        sgd(
            p.array,
            g.array,
            state[0].array if state else None,
            case.lr,
            case.momentum,
            case.decay,
            case.nesterov,
            case.decoupled,
        )
        backend.synchronize()
        g.must_be_unchanged()
        slope = gradient.astype(np.float64)
        if case.decoupled:
            theta = theta - case.lr * case.decay * theta
        else:
            slope = slope + case.decay * theta
        buffer = case.momentum * buffer + slope
        if case.nesterov:
            slope = slope + case.momentum * buffer
        elif case.momentum:
            slope = buffer
        theta = theta - case.lr * slope
        largest_v = case.momentum * largest_v + np.abs(gradient) + case.decay * largest_p
        largest_p = largest_p + case.lr * 2 * largest_v
    scale = {"p": largest_p, "v": largest_v}
    return _compare_updates((p, *state), (theta, buffer)[: 1 + len(state)], scale, padding, dtype)


def check_adam(adam, backend, case, dtype="float32"):
    """Five updates against float64: algorithm 1 of the paper; AdamW's decay acts before it."""
    p, state, gradients, padding = _flat_operands(backend, ("m", "v"), dtype, 2, UPDATES)
    theta = p.read().astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    largest_p, largest_m = np.abs(theta), np.zeros_like(theta)
    for t, gradient in enumerate(gradients, start=case.first):
        g = Operand("g", backend, gradient)
        adam(
            p.array,
            g.array,
            *(operand.array for operand in state),
            t,
            case.lr,
            case.beta1,
            case.beta2,
            case.epsilon,
            case.decay,
            case.decoupled,
        )
        backend.synchronize()
        g.must_be_unchanged()
        slope = gradient.astype(np.float64)
        if case.decoupled:
            theta = theta - case.lr * case.decay * theta
        else:
            slope = slope + case.decay * theta
        m = case.beta1 * m + (1 - case.beta1) * slope
        v = case.beta2 * v + (1 - case.beta2) * slope**2
        m_hat, v_hat = m / (1 - case.beta1**t), v / (1 - case.beta2**t)
        theta = theta - case.lr * m_hat / (np.sqrt(v_hat) + case.epsilon)
        steepest = np.abs(gradient) + (0 if case.decoupled else case.decay * np.abs(theta))
        largest_m = case.beta1 * largest_m + (1 - case.beta1) * steepest
        largest_p = largest_p + case.lr * (largest_m / (1 - case.beta1**t)) / (np.sqrt(v_hat) + case.epsilon)
    # Where L2 and the gradient cancel, the square has the error of what cancelled.
    largest_v = v + (0 if case.decoupled else case.decay * np.abs(largest_p))
    scale = {"p": largest_p, "m": largest_m, "v": largest_v}
    return _compare_updates((p, *state), (theta, m, v), scale, padding, dtype)


def check_clip_norm(clip_norm, backend, case=None, dtype="float32"):
    """Shortened to the limit in the same direction; what is shorter keeps its bits; NaN and
    infinity end in NaN."""
    g = np.random.default_rng(3).standard_normal(999).astype(dtype)
    length = math.sqrt((g.astype(np.float64) ** 2).sum())
    worst = 0.0
    for limit in (1e-3, 1.0, length / 2, length * 0.999):
        operand = Operand("g", backend, g, around=SENTINEL)
        clip_norm(operand.array, limit)
        backend.synchronize()
        expected = g * (limit / length)
        bound = gamma(32, dtype) * np.abs(expected)
        worst = max(worst, within(f"g clipped to {limit:.3g}", operand.read(), expected, bound))
    for shorter, limit in ((g, length * 1.001), (g, 1e6), (np.zeros_like(g), 1.0)):
        operand = Operand("g", backend, shorter, around=SENTINEL)
        clip_norm(operand.array, limit)
        backend.synchronize()
        same("g below the limit", operand.read(), shorter)
    # Numbers whose squares overflow or vanish in float32.
    for numbers, limit in (([1e20, 2, 3], 1.0), ([3e38] * 4, 1.0), ([-1e-30, 1e-30], 1e-31)):
        operand = Operand("g", backend, np.array(numbers, dtype), around=SENTINEL)
        clip_norm(operand.array, limit)
        backend.synchronize()
        expected = np.array(numbers) / np.sqrt(np.sum(np.square(numbers))) * limit
        within("g that is huge or tiny", operand.read(), expected, gamma(32, dtype) * np.abs(expected))
    for bad in (np.nan, np.inf, -np.inf):
        broken = g.copy()
        broken[500] = bad
        operand = Operand("g", backend, broken, around=SENTINEL)
        with np.errstate(invalid="ignore"):  # inf · 0 is the NaN that is wanted
            clip_norm(operand.array, 1.0)
        backend.synchronize()
        if not np.isnan(operand.read()).any():
            raise Rejected(f"g: {bad} disappeared")
    return worst


# --- max-norm ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaxNorm:
    """Weights [inputs, outputs], about half of whose columns are too long."""

    inputs: int
    outputs: int

    def __str__(self):
        return f"{self.inputs}x{self.outputs}"


MAX_NORM = tuple(
    MaxNorm(*shape) for shape in ((1, 1), (3, 2), (5, 17), (37, 33), (64, 16), (101, 65), (784, 10))
)


@both_layouts
def check_max_norm(max_norm, backend, case, dtype, spread):
    """Long columns shortened to the limit in the same direction, the others kept bit for bit."""
    random = random_for(case)
    w = random.standard_normal((case.inputs, case.outputs)) * random.uniform(0.1, 3, case.outputs)
    w[:, case.outputs // 2] *= case.outputs == 1  # nothing comes in to one unit of several
    w = w.astype(dtype)
    lengths = np.sqrt(np.square(w, dtype=np.float64).sum(axis=0))
    worst = 0.0
    for limit in (np.quantile(lengths, 0.4), 1e-3, 1e6):
        operand = Operand("w", backend, w, spread=spread, around=SENTINEL)
        max_norm(operand.array, float(limit))
        backend.synchronize()
        result, long = operand.read(), lengths > limit
        same("w of short columns", result[:, ~long], w[:, ~long])
        expected = w[:, long] * (limit / lengths[long])
        bound = gamma(case.inputs + 4, dtype) * np.abs(expected) + np.finfo(dtype).tiny
        worst = max(worst, within("w of long columns", result[:, long], expected, bound))
    return worst


def check_max_norm_of_extremes(max_norm, backend, case=None, dtype="float32"):
    """Numbers whose squares overflow or vanish in float32; columns that are not finite become NaN, and
    their neighbours stay."""
    w = np.array([[1e20, 1e-30, np.nan, np.inf, 3], [1e20, -1e-30, 1, 2, 4]], dtype)
    operand = Operand("w", backend, w, around=SENTINEL)
    with np.errstate(invalid="ignore"):  # inf · 0 is the NaN that is wanted
        max_norm(operand.array, 1e-30)
    backend.synchronize()
    result, root = operand.read(), math.sqrt(0.5)
    expected = 1e-30 * np.array([[root, root, 0.6], [root, -root, 0.8]])
    within("w that is huge or tiny", result[:, [0, 1, 4]], expected, gamma(8, dtype) * np.abs(expected))
    for column, what in ((2, "nan"), (3, "inf")):
        if not np.isnan(result[:, column]).any():
            raise Rejected(f"w: {what} disappeared")
    return 0.0
