"""A multilayer perceptron: its buffers, and forward and backward as calls of a backend."""

import threading
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .backend import backends, get_backend
from .errors import ConfigError, DataError, check_number
from .inputs import as_inputs, as_targets, as_weights
from .layout import Layout, round_up
from .streams import INITIALISATION, random_stream

PREDICT_BATCH = 1024  # images at a time in prediction: bounds the memory of the activations


@dataclass(frozen=True)
class _Buffers:
    """Everything one step writes besides parameters, for a batch of one size."""

    x: Any  # [B, I], the gathered batch
    y: list  # outputs of the layers; the last one holds the logits
    dy: list  # gradients with respect to them, before the activation
    t: Any  # [B] int32
    weight: Any  # [B]
    loss: Any  # [B]
    correct: Any  # [B] uint8

    def first(self, count):
        """The same buffers cut to ``count`` rows."""

        def cut(a):
            return [part[:count] for part in a] if isinstance(a, list) else a[:count]

        return _Buffers(**{name: cut(a) for name, a in vars(self).items()})


class Network:
    """Layers of ``layer_sizes[0]`` inputs → hidden ReLU layers → softmax over the last size.

    ``net = Network([784, 128, 10], backend="auto", seed=0)``

    - ``backend``: "auto", a name from :func:`fastdigit.backends`, or a Backend. "auto" takes what
      FASTDIGIT_BACKEND names, else the fastest that runs here; ``net.backend.name`` tells.
    - ``seed``: 0 … 2**32 - 1. Weights start from N(0, 2 / inputs) (He, Zhang, Ren, Sun, ICCV 2015),
      biases from 0: the same numbers on every backend.
    - ``dropout``: the probability to drop a hidden output while training; one number for all
      hidden layers or one for each.
    - ``precision``: "float32", or what else the backend offers (``net.backend.precisions``).
    - ``classes``: the label of each output; 0, 1, 2 … if not given.
    - ``pixels``: False for inputs that are not pictures: then floats of any size are expected and
      whole numbers above 1 are no reason to warn.

    ``net.parameters()`` gives the weights as named views; ``net.predict`` and ``net.predict_proba``
    take uint8 images [N, 28, 28] or [N, 784], or floats in 0 … 1. Two threads may use one network:
    they take turns.

    Errors: ConfigError for sizes, seed, dropout, classes or a precision that make no sense;
    BackendError for a backend that is unknown or cannot run here.
    """

    def __init__(
        self,
        layer_sizes,
        *,
        backend="auto",
        seed=0,
        dropout=0.0,
        precision="float32",
        classes=None,
        pixels=True,
    ):
        self.backend = get_backend(backend)
        sizes = _checked_sizes(layer_sizes)
        self.layout = Layout(sizes, self.backend.row_align)
        self.seed = _checked_seed(seed)
        self.dropout = _checked_dropout(dropout, len(sizes) - 2)
        self.classes = _checked_classes(classes, sizes[-1])
        if precision not in self.backend.precisions:
            offered = ", ".join(self.backend.precisions)
            raise ConfigError(
                f"backend {self.backend.name!r} does not offer precision {precision!r}, only {offered}"
            )
        self.precision = precision
        self.pixels = bool(pixels)
        self._parameters = self._zeros(self.layout.size)
        self._gradients = self._zeros(self.layout.size)
        self._layers = self.layout.layers(self._parameters)
        self._gradient_layers = self.layout.layers(self._gradients)
        self._capacity = 0
        self._buffers = {}
        self._lock = threading.RLock()  # one thread at a time uses the buffers
        self._training = threading.Lock()  # held for the whole of a training
        self._initialise()

    @property
    def layer_sizes(self):
        """Sizes from the input to the output."""
        return self.layout.layer_sizes

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
        return self._named_host(self._parameters)

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
        for name, value in tensors.items():
            if np.asarray(value).dtype.kind not in "biuf" or not np.isfinite(value).all():
                raise ConfigError(f"parameter {name} holds NaN, infinity or what is no number")
        self._fill(self._parameters, tensors)

    def _named_host(self, flat):
        with self._lock:  # all tensors from between the same two steps
            host = self.backend.to_host(flat)
            return {name: np.array(view) for name, view in self.layout.views(host).items()}

    def _fill(self, flat, tensors):
        """Write named host tensors into a flat buffer of the backend; the padding becomes zero."""
        host = np.zeros(self.layout.size, self.precision)
        for name, view in self.layout.views(host).items():
            view[...] = tensors[name]
        with self._lock:
            self.backend.to_device(host, out=flat)

    def _initialise(self):
        random = random_stream(self.seed, INITIALISATION)
        tensors = {}
        for tensor in self.layout.tensors:
            if len(tensor.shape) == 2:
                deviation = (2 / tensor.shape[0]) ** 0.5
                tensors[tensor.name] = random.standard_normal(tensor.shape) * deviation
            else:
                tensors[tensor.name] = np.zeros(tensor.shape)
        self._fill(self._parameters, tensors)

    # --- buffers ----------------------------------------------------------------------------

    def _zeros(self, *shape, dtype=None):
        return self.backend.zeros(shape, dtype or self.precision)

    def _matrix(self, rows, columns):
        padded = round_up(columns, self.backend.row_align)
        return self._zeros(rows, padded)[:, :columns]

    def _batch_buffers(self, count):
        """Buffers for ``count`` images; allocated once for the largest count, then reused."""
        if count > self._capacity:
            self._capacity = count
            whole = _Buffers(
                x=self._matrix(count, self.layer_sizes[0]),
                y=[self._matrix(count, size) for size in self.layer_sizes[1:]],
                dy=[self._matrix(count, size) for size in self.layer_sizes[1:]],
                t=self._zeros(count, dtype="int32"),
                weight=self._zeros(count),
                loss=self._zeros(count),
                correct=self._zeros(count, dtype="uint8"),
            )
            self._buffers = {count: whole}
        if count not in self._buffers:
            # At most a few sizes are alive: a full batch, the short last one, a prediction's.
            if len(self._buffers) > 4:
                self._buffers = {self._capacity: self._buffers[self._capacity]}
            self._buffers[count] = self._buffers[self._capacity].first(count)
        return self._buffers[count]

    # --- forward and backward ---------------------------------------------------------------

    def _forward(self, buffers, update=None):
        """From the gathered batch to the logits; with dropout where ``update`` numbers a step."""
        below = buffers.x
        for layer, ((w, b), y) in enumerate(zip(self._layers, buffers.y, strict=True)):
            hidden = layer < len(self.dropout)
            self.backend.dense(below, w, b, y, hidden)
            if update is not None and hidden and self.dropout[layer]:
                self.backend.dropout(y, self.dropout[layer], (self.seed, layer), update)
            below = y

    def _backward(self, buffers, dropout=True):
        """From the gradient of the logits to the gradients of all parameters."""
        for layer in reversed(range(len(self._layers))):
            below = buffers.y[layer - 1] if layer else buffers.x
            dw, db = self._gradient_layers[layer]
            self.backend.dense_grad_weight(below, buffers.dy[layer], dw, db)
            if layer:
                scale = 1 / (1 - self.dropout[layer - 1]) if dropout else 1
                self.backend.dense_grad_input(
                    buffers.dy[layer], self._layers[layer][0], below, buffers.dy[layer - 1], scale
                )

    def _outputs(self, inputs, last):
        """Logits of all inputs, passed through ``last(buffers)`` batch by batch."""
        results = []
        with self._lock:
            for start in range(0, len(inputs), PREDICT_BATCH):
                part = self.backend.to_device(inputs[start : start + PREDICT_BATCH])
                buffers = self._batch_buffers(len(part))
                order = self.backend.to_device(np.arange(len(part)))
                self.backend.gather(part, order, 0, buffers.x)
                self._forward(buffers)
                results.append(last(buffers))
        if not results:
            return np.zeros((0, self.layer_sizes[-1]), self.precision)
        return np.concatenate(results)

    def as_inputs(self, images):
        """``images`` checked and converted to the [N, I] array that the network computes with.

        See :func:`fastdigit.inputs.as_inputs`. Errors: DataError.
        """
        return as_inputs(images, self.layer_sizes[0], dtype=self.precision, pixels=self.pixels)

    def logits(self, images):
        """What goes into the softmax. Shapes: images as in :meth:`predict`; returns [N, C]."""
        inputs = self.as_inputs(images)
        return self._outputs(inputs, lambda buffers: np.array(self.backend.to_host(buffers.y[-1])))

    def predict_proba(self, images):
        """The probability of each class. Shapes: images as in :meth:`predict`; returns [N, C]."""
        return self.probabilities_of(self.as_inputs(images))

    def probabilities_of(self, inputs):
        """:meth:`predict_proba` for what :meth:`as_inputs` has checked and converted already."""

        def probabilities(buffers):
            self.backend.softmax(buffers.y[-1], buffers.dy[-1])
            return np.array(self.backend.to_host(buffers.dy[-1]))

        return self._outputs(inputs, probabilities)

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
        return self._loss(images, labels, sample_weight, backward=False)

    def gradients(self, images, labels, sample_weight=None):
        """The gradient of :meth:`loss`: ``{"w1": …, "b1": …, …}``, NumPy arrays on the host.

        All images count as one batch, so memory grows with their number.
        """
        with self._lock:
            self._loss(images, labels, sample_weight, backward=True)
            return self._named_host(self._gradients)

    def _loss(self, images, labels, sample_weight, backward):
        inputs = self.as_inputs(images)
        targets = as_targets(labels, self.classes, len(inputs))
        weight = as_weights(sample_weight, len(inputs))
        if not len(inputs):
            raise DataError("there are no images to compute a loss of")
        batch = len(inputs) if backward else PREDICT_BATCH
        backend, losses = self.backend, []
        with self._lock:
            for start in range(0, len(inputs), batch):
                rows = slice(start, start + batch)
                part = backend.to_device(inputs[rows])
                buffers = self._batch_buffers(len(part))
                backend.gather(part, backend.to_device(np.arange(len(part))), 0, buffers.x)
                backend.to_device(targets[rows], out=buffers.t)
                if weight is not None:
                    backend.to_device(weight[rows].astype(self.precision), out=buffers.weight)
                self._forward(buffers)
                backend.softmax_xent(
                    buffers.y[-1],
                    buffers.t,
                    None if weight is None else buffers.weight,
                    buffers.loss,
                    buffers.correct,
                    buffers.dy[-1],
                )
                if backward:
                    self._backward(buffers, dropout=False)
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

        Errors: CheckpointError for a damaged or foreign file.
        """
        from .checkpoint import load_network

        return load_network(path, backend=backend)

    def __getstate__(self):
        return {**self._description(), "tensors": self.get_parameters()}

    def __setstate__(self, state):
        tensors = state.pop("tensors")
        Network.__init__(self, state.pop("layer_sizes"), **state)
        self.set_parameters(tensors)

    def _description(self):
        return {
            "layer_sizes": self.layer_sizes,
            "backend": self.backend.name if _is_registered(self.backend) else self.backend,
            "seed": self.seed,
            "dropout": self.dropout,
            "precision": self.precision,
            "classes": self.classes,
            "pixels": self.pixels,
        }


def _is_registered(backend):
    return backends().get(backend.name) == "ok" and get_backend(backend.name) is backend


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
