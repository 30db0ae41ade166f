"""The sides that ``bench.train`` compares: one network, one task, many ways to train it.

A side is a function of a :class:`Task` that builds what it needs and returns an object with

- ``first(steps)``: train from the task's weights; the loss of each step, at least so many;
- ``speeds(seconds)``: go on for about so long; images per second of each chunk of the time;
- ``used``: in words, what did the work.

Every side trains with plain SGD on the mean cross-entropy. A peer's library is imported by its own side
alone, so each can be missing.
"""

import math
import os
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

import fastdigit as fd
from fastdigit.streams import ORDER, random_stream

from . import cases

CHUNK = 0.3  # seconds of steps that give one speed
PROBE = 10  # steps that say how long one takes, where they are short


def cores():
    """How many threads a side may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclass
class Task:
    """What all sides train: a network from given weights on given images in a given order.

    The number of images is a multiple of the batch size: every step is the same work.
    """

    network: cases.Network
    images: np.ndarray  # uint8 [N, I], in the order of the data set
    labels: np.ndarray  # uint8 [N]
    parameters: dict  # w1 [I, O], b1 [O], …
    rate: float
    backend: str  # of fastdigit
    seed: int = 0

    @property
    def steps(self):
        """In an epoch."""
        return len(self.images) // self.network.batch

    @property
    def layers(self):
        """[(w, b), …]: copies of the weights to start from."""
        count = len(self.network.layers)
        return [
            (self.parameters[f"w{i}"].copy(), self.parameters[f"b{i}"].copy()) for i in range(1, count + 1)
        ]

    @cached_property
    def order(self):
        """The order in which fastdigit visits the images in its first epoch."""
        return random_stream(self.seed, ORDER, 0).permutation(len(self.images))

    @cached_property
    def x(self):
        """The batches of the first epoch, ready for peers: float32 [steps, B, I], contiguous."""
        shuffled = self.images[self.order].astype(np.float32)
        shuffled *= np.float32(1 / 255)
        return shuffled.reshape(self.steps, self.network.batch, -1)

    @cached_property
    def y(self):
        """Their labels: int64 [steps, B]."""
        return self.labels[self.order].astype(np.int64).reshape(self.steps, self.network.batch)

    @cached_property
    def one_hot(self):
        """The same as float32 [steps, B, C]."""
        return np.eye(self.network.layer_sizes[-1], dtype=np.float32)[self.y]

    def save(self, folder):
        np.savez(
            Path(folder) / "task.npz",
            sizes=self.network.layer_sizes,
            batch=self.network.batch,
            images=self.images,
            labels=self.labels,
            rate=self.rate,
            backend=self.backend,
            seed=self.seed,
            **self.parameters,
        )

    @classmethod
    def load(cls, folder):
        with np.load(Path(folder) / "task.npz") as file:
            found = dict(file)
        network = cases.Network(tuple(found.pop("sizes").tolist()), found.pop("batch").item())
        images, labels = found.pop("images"), found.pop("labels")
        numbers = {name: found.pop(name).item() for name in ("rate", "backend", "seed")}
        return cls(network, images, labels, found, **numbers)


class _Chunks:
    """A trainer whose speeds are those of chunks of its task's steps."""

    @cached_property
    def chunk(self):
        """The number of steps that take about CHUNK seconds; all that they need is then compiled."""
        step = self._seconds_of_a_step(1)
        if step < CHUNK / PROBE:
            step = self._seconds_of_a_step(min(PROBE, self.task.steps))
        return int(min(max(1, CHUNK / step), self.task.steps))

    def _seconds_of_a_step(self, steps):
        for _ in range(2):  # what is compiled for this number of steps is compiled in the first
            begun = time.perf_counter()
            self.run(steps)
            seconds = (time.perf_counter() - begun) / steps
        return seconds


