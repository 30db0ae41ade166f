"""What every kernel must satisfy, whoever wrote it: the references here are float64 formulas.

A check takes an operation with the signature that it has in the ``Backend`` record, a backend for
the arrays, and a case; it raises :class:`Rejected` and returns the worst error/bound ratio. So the
same checks serve every backend, every single implementation, ``bench.kernels``, which times nothing that
they reject, and ``tests/wrong``, whose faulty kernels they must reject.

Three things are checked of every operation besides its result: outputs hold NaN before the call
(what is not written, or accumulated into, shows), operands lie in larger arrays (with rows further
apart than long) whose other elements must not be written, and inputs must not change. The
elements between the rows of an input are NaN: whoever reads them as data is found out.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fastdigit.kernels.augment import reference as augment_reference
from fastdigit.layout import Layout, round_up

from . import cases
from .deformed import deformed

SENTINEL = -777.0  # between the rows of outputs, where nothing may be written


class Rejected(AssertionError):
    """The kernel under test is wrong."""


# --- comparing --------------------------------------------------------------------------------


def unit_roundoff(dtype):
    return float(np.finfo(dtype).eps) / 2


def gamma(terms, dtype):
    """Bound of the relative error of a sum of that many rounded products, in any order.

    Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1. The float64
    reference has an error of its own, which counts when float64 itself is under test.
    """
    return terms * (unit_roundoff(dtype) + unit_roundoff(np.float64))


def within(what, actual, expected, bound):
    """Reject unless |actual - expected| ≤ bound everywhere; the worst ratio of the two.

    Written so that a NaN fails: it is not ≤ anything.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise Rejected(f"{what}: shape {actual.shape}, expected {expected.shape}")
    bound = np.broadcast_to(np.asarray(bound, np.float64), expected.shape)
    error = np.abs(actual - expected)
    good = error <= bound
    if not good.all():
        wrong = np.argwhere(~good)
        at = tuple(wrong[0].tolist())
        raise Rejected(
            f"{what}: element {at} is {actual[at]:.9g}, expected {expected[at]:.9g} ± {bound[at]:.2g} "
            f"({len(wrong)} of {good.size} wrong)"
        )
    return float((error[bound > 0] / bound[bound > 0]).max(initial=0.0))


def same(what, actual, expected):
    """Reject unless the two are equal, element by element (NaN equals nothing)."""
    within(what, actual, expected, 0)


# --- operands ---------------------------------------------------------------------------------


class Operand:
    """A backend's array inside a larger one.

    A matrix has a row before and a row behind it and, if ``spread``, rows further apart than they
    are long, as in a padded parameter buffer; a vector has ``lead`` elements before and behind it.
    """

    def __init__(self, name, backend, values, *, spread=True, lead=None, around=np.nan):
        values = np.asarray(values)
        self.name, self._backend = name, backend
        if values.ndim == 1:
            lead = backend.row_align if lead is None else lead
            shape, self._window = (len(values) + 2 * lead,), slice(lead, lead + len(values))
        else:
            rows, columns = values.shape
            # Always more than the row itself, also where that is a multiple of row_align already.
            distance = round_up(columns + 1, backend.row_align) if spread else columns
            shape, self._window = (rows + 2, distance), (slice(1, rows + 1), slice(columns))
        self._before = np.full(shape, around if values.dtype.kind == "f" else 99, values.dtype)
        self._before[self._window] = values
        self._whole = backend.to_device(self._before.copy())
        self.array = self._whole[self._window]

    def read(self):
        """The values on the host; Rejected if anything around them was written."""
        whole = np.array(self._backend.to_host(self._whole))
        values = whole[self._window].copy()
        whole[self._window] = self._before[self._window]
        if whole.tobytes() != self._before.tobytes():  # bits: NaN is equal to itself
            raise Rejected(f"{self.name}: elements outside of the array were written")
        return values

    def must_be_unchanged(self):
        if self.read().tobytes() != self._before[self._window].tobytes():
            raise Rejected(f"{self.name}: an input was written to")


def output(name, backend, shape, dtype, **place):
    """An operand to write to, full of NaN (of 77 for integers)."""
    poison = np.nan if np.dtype(dtype).kind == "f" else 77
    return Operand(name, backend, np.full(shape, poison, dtype), around=SENTINEL, **place)


