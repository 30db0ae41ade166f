"""Backends: who does the arithmetic.

A :class:`Backend` is a frozen record of functions, built by one loader each, complete or not at
all. Networks and the training loop use nothing but these functions, so a backend is exchanged
without touching them. The functions are defined, with shapes, formulas and costs, in the
``reference.py`` of each operation under :mod:`fastdigit.kernels`.
"""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

from .errors import BackendError, DeviceError, DeviceMemoryError
from .layout import Layout

ENVIRONMENT_VARIABLE = "FASTDIGIT_BACKEND"


@dataclass(frozen=True)
class Backend:
    """The operations of one backend. Arrays are the backend's own; outputs are the caller's.

    ``row_align`` is the number of elements that rows of matrices are padded to; ``precisions`` are
    the values of ``Network(precision=…)`` that it can run; ``device`` says in words what computes.
    """

    name: str
    device: str
    row_align: int
    precisions: tuple[str, ...]

    zeros: Callable[[tuple[int, ...], str], Any]  # (shape, dtype) -> array
    to_device: Callable[..., Any]  # (a, out=None) -> array; into out where it is given
    to_host: Callable[[Any], Any]  # (d) -> numpy array; may share memory on a CPU backend
    synchronize: Callable[[], None]

    gather: Callable[..., None]  # (images, order, start, out)
    augment: Callable[..., None]  # (images, order, start, deformation, key, step, out)
    gather_values: Callable[..., None]  # (values, order, start, out)
    dense: Callable[..., None]  # (x, w, b, y, relu)
    dense_grad_input: Callable[..., None]  # (dy, w, y_below, dx, scale)
    dense_grad_weight: Callable[..., None]  # (x, dy, dw, db)
    softmax: Callable[..., None]  # (z, p)
    softmax_xent: Callable[..., None]  # (z, t, weight, loss, correct, dz, smoothing=0.0)
    dropout: Callable[..., None]  # (y, p, key, step)
    sgd: Callable[..., None]  # (p, g, v, lr, momentum, decay, nesterov, decoupled)
    adam: Callable[..., None]  # (p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled)
    clip_norm: Callable[..., None]  # (g, limit)
    log_odds: Callable[..., None]  # (z, t, loss, correct, dz)
    ascend: Callable[..., None]  # (x, dx, origin, step, epsilon, norm)
    add_noise: Callable[..., None]  # (x, order, start, size, key, step)
    max_norm: Callable[..., None]  # (w, limit)

    # (plan, images, labels, order, loss, correct): the steps of a TrainPlan in one call, or None
    # where the backend has only single operations. Returns in words how it was done, if there are
    # several ways.
    train_epoch: Callable[..., str | None] | None = None
    only_steps: str | None = None  # why there is none, where other machines would have one

    # (layout, parameters) -> a function (images, result, probabilities) of NumPy arrays that writes
    # the logits, or their softmax, of all images in one call; None as above.
    predictor: Callable[..., Callable[..., None]] | None = None

    # Whether its operations take any C-contiguous NumPy array: data are then trained on where they are.
    on_host: bool = False

    def __deepcopy__(self, memo):
        return self  # nothing in it changes


@dataclass(frozen=True)
class TrainPlan:
    """What a backend needs to run a stretch of one epoch in one call.

    Step i of the stretch (i = 0 … len(learning_rates) - 1) takes the images
    ``order[(first_step + i)·batch_size : …]``, the last one what is left, and is update number
    ``update + i`` of the whole training (from 0): the number that Adam's bias correction (plus 1)
    and the dropout counter use. ``loss`` and ``correct`` are written at the positions of the
    images in ``order``. All arrays are the backend's; they are updated in place.
    """

    layout: Layout
    precision: str
    buffers: Any  # a fastdigit.steps.Buffers for batch_size images (for N, if N is less)
    parameters: Any  # [P]
    gradients: Any  # [P]
    state: tuple[Any, ...]  # of the optimizer, [P] each
    optimizer: Any  # fastdigit.SGD or fastdigit.Adam: its numbers
    learning_rates: Any  # one for each step, numpy float64, on the host
    update: int
    first_step: int
    batch_size: int
    dropout: tuple[float, ...]  # one for each hidden layer
    input_dropout: float
    seed: int
    label_smoothing: float
    clip_norm: float | None
    adversary: Any  # a fastdigit.attacks.Adversary, or None: then images are trained on as they are
    weight: Any  # [N] or None
    deformation: Any  # a fastdigit.kernels.augment.reference.Deformation with arrays of the backend, or None
    threads: int | None  # None: as the backend thinks best
    sparse_input: bool | None  # whether to skip zeros of the images; None: where that is quicker
    sparse_hidden: bool | None  # the same for outputs of hidden layers


