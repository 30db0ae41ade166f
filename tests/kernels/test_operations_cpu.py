"""The small operations on the CPU: every check with several threads, and what no check looks at."""

from functools import partial

import numpy as np
import pytest
from numba import njit

import fastdigit as fd
from fastdigit.bench.checks import CHECKS
from fastdigit.kernels.attack import cpu as attack
from fastdigit.kernels.augment import cpu as augment
from fastdigit.kernels.augment.reference import deformation
from fastdigit.kernels.common.memory import float_of
from fastdigit.kernels.dropout import cpu as dropout
from fastdigit.kernels.dropout import reference as dropout_reference
from fastdigit.kernels.gather import cpu as gather
from fastdigit.kernels.max_norm import cpu as max_norm
from fastdigit.kernels.optimizer import cpu as optimizer
from fastdigit.kernels.relu import cpu as relu
from fastdigit.kernels.softmax_xent import cpu as softmax_xent
from fastdigit.kernels.softmax_xent import reference as softmax_xent_reference

from .helpers import for_python

NUMPY = fd.get_backend("numpy")
MODULES = (relu, softmax_xent, dropout, gather, augment, max_norm, optimizer, attack)
OPERATIONS = {
    "relu": relu.relu,
    "relu_grad": relu.relu_grad,
    "softmax": softmax_xent.softmax,
    "softmax_xent": softmax_xent.softmax_xent,
    "dropout": dropout.dropout,
    "gather": gather.gather,
    "augment": augment.augment,
    "gather_values": gather.gather_values,
    "sgd": optimizer.sgd,
    "adam": optimizer.adam,
    "clip_norm": optimizer.clip_norm,
    "log_odds": attack.log_odds,
    "ascend": attack.ascend,
    "add_noise": attack.add_noise,
    "max_norm": max_norm.max_norm,
}


@pytest.fixture
def small_work_is_shared(monkeypatch):
    """As many threads as are allowed, even for a few elements."""
    for module in MODULES:
        monkeypatch.setattr(module, "SHARE", 1)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- the checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_checks(operation, threads, small_work_is_shared, record_property):
    function = partial(OPERATIONS[operation], threads=threads)
    for check, of_check in CHECKS[operation]:
        worst = max(check(function, NUMPY, case) for case in of_check)
        record_property(f"worst error/bound of {check.__name__}", float(worst))


# --- threads --------------------------------------------------------------------------------------


def in_both_norms(*arguments, threads):
    for norm in ("l2", "linf"):
        attack.ascend(*arguments, norm, threads=threads)


def results(operation, threads):
    """The bytes that an operation writes, on arrays that threads cannot share evenly."""
    x, y = normal(1009, 53)[:, :50], normal(1009, 50, seed=1)
    p, g, m, v = (normal(100_003, seed=seed) for seed in range(4))
    t = np.random.default_rng(4).integers(50, size=1009).astype(np.int32)
    order = np.random.default_rng(5).permutation(1009)
    bent = deformation(5, 10, rotation=9, elastic=1, thickness=0.5, noise=9)
    outputs = {
        "relu": (relu.relu, (x, y), (y,)),
        "relu_grad": (relu.relu_grad, (x, y, y), (y,)),
        "softmax": (softmax_xent.softmax, (x, y), (y,)),
        "softmax_xent": (
            softmax_xent.softmax_xent,
            (x, t, p[:1009], m[:1009], np.zeros(1009, np.uint8), y, 0.1),
            (y, m),
        ),
        "dropout": (dropout.dropout, (y, 0.3, (1, 2), 3), (y,)),
        "gather": (gather.gather, (y, order, 8, x[:1001]), (x,)),
        "augment": (
            augment.augment,
            (np.abs(9 * y).astype(np.uint8), order, 8, bent, (1, 2), 3, x[:1001]),
            (x,),
        ),
        "gather_values": (gather.gather_values, (t, order, 8, m[:1001].view(np.int32)), (m,)),
        "sgd": (optimizer.sgd, (p, g, v, 0.1, 0.9, 0.01, True, False), (p, v)),
        "adam": (optimizer.adam, (p, g, m, np.abs(v), 7, 0.01, 0.9, 0.999, 1e-8, 0.1, True), (p, m, v)),
        "clip_norm": (optimizer.clip_norm, (g, 1.0), (g,)),
        "log_odds": (attack.log_odds, (x, t, p[:1009], np.zeros(1009, np.uint8), y), (y, p)),
        "ascend": (in_both_norms, (x, y, normal(1009, 50, seed=2), 0.1, 0.2), (x,)),
        "add_noise": (attack.add_noise, (x[:1001], order, 8, 0.3, (1, 2), 3), (x,)),
        "max_norm": (max_norm.max_norm, (x, 30.0), (x,)),
    }
    function, arguments, written = outputs[operation]
    function(*arguments, threads=threads)
    return b"".join(np.ascontiguousarray(array).tobytes() for array in written)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_number_of_threads_gives_the_same_bits(operation, small_work_is_shared):
    alone = results(operation, 1)
    assert all(results(operation, threads) == alone for threads in (2, 3, 5))


