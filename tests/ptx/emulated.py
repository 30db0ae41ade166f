"""The cuda backend without a GPU: its own host code and its compiled kernels, run by the interpreter.

Arrays are NumPy's. At a launch the vectors that a kernel is given are copied to the interpreter's memory,
each with nothing behind it, so that what a kernel reads or writes besides them is found.
"""

import contextlib
from functools import cache, partial

import numpy as np
import pytest

from fastdigit.backend import _host_memory, cuda_backend
from fastdigit.kernels import epoch
from fastdigit.kernels.common import cuda

from .assembled import ptx_of
from .device import Device, DeviceArray, PTXError, numba_args
from .program import parse
from .ptxrun import launch

# Of the GPU that is emulated, as kernels look them up that work with any: so few multiprocessors that blocks
# which stay for several tiles have some.
LIMITS = cuda.Limits((9, 0), 2, 232_448)
CAPABILITY = (9, 0, "a")  # that code is compiled for, also where these limits are those of another GPU
LINE = 256  # bytes: arrays get the place relative to such a line that they have on the host


@cache
def program(kernel):
    """What is run. PTXError where it is launched early and never waits for the launches before."""
    code = parse(ptx_of(kernel, CAPABILITY))
    waits = any(instruction.op == "griddepcontrol.wait" for instruction in code.instrs)
    if waits != kernel.dependent:
        raise PTXError(f"{kernel.name} {'waits' if waits else 'never waits'} for the launches before it")
    return code


def _placed(device, array):
    """A copy of a vector in the interpreter's memory, as far from an even address as the original."""
    shift = array.__array_interface__["data"][0] % LINE
    start = device._take(shift + array.nbytes)
    device.valid[start : start + shift] = False
    copy = DeviceArray(device, start + shift, array.shape, array.dtype)
    copy.fill_from(array)
    return copy


def _members(arguments):
    """Of arguments and of tuples among them."""
    for argument in arguments:
        if isinstance(argument, tuple) and not isinstance(argument, cuda.TensorMap):
            yield from _members(argument)
        else:
            yield argument


class Emulator:
    """Runs launches; ``reports`` lists (kernel, report) of all of them."""

    def __init__(self, race=True, metrics=False, burst=1):
        self.race, self.metrics, self.burst, self.reports = race, metrics, burst, []

    def launch(self, kernel, blocks, arguments, shared):
        members = list(_members(arguments))
        maps = [a for a in members if isinstance(a, cuda.TensorMap)]
        wholes = {id(a): cuda.flat(a.matrix) for a in maps}
        vectors = [a for a in members if isinstance(a, np.ndarray)] + list(wholes.values())
        size = sum(a.nbytes + 4 * LINE for a in vectors) + 16384
        device = Device(-(-size // LINE) * LINE)  # seen as words of up to 8 bytes
        places = {}
        for a in vectors:
            # The same vector twice is the same memory.
            places.setdefault((a.__array_interface__["data"][0], a.size), (_placed(device, a), a))

        def copy_of(array):
            return places[array.__array_interface__["data"][0], array.size][0]

        def given(argument):
            if isinstance(argument, cuda.TensorMap):
                matrix = argument.matrix
                whole = copy_of(wholes[id(argument)])
                strides = (
                    -(-matrix.strides[0] // 16) * 16 if len(matrix) < 2 else matrix.strides[0],
                    matrix.itemsize,
                )
                rounded = matrix.dtype == np.float32  # to TF32, as TensorMap says
                return device.tensor_map(whole, argument.box, 128, matrix.shape, strides, rounded)
            return copy_of(argument) if isinstance(argument, np.ndarray) else argument

        report = launch(
            program(kernel),
            blocks,
            kernel.threads,
            numba_args(*map(given, members)),
            device,
            shared=shared,
            cooperative=kernel.cooperative,
            race=self.race,
            metrics=self.metrics,
            burst=self.burst,
        )
        self.reports.append((kernel, report))
        for copy, original in places.values():
            original[...] = copy.host()


@contextlib.contextmanager
def emulated(**options):
    """``with emulated() as emulator``: all launches of kernels of the cuda backend go to the interpreter."""
    emulator, originals = Emulator(**options), (cuda.launch, cuda.prepared, cuda.graph, cuda.limits)
    cuda.launch = emulator.launch
    cuda.prepared = lambda *launch, dependent=False: partial(emulator.launch, *launch)
    cuda.graph = lambda launches: lambda: [launch() for launch in launches]
    cuda.limits = lambda: LIMITS
    try:
        yield emulator
    finally:
        cuda.launch, cuda.prepared, cuda.graph, cuda.limits = originals


@cache
def backend(limits=None):
    """The cuda backend over NumPy's memory, to be used inside :func:`emulated`, for a GPU of such limits."""
    return cuda_backend("the interpreter of PTX", _host_memory(), limits)


def with_faulty_epochs(limits, **modules):
    """A backend whose whole epochs are those of other modules, by name, in place of ``kernels.epoch``'s."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setattr(epoch, name, module)
        return backend.__wrapped__(limits)
