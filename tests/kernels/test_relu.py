"""The unfused ReLU and its gradient.

They are no part of a Backend (networks use them fused into the products), so each implementation
is named here.
"""

from functools import partial

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import checks
from fastdigit.kernels.relu import reference

IMPLEMENTATIONS = {
    ("reference", "relu"): (partial(reference.relu, np), "numpy"),
    ("reference", "relu_grad"): (partial(reference.relu_grad, np), "numpy"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("implementation", "name"), IMPLEMENTATIONS)
def test_checks(implementation, name, dtype):
    operation, arrays_of = IMPLEMENTATIONS[implementation, name]
    for check, of_check in checks.CHECKS[name]:
        for case in of_check:
            check(operation, fd.get_backend(arrays_of), case, dtype)
