"""Arrays out of one allocation."""

from dataclasses import replace

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.kernels.common.arena import ALIGN, Arena
from fastdigit.layout import row_distance
from fastdigit.steps import Buffers


def test_arrays_have_what_was_asked_for_each_its_own_bytes():
    arena = Arena(lambda columns: 16)
    arena.array("vector", (5,), "float32")
    arena.matrix("matrix", 3, 10, np.float64)
    arena.array("nothing", (0,), np.uint16)
    arena.array("bytes", (7,), "uint8")
    asked = []

    def zeros(shape, dtype):
        asked.append((shape, dtype))
        return np.zeros(shape, dtype)

    found = arena.allocate(zeros)
    assert len(asked) == 1
    shapes = {"vector": (5,), "matrix": (3, 10), "nothing": (0,), "bytes": (7,)}
    assert {name: array.shape for name, array in found.items()} == shapes
    dtypes = [np.float32, np.float64, np.uint16, np.uint8]
    assert [array.dtype for array in found.values()] == dtypes
    assert found["matrix"].strides == (16 * 8, 8)
    base = found["vector"].__array_interface__["data"][0]
    for number, array in enumerate(found.values()):
        assert (array.__array_interface__["data"][0] - base) % ALIGN == 0
        assert not array.any()
        array[...] = number + 1
    for number, array in enumerate(found.values()):
        assert (array == number + 1).all()


def test_a_training_allocates_before_its_first_step_and_once_for_all_of_a_kind():
    whole, asked = fd.get_backend("numpy"), []

    def zeros(shape, dtype):
        asked.append(shape)
        return whole.zeros(shape, dtype)

    backend = replace(whole, zeros=zeros)
    random = np.random.default_rng(0)
    images = fd.Images(random.integers(0, 256, (40, 6, 6)).astype(np.uint8), np.arange(40) % 4)
    net = fd.Network([36, 8, 4], backend=backend, seed=0)
    assert len(asked) == 1  # parameters and their gradients
    adam, average = fd.Adam(0.01), fd.WeightAverage(0.9)
    fd.fit(net, images, optimizer=adam, average=average, epochs=1, batch_size=16)
    assert len(asked) == 3  # the optimizer's state, losses, the average; the batch
    fd.fit(net, images, optimizer=adam, average=average, epochs=5, batch_size=16)
    assert len(asked) == 4  # the batch's are there


def test_rows_of_a_batch_are_as_far_apart_as_those_of_weights():
    """An odd number of pieces: kernels find few of a power of two's in a cache."""
    backend = fd.get_backend("numpy")
    buffers = Buffers.allocate(backend, (784, 512, 256, 10), 3, "float32")
    for matrix in (buffers.x, *buffers.y, *buffers.dy):
        assert matrix.strides == (4 * row_distance(matrix.shape[1], backend.row_align), 4)
    assert [y.strides[0] // 4 for y in buffers.y] == [528, 272, 16]


@pytest.mark.parametrize("which", range(3))
def test_out_of_memory_leaves_a_network_as_it_was(which):
    whole, left = fd.get_backend("numpy"), [which]

    def zeros(shape, dtype):
        left[0] -= 1
        if left[0] < 0:
            raise fd.DeviceMemoryError("the GPU's memory is used up")
        return whole.zeros(shape, dtype)

    backend = replace(whole, zeros=zeros)
    images = fd.Images(np.zeros((40, 6, 6), np.uint8), np.arange(40) % 4)

    def train():
        net = fd.Network([36, 8, 4], backend=backend, seed=0)
        before = net.get_parameters()
        try:
            fd.fit(net, images, epochs=1, batch_size=16)
        finally:
            if left[0] < 0:
                for name, value in net.get_parameters().items():
                    np.testing.assert_array_equal(value, before[name])

    with pytest.raises(fd.DeviceMemoryError):
        train()
    left[0] = 10
    train()