def test_a_sum_over_each_threads_share_would_not():
    g, sum_of_squares = normal(100_003), for_python(optimizer.sum_of_squares)
    sums = [sum(sum_of_squares(part, 4.0) for part in np.array_split(g, threads)) for threads in (1, 3)]
    assert sums[0] != sums[1]


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (63, 1), (128, 2), (10_000, 5)])
def test_small_work_wakes_nobody(rows, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(relu, "_relu", lambda words, threads: seen.append(threads))
    x = np.zeros((rows, 512), np.float32)
    relu.relu(x, x, threads=5)
    assert seen == [expected]


# --- the exponential ------------------------------------------------------------------------------


@njit
def exponentials(x, y):
    for i in range(x.size):
        y[i] = softmax_xent.exp_float32(x[i])


def worst_error(function):
    """In units of the last place, over float32 numbers of every size from -0 to -110."""
    lowest = np.array([-110], np.float32).view(np.uint32)[0]
    x = np.arange(0x80000000, lowest, 997, np.uint32).view(np.float32)
    x = np.concatenate([x, np.linspace(-104.5, 0, 300_001, dtype=np.float32)])
    y = np.empty_like(x)
    function(x, y)
    exact = np.exp(x.astype(np.float64))
    return np.max(np.abs(y - exact) / np.spacing(exact.astype(np.float32)))


def test_exponential_is_good_to_two_units_of_the_last_place(record_property):
    worst = worst_error(exponentials)
    record_property("worst error in units of the last place", float(worst))
    assert worst <= 2


def test_special_values_of_the_exponential():
    x = np.array([0, -0.0, -87.5, -2e4, -np.inf, np.nan], np.float32)
    y = np.full_like(x, 7)
    exponentials(x, y)
    assert y[:2].tolist() == [1, 1]
    assert 0 < y[2] < np.finfo(np.float32).tiny  # subnormal, not flushed
    assert y[3:5].tolist() == [0, 0]
    assert np.isnan(y[5])


@njit
def two_to_the_n_in_one_step(x, y):
    """Right until 2ⁿ is no longer a normal number."""
    for i in range(x.size):
        n = np.rint(x[i] * 1.4426950408889634)
        power = float_of(np.int32((max(np.int32(n), np.int32(-127)) + 127) << 23))
        y[i] = np.float32(np.exp(x[i] - n * 0.6931471805599453)) * power


@njit
def ln_2_in_one_piece(x, y):
    for i in range(x.size):
        n = np.rint(x[i] * np.float32(1.4426950408889634))
        r = x[i] - np.float32(n * np.float32(0.6931471805599453))
        y[i] = np.float32(np.exp(np.float64(r)) * 2.0**n)


@njit
def bits_of_a_linear_function(x, y):
    """Schraudolph's, good to some percent."""
    for i in range(x.size):
        y[i] = float_of(np.int32(max(0.0, 12102203.0 * x[i] + 1064866805.0)))


@pytest.mark.parametrize(
    "wrong",
    [two_to_the_n_in_one_step, ln_2_in_one_piece, bits_of_a_linear_function],
    ids=lambda f: f.__name__,
)
def test_rejected(wrong):
    assert worst_error(wrong) > 2


# --- numbers that are not finite ------------------------------------------------------------------


def test_rows_that_are_not_finite_are_those_of_numpy():
    z = normal(70, 10)
    z[1, 3], z[2, 0], z[3, 9], z[4], z[5, 2:4] = np.nan, np.inf, -np.inf, -np.inf, np.inf
    z[6, 5], z[6, 2], z[7] = np.nan, np.inf, np.nan
    t = np.random.default_rng(0).integers(10, size=70).astype(np.int32)
    t[1:8] = 3, 0, 9, 0, 2, 5, 0
    written = []
    with np.errstate(invalid="ignore"):
        for function in (softmax_xent.softmax_xent, partial(softmax_xent_reference.softmax_xent, np)):
            loss, correct, dz = np.zeros(70, np.float32), np.zeros(70, np.uint8), np.zeros_like(z)
            function(z, t, None, loss, correct, dz)
            written.append((loss, correct, dz))
        p, expected = np.zeros_like(z), np.zeros_like(z)
        softmax_xent.softmax(z, p)
        softmax_xent_reference.softmax(np, z, expected)
    assert written[0][1].tolist() == written[1][1].tolist()
    for ours, theirs in ((written[0][0], written[1][0]), (written[0][2], written[1][2]), (p, expected)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5000, 100_002])