def random_for(case):
    """A generator that depends on the case alone: a failure can be repeated."""
    return np.random.default_rng(list(str(case).encode()))


def _both_layouts(check):
    """The check with rows apart from each other, and again with contiguous arrays."""

    def both(operation, backend, case, dtype="float32"):
        return max(check(operation, backend, case, dtype, spread) for spread in (True, False))

    both.__name__, both.__doc__ = check.__name__, check.__doc__
    return both


# --- dense layer ------------------------------------------------------------------------------


@_both_layouts
def check_dense(dense, backend, case, dtype, spread):
    """y = x·w + b with and without ReLU, within γ·(|x|·|w| + |b|)."""
    random = random_for(case)
    x, w, b = (
        random.standard_normal(shape).astype(dtype)
        for shape in ((case.batch, case.inputs), (case.inputs, case.outputs), case.outputs)
    )
    exact = x.astype(np.float64) @ w.astype(np.float64) + b
    bound = gamma(case.inputs + 1, dtype) * (np.abs(x).astype(np.float64) @ np.abs(w) + np.abs(b))
    worst = 0.0
    for relu in (False, True):
        inputs = [Operand(n, backend, a, spread=spread) for n, a in (("x", x), ("w", w), ("b", b))]
        y = output("y", backend, exact.shape, dtype, spread=spread)
        dense(*(operand.array for operand in inputs), y.array, relu)
        backend.synchronize()
        expected = np.where(exact > 0, exact, 0) if relu else exact
        worst = max(worst, within("y with ReLU" if relu else "y", y.read(), expected, bound))
        for operand in inputs:
            operand.must_be_unchanged()
    return worst


def check_dense_passes_nan_on(dense, backend, case, dtype="float32"):
    """A NaN in one image reaches all its outputs, ReLU or not, and those of no other image."""
    x = np.ones((case.batch, case.inputs), dtype)
    x[0, 0] = np.nan
    for relu in (False, True):
        w, b = np.ones((case.inputs, case.outputs), dtype), np.zeros(case.outputs, dtype)
        inputs = [Operand(n, backend, a) for n, a in (("x", x), ("w", w), ("b", b))]
        y = output("y", backend, (case.batch, case.outputs), dtype)
        dense(*(operand.array for operand in inputs), y.array, relu)
        backend.synchronize()
        result = y.read()
        if not np.isnan(result[0]).all():
            raise Rejected("y: a NaN in the input disappeared")
        same("y of the images without NaN", result[1:], np.full_like(result[1:], case.inputs))
    return 0.0


@_both_layouts
def check_dense_grad_input(dense_grad_input, backend, case, dtype, spread):
    """dx = scale·dy·wᵀ where y_below > 0, else 0, within γ·|dy|·|w|ᵀ; without a mask everywhere."""
    random = random_for(case)
    dy = random.standard_normal((case.batch, case.outputs)).astype(dtype)
    w = random.standard_normal((case.inputs, case.outputs)).astype(dtype)
    # Zeros are what a ReLU and dropout leave behind: of both signs, with tiny values beside them.
    y_below = random.choice([0.0, -0.0, -1.5, 1e-30, 2.5], (case.batch, case.inputs)).astype(dtype)
    exact = dy.astype(np.float64) @ w.T.astype(np.float64)
    bound = gamma(case.outputs + 2, dtype) * (np.abs(dy).astype(np.float64) @ np.abs(w).T)
    worst = 0.0
    for masked in (False, True):
        for scale in (1, 1.25, 1 / (1 - 0.3)):
            inputs = [Operand("dy", backend, dy, spread=spread), Operand("w", backend, w, spread=spread)]
            if masked:
                inputs.append(Operand("y_below", backend, y_below, spread=spread))
            dx = output("dx", backend, exact.shape, dtype, spread=spread)
            arrays = [operand.array for operand in inputs]
            dense_grad_input(*arrays[:2], arrays[2] if masked else None, dx.array, scale)
            backend.synchronize()
            passes = y_below > 0 if masked else np.ones_like(exact, bool)
            what = f"dx, {'masked' if masked else 'no mask'}, scale {scale:.3g}"
            result = dx.read()
            worst = max(worst, within(what, result, scale * exact * passes, scale * bound * passes))
            for operand in inputs:
                operand.must_be_unchanged()
    return worst


