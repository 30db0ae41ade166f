"""Checks of what attacks on a network consist of."""

from dataclasses import dataclass

import numpy as np

from .. import cases
from .common import (
    SENTINEL,
    Operand,
    Rejected,
    both_layouts,
    gamma,
    output,
    random_for,
    same,
    unit_roundoff,
    within,
)
from .images import philox
from .layers import logits_of

# --- attacks ------------------------------------------------------------------------------------

# Odds against one class of one are none; of a thousand the interpreter of PTX would need long.
ODDS = tuple(case for case in cases.LOGITS if 1 < case.classes < 100)


@both_layouts
def check_log_odds(log_odds, backend, case, dtype, spread):
    """loss, correct and dz against float64, also where the target is all but certain; also with dz = z."""
    z, t, _ = logits_of(case, dtype)
    rows, exact = np.arange(case.batch), z.astype(np.float64)
    others = exact.copy()
    others[rows, t] = -np.inf
    largest = others.max(axis=1)
    powers = np.exp(others - largest[:, None])
    total = powers.sum(axis=1)
    apart = largest - exact[rows, t]
    dz = powers / total[:, None]
    roundoff = unit_roundoff(dtype) + unit_roundoff(np.float64)
    depth = np.where(np.isinf(others), 0, largest[:, None] - exact)
    dz_bound = roundoff * (2 * case.classes + 2 * depth + 16) * dz + np.finfo(dtype).tiny
    dz[rows, t] = -1
    loss_bound = roundoff * (4 * np.abs(apart) + 4 * np.log(total) + case.classes + 16)
    worst = 0.0
    for in_place in (False, True):
        source, targets = Operand("z", backend, z, spread=spread), Operand("t", backend, t)
        loss, correct = (output(n, backend, t.shape, d) for n, d in (("loss", dtype), ("correct", "uint8")))
        slope = source if in_place else output("dz", backend, z.shape, dtype, spread=spread)
        log_odds(source.array, targets.array, loss.array, correct.array, slope.array)
        backend.synchronize()
        same("correct", correct.read(), exact.argmax(axis=1) == t)
        worst = max(worst, within("loss", loss.read(), np.log(total) + apart, loss_bound))
        worst = max(worst, within("dz", slope.read(), dz, dz_bound))
        for operand in (targets,) if in_place else (source, targets):
            operand.must_be_unchanged()
    return worst


@dataclass(frozen=True)
class Ascent:
    """A step of [batch, inputs] pixels in a ball."""

    batch: int
    inputs: int
    norm: str
    step: float = 0.03
    epsilon: float = 0.1

    def __str__(self):
        return f"{self.batch}x{self.inputs}-{self.norm}-step{self.step:g}-epsilon{self.epsilon:g}"


ASCENT = (
    Ascent(1, 1, "linf"),
    Ascent(5, 17, "linf"),
    Ascent(3, 784, "linf", step=0.5, epsilon=0.3),
    Ascent(4, 33, "linf", step=-0.02),  # towards a target
    Ascent(4, 33, "linf", step=0.0),  # back to where it is allowed to be
    Ascent(9, 130, "linf", step=3.0, epsilon=2.0),  # to the corners of the box
    Ascent(1, 1, "l2"),
    Ascent(5, 17, "l2"),
    Ascent(3, 784, "l2", step=0.5, epsilon=2.0),
    Ascent(4, 33, "l2", step=-0.5, epsilon=0.4),
    Ascent(4, 33, "l2", step=0.0, epsilon=0.2),
    Ascent(9, 130, "l2", step=0.01, epsilon=30.0),
)


def _images_of(case, dtype):
    """x, dx and origin: pixels at both ends, some of x beyond the ball and the box, images whose gradient is
    zero or too small for its square."""
    random = random_for(case)
    shape = case.batch, case.inputs
    origin = random.choice([0.0, 1.0, *random.random(5)], shape)
    x = origin + random.uniform(-1.5, 1.5, shape) * case.epsilon / (case.inputs if case.norm == "l2" else 1)
    dx = random.standard_normal(shape)
    dx[random.random(shape) < 0.2] = 0
    if case.batch > 2:
        dx[1], dx[2] = 0, dx[2] * 1e-30
    return (a.astype(dtype) for a in (x, dx, origin))


