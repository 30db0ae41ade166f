"""What checks compare with: bounds of errors, and operands that show what is written besides them."""

import numpy as np

from fastdigit.layout import round_up

SENTINEL = -777.0  # between the rows of outputs, where nothing may be written


class Rejected(AssertionError):
    """The kernel under test is wrong."""


# --- comparing --------------------------------------------------------------------------------


def unit_roundoff(dtype):
    return float(np.finfo(dtype).eps) / 2


def gamma(terms, dtype):
    """Bound of the relative error of a sum of that many rounded products, in any order.

    Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1. The float64
    reference has an error of its own, which counts when float64 itself is under test.
    """
    return terms * (unit_roundoff(dtype) + unit_roundoff(np.float64))


def within(what, actual, expected, bound):
    """Reject unless |actual - expected| ≤ bound everywhere; the worst ratio of the two.

    Written so that a NaN fails: it is not ≤ anything.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise Rejected(f"{what}: shape {actual.shape}, expected {expected.shape}")
    bound = np.broadcast_to(np.asarray(bound, np.float64), expected.shape)
    error = np.abs(actual - expected)
    good = error <= bound
    if not good.all():
        wrong = np.argwhere(~good)
        at = tuple(wrong[0].tolist())
        raise Rejected(
            f"{what}: element {at} is {actual[at]:.9g}, expected {expected[at]:.9g} ± {bound[at]:.2g} "
            f"({len(wrong)} of {good.size} wrong)"
        )
    return float((error[bound > 0] / bound[bound > 0]).max(initial=0.0))


def same(what, actual, expected):
    """Reject unless the two are equal, element by element (NaN equals nothing)."""
    within(what, actual, expected, 0)


# --- operands ---------------------------------------------------------------------------------


class Operand:
    """A backend's array inside a larger one.

    A matrix has a row before and a row behind it and, if ``spread``, rows further apart than they
    are long, as in a padded parameter buffer; a vector has ``lead`` elements before and behind it.
    """

    def __init__(self, name, backend, values, *, spread=True, lead=None, around=np.nan):
        values = np.asarray(values)
        self.name, self._backend = name, backend
        if values.ndim == 1:
            lead = backend.row_align if lead is None else lead
            shape, self._window = (len(values) + 2 * lead,), slice(lead, lead + len(values))
        else:
            rows, columns = values.shape
            # Always more than the row itself, also where that is a multiple of row_align already.
            distance = round_up(columns + 1, backend.row_align) if spread else columns
            shape, self._window = (rows + 2, distance), (slice(1, rows + 1), slice(columns))
        self._before = np.full(shape, around if values.dtype.kind == "f" else 99, values.dtype)
        self._before[self._window] = values
        self._whole = backend.to_device(self._before.copy())
        self.array = self._whole[self._window]

    def read(self):
        """The values on the host; Rejected if anything around them was written."""
        whole = np.array(self._backend.to_host(self._whole))
        values = whole[self._window].copy()
        whole[self._window] = self._before[self._window]
        if whole.tobytes() != self._before.tobytes():  # bits: NaN is equal to itself
            raise Rejected(f"{self.name}: elements outside of the array were written")
        return values

    def must_be_unchanged(self):
        if self.read().tobytes() != self._before[self._window].tobytes():
            raise Rejected(f"{self.name}: an input was written to")


def output(name, backend, shape, dtype, **place):
    """An operand to write to, full of NaN (of 77 for integers)."""
    poison = np.nan if np.dtype(dtype).kind == "f" else 77
    return Operand(name, backend, np.full(shape, poison, dtype), around=SENTINEL, **place)


def random_for(case):
    """A generator that depends on the case alone: a failure can be repeated."""
    return np.random.default_rng(list(str(case).encode()))


def both_layouts(check):
    """The check with rows apart from each other, and again with contiguous arrays."""

    def both(operation, backend, case, dtype="float32"):
        return max(check(operation, backend, case, dtype, spread) for spread in (True, False))

    both.__name__, both.__doc__ = check.__name__, check.__doc__
    return both
