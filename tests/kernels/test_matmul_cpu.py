"""The hand-written matrix product on the CPU: every shape, view, tile and number of threads."""

import os
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from fastdigit.bench import cases
from fastdigit.bench.checks import Rejected, gamma, within
from fastdigit.kernels.matmul import cpu
from fastdigit.kernels.matmul.cpu import matmul, matmul_nt, matmul_tn

# Beyond the shared table: more than one block of K, packed rows (distances of 512), many panels.
DEEP = (
    cases.Matmul(29, 1024, 10),
    cases.Matmul(15, 1025, 33),
    cases.Matmul(16, 2500, 70),
    cases.Matmul(100, 512, 512),
    cases.Matmul(3, 31, 1100),
)
# The large layers once only: they take the time of all others together.
SHAPES = (*cases.MATMUL_EDGES, *DEEP, cases.Matmul(128, 784, 128), cases.Matmul(96, 128, 10))
KINDS = ("nn", "nt", "tn", "strided")


def operands(case, kind):
    random = np.random.default_rng(case.batch * 7 + case.inputs * 3 + case.outputs)
    m, k, n = case.batch, case.inputs, case.outputs

    def draw(*shape):
        return random.standard_normal(shape, dtype=np.float32)

    if kind == "strided":  # every other row, a padded row, reversed columns
        return draw(2 * m, k + 3)[::2, :k], draw(k, n + 5)[:, n + 4 : 4 : -1]
    return draw(k, m).T if kind == "tn" else draw(m, k), draw(n, k).T if kind == "nt" else draw(k, n)


def check(product, case, kind):
    """Within γ_K·(|a|·|b|) of float64, nothing written beside it; returns the worst share of the bound."""
    a, b = operands(case, kind)
    whole = np.full((case.batch + 2, case.outputs + 3), np.nan, np.float32)
    out = whole[1:-1, 1:-2]
    product(a, b, out)
    exact = a.astype(np.float64), b.astype(np.float64)
    bound = gamma(case.inputs, "float32") * (np.abs(exact[0]) @ np.abs(exact[1]))
    worst = within("out", out, exact[0] @ exact[1], bound)
    out[...] = np.nan
    if not np.isnan(whole).all():
        raise Rejected("something was written beside the output")
    return worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_against_float64(case, kind, record_property):
    record_property("worst error/bound", check(cpu.matmul, case, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*DEEP, cases.Matmul(64, 784, 128), cases.Matmul(37, 5, 2)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(case, kind):
    a, b = operands(case, kind)
    alone = cpu.matmul(a, b, threads=1)
    for threads in (2, 3, 50):
        assert cpu.matmul(a, b, threads=threads).tobytes() == alone.tobytes()


# Several panels, blocks and groups of panels for each thread; groups of 10 panels where two threads
# share 21 (a thread's room was once made for the groups of 7 that one thread alone has); strips that are
# copied once for many groups, in more than one go.
LARGE = ((256, 512, 672), (100, 1030, 700), (1200, 512, 1030))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", LARGE, ids=str)
def test_many_groups_of_panels(sizes, kind):
    case = cases.Matmul(*sizes)
    check(partial(cpu.matmul, threads=1), case, kind)
    a, b = operands(case, kind)
    alone = cpu.matmul(a, b, threads=1)
    for threads in (2, 2, 2, 3, 5):
        assert cpu.matmul(a, b, threads=threads).tobytes() == alone.tobytes()


def test_the_transposed_forms():
    a, b = operands(cases.Matmul(20, 30, 40), "nn")
    expected = cpu.matmul(a, b)
    np.testing.assert_allclose(cpu.matmul_tn(np.ascontiguousarray(a.T), b), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cpu.matmul_nt(a, np.ascontiguousarray(b.T)), expected, rtol=1e-5, atol=1e-5)
    out = np.empty((20, 40), np.float32)
    assert cpu.matmul(a, b, out=out) is out


@njit
def in_jitted_code(a, b, into):
    return matmul(a, b), matmul(a, b, into)


@njit
def transposed_in_jitted_code(a, b, into):
    return matmul_tn(a.T, b), matmul_tn(a.T, b, into), matmul_nt(a, b.T), matmul_nt(a, b.T, into)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(20, 30, 40), (96, 128, 10), (1, 1, 1), (128, 600, 70)], ids=str)
def test_in_code_that_numba_compiles(sizes, kind):
    case = cases.Matmul(*sizes)
    a, b = operands(case, kind)
    expected, into = cpu.matmul(a, b).tobytes(), np.empty((case.batch, case.outputs), np.float32)
    found = in_jitted_code(a, b, into)
    if kind == "nn":  # each way in which numbers lie costs seconds of compiling
        found += transposed_in_jitted_code(a, b, into)
    for each in found:
        assert each.tobytes() == expected


