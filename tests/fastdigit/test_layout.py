"""Where parameters lie in the flat buffer: apart from each other, padded, and as views."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdigit as fd
from fastdigit.layout import round_up

layouts = st.builds(
    fd.Layout,
    st.lists(st.integers(1, 40), min_size=2, max_size=6).map(tuple),
    st.sampled_from([1, 4, 8, 16, 64]),
)


@given(n=st.integers(0, 10_000), multiple=st.integers(1, 300))
def test_round_up_is_the_next_multiple(n, multiple):
    result = round_up(n, multiple)
    assert result % multiple == 0
    assert n <= result < n + multiple


@given(layouts)
def test_tensors_are_disjoint_and_the_rest_is_padding(layout):
    owners = np.zeros(layout.size, int)
    for view in layout.views(owners).values():
        view += 1
    assert owners.max() == 1
    assert owners.sum() == layout.parameter_count
    assert owners.sum() == sum(i * o + o for i, o in pairwise(layout.layer_sizes))


@given(layouts)
def test_every_row_begins_on_a_multiple_of_the_alignment(layout):
    flat = np.zeros(layout.size, np.float32)
    start = flat.__array_interface__["data"][0]
    for name, view in layout.views(flat).items():
        rows = view if view.ndim == 2 else [view]
        for row in rows:
            address = row.__array_interface__["data"][0]
            assert (address - start) // 4 % layout.row_align == 0, name
            assert row.strides == (4,)


@given(layouts)
def test_names_shapes_and_order(layout):
    flat = np.zeros(layout.size)
    views = layout.views(flat)
    sizes = layout.layer_sizes
    assert list(views) == [f"{kind}{layer}" for layer in range(1, len(sizes)) for kind in "wb"]
    offsets = [tensor.offset for tensor in layout.tensors]
    assert offsets == sorted(offsets)
    for layer, (w, b) in enumerate(layout.layers(flat), start=1):
        assert w.shape == views[f"w{layer}"].shape == (sizes[layer - 1], sizes[layer])
        assert b.shape == views[f"b{layer}"].shape == (sizes[layer],)


@given(layouts)
def test_views_write_through(layout):
    flat = np.zeros(layout.size)
    for number, view in enumerate(layout.views(flat).values(), start=1):
        view[...] = number
    for number, tensor in enumerate(layout.tensors, start=1):
        assert (tensor.view(flat) == number).all()
        # One element only, at the place that row-major order with the padded row gives.
        last = tensor.offset + (tensor.shape[0] - 1) * (tensor.row if len(tensor.shape) == 2 else 1)
        last += tensor.shape[1] - 1 if len(tensor.shape) == 2 else 0
        assert flat[last] == number


def test_an_example_by_hand():
    layout = fd.Layout((3, 5, 2), row_align=4)
    assert [(t.name, t.offset, t.row) for t in layout.tensors] == [
        ("w1", 0, 8),
        ("b1", 24, 8),
        ("w2", 32, 4),
        ("b2", 52, 4),
    ]
    assert layout.size == 56
    assert layout.parameter_count == 3 * 5 + 5 + 5 * 2 + 2


@pytest.mark.parametrize(
    "sizes", [(), (784,), (784, 0, 10), (784, -1), (784, 10.0), (784, "10"), (True, 10), (784, None)]
)
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(fd.ConfigError):
        fd.Layout(sizes)
