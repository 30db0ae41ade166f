"""The dense layer and its gradients on a GPU, ``matmul`` for arrays of any library, and which of the ways to
multiply is taken."""

from functools import cache

import numpy as np
from numba import float32, int64

from ..common import ptx
from ..common.cuda import (
    ALIGNED,
    FLOATS,
    LEAST_CAPABILITY,
    SIMULATED,
    WORDS,
    Kernel,
    blocks_for,
    check_float32,
    check_shapes,
    cuda,
    flat,
    for_any_array,
    limits,
    on_stream,
    row_distance,
)
from ..common.fours import AS_IT_IS, check_beside, read4, read4_halves, write4
from ..common.ptx import load4, store4
from . import cuda_mma, cuda_simt, cuda_wgmma
from .cuda_epilogue import in_fours, in_pieces, words_of
from .cuda_simt import multiply

ACROSS, DOWN = 8, 16  # fours of columns, and parts of a column, that a block adds up
THREADS = ACROSS * DOWN
PARTS = 4 * THREADS

TECHNIQUES = {"simt": cuda_simt, "mma": cuda_mma, "wgmma": cuda_wgmma}
# What can multiply in each precision, and the least capability that it needs.
OFFERED = {
    "float32": {"simt": (0, 0)},
    "tf32": {"wgmma": cuda_wgmma.CAPABILITY, "mma": (8, 0)},
    "bf16": {"wgmma": cuda_wgmma.CAPABILITY, "mma": (8, 0)},
}
# Of all sides of a product of TF32: from here on wgmma should gain more than the copies take that it may need
# (predicted from its times with bfloat16, not measured).
WORTH_COPIES = 2048
PADDED = 64  # numbers that rows are made a multiple of, where they have to be copied


def technique_for(precision, capability, shape, copies=False):
    """The name of the TECHNIQUES that is quickest for a product of this shape [M, N, …] on a GPU of this
    capability. ``copies``: whether it may take memory for copies of its operands.

    Errors: ValueError for a precision that there is not, or not there.
    """
    if precision not in OFFERED:
        raise ValueError(f"precision must be one of {', '.join(OFFERED)}, got {precision!r}")
    for name, least in OFFERED[precision].items():
        if name == "wgmma":
            # Made for this capability alone; few rows leave most of its tiles empty. (So do few columns, but
            # it goes through many k in the least time.)
            enough = precision != "tf32" or (copies and min(shape) >= WORTH_COPIES)
            if capability == least and shape[0] >= cuda_wgmma.ROWS and enough:
                return name
        elif capability >= least:
            return name
    raise ValueError(f"precision {precision!r} needs a GPU of capability 8.0 or more, this has {capability}")


@cache
def column_sums(halves, epilogue=AS_IT_IS.epilogue):
    """The kernel for sums of the columns of a matrix of float32, or of bfloat16 if ``halves``."""
    read, stored = (read4_halves, WORDS) if halves else (read4, FLOATS)
    begin, read_beside, change = epilogue.begin, epilogue.read, epilogue.change

    def column_sums(values, row_distance, rows, columns, vectors, sums, numbers):
        ptx.launch_dependents()
        ptx.wait_for_launches()
        parts = cuda.shared.array(PARTS, float32, ALIGNED)
        thread = cuda.threadIdx.x
        lane, part = thread % ACROSS, thread // ACROSS
        column = 4 * (cuda.blockIdx.x * ACROSS + lane)
        count = columns - column
        s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
        if count > 0:
            for row in range(part, rows, DOWN):
                four = read(values, row * row_distance + column, count, vectors)
                s0, s1, s2, s3 = s0 + four[0], s1 + four[1], s2 + four[2], s3 + four[3]
        store4(parts, 4 * thread, (s0, s1, s2, s3))
        cuda.syncthreads()
        if part == 0 and count > 0:
            for other in range(1, DOWN):
                four = load4(parts, 4 * (other * ACROSS + lane))
                s0, s1, s2, s3 = s0 + four[0], s1 + four[1], s2 + four[2], s3 + four[3]
            place = int64(0), column, column, count, int64(0)
            beside, shared = read_beside(place, sums, numbers), begin(numbers)
            write4(sums, column, count, False, change((s0, s1, s2, s3), place, beside, shared, numbers))

    return Kernel(
        column_sums,
        *(stored, int64, int64, int64, int64, FLOATS, epilogue.kinds),
        threads=THREADS,
        resident=4 if epilogue.reads else 8,  # blocks are few: registers for what is read beside
        name=f"column sums{' of bfloat16' if halves else ''}{epilogue.suffix}",
        dependent=True,
        simulated=not halves,
    )