def test_what_does_not_fit_is_refused_in_jitted_code():
    a, b = operands(cases.Matmul(4, 5, 6), "nn")
    with pytest.raises(ValueError, match="must fit"):
        in_jitted_code(a, b, np.empty((6, 4), np.float32))
    square = np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="overlap"):
        in_jitted_code(square, square, square)
    with pytest.raises(TypingError):
        in_jitted_code(a.astype(np.float64), b, np.empty((4, 6), np.float32))
    read_only = np.zeros((4, 6), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(TypingError):
        in_jitted_code(a, b, read_only)
    assert not read_only.any()
    empty = np.full((4, 6), np.nan, np.float32)
    in_jitted_code(a[:, :0], b[:0], empty)
    assert (empty == 0).all()


def test_nan_and_infinity_are_passed_on():
    a, b = operands(cases.Matmul(20, 30, 40), "nn")
    a[3, 4], a[5, 6] = np.nan, np.inf
    expected = np.isfinite(a).all(axis=1)
    assert (np.isfinite(cpu.matmul(a, b)).all(axis=1) == expected).all()


def test_empty_operands():
    zeros = np.zeros
    assert cpu.matmul(zeros((0, 4), np.float32), zeros((4, 3), np.float32)).shape == (0, 3)
    assert cpu.matmul(zeros((2, 4), np.float32), zeros((4, 0), np.float32)).shape == (2, 0)
    out = np.full((2, 3), np.nan, np.float32)
    assert (cpu.matmul(zeros((2, 0), np.float32), zeros((0, 3), np.float32), out) == 0).all()


def test_what_does_not_fit_is_refused():
    a, b = operands(cases.Matmul(4, 5, 6), "nn")
    with pytest.raises(TypeError, match="a must be a float32 array, got float64"):
        cpu.matmul(a.astype(np.float64), b)
    with pytest.raises(TypeError, match="b must be a float32 array"):
        cpu.matmul(a, b.tolist())
    with pytest.raises(ValueError, match="have no product"):
        cpu.matmul(a, b.T)
    with pytest.raises(ValueError, match="out has shape"):
        cpu.matmul(a, b, np.empty((6, 4), np.float32))
    with pytest.raises(ValueError, match="next to each other"):
        cpu.matmul(a, b, np.empty((6, 4), np.float32).T)
    with pytest.raises(ValueError, match="overlap"):
        cpu.matmul(b[:, :5], b[:, :5], b[:, :5])
    with pytest.raises(ValueError, match="threads must be an integer of at least 1"):
        cpu.matmul(a, b, np.empty((4, 6), np.float32), threads=0)
    read_only = np.empty((4, 6), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        cpu.matmul(a, b, read_only)


def test_threads_of_python_may_multiply_at_once():
    a, b = operands(cases.Matmul(64, 300, 96), "nn")
    expected, results = cpu.matmul(a, b).tobytes(), []

    def work():
        results.extend(cpu.matmul(a, b).tobytes() == expected for _ in range(50))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 200


def test_smaller_tiles(narrower):
    """The same code compiled for processors with narrower vectors."""
    lanes, environment = narrower
    code = (
        "from fastdigit.bench import cases\n"
        "from fastdigit.kernels.matmul import cpu\n"
        "from tests.kernels import test_matmul_cpu as tests\n"
        f"assert cpu.TILE.lanes == {lanes}, cpu.TILE\n"
        "shapes = [*tests.DEEP, *[cases.Matmul(n, n, n) for n in cases.EDGES]]\n"
        "print(max(tests.check(cpu.matmul, case, kind) for case in shapes for kind in tests.KINDS))\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert 0 < float(result.stdout) <= 1


# --- what the check above must reject ---------------------------------------------------------------


def last_column_forgotten(a, b, out):
    cpu.matmul(a, b[:, :-1], out[:, :-1])


def last_step_forgotten(a, b, out):
    cpu.matmul(a[:, :-1], b[:-1], out)


def added_to_what_was_there(a, b, out):
    out += cpu.matmul(a, b)


def rounded_to_half_precision(a, b, out):
    cpu.matmul(a.astype(np.float16).astype(np.float32), b, out)


def one_row_beyond_the_end(a, b, out):
    cpu.matmul(a, b, out)
    out.base[0] = 0


@pytest.mark.parametrize(
    "wrong",
    [
        last_column_forgotten,
        last_step_forgotten,
        added_to_what_was_there,
        rounded_to_half_precision,
        one_row_beyond_the_end,
    ],
)
def test_rejected(wrong):
    def check_all():
        for case in DEEP:
            check(wrong, case, "nn")

    with pytest.raises(Rejected):
        check_all()