def test_clipping_makes_all_of_a_broken_gradient_nan(bad, place):
    g = normal(100_003)
    g[place] = bad
    optimizer.clip_norm(g, 1.0)
    assert np.isnan(g).all()


def test_relu_keeps_nan_and_infinity():
    smallest = np.finfo(np.float32).tiny  # what is smaller may count as zero
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, smallest]], np.float32)
    relu.relu(x, x)
    assert repr(x[0].tolist()) == repr([np.nan, np.inf, 0.0, 0.0, float(smallest)])


# --- what the pieces promise ----------------------------------------------------------------------


def test_a_target_that_is_no_class_is_not_written_to():
    whole = normal(6, 14)
    before, z = whole.copy(), whole[1:5, 2:12]
    loss, correct = np.zeros(4, np.float32), np.full(4, 7, np.uint8)
    t, no_weight = np.array([-1, 10, 2**31 - 1, 3], np.int32), np.empty(0, np.float32)
    softmax_xent.softmax_xent_rows(z, t, no_weight, loss, correct, z, np.float32(1), 0.0, 0, 4)
    assert np.isnan(loss).tolist() == [True, True, True, False]
    assert not correct[:3].any()
    np.testing.assert_allclose(z.sum(axis=1), [1, 1, 1, 0], atol=1e-6)
    before[1:5, 2:12] = z
    assert before.tobytes() == whole.tobytes()


def test_a_piece_does_its_rows_only():
    y = np.ones((8, 5), np.float32)
    dropout.dropout_rows(y, dropout_reference.keep_threshold(0.5), 2.0, 1, 0, 0, 2, 5)
    assert (y[[0, 1, 5, 6, 7]] == 1).all()
    assert set(np.unique(y[2:5])) == {0, 2}
    whole = np.ones((8, 5), np.float32)
    dropout.dropout(whole, 0.5, (1, 0), 0)
    assert (y[2:5] == whole[2:5]).all()


@pytest.mark.parametrize("columns", [1, 3, 4, 35, 784])
@pytest.mark.parametrize("ink", [0.0, 0.2, 1.0])
def test_dropout_of_sparse_rows_has_the_same_bits(columns, ink):
    y = normal(9, columns) * (np.random.default_rng(1).random((9, columns)) < ink).astype(np.float32)
    y[0, 0], y[1, -1], y[2, columns // 2] = -0.0, np.nan, -np.inf
    expected = y.copy()
    arguments = dropout_reference.keep_threshold(0.4), 1 / 0.6, 3, dropout_reference.INPUT_LAYER, 2**33 + 1
    dropout.dropout_sparse_rows(y, *arguments, 0, 8)
    dropout.dropout_rows(expected, *arguments, 0, 8)
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("step", [2**32 - 1, 2**63 + 5, 2**64 - 1])
def test_dropout_of_late_steps(step):
    y, expected = np.ones((2, 37, 101), np.float32)
    dropout.dropout(y, 0.3, (2**32 - 1, 7), step)
    dropout_reference.dropout(np, expected, 0.3, (2**32 - 1, 7), step)
    assert y.tobytes() == expected.tobytes()


def test_pixels_are_scaled_to_the_bits_of_the_reference():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 64)
    out = np.empty((4, 64), np.float32)
    gather.gather(pixels, np.arange(4), 0, out)
    assert out.tobytes() == (pixels * np.float32(1 / 255)).tobytes()


def test_floats_whose_rows_are_apart_are_gathered_by_the_piece():
    images, order, out = normal(20, 30)[:, :17], np.random.default_rng(0).permutation(20), normal(9, 17)
    gather.gather_rows(images, order, 4, out, 0, 9)
    assert (out == images[order[4:13]]).all()


