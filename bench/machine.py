"""What a result was measured on: part of every JSON file of results."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fastdigit.files import atomic_write

PACKAGES = ("fastdigit", "numpy", "numba", "scikit-learn", "torch", "jax", "onnxruntime", "cupy")


def describe(peers=sys.executable):
    """The machine by its hardware, the versions, and the commit; ``peers`` is the interpreter of the others,
    whose versions stand apart if it is not this one."""
    others = {} if _same(peers) else {"peers": _versions_of(peers)}
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        **others,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write(path, **results):
    """Write results with the description of the machine as JSON."""
    save(path, {"machine": describe(), **results})


def save(path, results):
    """Write results as JSON: the whole file, or none of it."""
    atomic_write(Path(path), (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def _cpu():
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions():
    return {name: version for name in PACKAGES if (version := _version(name))}


def _same(python):
    found = shutil.which(python)
    return found is None or Path(found).absolute() == Path(sys.executable).absolute()


def _versions_of(python):
    """What an interpreter has of PACKAGES, and its own version under "python"."""
    code = "from fastdigit.bench import machine; print(machine.own_versions())"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else {}


def own_versions():
    """As JSON."""
    return json.dumps({"python": platform.python_version(), **_versions()})


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    try:
        where = Path(__file__).resolve().parent
        command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
