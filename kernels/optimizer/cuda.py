"""Optimizer updates on a GPU: one pass over the flat buffers, each number read and written once.

The norm of a gradient is summed in pieces whose order is fixed, and never visits the host: its parts
stay on the GPU, and whoever needs the whole adds them up again.
"""

import math
from functools import cache

import numpy as np
from numba import float32, float64, int64

from ..common.cuda import (
    DOUBLES,
    FLOATS,
    LONGS,
    Kernel,
    address_of,
    blocks_for,
    check_float32,
    check_shapes,
    cuda,
    device,
    flat,
    for_any_array,
    types,
)
from ..common.fours import Epilogue, Then, check_counter, nothing4, read4, write4
from ..common.ptx import expect, load4

THREADS = 256
CHUNK = 4096  # numbers of a gradient whose squares one block adds up


# --- a step of a parameter --------------------------------------------------------------------------

# The numbers of a step: NUMBERS float32 each, of which four can be read at a time.
L2, SHRINK, RATE, MOMENTUM, BETA_1, NEW_1, BETA_2, NEW_2, CORRECTION, EPSILON = range(10)
NUMBERS = 12
_TUPLE = types.UniTuple(float32, NUMBERS)


@device
def stepped(p, gradient, state_0, state_1, states, nesterov, numbers):
    """A parameter and its states after a step with these numbers. Two states are those of Adam, one is the
    velocity of momentum; those that there are not stay as they are."""
    slope = gradient + numbers[L2] * p
    if states == 2:
        state_0 = numbers[BETA_1] * state_0 + numbers[NEW_1] * slope
        state_1 = numbers[BETA_2] * state_1 + numbers[NEW_2] * slope * slope
        step = state_0 / (math.sqrt(state_1) * numbers[CORRECTION] + numbers[EPSILON])
    elif states == 1:
        state_0 = numbers[MOMENTUM] * state_0 + slope
        step = slope + numbers[MOMENTUM] * state_0 if nesterov else state_0
    else:
        step = slope
    return p * numbers[SHRINK] - numbers[RATE] * step, state_0, state_1


@device
def numbers_of(table, step):
    """The numbers of a step in a row of a table."""
    n = step * NUMBERS
    return load4(table, n) + load4(table, n + 4) + load4(table, n + 8)


# --- one pass over all parameters -------------------------------------------------------------------


def _decay(lr, decay, decoupled):
    """What the gradient gets of each parameter, and what the parameter is multiplied with."""
    return (0, 1 - lr * decay) if decoupled else (decay, 1)


def _of_sgd(lr, momentum, decay, decoupled):
    """The numbers of a step, or of several if those are vectors."""
    return *_decay(lr, decay, decoupled), lr, momentum, *[0] * 8


def _of_adam(t, lr, beta1, beta2, epsilon, decay, decoupled):
    moments = beta1, 1 - beta1, beta2, 1 - beta2, (1 - beta2**t) ** -0.5, epsilon
    return *_decay(lr, decay, decoupled), lr / (1 - beta1**t), 0, *moments, 0, 0


def step_numbers(plan):
    """[steps, NUMBERS] of a ``fastdigit.backend.TrainPlan``, float32."""
    optimizer, rates = plan.optimizer, np.asarray(plan.learning_rates, np.float64)
    decay = optimizer.weight_decay, optimizer.decoupled
    if len(plan.state) == 2:
        t, betas = plan.update + 1 + np.arange(len(rates)), (optimizer.beta1, optimizer.beta2)
        numbers = _of_adam(t, rates, *betas, optimizer.epsilon, *decay)
    else:
        numbers = _of_sgd(rates, optimizer.momentum, *decay)
    result = np.empty((len(rates), NUMBERS), np.float32)
    for column, number in zip(result.T, numbers, strict=True):
        column[...] = number
    return result


# How many states there are, and whether the one is of Nesterov's momentum: a kernel for each, as to ask for
# every four takes longer than what is asked for.
KINDS = {(0, False): "plain", (1, False): "momentum", (1, True): "Nesterov", (2, False): "Adam"}


@cache
def _four(states, nesterov):
    """``read(place, p, state_0, state_1)`` four parameters and their states, zeros where there are none, and
    ``updated(gradients, place, found, now, state_0, state_1)``: the parameters after a step with the numbers
    ``now``; the states are written. ``place`` as of :class:`..common.fours.Epilogue`."""

    @device
    def read(place, p, state_0, state_1):
        at, count, vectors = place[2], place[3], place[4]
        old, s_0, s_1 = nothing4(), nothing4(), nothing4()
        if count > 0:
            old = read4(p, at, count, vectors)
            if states > 0:
                s_0 = read4(state_0, at, count, vectors)
            if states > 1:
                s_1 = read4(state_1, at, count, vectors)
        return old, s_0, s_1

    @device
    def updated(gradients, place, found, now, state_0, state_1):
        at, count, vectors = place[2], place[3], place[4]
        old, s_0, s_1 = found
        new_0 = stepped(old[0], gradients[0], s_0[0], s_1[0], states, nesterov, now)
        new_1 = stepped(old[1], gradients[1], s_0[1], s_1[1], states, nesterov, now)
        new_2 = stepped(old[2], gradients[2], s_0[2], s_1[2], states, nesterov, now)
        new_3 = stepped(old[3], gradients[3], s_0[3], s_1[3], states, nesterov, now)
        if states > 0:
            write4(state_0, at, count, vectors, (new_0[1], new_1[1], new_2[1], new_3[1]))
        if states > 1:
            write4(state_1, at, count, vectors, (new_0[2], new_1[2], new_2[2], new_3[2]))
        return new_0[0], new_1[0], new_2[0], new_3[0]

    return read, updated


