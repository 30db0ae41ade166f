"""Backends: each complete, with the same signatures; how one is chosen; the CuPy loader."""

import dataclasses
import inspect
import pickle
import sys
import types

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import backend as backend_module

from .conftest import same_bits

# The protocol, written out once more: parameters are passed by position and by these names.
OPERATIONS = {
    "gather": "images order start out",
    "augment": "images order start deformation key step out",
    "gather_values": "values order start out",
    "dense": "x w b y relu",
    "dense_grad_input": "dy w y_below dx scale",
    "dense_grad_weight": "x dy dw db",
    "softmax": "z p",
    "softmax_xent": "z t weight loss correct dz smoothing=0.0",
    "dropout": "y p key step",
    "sgd": "p g v lr momentum decay nesterov decoupled",
    "adam": "p g m v t lr beta1 beta2 epsilon decay decoupled",
    "clip_norm": "g limit",
    "log_odds": "z t loss correct dz",
    "ascend": "x dx origin step epsilon norm",
    "add_noise": "x order start size key step",
    "max_norm": "w limit",
}
MEMORY = {"zeros", "to_device", "to_host", "synchronize"}


# --- every backend ----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_have_the_protocols_parameters(backend, operation):
    """A backend with threads may let its operations take their number besides."""
    parameters = dict(inspect.signature(getattr(backend, operation)).parameters)
    if "threads" in parameters:
        assert parameters.pop("threads").default is None
    assert list(map(str, parameters.values())) == OPERATIONS[operation].split()


def test_nothing_of_the_record_is_missed_here():
    functions = {field.name for field in dataclasses.fields(fd.Backend) if "Callable" in str(field.type)}
    assert functions == {*OPERATIONS, *MEMORY, "train_epoch", "predictor"}


def test_a_whole_epoch_has_the_protocols_parameters(backend):
    if backend.train_epoch is not None:
        names = list(inspect.signature(backend.train_epoch).parameters)
        assert names == ["plan", "images", "labels", "order", "loss", "correct"]


def test_descriptions(backend):
    assert backend.name in fd.backends()
    assert backend.device
    assert backend.row_align >= 1
    assert backend.precisions[0] == "float32"


def test_a_backend_is_a_constant(backend):
    with pytest.raises(dataclasses.FrozenInstanceError):
        backend.name = "mine"


def test_a_backend_without_an_operation_cannot_be_built(backend):
    numbers = {field.name: getattr(backend, field.name) for field in dataclasses.fields(backend)}
    del numbers["dense"]
    with pytest.raises(TypeError, match="dense"):
        fd.Backend(**numbers)


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(0,), (5,), (3, 7), (0, 7)])
def test_memory_there_and_back(backend, shape, dtype):
    array = backend.zeros(shape, dtype)
    assert tuple(array.shape) == shape
    host = np.array(backend.to_host(array))
    assert host.dtype == dtype
    assert not host.any()
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(backend.to_host(backend.to_device(values)), values)
    backend.to_device(values, out=array)
    backend.synchronize()
    np.testing.assert_array_equal(backend.to_host(array), values)


def test_a_device_array_is_a_copy(backend):
    """Or a training would change when somebody writes into the images meanwhile."""
    values = np.ones(4, np.float32)
    device = backend.to_device(values)
    values[:] = 7
    assert np.array(backend.to_host(device)).tolist() == [1, 1, 1, 1]


def test_a_part_of_an_array_can_be_written(backend):
    array = backend.zeros((6,), "float32")
    backend.to_device(np.array([1, 2], np.float32), out=array[3:5])
    backend.synchronize()
    assert np.array(backend.to_host(array)).tolist() == [0, 0, 0, 1, 2, 0]


# --- choosing ---------------------------------------------------------------------------------


@pytest.fixture
def no_variable(monkeypatch):
    monkeypatch.delenv("FASTDIGIT_BACKEND", raising=False)


def test_auto_takes_one_that_runs(no_variable):
    chosen = fd.get_backend()
    assert fd.backends()[chosen.name] == "ok"
    assert fd.Network([4, 2]).backend is chosen


def test_the_variable_names_what_auto_takes(monkeypatch):
    monkeypatch.setenv("FASTDIGIT_BACKEND", "numpy")
    assert fd.get_backend().name == "numpy"
    assert fd.Network([4, 2], backend="auto").backend.name == "numpy"


@pytest.mark.parametrize("value", ["", "auto"])
def test_a_variable_that_chooses_nothing(monkeypatch, no_variable, value):
    chosen = fd.get_backend()
    monkeypatch.setenv("FASTDIGIT_BACKEND", value)
    assert fd.get_backend() is chosen


