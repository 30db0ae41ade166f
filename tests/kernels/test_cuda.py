"""The kernels for the GPU, compiled by Numba and run by the interpreter of PTX, which finds accesses out of
bounds, reads of what nobody wrote, races and divergent barriers in passing; the results are held to the
same checks as those of every backend."""

import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import cases, checks
from fastdigit.kernels.common.cuda import Limits
from fastdigit.kernels.dropout import cuda as dropout
from fastdigit.kernels.dropout import reference as dropout_reference
from fastdigit.kernels.gather import cuda as gather
from fastdigit.kernels.matmul import cuda as products
from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma
from fastdigit.kernels.optimizer import cuda as optimizer
from fastdigit.kernels.optimizer import reference as optimizer_reference
from fastdigit.kernels.relu import cuda as relu
from fastdigit.kernels.softmax_xent import cuda as softmax_xent

from ..ptx.device import PTXError
from ..ptx.emulated import backend, emulated
from ..ptx.faults import with_fault

right = fd.get_backend("numpy")

OPERATIONS = {
    name: list(inspect.signature(f).parameters) for name, f in vars(right).items() if name in checks.CHECKS
}


def test_the_backend_is_complete_and_has_the_protocols_parameters():
    for name, parameters in OPERATIONS.items():
        assert list(inspect.signature(getattr(backend(), name)).parameters) == parameters
    assert len(OPERATIONS) == 16


MATMUL = [
    cases.Matmul(*sizes)
    for sizes in (
        (1, 1, 1),
        (1, 37, 10),
        (5, 4, 19),
        (17, 29, 64),
        (33, 7, 65),
        (63, 64, 128),
        (64, 8, 63),
        (65, 101, 3),
        (128, 16, 64),
        (2, 784, 10),
    )
]


@pytest.mark.parametrize("case", MATMUL, ids=str)
@pytest.mark.parametrize("operation", ["dense", "dense_grad_input", "dense_grad_weight"])
def test_dense(operation, case, record_property):
    with emulated() as emulator:
        check, _ = checks.CHECKS[operation][0]
        record_property("worst error/bound", float(check(getattr(backend(), operation), backend(), case)))
    assert all(kernel.name.startswith(("matmul_simt", "column")) for kernel, _ in emulator.reports)


def test_dense_passes_nan_on():
    with emulated():
        checks.check_dense_passes_nan_on(backend().dense, backend(), cases.Matmul(5, 37, 19))


OTHERS = ("gather", "gather_values", "softmax", "softmax_xent", "dropout", "sgd", "adam", "clip_norm")
OTHERS += ("log_odds", "ascend", "add_noise", "max_norm")


@pytest.mark.parametrize(
    ("operation", "check", "case"),
    [
        pytest.param(operation, *case.values, id=f"{operation}-{case.id}")
        for operation in OTHERS
        for case in checks.parameters(operation)
    ],
)
def test_other_operations(operation, check, case, record_property):
    with emulated():
        record_property("worst error/bound", float(check(getattr(backend(), operation), backend(), case)))


@pytest.mark.parametrize("case", [cases.Matmul(5, 37, 19), cases.Matmul(64, 64, 10)], ids=str)
@pytest.mark.parametrize("operation", ["relu", "relu_grad"])
def test_relu(operation, case):
    check, _ = checks.CHECKS[operation][0]
    with emulated():
        check(getattr(relu, operation), backend(), case)


def test_relu_of_vectors():
    x = np.array([-1, 0, 2, np.nan, -np.inf], np.float32)
    with emulated():
        y, dx = np.zeros_like(x), np.zeros_like(x)
        relu.relu(x, y)
        relu.relu_grad(y, x[::-1].copy(), dx)
    np.testing.assert_array_equal(y, [0, 0, 2, np.nan, 0])
    np.testing.assert_array_equal(dx, [0, 0, 2, 0, 0])


# --- products: tiles and tensor cores -------------------------------------------------------------

SHAPES = [(1, 1, 1), (130, 17, 129), (37, 70, 260), (128, 96, 128)]
TURNED = [(False, False), (False, True), (True, False)]


