"""Max-norm on every backend."""

import numpy as np
import pytest

from fastdigit.bench import checks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("check", "case"), checks.parameters("max_norm"))
def test_checks(backend, dtype, check, case, record_property):
    if dtype not in backend.precisions:
        pytest.skip(f"{backend.name} computes in {', '.join(backend.precisions)} only")
    record_property("worst error/bound", check(backend.max_norm, backend, case, dtype))


def test_worked_out_by_hand(backend):
    """Columns of length 5, 13 and 1 with a limit of 5: only the second is too long."""
    w = backend.to_device(np.array([[3, 5, 1], [4, -12, 0]], np.float32))
    backend.max_norm(w, 5.0)
    backend.synchronize()
    expected = [[3, 25 / 13, 1], [4, -60 / 13, 0]]
    np.testing.assert_allclose(backend.to_host(w), expected, rtol=1e-6)
