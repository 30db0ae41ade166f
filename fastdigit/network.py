"""A multilayer perceptron: its buffers, and forward and backward as calls of a backend."""

import os
import threading
import weakref
from numbers import Real

import numpy as np

from .backend import get_backend, is_registered
from .errors import ConfigError, DataError, check_number
from .inputs import as_inputs, as_targets, as_weights
from .kernels.common.arena import Arena
from .layout import Layout
from .probabilities import checked_temperature, log_softmax
from .steps import Buffers, backward, forward, input_gradient, padded
from .streams import INITIALISATION, random_stream

PREDICT_BATCH = 1024  # images at a time in prediction: bounds the memory of the activations


ROUNDING = ("tf32", "bf16", "bf16x3")  # precisions of a training's products alone


def offered_precision(precision, backend):
    """A network's precision on another backend: float32 where it only rounds products and is not offered."""
    return "float32" if precision in ROUNDING and precision not in backend.precisions else precision


class Network:
    """Layers of ``layer_sizes[0]`` inputs → hidden ReLU layers → softmax over the last size.

    ``net = Network([784, 128, 10], backend="auto", seed=0)``

    - ``backend``: "auto", a name from :func:`fastdigit.backends`, or a Backend. "auto" takes what
      FASTDIGIT_BACKEND names, else the fastest that runs here; ``net.backend.name`` tells.
    - ``seed``: 0 … 2**32 - 1. Weights start from N(0, 2 / inputs) (He, Zhang, Ren, Sun, ICCV 2015),
      biases from 0: the same numbers on every backend.
    - ``dropout``: the probability to drop a hidden output while training; one number for all
      hidden layers or one for each. ``input_dropout``: the same for an input.
    - ``precision``: "float32", or what else the backend offers (``net.backend.precisions``). With
      "bf16" a training rounds the operands of its products to bfloat16 (on the cpu backend those of large
      products; not of the output layer), with "bf16x3" three bfloat16 numbers stand for each, as exact as
      float32, with "tf32" each is rounded to 19 bits for tensor cores; weights, sums and predictions stay
      float32.
    - ``classes``: the label of each output; 0, 1, 2 … if not given.
    - ``pixels``: False for inputs that are not pictures: then floats of any size are expected and
      whole numbers above 1 are no reason to warn.
    - ``temperature``: what :meth:`predict_proba` divides the logits by, so that probabilities can be brought
      to what they claim to be (:func:`fastdigit.fit_temperature`). It belongs to these very weights:
      training sets it back to 1.

    ``net.parameters()`` gives the weights as named views; ``net.predict`` and ``net.predict_proba``
    take uint8 images [N, 28, 28] or [N, 784], or floats in 0 … 1. Two threads may use one network:
    they take turns.

    Errors: ConfigError for sizes, seed, dropout, classes, a precision or a temperature that make no sense;
    BackendError for a backend that is unknown or cannot run here.
    """

    def __init__(
        self,
        layer_sizes,
        *,
        backend="auto",
        seed=0,
        dropout=0.0,
        input_dropout=0.0,
        precision="float32",
        classes=None,
        pixels=True,
        temperature=1.0,
    ):
        self.backend = get_backend(backend)
        sizes = _checked_sizes(layer_sizes)
        self.layout = Layout(sizes, self.backend.row_align)
        self.seed = _checked_seed(seed)
        self.dropout = _checked_dropout(dropout, len(sizes) - 2)
        check_number("input_dropout", input_dropout, "[0, 1)")
        self.input_dropout = float(input_dropout)
        self.classes = _checked_classes(classes, sizes[-1])
        if precision not in self.backend.precisions:
            offered = ", ".join(self.backend.precisions)
            raise ConfigError(
                f"backend {self.backend.name!r} does not offer precision {precision!r}, only {offered}"
            )
        self.precision = precision
        self.dtype = "float64" if precision == "float64" else "float32"  # of parameters and results
        self.pixels = bool(pixels)
        self.temperature = temperature
        arena = Arena()
        for name in "parameters", "gradients":
            arena.array(name, (self.layout.size,), self.dtype)
        self._parameters, self._gradients = arena.allocate(self.backend.zeros).values()
        self._layers = self.layout.layers(self._parameters)
        self._predictor = None
        if self.backend.predictor is not None and self.dtype == "float32":
            self._predictor = self.backend.predictor(self.layout, self._parameters)
        self._capacity = 0
        self._buffers = {}
        self._renew_locks()
        _networks.add(self)
        self._initialise()

    def _renew_locks(self):
        self._lock = threading.RLock()  # one thread at a time uses the buffers
        self._training = threading.Lock()  # held for the whole of a training

    @property
    def layer_sizes(self):
        """Sizes from the input to the output."""
        return self.layout.layer_sizes

    @property
    def temperature(self):
        """What the logits are divided by before they become probabilities, 1.0 unless it was set."""
        return self._temperature

    @temperature.setter
    def temperature(self, value):
        self._temperature = checked_temperature(value)

    def __repr__(self):
        sizes = "-".join(map(str, self.layer_sizes))
        return f"<Network {sizes}, {self.layout.parameter_count:,} parameters, {self.backend.name}>"

    # --- parameters -------------------------------------------------------------------------

    def parameters(self):
        """``{"w1": [I, O], "b1": [O], …}``: views of the parameter buffer, the backend's arrays.

        Writing into them changes the network.
        """
        return self.layout.views(self._parameters)

    def get_parameters(self):
        """The same names with copies as NumPy arrays on the host."""
        with self._lock:  # all of them from between the same two steps
            return self.layout.named(self.backend.to_host(self._parameters))

    def set_parameters(self, tensors):
        """Take over all parameters from ``{"w1": …, "b1": …, …}`` (NumPy arrays).

        Errors: ConfigError listing the tensors that are missing, unknown or of another shape, or
        naming one that is not finite; then nothing has changed.
        """
        expected = {tensor.name: tensor.shape for tensor in self.layout.tensors}
        given = {name: np.shape(value) for name, value in tensors.items()}
        if given != expected:
            names = [name for name in {**expected, **given} if given.get(name) != expected.get(name)]
            details = "; ".join(f"{n}: {given.get(n)} instead of {expected.get(n)}" for n in names)
            raise ConfigError(f"parameters do not fit this network: {details}")
        try:
            with np.errstate(over="ignore"):  # what overflows is found just below
                host = self.layout.flatten(tensors, self.dtype)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"parameters must be arrays of numbers: {error}") from error
        for name, view in self.layout.views(host).items():
            if not np.isfinite(view).all():
                raise ConfigError(f"parameter {name} holds NaN, infinity or what {self.dtype} cannot hold")
        with self._lock:
            self.backend.to_device(host, out=self._parameters)

    def _initialise(self):
        random = random_stream(self.seed, INITIALISATION)
        tensors = {}
        for tensor in self.layout.tensors:
            if len(tensor.shape) == 2:
                deviation = (2 / tensor.shape[0]) ** 0.5
                tensors[tensor.name] = random.standard_normal(tensor.shape) * deviation
            else:
                tensors[tensor.name] = np.zeros(tensor.shape)
        self.set_parameters(tensors)

    # --- buffers ----------------------------------------------------------------------------

    def _batch_buffers(self, count):
        """Buffers for ``count`` images; allocated once for the largest count, then reused."""
        if count > self._capacity:
            # Forgotten before, so that the old and the new are never there together, and noted after,
            # so that running out of memory in between leaves a network that works.
            self._capacity, self._buffers = 0, {}
            self._buffers = {count: Buffers.allocate(self.backend, self.layer_sizes, count, self.dtype)}
            self._capacity = count
        if count not in self._buffers:
            # At most a few sizes are alive: a full batch, the short last one, a prediction's.
            if len(self._buffers) > 4:
                self._buffers = {self._capacity: self._buffers[self._capacity]}
            self._buffers[count] = self._buffers[self._capacity].first(count)
        return self._buffers[count]

    # --- forward and backward ---------------------------------------------------------------

    def _outputs(self, images, probabilities):
        """The logits of all images, or their softmax."""
        inputs = self.as_inputs(images)
        result = np.empty((len(inputs), self.layer_sizes[-1]), self.dtype)
        with self._lock:
            if self._predictor is not None:
                self._predictor(inputs, result, probabilities)
                return result
            for start in range(0, len(inputs), PREDICT_BATCH):
                buffers = self._gathered(inputs[start : start + PREDICT_BATCH])
                forward(self.backend, self._layers, buffers)
                if probabilities:
                    self.backend.softmax(buffers.y[-1], buffers.dy[-1])
                outputs = (buffers.dy if probabilities else buffers.y)[-1]
                result[start : start + PREDICT_BATCH] = self.backend.to_host(outputs)
        return result

    def _gathered(self, inputs):
        """The buffers for a batch of host inputs, with the batch in them."""
        buffers = self._batch_buffers(len(inputs))
        order = self.backend.to_device(np.arange(len(inputs)))
        self.backend.gather(self.backend.to_device(inputs), order, 0, buffers.x)
        return buffers

    def as_inputs(self, images):
        """``images`` checked and converted to the [N, I] array that the network computes with.

        See :func:`fastdigit.inputs.as_inputs`. Errors: DataError.
        """
        return as_inputs(images, self.layer_sizes[0], dtype=self.dtype, pixels=self.pixels)

    def logits(self, images):
        """What goes into the softmax. Shapes: images as in :meth:`predict`; returns [N, C]."""
        return self._outputs(images, probabilities=False)

    def predict_proba(self, images):
        """The probability of each class, softmax(logits / :attr:`temperature`).

        Shapes: images as in :meth:`predict`; returns [N, C].
        """
        if self.temperature == 1:
            return self._outputs(images, probabilities=True)
        return np.exp(log_softmax(self.logits(images), self.temperature)).astype(self.dtype)

    def predict(self, images):
        """The label of the most probable class of each image.

        Shapes: [N, 28, 28], [N, 784] or one image alone (generally the input size); returns [N].
        Dtypes: uint8 (0 … 255), other integers in that range, or floats in 0 … 1; returns the
        dtype of ``classes``.
        Errors: DataError for another shape, NaN or infinity, naming the row.
        """
        return self.classes[self.logits(images).argmax(axis=1)]

    def loss(self, images, labels, sample_weight=None):
        """Mean cross-entropy of the images, without dropout.

        Shapes: images as in :meth:`predict`, labels [N], sample_weight [N] or None (its mean is
        brought to 1). Errors: DataError, also for no images at all.
        """
        return self._loss(images, labels, sample_weight, with_gradients=False)

    def gradients(self, images, labels, sample_weight=None):
        """The gradient of :meth:`loss`: ``{"w1": …, "b1": …, …}``, NumPy arrays on the host.

        All images count as one batch, so memory grows with their number.
        """
        with self._lock:
            self._loss(images, labels, sample_weight, with_gradients=True)
            return self.layout.named(self.backend.to_host(self._gradients))

    def input_gradients(self, images, labels):
        """The gradient of each image's own cross-entropy with respect to its pixels in 0 … 1.

        Not divided by the number of images; without dropout. It keeps its relative precision however
        sure the network is: ∂L/∂x = (1 - p)·∂/∂x log((1 - p) / p), p the probability of the label.

        Shapes: images as in :meth:`predict`, labels [N]; returns [N, I].
        Dtypes: float32 (float64 in a network of float64).
        Errors: DataError for images or labels that do not fit; ConfigError for a network of one class.
        """
        inputs = self.as_inputs(images)
        targets = as_targets(labels, self.classes, len(inputs))
        if self.layer_sizes[-1] < 2:
            raise ConfigError("with one class its probability is 1, and the gradient 0 everywhere")
        result, backend = np.empty(inputs.shape, self.dtype), self.backend
        with self._lock:
            slopes = padded(backend, min(PREDICT_BATCH, len(inputs)), self.layer_sizes[0], self.dtype)
            for start in range(0, len(inputs), PREDICT_BATCH):
                rows = slice(start, start + PREDICT_BATCH)
                buffers = self._gathered(inputs[rows])
                slope = slopes[: len(inputs[rows])]
                backend.to_device(targets[rows], out=buffers.t)
                forward(backend, self._layers, buffers)
                backend.log_odds(buffers.y[-1], buffers.t, buffers.loss, buffers.correct, buffers.dy[-1])
                input_gradient(backend, self._layers, buffers, slope)
                against = np.array(backend.to_host(buffers.loss), np.float64)
                result[rows] = backend.to_host(slope) * np.exp(-np.logaddexp(0, -against))[:, None]
        return result

    def _loss(self, images, labels, sample_weight, with_gradients):
        inputs = self.as_inputs(images)
        targets = as_targets(labels, self.classes, len(inputs))
        weight = as_weights(sample_weight, len(inputs))
        if not len(inputs):
            raise DataError("there are no images to compute a loss of")
        batch = len(inputs) if with_gradients else PREDICT_BATCH
        backend, losses = self.backend, []
        with self._lock:
            for start in range(0, len(inputs), batch):
                rows = slice(start, start + batch)
                buffers = self._gathered(inputs[rows])
                backend.to_device(targets[rows], out=buffers.t)
                if weight is not None:
                    backend.to_device(weight[rows].astype(self.dtype), out=buffers.weight)
                forward(backend, self._layers, buffers)
                backend.softmax_xent(
                    buffers.y[-1],
                    buffers.t,
                    None if weight is None else buffers.weight,
                    buffers.loss,
                    buffers.correct,
                    buffers.dy[-1],
                )
                if with_gradients:
                    backward(backend, self._layers, self.layout.layers(self._gradients), buffers)
                losses.append(np.array(backend.to_host(buffers.loss)))
        return float(np.concatenate(losses).mean(dtype=np.float64))

    # --- files and copies -------------------------------------------------------------------

    def save(self, path):
        """Write the network to one safetensors file, atomically.

        Errors: OSError as the system raises it; a file that stood there before is then intact.
        """
        from .checkpoint import save_network

        save_network(path, self)

    @classmethod
    def load(cls, path, *, backend="auto"):
        """Read a network that :meth:`save` or a training's checkpoint wrote, for any backend.

        Where the backend does not offer a precision that only rounds a training's products (tf32, bf16,
        bf16x3), it becomes a network of float32, with the same weights and predictions.

        Errors: CheckpointError for a damaged or foreign file.
        """
        from .checkpoint import load_network

        return load_network(path, backend=backend)

    def __getstate__(self):
        return {**self._description(), "tensors": self.get_parameters()}

    def __setstate__(self, state):
        tensors = state.pop("tensors")
        state["precision"] = offered_precision(state["precision"], get_backend(state["backend"]))
        Network.__init__(self, state.pop("layer_sizes"), **state)
        self.set_parameters(tensors)

    def _description(self):
        return {
            "layer_sizes": self.layer_sizes,
            "backend": self.backend.name if is_registered(self.backend) else self.backend,
            "seed": self.seed,
            "dropout": self.dropout,
            "input_dropout": self.input_dropout,
            "precision": self.precision,
            "classes": self.classes,
            "pixels": self.pixels,
            "temperature": self.temperature,
        }


