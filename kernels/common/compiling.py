"""How kernels are compiled: without the interpreter's lock, and kept on disk for the next process."""

from numba import cfunc, njit, types

# Division follows IEEE 754, as in NumPy, instead of raising: kernels have nobody to raise to.
OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


def jit(function=None, **options):
    """``numba.njit`` as all kernels use it: ``@jit``, ``@jit(fastmath=…)``, ``jit(function, …)``."""
    if function is None:
        return lambda function: jit(function, **options)
    return njit(**{**OPTIONS, **options})(function)


def c_function(function):
    """A function of four int64 words, compiled to what C and other threads can call."""
    return cfunc(types.void(*[types.int64] * 4), nopython=True, cache=True, error_model="numpy")(function)