@_both_layouts
def check_dense_grad_weight(dense_grad_weight, backend, case, dtype, spread):
    """dw = xᵀ·dy within γ·|x|ᵀ·|dy| and db = column sums of dy within γ·Σ|dy|."""
    random = random_for(case)
    x = random.standard_normal((case.batch, case.inputs)).astype(dtype)
    dy = random.standard_normal((case.batch, case.outputs)).astype(dtype)
    inputs = [Operand("x", backend, x, spread=spread), Operand("dy", backend, dy, spread=spread)]
    dw = output("dw", backend, (case.inputs, case.outputs), dtype, spread=spread)
    db = output("db", backend, (case.outputs,), dtype)
    dense_grad_weight(*(operand.array for operand in inputs), dw.array, db.array)
    backend.synchronize()
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    bound = gamma(case.batch, dtype)
    worst_dw = within("dw", dw.read(), x.T @ dy, bound * (np.abs(x).T @ np.abs(dy)))
    worst_db = within("db", db.read(), dy.sum(axis=0), bound * np.abs(dy).sum(axis=0))
    for operand in inputs:
        operand.must_be_unchanged()
    return max(worst_dw, worst_db)


# --- ReLU -------------------------------------------------------------------------------------


@_both_layouts
def check_relu(relu, backend, case, dtype, spread):
    """y = max(x, 0) exactly, NaN kept; also with y = x."""
    x = random_for(case).standard_normal((case.batch, case.outputs)).astype(dtype)
    x[:, 0] = 0.0
    x[0, -1] = np.nan
    for in_place in (False, True):
        source = Operand("x", backend, x, spread=spread)
        y = source if in_place else output("y", backend, x.shape, dtype, spread=spread)
        relu(source.array, y.array)
        backend.synchronize()
        result = y.read()
        if not np.isnan(result[0, -1]):
            raise Rejected("y: a NaN in the input disappeared")
        finite = ~np.isnan(x)
        same("y", result[finite], np.where(x > 0, x, 0)[finite])
        if not in_place:
            source.must_be_unchanged()
    return 0.0


@_both_layouts
def check_relu_grad(relu_grad, backend, case, dtype, spread):
    """dx = dy where y > 0, else 0, exactly; also with dx = dy."""
    random = random_for(case)
    y = random.choice([0.0, -0.0, -2.0, 1e-30, 3.0], (case.batch, case.outputs)).astype(dtype)
    dy = random.standard_normal(y.shape).astype(dtype)
    for in_place in (False, True):
        mask, upper = Operand("y", backend, y, spread=spread), Operand("dy", backend, dy, spread=spread)
        dx = upper if in_place else output("dx", backend, y.shape, dtype, spread=spread)
        relu_grad(mask.array, upper.array, dx.array)
        backend.synchronize()
        same("dx", dx.read(), np.where(y > 0, dy, 0))
        mask.must_be_unchanged()
        if not in_place:
            upper.must_be_unchanged()
    return 0.0


# --- softmax and cross-entropy ------------------------------------------------------------------


def logits_of(case, dtype="float32"):
    """Logits, targets and weights of a case; a target's logit may be tied for the largest."""
    random = random_for(case)
    rows = np.arange(case.batch)
    z = random.standard_normal((case.batch, case.classes)) * case.scale
    t = random.integers(case.classes, size=case.batch).astype(np.int32)
    if case.kind == "equal":
        z[:] = z[:, :1]
    elif case.kind == "apart":
        z -= 300 * rows[:, None]
    elif case.kind == "extreme":
        # The targets come by all three ways: the largest, the smallest and another logit.
        z[rows, rows % case.classes] = 1e4
        z[rows, (rows + 1) % case.classes] = -1e4
        t[::3] = rows[::3] % case.classes
        t[1::3] = (rows[1::3] + 1) % case.classes
    elif case.batch > 2:
        z[2, t[2]] = z[2].max()  # a tie, or the only maximum
        z[1, t[1]] = z[1].max() + 1
        z[0, t[0]] = z[0].min() - 1
    weight = random.uniform(0, 2, case.batch)
    weight[::4] = 0
    return z.astype(dtype), t, weight.astype(dtype)


