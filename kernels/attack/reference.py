"""The pieces of an attack on images, written once for any array module ``xp`` (NumPy, CuPy).

An attack moves images x, of pixels in 0 … 1, to where a network takes them for something else, no
further than ε from where they were:

    "linf"   |x_c - origin_c| ≤ ε for every pixel c
    "l2"     √Σ_c (x_c - origin_c)² ≤ ε

Sources: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015;
Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial
attacks", ICLR 2018.
"""

from ..common.philox import philox4x32

NORMS = ("linf", "l2")
UNIT = 2.0**-23  # what numbers of add_noise are whole multiples of


def log_odds(xp, z, t, loss, correct, dz):
    """The odds against the target, whether its (first) largest logit is the target's, the gradient.

    loss = log Σ_{k≠t} exp(z_k) - z_t = log((1 - p_t) / p_t)     dz_c = ∂loss/∂z_c = q_c - [c = t]

    q is the softmax over all classes but t. The cross-entropy L = -log p_t grows with this loss, and
    ∂L/∂z = (1 - p_t)·dz: the same direction. But p_t - 1 is rounded to a few bits, or to 0, where a
    network is sure, and the direction is lost with it; dz has all its bits however sure the network is.

    Shapes: z and dz [B, C] with C ≥ 2; t, loss and correct [B].
    Dtypes: t int32, correct uint8, the rest float32 (the reference also runs in float64).
    Writes: loss, correct, dz (which may be z itself).
    Errors: IndexError from ``xp`` for a target outside 0 … C - 1 (NumPy; a GPU may not check).
    Cost: one exponential and about five flops an element.
    """
    rows = xp.arange(len(t))
    xp.copyto(correct, z.argmax(axis=1) == t, casting="unsafe")
    target = z[rows, t]
    xp.copyto(dz, z)
    dz[rows, t] = float("-inf")
    largest = dz.max(axis=1)
    xp.subtract(dz, largest[:, None], out=dz)
    xp.exp(dz, out=dz)
    total = dz.sum(axis=1)
    xp.add(xp.log(total), largest - target, out=loss)
    xp.divide(dz, total[:, None], out=dz)
    dz[rows, t] = -1


def ascend(xp, x, dx, origin, step, epsilon, norm):
    """One step of x along dx, then back into the ball around ``origin``, then into 0 … 1.

    "linf": x + step·sign(dx), each pixel clipped to origin ± ε. "l2": x + step·dx/|dx|, and where that
    is further than ε from the origin, the difference is shortened to ε. Clipping to 0 … 1 comes last
    and leaves no ball, as the origin lies in 0 … 1 too. A negative step descends, a step of 0 only
    projects, and a gradient of 0 moves nothing.

    Shapes: x, dx and origin [B, I].
    Dtypes: all float32 (the reference also runs in float64); step and ε > 0 are numbers; ``norm`` is
    one of NORMS. A NaN in dx makes its pixel NaN, with "l2" its image.
    Writes: x.
    Cost: "linf" 6 flops an element, "l2" 9; reads 3·B·I numbers, writes B·I.
    """
    if norm == "linf":
        xp.add(x, step * xp.sign(dx), out=x)
        xp.maximum(x, origin - epsilon, out=x)
        xp.minimum(x, origin + epsilon, out=x)
    else:
        length = _lengths(xp, dx)
        length[length == 0] = 1
        far = x - origin + dx * (step / length).astype(x.dtype)
        shorter = epsilon / xp.maximum(_lengths(xp, far), epsilon)
        xp.add(origin, far * shorter.astype(x.dtype), out=x)
    xp.maximum(x, 0, out=x)
    xp.minimum(x, 1, out=x)


def _lengths(xp, a):
    """√Σ a² of each row [B, 1], summed in float64, where no square of a float32 vanishes."""
    return xp.sqrt(xp.square(a.astype("float64")).sum(axis=1, keepdims=True))


def add_noise(xp, x, order, start, size, key, step):
    """x_rc + size·u_rc, with u uniform in -1 ≤ u < 1: the same numbers on every backend.

    u = (w // 2⁸)·2⁻²³ - 1, where w is word c % 4 of Philox4x32-10 with the counter (c // 4,
    order[start + r], step's low word, step's high word) under the key: they depend on the image that
    a row holds, not on the row.

    Shapes: x [B, I], order [N] with start + B ≤ N. Dtypes: x float32 (the reference also runs in
    float64), order int64 with elements in 0 … 2**32 - 1. ``key`` two integers below 2**32, ``step``
    an integer below 2**64, ``size`` a number.
    Writes: x.
    Cost: one Philox block for four elements; two memory accesses an element.
    """
    columns = x.shape[1]
    uint64 = xp.uint64
    words = philox4x32(
        xp.arange((columns + 3) // 4, dtype=uint64)[None, :],
        order[start : start + len(x)].astype(uint64)[:, None],
        uint64(step & 0xFFFFFFFF),
        uint64(step >> 32),
        uint64(key[0]),
        uint64(key[1]),
    )
    words = xp.stack(words, axis=2).reshape(len(x), -1)[:, :columns]
    uniform = (words >> uint64(8)).astype(x.dtype) * UNIT - 1
    xp.add(x, size * uniform, out=x)
