"""The dense layer and its gradients on every backend."""

import numpy as np
import pytest

from fastdigit.bench import cases, checks

OPERATIONS = ("dense", "dense_grad_input", "dense_grad_weight")


@pytest.mark.parametrize(
    ("operation", "check", "case"),
    [
        pytest.param(operation, *case.values, id=f"{operation}-{case.id}")
        for operation in OPERATIONS
        for case in checks.parameters(operation)
    ],
)
def test_float32(backend, operation, check, case, record_property):
    record_property("worst error/bound", float(check(getattr(backend, operation), backend, case)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_float64(float64_backend, operation):
    backend = float64_backend
    for check, of_check in checks.CHECKS[operation]:
        for case in of_check:
            if case in cases.MATMUL_EDGES:
                check(getattr(backend, operation), backend, case, "float64")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_equal_calls_give_equal_bits(backend, operation):
    """Reductions have a fixed order: nothing may depend on which thread comes first."""
    random = np.random.default_rng(0)
    case = cases.Matmul(100, 784, 128)
    x = random.standard_normal((case.batch, case.inputs)).astype("float32")
    w = random.standard_normal((case.inputs, case.outputs)).astype("float32")
    dy = random.standard_normal((case.batch, case.outputs)).astype("float32")
    x, w, b, dy = (checks.Operand("input", backend, a).array for a in (x, w, w[0], dy))

    def run():
        outputs = [
            checks.output("out", backend, shape, "float32")
            for shape in {
                "dense": [dy.shape],
                "dense_grad_input": [x.shape],
                "dense_grad_weight": [w.shape, b.shape],
            }[operation]
        ]
        arrays = [out.array for out in outputs]
        if operation == "dense":
            backend.dense(x, w, b, *arrays, True)
        elif operation == "dense_grad_input":
            backend.dense_grad_input(dy, w, None, *arrays, 1)
        else:
            backend.dense_grad_weight(x, dy, *arrays)
        backend.synchronize()
        return b"".join(out.read().tobytes() for out in outputs)

    first = run()
    assert all(run() == first for _ in range(3))


def test_shapes_that_disagree_are_an_error(backend):
    x, w, b, y = (backend.zeros(shape, "float32") for shape in ((4, 5), (6, 3), (3,), (4, 3)))
    with pytest.raises(ValueError, match=r"."):
        backend.dense(x, w, b, y, False)
