"""The cuda backend without a GPU: its own host code and its compiled kernels, run by the interpreter.

Arrays are NumPy's. At a launch the vectors that a kernel is given are copied to the interpreter's memory,
each with nothing behind it, so that what a kernel reads or writes besides them is found.
"""

import contextlib
from functools import cache

import numpy as np

from fastdigit.backend import Backend, _cuda_operations, _host_memory
from fastdigit.kernels.common import cuda

from .ptxrun import Device, DeviceArray, launch, numba_args, parse

LINE = 256  # bytes: arrays get the place relative to such a line that they have on the host


@cache
def program(kernel, capability):
    return parse(kernel.ptx(capability))


def _placed(device, array):
    """A copy of a vector in the interpreter's memory, as far from an even address as the original."""
    shift = array.__array_interface__["data"][0] % LINE
    start = device._take(shift + array.nbytes)
    device.valid[start : start + shift] = False
    copy = DeviceArray(device, start + shift, array.shape, array.dtype)
    copy.fill_from(array)
    return copy


class Emulator:
    """Runs launches; ``reports`` lists (kernel, report) of all of them."""

    def __init__(self, capability=(8, 0), race=True, metrics=False):
        self.capability, self.race, self.metrics = capability, race, metrics
        self.reports = []

    def launch(self, kernel, blocks, arguments, shared):
        vectors = [a for a in arguments if isinstance(a, np.ndarray)]
        size = sum(a.nbytes + 4 * LINE for a in vectors) + 8192
        device = Device(-(-size // LINE) * LINE)  # seen as words of up to 8 bytes
        places = {}
        for a in vectors:
            # The same vector twice is the same memory.
            places.setdefault((a.__array_interface__["data"][0], a.size), (_placed(device, a), a))
        given = [
            places[a.__array_interface__["data"][0], a.size][0] if isinstance(a, np.ndarray) else a
            for a in arguments
        ]
        report = launch(
            program(kernel, self.capability),
            blocks,
            kernel.threads,
            numba_args(*given),
            device,
            shared=shared,
            race=self.race,
            metrics=self.metrics,
        )
        self.reports.append((kernel, report))
        for copy, original in places.values():
            original[...] = copy.host()


@contextlib.contextmanager
def emulated(**options):
    """``with emulated() as emulator``: all launches of kernels of the cuda backend go to the interpreter."""
    emulator, original = Emulator(**options), cuda.launch
    cuda.launch = emulator.launch
    try:
        yield emulator
    finally:
        cuda.launch = original


@cache
def backend():
    """The record of the cuda backend over NumPy's memory, to be used inside :func:`emulated`."""
    return Backend(
        name="cuda",
        device="the interpreter of PTX",
        row_align=64,
        precisions=("float32",),
        **_host_memory(),
        **_cuda_operations(),
    )