def _reference_operations(xp):
    """The operations of the reference kernels over the array module ``xp``."""
    from .kernels.attack import reference as attack
    from .kernels.augment import reference as augment
    from .kernels.dropout import reference as dropout
    from .kernels.gather import reference as gather
    from .kernels.matmul import reference as matmul
    from .kernels.max_norm import reference as max_norm
    from .kernels.optimizer import reference as optimizer
    from .kernels.softmax_xent import reference as softmax_xent

    functions = (
        gather.gather,
        augment.augment,
        gather.gather_values,
        matmul.dense,
        matmul.dense_grad_input,
        matmul.dense_grad_weight,
        softmax_xent.softmax,
        softmax_xent.softmax_xent,
        dropout.dropout,
        optimizer.sgd,
        optimizer.adam,
        optimizer.clip_norm,
        attack.log_odds,
        attack.ascend,
        attack.add_noise,
        max_norm.max_norm,
    )
    return {function.__name__: partial(function, xp) for function in functions}


def _host_memory():
    """zeros, to_device, to_host and synchronize of a backend that computes on NumPy arrays."""
    import numpy as np

    def zeros(shape, dtype):
        # Always at the start of a cache line: BLAS and the vector loops of NumPy may round
        # differently for another alignment, and equal seeds must give equal bits.
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size].view(dtype).reshape(shape)

    def to_device(a, out=None):
        if out is None:
            out = zeros(a.shape, a.dtype)
        np.copyto(out, a)
        return out

    return {
        "zeros": zeros,
        "to_device": to_device,
        "to_host": lambda d: d,
        "synchronize": lambda: None,
    }


def _load_numpy():
    import numpy as np

    return Backend(
        name="numpy",
        device=f"CPU, NumPy {np.__version__}",
        row_align=16,
        precisions=("float32", "float64"),
        on_host=True,
        **_host_memory(),
        **_reference_operations(np),
    )


def _load_cpu():
    import numba

    from .kernels.attack import cpu as attack
    from .kernels.augment import cpu as augment
    from .kernels.common.team import thread_count
    from .kernels.common.tiles import host_tile
    from .kernels.dropout import cpu as dropout
    from .kernels.epoch import cpu as epoch
    from .kernels.gather import cpu as gather
    from .kernels.inference import cpu as inference
    from .kernels.matmul import cpu as matmul
    from .kernels.max_norm import cpu as max_norm
    from .kernels.optimizer import cpu as optimizer
    from .kernels.softmax_xent import cpu as softmax_xent

    try:
        threads = thread_count()
    except ValueError as error:
        raise BackendError(str(error)) from error
    return Backend(
        name="cpu",
        device=f"CPU, {threads} threads, vectors of {host_tile().lanes} float32, Numba {numba.__version__}",
        row_align=16,
        precisions=matmul.PRECISIONS,
        on_host=True,
        **_host_memory(),
        gather=gather.gather,
        augment=augment.augment,
        gather_values=gather.gather_values,
        dense=matmul.dense,
        dense_grad_input=matmul.dense_grad_input,
        dense_grad_weight=matmul.dense_grad_weight,
        softmax=softmax_xent.softmax,
        softmax_xent=softmax_xent.softmax_xent,
        dropout=dropout.dropout,
        sgd=optimizer.sgd,
        adam=optimizer.adam,
        clip_norm=optimizer.clip_norm,
        log_odds=attack.log_odds,
        ascend=attack.ascend,
        add_noise=attack.add_noise,
        max_norm=max_norm.max_norm,
        train_epoch=epoch.train_epoch,
        predictor=inference.predictor,
    )


def _cuda_operations():
    """The operations on a GPU. Of arrays they need no more than what NumPy's and CuPy's share."""
    from .kernels.attack import cuda as attack
    from .kernels.augment import cuda as augment
    from .kernels.dropout import cuda as dropout
    from .kernels.gather import cuda as gather
    from .kernels.matmul import cuda as matmul
    from .kernels.max_norm import cuda as max_norm
    from .kernels.optimizer import cuda as optimizer
    from .kernels.softmax_xent import cuda as softmax_xent

    return {
        "gather": gather.gather,
        "augment": augment.augment,
        "gather_values": gather.gather_values,
        "dense": matmul.dense,
        "dense_grad_input": matmul.dense_grad_input,
        "dense_grad_weight": matmul.dense_grad_weight,
        "softmax": softmax_xent.softmax,
        "softmax_xent": softmax_xent.softmax_xent,
        "dropout": dropout.dropout,
        "sgd": optimizer.sgd,
        "adam": optimizer.adam,
        "clip_norm": optimizer.clip_norm,
        "log_odds": attack.log_odds,
        "ascend": attack.ascend,
        "add_noise": attack.add_noise,
        "max_norm": max_norm.max_norm,
    }


