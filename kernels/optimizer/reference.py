"""Optimizer updates, written once for any array module ``xp`` (NumPy, CuPy).

All take the flat parameter buffer p, its gradient g and the optimizer's state in the same shape.
Weight decay comes in two kinds, and applies to every parameter, biases included:

    L2          g ← g + decay · p            (the gradient of decay/2 · |p|²)
    decoupled   p ← p - lr · decay · p       (Loshchilov, Hutter, ICLR 2019)

Padding in the buffer is zero, has a zero gradient, and stays zero under all of them.
"""


def _decayed(xp, p, g, lr, decay, decoupled):
    """Apply the weight decay: the gradient to go on with (p itself changes if decoupled)."""
    if decay == 0:
        return g
    if decoupled:
        xp.multiply(p, 1 - lr * decay, out=p)
        return g
    return g + decay * p


def sgd(xp, p, g, v, lr, momentum, decay, nesterov, decoupled):
    """Gradient descent: v ← momentum · v + g; p ← p - lr · v (Nesterov: g + momentum · v).

    Shapes: p, g, v [P]; v may be None, then momentum is not used.
    Dtypes: float32 (the reference also runs in float64); the rest are numbers and flags.
    Writes: p, v.
    Cost: reads 3·P numbers, writes 2·P (without momentum 2·P and P).
    Source: Sutskever, Martens, Dahl, Hinton, ICML 2013, in the form that evaluates the gradient
    at the current parameters.
    """
    g = _decayed(xp, p, g, lr, decay, decoupled)
    if v is None:
        xp.subtract(p, lr * g, out=p)
        return
    xp.multiply(v, momentum, out=v)
    xp.add(v, g, out=v)
    direction = g + momentum * v if nesterov else v
    xp.subtract(p, lr * direction, out=p)


def adam(xp, p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
    """Adam: p ← p - lr · m̂ / (√v̂ + epsilon), with m̂ = m / (1 - beta1ᵗ), v̂ = v / (1 - beta2ᵗ).

    m ← beta1 · m + (1 - beta1) · g and v ← beta2 · v + (1 - beta2) · g²; t counts from 1.

    Shapes: p, g, m, v [P].
    Dtypes: float32 (the reference also runs in float64); the rest are numbers and flags.
    Writes: p, m, v.
    Cost: reads 4·P numbers, writes 3·P; one square root and one division each.
    Source: Kingma, Ba, ICLR 2015, algorithm 1; with ``decoupled`` AdamW.
    """
    g = _decayed(xp, p, g, lr, decay, decoupled)
    xp.multiply(m, beta1, out=m)
    xp.add(m, (1 - beta1) * g, out=m)
    xp.multiply(v, beta2, out=v)
    xp.add(v, (1 - beta2) * g * g, out=v)
    denominator = xp.sqrt(v)
    xp.multiply(denominator, (1 - beta2**t) ** -0.5, out=denominator)
    xp.add(denominator, epsilon, out=denominator)
    xp.subtract(p, (lr / (1 - beta1**t)) * m / denominator, out=p)


def clip_norm(xp, g, limit):
    """g ← g · min(1, limit / |g|): the whole gradient is shortened to the length ``limit``.

    Shapes: g [P]. Dtypes: float32 (the reference also runs in float64); limit is a number > 0.
    Writes: g. A gradient that is not finite becomes NaN, so that the loss shows it.
    Cost: 4·P flops to measure, P to shorten; the result never visits the host.
    Source: Pascanu, Mikolov, Bengio, ICML 2013.
    """
    # Everything relative to the largest element: squares of numbers above 1e19 overflow float32.
    largest = xp.maximum(xp.max(xp.abs(g)), limit)
    limit = limit / largest
    norm = xp.sqrt(xp.sum(xp.square(g / largest)))
    xp.multiply(g, limit / xp.maximum(norm, limit), out=g)
