"""Each way to multiply beside cuBLAS, which CuPy calls: TFLOP/s, and how much of cuBLAS' that is.

For bfloat16 cuBLAS multiplies float16, which is as fast. Operands stay where they are: what fits in the
second cache comes from there, for both sides.
"""

import math
import time
from contextlib import contextmanager
from functools import partial

import numpy as np

from .. import cases, checks
from .multiplication import FORMS, check_product, operands, techniques
from .timing import beside, seconds_on_gpu

ASKED_SIZE, ASKED_SIZE_BF16 = 4096, 8192  # of squares
MORE_SIZES = (512, 1024, 2048)
DEEP_BATCH = 512


def asked_shapes():
    """[((rows, depth, columns), turned, kinds)]: those that something is asked of, the kinds of numbers
    None for all."""
    each = [((size,) * 3, turned) for size in (ASKED_SIZE, ASKED_SIZE_BF16) for turned in FORMS.values()]
    return [(*shape, None if shape[0][0] == ASKED_SIZE else ("bf16",)) for shape in each]


def more_shapes():
    """The products of the deep network's layers, other squares, and the largest in other numbers."""
    found = []
    for layer in cases.Network(cases.DEEP, DEEP_BATCH).layers[:-1]:
        batch, inputs, outputs = layer.batch, layer.inputs, layer.outputs
        found += [
            ((batch, inputs, outputs), FORMS["nn"], None),
            ((inputs, batch, outputs), FORMS["tn"], None),
            ((batch, outputs, inputs), FORMS["nt"], None),
        ]
    found += [((size,) * 3, turned, None) for size in MORE_SIZES for turned in FORMS.values()]
    return found + [((ASKED_SIZE_BF16,) * 3, turned, ("tf32", "float32")) for turned in FORMS.values()]


def products(
    xp, capability, asked=None, more=None, seconds=seconds_on_gpu, save=lambda rows: None, until=math.inf
):
    """A row for each technique and shape, first the ``asked``, then ``more`` while it is not yet ``until``,
    by time.monotonic. ``save`` gets them all after each."""
    rows, asked = [], asked_shapes() if asked is None else asked
    for number, (shape, turned, kinds) in enumerate([*asked, *(more_shapes() if more is None else more)]):
        form = next(name for name, which in FORMS.items() if which == turned)
        for name, (kind, multiply) in techniques(capability).items():
            if kinds is not None and kind not in kinds:
                continue
            if number >= len(asked) and time.monotonic() > until:
                return rows
            row = {"technique": name, "shape": "x".join(map(str, shape)), "form": form}
            try:
                row |= _measured(xp, multiply, kind, shape, turned, seconds)
            except checks.Rejected as error:
                row["no_time"] = str(error)
            rows.append(row)
            save(rows)
    return rows


def _measured(xp, multiply, kind, shape, turned, seconds):
    given = operands(xp, kind, shape, turned)
    try:
        worst = check_product(xp, multiply, kind, shape, turned, given)
    except checks.Rejected as error:
        raise checks.Rejected(f"refused: {error}") from error
    a, b = given[0]
    del given  # what is in float64
    c = xp.zeros((shape[0], -(-shape[2] // 64) * 64), np.float32)[:, : shape[2]]
    with tf32(kind == "tf32"):
        ours, cublas = seconds(partial(multiply, a, b, c, turned), _cublas(xp, kind, a, b, turned))
    tera = 2 * np.prod(shape, dtype=float) / 1e12
    speeds = {"tflops": tera / np.median(ours), "cublas_tflops": tera / np.median(cublas)}
    return {"worst": worst, **beside(ours, cublas), **speeds}


def _cublas(xp, kind, a, b, turned):
    """cuBLAS' product of the same shape, as a call."""
    if kind == "bf16":
        a, b = ((x.astype(np.uint32) << 16).view(np.float32).astype(np.float16) for x in (a, b))
    a, b = map(xp.ascontiguousarray, (a, b))  # else CuPy copies them in every call
    left, right = (a.T if turned[0] else a), (b.T if turned[1] else b)
    out = xp.empty((left.shape[0], right.shape[1]), left.dtype)
    return lambda: xp.matmul(left, right, out=out)


@contextmanager
def tf32(wanted):
    """Whether cuBLAS, as CuPy calls it, may take float32 as TF32. (It reads its variable but once.)"""
    from cupy import _core

    linalg = _core._routines_linalg
    before = _core.get_compute_type(np.float32)
    _core.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32 if wanted else linalg.COMPUTE_TYPE_DEFAULT)
    try:
        yield
    finally:
        _core.set_compute_type(np.float32, before)