def test_a_name_wins_over_the_variable(monkeypatch):
    monkeypatch.setenv("FASTDIGIT_BACKEND", "nonsense")
    assert fd.get_backend("numpy").name == "numpy"


def test_an_unknown_name(no_variable):
    with pytest.raises(fd.BackendError, match=r"no backend 'tpu'.*auto, numpy"):
        fd.get_backend("tpu")
    with pytest.raises(fd.BackendError, match="'tpu'"):
        fd.Network([4, 2], backend="tpu")


def test_an_unknown_name_in_the_variable_says_where_it_comes_from(monkeypatch):
    monkeypatch.setenv("FASTDIGIT_BACKEND", "tpu")
    with pytest.raises(fd.BackendError, match=r"'tpu' \(from FASTDIGIT_BACKEND\)"):
        fd.get_backend()


def test_a_backend_is_taken_as_it_is():
    mine = dataclasses.replace(fd.get_backend("numpy"), name="mine", row_align=4)
    assert fd.get_backend(mine) is mine
    net = fd.Network([4, 3, 2], backend=mine)
    assert net.backend is mine
    assert net.layout.row_align == 4


def test_loading_happens_once():
    assert fd.get_backend("numpy") is fd.get_backend("numpy")


# --- CuPy, with a stand-in --------------------------------------------------------------------