def test_nothing_to_do():
    none, nothing = np.empty((0, 5), np.float32), np.empty(0, np.float32)
    relu.relu(none, none)
    softmax_xent.softmax(none, none)
    softmax_xent.softmax_xent(none, np.empty(0, np.int32), None, nothing, np.empty(0, np.uint8), none)
    dropout.dropout(none, 0.5, (0, 0), 0)
    gather.gather(np.zeros((3, 5), np.uint8), np.arange(3), 3, none)
    optimizer.sgd(nothing, nothing, None, 0.1, 0.9, 0.0, False, False)
    optimizer.clip_norm(nothing, 1.0)
    attack.log_odds(none, np.empty(0, np.int32), nothing, np.empty(0, np.uint8), none)
    attack.ascend(none, none.copy(), none.copy(), 0.1, 0.1, "l2")
    attack.add_noise(none, np.arange(3), 3, 0.1, (0, 0), 0)
    max_norm.max_norm(none, 1.0)
    max_norm.max_norm(none.T, 1.0)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, 3, 2**40])
def test_an_order_beyond_the_images_is_refused(place):
    order = np.array([0, 1, place])
    out = np.zeros((2, 5), np.float32)
    with pytest.raises(IndexError, match=r"order must be in 0 … 2"):
        gather.gather(np.zeros((3, 5), np.uint8), order, 1, out)
    with pytest.raises(IndexError, match=r"order must be in 0 … 2"):
        gather.gather_values(np.zeros(3, np.int32), order, 1, np.zeros(2, np.int32))
    gather.gather(np.zeros((3, 5), np.uint8), order, 0, out)  # the bad one is not in this batch
    for start in (-1, 2):
        with pytest.raises(ValueError, match="order has 3 elements, not 2 from"):
            gather.gather(np.zeros((3, 5), np.uint8), order, start, out)


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_that_is_no_class_is_refused(target):
    z, t = normal(4, 5), np.array([0, target, 1, 2], np.int32)
    before = z.copy()
    with pytest.raises(IndexError, match=r"targets must be in 0 … 4"):
        softmax_xent.softmax_xent(z, t, None, np.zeros(4, np.float32), np.zeros(4, np.uint8), z)
    assert (z == before).all()


def test_arrays_that_do_not_fit_are_refused():
    x, flat = normal(4, 5), normal(6)
    with pytest.raises(TypeError, match="x must be an array of float32, got float64"):
        relu.relu(x.astype(np.float64), x)
    with pytest.raises(TypeError, match="dy must be an array of float32, got list"):
        relu.relu_grad(x, x.tolist(), x)
    with pytest.raises(TypeError, match="t must be an array of int32, got int64"):
        softmax_xent.softmax_xent(x, np.zeros(4, int), None, flat[:4], np.zeros(4, np.uint8), x)
    with pytest.raises(TypeError, match="order must be an array of int64"):
        gather.gather(x, np.zeros(4, np.int32), 0, x)
    with pytest.raises(TypeError, match="out must be an array of int32"):
        gather.gather_values(np.zeros(4, np.int32), np.arange(4), 0, flat)
    with pytest.raises(ValueError, match="p must have 2 dimensions"):
        softmax_xent.softmax(x, flat)
    with pytest.raises(ValueError, match=r"y must have the shape \(4, 5\), got \(5, 4\)"):
        relu.relu(x, normal(5, 4))
    with pytest.raises(ValueError, match=r"g must have the shape \(6,\), got \(5,\)"):
        optimizer.sgd(flat, flat[:5], None, 0.1, 0.9, 0.0, False, False)
    with pytest.raises(ValueError, match="the numbers of v must be next to each other"):
        optimizer.adam(flat, flat, flat, normal(12)[::2], 1, 0.1, 0.9, 0.999, 1e-8, 0.0, False)
    with pytest.raises(ValueError, match="the numbers of a row must be next to each other"):
        relu.relu(x.T, normal(5, 4))
    for rows in (x[::-1], np.broadcast_to(flat[:5], (4, 5))):
        with pytest.raises(ValueError, match="the rows of x must lie one behind the other"):
            relu.relu(rows, normal(4, 5))
    with pytest.raises(ValueError, match="the rows of images must lie next to each other"):
        gather.gather(normal(4, 6)[:, :5], np.arange(4), 0, x)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="y must be writable"):
        dropout.dropout(x, 0.5, (0, 0), 0)


@pytest.mark.parametrize(
    ("p", "key", "step", "message"),
    [
        (1.0, (0, 0), 0, "p must be in"),
        (-0.1, (0, 0), 0, "p must be in"),
        (0.5, (2**32, 0), 0, "key must be"),
        (0.5, (0, -1), 0, "key must be"),
        (0.5, (0, 0), 2**64, "key must be"),
    ],
)
def test_numbers_of_dropout_that_do_not_fit_are_refused(p, key, step, message):
    with pytest.raises(ValueError, match=message):
        dropout.dropout(normal(2, 3), p, key, step)
