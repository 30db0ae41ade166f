"""Adversarial examples: images moved so little that nobody would take them for anything else, but a network
does.

FGSM is one step of the length ε along the sign of the gradient: Goodfellow, Shlens, Szegedy, "Explaining and
harnessing adversarial examples", ICLR 2015. PGD takes many short steps from a random place, each followed by
a projection: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial
attacks", ICLR 2018.

The loss that they climb is log((1 - p) / p), p the probability of the label: it has its maxima, and the
directions of its gradient, where the cross-entropy -log p has them, but does not lose them to rounding where
p is all but 1 (:func:`fastdigit.kernels.attack.reference.log_odds`). Dropout is off.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ConfigError, DataError, check_count, check_number
from .inputs import as_targets
from .kernels.attack.reference import NORMS
from .network import Network
from .steps import Buffers, forward, input_gradient, padded

BATCH = 512  # images at a time: more of them leave the cache between two operations
NOISE = 2**32 - 1  # sets the random starts apart from dropout's masks, whose number is that of a layer


class _Method:
    """What the two methods share. ``steps``, ``step_size``, ``restarts`` and ``noise`` (whether to begin
    somewhere in the ball) say all there is to do."""

    def __post_init__(self):
        check_number("epsilon", self.epsilon, "(0, inf)")
        object.__setattr__(self, "epsilon", float(self.epsilon))  # FGSM(1) shall be FGSM(1.0)
        if self.norm not in NORMS:
            raise ConfigError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if not isinstance(self.targeted, bool):
            raise ConfigError(f"targeted must be True or False, got {self.targeted!r}")


@dataclass(frozen=True)
class FGSM(_Method):
    """The fast gradient sign method: one step of the length ``epsilon``, then clipped to 0 … 1.

    ``norm`` "linf": no pixel moves further than epsilon; "l2": one step of that length along the gradient.
    ``targeted``: towards the labels that are given, not away from them. Errors: ConfigError.
    """

    epsilon: float
    norm: str = "linf"
    targeted: bool = False

    steps, restarts, noise = 1, 1, False

    @property
    def step_size(self):
        return self.epsilon


@dataclass(frozen=True)
class PGD(_Method):
    """Projected gradient descent: ``steps`` steps from a random place in the ball of radius ``epsilon``.

    A step has the length ``step``, by default 2.5·epsilon/steps, with which every place of the ball can be
    reached from every other. What then lies outside is projected on the ball, then clipped to 0 … 1.
    With ``norm`` "linf" the ball is epsilon for each pixel and a step moves each by ``step``; with "l2" both
    are lengths. ``restarts``: so many random places to begin from. ``targeted``: towards the labels that
    are given, not away from them. Errors: ConfigError.
    """

    epsilon: float
    step: float | None = None
    steps: int = 40
    restarts: int = 1
    norm: str = "linf"
    targeted: bool = False

    noise = True

    def __post_init__(self):
        super().__post_init__()
        if self.step is not None:
            check_number("step", self.step, "(0, inf)")
            object.__setattr__(self, "step", float(self.step))
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)

    @property
    def step_size(self):
        return 2.5 * self.epsilon / self.steps if self.step is None else self.step


def check_method(method):
    """ConfigError unless it is one of the methods above."""
    if not isinstance(method, FGSM | PGD):
        raise ConfigError(f"an attack is made by FGSM(0.1) or PGD(0.1), say; got {method!r}")


def check_attackable(net, inputs):
    """ConfigError, DataError unless these inputs of a network can be attacked."""
    if net.layer_sizes[-1] < 2:
        raise ConfigError("a network of one class cannot be led to another: attack one that has two")
    if inputs.dtype != np.uint8:
        outside = (inputs < 0) | (inputs > 1)
        if outside.any():
            row = int(outside.any(axis=1).argmax())
            value = inputs[row][outside[row]][0]
            raise DataError(f"images: row {row} holds {value:g}; an attack needs pixels in 0 … 1: scale them")


# --- on arrays of a backend -----------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """What an attack needs besides the :class:`~fastdigit.steps.Buffers` of a step: where each image was,
    and the gradient with respect to it, [B, I] each."""

    origin: Any
    slope: Any

    @classmethod
    def allocate(cls, backend, pixels, count, dtype):
        return cls(*(padded(backend, count, pixels, dtype) for _ in range(2)))

    def first(self, count):
        return Room(self.origin[:count], self.slope[:count])


def begin(backend, buffers, room, method, order, start, seed, number):
    """Note where the images ``buffers.x`` are; with PGD move each to a random place in its ball.

    That is a function of the seed, the ``number`` of the start and the image alone: row r holds
    ``order[start + r]``. With "l2" the noise is uniform in a cube, of about the length ε.
    """
    room.origin[...] = buffers.x
    if method.noise:
        cube = math.sqrt(3 / room.origin.shape[1]) if method.norm == "l2" else 1
        backend.add_noise(buffers.x, order, start, method.epsilon * cube, (seed, NOISE), number)
        backend.ascend(buffers.x, room.origin, room.origin, 0.0, method.epsilon, method.norm)


def look(backend, layers, buffers):
    """What the network says of ``buffers.x``: into loss, correct and the gradient of the logits."""
    forward(backend, layers, buffers)
    backend.log_odds(buffers.y[-1], buffers.t, buffers.loss, buffers.correct, buffers.dy[-1])


def climb(backend, layers, buffers, room, method):
    """One step of ``buffers.x``, after :func:`look`."""
    input_gradient(backend, layers, buffers, room.slope)
    step = -method.step_size if method.targeted else method.step_size
    backend.ascend(buffers.x, room.slope, room.origin, step, method.epsilon, method.norm)


@dataclass(frozen=True)
class Adversary:
    """Who attacks the batches of a training: by a method, all but a share of each."""

    method: FGSM | PGD
    clean_share: float
    room: Room  # for a whole batch

    def attack(self, backend, layers, buffers, order, start, seed, update):
        """Move the first of the gathered images, with the weights as they are; the last ones stay clean.

        Batches are shuffled, so which those are is random.
        """
        count = len(buffers.t) - round(self.clean_share * len(buffers.t))
        if count == 0:
            return
        buffers, room, method = buffers.first(count), self.room.first(count), self.method
        begin(backend, buffers, room, method, order, start, seed, update)
        for _ in range(method.steps):
            look(backend, layers, buffers)
            climb(backend, layers, buffers, room, method)


# --- on images of the host ------------------------------------------------------------------------


def attack(net, images, labels, method, seed=0):
    """Move images so that the network no longer takes them for their labels.

    ``adversarial = fd.attack(net, data.test.images, data.test.labels, fd.PGD(0.1, step=0.01))``

    Each image stays in the ball of the method around where it was, up to rounding, and in 0 … 1. Images that
    the network misreads already come back as they are, and one that it misreads on the way is not moved
    any further, which saves most of the work on a network that is easily led astray. The others come
    back as they were where the loss was highest, at the end of one of the restarts.

    - ``labels``: those of the images, or with a ``targeted`` method those that they shall be taken for.
    - ``method``: an :class:`FGSM` or :class:`PGD` record.
    - ``seed``: of PGD's random starts. They depend on it and on the number of an image, not on how many
      images are attacked at a time.

    Shapes: images as :meth:`Network.predict` takes them, labels [N]; returns the shape of ``images``.
    Dtypes: returns float32 (float64 for a network in float64), pixels in 0 … 1.
    Errors: ConfigError for a method or seed that makes no sense; DataError for images or labels that do not
    fit, for none at all, and for floats outside of 0 … 1.
    Cost: at most restarts · steps forward and backward passes.
    """
    if not isinstance(net, Network):
        raise ConfigError(f"attack takes a Network first, then the images; got {type(net).__name__}")
    check_method(method)
    check_count("seed", seed, 0)
    if seed >= 2**32:
        raise ConfigError(f"seed must be below 2**32, got {seed}")
    inputs = net.as_inputs(images)
    targets = as_targets(labels, net.classes, len(inputs))
    if not len(inputs):
        raise DataError("there are no images to attack")
    check_attackable(net, inputs)
    with net._lock:
        result = _Attack(net, inputs, targets, method, seed).run()
    return result.reshape(np.shape(images))


class _Attack:
    """One call of :func:`attack`."""

    def __init__(self, net, inputs, targets, method, seed):
        self.net, self.backend, self.method, self.seed = net, net.backend, method, seed
        self.inputs, self.targets = inputs, targets
        self.images, self.labels = self.backend.to_device(inputs), self.backend.to_device(targets)
        size = min(BATCH, len(inputs))
        self.buffers = Buffers.allocate(self.backend, net.layer_sizes, size, net.dtype)
        self.room = Room.allocate(self.backend, net.layer_sizes[0], size, net.dtype)
        scale = np.dtype(net.dtype).type(1 / 255 if inputs.dtype == np.uint8 else 1)
        self.result = inputs * scale
        self.highest = np.full(len(inputs), -np.inf)  # the loss, or with a target minus the loss
        self.succeeded = np.zeros(len(inputs), bool)

    def run(self):
        guesses = self.net.logits(self.inputs).argmax(axis=1)
        self.succeeded = (guesses == self.targets) == self.method.targeted
        for restart in range(self.method.restarts):
            rest = np.flatnonzero(~self.succeeded)
            for first in range(0, len(rest), BATCH):
                self._restart(rest[first : first + BATCH], restart)
        return self.result

    def _restart(self, rows, number):
        """From a new start to the last step, for the images with these numbers."""
        backend, method, layers = self.backend, self.method, self.net._layers
        buffers, room, order = self.buffers.first(len(rows)), self.room.first(len(rows)), rows
        order = backend.to_device(rows)
        backend.gather(self.images, order, 0, buffers.x)
        backend.gather_values(self.labels, order, 0, buffers.t)
        begin(backend, buffers, room, method, order, 0, self.seed, number)
        for _ in range(method.steps):
            look(backend, layers, buffers)
            done = self._done(buffers)
            self._keep(rows, buffers, done)
            self.succeeded[rows[done]] = True
            if done.all():
                return
            climb(backend, layers, buffers, room, method)
            rows, buffers, room = self._without(done, rows, buffers, room)
        look(backend, layers, buffers)
        done, loss = self._done(buffers), np.array(backend.to_host(buffers.loss), np.float64)
        loss = -loss if method.targeted else loss
        self._keep(rows, buffers, done | (loss > self.highest[rows]))
        self.highest[rows] = np.maximum(self.highest[rows], loss)
        self.succeeded[rows[done]] = True

    def _done(self, buffers):
        """For which rows the attack has succeeded."""
        return (np.array(self.backend.to_host(buffers.correct)) != 0) == self.method.targeted

    def _keep(self, rows, buffers, which):
        """These images are the worst so far."""
        if which.any():
            chosen = self.backend.to_device(np.flatnonzero(which))
            self.result[rows[which]] = self.backend.to_host(buffers.x[chosen])

    def _without(self, done, rows, buffers, room):
        """The rows that go on, brought together at the front: the last ones fill the holes."""
        going = np.flatnonzero(~done)
        count = len(going)
        holes, movers = np.flatnonzero(done[:count]), going[going >= count]
        if len(holes):
            there, here = self.backend.to_device(holes), self.backend.to_device(movers)
            for array in (buffers.x, buffers.t, room.origin):
                array[there] = array[here]
            rows = rows.copy()
            rows[holes] = rows[movers]
        return rows[:count], buffers.first(count), room.first(count)