@for_any_array
def dense(x, w, b, y, relu):
    """y = x·w + b, and then max(y, 0) if ``relu``; NaN stays NaN. One pass.

    Shapes: x [B, I], w [I, O], b [O], y [B, O]; rows may be further apart than they are long.
    Dtypes: all float32. Writes: y, which must not overlap the others.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit or rows with gaps.
    Cost: 2·B·I·O flops; writes B·O numbers once.
    """
    check_float32(x=x, w=w, b=b, y=y)
    check_shapes(w=(w.shape, (x.shape[1], w.shape[1])), b=(b.shape, w.shape[1:]))
    check_shapes(y=(y.shape, (x.shape[0], w.shape[1])))
    multiply(x, w, y, bias=b, relu=relu)


@for_any_array
def dense_grad_input(dy, w, y_below, dx, scale):
    """dx = scale · dy·wᵀ, and zero where ``y_below`` ≤ 0. One pass.

    Shapes: dy [B, O], w [I, O], y_below [B, I] or None (no mask), dx [B, I].
    Dtypes: all float32; scale is a number. Writes: dx, which must not overlap the others.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit or rows with gaps.
    Cost: 2·B·I·O flops; reads y_below and writes dx once.
    """
    check_float32(dy=dy, w=w, y_below=y_below, dx=dx)
    check_shapes(w=(w.shape, (w.shape[0], dy.shape[1])), dx=(dx.shape, (dy.shape[0], w.shape[0])))
    if y_below is not None:
        check_shapes(y_below=(y_below.shape, dx.shape))
    multiply(dy, w, dx, turned=(False, True), y_below=y_below, scale=scale)


@for_any_array
def dense_grad_weight(x, dy, dw, db):
    """dw = xᵀ·dy and db = the column sums of dy.

    Shapes: x [B, I], dy [B, O], dw [I, O], db [O].
    Dtypes: all float32. Writes: dw, db.
    Errors: TypeError for another dtype, ValueError for shapes that do not fit or rows with gaps.
    Cost: 2·B·I·O flops; dy is read once more for db.
    """
    check_float32(x=x, dy=dy, dw=dw, db=db)
    check_shapes(dy=(dy.shape, (x.shape[0], dy.shape[1])), dw=(dw.shape, (x.shape[1], dy.shape[1])))
    check_shapes(db=(db.shape, dy.shape[1:]))
    multiply(x, dy, dw, turned=(True, False))
    sum_columns(dy, db)


def sum_columns(dy, db, then=AS_IT_IS):
    """db = the column sums of dy, and what ``then`` makes of them (see :func:`.cuda_simt.multiply`).

    Shapes: dy [B, O], db [O]. Dtypes: float32; dy may also be uint16, the upper halves of float32 (bfloat16),
    with rows that begin at multiples of 4 bytes. Writes: db.
    """
    halves = dy.dtype == np.uint16
    check_float32(db=db, dy=None if halves else dy)
    check_shapes(db=(db.shape, dy.shape[1:]))
    check_beside(db, then)
    column_sums(halves, then.epilogue)(
        blocks_for(dy.shape[1], 4 * ACROSS),
        *(words_of(dy) if halves else flat(dy), row_distance(dy), *dy.shape, in_fours([dy])),
        *(flat(db), then.numbers),
    )


# --- for other code -----------------------------------------------------------------------------


def matmul(a, b, out=None, stream=None, then=AS_IT_IS, precision="float32", technique=None):
    """out = a·b on the GPU, and what ``then`` makes of it.

    ``matmul(x, w)``; ``matmul(x, w, out=y)``; ``matmul(x, w, stream=torch.cuda.current_stream())``;
    ``matmul(x, w, precision="bf16")``; ``matmul(x, w, then=dropping(0.5, (seed, layer), step))``

    Shapes: a [M, K], b [K, N], out [M, N].
    Dtypes: all float32. Arrays of CuPy, of whatever has ``__cuda_array_interface__``, or of what speaks
    DLPack; one of a and b may be a transposed view. ``stream``: whose work this joins, a stream of CuPy,
    PyTorch, Numba or whatever has ``__cuda_stream__``, or its address; CuPy's current one if None. The
    work may not be done when this returns. ``then``: dropout of the product
    (``kernels.dropout.cuda.dropping``), or an update of the parameters in out, whose gradient it is
    (``kernels.optimizer.cuda.updating``).
    ``precision``: "float32"; on tensor cores "tf32", which rounds each number to 19 bits, or "bf16", which
    rounds a and b to bfloat16 first; sums are float32. ``technique``: "simt", "mma" or "wgmma", by default
    what is quickest on the GPU at hand (:func:`technique_for`).
    Writes: out (a new CuPy array if None), and returns it.
    Errors: TypeError for another dtype or an array that is not on the GPU, ValueError for shapes that
    do not fit, an out whose rows have gaps, or what the GPU cannot do.
    Cost: 2·M·N·K flops. A copy of what is neither contiguous along rows nor along columns, with "bf16" of
    both operands, with "tf32" of those whose rows do not begin at multiples of 16 bytes, and by "wgmma" of
    those whose numbers are not next to each other along K. Such copies, and what "wgmma" is told of where
    operands are, are made in each call: it is not for being captured in a CUDA graph.
    """
    with on_stream(stream):
        return _matmul(a, b, out, then, precision, technique)


