"""The cuda backend in Numba's simulator: its own choice of memory, its launches, the command line.

The simulator is chosen by an environment variable that Numba reads at its first import: own processes.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastdigit as fd

TRAIN = """
import numpy as np, fastdigit as fd
random = np.random.default_rng(0)
labels = random.integers(0, 4, 24).astype(np.uint8)
images = fd.Images(random.integers(0, 256, (24, 6, 6)).astype(np.uint8), labels)
for sizes, network, options in (
    ([36, 4], {}, {"batch_size": 17, "optimizer": fd.SGD(0.1, momentum=0.9, nesterov=True)}),
    (
        [36, 8, 4],
        {"dropout": 0.3, "input_dropout": 0.1},
        {
            **{"batch_size": 17, "optimizer": fd.AdamW(0.01), "augment": fd.Augment(shift=1)},
            **{"clip_norm": 0.5, "max_norm": 1.0},
        },
    ),
):
    weights = []
    for backend in ("cuda", "numpy"):
        net = fd.Network(sizes, backend=backend, seed=1, **network)
        fd.fit(net, images, epochs=1, seed=2, **options)
        weights.append(net.get_parameters())
    print(fd.get_backend("cuda").device)
    print(max(float(abs(weights[0][name] - weights[1][name]).max()) for name in weights[0]))
"""


def on_one_core():
    """Threads of the simulator, one for each of a block, wait for each other in Python: on several cores that
    takes several times as long."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def in_simulator(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=on_one_core,
    )


def test_a_training_ends_with_the_weights_of_the_reference():
    result = in_simulator("-c", TRAIN)
    assert result.returncode == 0, result.stderr
    device, plain, _, more = result.stdout.splitlines()
    assert "simulator" in device
    assert float(plain) < 1e-5
    assert float(more) < 1e-5


def test_the_command_line(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 6, 6)).astype(np.uint8)
    labels = np.arange(24, dtype=np.uint8) % 4
    for name, array in (
        ("train-images", images),
        ("train-labels", labels),
        ("t10k-images", images),
        ("t10k-labels", labels),
    ):
        kind = "idx3" if array.ndim == 3 else "idx1"
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
    weights = []
    for backend in ("cuda", "numpy"):
        result = in_simulator(
            *("-m", "fastdigit", "train", "--backend", backend, "--data", str(tmp_path), "--hidden", "8"),
            *("--epochs", "1", "--batch-size", "24", "--seed", "3", "--out", str(tmp_path / backend)),
        )
        assert result.returncode == 0, result.stderr + result.stdout
        net = fd.Network.load(tmp_path / backend / "model.safetensors", backend="numpy")
        weights.append(net.get_parameters())
    for name, expected in weights[1].items():
        np.testing.assert_allclose(weights[0][name], expected, atol=1e-5, err_msg=name)


def test_without_a_gpu_one_line_says_what_is_missing(tmp_path):
    """Where there is one, this is about a GPU that is hidden."""
    result = subprocess.run(
        [sys.executable, "-m", "fastdigit", "train", "--backend", "cuda", "--epochs", "1"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "FASTDIGIT_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "backend 'cuda' cannot run here" in line
    assert "install" in line or "GPU" in line


@pytest.mark.parametrize(
    ("driver", "toolkit", "devices", "capability", "said"),
    [
        (0, 13050, 0, None, "no NVIDIA driver was found"),
        (12040, 13050, 1, None, "driver is for CUDA 12.4, the installed packages need CUDA 13.5"),
        (12040, 13050, 1, None, r"pip install 'fastdigit\[cuda12\]'"),
        (13000, 13050, 0, None, "finds no GPU, with CUDA_VISIBLE_DEVICES='7'"),
        (13000, 13050, OSError("no device"), None, "finds no GPU: no device"),
        (13000, 13050, 1, (7, 0), "compute capability 7.0; 7.5 or more is needed"),
    ],
)
def test_what_is_said_of_a_gpu_that_cannot_be_used(monkeypatch, driver, toolkit, devices, capability, said):
    from fastdigit.kernels.common import cuda

    def count():
        if isinstance(devices, Exception):
            raise devices
        return devices

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")

    class Runtime:
        CUDARuntimeError = OSError

        def __getattr__(self, name):
            return {
                "driverGetVersion": lambda: driver,
                "runtimeGetVersion": lambda: toolkit,
                "getDeviceCount": count,
                "getDevice": lambda: 0,
                "getDeviceProperties": lambda device: {
                    "name": b"some GPU",
                    "major": capability[0],
                    "minor": capability[1],
                },
            }[name]

    fake = type(sys)("cupy")
    fake.cuda = type(sys)("cupy.cuda")
    fake.cuda.runtime = Runtime()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with pytest.raises(cuda.CudaError, match=said):
        cuda.require_gpu()


def test_what_is_said_without_cupy(monkeypatch):
    from fastdigit.kernels.common import cuda

    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(cuda.CudaError, match=r"CuPy, .*not installed: pip install 'fastdigit\[cuda13\]'"):
        cuda.require_gpu()
