"""Optimizer updates on a GPU: one pass over the flat buffers, each number read and written once.

The norm of a gradient is summed in pieces whose order is fixed, and never visits the host: its parts
stay on the GPU, and whoever needs the whole adds them up again.
"""

import math

import numpy as np
from numba import float32, float64, int64

from ..common.cuda import DOUBLES, FLOATS, Kernel, blocks_for, cuda, device, flat

THREADS = 256
CHUNK = 4096  # numbers of a gradient whose squares one block adds up


# --- updates ------------------------------------------------------------------------------------


def _sgd(p, g, l2, shrink, rate):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < p.size:
        p[i] = p[i] * shrink - rate * (g[i] + l2 * p[i])


def _sgd_momentum(p, g, v, l2, shrink, rate, momentum, nesterov):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < p.size:
        slope = g[i] + l2 * p[i]
        velocity = momentum * v[i] + slope
        v[i] = velocity
        p[i] = p[i] * shrink - rate * (slope + momentum * velocity if nesterov else velocity)


def _adam(p, g, m, v, l2, shrink, rate, beta1, new1, beta2, new2, correction, epsilon):
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < p.size:
        slope = g[i] + l2 * p[i]
        mean = beta1 * m[i] + new1 * slope
        square = beta2 * v[i] + new2 * slope * slope
        m[i] = mean
        v[i] = square
        p[i] = p[i] * shrink - rate * mean / (math.sqrt(square) * correction + epsilon)


_plain = Kernel(_sgd, *[FLOATS] * 2, *[float32] * 3, threads=THREADS, name="sgd")
_with_momentum = Kernel(
    _sgd_momentum, *[FLOATS] * 3, *[float32] * 4, int64, threads=THREADS, name="sgd, momentum"
)
_with_moments = Kernel(_adam, *[FLOATS] * 4, *[float32] * 9, threads=THREADS, name="adam")


def _decay(lr, decay, decoupled):
    """What the gradient gets of each parameter, and what the parameter is multiplied with."""
    return (0, 1 - lr * decay) if decoupled else (decay, 1)


def sgd(p, g, v, lr, momentum, decay, nesterov, decoupled):
    """Gradient descent: v ← momentum · v + g; p ← p - lr · v (Nesterov: g + momentum · v).

    Shapes: p, g, v [P], contiguous; v may be None, then momentum is not used.
    Dtypes: float32; the rest are numbers and flags. Writes: p, v.
    Cost: reads 3·P numbers, writes 2·P (without momentum 2·P and P).
    Weight decay and sources: ``reference.py``.
    """
    blocks, numbers = blocks_for(p.size, THREADS), (*_decay(lr, decay, decoupled), lr)
    if v is None:
        _plain(blocks, flat(p), flat(g), *numbers)
    else:
        _with_momentum(blocks, flat(p), flat(g), flat(v), *numbers, momentum, bool(nesterov))