def _matmul(a, b, out, then, precision, technique):
    xp = _array_module()
    result = out
    a, b = (_on_device(xp, name, array) for name, array in (("a", a), ("b", b)))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"shapes {a.shape} and {b.shape} have no product")
    shape = (a.shape[0], b.shape[1])
    technique = _chosen(precision, technique, (*shape, a.shape[1]))
    if out is None and then.beside is None:
        result = out = xp.empty(shape, np.float32)
    out = _on_device(xp, "out", out)
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, the product has {shape}")
    if a.shape[1] == 0 and then.beside is None:
        out[...] = 0
        return result
    if not out.size:
        return result
    (a, a_turned), (b, b_turned) = _rows_first(xp, a), _rows_first(xp, b)
    if a_turned and b_turned:  # b stays as it is: next to each other along k
        a, a_turned = xp.ascontiguousarray(a.T), False
    a, b = (_ready(xp, matrix, precision) for matrix in (a, b))
    TECHNIQUES[technique].multiply(a, b, c=out, turned=(a_turned, b_turned), then=then)
    return result


def _chosen(precision, technique, shape):
    """The name of a technique that was asked for, or of the quickest. ValueError if it cannot be."""
    here = None if precision == "float32" else limits()
    capability = LEAST_CAPABILITY if here is None else here.capability
    quickest = technique_for(precision, capability, shape, copies=True)
    if technique is None:
        return quickest
    least = OFFERED[precision].get(technique)
    if least is None:
        raise ValueError(
            f"precision {precision!r} is for {' or '.join(OFFERED[precision])}, not for {technique!r}"
        )
    if capability < least or (technique == "wgmma" and capability != least):
        raise ValueError(f"{technique!r} needs a GPU of capability {least}, this has {capability}")
    return technique


def _ready(xp, matrix, precision):
    """A matrix as products of a precision take it: rounded, or with rows where copies can begin."""
    if precision == "float32" or (precision == "tf32" and in_pieces(matrix, 16)):
        return matrix
    rows, columns = matrix.shape
    dtype = np.uint16 if precision == "bf16" else np.float32
    ready = xp.zeros((rows, blocks_for(columns, PADDED) * PADDED), dtype)[:, :columns]
    if precision == "bf16":
        cuda_mma.to_bfloat16(matrix, ready)
    else:
        ready[...] = matrix
    return ready


def matmul_tn(a, b, out=None, stream=None, then=AS_IT_IS, precision="float32", technique=None):
    """out = aᵀ·b, for a [K, M] and b [K, N]; the rest as :func:`matmul`."""
    with on_stream(stream):
        return _matmul(_on_device(_array_module(), "a", a).T, b, out, then, precision, technique)


def matmul_nt(a, b, out=None, stream=None, then=AS_IT_IS, precision="float32", technique=None):
    """out = a·bᵀ, for a [M, K] and b [N, K]; the rest as :func:`matmul`."""
    with on_stream(stream):
        return _matmul(a, _on_device(_array_module(), "b", b).T, out, then, precision, technique)


def _array_module():
    if SIMULATED:
        return np
    import cupy

    return cupy


def _on_device(xp, name, array):
    """An array of any library as one of CuPy that shares its memory."""
    if not isinstance(array, xp.ndarray):
        if hasattr(array, "__cuda_array_interface__"):
            array = xp.asarray(array)
        elif hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray):
            array = xp.from_dlpack(array)
        else:
            raise TypeError(f"{name} must be an array on the GPU, got {type(array).__name__}")
    if array.dtype != np.float32:
        raise TypeError(f"{name} must be a float32 array, got {array.dtype}")
    return array


def _rows_first(xp, matrix):
    """A matrix whose rows have no gaps, and whether it is the transposed one of what was given."""
    for view, turned in ((matrix, False), (matrix.T, True)):
        try:
            row_distance(view)
            return view, turned
        except ValueError:
            continue
    return xp.ascontiguousarray(matrix), False