class DeviceArray(np.ndarray):
    """A NumPy array that refuses, as CuPy's arrays do, to be mixed with those of the host."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        if out:
            options["out"] = tuple(map(_plain, out))
        if "where" in options:
            options["where"] = _plain(options["where"])
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return out[0] if out else _device(result)

    def __array_function__(self, function, kinds, arguments, options):
        def plain(value):
            return type(value)(map(plain, value)) if isinstance(value, tuple | list) else _plain(value)

        result = function(*map(plain, arguments), **{name: plain(v) for name, v in options.items()})
        return _device(result)

    def set(self, a):
        assert type(a) is np.ndarray
        assert (a.dtype, a.shape) == (self.dtype, self.shape), "CuPy refuses this"
        assert self.flags.c_contiguous
        self.view(np.ndarray)[...] = a


def _plain(value):
    if type(value) is np.ndarray:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def _device(value):
    return np.asarray(value).view(DeviceArray) if isinstance(value, np.ndarray | np.generic) else value


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


@pytest.fixture
def fresh_loaders():
    """Backends are loaded anew in the test, and again after it."""
    backend_module._loaded.clear()
    yield
    backend_module._loaded.clear()


@pytest.fixture
def fake_cupy(monkeypatch, fresh_loaders):
    """A module ``cupy`` over NumPy with one device; a test may change its ``devices``."""
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "13.6.0"
    cupy.devices = 1
    cupy.synchronized = 0

    def count():
        if isinstance(cupy.devices, Exception):
            raise cupy.devices
        return cupy.devices

    def synchronize():
        cupy.synchronized += 1

    def asnumpy(array):
        assert isinstance(array, DeviceArray), "asnumpy of something that is not on the device"
        return np.array(array.view(np.ndarray))

    cupy.freed = 0

    def free_all_blocks():
        cupy.freed += 1

    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=free_all_blocks)
    cupy.cuda = types.SimpleNamespace(
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=count,
            getDevice=lambda: 0,
            getDeviceProperties=lambda device: {"name": b"Imaginary GPU"},
        ),
        get_current_stream=lambda: types.SimpleNamespace(synchronize=synchronize),
    )
    for name in ("uint8", "uint64", "matmul", "add", "maximum", "multiply", "subtract", "divide"):
        setattr(cupy, name, getattr(np, name))
    for name in ("abs", "copyto", "exp", "log", "max", "minimum", "sign", "sqrt", "square", "stack", "sum"):
        setattr(cupy, name, getattr(np, name))
    cupy.zeros = lambda shape, dtype=float: _device(np.zeros(shape, dtype))
    cupy.arange = lambda *a, **options: _device(np.arange(*a, **options))
    cupy.asarray = lambda a: _device(np.array(a))
    cupy.asnumpy = asnumpy
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_without_cupy_the_reason_says_what_to_install(monkeypatch, fresh_loaders):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy raises ImportError
    assert "pip install 'fastdigit[cuda13]'" in fd.backends()["cupy"]
    with pytest.raises(fd.BackendError, match=r"'cupy' cannot run here: CuPy is not installed"):
        fd.get_backend("cupy")


@pytest.mark.parametrize("wide", [False, True], ids=["contiguous", "rows apart"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "transposed"])
def test_arrays_go_to_where_they_are_wanted(fake_cupy, wide, dtype, turned):
    backend = fd.get_backend("cupy")
    a = np.arange(6, dtype=dtype).reshape((2, 3) if turned else (3, 2))
    a, whole = (a.T if turned else a), backend.zeros((3, 4 if wide else 2), "float32")
    out = whole[:, :2]
    assert backend.to_device(a, out=out) is out
    np.testing.assert_array_equal(backend.to_host(whole)[:, :2], a)
    assert not backend.to_host(whole)[:, 2:].any()


def test_cupy_without_a_device(fake_cupy):
    fake_cupy.devices = 0
    with pytest.raises(fd.BackendError, match=r"CuPy 13\.6\.0 finds no CUDA device"):
        fd.get_backend("cupy")
    assert "no CUDA device" in fd.backends()["cupy"]


def test_cupy_with_a_driver_that_fails(fake_cupy):
    fake_cupy.devices = CUDARuntimeError("cudaErrorInsufficientDriver: driver is older than the runtime")
    with pytest.raises(fd.BackendError, match="cudaErrorInsufficientDriver"):
        fd.get_backend("cupy")


def test_auto_goes_on_without_a_device(fake_cupy, no_variable):
    fake_cupy.devices = 0
    assert fd.get_backend("auto").name != "cupy"


def test_cupy_loads_and_says_on_what(fake_cupy):
    cupy = fd.get_backend("cupy")
    assert fd.backends()["cupy"] == "ok"
    assert cupy.name == "cupy"
    assert cupy.device == "Imaginary GPU, CuPy 13.6.0"
    for operation, parameters in OPERATIONS.items():
        found = inspect.signature(getattr(cupy, operation)).parameters
        assert list(map(str, found.values())) == parameters.split()
    assert type(cupy.zeros((2, 3), "float32")) is DeviceArray
    assert type(cupy.to_device(np.ones(3))) is DeviceArray
    assert type(cupy.to_host(cupy.zeros((2, 3), "float32"))) is np.ndarray
    cupy.synchronize()
    assert fake_cupy.synchronized == 1


def test_a_gpu_without_memory_left_is_a_typed_error_and_frees_what_was_there(fake_cupy, monkeypatch):
    def no_memory(*arguments, **options):
        raise OutOfMemoryError("out of memory allocating 4,096 bytes")

    cupy = fd.get_backend("cupy")
    net = fd.Network([36, 16, 4], backend=cupy)
    images = np.zeros((8, 36), np.uint8)
    monkeypatch.setattr(fake_cupy, "asarray", no_memory)
    with pytest.raises(fd.DeviceMemoryError, match=r"memory is used up \(out of memory.*smaller batch"):
        net.predict(images)
    assert fake_cupy.freed == 1
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    assert len(net.predict(images)) == 8
    assert issubclass(fd.DeviceMemoryError, MemoryError)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OutOfMemoryError("4,096 bytes"), fd.DeviceMemoryError, r"memory is used up \(4,096 bytes"),
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), fd.DeviceMemoryError, "used up"),
        (CUDARuntimeError("an illegal address"), fd.DeviceError, "the GPU failed: an illegal address"),
    ],
    ids=["memory", "memory of the driver", "driver"],
)
@pytest.mark.parametrize(("module", "name"), [("matmul", "dense_grad_weight"), ("optimizer", "sgd")])
def test_what_fails_within_a_training_on_a_gpu_is_typed(
    fake_cupy, blobs, monkeypatch, error, kind, said, module, name
):
    """An operation's own memory, too; the network is what it was before."""

    def fails(*arguments, **options):
        raise error

    fails.__name__ = name
    monkeypatch.setattr(f"fastdigit.kernels.{module}.reference.{name}", fails)
    net = fd.Network([36, 16, 4], backend="cupy", seed=3)
    before = net.get_parameters()
    with pytest.raises(kind, match=said):
        fd.fit(net, blobs, epochs=1, batch_size=64)
    assert fake_cupy.freed == (kind is fd.DeviceMemoryError)
    for name, value in net.get_parameters().items():
        np.testing.assert_array_equal(value, before[name])
    assert issubclass(fd.DeviceError, RuntimeError)


