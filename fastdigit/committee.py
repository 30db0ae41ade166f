"""Several networks that answer together."""

from functools import reduce

import numpy as np

from .errors import ConfigError
from .network import Network
from .probabilities import checked_temperature, log_softmax


class Committee:
    """Networks whose probabilities are averaged: ``Committee([net, another, …])``.

    Trained from different seeds, networks are wrong about different images, so that their mean is usually
    wrong less often than they are. ``fastdigit.evaluate`` takes a Committee as it takes a Network.

    ``temperature``, on top of those that the members have, is for calibration: a mean of calibrated
    probabilities claims too little. ``networks`` and ``classes`` are there to be read.

    Errors: ConfigError for no networks, or for some that differ in their inputs, classes or precision.
    Source: Lakshminarayanan, Pritzel, Blundell, *Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles* (NeurIPS 2017); the temperature: Rahaman, Thiery, *Uncertainty Quantification and Deep
    Ensembles* (NeurIPS 2021).
    """

    def __init__(self, networks, *, temperature=1.0):
        try:
            self.networks = tuple(networks)
        except TypeError:
            raise ConfigError(f"a committee is made of a list of networks, got {networks!r}") from None
        if not self.networks:
            raise ConfigError("a committee needs at least one network")
        first = self.networks[0]
        for number, net in enumerate(self.networks, 1):
            if not isinstance(net, Network):
                raise ConfigError(f"a committee is made of networks, member {number} is {type(net).__name__}")
            for what, of in _IN_COMMON.items():
                if of(net) != of(first):
                    raise ConfigError(
                        f"the members of a committee must have the same {what}: member 1 has {of(first)}, "
                        f"member {number} {of(net)}"
                    )
        self.classes = first.classes
        self.dtype = first.dtype
        self.temperature = temperature

    @property
    def temperature(self):
        """What :meth:`logits` are divided by before they become probabilities, 1.0 unless it was set."""
        return self._temperature

    @temperature.setter
    def temperature(self, value):
        self._temperature = checked_temperature(value)

    def __len__(self):
        return len(self.networks)

    def __repr__(self):
        sizes = ["-".join(map(str, net.layer_sizes)) for net in self.networks]
        return f"<Committee of {len(self)}: {', '.join(sizes)}>"

    def as_inputs(self, images):
        """``images`` checked and converted: :meth:`Network.as_inputs`."""
        return self.networks[0].as_inputs(images)

    def logits(self, images):
        """The logarithm of the mean of the members' probabilities, whose softmax is that mean.

        Shapes: images as :meth:`Network.predict` takes them; returns [N, C]. Dtypes: returns float64.
        """
        inputs = self.as_inputs(images)
        each = (log_softmax(net.logits(inputs), net.temperature) for net in self.networks)
        return reduce(np.logaddexp, each) - np.log(len(self))

    def predict_proba(self, images):
        """The mean of the members' probabilities [N, C], at this committee's temperature."""
        return np.exp(log_softmax(self.logits(images), self.temperature)).astype(self.dtype)

    def predict(self, images):
        """The label that is most probable on average: see :meth:`Network.predict`."""
        return self.classes[self.logits(images).argmax(axis=1)]

    def save(self, path):
        """Write all members to one safetensors file, atomically. Errors: as :meth:`Network.save`."""
        from .checkpoint import save_committee

        save_committee(path, self)

    @classmethod
    def load(cls, path, *, backend="auto"):
        """Read what :meth:`save` wrote; a file of a single network gives a committee of one.

        Errors: as :meth:`Network.load`.
        """
        from .checkpoint import load_model

        model = load_model(path, backend=backend)
        return model if isinstance(model, cls) else cls([model])


_IN_COMMON = {
    "inputs": lambda net: net.layer_sizes[0],
    "classes": lambda net: net.classes.tolist(),
    "precision": lambda net: net.dtype,
    "kind of inputs, pixels or not,": lambda net: net.pixels,
}