@both_layouts
def check_ascend(ascend, backend, case, dtype, spread):
    """A step along the gradient, the ball, the box, in this order, against float64."""
    x, dx, origin = _images_of(case, dtype)
    here, slope, centre = (a.astype(np.float64) for a in (x, dx, origin))
    if case.norm == "linf":
        moved = np.clip(here + case.step * np.sign(slope), centre - case.epsilon, centre + case.epsilon)
    else:
        length = np.linalg.norm(slope, axis=1, keepdims=True)
        far = here + case.step * slope / np.where(length > 0, length, 1) - centre
        distance = np.linalg.norm(far, axis=1, keepdims=True)
        moved = centre + far * np.where(distance > case.epsilon, case.epsilon / distance, 1)
    operands = [Operand(n, backend, a, spread=spread) for n, a in (("dx", dx), ("origin", origin))]
    images = Operand("x", backend, x, spread=spread, around=SENTINEL)
    ascend(images.array, *(o.array for o in operands), case.step, case.epsilon, case.norm)
    backend.synchronize()
    result = images.read()
    for operand in operands:
        operand.must_be_unchanged()
    bound = gamma(8, dtype) * (2 + abs(case.step) + case.epsilon)
    worst = within("x", result, np.clip(moved, 0, 1), bound)
    if result.min() < 0 or result.max() > 1:
        raise Rejected("x: a pixel outside of 0 … 1, if only by rounding")
    return worst


def check_ascend_passes_nan_on(ascend, backend, case, dtype="float32"):
    """A NaN in a gradient shows in its image, and in no other."""
    x, dx, origin = _images_of(case, dtype)
    dx[0, 0] = np.nan
    operands = [Operand(n, backend, a) for n, a in (("x", x), ("dx", dx), ("origin", origin))]
    ascend(*(operand.array for operand in operands), case.step, case.epsilon, case.norm)
    backend.synchronize()
    result = operands[0].read()
    if not np.isnan(result[0, : 1 if case.norm == "linf" else None]).all():
        raise Rejected("x: a NaN in the gradient disappeared")
    if np.isnan(result[1:]).any():
        raise Rejected("x: a NaN of one image is in another")
    return 0.0


@dataclass(frozen=True)
class Noise:
    """Noise on [batch, inputs] pixels of the images ``order[start:]``."""

    batch: int
    inputs: int
    size: float = 0.1
    start: int = 0
    key: tuple[int, int] = (0, 0)
    step: int = 0

    def __str__(self):
        return f"{self.batch}x{self.inputs}-{self.size:g}-{self.start}-key{self.key[0]}-step{self.step}"


NOISE = (
    Noise(1, 1),
    Noise(3, 18, start=2, key=(7, 1)),
    Noise(5, 33, size=2.0, key=(2**32 - 1, 2**32 - 1), step=2**32 - 1),
    Noise(2, 64, start=1, key=(0, 3), step=2**32 + 5),
)


@both_layouts
def check_add_noise(add_noise, backend, case, dtype, spread):
    """x + size·u by Philox's definition, of the image that a row holds."""
    random = random_for(case)
    order = random.permutation(case.start + case.batch + 3)
    order[case.start] = 2**32 - 1
    x = random.random((case.batch, case.inputs)).astype(dtype)
    expected = x.astype(np.float64)
    for row, column in np.ndindex(x.shape):
        image = int(order[case.start + row])
        counter = column // 4, image, case.step % 2**32, case.step // 2**32
        expected[row, column] += case.size * (philox(counter, case.key)[column % 4] // 2**8 * 2.0**-23 - 1)
    places = backend.to_device(order.astype(np.int64))
    images = Operand("x", backend, x, spread=spread, around=SENTINEL)
    add_noise(images.array, places, case.start, case.size, case.key, case.step)
    backend.synchronize()
    same("order", backend.to_host(places), order)
    return within("x", images.read(), expected, gamma(4, dtype) * (1 + case.size))
