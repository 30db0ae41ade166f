"""What goes over its arrays once, beside a copy that the GPU makes of as many bytes: GB/s, and the share.

Every byte that must be read or written counts once. The arrays are several times as large as the second
cache. An operation is first held against the definition in float64 (``kernels/*/reference.py``), all of its
arrays, those too that it must not change; a wrong one gets no time. Then it and the copy take turns.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastdigit.kernels.dropout import reference as dropout
from fastdigit.kernels.optimizer import reference as optimizer
from fastdigit.kernels.relu import reference as relu
from fastdigit.kernels.softmax_xent import reference as softmax_xent

from .. import checks
from .correctness import operations_of, said
from .timing import beside, quartiles, seconds_on_gpu

COUNT = 2**27  # float32 numbers of an array: 512 MiB, of which the second cache of an H200 holds a ninth
CLASSES, COLUMNS = 10, 8192
APART = (
    1e-5  # of the largest number of an array, what float32 and float64 may differ by: far less than a step
)
SGD = {"lr": 0.01, "momentum": 0.9, "decay": 0.0, "nesterov": False, "decoupled": False}
ADAM = {"t": 10, "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "decay": 0.0, "decoupled": False}
DROPOUT = {"p": 1e-3, "key": (7, 1), "step": 3}  # in place, a thousand times: what is kept grows by as little


@dataclass(frozen=True)
class Pass:
    """An operation, what defines it (a function of ``xp`` first), the arrays of one call, and the bytes that
    it must read and write."""

    name: str
    call: Any
    definition: Any
    arrays: tuple
    moved: int


def passes(xp, backend, count):
    """Functions that make a :class:`Pass` each, of arrays of about so many float32 numbers."""
    random, run = xp.random.default_rng(0), operations_of(backend)
    matrix = max(1, count // COLUMNS), min(count, COLUMNS)

    def drawn(shape=(count,)):
        return random.standard_normal(shape, dtype=np.float32)

    def unwritten(shape, dtype=np.float32):
        return xp.full(shape, np.nan if dtype == np.float32 else 77, dtype)

    def of(name, what, definition, arrays, floats, **how):
        moved = 4 * floats * arrays[0].size
        return Pass(name, partial(run[what], **how), partial(definition, xp, **how), arrays, moved)

    def loss():
        rows = count // CLASSES
        t = random.integers(0, CLASSES, rows).astype(np.int32)
        written = unwritten((rows,)), unwritten((rows,), np.uint8), unwritten((rows, CLASSES))
        arrays = drawn((rows, CLASSES)), t, None, *written
        moved = sum(array.nbytes for array in arrays if array is not None)
        operation = run["softmax_xent"], partial(softmax_xent.softmax_xent, xp)
        return Pass(f"softmax_xent, {CLASSES} classes", *operation, arrays, moved)

    return [
        loss,
        lambda: of("relu", "relu", relu.relu, (drawn(matrix), unwritten(matrix)), 2),
        lambda: of(
            *("relu_grad", "relu_grad", relu.relu_grad),
            *((drawn(matrix), drawn(matrix), unwritten(matrix)), 3),
        ),
        lambda: of("dropout", "dropout", dropout.dropout, (drawn(matrix),), 2, **DROPOUT),
        lambda: of("sgd", "sgd", optimizer.sgd, (drawn(), drawn(), None), 3, **SGD),
        lambda: of("sgd with momentum", "sgd", optimizer.sgd, (drawn(), drawn(), drawn()), 5, **SGD),
        lambda: of("adam", "adam", optimizer.adam, (drawn(), drawn(), drawn(), abs(drawn())), 7, **ADAM),
    ]


def bandwidth(
    xp, backend, count=COUNT, seconds=seconds_on_gpu, copy=None, save=lambda rows: None, make=passes
):
    """A row for each operation; ``save`` gets them all after each. ``copy(source, target)``, if not that of
    CuPy's memory."""
    rows, copy = [], _copy if copy is None else copy
    for ready in make(xp, backend, count):
        one, row = ready(), {}
        row["operation"], row["megabytes"] = one.name, one.moved / 1e6
        try:
            row["worst"] = check(xp, one)
            source = xp.tile(xp.arange(251, dtype=np.uint8), one.moved // 2 // 251)
            target = xp.empty_like(source)
            ours, copied = seconds(lambda one=one: one.call(*one.arrays), partial(copy, source, target))
            row |= beside(ours, copied)
            for name, found in ("gigabytes_per_second", ours), ("copy_gigabytes_per_second", copied):
                row[name] = one.moved / quartiles(found)[1] / 1e9
        except checks.Rejected as error:
            row["no_time"] = f"refused: {error}"
        except Exception as error:  # whatever a GPU or its driver runs into is what was found
            row["no_time"] = said(error)
        rows.append(row)
        save(rows)
    return rows


def check(xp, one):
    """The largest error, relative to APART of the largest number of its array; checks.Rejected if it is above
    1, or not a number."""
    expected = [
        None if a is None else a.astype(np.float64) if a.dtype == np.float32 else a.copy() for a in one.arrays
    ]
    one.definition(*expected)
    one.call(*one.arrays)
    worst = 0.0
    for number, (found, right) in enumerate(zip(one.arrays, expected, strict=True)):
        if found is not None:
            bound = APART * float(abs(right).max())
            error = float(abs(found.astype(np.float64) - right).max()) / bound
            if not error <= 1:
                raise checks.Rejected(f"array {number} is off by {error:.3g} times its bound")
            worst = max(worst, error)
    return worst


def _copy(source, target):
    target.data.copy_from_device_async(source.data, source.nbytes)