def softmax_float64(z):
    z = z.astype(np.float64)
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _softmax_bound(z, p, dtype):
    """Of each probability: exp multiplies the rounding of z - max(z) by itself, and a sum of C
    terms rounds C times; below the smallest normal number anything goes."""
    depth = z.astype(np.float64).max(axis=1, keepdims=True) - z
    terms = 2 * z.shape[1] + 2 * depth + 16
    return (unit_roundoff(dtype) + unit_roundoff(np.float64)) * terms * p + np.finfo(dtype).tiny


@_both_layouts
def check_softmax(softmax, backend, case, dtype, spread):
    """p against float64, rows that sum to 1; also with p = z."""
    z, _, _ = logits_of(case, dtype)
    expected, worst = softmax_float64(z), 0.0
    for in_place in (False, True):
        source = Operand("z", backend, z, spread=spread)
        p = source if in_place else output("p", backend, z.shape, dtype, spread=spread)
        softmax(source.array, p.array)
        backend.synchronize()
        worst = max(worst, within("p", p.read(), expected, _softmax_bound(z, expected, dtype)))
        if not in_place:
            source.must_be_unchanged()
    return worst


@_both_layouts
def check_softmax_xent(softmax_xent, backend, case, dtype, spread):
    """loss, correct and dz against float64, with and without weights, for labels that are certain and
    smoothed ones; also with dz = z."""
    z, t, weight = logits_of(case, dtype)
    exact = z.astype(np.float64)
    p = softmax_float64(z)
    depths = exact.max(axis=1, keepdims=True) - exact
    logs = np.log(np.exp(-depths).sum(axis=1))
    roundoff = unit_roundoff(dtype) + unit_roundoff(np.float64)
    worst = 0.0
    for smoothing, weighted in ((0.0, False), (0.0, True), (0.1, True)):
        wanted = np.full_like(p, smoothing / case.classes)
        wanted[np.arange(case.batch), t] += 1 - smoothing
        plain_loss = logs + (wanted * depths).sum(axis=1)
        plain_dz = p - wanted
        # The rounding of what is wanted stays when p cancels it; without smoothing it is exact.
        dz_error = 8 * roundoff * (np.abs(plain_dz) + (wanted if smoothing else 0))
        terms = 4 + (case.classes if smoothing else 0)
        loss_bound = roundoff * (terms * plain_loss + case.classes + 16)
        dz_bound = _softmax_bound(z, p, dtype) + dz_error
        factor = weight.astype(np.float64) if weighted else np.ones(case.batch)
        for in_place in (False, True):
            source = Operand("z", backend, z, spread=spread)
            targets = Operand("t", backend, t)
            weights = Operand("weight", backend, weight)
            # The training loop hands over slices that start anywhere.
            loss = output("loss", backend, (case.batch,), dtype, lead=3)
            correct = output("correct", backend, (case.batch,), "uint8", lead=3)
            dz = source if in_place else output("dz", backend, z.shape, dtype, spread=spread)
            softmax_xent(
                source.array,
                targets.array,
                weights.array if weighted else None,
                loss.array,
                correct.array,
                dz.array,
                smoothing,
            )
            backend.synchronize()
            result = dz.read()
            same("correct", correct.read(), exact.argmax(axis=1) == t)
            worst = max(
                worst,
                within("loss", loss.read(), factor * plain_loss, factor * loss_bound),
                within(
                    "dz",
                    result,
                    factor[:, None] * plain_dz / case.batch,
                    factor[:, None] * dz_bound / case.batch + np.finfo(dtype).tiny,
                ),
            )
            for operand in (targets, weights) if in_place else (source, targets, weights):
                operand.must_be_unchanged()
    return worst


# --- dropout ----------------------------------------------------------------------------------

