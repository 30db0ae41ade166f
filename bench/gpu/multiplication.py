"""The ways to multiply on a GPU: operands for them, and whether a product is right.

``xp`` is the module of arrays everywhere: CuPy, or NumPy where an interpreter takes the GPU's place.
"""

import numpy as np

from .. import checks

FORMS = {"nn": (False, False), "nt": (False, True), "tn": (True, False)}  # which operands are transposed
WAYS = "simt", "mma bf16", "wgmma bf16", "mma tf32", "wgmma tf32"  # of all GPUs together
CHECKED_ROWS = 128  # of a product that is too large to be held against float64 as a whole


def techniques(capability):
    """{name: (kind, function (a, b, c, turned))} of what a GPU of this capability can run."""
    from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma

    def of(module):
        return lambda a, b, c, turned, **then: module.multiply(a, b, c=c, turned=turned, **then)

    found = {"simt": ("float32", of(cuda_simt))}
    if capability >= (8, 0):
        found |= {"mma tf32": ("tf32", of(cuda_mma)), "mma bf16": ("bf16", of(cuda_mma))}
    if capability == cuda_wgmma.CAPABILITY:
        found |= {"wgmma bf16": ("bf16", of(cuda_wgmma)), "wgmma tf32": ("tf32", of(cuda_wgmma))}
    return found


def drawn(xp, kind, random, rows, columns):
    """Random numbers as kernels take them, in rows of a multiple of 64 with zeros behind them; and what they
    stand for in float64."""
    whole = xp.zeros((rows, -(-columns // 64) * 64), np.float32)
    whole[:, :columns] = random.standard_normal((rows, columns), dtype=np.float32)
    meant = bits = whole.view(np.uint32)
    if kind == "bf16":
        # Rounded to the nearest by the bits, not by the kernel that is to be measured.
        rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        whole, meant = rounded, rounded.astype(np.uint32) << 16
    elif kind == "tf32":
        bits |= bits & 0x1FFF == 0x1000  # nothing halfway between two, where ways to multiply differ
        meant = bits + 0x1000 & 0xFFFFE000  # rounded to the nearest
    return whole[:, :columns], meant.view(np.float32)[:, :columns].astype(np.float64)


def operands(xp, kind, shape, turned, seed=0):
    """(a, b) as kernels take them, and what these stand for in float64."""
    random = xp.random.default_rng(seed)
    rows, depth, columns = shape
    a, a_64 = drawn(xp, kind, random, *((depth, rows) if turned[0] else (rows, depth)))
    b, b_64 = drawn(xp, kind, random, *((columns, depth) if turned[1] else (depth, columns)))
    return (a, b), (a_64, b_64)


def check_product(xp, multiply, kind, shape, turned, given=None, mask=None, **then):
    """The largest error over its bound, K · 2⁻²³ · |a|·|b|. checks.Rejected if it is above 1, or not a
    number. ``given``: the :func:`operands`. ``then``: what follows, bias, relu, y_below, scale; ``mask``:
    where y_below is positive."""
    (a, b), (a_64, b_64) = operands(xp, kind, shape, turned) if given is None else given
    c = xp.full((shape[0], -(-shape[2] // 64) * 64), np.nan, np.float32)[:, : shape[2]]
    multiply(a, b, c, turned, **then)
    chosen = np.unique(np.linspace(0, shape[0] - 1, min(shape[0], CHECKED_ROWS)).astype(int))
    a_64 = (a_64.T if turned[0] else a_64)[chosen]
    b_64 = b_64.T if turned[1] else b_64
    expected, bound = a_64 @ b_64, (shape[1] + 2) * 2.0**-23 * (abs(a_64) @ abs(b_64))
    if "bias" in then:
        expected, bound = expected + then["bias"], bound + 2.0**-22 * abs(then["bias"])
    if then.get("relu"):
        expected = xp.maximum(expected, 0)
    if mask is not None:
        scale = then["scale"]
        expected, bound = xp.where(mask[chosen], scale * expected, 0), 1.01 * scale * bound
    worst = float((abs(c[chosen] - expected) / bound).max())
    if not worst <= 1:
        raise checks.Rejected(f"error is {worst:.3g} times its bound")
    if not bool(xp.isfinite(c).all()):
        raise checks.Rejected("some of the output was not written")
    return worst


def capability():
    """The compute capability of the current GPU: (9, 0)."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return properties["major"], properties["minor"]
