"""What several tests of kernels use."""

from numba import njit


def for_python(inner):
    """A function that only compiled code can call, made callable."""
    return njit(lambda *arguments: inner(*arguments))