class Loop(_Chunks):
    """A peer's loop: ``train(start, steps)`` trains on so many batches of the epoch from ``start`` on, and
    returns their losses when all is done. ``singly``: it has no loss of a step in a longer run."""

    def __init__(self, task, train, used, singly=False):
        self.task, self.train, self.used, self.singly = task, train, used, singly

    def first(self, steps):
        if self.singly:
            return [loss for step in range(steps) for loss in self.train(step, 1)]
        return self.train(0, steps)

    def run(self, steps):
        self.train(0, steps)

    def speeds(self, seconds):
        steps = self.chunk
        self.run(steps)  # caches, after others had them
        found, start, end = [], 0, time.perf_counter() + seconds
        while not found or time.perf_counter() < end:
            start = start if start + steps <= self.task.steps else 0
            begun = time.perf_counter()
            self.train(start, steps)
            found.append(steps * self.task.network.batch / (time.perf_counter() - begun))
            start += steps
        return found


def side_by_side(*groups):
    """The groups of float32 arrays with these shapes, all one after the other in one piece of memory, each
    from a cache line on. There are at least 4 MB of it: for so much NumPy asks for huge pages.

    Where arrays of their own happen to lie costs the small network up to a quarter of its speed, in each
    process another part of it.
    """
    lengths = [[-(-math.prod(shape) // 16) * 16 for shape in shapes] for shapes in groups]
    memory = np.empty(max(sum(map(sum, lengths)) + 16, 2**20), np.float32)
    start, found = -memory.ctypes.data % 64 // 4, []
    for shapes, group in zip(groups, lengths, strict=True):
        found.append([])
        for shape, length in zip(shapes, group, strict=True):
            found[-1].append(memory[start : start + math.prod(shape)].reshape(shape))
            start += length
    return found


def numpy_loop(task):
    """By hand, nothing allocated within a step.

    The learning rate and 1/B are multiplied into the [B, C] gradient of the logits, whence they reach all
    others: no gradient has to be scaled.
    """
    batch, sizes = task.network.batch, task.network.layer_sizes
    weights, biases = ([array.shape for array in kind] for kind in zip(*task.layers, strict=True))
    outputs = [(batch, size) for size in sizes[1:]]
    w, b, y, dy, dw, db = side_by_side(weights, biases, outputs, outputs, weights, biases)
    layers = list(zip(w, b, strict=True))
    for mine, given in zip(layers, task.layers, strict=True):
        for array, values in zip(mine, given, strict=True):
            array[...] = values
    mask = [np.empty(shape, bool) for shape in outputs]
    row, picked, ones = (
        np.empty((batch, 1), np.float32),
        np.empty(batch, np.float32),
        np.ones(batch, np.float32),
    )
    scale = np.float32(task.rate / batch)
    true = np.arange(batch) * sizes[-1] + task.y  # where the labels' logits lie in a flat [B, C]

    def one(step):
        x, z = task.x[step], y[-1]
        for layer, (w, b) in enumerate(layers):
            np.matmul(x, w, out=y[layer])
            np.add(y[layer], b, out=y[layer])
            if y[layer] is not z:
                np.maximum(y[layer], 0, out=y[layer])
            x = y[layer]
        np.maximum.reduce(z, axis=1, keepdims=True, out=row)
        np.subtract(z, row, out=z)
        z.ravel().take(true[step], out=picked, mode="clip")
        np.exp(z, out=dy[-1])
        np.add.reduce(dy[-1], axis=1, keepdims=True, out=row)
        np.divide(dy[-1], row, out=dy[-1])
        np.subtract(dy[-1], task.one_hot[step], out=dy[-1])
        np.multiply(dy[-1], scale, out=dy[-1])
        np.log(row, out=row)
        loss = (np.add.reduce(row[:, 0]) - np.add.reduce(picked)) / batch
        for layer in reversed(range(len(layers))):
            x = y[layer - 1] if layer else task.x[step]
            np.matmul(x.T, dy[layer], out=dw[layer])
            np.matmul(ones, dy[layer], out=db[layer])
            if layer:
                np.matmul(dy[layer], layers[layer][0].T, out=dy[layer - 1])
                np.greater(x, 0, out=mask[layer - 1])
                np.multiply(dy[layer - 1], mask[layer - 1], out=dy[layer - 1])
        for (w, b), gw, gb in zip(layers, dw, db, strict=True):
            np.subtract(w, gw, out=w)
            np.subtract(b, gb, out=b)
        return loss

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    used = f"numpy {np.__version__}, {blas['name']} {blas['version']}"
    return Loop(task, lambda start, steps: [float(one(start + i)) for i in range(steps)], used)


def torch_loop(task, compiled=False, bf16=False, device="cpu", graph=False, tf32=False):
    """Eager: autograd and one call of ``_foreach_add_`` for the update (quicker than torch.optim.SGD).
    Compiled: the whole step, update included, as one graph. ``graph``: as a CUDA graph, captured once.
    ``tf32``: products of float32 may look at 19 bits of each number. ``bf16``: products and outputs as
    autocast has them, weights, their update and the loss in float32; how cuBLAS adds up parts of a product is
    left as it is, in bfloat16 if it likes. Autocast keeps no rounded weights for later uses, of which a step
    has none, as PyTorch asks for where it is captured. All batches are on the device before it is timed."""
    import torch
    from torch.nn import functional

    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.set_num_threads(cores())
    if device == "cuda" and not torch.cuda.is_available():
        raise fd.BackendError(f"torch {torch.__version__} finds no CUDA device")
    batches, labels = (torch.from_numpy(array).to(device) for array in (task.x, task.y))
    parameters = []
    for w, b in task.layers:  # as torch.nn.Linear has them: weights [O, I]
        parameters += [torch.from_numpy(array).to(device) for array in (np.ascontiguousarray(w.T), b)]

    def loss_of(parameters, x, target):
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):
            for i in range(0, len(parameters), 2):
                x = functional.linear(functional.relu(x) if i else x, parameters[i], parameters[i + 1])
        return functional.cross_entropy(x.float(), target)

    def eager(x, target):
        loss = loss_of(parameters, x, target)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-task.rate)
        return loss.detach()

    @partial(torch.compile, dynamic=False)
    def whole_step(parameters, x, target):
        gradients, loss = torch.func.grad_and_value(loss_of)(parameters, x, target)
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(g, alpha=task.rate)
        return loss

    if not compiled:
        for p in parameters:
            p.requires_grad_()
    step = partial(whole_step, parameters) if compiled else eager
    step = _torch_graph(step, parameters, batches[0], labels[0]) if graph else step

    def train(start, steps):
        losses = [step(batches[i], labels[i]) for i in range(start, start + steps)]
        return torch.stack(losses).tolist()

    parts = ["torch.compile of the whole step"] * compiled + ["CUDA graph"] * graph
    how = ", ".join(parts) or "eager"
    how += ", autocast to bfloat16" if bf16 else ", TF32" if tf32 else ""
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    return Loop(task, train, f"torch {torch.__version__}, {how}, {where}")


def _torch_graph(step, parameters, batch, labels):
    """The same step, replayed by one call of the driver."""
    import torch

    before, x, target = [p.detach().clone() for p in parameters], batch.clone(), labels.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what is allocated and chosen once
            step(x, target)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loss = step(x, target)
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)

    def replay(batch, labels):
        x.copy_(batch)
        target.copy_(labels)
        captured.replay()
        return loss.clone()

    return replay


