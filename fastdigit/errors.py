"""Every error that fastdigit raises on purpose.

Each derives from :class:`FastdigitError`, so one ``except`` catches them all, and from the
built-in exception that callers would expect. A message is one line: what is wrong, where, and
what to do about it. ``exit_status`` is what the ``fastdigit`` command returns for it.
"""

from numbers import Integral, Real


class FastdigitError(Exception):
    """Base of all fastdigit errors."""

    exit_status = 1


class DataError(FastdigitError, ValueError):
    """Images, labels or a data file that cannot be used as they are."""


class DownloadError(FastdigitError, OSError):
    """Data could not be fetched from any mirror."""


class ConfigError(FastdigitError, ValueError):
    """An argument or option that makes no sense (a negative rate, an unknown optimizer …)."""

    exit_status = 2


class BackendError(FastdigitError, RuntimeError):
    """A backend that was asked for by name cannot run here."""

    exit_status = 2


class DeviceMemoryError(FastdigitError, MemoryError):
    """The memory of a GPU is used up. What fastdigit had set aside there is free again."""


class DeviceError(FastdigitError, RuntimeError):
    """A GPU failed while it computed."""


class CheckpointError(FastdigitError, ValueError):
    """A model or checkpoint file that is damaged, foreign, or made for another network."""


class TrainingDivergedError(FastdigitError, ArithmeticError):
    """The loss or the weights became NaN or infinite. ``step`` counts from 1."""

    def __init__(self, message: str, step: int):
        super().__init__(message, step)  # both, so that pickle can make it anew
        self.step = step

    def __str__(self):
        return self.args[0]


class BusyError(FastdigitError, RuntimeError):
    """The network is being trained by another thread."""


class MissingExtraError(FastdigitError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    exit_status = 2


def check_count(name, value, low=1):
    """ConfigError unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ConfigError(f"{name} must be an integer of at least {low}, got {value!r}")


def check_number(name, value, interval):
    """ConfigError unless ``value`` is a number in the interval, given as in mathematics: "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high
    if not inside or (value == low and interval[0] == "(") or (value == high and interval[-1] == ")"):
        raise ConfigError(f"{name} must be a number in {interval}, got {value!r}")