def test_the_stand_in_refuses_host_arrays(fake_cupy):
    """Or the test below would prove little."""
    device, host = fake_cupy.zeros((2,)), np.zeros(2)
    for mixed in (lambda: device + host, lambda: np.copyto(device, host), lambda: np.stack([device, host])):
        with pytest.raises(TypeError, match="Unsupported type"):
            mixed()


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": fd.SGD(0.1, momentum=0.9, nesterov=True)},
        {"optimizer": fd.SGD(0.1, weight_decay=0.01), "clip_norm": 0.5},
        {"optimizer": fd.AdamW(0.01), "sample_weight": np.arange(1, 301)},
        {"optimizer": fd.SGD(0.1), "adversary": fd.FGSM(0.02)},
        {"optimizer": fd.SGD(0.1), "adversary": fd.PGD(0.2, steps=2, norm="l2"), "clean_share": 0.3},
    ],
    ids=["momentum", "decay and clipping", "adamw and weights", "fgsm", "pgd"],
)
def test_a_training_on_cupy_gives_numpys_weights(fake_cupy, blobs, options):
    networks = []
    for name in ("numpy", "cupy"):
        net = fd.Network([36, 16, 12, 4], backend=name, seed=3, dropout=0.2)
        fd.fit(net, blobs, epochs=2, batch_size=64, seed=1, **options)
        networks.append(net)
    mine, theirs = networks
    assert theirs.backend.name == "cupy"
    for name, value in mine.get_parameters().items():
        np.testing.assert_allclose(theirs.get_parameters()[name], value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(theirs.logits(blobs.images), mine.logits(blobs.images), rtol=1e-4, atol=1e-5)
    assert fd.evaluate(theirs, blobs).correct == fd.evaluate(mine, blobs).correct


@pytest.mark.parametrize("name", ["numpy", "cupy"])
def test_a_gpu_works_while_the_next_epochs_order_is_made(fake_cupy, blobs, name):
    """It is there before the losses are waited for; where nothing works meanwhile, it is not made early."""
    backend, done = fd.get_backend(name), []

    def to_device(a, out=None):
        done.extend(["order"] * (getattr(a, "dtype", None) == np.int64))
        return backend.to_device(a, out) if out is not None else backend.to_device(a)

    def to_host(a):
        done.extend(["losses"] * (a.shape == (300,) and a.dtype == np.float32))
        return backend.to_host(a)

    noted = dataclasses.replace(backend, to_device=to_device, to_host=to_host)
    net = fd.Network([36, 16, 4], backend=noted, seed=3)
    early = fd.fit(net, blobs, optimizer=fd.SGD(0.1), epochs=3, batch_size=300)
    if name == "cupy":  # losses are fetched once an epoch
        assert done == ["order", "order", "losses", "order", "losses", "losses"]
    else:
        assert done == ["order", "losses"] * 3
    assert len(early.epochs) == 3


def test_an_attack_on_cupy_is_numpys(fake_cupy, blobs):
    mine, theirs = (fd.Network([36, 16, 12, 4], backend=name, seed=3) for name in ("numpy", "cupy"))
    for method in (fd.FGSM(0.1), fd.PGD(0.1, steps=5, restarts=2), fd.PGD(0.5, steps=5, norm="l2")):
        found = [fd.attack(net, blobs.images, blobs.labels, method) for net in (mine, theirs)]
        assert type(found[1]) is np.ndarray
        np.testing.assert_allclose(*found, atol=1e-5)
    gradients = [net.input_gradients(blobs.images, blobs.labels) for net in (mine, theirs)]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_a_network_moves_between_backends(fake_cupy, blobs, tmp_path):
    net = fd.Network([36, 16, 4], backend="cupy", seed=3)
    net.save(tmp_path / "net.safetensors")
    back = fd.Network.load(tmp_path / "net.safetensors", backend="numpy")
    assert same_bits(net, back)


def test_auto_loads_nothing_but_what_it_takes(monkeypatch, fresh_loaders, no_variable):
    def never():
        raise AssertionError("loaded for nothing")

    monkeypatch.setitem(backend_module._LOADERS, "cupy", never)
    net = fd.Network([4, 2])
    assert net.backend.name == "cpu"
    assert pickle.loads(pickle.dumps(net)).backend is net.backend


def test_a_broken_installation_is_a_reason_not_a_crash(monkeypatch, fresh_loaders, no_variable):
    def broken():
        raise RuntimeError("libcuda is upside down")

    monkeypatch.setitem(backend_module._LOADERS, "cupy", broken)
    states = fd.backends()
    assert (states["numpy"], states["cpu"]) == ("ok", "ok")
    assert states["cupy"] == "RuntimeError while it was loaded: libcuda is upside down"
    assert fd.get_backend("auto").name == "cpu"
    with pytest.raises(fd.BackendError, match="'cupy' cannot run here: RuntimeError"):
        fd.get_backend("cupy")
