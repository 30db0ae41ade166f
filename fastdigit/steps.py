"""A training step in single operations of a backend: gather, forward, loss, backward, update.

Functions of a backend and of arrays, with nothing of a network's or a training's own. What
``Backend.train_epoch`` does in one call, :func:`train_steps` does step by step.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from .kernels.augment.reference import KEY
from .kernels.common.arena import Arena
from .kernels.dropout.reference import INPUT_LAYER
from .layout import row_distance


def padded(backend, count, columns, dtype):
    """A matrix of zeros whose rows are padded to the backend's ``row_align``."""
    return backend.zeros((count, row_distance(columns, backend.row_align)), dtype)[:, :columns]


@dataclass(frozen=True)
class Buffers:
    """Everything that a step writes besides parameters and their gradients, for B images: one allocation.

    Rows of matrices are padded to the backend's ``row_align``.
    """

    x: Any  # [B, I], the gathered batch
    y: list  # [B, O] each: the outputs of the layers; the last one holds the logits
    dy: list  # the gradients with respect to them, before the activation
    t: Any  # [B] int32
    weight: Any  # [B]
    loss: Any  # [B]
    correct: Any  # [B] uint8

    @classmethod
    def allocate(cls, backend, layer_sizes, count, dtype):
        """Buffers for ``count`` images, all zero."""
        layers = range(len(layer_sizes) - 1)
        arena = Arena(partial(row_distance, align=backend.row_align))
        arena.matrix("x", count, layer_sizes[0], dtype)
        for what in "y", "dy":
            for layer in layers:
                arena.matrix(f"{what}{layer}", count, layer_sizes[layer + 1], dtype)
        for name, kept in {"t": "int32", "weight": dtype, "loss": dtype, "correct": "uint8"}.items():
            arena.array(name, (count,), kept)
        found = arena.allocate(backend.zeros)
        y, dy = ([found.pop(f"{what}{layer}") for layer in layers] for what in ("y", "dy"))
        return cls(y=y, dy=dy, **found)

    def first(self, count):
        """The same buffers cut to ``count`` rows."""

        def cut(a):
            return [part[:count] for part in a] if isinstance(a, list) else a[:count]

        return Buffers(**{name: cut(a) for name, a in vars(self).items()})


@dataclass(frozen=True)
class Dropout:
    """The masks of one step: the rates of the inputs and the hidden layers, and what the random numbers
    count."""

    inputs: float
    rates: tuple[float, ...]
    seed: int
    update: int


def forward(backend, layers, buffers, dropout=None):
    """From the gathered batch ``buffers.x`` to the logits ``buffers.y[-1]``.

    ``layers`` is [(w, b), …]; with a :class:`Dropout` the inputs and the hidden outputs are thinned out,
    where they are.
    """
    below = buffers.x
    if dropout is not None and dropout.inputs:
        backend.dropout(below, dropout.inputs, (dropout.seed, INPUT_LAYER), dropout.update)
    for layer, ((w, b), y) in enumerate(zip(layers, buffers.y, strict=True)):
        hidden = layer < len(layers) - 1
        backend.dense(below, w, b, y, hidden)
        if dropout is not None and hidden and dropout.rates[layer]:
            backend.dropout(y, dropout.rates[layer], (dropout.seed, layer), dropout.update)
        below = y


def backward(backend, layers, gradients, buffers, dropout=None):
    """From the gradient of the logits ``buffers.dy[-1]`` to the gradients [(dw, db), …]."""
    for layer in reversed(range(len(layers))):
        below = buffers.y[layer - 1] if layer else buffers.x
        backend.dense_grad_weight(below, buffers.dy[layer], *gradients[layer])
        if layer:
            scale = 1 / (1 - dropout.rates[layer - 1]) if dropout is not None else 1
            w, _ = layers[layer]
            backend.dense_grad_input(buffers.dy[layer], w, below, buffers.dy[layer - 1], scale)


def input_gradient(backend, layers, buffers, dx):
    """From the gradient of the logits ``buffers.dy[-1]`` to that of the images, dx [B, I]; no dropout."""
    for layer in reversed(range(len(layers))):
        below, result = (buffers.y[layer - 1], buffers.dy[layer - 1]) if layer else (None, dx)
        backend.dense_grad_input(buffers.dy[layer], layers[layer][0], below, result, 1)


def train_steps(backend, plan, images, labels, order, loss, correct):
    """The steps of a :class:`~fastdigit.backend.TrainPlan`, with the arguments of ``train_epoch``."""
    layers = plan.layout.layers(plan.parameters)
    gradients = plan.layout.layers(plan.gradients)
    for i, rate in enumerate(plan.learning_rates.tolist()):
        start = (plan.first_step + i) * plan.batch_size
        stop = min(start + plan.batch_size, len(order))
        full = stop - start == len(plan.buffers.x)
        buffers = plan.buffers if full else plan.buffers.first(stop - start)
        dropout = Dropout(plan.input_dropout, plan.dropout, plan.seed, plan.update + i)
        if plan.deformation is None:
            backend.gather(images, order, start, buffers.x)
        else:
            key = plan.seed, KEY
            backend.augment(images, order, start, plan.deformation, key, plan.update + i, buffers.x)
        backend.gather_values(labels, order, start, buffers.t)
        if plan.weight is not None:
            backend.gather_values(plan.weight, order, start, buffers.weight)
        if plan.adversary is not None:
            plan.adversary.attack(backend, layers, buffers, order, start, plan.seed, plan.update + i)
        forward(backend, layers, buffers, dropout)
        backend.softmax_xent(
            buffers.y[-1],
            buffers.t,
            None if plan.weight is None else buffers.weight,
            loss[start:stop],
            correct[start:stop],
            buffers.dy[-1],
            plan.label_smoothing,
        )
        backward(backend, layers, gradients, buffers, dropout)
        if plan.clip_norm is not None:
            backend.clip_norm(plan.gradients, plan.clip_norm)
        plan.optimizer.update(backend, plan.parameters, plan.gradients, plan.state, rate, plan.update + i + 1)