@cache
def update_kernel(states, nesterov):
    """The kernel for one of KINDS."""
    read, updated = _four(states, nesterov)

    def update(p, g, state_0, state_1, vectors, now):
        at = 4 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if at < p.size:
            place = int64(0), at, at, p.size - at, vectors
            found = read(place, p, state_0, state_1)
            gradients = read4(g, at, place[3], vectors)
            write4(p, at, place[3], vectors, updated(gradients, place, found, now, state_0, state_1))

    name = f"update ({KINDS[states, nesterov]})"
    # Adam waits for four arrays: registers for all that it reads do more for it than more threads.
    resident = 4 if states > 1 else 8
    return Kernel(update, *[FLOATS] * 4, int64, _TUPLE, threads=THREADS, name=name, resident=resident)


@for_any_array
def sgd(p, g, v, lr, momentum, decay, nesterov, decoupled):
    """Gradient descent: v ← momentum · v + g; p ← p - lr · v (Nesterov: g + momentum · v).

    Shapes: p, g, v [P], contiguous; v may be None, then momentum is not used.
    Dtypes: float32; the rest are numbers and flags. Writes: p, v.
    Cost: reads 3·P numbers, writes 2·P (without momentum 2·P and P).
    Weight decay and sources: ``reference.py``.
    """
    state = [] if v is None else [v]
    _update_all(p, g, state, nesterov, _of_sgd(lr, momentum, decay, decoupled))


@for_any_array
def adam(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
    """Adam: p ← p - lr · m̂ / (√v̂ + epsilon), with m̂ = m / (1 - beta1ᵗ), v̂ = v / (1 - beta2ᵗ).

    Shapes: p, g, m, v [P], contiguous. Dtypes: float32; the rest are numbers and flags; t from 1.
    Writes: p, m, v. Cost: reads 4·P numbers, writes 3·P. Sources: ``reference.py``.
    """
    _update_all(p, g, [m, v], False, _of_adam(t, lr, beta1, beta2, epsilon, decay, decoupled))


def _padded(state, like):
    """Two states, of which those that there are not have no numbers."""
    nothing = flat(like)[:0]
    return [*map(flat, state), nothing, nothing][:2]


def _kind(state, nesterov):
    """Of KINDS."""
    return len(state), bool(nesterov and len(state) == 1)


def _update_all(p, g, state, nesterov, numbers):
    vectors = all(address_of(array) % 16 == 0 for array in (p, g, *state))
    kernel = update_kernel(*_kind(state, nesterov))
    kernel(blocks_for(p.size, 4 * THREADS), flat(p), flat(g), *_padded(state, p), vectors, numbers)


# --- where the gradient comes into being ------------------------------------------------------------


@device
def _now(numbers):
    return numbers_of(numbers[2], numbers[3][0])


def _epilogue(states, nesterov):
    read, updated = _four(states, nesterov)

    @device
    def before(place, p, numbers):
        return read(place, p, numbers[0], numbers[1])

    @device
    def expected(p, at, count, numbers):
        expect(p, at, count)
        if states > 0:
            expect(numbers[0], at, count)
        if states > 1:
            expect(numbers[1], at, count)

    @device
    def change(gradients, place, found, now, numbers):
        return updated(gradients, place, found, now, numbers[0], numbers[1])

    name = f"update ({KINDS[states, nesterov]})"
    return Epilogue(name, change, _NUMBERS, _now, before, expected, 1 + states)


_NUMBERS = types.Tuple((FLOATS, FLOATS, FLOATS, LONGS))
UPDATES = {kind: _epilogue(*kind) for kind in KINDS}


def updating(state, nesterov, numbers, step):
    """The update of parameters in the kernel that computes their gradient: for the ``then`` of products.

    ``multiply(x, dy, w, turned=(True, False), then=updating((velocity,), False, numbers, step))``: the
    product is the gradient of w, which is never written; w and its velocity are updated.

    Shapes: ``state`` holds nothing, the velocity of momentum, or the two states of Adam, each like the
    parameters, with rows as far apart; ``numbers`` [steps, NUMBERS], from :func:`step_numbers`, begins at a
    multiple of 16 bytes. ``step``: a vector of int64, whose first number says which of the steps it is when
    the kernel runs: the same launch serves all. Dtypes: else float32. Writes: the parameters, ``state``.
    Errors: TypeError and ValueError for other arrays.
    Cost: reads and writes parameters and state once; the gradient is neither written nor read again.
    """
    check_counter(step)
    check_float32(numbers=numbers)
    check_shapes(numbers=(numbers.shape, (len(numbers), NUMBERS)))
    if address_of(numbers) % 16:
        raise ValueError("numbers must begin at a multiple of 16 bytes")
    if len(state) > 2:
        raise ValueError(f"an optimizer has at most two states, got {len(state)}")
    return Then(
        UPDATES[_kind(state, nesterov)], (*_padded(state, numbers), flat(numbers), step), tuple(state)
    )


# --- the norm -----------------------------------------------------------------------------------


@device
def _larger(a, b):
    """The larger of two, NaN if one is."""
    return a if a > b or a != a else b


@device
def _added(a, b):
    return a + b


def _joined(both):
    """``join(own, shared)``: all threads' numbers as one, for each of them; in a fixed order."""

    @device
    def join(own, shared):
        thread = cuda.threadIdx.x
        shared[thread] = own
        cuda.syncthreads()
        width = THREADS // 2
        while width > 0:
            if thread < width:
                shared[thread] = both(shared[thread], shared[thread + width])
            cuda.syncthreads()
            width //= 2
        return shared[0]

    return join


_largest_of, _sum_of = _joined(_larger), _joined(_added)


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


@for_any_array
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
