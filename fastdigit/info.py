"""What this machine offers to fastdigit: versions, processor, backends, data."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .backend import ENVIRONMENT_VARIABLE, backends, get_backend
from .datasets.mnist import find_mnist
from .errors import BackendError

PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn", "safetensors", "Pillow")
# Optional; CuPy's name on the package index tells its CUDA version.
OPTIONAL_PACKAGES = ("numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "matplotlib")

# The vector instructions that kernels can profit from, as LLVM spells them.
SIMD = (
    "sse4.2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512vl",
    "avx512bf16",
    "avx512vnni",
    "amx-bf16",
    "neon",
    "bf16",
    "sve",
)


def gather():
    """Everything that ``fastdigit info`` shows, ready for JSON. Nothing is downloaded."""
    return {
        "fastdigit": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": _versions(),
        "cpu": _cpu(),
        "backends": _backends(),
        "auto": _auto(),
        "FASTDIGIT_BACKEND": os.environ.get(ENVIRONMENT_VARIABLE) or None,
        "mnist": _mnist(),
    }


def _versions():
    """{package: version}; those that are optional only where they are installed."""
    found = {}
    for package in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            if package in PACKAGES:
                found[package] = "not installed"
    return found


def _cpu():
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    try:
        cores = len(os.sched_getaffinity(0))  # what containers and taskset leave to us
    except AttributeError:  # not on macOS, nor on Windows
        cores = os.cpu_count() or 1
    return {
        "name": _cpu_name(),
        "llvm_name": binding.get_host_cpu_name(),
        "simd": [name for name in SIMD if features.get(name)],
        "cores": cores,
        "threads": int(os.environ.get("NUMBA_NUM_THREADS") or cores),
    }


def _cpu_name():
    """The name that the manufacturer gave it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _backends():
    """{name: {"usable": …, "device": …}}, or the reason why not instead of the device."""
    return {
        name: {"usable": True, "device": get_backend(name).device}
        if state == "ok"
        else {"usable": False, "reason": state}
        for name, state in backends().items()
    }


def _auto():
    """What backend="auto" takes, or why it cannot."""
    try:
        return {"backend": get_backend("auto").name}
    except BackendError as error:
        return {"error": str(error)}


def _mnist():
    """Where load_mnist() would find MNIST."""
    folder, found = find_mnist()
    return {"found": found, "folder": str(folder), "downloadable": not os.environ.get("FASTDIGIT_DATA")}