def operands(shape, turned, seed=0):
    """a and b, each transposed if asked for, in rows of a multiple of 8 numbers."""
    random = np.random.default_rng(seed)
    rows, depth, columns = shape

    def padded(down, across):
        whole = np.full((down, -(-across // 8) * 8), np.nan, np.float32)
        whole[:, :across] = random.standard_normal((down, across))
        return whole[:, :across]

    a = padded(depth, rows) if turned[0] else padded(rows, depth)
    b = padded(columns, depth) if turned[1] else padded(depth, columns)
    return a, b


def product(a, b, turned):
    return (a.T if turned[0] else a).astype(np.float64) @ (b.T if turned[1] else b).astype(np.float64)


@pytest.mark.parametrize("tile", cuda_simt.TILES, ids=str)
@pytest.mark.parametrize("turned", TURNED, ids=["nn", "nt", "tn"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_of_float32(tile, turned, shape):
    a, b = operands(shape, turned)
    c = np.full((shape[0], shape[2]), np.nan, np.float32)
    with emulated():
        cuda_simt.multiply(a, b, c, turned=turned, tile=tile)
    bound = checks.gamma(shape[1], np.float32) * product(abs(a), abs(b), turned)
    checks.within("c", c, product(a, b, turned), bound)


def to_bfloat16(x):
    """Rounded to the nearest, ties to even, as uint16 in rows of the same distance."""
    bits = (
        np.lib.stride_tricks.as_strided(x, (x.shape[0], x.strides[0] // 4), x.strides).copy().view(np.uint32)
    )
    bits += 0x7FFF + (bits >> 16 & 1)
    return (bits >> 16).astype(np.uint16)[:, : x.shape[1]]


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_tf32(x):
    """What tensor cores see of float32, in rows of the same distance."""
    whole = np.lib.stride_tricks.as_strided(x, (x.shape[0], x.strides[0] // 4), x.strides).copy()
    return (whole.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32)[:, : x.shape[1]]


def no_ties(x):
    """None of the numbers halfway between two of TF32, where ways to multiply differ."""
    x.view(np.uint32)[...] |= x.view(np.uint32) & 0x1FFF == 0x1000
    return x


# What the products of a kind are given, and the numbers that it stands for.
KINDS = {
    "bf16": (to_bfloat16, from_bfloat16),
    "tf32": (no_ties, to_tf32),
    "float32": (lambda x: x, lambda x: x),
}


TENSOR_CORES = [
    pytest.param(module, kind, tile, id=f"{module.__name__.rpartition('_')[2]} {kind} {tile[0]} × {tile[1]}")
    for module in (cuda_mma, cuda_wgmma)
    for kind in ("bf16", "tf32")
    for tile in module.TILES
]


@pytest.mark.parametrize(("module", "kind", "tile"), TENSOR_CORES)
@pytest.mark.parametrize("turned", TURNED, ids=["nn", "nt", "tn"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_on_tensor_cores(module, kind, tile, turned, shape):
    given, meant = KINDS[kind]
    a, b = (given(x) for x in operands(shape, turned))
    c = np.full((shape[0], shape[2]), np.nan, np.float32)
    half = np.full((shape[0], shape[2] + shape[2] % 2), 0x7FC0, np.uint16)[:, : shape[2]]
    with emulated():
        module.multiply(a, b, c=c, half=half, turned=turned, tile=tile)
    a, b = meant(a), meant(b)
    bound = checks.gamma(shape[1], np.float32) * product(abs(a), abs(b), turned)
    checks.within("c", c, product(a, b, turned), bound)
    assert (half == to_bfloat16(c)[:, : shape[2]]).all()


@pytest.mark.parametrize("burst", [1, 200])
@pytest.mark.parametrize("tile", cuda_wgmma.TILES, ids=str)
@pytest.mark.parametrize("turned", TURNED, ids=["nn", "nt", "tn"])
def test_copies_and_multiplications_wait_for_each_other(burst, tile, turned):
    """Whoever of them is the quicker, over more stages than there are."""
    shape = (70, 500, 66)
    a, b = (to_bfloat16(x) for x in operands(shape, turned))
    c = np.full((70, 66), np.nan, np.float32)
    with emulated(burst=burst):
        cuda_wgmma.multiply(a, b, c=c, turned=turned, tile=tile)
    expected = product(from_bfloat16(a), from_bfloat16(b), turned)
    np.testing.assert_allclose(c, expected, atol=1e-3)


@pytest.mark.parametrize(("module", "kind", "tile"), TENSOR_CORES)
@pytest.mark.parametrize("columns", [67, 68], ids=["odd", "in fours"])
def test_what_follows_a_product_on_tensor_cores(module, kind, tile, columns):
    given, meant = KINDS[kind]
    random = np.random.default_rng(1)
    shape, turned = (70, 40, columns), (False, False)
    a, b = (given(x) for x in operands(shape, turned))
    bias = random.standard_normal(columns).astype(np.float32)
    below = given(random.standard_normal((70, 72)).astype(np.float32))[:, :columns]
    c = np.full((70, columns), np.nan, np.float32)
    half = np.full((70, columns + columns % 2), 0x7FC0, np.uint16)
    plain = product(meant(a), meant(b), turned)
    with emulated():
        module.multiply(a, b, c=c, half=half[:, :columns], bias=bias, relu=True, tile=tile)
        np.testing.assert_allclose(c, np.maximum(plain + bias, 0), rtol=1e-4, atol=1e-4)
        assert (half[:, columns:] == 0).all(), "padding"
        module.multiply(a, b, c=c, y_below=below, scale=2.0, tile=tile)
    np.testing.assert_allclose(c, np.where(meant(below) > 0, 2 * plain, 0), rtol=1e-4, atol=1e-4)


def test_what_products_on_tensor_cores_refuse():
    a, b = np.zeros((4, 8), np.float32), np.zeros((8, 8), np.float32)
    halves = a.astype(np.uint16), b.astype(np.uint16)
    c, strided = np.zeros((4, 8), np.float32), np.lib.stride_tricks.as_strided
    for operands, options, error, said in (
        ((a.astype(np.float64), b), {}, TypeError, "a must hold bfloat16 as uint16, or float32"),
        ((a, halves[1]), {}, TypeError, "b must be an array of float32 here"),
        ((a, b), {"y_below": halves[0]}, TypeError, "y_below must be an array of float32 here"),
        ((a, b[:4]), {}, ValueError, r"b has shape \(4, 8\), the others ask for \(8, 8\)"),
        ((a[:, :6], np.zeros((6, 8), np.float32)), {}, None, None),
        (
            (np.zeros((4, 6), np.float32), b[:6]),
            {},
            ValueError,
            "rows of a must begin at multiples of 16 bytes",
        ),
        (
            (strided(a, (4, 2**29), (2**31, 4)), strided(b, (2**29, 8), (32, 4))),
            {},
            ValueError,
            "no side may have 536,870,912 numbers or more",
        ),
        (halves, {"half": np.zeros((4, 9), np.uint16)[:, :8]}, ValueError, "multiples of 4 bytes"),
    ):
        with emulated():
            if error is None:
                cuda_mma.multiply(*operands, c=c, **options)
            else:
                with pytest.raises(error, match=said):
                    cuda_mma.multiply(*operands, c=c, **options)


# --- products: dropout and updates ----------------------------------------------------------------

SMALL = [
    (cuda_simt, "float32"),
    *((module, kind) for module in (cuda_mma, cuda_wgmma) for kind in ("bf16", "tf32")),
]
SMALL_IDS = [f"{module.__name__.rpartition('_')[2]} {kind}" for module, kind in SMALL]
UPDATE_NUMBER = 5 * 2**32 + 7  # both words of the counter matter


def check_dropout(multiply, plain, dropping):
    """``multiply(c, then)`` must write what the reference makes of ``plain`` [R, C] or [C], of float64."""
    c = np.full(plain.shape, np.nan, np.float32)
    with emulated():
        multiply(c, dropping(0.3, (11, 2), np.array([UPDATE_NUMBER, -1])))
    expected = plain.reshape(-1, plain.shape[-1]).copy()
    dropout_reference.dropout(np, expected, 0.3, (11, 2), UPDATE_NUMBER)
    np.testing.assert_allclose(c, expected.reshape(c.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", [0, -1], ids=["large", "small"])
@pytest.mark.parametrize(("module", "kind"), SMALL, ids=SMALL_IDS)
def test_dropout_of_a_product(module, kind, tile):
    given, meant = KINDS[kind]
    a, b = (given(x) for x in operands((70, 40, 67), (False, False)))
    bias = np.random.default_rng(1).standard_normal(67).astype(np.float32)

    def multiply(c, then):
        module.multiply(a, b, c=c, bias=bias, relu=True, then=then, tile=module.TILES[tile])

    plain = np.maximum(product(meant(a), meant(b), (False, False)) + bias, 0)
    check_dropout(multiply, plain, dropout.dropping)


OPTIMIZERS = {
    "sgd": fd.SGD(0.1, weight_decay=0.2, decoupled=True),
    "nesterov": fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.2),
    "adam": fd.Adam(0.1, beta1=0.8, beta2=0.9, weight_decay=0.2),
}


def check_update(multiply, gradient, record, padding, updating, half=None):
    """``multiply(p, then)`` must update p [R, C] or [C] as the reference does, by ``gradient`` of float64,
    with the rate of the second of three steps; ``padding`` numbers lie behind each row of p and its state."""
    random = np.random.default_rng(6)

    def padded():
        whole = random.uniform(0.1, 1, gradient.size).reshape(gradient.shape)
        whole = np.pad(whole, [(0, 0)] * (gradient.ndim - 1) + [(0, padding)], constant_values=np.nan)
        return np.ascontiguousarray(whole, np.float32)[..., : gradient.shape[-1]]

    p, state = padded(), tuple(padded() for _ in record.state_names)
    expected, *expected_state = (x.astype(np.float64) for x in (p, *state))
    backend = SimpleNamespace(
        sgd=lambda *arguments: optimizer_reference.sgd(np, *arguments),
        adam=lambda *arguments: optimizer_reference.adam(np, *arguments),
    )
    rates = np.array([0.5, 0.03, 0.2])
    plan = SimpleNamespace(optimizer=record, learning_rates=rates, state=state, update=4)
    numbers, nesterov = optimizer.step_numbers(plan), getattr(record, "nesterov", False)
    with emulated():
        multiply(p, updating(state, nesterov, numbers, np.array([1, -1])))
    record.update(backend, expected, gradient, tuple(expected_state), 0.03, 6)
    for name, found, wanted in zip("p01", (p, *state), (expected, *expected_state), strict=False):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=name)
        assert np.isnan(found.base[..., gradient.shape[-1] :]).all(), "padding"
    if half is not None:
        bits = to_bfloat16(np.ascontiguousarray(np.pad(p, [(0, 0), (0, half.base.shape[1] - p.shape[1])])))
        np.testing.assert_array_equal(half.base, bits)


@pytest.mark.parametrize(
    ("module", "kind", "name", "columns", "tile"),
    [
        (cuda_simt, "float32", "adam", 67, -1),
        (cuda_simt, "float32", "nesterov", 68, -1),
        (cuda_simt, "float32", "adam", 67, 0),
        (cuda_mma, "bf16", "adam", 67, -1),
        (cuda_mma, "tf32", "nesterov", 67, -1),
        (cuda_mma, "bf16", "nesterov", 67, 0),
        (cuda_wgmma, "bf16", "sgd", 68, -1),
        (cuda_wgmma, "bf16", "adam", 67, -1),
        (cuda_wgmma, "bf16", "adam", 67, 0),
        (cuda_wgmma, "bf16", "nesterov", 68, 1),
        (cuda_wgmma, "tf32", "adam", 68, 1),
    ],
)
def test_update_by_a_product(module, kind, name, columns, tile):
    given, meant = KINDS[kind]
    a, b = (given(x) for x in operands((70, 40, columns), (True, False)))
    half = np.full((70, 72), 0x7FC0, np.uint16) if kind == "bf16" else None
    if half is not None:
        half[:, columns + columns % 2 :] = 0
    more = {} if half is None else {"half": half[:, :columns]}

    def multiply(p, then):
        module.multiply(a, b, c=p, turned=(True, False), then=then, tile=module.TILES[tile], **more)

    gradient, padding = product(meant(a), meant(b), (True, False)), 5 if columns % 2 else 4
    check_update(multiply, gradient, OPTIMIZERS[name], padding, optimizer.updating, more.get("half"))


def sums_of_columns(kind="float32"):
    """(``multiply`` of the two checks, the sums), which is quicker than a product."""
    given, meant = KINDS[kind]
    dy = given(np.random.default_rng(5).standard_normal((37, 70)).astype(np.float32)[:, :67])
    return partial(products.sum_columns, dy), meant(dy).astype(np.float64).sum(axis=0)


@pytest.mark.parametrize(("kind", "name"), [("float32", "nesterov"), ("bf16", "adam")])
def test_update_by_column_sums(kind, name):
    multiply, sums = sums_of_columns(kind)
    check_update(multiply, sums, OPTIMIZERS[name], 0, optimizer.updating)


def test_what_epilogues_refuse():
    a, b, c = (np.zeros((8, 8), np.float32) for _ in range(3))
    numbers, step = np.zeros((1, optimizer.NUMBERS), np.float32), np.zeros(1, np.int64)

    def update(*state):
        return optimizer.updating(state, False, numbers, step)

    half = np.zeros((8, 8), np.uint16)
    with pytest.raises(ValueError, match=r"'update \(plain\)' changes an output of float32 that"):
        cuda_mma.multiply(a, b, half=half, then=update())
    with pytest.raises(ValueError, match=r"'update \(plain\)' of an output with a mask is not offered"):
        cuda_simt.multiply(a, b, c, y_below=c, then=update())
    with pytest.raises(ValueError, match=r"state has shape \(8, 7\), the others ask for \(8, 8\)"):
        cuda_simt.multiply(a, b, c, then=update(c[:, :7]))
    with pytest.raises(ValueError, match="rows of state must be as far apart"):
        cuda_simt.multiply(a, b, c, then=update(np.zeros((8, 9), np.float32)[:, :8]))
    with pytest.raises(TypeError, match="state must be a float32 array, got float64"):
        products.sum_columns(a, c[0], update(np.zeros(8)))
    with pytest.raises(ValueError, match="p must be in 0 ≤ p < 1, got 1"):
        dropout.dropping(1, (0, 0), step)
    for other in (step.astype(np.int32), step[:0]):
        with pytest.raises(TypeError, match="step must be a vector of int64"):
            dropout.dropping(0.5, (0, 0), other)
        with pytest.raises(TypeError, match="step must be a vector of int64"):
            optimizer.updating((), False, numbers, other)
    with pytest.raises(ValueError, match="at most two states, got 3"):
        update(c, c, c)
    with pytest.raises(ValueError, match=r"numbers has shape \(1, 8\), the others ask for \(1, 12\)"):
        optimizer.updating((), False, numbers[:, :8], step)
    with pytest.raises(ValueError, match="numbers must begin at a multiple of 16 bytes"):
        optimizer.updating((), False, np.zeros(13, np.float32)[1:].reshape(1, 12), step)


# --- rounding -------------------------------------------------------------------------------------


def test_rounding_to_bfloat16():
    x = np.random.default_rng(2).standard_normal((5, 301)).astype(np.float32)
    half = np.zeros((5, 302), np.uint16)[:, :301]
    with emulated():
        cuda_mma.to_bfloat16(x, half)
    padded = np.zeros((5, 304), np.float32)
    padded[:, :301] = x
    assert (half == to_bfloat16(padded[:, :301])).all()


# --- for other code -------------------------------------------------------------------------------


@pytest.fixture
def on_host(monkeypatch):
    """Products of arrays of NumPy, as if these were on the GPU."""
    monkeypatch.setattr(products, "_array_module", lambda: np)
    monkeypatch.setattr(products, "limits", lambda: Limits((9, 0), 4, 200_000))
    with emulated(race=False) as emulator:
        yield emulator


@pytest.mark.parametrize("name", ["matmul", "matmul_tn", "matmul_nt"])
@pytest.mark.parametrize("given", ["plain", "transposed", "every other row", "every other column"])
def test_matmul_takes_any_view(on_host, name, given):
    random = np.random.default_rng(4)
    a, b = random.standard_normal((9, 20)), random.standard_normal((20, 7))
    expected = a @ b
    a, b = a.astype(np.float32), b.astype(np.float32)
    a, b = (a.T if name == "matmul_tn" else a), (b.T if name == "matmul_nt" else b)

    def view(x):
        if given == "transposed":
            return np.ascontiguousarray(x.T).T
        if given == "every other row":
            return np.repeat(x, 2, axis=0)[::2]
        if given == "every other column":
            return np.repeat(x, 2, axis=1)[:, ::2]
        return np.ascontiguousarray(x)

    out = np.full((9, 7), np.nan, np.float32)
    assert getattr(products, name)(view(a), view(b), out=out) is out
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(getattr(products, name)(view(a), view(b)), expected, atol=1e-5)


def test_matmul_with_dropout_and_updates(on_host):
    random = np.random.default_rng(4)
    a, b, out = (random.uniform(1, 2, (8, 8)).astype(np.float32) for _ in range(3))
    numbers, step = np.zeros((1, optimizer.NUMBERS), np.float32), np.array([0])
    update = optimizer.updating((), False, numbers, step)
    numbers[0, [optimizer.SHRINK, optimizer.RATE]] = 1, 0.5
    expected = out - 0.5 * product(a, b, (False, False))
    assert products.matmul(a, b, out=out, then=update) is out
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    # A sum of nothing is a gradient of zero: weights still decay.
    numbers[0, optimizer.SHRINK] = 0.9
    products.matmul(a[:, :0], b[:0], out=out, then=update)
    np.testing.assert_allclose(out, 0.9 * expected, rtol=1e-5)
    with pytest.raises(TypeError, match="out must be an array on the GPU, got NoneType"):
        products.matmul(a, b, then=update)
    check_dropout(
        lambda c, then: products.matmul(a, b, c, then=then),
        product(a, b, (False, False)),
        dropout.dropping,
    )


@pytest.mark.parametrize("name", ["matmul_tn", "matmul_nt"])
def test_transposed_products_have_epilogues_too(on_host, monkeypatch, name):
    given, square = [], np.zeros((4, 4), np.float32)
    monkeypatch.setattr(products.cuda_simt, "multiply", lambda *arguments, **how: given.append(how["then"]))
    then = dropout.dropping(0.5, (0, 0), np.array([0]))
    getattr(products, name)(square, square, then=then)
    assert given == [then]


@pytest.mark.parametrize(
    ("precision", "capability", "shape", "expected"),
    [
        ("float32", (7, 5), (4096, 4096), "simt"),
        ("float32", (9, 0), (4096, 4096), "simt"),
        ("tf32", (8, 0), (1, 1), "mma"),
        ("tf32", (9, 0), (4096, 4096, 4096), "mma"),
        ("bf16", (8, 9), (4096, 4096), "mma"),
        ("bf16", (9, 0), (4096, 128), "wgmma"),
        ("bf16", (9, 0), (128, 10), "wgmma"),
        ("bf16", (9, 0), (127, 4096), "mma"),
        ("bf16", (10, 0), (4096, 4096), "mma"),
    ],
)
def test_the_technique_follows_from_precision_capability_and_shape(precision, capability, shape, expected):
    assert products.technique_for(precision, capability, shape) == expected


@pytest.mark.parametrize(
    ("capability", "shape", "expected"),
    [
        ((9, 0), (4096, 4096, 4096), "wgmma"),
        ((9, 0), (2048, 2048, 2048), "wgmma"),
        *(((9, 0), shape, "mma") for shape in ((2047, 4096, 4096), (4096, 2047, 4096), (4096, 4096, 2047))),
        ((8, 9), (4096, 4096, 4096), "mma"),
        ((10, 0), (4096, 4096, 4096), "mma"),
    ],
)
def test_products_of_tf32_that_are_worth_copies_of_their_operands(capability, shape, expected):
    assert products.technique_for("tf32", capability, shape, copies=True) == expected


@pytest.mark.parametrize(
    ("name", "precision", "technique", "kernel", "bound"),
    [
        ("matmul", "float32", None, "matmul_simt", 1e-5),
        ("matmul_nt", "tf32", None, "matmul_mma", 0.02),
        ("matmul_tn", "tf32", "mma", "matmul_mma", 0.02),
        ("matmul", "tf32", "wgmma", "matmul_wgmma", 0.02),
        ("matmul", "bf16", None, "matmul_wgmma", 0.15),
        ("matmul_nt", "bf16", "wgmma", "matmul_wgmma", 0.15),
        ("matmul_tn", "bf16", "mma", "matmul_mma", 0.15),
    ],
)
def test_matmul_in_each_precision(on_host, name, precision, technique, kernel, bound):
    random = np.random.default_rng(4)
    a, b = (random.uniform(-1, 1, shape).astype(np.float32) for shape in ((131, 41), (41, 130)))
    expected = a.astype(np.float64) @ b
    a, b = (a.T if name == "matmul_tn" else a), (b.T if name == "matmul_nt" else b)
    found = getattr(products, name)(
        np.ascontiguousarray(a), np.ascontiguousarray(b), precision=precision, technique=technique
    )
    assert kernel in {kernel.name.split(" ")[0] for kernel, _ in on_host.reports}
    assert np.abs(found - expected).max() < bound
    assert (np.abs(found - expected).max() > 1e-5) == (precision != "float32")


def test_techniques_that_cannot_be(on_host, monkeypatch):
    a = np.zeros((8, 8), np.float32)
    for how, said in (
        ({"precision": "fp8"}, "precision must be one of float32, tf32, bf16, got 'fp8'"),
        ({"technique": "mma"}, "precision 'float32' is for simt, not for 'mma'"),
        ({"precision": "tf32", "technique": "simt"}, "precision 'tf32' is for wgmma or mma, not for 'simt'"),
        ({"precision": "bf16", "technique": "simt"}, "precision 'bf16' is for wgmma or mma, not for 'simt'"),
    ):
        with pytest.raises(ValueError, match=said):
            products.matmul(a, a, **how)
    monkeypatch.setattr(products, "limits", lambda: Limits((8, 6), 4, 100_000))
    with pytest.raises(ValueError, match=r"'wgmma' needs a GPU of capability \(9, 0\), this has \(8, 6\)"):
        products.matmul(a, a, precision="bf16", technique="wgmma")
    monkeypatch.setattr(products, "limits", lambda: None)  # of a GPU below 8.0
    with pytest.raises(ValueError, match=r"precision 'tf32' needs a GPU of capability 8\.0 or more"):
        products.matmul(a, a, precision="tf32")


def test_more_rows_than_a_launch_takes_are_refused():
    images, order = np.zeros((1, 4), np.uint8), np.zeros(70_000, np.int64)
    with emulated(), pytest.raises(ValueError, match="takes at most 65,535 rows at once"):
        gather.gather(images, order, 0, np.zeros((70_000, 4), np.float32))


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((2, 2), np.float32)], ids=["dtype", "dimensions"])
def test_kernels_refuse_other_arrays(wrong):
    with pytest.raises(TypeError, match="a vector of float32 is needed here, not an array of"):
        relu._forward(1, wrong, 4, np.zeros(4, np.float32), 4, 4, 4)


def test_matmul_of_nothing(on_host):
    empty, out = np.zeros((3, 0), np.float32), np.full((3, 2), np.nan, np.float32)
    assert (products.matmul(empty, np.zeros((0, 2), np.float32), out=out) == 0).all()
    assert products.matmul(np.zeros((0, 3), np.float32), np.zeros((3, 2), np.float32)).shape == (0, 2)


@pytest.mark.parametrize(
    ("a", "b", "out", "error", "said"),
    [
        (np.zeros((3, 4)), None, None, TypeError, "a must be a float32 array, got float64"),
        (None, [[1.0]], None, TypeError, "b must be an array on the GPU, got list"),
        (np.zeros((3, 5), np.float32), None, None, ValueError, "have no product"),
        (
            None,
            None,
            np.zeros((2, 3), np.float32),
            ValueError,
            r"out has shape \(2, 3\), the product has \(3, 2\)",
        ),
        (None, None, np.zeros((3, 4), np.float32)[:, ::2], ValueError, "next to each other"),
    ],
)
def test_what_matmul_refuses(on_host, a, b, out, error, said):
    a = np.zeros((3, 4), np.float32) if a is None else a
    b = np.zeros((4, 2), np.float32) if b is None else b
    with pytest.raises(error, match=said):
        products.matmul(a, b, out)


# --- whole trainings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (fd.SGD(0.1, momentum=0.9, nesterov=True), {}),
        (fd.Adam(0.01, weight_decay=0.01), {"clip_norm": 0.5}),
    ],
    ids=["sgd", "adam"],
)
def test_a_training_ends_with_the_weights_of_the_reference(optimizer, options):
    random = np.random.default_rng(3)
    images = fd.Images(
        random.integers(0, 256, (40, 6, 6)).astype(np.uint8), random.integers(0, 4, 40).astype(np.uint8)
    )
    weights = []
    with emulated() as emulator:
        for side in (backend(), "numpy"):
            net = fd.Network([36, 20, 12, 4], backend=side, seed=3, dropout=0.2)
            fd.fit(net, images, optimizer=optimizer, epochs=2, batch_size=16, seed=1, **options)
            weights.append(net.get_parameters())
    assert len(emulator.reports) > 50
    for name, expected in weights[1].items():
        np.testing.assert_allclose(weights[0][name], expected, atol=1e-5, err_msg=name)


def test_a_gpu_without_whole_epochs_says_why():
    why = "as whole epochs need a GPU of compute capability 8.0 or more"
    images = fd.Images(np.zeros((8, 2, 2), np.uint8), np.zeros(8, np.uint8))
    with emulated():
        net = fd.Network([4, 2], backend=backend())
        assert fd.fit(net, images, epochs=1, batch_size=4).path == f"step, {why}"
        assert fd.fit(net, images, epochs=1, batch_size=4, path="step").path == "step"
        with pytest.raises(fd.ConfigError, match=f"has no whole-epoch kernel, {why}: use path='auto'"):
            fd.fit(net, images, epochs=1, batch_size=4, path="epoch")


def test_an_attack_is_that_of_the_reference():
    random = np.random.default_rng(3)
    images, found = random.random((6, 9)).astype(np.float32), []
    with emulated():
        for side in (backend(), "numpy"):
            net = fd.Network([9, 8, 4], backend=side, seed=3)
            labels = fd.Network([9, 8, 4], backend="numpy", seed=3).predict(images)
            found.append(fd.attack(net, images, labels, fd.PGD(0.02, steps=1)))
    assert (found[1] != images).any()
    np.testing.assert_allclose(*found, atol=1e-5)


# --- faults that must be found --------------------------------------------------------------------


FAULTS = [
    pytest.param(cuda_simt, "cuda.syncthreads()", "pass", "race|nothing has written", id="no barrier"),
    pytest.param(
        cuda_simt, "            half = 1 - half\n", "", "race", id="one half of shared memory for both"
    ),
    pytest.param(
        cuda_simt,
        "finish(sums, strip, top + row, left + column, rows, columns",
        "finish(sums, strip, top + row, left + column, rows + 64, columns",
        "out of bounds",
        id="rows beyond the last",
    ),
    pytest.param(cuda_simt, "fours * 4", "fours * 4 + 1", "misaligned|wrong", id="unaligned"),
    pytest.param(cuda_mma, "next_copied()", "pass", "nothing has written|wrong", id="no wait for copies"),
    pytest.param(cuda_mma, "cuda.syncthreads()", "pass", "race|nothing has written", id="no barrier, copies"),
    pytest.param(
        cuda_mma,
        "min(start + row, count - 1)",
        "start + row",
        "out of bounds",
        id="copies beyond the last row",
    ),
    pytest.param(cuda_mma, "row // 2 % 4 if by_k", "0 if by_k", None, id="no exchange: right, but slow"),
    pytest.param(
        cuda_simt,
        "        cuda.syncthreads()  # all have computed with the last half\n",
        "",
        "race|wrong",
        id="sums over operands that are still needed",
    ),
]


@pytest.mark.parametrize(("module", "old", "new", "message"), FAULTS)
def test_faults_are_found(module, old, new, message):
    faulty = with_fault(module, old, new)
    shape = (70, 100, 67)
    a, b = operands(shape, (False, False))
    c = np.full((70, 67), np.nan, np.float32)

    def run():
        with emulated(metrics=True) as emulator:
            if module is cuda_simt:
                faulty.multiply(a, b, c, tile=(64, 64))
                left, right = a, b
            else:
                halves = to_bfloat16(a), to_bfloat16(b)
                faulty.multiply(*halves, c=c, tile=faulty.TILES[-1])
                left, right = map(from_bfloat16, halves)
        expected = product(left, right, (False, False))
        if not np.abs(c - expected).max() < 1e-3:
            raise PTXError("wrong result")
        return emulator.reports[-1][1]

    if message is None:
        assert run().bank_conflicts["ldmatrix.shared"] > 0
    else:
        with pytest.raises(PTXError, match=message):
            run()


DROPOUT_FAULTS = [
    ("uint64(column) // uint64(4)", "uint64(column) // uint64(4) + uint64(1)"),
    ("uint64(row), step & MASK", "uint64(row) + uint64(1), step & MASK"),
    ("step >> SHIFT", "step & MASK"),
    ("numbers[1][0]", "numbers[1][1]"),
    ("four[3] * scale if words[3]", "four[3] * scale if words[2]"),
]
UPDATE_FAULTS = [
    ("if states > 0:\n            write4(", "if states > 2:\n            write4("),
    ("if states > 1:\n            write4(", "if states > 2:\n            write4("),
    ("write4(state_1, at, count, vectors, (new_0[2]", "write4(state_1, at, count + 1, vectors, (new_0[2]"),
    ("numbers_of(numbers[2], numbers[3][0])", "numbers_of(numbers[2], numbers[3][1] + 1)"),
    ("s_0[3], s_1[3]", "s_0[3], s_1[2]"),
    ("p * numbers[SHRINK]", "p"),
    ("if nesterov else state_0", "if not nesterov else state_0"),
]


XENT_FAULTS = [
    ("of_target = depth if c == target else of_target", "of_target = depth"),
    ("right if c == target else each", "each if c == target else right"),
    ("uint8(1) if best == target", "uint8(1) if best >= target"),
    ("(first if c == lane else z[at + c]) - largest", "first - largest"),
    ("return _sum_of(total), _sum_of(of_target)", "return total, _sum_of(of_target)"),
    ("value, place = _first_largest(value, place)", "pass"),
    (
        "there = row * z_row, classes if row < rows else 0\n    target",
        "there = row * z_row, classes\n    target",
    ),
]


@pytest.mark.parametrize(("old", "new"), XENT_FAULTS, ids=[new for _, new in XENT_FAULTS])
def test_faults_of_losses_are_found(old, new):
    check, of_check = checks.CHECKS["softmax_xent"][0]
    faulty = with_fault(softmax_xent, old, new).softmax_xent

    def check_all():
        for case in of_check:
            check(faulty, backend(), case)

    with emulated(), pytest.raises((PTXError, checks.Rejected)):
        check_all()


# --- losses of few classes: a thread for each row -------------------------------------------------

# (rows, classes): whole blocks, what is left of one, several; read one by one, by twos, by fours, by fours
# that have changed places; the limit.
OF_FEW = [
    (1, 1),
    (300, 1),
    (129, 2),
    (200, 3),
    (256, 8),
    (128, 10),
    (300, 10),
    (130, 12),
    (257, 16),
    (20, 31),
]
OF_FEW += [(150, softmax_xent.FEW)]


def placed(values, shift):
    """Values in memory that begins ``shift`` numbers behind a multiple of 16 bytes."""
    whole = np.zeros(values.size + 8, values.dtype)
    first = -(whole.__array_interface__["data"][0] // values.itemsize) % 4 + shift
    array = whole[first : first + values.size].reshape(values.shape)
    array[...] = values
    return array


def compare_losses(operation, z, t, weight=None, smoothing=0.0, shift=0, in_place=False):
    """With the definition in float64; what the launches counted."""
    rows = len(z)
    given = placed(z, shift)
    dz = given if in_place else placed(np.full_like(z, np.nan), shift)
    loss, correct = np.full(rows, np.nan, np.float32), np.full(rows, 77, np.uint8)
    with emulated(metrics=True) as emulator, np.errstate(all="ignore"):
        operation(given, t, weight, loss, correct, dz, smoothing)
        exact = [a.astype(np.float64) for a in (loss, dz)]
        whole = None if weight is None else weight.astype(np.float64)
        found, right_ones = correct.copy(), np.zeros_like(correct)
        right.softmax_xent(z.astype(np.float64), t, whole, exact[0], right_ones, exact[1], smoothing)
    np.testing.assert_array_equal(found, right_ones)
    np.testing.assert_allclose(loss, exact[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dz, exact[1], rtol=1e-4, atol=1e-6 / rows)
    if not in_place:
        np.testing.assert_array_equal(given, z)
    return emulator.reports


def logits_of_few(rows, classes):
    random = np.random.default_rng(rows)
    z = random.integers(-9, 9, (rows, classes)).astype(np.float32)  # many of the largest are equal
    return z, random.integers(0, classes, rows).astype(np.int32), random.random(rows, np.float32)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize(("rows", "classes"), OF_FEW)
def test_losses_of_few_classes(rows, classes, shift):
    z, t, weight = logits_of_few(rows, classes)
    for how in ({}, {"weight": weight}, {"smoothing": 0.1}, {"weight": weight, "smoothing": 0.9}):
        for in_place in (False, True):
            ((kernel, _),) = compare_losses(
                softmax_xent.softmax_xent, z, t, **how, shift=shift, in_place=in_place
            )
            assert kernel.name == f"softmax_xent, {classes} classes"


def test_losses_of_more_classes_or_of_rows_apart():
    z, t, _ = logits_of_few(70, softmax_xent.FEW + 1)
    for logits in (z, np.lib.stride_tricks.as_strided(z, (70, 10), z.strides)):
        loss, correct, dz = np.zeros(70, np.float32), np.zeros(70, np.uint8), np.zeros_like(logits)
        expected = [np.zeros_like(a) for a in (loss, correct, dz)]
        with emulated() as emulator:
            softmax_xent.softmax_xent(logits, t % logits.shape[1], None, loss, correct, dz)
        right.softmax_xent(logits, t % logits.shape[1], None, *expected)
        for found, wanted in zip((loss, correct, dz), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
        assert [kernel.name for kernel, _ in emulator.reports] == ["softmax_xent"]


@pytest.mark.parametrize("classes", [5, 6, 8])
def test_losses_of_logits_that_are_no_numbers(classes):
    """Of the same rows, each special one at each place, and the target at each."""
    z = np.zeros((6 * classes * classes, classes), np.float32)
    t = np.arange(len(z), dtype=np.int32) % classes
    for row, logits in enumerate(z):
        kind, place = row // classes % 6, row // (6 * classes)
        if kind == 5:
            logits[:] = -np.inf
        else:
            logits[place] = (np.nan, np.inf, -np.inf, np.nan, 1)[kind]
        if kind == 3:
            logits[(place + 1) % classes] = np.nan
    compare_losses(softmax_xent.softmax_xent, z, t)


def test_losses_of_few_classes_move_fours():
    """Each warp of a block: three turns for its part of 1280 numbers, the last of which half of them need."""
    z, t, _ = logits_of_few(128, 10)
    ((_, report),) = compare_losses(softmax_xent.softmax_xent, z, t)
    assert report.requests["ld.global"] == 4 * (3 + 1)
    assert report.requests["st.global"] == 2 * (3 + 2) + 2 * (2 + 2)
    assert not sum(report.bank_conflicts.values())


WHOLE, PARTLY, CHANGED, UNALIGNED = (256, 10, 0), (300, 10, 0), (257, 16, 0), (256, 10, 1)
FEW_FAULTS = [  # and (rows, classes, shift) of what shows it
    ("if thread < left:  # asked", "if True:  # asked", PARTLY),
    ("cuda.syncthreads()\n        if thread < left:", "if thread < left:", WHOLE),
    ("cuda.syncthreads()\n        if in_fours:\n            take", "if in_fours:\n            take", WHOLE),
    ("vectors and left == THREADS", "left == THREADS", UNALIGNED),
    ("vectors and left == THREADS", "vectors", PARTLY),
    ("four = min(four, last)", "pass", WHOLE),
    ("if four < end:", "if True:", WHOLE),
    ("while number < count:\n                dz", "while number < count - 1:\n                dz", PARTLY),
    ("(four ^ ((row >> same) & changed))", "four", CHANGED),
    (
        "place_of_part(thread, uint32(part))), part * wide",
        "place_of_part(thread, uint32(part))), part",
        WHOLE,
    ),
    ("not logit <= largest and", "logit >= largest and", WHOLE),
    ("power * scale - (right if c == target else each)", "power * scale - right", WHOLE),
    ("factor * own, float32(1) - smoothing", "factor, float32(1) - smoothing", WHOLE),
]


@pytest.mark.parametrize(
    ("old", "new", "case"), FEW_FAULTS, ids=[f"{old} → {new}" for old, new, _ in FEW_FAULTS]
)
def test_faults_of_losses_of_few_classes_are_found(old, new, case):
    rows, classes, shift = case
    faulty = with_fault(softmax_xent, old, new).softmax_xent
    with pytest.raises((PTXError, AssertionError)):
        compare_losses(faulty, *logits_of_few(rows, classes), shift=shift)


@pytest.mark.parametrize(("old", "new"), DROPOUT_FAULTS, ids=[new for _, new in DROPOUT_FAULTS])
def test_faults_of_dropout_are_found(old, new):
    multiply, sums = sums_of_columns()
    check_dropout(multiply, sums, dropout.dropping)
    with pytest.raises((PTXError, AssertionError)):
        check_dropout(multiply, sums, with_fault(dropout, old, new).dropping)


@pytest.mark.parametrize(("old", "new"), UPDATE_FAULTS, ids=[new.strip() for _, new in UPDATE_FAULTS])
def test_faults_of_updates_are_found(old, new):
    multiply, sums = sums_of_columns()
    record = OPTIMIZERS["nesterov" if "nesterov" in old else "sgd" if "SHRINK" in old else "adam"]
    check_update(multiply, sums, record, 5, optimizer.updating)
    with pytest.raises((PTXError, AssertionError)):
        check_update(multiply, sums, record, 5, with_fault(optimizer, old, new).updating)