# A thread that held a lock while the process was forked does not exist in the child, which would wait
# for it for ever: there, every network gets new ones.
_networks = weakref.WeakSet()


def _after_fork():
    for net in _networks:
        net._renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked_sizes(layer_sizes):
    try:
        return tuple(int(n) if isinstance(n, np.integer) else n for n in layer_sizes)
    except TypeError:
        raise ConfigError(f"layer_sizes must be a list such as [784, 128, 10], got {layer_sizes!r}") from None


def _checked_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be an integer in 0 … 2**32 - 1, got {seed!r}")
    return int(seed)


def _checked_dropout(dropout, hidden_layers):
    one_for_all = isinstance(dropout, Real)
    try:
        rates = (dropout,) * max(1, hidden_layers) if one_for_all else tuple(dropout)
    except TypeError:
        raise ConfigError(
            f"dropout must be a number, or one for each hidden layer, got {dropout!r}"
        ) from None
    for rate in rates:
        check_number("dropout", rate, "[0, 1)")
    if not one_for_all and len(rates) != hidden_layers:
        raise ConfigError(f"dropout has {len(rates)} rates for {hidden_layers} hidden layers")
    return tuple(float(p) for p in rates[:hidden_layers])


def _checked_classes(classes, outputs):
    if classes is None:
        return np.arange(outputs)
    classes = np.array(classes)
    if classes.shape != (outputs,) or classes.dtype.kind not in "ui":
        raise ConfigError(f"classes must be {outputs} integers, one for each output, got {classes.tolist()}")
    if classes.max() > np.iinfo(np.int64).max:
        raise ConfigError(f"classes must fit 64 signed bits, got {classes.max()}")
    if len(set(classes.tolist())) != outputs:
        raise ConfigError(f"classes must differ from each other, got {classes.tolist()}")
    return classes.astype(np.int64)
