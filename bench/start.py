"""What comes before the first step: import, compiling from nothing, and a start from the cache.

Each figure is that of new processes, with Python's own start.
"""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

IMPORT = "import fastdigit"
# All that a training needs is compiled, or read from the cache.
FIRST_STEP = """
import numpy as np, fastdigit as fd
net = fd.Network([784, 128, 10], backend={backend!r}, seed=0)
images = np.random.default_rng(0).integers(0, 256, (64, 784)).astype(np.uint8) * (np.arange(784) % 5 == 0)
fd.fit(net, (images.astype(np.uint8), np.arange(64) % 10), epochs=1, batch_size=64)
"""
PREDICTION = """
net.predict(images[:1].astype(np.uint8)), net.predict_proba(images.astype(np.uint8))
"""
KERNELS = """
from fastdigit.bench import cases, kernels
network = cases.Network({layer_sizes}, {batch})
kernels.Answers({backend!r})([network.layer_sizes, network.batch, list(kernels.cases_of(network))])
"""


def seconds_of(code, **environment):
    """Of a new process. RuntimeError if it fails."""
    begun = time.perf_counter()
    status = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}).returncode
    if status:
        raise RuntimeError(f"a new process ended with exit status {status}")
    return time.perf_counter() - begun


def compile_all(backend, network):
    """Compile what a training, predicting and this network's operations need, and is not compiled yet, in
    two processes at once: one compiles with one thread."""
    codes = FIRST_STEP + PREDICTION, KERNELS
    which = {"backend": backend, "layer_sizes": list(network.layer_sizes), "batch": network.batch}
    running = [subprocess.Popen([sys.executable, "-c", code.format(**which)]) for code in codes]
    failed = [status for status in [process.wait() for process in running] if status]
    if failed:
        raise RuntimeError(f"a process that compiles kernels ended with exit status {failed[0]}")


def measure(backend="cpu", cold=True, repeat=5):
    """{"python", "import", "cold", "cached"}: seconds, the median of so many processes; "cold" of one.
    Without ``cold`` the cache that is there is used, and has to have what is needed."""
    step = FIRST_STEP.format(backend=backend)

    def median(code, **environment):
        return float(np.median([seconds_of(code, **environment) for _ in range(repeat)]))

    found = {"backend": backend, "processes": repeat, "python": median("pass"), "import": median(IMPORT)}
    if not cold:
        return {**found, "cached": median(step)}
    with tempfile.TemporaryDirectory() as folder:
        found["cold"] = seconds_of(step, NUMBA_CACHE_DIR=folder)
        found["cached"] = median(step, NUMBA_CACHE_DIR=folder)
    return found
