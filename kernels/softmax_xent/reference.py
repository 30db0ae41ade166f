"""Softmax and cross-entropy, written once for any array module ``xp`` (NumPy, CuPy).

For logits z and the target class t of one image:

    p_c = exp(z_c) / Σ_k exp(z_k)     L = -log p_t     ∂L/∂z_c = p_c - [c = t]

The row maximum m is subtracted first, which changes nothing in p and keeps exp from overflowing:
L = log Σ_k exp(z_k - m) - (z_t - m) is finite for any finite logits.
Source: Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4.

Label smoothing by s gives each class the share s/C of the target, and the class t the rest:

    q_c = (1 - s)·[c = t] + s/C     L = -Σ_c q_c · log p_c     ∂L/∂z_c = p_c - q_c

Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, section 7.
"""


def softmax(xp, z, p):
    """p = the softmax of each row of z.

    Shapes: z and p [B, C]. Dtypes: float32 (the reference also runs in float64).
    Writes: p, which may be z itself.
    Cost: one exponential and about four flops an element.
    """
    xp.subtract(z, z.max(axis=1, keepdims=True), out=p)
    xp.exp(p, out=p)
    xp.divide(p, p.sum(axis=1, keepdims=True), out=p)


def softmax_xent(xp, z, t, weight, loss, correct, dz, smoothing=0.0):
    """Cross-entropy of each row, whether its (first) largest logit is the target's, the gradient.

    loss_i = weight_i · L_i and dz_i = weight_i · ∂L_i/∂z_i / B, so that dz is the gradient of the
    mean of ``loss`` over the batch. Of several largest logits the first counts, as in argmax.
    ``smoothing``, in 0 ≤ s < 1, is of the labels.

    Shapes: z and dz [B, C]; t, weight, loss and correct [B]; weight may be None (all ones).
    Dtypes: t int32, correct uint8, the rest float32 (the reference also runs in float64).
    Writes: loss, correct, dz (which may be z itself).
    Errors: IndexError from ``xp`` for a target outside 0 … C - 1 (NumPy; a GPU may not check).
    Cost: one exponential and about five flops an element.
    """
    rows = xp.arange(len(t))
    xp.copyto(correct, z.argmax(axis=1) == t, casting="unsafe")
    xp.subtract(z, z.max(axis=1, keepdims=True), out=dz)
    expected = dz[rows, t]  # the logit that the target expects, less the largest
    each = smoothing / z.shape[1]
    if smoothing:
        expected = (1 - smoothing) * expected + each * dz.sum(axis=1)
    xp.exp(dz, out=dz)
    total = dz.sum(axis=1)
    xp.subtract(xp.log(total), expected, out=loss)
    factor = 1 / len(t)
    xp.divide(dz, total[:, None], out=dz)
    of_target = dz[rows, t] - (1 - smoothing + each)
    if smoothing:
        xp.subtract(dz, each, out=dz)
    dz[rows, t] = of_target
    xp.multiply(dz, factor, out=dz)
    if weight is not None:
        xp.multiply(loss, weight, out=loss)
        xp.multiply(dz, weight[:, None], out=dz)
