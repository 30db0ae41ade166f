"""Optimizers: what to do with a gradient. Each is a frozen record of numbers; its state lives in
flat buffers that the training loop allocates, named by ``state_names``.

The formulas are in :mod:`fastdigit.kernels.optimizer.reference`. Weight decay acts on all
parameters, biases included; ``decoupled`` says whether it is added to the gradient (L2, False) or
taken from the parameters directly (as in AdamW, True).
"""

from dataclasses import dataclass

from .errors import ConfigError, check_number


def _as_floats(record, *names):
    """SGD(1) and SGD(1.0) shall be the same record, also when they are written down."""
    for name in names:
        object.__setattr__(record, name, float(getattr(record, name)))


def _check_flags(record, *names):
    for name in names:
        if not isinstance(getattr(record, name), bool):
            raise ConfigError(f"{name} must be True or False, got {getattr(record, name)!r}")


@dataclass(frozen=True)
class SGD:
    """Gradient descent with optional momentum, Nesterov's correction and weight decay.

    ``learning_rate`` is the rate that a schedule scales. Errors: ConfigError for a number out of
    range, or ``nesterov`` without momentum.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self):
        check_number("learning_rate", self.learning_rate, "(0, inf)")
        check_number("momentum", self.momentum, "[0, 1)")
        check_number("weight_decay", self.weight_decay, "[0, inf)")
        _check_flags(self, "nesterov", "decoupled")
        _as_floats(self, "learning_rate", "momentum", "weight_decay")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov needs a momentum above 0")

    @property
    def state_names(self):
        return ("velocity",) if self.momentum else ()

    def update(self, backend, p, g, state, lr, t):
        """Update the flat buffer p from g with learning rate ``lr``; t counts updates from 1."""
        velocity = state[0] if state else None
        backend.sgd(p, g, velocity, lr, self.momentum, self.weight_decay, self.nesterov, self.decoupled)


@dataclass(frozen=True)
class Adam:
    """Adam; with ``decoupled=True`` and a weight decay it is AdamW (see :func:`AdamW`).

    Errors: ConfigError for a number out of range.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    state_names = ("mean", "variance")

    def __post_init__(self):
        check_number("learning_rate", self.learning_rate, "(0, inf)")
        check_number("beta1", self.beta1, "[0, 1)")
        check_number("beta2", self.beta2, "[0, 1)")
        check_number("epsilon", self.epsilon, "(0, inf)")
        check_number("weight_decay", self.weight_decay, "[0, inf)")
        _check_flags(self, "decoupled")
        _as_floats(self, "learning_rate", "beta1", "beta2", "epsilon", "weight_decay")

    def update(self, backend, p, g, state, lr, t):
        """Update the flat buffer p from g with learning rate ``lr``; t counts updates from 1."""
        backend.adam(
            p, g, *state, t, lr, self.beta1, self.beta2, self.epsilon, self.weight_decay, self.decoupled
        )


def AdamW(learning_rate=1e-3, weight_decay=0.01, **numbers):
    """Adam with decoupled weight decay: ``Adam(…, decoupled=True)``."""
    return Adam(learning_rate, weight_decay=weight_decay, decoupled=True, **numbers)