def _load_cuda():
    try:
        from .kernels.common import cuda
    except ImportError as error:  # it says what to install
        raise BackendError(str(error)) from error
    try:
        device = cuda.require_gpu()
    except cuda.CudaError as error:
        raise BackendError(str(error)) from error
    if cuda.SIMULATED:
        return cuda_backend(device, _host_memory(), None)
    guarded = _guard(*cuda.failures())
    return cuda_backend(device, _cupy_memory(guarded), cuda.limits(), guarded)


def cuda_backend(device, memory, limits, guarded=lambda function: function):
    """The cuda backend over some memory, for a GPU of ``kernels.common.cuda.Limits``. ``guarded``: what
    becomes of its functions."""
    epochs = _cuda_epochs(limits, memory)
    if "train_epoch" in epochs:
        epochs["train_epoch"] = guarded(epochs["train_epoch"])
    return Backend(
        name="cuda",
        device=device,
        row_align=64,
        **memory,
        **{name: guarded(function) for name, function in _cuda_operations().items()},
        **epochs,
    )


def _cuda_epochs(limits, memory):
    """precisions and train_epoch of the cuda backend."""
    if limits is None:
        why = "whole epochs need a GPU of compute capability 8.0 or more"
        return {"precisions": ("float32",), "only_steps": why}
    from .kernels.epoch import cuda as persistent
    from .kernels.epoch import cuda_steps

    to_device, zeros = memory["to_device"], memory["zeros"]
    small, ready, deformed = _Kept(), _Kept(), _Kept()

    def train_epoch(plan, images, labels, order, loss, correct):
        reason = persistent.unsuited(plan, images, limits)
        if reason is None:
            if plan.deformation is not None:
                images = _deformed(plan, images, order, deformed, zeros)
            settings = persistent.Persistent.settings(plan, images)
            make = partial(persistent.Persistent, plan, len(images), zeros, limits)
            small.of(plan, settings, make).run(plan, images, labels, order, loss, correct, to_device)
            return "one persistent kernel"
        arrays = images, labels, loss, correct
        make = partial(cuda_steps.Steps, plan, *arrays, zeros, limits.capability)
        ready.of(plan, cuda_steps.Steps.settings(plan, *arrays), make).run(plan, order, to_device)
        return f"a graph of steps, as the persistent kernel cannot take it: {reason}"

    return {"precisions": cuda_steps.PRECISIONS, "train_epoch": train_epoch}


class _Kept:
    """What is made for the plans of a network and kept as long as its buffers are."""

    def __init__(self):
        self.kept = {}  # id of a network's buffers: (settings, what was made for them)

    def of(self, plan, settings, make):
        """What was made for the same settings, or what ``make()`` gives now."""
        network = id(plan.buffers)
        if network not in self.kept:
            weakref.finalize(plan.buffers, self.kept.pop, network, None)
        if network not in self.kept or self.kept[network][0] != settings:
            self.kept.pop(network, None)  # its memory is free before there is new
            self.kept[network] = settings, make()
        return self.kept[network][1]


def _deformed(plan, images, order, kept, zeros):
    """The images of a plan's steps as these see them, beside others."""
    from .kernels.augment.cuda import augment_steps
    from .kernels.augment.reference import KEY

    out = kept.of(plan, images.shape, lambda: zeros(images.shape, "uint8"))
    start = plan.first_step * plan.batch_size
    stop = min(start + len(plan.learning_rates) * plan.batch_size, len(images))
    how = plan.deformation, (plan.seed, KEY), plan.update
    augment_steps(images, order, start, stop, plan.batch_size, *how, out)
    return out