# The published vectors of Random123 (kat_vectors, philox4x32, 10 rounds): counter, key, words.
PHILOX_KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def philox(counter, key):
    """Philox4x32-10 in Python integers, from the paper's definition (SC 2011, section 3)."""
    left, right = [counter[0], counter[2]], [counter[1], counter[3]]
    for step in range(10):
        keys = [(k + step * weyl) % 2**32 for k, weyl in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        (high0, low0), (high1, low1) = (
            divmod(0xD2511F53 * left[0], 2**32),
            divmod(0xCD9E8D57 * left[1], 2**32),
        )
        left, right = [high1 ^ right[0] ^ keys[0], high0 ^ right[1] ^ keys[1]], [low1, low0]
    return (left[0], right[0], left[1], right[1])


def keep_mask(shape, p, key, step):
    """Which elements dropout keeps, one by one."""
    mask = np.empty(shape, bool)
    for row, column in np.ndindex(shape):
        word = philox((column // 4, row, step % 2**32, step // 2**32), key)[column % 4]
        mask[row, column] = word >= math.floor(p * 2**32)
    return mask


@dataclass(frozen=True)
class Dropout:
    """A matrix [batch, outputs] from which elements are dropped with probability ``p``."""

    batch: int
    outputs: int
    p: float
    key: tuple[int, int] = (0, 0)
    step: int = 0

    def __str__(self):
        return f"{self.batch}x{self.outputs}-p{self.p:g}-key{self.key[0]}.{self.key[1]}-step{self.step}"


DROPOUT = (
    Dropout(1, 1, 0.5),
    Dropout(2, 3, 0.5, key=(1, 0), step=1),
    Dropout(5, 17, 0.2, key=(7, 2), step=12345),
    Dropout(9, 33, 0.7, key=(2**32 - 1, 1), step=2**32 - 1),
    Dropout(3, 64, 0.999, key=(3, 3), step=2**32 + 5),
    Dropout(4, 18, 0.0, key=(3, 3)),
)


def _dropped(dropout, backend, y, case, spread=True):
    operand = Operand("y", backend, y, spread=spread, around=SENTINEL)
    dropout(operand.array, case.p, case.key, case.step)
    backend.synchronize()
    return operand.read()


@_both_layouts
def check_dropout(dropout, backend, case, dtype, spread):
    """Which elements stay, by Philox's definition; those are scaled by 1/(1 - p), the rest is 0."""
    y = random_for(case).standard_normal((case.batch, case.outputs)).astype(dtype)
    result = _dropped(dropout, backend, y, case, spread)
    keep = keep_mask(y.shape, case.p, case.key, case.step)
    expected = np.where(keep, y.astype(np.float64) / (1 - case.p), 0)
    return within("y", result, expected, 4 * gamma(1, dtype) * np.abs(expected))


def check_dropout_threshold(dropout, backend, case=None, dtype="float32"):
    """On the published words of counter 0: kept at p = word/2³², dropped at the next larger p."""
    words = PHILOX_KNOWN[0][2]
    ones = np.ones((1, 4), dtype)
    for column, word in enumerate(words):
        for p, kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
            result = _dropped(dropout, backend, ones, Dropout(1, 4, p))[0, column]
            what = f"element of word {word:#x} at p = {p:.10f}"
            within(what, result, kept / (1 - p), 4 * gamma(1, dtype) / (1 - p))
    return 0.0


def check_dropout_partition(dropout, backend, case=None, dtype="float32"):
    """An element's fate depends on its row and column, not on how many others there are."""
    case = Dropout(40, 50, 0.4, key=(5, 1), step=3)
    whole = _dropped(dropout, backend, np.ones((40, 50), dtype), case)
    for rows, columns in ((1, 50), (17, 50), (40, 49), (40, 1), (23, 31)):
        part = _dropped(dropout, backend, np.ones((rows, columns), dtype), case)
        same(f"the first {rows} rows and {columns} columns", part, whole[:rows, :columns])
    return 0.0


def check_dropout_rate(dropout, backend, case=None, dtype="float32"):
    """The share that is dropped, in all and by column; and independence of step, layer and seed.

    Five standard deviations of a binomial distribution. The numbers are no accident of a run: they
    are the same in each.
    """
    rows, columns = 500, 64
    for p in (0.1, 0.5, 0.8):
        base = Dropout(rows, columns, p, key=(11, 0), step=100)
        deviation = math.sqrt(p * (1 - p))
        ones = np.ones((rows, columns), dtype)
        gone = _dropped(dropout, backend, ones, base) == 0
        within("share dropped", gone.mean(), p, 5 * deviation / math.sqrt(rows * columns))
        within(
            "share dropped by column", gone.mean(axis=0), np.full(columns, p), 5 * deviation / math.sqrt(rows)
        )
        within(
            "share dropped by row", gone.mean(axis=1), np.full(rows, p), 5 * deviation / math.sqrt(columns)
        )
        others = {
            "the next step": replace(base, step=101),
            "a step 2³² later": replace(base, step=100 + 2**32),
            "the next layer": replace(base, key=(11, 1)),
            "the next seed": replace(base, key=(12, 0)),
        }
        for what, other in others.items():
            gone_too = gone & (_dropped(dropout, backend, ones, other) == 0)
            deviation_of_both = math.sqrt(p * p * (1 - p * p) / (rows * columns))
            within(f"share dropped now and in {what}", gone_too.mean(), p * p, 5 * deviation_of_both)
    return 0.0


# --- gather -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gather:
    """``batch`` rows from ``order[start:]`` out of ``count``."""

    count: int
    size: int
    start: int
    batch: int

    def __str__(self):
        return f"{self.count}x{self.size}-{self.start}+{self.batch}"


GATHER = (
    Gather(1, 1, 0, 1),
    Gather(10, 784, 0, 4),
    Gather(10, 784, 8, 2),  # the short last batch
    Gather(7, 17, 3, 4),
    Gather(50, 33, 13, 37),
    Gather(300, 64, 256, 44),
)


@_both_layouts
def check_gather(gather, backend, case, dtype, spread):
    """out[i] = images[order[start + i]]: uint8 divided by 255, floats as they are."""
    random = random_for(case)
    order = random.permutation(case.count)
    chosen = order[case.start : case.start + case.batch]
    pixels = random.integers(256, size=(case.count, case.size)).astype(np.uint8)
    pixels[chosen[0], 0], pixels[chosen[-1], -1] = 255, 0
    worst = 0.0
    for images in (pixels, random.standard_normal(pixels.shape).astype(dtype)):
        device_order = backend.to_device(order.astype(np.int64))
        device_images = backend.to_device(images)
        out = output("out", backend, (case.batch, case.size), dtype, spread=spread)
        gather(device_images, device_order, case.start, out.array)
        backend.synchronize()
        if images.dtype == np.uint8:
            expected = images[chosen] / 255
            worst = max(worst, within("out of uint8", out.read(), expected, 2 * gamma(1, dtype) * expected))
        else:
            same("out of floats", out.read(), images[chosen])
        same("images", backend.to_host(device_images), images)
        same("order", backend.to_host(device_order), order)
    return worst


@dataclass(frozen=True)
class Augment:
    """``batch`` images of ``height`` × ``width`` from ``order[start:]`` out of ``count``, deformed."""

    height: int
    width: int
    strengths: tuple  # of (name, strength)
    count: int = 4
    start: int = 1
    batch: int = 2
    key: tuple[int, int] = (3, 2**32 - 2)
    step: int = 2**32 + 5

    def __str__(self):
        names = ",".join(f"{name}={value:g}" for name, value in self.strengths)
        return f"{self.height}x{self.width}-{names}"


_AFFINE = (("rotation", 40), ("scale", 0.4), ("shear", 0.5), ("shift", 3))
_ALL = (*_AFFINE, ("elastic", 1.4), ("thickness", 0.8), ("noise", 60), ("erase", 12), ("faint", 0.9))
AUGMENT = (
    Augment(5, 7, ()),
    Augment(9, 6, _AFFINE),
    Augment(8, 16, (("elastic", 2), ("smoothness", 1.5)), key=(2**32 - 1, 0), step=0),
    Augment(11, 8, (("thickness", 1),), step=2**40 + 1),
    Augment(7, 9, (("noise", 255),)),
    Augment(6, 18, (("erase", 9),), count=9, batch=8),
    Augment(10, 5, (("faint", 0.99),)),
    Augment(28, 28, _ALL, count=1, start=0, batch=1),
    Augment(17, 33, _ALL, count=6, start=3, batch=3),
)


@_both_layouts
def check_augment(augment, backend, case, dtype, spread):
    """Every pixel of every image as :mod:`.deformed` has it, divided by 255."""
    random = random_for(case)
    order = random.permutation(case.count)
    pixels = random.integers(256, size=(case.count, case.height, case.width)).astype(np.uint8)
    pixels[random.random(pixels.shape) < 0.3] = 0
    deformation = augment_reference.deformation(case.height, case.width, **dict(case.strengths))
    arrays = {name: backend.to_device(getattr(deformation, name)) for name in augment_reference.ARRAYS}
    device_images = backend.to_device(pixels.reshape(case.count, -1))
    device_order = backend.to_device(order.astype(np.int64))
    out = output("out", backend, (case.batch, case.height * case.width), dtype, spread=spread)
    how = deformation._replace(**arrays), case.key, case.step
    augment(device_images, device_order, case.start, *how, out.array)
    backend.synchronize()
    found = out.read()
    for row, number in enumerate(order[case.start : case.start + case.batch].tolist()):

        def words(block, number=number):
            return philox((block, number, case.step % 2**32, case.step // 2**32), case.key)

        expected = deformed(pixels[number], dict(case.strengths), words).reshape(-1)
        within("out", found[row], expected / 255, 2 * gamma(1, dtype) * expected / 255)
    same("images", backend.to_host(device_images), pixels.reshape(case.count, -1))
    same("order", backend.to_host(device_order), order)
    return 0.0


def check_gather_values(gather_values, backend, case, dtype="float32"):
    """out[i] = values[order[start + i]], for labels and for weights."""
    random = random_for(case)
    order = random.permutation(case.count)
    for kind in ("int32", dtype):
        values = (random.standard_normal(case.count) * 100).astype(kind)
        out = output("out", backend, (case.batch,), kind)
        gather_values(backend.to_device(values), backend.to_device(order), case.start, out.array)
        backend.synchronize()
        same(f"out of {kind}", out.read(), values[order[case.start : case.start + case.batch]])
    return 0.0


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


# --- attacks ------------------------------------------------------------------------------------

# Odds against one class of one are none; of a thousand the interpreter of PTX would need long.
ODDS = tuple(case for case in cases.LOGITS if 1 < case.classes < 100)


@_both_layouts
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


@_both_layouts
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


@_both_layouts
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


@_both_layouts
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


# --- all of them ------------------------------------------------------------------------------

_SMALL = cases.Matmul(5, 7, 3)
ONCE = (None,)  # for checks that bring their own case

# operation → its checks, each with its cases
CHECKS = {
    "dense": ((check_dense, cases.MATMUL), (check_dense_passes_nan_on, (_SMALL,))),
    "dense_grad_input": ((check_dense_grad_input, cases.MATMUL),),
    "dense_grad_weight": ((check_dense_grad_weight, cases.MATMUL),),
    "relu": ((check_relu, cases.MATMUL_EDGES),),
    "relu_grad": ((check_relu_grad, cases.MATMUL_EDGES),),
    "softmax": ((check_softmax, cases.LOGITS),),
    "softmax_xent": ((check_softmax_xent, cases.LOGITS),),
    "dropout": (
        (check_dropout, DROPOUT),
        (check_dropout_threshold, ONCE),
        (check_dropout_partition, ONCE),
        (check_dropout_rate, ONCE),
    ),
    "gather": ((check_gather, GATHER),),
    "augment": ((check_augment, AUGMENT),),
    "gather_values": ((check_gather_values, GATHER),),
    "sgd": ((check_sgd, SGD),),
    "adam": ((check_adam, ADAM),),
    "clip_norm": ((check_clip_norm, ONCE),),
    "log_odds": ((check_log_odds, ODDS),),
    "ascend": (
        (check_ascend, ASCENT),
        (check_ascend_passes_nan_on, (Ascent(5, 17, "linf"), Ascent(5, 17, "l2"))),
    ),
    "add_noise": ((check_add_noise, NOISE),),
    "max_norm": ((check_max_norm, MAX_NORM), (check_max_norm_of_extremes, ONCE)),
}


def parameters(operation):
    """(check, case) of all checks of an operation with readable names, for pytest."""
    import pytest

    return [
        pytest.param(check, case, id=f"{check.__name__}-{case}" if case else check.__name__)
        for check, of_check in CHECKS[operation]
        for case in of_check
    ]
