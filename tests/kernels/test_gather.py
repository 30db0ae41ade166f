"""Mini-batches on every backend."""

import numpy as np
import pytest

from fastdigit.bench import checks


@pytest.mark.parametrize(("check", "case"), checks.parameters("gather"))
def test_gather(backend, check, case):
    check(backend.gather, backend, case)


@pytest.mark.parametrize(("check", "case"), checks.parameters("gather_values"))
def test_gather_values(backend, check, case):
    check(backend.gather_values, backend, case)


@pytest.mark.parametrize("case", checks.GATHER, ids=str)
def test_float64(float64_backend, case):
    checks.check_gather(float64_backend.gather, float64_backend, case, "float64")
    checks.check_gather_values(float64_backend.gather_values, float64_backend, case, "float64")


def test_every_pixel_value_lands_in_zero_to_one(backend):
    images = backend.to_device(np.arange(256, dtype=np.uint8)[None, :])
    out = backend.zeros((1, 256), "float32")
    backend.gather(images, backend.to_device(np.array([0])), 0, out)
    backend.synchronize()
    values = np.array(backend.to_host(out))[0]
    assert values[0] == 0
    assert values[255] == 1
    assert (np.diff(values) > 0).all()


def test_an_epoch_takes_every_image_once(backend):
    count, batch = 23, 8
    order = np.random.default_rng(0).permutation(count)
    device_order = backend.to_device(order)
    labels = backend.to_device(np.arange(count, dtype=np.int32))
    seen = []
    for start in range(0, count, batch):
        out = backend.zeros((min(batch, count - start),), "int32")
        backend.gather_values(labels, device_order, start, out)
        backend.synchronize()
        seen += np.array(backend.to_host(out)).tolist()
    assert seen == order.tolist()
