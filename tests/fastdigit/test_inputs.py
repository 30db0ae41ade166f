"""What users pass as images, labels and weights: converted where it is safe, else an error that
names the place; never silently something else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastdigit as fd
from fastdigit.inputs import as_inputs, as_targets, as_weights, unpack

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 4)).astype(np.uint8)
FLAT = PIXELS.reshape(5, 16)


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u2", "<i8"])
def test_integers_are_pixels(dtype):
    result = as_inputs(PIXELS.astype(dtype), 16)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, FLAT)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "longdouble"])
@pytest.mark.parametrize("wanted", ["float32", "float64"])
def test_floats_are_taken_as_they_are(dtype, wanted):
    images = (PIXELS / 512).astype(dtype)  # exact in every one of these
    result = as_inputs(images, 16, dtype=wanted)
    assert result.dtype == np.dtype(wanted)
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, FLAT / 512)


def test_booleans_are_black_and_white():
    result = as_inputs(PIXELS > 100, 16)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, FLAT > 100)


def test_nested_lists_are_images():
    np.testing.assert_array_equal(as_inputs(PIXELS.tolist(), 16), FLAT)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "rearranged",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.repeat(a, 3, axis=2)[:, :, ::3],
        lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
        lambda a: np.ascontiguousarray(a.transpose(2, 1, 0)).transpose(2, 1, 0),
    ],
    ids=["fortran", "every second", "wide pixels", "negative stride", "transposed"],
)
def test_memory_order_makes_no_difference(dtype, rearranged):
    images = rearranged((PIXELS // 2 * 2 / 512).astype(dtype) if dtype == "float32" else PIXELS)
    result = as_inputs(images, 16)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, images.reshape(5, 16))


def test_read_only_images_are_fine_and_nothing_is_written():
    images = PIXELS.copy()
    images.flags.writeable = False
    np.testing.assert_array_equal(as_inputs(images, 16), FLAT)
    floats = np.full((2, 16), 0.5)
    as_inputs(floats, 16)
    assert (floats == 0.5).all()


@pytest.mark.parametrize(
    "shape", [(5, 16), (5, 4, 4), (5, 2, 8), (5, 4, 4, 1), (5, 1, 16), (1, 16), (1, 4, 4), (0, 16), (0, 4, 4)]
)
def test_shapes_of_batches(shape):
    assert as_inputs(np.zeros(shape, np.uint8), 16).shape == (shape[0], 16)


@pytest.mark.parametrize("shape", [(16,), (4, 4), (4, 4, 1)])
def test_one_image_alone(shape):
    image = PIXELS[2].reshape(shape)
    np.testing.assert_array_equal(as_inputs(image, 16), FLAT[2:3])


@pytest.mark.parametrize("shape", [(), (15,), (5, 15), (5, 17), (5, 4, 5), (16, 5), (0,), (0, 15), (3, 3, 3)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(fd.DataError) as error:
        as_inputs(np.zeros(shape, np.uint8), 16)
    assert str(list(shape)) in str(error.value)
    assert "[N, 16] or [N, 4, 4]" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("row", [0, 3, 4])
def test_values_that_are_not_finite_name_their_row(value, row):
    images = np.full((5, 4, 4), 0.5)
    images[row, 1, 2] = value
    with pytest.raises(fd.DataError, match=f"row {row} "):
        as_inputs(images, 16)


def test_what_overflows_float32_may_fit_float64():
    images = np.full((1, 16), 1e39)
    assert as_inputs(images, 16, dtype="float64", pixels=False)[0, 0] == 1e39


@pytest.mark.parametrize(
    ("value", "dtype"), [(-1, "i2"), (256, "i2"), (2**40, "i8"), (2**63, "u8"), (-1, "i1")]
)
def test_integers_outside_a_byte_name_row_and_value(value, dtype):
    images = np.zeros((5, 16), dtype)
    images[3, 7] = value
    with pytest.raises(fd.DataError, match=f"row 3 holds {value}, "):
        as_inputs(images, 16)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 16), complex), np.full((2, 16), "a"), np.full((2, 16), None), np.zeros((2, 16), "M8[s]")],
    ids=["complex", "text", "object", "time"],
)
def test_what_is_no_number_is_refused(images):
    with pytest.raises(fd.DataError, match="must be numbers"):
        as_inputs(images, 16)


def test_pixels_as_floats_give_a_warning():
    with pytest.warns(UserWarning, match="divide by 255"):
        as_inputs(PIXELS.astype("float32"), 16)


@pytest.mark.parametrize("images", [PIXELS / 255, (PIXELS > 9).astype(float), PIXELS / 100, -PIXELS / 255.0])
def test_other_floats_give_none(images):
    as_inputs(images, 16)  # warnings are errors here


def test_features_that_are_no_pixels_give_none():
    as_inputs(PIXELS.astype("float32"), 16, pixels=False)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5)))
def test_uint8_in_any_shape_of_the_right_size(images):
    size = images[0].size
    result = as_inputs(images, size)
    if images.shape[0] != 1 and images.size == size:
        assert result.shape == (1, size)
    else:
        np.testing.assert_array_equal(result, images.reshape(len(images), size))


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "i4", "i8", "u8", "f4", "f8", ">i4"])
@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (3, 1, 0, 2), (8, 3, 5, 100)])
def test_labels_become_positions_among_the_classes(dtype, classes):
    expected = np.array([0, 3, 1, 1, 2])
    labels = np.array(classes)[expected].astype(dtype)
    result = as_targets(labels, classes, 5)
    assert result.dtype == np.int32
    assert result.tolist() == expected.tolist()


@given(
    classes=st.sampled_from([10, 10**6]).flatmap(  # looked up in a table, or searched for
        lambda most: st.lists(st.integers(-most, most), min_size=1, max_size=12, unique=True)
    ),
    draws=st.lists(st.integers(0, 10**6), max_size=30),
)
def test_any_classes_in_any_order(classes, draws):
    expected = [draw % len(classes) for draw in draws]
    labels = np.array([classes[index] for index in expected], np.int64)
    assert as_targets(labels, classes, len(labels)).tolist() == expected


def test_booleans_are_two_classes():
    assert as_targets([True, False], (0, 1), 2).tolist() == [1, 0]


@pytest.mark.parametrize("label", [-1, 4, 7, 99, 2**40])
def test_a_label_that_is_no_class_names_itself_and_its_row(label):
    with pytest.raises(fd.DataError, match=rf"label {label} of row 2 .*\(3, 5, 8\)"):
        as_targets([3, 8, label, 5], (3, 5, 8), 4)


def test_labels_of_a_dtype_that_cannot_hold_all_classes():
    assert as_targets(np.array([3, 3], np.uint8), (-5, 3), 2).tolist() == [1, 1]
    for label in (2**63, 250):
        with pytest.raises(fd.DataError, match=f"label {label} of row 1"):
            as_targets(np.array([3, label], np.uint64), (-5, 3), 2)


@pytest.mark.parametrize(
    "labels",
    [[0, 1], [0, 1, 2, 0], [[0], [1], [2]], 5, np.eye(3, dtype=int)],
    ids=["too few", "too many", "a column", "a number", "one-hot"],
)
def test_labels_of_another_shape(labels):
    with pytest.raises(fd.DataError, match="3 images need 3 labels"):
        as_targets(labels, (0, 1, 2), 3)


@pytest.mark.parametrize("labels", [[0.5, 1, 2], [np.nan, 1, 2], ["0", "1", "2"], [None, 1, 2]])
def test_labels_that_are_no_whole_numbers(labels):
    with pytest.raises(fd.DataError, match=r"must be (whole )?numbers"):
        as_targets(labels, (0, 1, 2), 3)


def test_an_infinite_label():
    with pytest.raises(fd.DataError, match="row 1"):
        as_targets([0.0, np.inf, 1.0], (0, 1, 2), 3)


# --- weights ----------------------------------------------------------------------------------


def test_weights_are_brought_to_a_mean_of_one():
    result = as_weights([1, 2, 3, 0], 4)
    np.testing.assert_allclose(result, [2 / 3, 4 / 3, 2, 0], rtol=1e-15)
    for scale in (1e308, 1e-310):  # whose sum overflows, whose reciprocal does
        np.testing.assert_allclose(as_weights(np.full(3, scale), 3), np.ones(3))
    np.testing.assert_array_equal(as_weights(np.full(7, 0.125), 7), np.ones(7))


def test_no_weights_stay_none():
    assert as_weights(None, 4) is None


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_bad_weight_names_its_row(weight):
    with pytest.raises(fd.DataError, match="row 2"):
        as_weights([1, 1, weight], 3)


@pytest.mark.parametrize("weights", [[1, 1], [[1, 1, 1]], 1.0])
def test_weights_of_another_shape(weights):
    with pytest.raises(fd.DataError, match="3 images need 3 weights"):
        as_weights(weights, 3)


def test_weights_that_are_all_zero():
    with pytest.raises(fd.DataError, match="all zero"):
        as_weights([0.0, 0.0], 2)


# --- data sets --------------------------------------------------------------------------------


def test_images_and_labels_come_as_an_object_or_a_pair():
    labels = np.arange(5)
    for data in (fd.Images(PIXELS, labels), (PIXELS, labels)):
        images, got = unpack(data)
        np.testing.assert_array_equal(images, PIXELS)
        np.testing.assert_array_equal(got, labels)


@pytest.mark.parametrize("data", [PIXELS, (PIXELS,), (PIXELS, 1, 2), None, "train"])
def test_anything_else_is_refused(data):
    with pytest.raises(fd.DataError, match="images and labels"):
        unpack(data)


@pytest.mark.parametrize("ragged", [[[1, 2], [3]], [[0.1, 0.2], 0.3]])
def test_ragged_rows_are_no_array(ragged):
    with pytest.raises(fd.DataError, match="images are no array"):
        as_inputs(ragged, 2)
    with pytest.raises(fd.DataError, match="labels are no array"):
        as_targets(ragged, (0, 1), 2)
    with pytest.raises(fd.DataError, match="sample weights are no array"):
        as_weights(ragged, 2)


def test_masked_entries_are_refused():
    with pytest.raises(fd.DataError, match="masked"):
        as_inputs(np.ma.array([[1.0, 0.5]], mask=[[True, False]]), 2)


def test_one_input_alone():
    assert as_inputs([0.5], 1).shape == (1, 1)
    assert as_inputs([[0.5], [0.25]], 1).shape == (2, 1)
