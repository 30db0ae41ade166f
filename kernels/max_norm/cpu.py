"""Max-norm on the CPU: vectors across columns, each summed from its first row to its last."""

import math

import numpy as np

from ..common.compiling import inner
from ..common.memory import ints, matrix, matrix_address, number, row, share, word_of
from ..common.team import Kernel, thread_count

# Elements a thread: so many take some 100 µs. Others sleep by the time that weights are shortened, and
# to wake one may take as long.
SHARE = 262_144

CACHE_LINE = 16  # elements: shares end between cache lines, so that no two threads write one


@inner
def max_norm_columns(w, limit, left, right):
    """Columns ``left`` … ``right`` - 1 of :func:`max_norm`."""
    columns = right - left
    factors = np.zeros(columns, np.float64)  # first the sums of squares
    for r in range(w.shape[0]):
        numbers = row(w, r)[left:right]
        for c in range(columns):
            factors[c] += np.float64(numbers[c]) * np.float64(numbers[c])
    short = True
    for c in range(columns):
        norm = math.sqrt(factors[c])
        factors[c] = 1.0 if norm <= limit else limit / norm  # NaN is not ≤ limit
        short &= norm <= limit
    if short:
        return
    for r in range(w.shape[0]):
        numbers = row(w, r)[left:right]
        for c in range(columns):
            numbers[c] = np.float32(np.float64(numbers[c]) * factors[c])


@Kernel
def _max_norm(thread, threads, barrier, arguments):
    words = ints(arguments, 5)
    rows, columns = words[0], words[1]
    first, last = share(-(-columns // CACHE_LINE), thread, threads)
    left, right = first * CACHE_LINE, min(last * CACHE_LINE, columns)
    max_norm_columns(matrix(words[2], words[3], rows, columns), number(arguments, 4), left, right)


def max_norm(w, limit, threads=None):
    """w_o ← w_o · min(1, limit / |w_o|) for each column w_o: what comes in to one unit.

    Shapes: w [I, O]; its rows may be apart. Dtypes: float32; limit is a number > 0.
    ``threads``: at most so many; the bits do not depend on it.
    Writes: w; a column that is short enough keeps its bits, one that is not finite becomes NaN.
    Errors: TypeError for another dtype, ValueError for rows that overlap.
    Cost: 2·I·O flops to measure, I·O to shorten; reads 2·I·O numbers, writes I·O.
    Source: Srivastava et al., JMLR 15 (2014), section 5.1.
    """
    words = [*w.shape, *matrix_address("w", w, np.float32, written=True), word_of(limit)]
    _max_norm(words, min(thread_count(threads), max(1, w.size // SHARE)))