def torch_tutorial(task, compiled=False):
    """As its tutorials have it: modules, ``backward``, ``torch.optim.SGD``; compiled: the model alone."""
    import torch
    from torch import nn

    torch.set_num_threads(cores())
    batches, labels = torch.from_numpy(task.x), torch.from_numpy(task.y)
    modules = []
    for w, b in task.layers:
        linear = nn.Linear(*w.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w.T))
            linear.bias.copy_(torch.from_numpy(b))
        modules += [linear, nn.ReLU()]
    model = nn.Sequential(*modules[:-1])
    optimizer, loss_of = torch.optim.SGD(model.parameters(), task.rate), nn.CrossEntropyLoss()
    forward = torch.compile(model, dynamic=False) if compiled else model

    def one(step):
        loss = loss_of(forward(batches[step]), labels[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    how = "torch.compile of the model" if compiled else "eager"
    used = f"torch {torch.__version__}, {how}, torch.optim.SGD, {torch.get_num_threads()} threads"
    return Loop(task, lambda start, steps: [one(start + i) for i in range(steps)], used)


def jax_loop(task, device="cpu", bf16=False):
    """A compiled ``lax.scan`` over the steps; the weights' buffers are donated. ``bf16``: products, outputs
    of layers and their gradients in bfloat16, the weights and their update in float32, as torch's autocast.
    """
    import jax
    from jax import numpy as jnp

    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # else it takes a GPU where there is one
    elif jax.default_backend() != "gpu":
        raise fd.ConfigError("this JAX cannot compute on a GPU: pip install 'jax[cuda13]'")
    if not bf16:
        jax.config.update("jax_default_matmul_precision", "float32")  # else TF32 on a GPU

    kind = jnp.bfloat16 if bf16 else jnp.float32

    def loss_of(parameters, x, target):
        for i, (w, b) in enumerate(parameters):
            x = (jnp.maximum(x, 0) if i else x) @ w.astype(kind) + b.astype(kind)
        return -(jax.nn.log_softmax(x.astype(jnp.float32)) * target).sum() / task.network.batch

    @partial(jax.jit, static_argnames="steps", donate_argnums=0)
    def scan(parameters, x, target, start, steps):
        def step(parameters, i):
            loss, gradients = jax.value_and_grad(loss_of)(parameters, x[i], target[i])
            return jax.tree.map(lambda p, g: p - task.rate * g, parameters, gradients), loss

        return jax.lax.scan(step, parameters, start + jnp.arange(steps))

    x, target = jnp.asarray(task.x, kind), jnp.asarray(task.one_hot)
    parameters = jax.tree.map(jnp.asarray, task.layers)

    def train(start, steps):
        nonlocal parameters
        parameters, losses = jax.block_until_ready(scan(parameters, x, target, start, steps))
        return losses.tolist()

    how = "jit and scan" + (", bfloat16" if bf16 else "")
    return Loop(task, train, f"jax {jax.__version__}, {how}, {jax.devices()[0].platform}")


def scikit_learn_loop(task):
    """``MLPClassifier.partial_fit`` on a chunk of batches, without momentum, penalty and shuffling.

    It draws weights of its own when it is called first; they are replaced afterwards.
    """
    import sklearn
    from sklearn.neural_network import MLPClassifier

    sizes, batch = task.network.layer_sizes, task.network.batch
    model = MLPClassifier(
        sizes[1:-1],
        solver="sgd",
        alpha=0,
        batch_size=batch,
        learning_rate_init=task.rate,
        momentum=0,
        nesterovs_momentum=False,
        shuffle=False,
    )
    x, y = task.x.reshape(-1, sizes[0]), task.y.ravel()
    model.partial_fit(x[:batch], y[:batch], classes=np.arange(sizes[-1]))
    for i, (w, b) in enumerate(task.layers):
        model.coefs_[i][...], model.intercepts_[i][...] = w, b

    def train(start, steps):
        chunk = slice(start * batch, (start + steps) * batch)
        model.partial_fit(x[chunk], y[chunk])
        return [float(model.loss_)]  # the mean over the chunk

    return Loop(task, train, f"scikit-learn {sklearn.__version__}, partial_fit", singly=True)


class Fit(_Chunks):
    """Ours: ``fd.fit`` as a user calls it. A chunk is an epoch, of part of the images where steps are long;
    its time is the log's, the steps alone. ``wall`` is the same per second of the whole call, with its
    checks, conversions and shuffling."""

    def __init__(self, task, precision="float32", backend=None):
        self.task, self.wall = task, None
        sizes, backend = task.network.layer_sizes, backend or task.backend
        self.net = fd.Network(sizes, backend=backend, precision=precision, seed=task.seed)
        self.net.set_parameters(task.parameters)
        self.used = f"fastdigit {fd.__version__}, backend {self.net.backend.name}"

    def run(self, steps, epochs=1):
        count = steps * self.task.network.batch
        return fd.fit(
            self.net,
            (self.task.images[:count], self.task.labels[:count]),
            optimizer=fd.SGD(self.task.rate),
            schedule=fd.Constant(),
            epochs=epochs,
            batch_size=self.task.network.batch,
            seed=self.task.seed,
        )

    def first(self, steps):
        return self.run(self.task.steps).step_losses  # whose order is that of all images

    @cached_property
    def epoch_seconds(self):
        return self.chunk * self._seconds_of_a_step(self.chunk)

    def speeds(self, seconds):
        epochs = 1 + max(1, round(seconds / self.epoch_seconds))
        begun = time.perf_counter()
        log = self.run(self.chunk, epochs)
        images = epochs * self.chunk * self.task.network.batch
        self.wall = images / (time.perf_counter() - begun)
        return [epoch.images_per_second for epoch in log.epochs[1:]]  # caches, after others had them


@dataclass(frozen=True)
class Side:
    """``environment``: variables that the side's process gets besides ours. ``only_by_name``: not among the
    sides that are measured unless somebody asks for others."""

    make: object
    precision: str = "float32"
    ours: bool = False
    environment: dict = field(default_factory=dict)
    only_by_name: bool = False


# Else it takes three quarters of a GPU's memory at once, and the other sides have none.
ON_DEMAND = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
ONE_THREAD = {"FASTDIGIT_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

SIDES = {
    "numpy": Side(numpy_loop),
    "torch": Side(torch_loop),
    "torch-compile": Side(partial(torch_loop, compiled=True)),
    "torch-tutorial": Side(torch_tutorial, only_by_name=True),
    "torch-compile-tutorial": Side(partial(torch_tutorial, compiled=True), only_by_name=True),
    "jax": Side(jax_loop),
    "scikit-learn": Side(scikit_learn_loop),
    "fastdigit": Side(Fit, ours=True),
    "fastdigit-numpy": Side(partial(Fit, backend="numpy"), ours=True, only_by_name=True),
    "fastdigit-cpu": Side(partial(Fit, backend="cpu"), ours=True, only_by_name=True),
    "fastdigit-cupy": Side(partial(Fit, backend="cupy"), ours=True, only_by_name=True),
    "fastdigit-1thread": Side(Fit, ours=True, environment=ONE_THREAD),
    "jax-cuda": Side(partial(jax_loop, device="cuda"), environment=ON_DEMAND, only_by_name=True),
    "jax-cuda-bf16": Side(
        partial(jax_loop, device="cuda", bf16=True), "bf16", environment=ON_DEMAND, only_by_name=True
    ),
    "torch-cuda": Side(partial(torch_loop, device="cuda"), only_by_name=True),
    "torch-cuda-graph": Side(partial(torch_loop, device="cuda", graph=True), only_by_name=True),
    "torch-cuda-compile": Side(partial(torch_loop, device="cuda", compiled=True), only_by_name=True),
    "torch-cuda-compile-graph": Side(
        partial(torch_loop, device="cuda", compiled=True, graph=True), only_by_name=True
    ),
    "torch-cuda-compile-bf16": Side(
        partial(torch_loop, device="cuda", compiled=True, graph=True, bf16=True), "bf16", only_by_name=True
    ),
    "torch-cuda-bf16": Side(
        partial(torch_loop, device="cuda", graph=True, bf16=True), "bf16", only_by_name=True
    ),
    "torch-cuda-tf32": Side(
        partial(torch_loop, device="cuda", graph=True, tf32=True), "tf32", only_by_name=True
    ),
    "fastdigit-cuda": Side(partial(Fit, backend="cuda"), ours=True, only_by_name=True),
    "fastdigit-cuda-tf32": Side(
        partial(Fit, backend="cuda", precision="tf32"), "tf32", ours=True, only_by_name=True
    ),
    "fastdigit-cuda-bf16": Side(
        partial(Fit, backend="cuda", precision="bf16"), "bf16", ours=True, only_by_name=True
    ),
    "torch-bf16": Side(partial(torch_loop, bf16=True), "bf16"),
    "torch-compile-bf16": Side(partial(torch_loop, compiled=True, bf16=True), "bf16"),
    "fastdigit-bf16": Side(partial(Fit, precision="bf16"), "bf16", ours=True),
    "fastdigit-bf16x3": Side(partial(Fit, precision="bf16x3"), "bf16x3", ours=True),
}
# What is as exact as float32 is compared with float32.
AS_EXACT_AS = {"bf16x3": "float32"}
