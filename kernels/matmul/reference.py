"""The dense layer and its gradients, written once for any array module ``xp`` (NumPy, CuPy).

With y = x·w + b and the incoming gradient dy = ∂L/∂y:

    ∂L/∂x = dy·wᵀ        ∂L/∂w = xᵀ·dy        ∂L/∂b = Σ_rows dy

Source: Goodfellow, Bengio, Courville, *Deep Learning* (2016), section 6.5.

Every array may be a view whose rows are further apart than they are long, as the padded parameter
buffer's are. Outputs are overwritten, never accumulated into.
"""


def dense(xp, x, w, b, y, relu):
    """y = x·w + b, and then max(y, 0) if ``relu``.

    Shapes: x [B, I], w [I, O], b [O], y [B, O].
    Dtypes: all float32 (the reference also runs in float64).
    Writes: y.
    Errors: ValueError from ``xp`` where the shapes disagree.
    Cost: 2·B·I·O flops; reads B·I + I·O + O numbers, writes B·O.
    """
    xp.matmul(x, w, out=y)
    xp.add(y, b, out=y)
    if relu:
        xp.maximum(y, 0, out=y)


def dense_grad_input(xp, dy, w, y_below, dx, scale):
    """dx = scale · dy·wᵀ, and zero where ``y_below`` ≤ 0.

    ``y_below`` is the output of the layer below, after ReLU and dropout: where it is zero no
    gradient passes. ``scale`` is the 1 / (1 - p) of that layer's dropout, or 1.

    Shapes: dy [B, O], w [I, O], y_below [B, I] or None (no mask), dx [B, I].
    Dtypes: all float32 (the reference also runs in float64); scale is a number.
    Writes: dx.
    Cost: 2·B·I·O flops; reads B·O + I·O + B·I numbers, writes B·I.
    """
    xp.matmul(dy, w.T, out=dx)
    if scale != 1:
        xp.multiply(dx, scale, out=dx)
    if y_below is not None:
        xp.multiply(dx, y_below > 0, out=dx)


def dense_grad_weight(xp, x, dy, dw, db):
    """dw = xᵀ·dy and db = the column sums of dy.

    Shapes: x [B, I], dy [B, O], dw [I, O], db [O].
    Dtypes: all float32 (the reference also runs in float64).
    Writes: dw, db.
    Cost: 2·B·I·O flops; reads B·I + B·O numbers, writes I·O + O.
    """
    xp.matmul(x.T, dy, out=dw)
    xp.sum(dy, axis=0, out=db)
