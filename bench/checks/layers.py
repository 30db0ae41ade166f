"""Checks of dense layers, ReLU, softmax and cross-entropy."""

import numpy as np

from .common import Operand, Rejected, both_layouts, gamma, output, random_for, same, unit_roundoff, within

# --- dense layer ------------------------------------------------------------------------------


@both_layouts
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


@both_layouts
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


@both_layouts
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


@both_layouts
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


@both_layouts
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


@both_layouts
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


@both_layouts
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
