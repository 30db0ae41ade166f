"""ReLU and its gradient, written once for any array module ``xp`` (NumPy, CuPy).

Networks use it fused into the matrix products; on its own it is for embedding in other code.
"""


def relu(xp, x, y):
    """y = max(x, 0), element by element. NaN stays NaN.

    Shapes: x and y alike. Dtypes: float32 (the reference also runs in float64).
    Writes: y, which may be x itself.
    Cost: one comparison and two memory accesses an element.
    """
    xp.maximum(x, 0, out=y)


def relu_grad(xp, y, dy, dx):
    """dx = dy where y > 0, else 0. ``y`` is what :func:`relu` wrote (or its input: same sign).

    Shapes: y, dy and dx alike. Dtypes: float32 (the reference also runs in float64).
    Writes: dx, which may be dy itself.
    Cost: one comparison and three memory accesses an element.
    """
    xp.multiply(dy, y > 0, out=dx)