def adam(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
    """Adam: p ← p - lr · m̂ / (√v̂ + epsilon), with m̂ = m / (1 - beta1ᵗ), v̂ = v / (1 - beta2ᵗ).

    Shapes: p, g, m, v [P], contiguous. Dtypes: float32; the rest are numbers and flags; t from 1.
    Writes: p, m, v. Cost: reads 4·P numbers, writes 3·P. Sources: ``reference.py``.
    """
    _with_moments(
        blocks_for(p.size, THREADS),
        *map(flat, (p, g, m, v)),
        *_decay(lr, decay, decoupled),
        lr / (1 - beta1**t),
        *(beta1, 1 - beta1, beta2, 1 - beta2),
        (1 - beta2**t) ** -0.5,
        epsilon,
    )


# --- for kernels that make many steps -------------------------------------------------------------

# The numbers of a step: NUMBERS float32 each.
L2, SHRINK, RATE, MOMENTUM, BETA_1, NEW_1, BETA_2, NEW_2, CORRECTION, EPSILON, NUMBERS = range(11)


def step_numbers(plan):
    """[steps, NUMBERS] of a ``fastdigit.backend.TrainPlan``, float32."""
    optimizer, rates = plan.optimizer, np.asarray(plan.learning_rates, np.float64)
    numbers = np.zeros((len(rates), NUMBERS), np.float64)
    numbers[:, L2], numbers[:, SHRINK] = _decay(rates, optimizer.weight_decay, optimizer.decoupled)
    numbers[:, RATE] = rates
    if len(plan.state) == 2:
        t = plan.update + 1 + np.arange(len(rates))
        numbers[:, RATE] = rates / (1 - optimizer.beta1**t)
        numbers[:, BETA_1], numbers[:, NEW_1] = optimizer.beta1, 1 - optimizer.beta1
        numbers[:, BETA_2], numbers[:, NEW_2] = optimizer.beta2, 1 - optimizer.beta2
        numbers[:, CORRECTION] = (1 - optimizer.beta2**t) ** -0.5
        numbers[:, EPSILON] = optimizer.epsilon
    else:
        numbers[:, MOMENTUM] = optimizer.momentum
    return numbers.astype(np.float32)


@device
def stepped(p, gradient, state_0, state_1, states, nesterov, numbers, n):
    """A parameter and its states after a step, whose numbers begin at ``numbers[n]``. Two states are those of
    Adam, one is the velocity of momentum; those that there are not stay as they are."""
    slope = gradient + numbers[n + L2] * p
    if states == 2:
        state_0 = numbers[n + BETA_1] * state_0 + numbers[n + NEW_1] * slope
        state_1 = numbers[n + BETA_2] * state_1 + numbers[n + NEW_2] * slope * slope
        step = state_0 / (math.sqrt(state_1) * numbers[n + CORRECTION] + numbers[n + EPSILON])
    elif states == 1:
        state_0 = numbers[n + MOMENTUM] * state_0 + slope
        step = slope + numbers[n + MOMENTUM] * state_0 if nesterov else state_0
    else:
        step = slope
    return p * numbers[n + SHRINK] - numbers[n + RATE] * step, state_0, state_1


# --- the norm -----------------------------------------------------------------------------------


@device
def _larger(a, b):
    """The larger of two, NaN if one is."""
    return a if a > b or a != a else b


@device
def _largest_of(own, shared):
    """The largest of all threads' numbers, for each of them."""
    thread = cuda.threadIdx.x
    shared[thread] = own
    cuda.syncthreads()
    width = THREADS // 2
    while width > 0:
        if thread < width:
            shared[thread] = _larger(shared[thread], shared[thread + width])
        cuda.syncthreads()
        width //= 2
    return shared[0]


@device
def _sum_of(own, shared):
    """The sum of all threads' numbers, in a fixed order, for each of them."""
    thread = cuda.threadIdx.x
    shared[thread] = own
    cuda.syncthreads()
    width = THREADS // 2
    while width > 0:
        if thread < width:
            shared[thread] += shared[thread + width]
        cuda.syncthreads()
        width //= 2
    return shared[0]


@device
def _largest_part(parts, shared):
    largest = float32(0)
    for i in range(cuda.threadIdx.x, parts.size, THREADS):
        largest = _larger(largest, parts[i])
    return _largest_of(largest, shared)


def _largest_parts(g, parts):
    """The largest |g| of each chunk."""
    shared = cuda.shared.array(THREADS, float32)
    first = cuda.blockIdx.x * CHUNK
    largest = float32(0)
    for i in range(first + cuda.threadIdx.x, min(first + CHUNK, g.size), THREADS):
        largest = _larger(largest, abs(g[i]))
    largest = _largest_of(largest, shared)
    if cuda.threadIdx.x == 0:
        parts[cuda.blockIdx.x] = largest


def _square_parts(g, largest_parts, parts):
    """Σ (g / largest)² of each chunk; squares of numbers above 1e19 would overflow float32."""
    shared = cuda.shared.array(THREADS, float32)
    sums = cuda.shared.array(THREADS, float64)
    largest = _largest_part(largest_parts, shared)
    first = cuda.blockIdx.x * CHUNK
    total = float64(0)
    if largest > 0:
        for i in range(first + cuda.threadIdx.x, min(first + CHUNK, g.size), THREADS):
            part = g[i] / largest
            total += float64(part) * float64(part)
    elif largest != largest:
        total = float64(largest)
    total = _sum_of(total, sums)
    if cuda.threadIdx.x == 0:
        parts[cuda.blockIdx.x] = total


def _shorten(g, largest_parts, parts, limit):
    """g · min(1, limit / |g|) for a chunk."""
    shared = cuda.shared.array(THREADS, float32)
    sums = cuda.shared.array(THREADS, float64)
    largest = _largest_part(largest_parts, shared)
    total = float64(0)
    for i in range(cuda.threadIdx.x, parts.size, THREADS):
        total += parts[i]
    norm = float64(largest) * math.sqrt(_sum_of(total, sums))
    if norm <= limit:
        return
    factor = float32(limit / norm)  # of NaN: NaN, so that the loss shows it
    first = cuda.blockIdx.x * CHUNK
    for i in range(first + cuda.threadIdx.x, min(first + CHUNK, g.size), THREADS):
        g[i] *= factor


_find_largest = Kernel(_largest_parts, FLOATS, FLOATS, threads=THREADS, name="clip_norm, largest")
_add_squares = Kernel(_square_parts, FLOATS, FLOATS, DOUBLES, threads=THREADS, name="clip_norm, squares")
_scale = Kernel(_shorten, FLOATS, FLOATS, DOUBLES, float64, threads=THREADS, name="clip_norm, scale")


def clip_norm(g, limit):
    """g ← g · min(1, limit / |g|): the whole gradient is shortened to the length ``limit``.

    Shapes: g [P], contiguous. Dtypes: float32; limit is a number > 0.
    Writes: g. A gradient that is not finite becomes NaN, so that the loss shows it.
    Cost: reads g three times, writes it where it is too long; the norm never visits the host.
    """
    blocks = blocks_for(g.size, CHUNK)
    empty = np.empty if isinstance(g, np.ndarray) else type(g)
    clip_norm_with(empty(blocks, dtype=np.float32), empty(blocks, dtype=np.float64), g, limit)


def clip_norm_with(largest, parts, g, limit):
    """:func:`clip_norm` with memory that is there already: float32 and float64 vectors, a number for every
    CHUNK of g, which it writes."""
    blocks = blocks_for(g.size, CHUNK)
    _find_largest(blocks, flat(g), largest)
    _add_squares(blocks, flat(g), largest, parts)
    _scale(blocks, flat(g), largest, parts, limit)