def _guard(*failures):
    """A decorator for what works on a GPU: what CuPy and the driver complain of, and ``failures``, other
    types, become errors of fastdigit's."""
    import cupy as cp

    failures += (cp.cuda.runtime.CUDARuntimeError,)

    def used_up(error):
        # What arrays left behind stays with CuPy until it is asked for.
        cp.get_default_memory_pool().free_all_blocks()
        return DeviceMemoryError(
            f"the GPU's memory is used up ({error}): train with a smaller batch or network"
        )

    def guard(function):
        @wraps(function)
        def guarded(*arguments, **options):
            try:
                return function(*arguments, **options)
            except cp.cuda.memory.OutOfMemoryError as error:
                raise used_up(error) from error
            except failures as error:
                if "out of memory" in str(error).lower().replace("_", " "):  # of the driver, for itself
                    raise used_up(error) from error
                raise DeviceError(f"the GPU failed: {error}") from error

        return guarded

    return guard


def _cupy_memory(guarded):
    """zeros, to_device, to_host and synchronize of a backend that computes on CuPy's arrays."""
    import cupy as cp
    import numpy as np

    def to_device(a, out=None):
        if out is None:
            return cp.asarray(a)
        same = (out.shape, out.dtype) == (a.shape, a.dtype)
        if same and out.flags.c_contiguous and type(a) is np.ndarray:
            out.set(a)  # at once, and not to another place first
        else:
            out[...] = cp.asarray(a)
        return out

    functions = {
        "zeros": cp.zeros,
        "to_device": to_device,
        "to_host": cp.asnumpy,
        "synchronize": lambda: cp.cuda.get_current_stream().synchronize(),
    }
    return {name: guarded(function) for name, function in functions.items()}


def _load_cupy():
    install = "pip install 'fastdigit[cuda13]' (or [cuda12])"
    try:
        import cupy as cp
    except ImportError as error:
        raise BackendError(f"CuPy is not installed: {install} ({error})") from error
    try:
        count = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(f"CuPy {cp.__version__} finds no usable CUDA device: {error}") from error
    if count == 0:
        raise BackendError(f"CuPy {cp.__version__} finds no CUDA device")

    properties, guarded = cp.cuda.runtime.getDeviceProperties(cp.cuda.runtime.getDevice()), _guard()
    return Backend(
        name="cupy",
        device=f"{properties['name'].decode()}, CuPy {cp.__version__}",
        row_align=64,
        precisions=("float32", "float64"),
        **_cupy_memory(guarded),
        **{name: guarded(function) for name, function in _reference_operations(cp).items()},
    )


_LOADERS = {"numpy": _load_numpy, "cpu": _load_cpu, "cuda": _load_cuda, "cupy": _load_cupy}

# What "auto" tries, best first. "cupy" is the baseline to measure against, chosen only by name.
_AUTO = ("cpu", "numpy")


_loaded = {}  # name -> Backend, or the BackendError that says why there is none


def _load(name):
    """The backend of that name, loaded at its first use; BackendError where it cannot run."""
    if name not in _loaded:
        try:
            _loaded[name] = _LOADERS[name]()
        except BackendError as error:
            _loaded[name] = error
        except Exception as error:  # an installation that is broken, in whatever way
            _loaded[name] = BackendError(f"{type(error).__name__} while it was loaded: {error}")
    if isinstance(_loaded[name], BackendError):
        raise _loaded[name]
    return _loaded[name]


def is_registered(backend):
    """Whether :func:`get_backend` gives this very record for its name; loads nothing."""
    return _loaded.get(backend.name) is backend


def backends():
    """Which backends can run here: ``{name: "ok"}``, or the reason why not instead of "ok"."""
    report = {}
    for name in _LOADERS:
        try:
            _load(name)
            report[name] = "ok"
        except BackendError as error:
            report[name] = str(error)
    return report


def get_backend(name="auto"):
    """The backend of that name.

    "auto" takes the one that the environment variable FASTDIGIT_BACKEND names, else the fastest
    that runs here; ``.name`` of the result says which. A :class:`Backend` is returned as it is.

    Errors: BackendError for an unknown name, and for a named backend that cannot run here, with
    what was found and what is needed.
    """
    if isinstance(name, Backend):
        return name
    source = ""
    if name == "auto":
        name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        source = f" (from {ENVIRONMENT_VARIABLE})"
    if name == "auto":
        return _automatic()
    if not isinstance(name, str) or name not in _LOADERS:
        known = ", ".join(["auto", *_LOADERS])
        raise BackendError(f"there is no backend {name!r}{source}: choose one of {known}")
    try:
        return _load(name)
    except BackendError as error:
        raise BackendError(f"backend {name!r}{source} cannot run here: {error}") from error


def _automatic():
    """The first of _AUTO that runs here; the others are not even loaded."""
    for name in _AUTO[:-1]:
        try:
            return _load(name)
        except BackendError:
            continue
    return _load(_AUTO[-1])
