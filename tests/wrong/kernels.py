"""Kernels with one fault each, of the kind that people write, and who must notice.

Each is registered with the operation that it claims to be and, for every check that must reject
it, a piece of the message. Checks that are not named must accept it: so it is also seen what a
check does *not* look at.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

import fastdigit as fd
from fastdigit.bench import checks
from fastdigit.kernels.augment.reference import ERASE_BLOCK, FAINTNESS, ONE, SIDE
from fastdigit.kernels.relu import reference as relu_reference

right = fd.get_backend("numpy")


@dataclass(frozen=True)
class Wrong:
    operation: str
    kernel: object
    rejected_by: dict  # name of a check → part of its message

    def __str__(self):
        return f"{self.operation}-{self.kernel.__name__}"


WRONG = []


def wrong(operation, **rejected_by):
    def register(kernel):
        WRONG.append(Wrong(operation, kernel, rejected_by))
        return kernel

    return register


def rows_as_if_contiguous(matrix):
    """What a kernel sees that forgets that rows are further apart than they are long."""
    return as_strided(matrix, strides=(matrix.shape[1] * matrix.itemsize, matrix.itemsize))


def whole_vectors(matrix, lanes=16):
    """The matrix up to the next multiple of 16 columns, as far as the row reaches in memory."""
    width = min(-(-matrix.shape[1] // lanes) * lanes, matrix.strides[0] // matrix.itemsize)
    return as_strided(matrix, (matrix.shape[0], width), matrix.strides)


def with_bits(a, bits):
    """float32 rounded to that many bits of mantissa: 10 for TF32, 7 for bfloat16."""
    shift = np.uint32(23 - bits)
    half = np.uint32(1) << (shift - np.uint32(1))
    return ((np.ascontiguousarray(a).view(np.uint32) + half) >> shift << shift).view(np.float32)


# --- dense ------------------------------------------------------------------------------------


@wrong("dense", check_dense="y: ")
def bias_forgotten(x, w, b, y, relu):
    right.dense(x, w, np.zeros_like(b), y, relu)


@wrong("dense", check_dense="y with ReLU: ")
def bias_added_after_the_relu(x, w, b, y, relu):
    right.dense(x, w, np.zeros_like(b), y, relu)
    y += b


@wrong("dense", check_dense="y with ReLU: ")
def relu_forgotten(x, w, b, y, relu):
    right.dense(x, w, b, y, False)


@wrong("dense", check_dense="y: ")
def relu_always(x, w, b, y, relu):
    right.dense(x, w, b, y, True)


@wrong("dense", check_dense_passes_nan_on="a NaN in the input disappeared")
def relu_that_swallows_nan(x, w, b, y, relu):
    right.dense(x, w, b, y, False)
    if relu:
        y[...] = np.where(y > 0, y, 0)


@wrong("dense", check_dense="y: ")
def weight_stored_the_other_way_round(x, w, b, y, relu):
    right.dense(x, w.reshape(w.shape[::-1]).T, b, y, relu)


@wrong("dense", check_dense="y: ", check_dense_passes_nan_on="y of the images without NaN")
def last_row_not_written(x, w, b, y, relu):
    right.dense(x[:-1], w, b, y[:-1], relu)


@wrong("dense", check_dense="y: ", check_dense_passes_nan_on="a NaN in the input disappeared")
def last_column_computed_as_zero(x, w, b, y, relu):
    right.dense(x, w, b, y, relu)
    y[:, -1] = 0


@wrong("dense", check_dense="is nan", check_dense_passes_nan_on="is nan")
def only_whole_tiles_of_16_columns(x, w, b, y, relu):
    whole = y.shape[1] // 16 * 16
    right.dense(x, w[:, :whole], b[:whole], y[:, :whole], relu)


@wrong("dense", check_dense="y: ")
def no_tile_beyond_row_64(x, w, b, y, relu):
    right.dense(x[:64], w, b, y[:64], relu)


@wrong("dense", check_dense="y: ", check_dense_passes_nan_on="y of the images without NaN")
def sum_cut_to_a_multiple_of_4(x, w, b, y, relu):
    terms = x.shape[1] // 4 * 4
    right.dense(x[:, :terms], w[:terms], b, y, relu)
    y[np.isnan(x[:, 0])] = np.nan


@wrong("dense", check_dense="is nan", check_dense_passes_nan_on="is nan")
def accumulates_into_its_output(x, w, b, y, relu):
    y += x @ w + b
    if relu:
        np.maximum(y, 0, out=y)


@wrong("dense", check_dense="y: ", check_dense_passes_nan_on="is nan")
def forgets_that_rows_of_w_are_apart(x, w, b, y, relu):
    right.dense(x, rows_as_if_contiguous(w), b, y, relu)


@wrong("dense", check_dense="y: elements outside", check_dense_passes_nan_on="y: elements outside")
def stores_whole_vectors(x, w, b, y, relu):
    right.dense(x, w, b, y, relu)
    whole_vectors(y)[:, y.shape[1] :] = 0


@wrong("dense", check_dense="x: an input was written to")
def works_in_its_input(x, w, b, y, relu):
    right.dense(x, w, b, y, relu)
    x *= 0.5


@wrong("dense", check_dense="y: ")
def adds_up_in_float16(x, w, b, y, relu):
    right.dense(x.astype(np.float16), w.astype(np.float16), b, y, relu)


@wrong("dense", check_dense="y: ")
def inputs_rounded_to_tf32(x, w, b, y, relu):
    right.dense(with_bits(x, 10), with_bits(w, 10), b, y, relu)


@wrong("dense", check_dense="y: ")
def inputs_rounded_to_bfloat16(x, w, b, y, relu):
    right.dense(with_bits(x, 7), with_bits(w, 7), b, y, relu)


@wrong("dense", check_dense="y: ")
def one_term_of_the_sum_twice(x, w, b, y, relu):
    """What a missing barrier does: a stale tile is multiplied once more."""
    right.dense(x, w, b, y, False)
    y += x[:, -1:] * w[-1:] * (x.shape[1] > 32)
    if relu:
        np.maximum(y, 0, out=y)


# --- gradient of the input --------------------------------------------------------------------


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1:")
def mask_forgotten(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, None, dx, scale)


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1:")
def mask_passes_zero(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, None, dx, scale)
    if y_below is not None:
        dx *= y_below >= 0


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1:")
def mask_stops_at_minus_zero_only(dy, w, y_below, dx, scale):
    """A test of the sign bit instead of a comparison."""
    right.dense_grad_input(dy, w, None, dx, scale)
    if y_below is not None:
        dx *= ~np.signbit(y_below)


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1:")
def mask_of_the_gradient_itself(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, None, dx, scale)
    if y_below is not None:
        dx *= dx > 0


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1:")
def mask_takes_tiny_for_zero(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, None if y_below is None else np.where(y_below > 1e-8, 1, 0), dx, scale)


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1:")
def derivative_by_value_instead_of_mask(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, y_below, dx, scale)
    if y_below is not None:
        dx *= y_below


@wrong("dense_grad_input", check_dense_grad_input="dx, no mask, scale 1.25")
def scale_forgotten(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, y_below, dx, 1)


@wrong("dense_grad_input", check_dense_grad_input="dx, no mask, scale 1.25")
def scale_only_with_a_mask(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, y_below, dx, 1 if y_below is None else scale)


@wrong("dense_grad_input", check_dense_grad_input="dx, no mask, scale 1.25")
def divided_by_the_scale(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, y_below, dx, 1 / scale)


@wrong("dense_grad_input", check_dense_grad_input="dx, no mask, scale 1:")
def weight_not_transposed(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w.reshape(w.shape[::-1]).T, y_below, dx, scale)


@wrong("dense_grad_input", check_dense_grad_input="is nan")
def input_gradient_accumulates(dy, w, y_below, dx, scale):
    dx += scale * dy @ w.T * (1 if y_below is None else y_below > 0)


@wrong("dense_grad_input", check_dense_grad_input="is nan")
def last_three_columns_not_written(dy, w, y_below, dx, scale):
    kept = max(1, dx.shape[1] - 3)
    below = None if y_below is None else y_below[:, :kept]
    right.dense_grad_input(dy, w[:kept], below, dx[:, :kept], scale)


@wrong("dense_grad_input", check_dense_grad_input="dx, masked, scale 1: ")
def forgets_that_rows_of_the_mask_are_apart(dy, w, y_below, dx, scale):
    below = None if y_below is None else rows_as_if_contiguous(y_below)
    right.dense_grad_input(dy, w, below, dx, scale)


@wrong("dense_grad_input", check_dense_grad_input="dx: elements outside")
def stores_whole_vectors_of_dx(dy, w, y_below, dx, scale):
    right.dense_grad_input(dy, w, y_below, dx, scale)
    whole_vectors(dx)[:, dx.shape[1] :] = 0


# --- gradient of the weight -------------------------------------------------------------------


@wrong("dense_grad_weight", check_dense_grad_weight="db: ")
def bias_gradient_forgotten(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, np.empty_like(db))


@wrong("dense_grad_weight", check_dense_grad_weight="db: ")
def bias_gradient_is_the_mean(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, db)
    db /= len(dy)


@wrong("dense_grad_weight", check_dense_grad_weight="db: ")
def bias_gradient_along_the_wrong_axis(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, db)
    db[...] = np.resize(dy.sum(axis=1), db.shape)


@wrong("dense_grad_weight", check_dense_grad_weight="db: ")
def bias_gradient_added_up_in_float16(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, db)
    db[...] = dy.astype(np.float16).sum(axis=0)


@wrong("dense_grad_weight", check_dense_grad_weight="dw: ")
def divided_by_the_batch_once_more(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, db)
    dw /= len(dy)


@wrong("dense_grad_weight", check_dense_grad_weight="dw: ")
def batch_cut_to_a_multiple_of_4(x, dy, dw, db):
    right.dense_grad_weight(x, dy, np.empty_like(dw), db)
    rows = len(x) // 4 * 4
    right.dense_grad_weight(x[:rows], dy[:rows], dw, np.empty_like(db))


@wrong("dense_grad_weight", check_dense_grad_weight="dw: ")
def last_image_left_out(x, dy, dw, db):
    right.dense_grad_weight(x[:-1], dy[:-1], dw, db)


@wrong("dense_grad_weight", check_dense_grad_weight="is nan")
def weight_gradient_accumulates(x, dy, dw, db):
    dw += x.T @ dy
    db[...] = dy.sum(axis=0)


@wrong("dense_grad_weight", check_dense_grad_weight="db: element (0,) is nan")
def bias_gradient_accumulates(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, np.empty_like(db))
    db += dy.sum(axis=0)


@wrong("dense_grad_weight", check_dense_grad_weight="dw: elements outside")
def stores_whole_vectors_of_dw(x, dy, dw, db):
    right.dense_grad_weight(x, dy, dw, db)
    whole_vectors(dw)[:, dw.shape[1] :] = 0


# --- ReLU -------------------------------------------------------------------------------------


@wrong("relu", check_relu="a NaN in the input disappeared")
def nan_becomes_zero(x, y):
    y[...] = np.where(x > 0, x, 0)


@wrong("relu", check_relu="y: ")
def absolute_value(x, y):
    np.abs(x, out=y)


@wrong("relu", check_relu="y: ")
def leaks(x, y):
    np.maximum(x, 0.01 * x, out=y)


@wrong("relu_grad", check_relu_grad="dx: ")
def gradient_passes_at_zero(y, dy, dx):
    np.multiply(dy, y >= 0, out=dx)


@wrong("relu_grad", check_relu_grad="dx: ")
def mask_of_dy(y, dy, dx):
    np.maximum(dy, 0, out=dx)


@wrong("relu_grad", check_relu_grad="dx: ")
def zeroed_before_it_is_read(y, dy, dx):
    """Right unless dx is dy."""
    dx[...] = 0
    np.copyto(dx, dy, where=y > 0)


# --- softmax and cross-entropy ------------------------------------------------------------------


@wrong("softmax", check_softmax="p: ")
def softmax_without_the_row_maximum(z, p):
    with np.errstate(over="ignore", invalid="ignore"):
        np.exp(z, out=p)
        p /= p.sum(axis=1, keepdims=True)


@wrong("softmax", check_softmax="p: ")
def maximum_of_the_whole_batch(z, p):
    """A row that lies far below the others underflows to 0/0."""
    with np.errstate(invalid="ignore"):
        np.exp(z - z.max(), out=p)
        p /= p.sum(axis=1, keepdims=True)


@wrong("softmax", check_softmax="p: ")
def columns_instead_of_rows(z, p):
    np.exp(z - z.max(axis=0), out=p)
    p /= p.sum(axis=0)


@wrong("softmax", check_softmax="p: ")
def not_divided_by_the_sum(z, p):
    np.exp(z - z.max(axis=1, keepdims=True), out=p)


@wrong("softmax", check_softmax="p: ")
def exponential_good_to_three_digits(z, p):
    right.softmax(z, p)
    p *= 1 + 1e-3 * np.sign(z)


@wrong("softmax_xent", check_softmax_xent="dz: ")
def gradient_not_divided_by_the_batch(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    dz *= len(t)


@wrong("softmax_xent", check_softmax_xent="dz: ")
def gradient_divided_by_the_usual_batch(z, t, weight, loss, correct, dz, smoothing):
    """The last batch is shorter."""
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    dz *= len(t) / 128


@wrong("softmax_xent", check_softmax_xent="dz: ")
def gradient_divided_by_the_classes(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    dz *= len(t) / z.shape[1]


@wrong("softmax_xent", check_softmax_xent="dz: ")
def target_not_subtracted(z, t, weight, loss, correct, dz, smoothing):
    factor = 1 if weight is None else weight
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    dz[np.arange(len(t)), t] += np.float32(1 / len(t)) * factor


@wrong("softmax_xent", check_softmax_xent="dz: ")
def gradient_of_the_wrong_sign(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    np.negative(dz, out=dz)


@wrong("softmax_xent", check_softmax_xent="loss: ")
def cross_entropy_without_the_row_maximum(z, t, weight, loss, correct, dz, smoothing):
    logits = z.copy()
    right.softmax_xent(logits, t, weight, np.empty_like(loss), correct, dz, smoothing)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        loss[...] = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(t)), t]
        if weight is not None:
            loss *= weight


@wrong("softmax_xent", check_softmax_xent="loss: ")
def logarithm_of_a_clamped_probability(z, t, weight, loss, correct, dz, smoothing):
    """Finite for every logit, and wrong for confident mistakes: they should cost most."""
    p = np.empty_like(loss, shape=z.shape)
    right.softmax(z, p)
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    loss[...] = -np.log(np.maximum(p[np.arange(len(t)), t], 1e-7)) * (1 if weight is None else weight)


@wrong("softmax_xent", check_softmax_xent="loss: ")
def loss_is_the_mean(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    loss[...] = loss.mean()


@wrong("softmax_xent", check_softmax_xent="loss: ")
def loss_divided_by_the_batch(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    loss /= len(t)


@wrong("softmax_xent", check_softmax_xent="loss: ")
def weights_ignored(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, None, loss, correct, dz, smoothing)


@wrong("softmax_xent", check_softmax_xent="dz: ")
def weights_in_the_loss_only(z, t, weight, loss, correct, dz, smoothing):
    logits = z.copy()
    right.softmax_xent(logits, t, None, loss, correct, dz, smoothing)
    right.softmax_xent(logits, t, weight, loss, correct, np.empty_like(logits), smoothing)


@wrong("softmax_xent", check_softmax_xent="correct: ")
def every_tie_counts_as_correct(z, t, weight, loss, correct, dz, smoothing):
    largest = z[np.arange(len(t)), t] >= z.max(axis=1)
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    correct[...] = largest


@wrong("softmax_xent", check_softmax_xent="correct: ")
def correct_counts_up(z, t, weight, loss, correct, dz, smoothing):
    before = correct.copy()
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    correct += before


@wrong("softmax_xent", check_softmax_xent="loss: ")
def target_logit_read_after_it_was_overwritten(z, t, weight, loss, correct, dz, smoothing):
    """Right unless dz is z."""
    m, rows = z.max(axis=1), np.arange(len(t))
    total = np.exp(z - m[:, None]).sum(axis=1)
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    loss[...] = (np.log(total) + m - z[rows, t]) * (1 if weight is None else weight)


@wrong("softmax_xent", check_softmax_xent="dz: elements outside")
def gradient_stored_in_whole_vectors(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, smoothing)
    whole_vectors(dz)[:, dz.shape[1] :] = 0


@wrong("softmax_xent", check_softmax_xent="loss: ")
def smoothing_ignored(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z, t, weight, loss, correct, dz, 0.0)


@wrong("softmax_xent", check_softmax_xent="loss: ")
def smoothing_in_the_gradient_only(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z.copy(), t, weight, loss, correct, np.empty_like(dz), 0.0)
    right.softmax_xent(z, t, weight, np.empty_like(loss), correct, dz, smoothing)


@wrong("softmax_xent", check_softmax_xent="dz: ")
def smoothing_in_the_loss_only(z, t, weight, loss, correct, dz, smoothing):
    right.softmax_xent(z.copy(), t, weight, loss, correct, np.empty_like(dz), smoothing)
    right.softmax_xent(z, t, weight, np.empty_like(loss), correct, dz, 0.0)


@wrong("softmax_xent", check_softmax_xent="loss: ")
def smoothed_over_the_other_classes_alone(z, t, weight, loss, correct, dz, smoothing):
    """The target keeps 1 - s in all, not 1 - s + s/C: another convention."""
    classes = z.shape[1]
    share = min(smoothing * classes / max(1, classes - 1), 0.999)
    right.softmax_xent(z, t, weight, loss, correct, dz, share)


@wrong("softmax_xent", check_softmax_xent="loss: ")
def smoothed_by_the_share_of_one_class(z, t, weight, loss, correct, dz, smoothing):
    """s for each class instead of s/C."""
    right.softmax_xent(z, t, weight, loss, correct, dz, min(smoothing * z.shape[1], 0.999))


# --- dropout ----------------------------------------------------------------------------------


@wrong("dropout", check_dropout="y: ", check_dropout_threshold="element of word")
def kept_values_not_rescaled(y, p, key, step):
    right.dropout(y, p, key, step)
    y *= 1 - p


@wrong("dropout", check_dropout="y: ", check_dropout_threshold="element of word")
def rescaled_by_the_wrong_probability(y, p, key, step):
    right.dropout(y, p, key, step)
    y *= (1 - p) / max(p, 1e-3)


@wrong(
    "dropout",
    check_dropout="y: ",
    check_dropout_threshold="element of word",
    check_dropout_rate="share dropped",
)
def keeps_what_it_should_drop(y, p, key, step):
    mask = np.ones_like(y)
    right.dropout(mask, p, key, step)
    y *= (mask == 0) / (1 - p)


@wrong("dropout", check_dropout_threshold="element of word")
def keeps_only_above_the_threshold(y, p, key, step):
    """> instead of ≥: one word in 2³²."""
    right.dropout(y, (np.floor(p * 2**32) + 1) / 2**32 if p else 0.0, key, step)
    y *= (1 - (np.floor(p * 2**32) + 1) / 2**32) / (1 - p) if p else 1


@wrong("dropout", check_dropout="y: ", check_dropout_rate="the next step")
def mask_of_step_0_always(y, p, key, step):
    right.dropout(y, p, key, 0)


@wrong("dropout", check_dropout="y: ", check_dropout_rate="a step 2³² later")
def high_word_of_the_step_ignored(y, p, key, step):
    right.dropout(y, p, key, step % 2**32)


@wrong("dropout", check_dropout="y: ", check_dropout_rate="the next layer")
def layer_ignored(y, p, key, step):
    right.dropout(y, p, (key[0], 0), step)


@wrong("dropout", check_dropout="y: ", check_dropout_rate="the next seed")
def seed_ignored(y, p, key, step):
    right.dropout(y, p, (0, key[1]), step)


@wrong("dropout", check_dropout="y: ", check_dropout_rate="share dropped")
def every_row_has_the_same_mask(y, p, key, step):
    mask = np.ones_like(y[:1])
    right.dropout(mask, p, key, step)
    y *= mask


@wrong("dropout", check_dropout="y: ", check_dropout_partition="rows")
def numbered_along_the_whole_matrix(y, p, key, step):
    """The mask then depends on the padding or the width, not on row and column alone."""
    mask = np.ones((1, y.size), y.dtype)
    right.dropout(mask, p, key, step)
    y *= mask.reshape(y.shape)


@wrong(
    "dropout",
    check_dropout="y: ",
    check_dropout_threshold="element of word",
    check_dropout_partition="rows",
)
def another_good_generator(y, p, key, step):
    """Statistically without fault, but another network than on the other backends."""
    random = np.random.default_rng([*key, step])
    y *= (random.random(y.shape) >= p) / (1 - p)


@wrong(
    "dropout",
    check_dropout="y: ",
    check_dropout_threshold="element of word",
    check_dropout_rate="share dropped by row",
)
def one_word_for_four_elements(y, p, key, step):
    mask = np.ones((len(y), y.shape[1] + 3), y.dtype)
    right.dropout(mask, p, key, step)
    y *= mask[:, np.arange(y.shape[1]) // 4 * 4]


@wrong("dropout", check_dropout="y: ", check_dropout_threshold="element of word")
def words_in_the_opposite_order(y, p, key, step):
    mask = np.ones((len(y), y.shape[1] + 3), y.dtype)
    right.dropout(mask, p, key, step)
    columns = np.arange(y.shape[1])
    y *= mask[:, columns // 4 * 4 + 3 - columns % 4]


@wrong("dropout", check_dropout="y: ", check_dropout_partition="the first 40 rows and 1 columns")
def tail_of_the_row_never_dropped(y, p, key, step):
    """Columns after the last multiple of 4."""
    whole = y.shape[1] // 4 * 4
    right.dropout(y[:, :whole], p, key, step)
    y[:, whole:] /= 1 - p


# --- augment ----------------------------------------------------------------------------------


@wrong("augment", check_augment="out: ")
def numbered_by_their_place_in_the_batch(images, order, start, deformation, key, step, out):
    chosen = images[order[start : start + len(out)]]
    right.augment(chosen, np.arange(len(out)), 0, deformation, key, step, out)


@wrong("augment", check_augment="out: ")
def alike_in_every_step(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, key, 0, out)


@wrong("augment", check_augment="out: ")
def steps_of_32_bits(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, key, step % 2**32, out)


@wrong("augment", check_augment="out: ")
def second_word_of_the_key_ignored(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, (key[0], 0), step, out)


@wrong("augment", check_augment="out: ")
def turned_the_other_way(images, order, start, deformation, key, step, out):
    tables = deformation.tables.copy()
    tables[1] = -tables[1]
    right.augment(images, order, start, deformation._replace(tables=tables), key, step, out)


@wrong("augment", check_augment="out: ")
def bent_without_a_second_direction(images, order, start, deformation, key, step, out):
    across = np.zeros_like(deformation.across)
    right.augment(images, order, start, deformation._replace(across=across), key, step, out)


@wrong("augment", check_augment="out: ")
def strokes_always_as_they_are(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation._replace(thick=False), key, step, out)


@wrong("augment", check_augment="out: ")
def nothing_erased_or_faint(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation._replace(erase=False), key, step, out)


@wrong("augment", check_augment="out: ")
def squares_a_pixel_too_small(images, order, start, deformation, key, step, out):
    tables = deformation.tables.copy()
    tables[SIDE] = np.maximum(tables[SIDE] - 1, 0)
    right.augment(images, order, start, deformation._replace(tables=tables), key, step, out)


@wrong("augment", check_augment="out: ")
def ink_as_strong_as_ever(images, order, start, deformation, key, step, out):
    tables = deformation.tables.copy()
    tables[FAINTNESS] = ONE
    right.augment(images, order, start, deformation._replace(tables=tables), key, step, out)


def _erase_afterwards(order, start, deformation, key, step, out, swapped):
    """The squares of rows of ``out``, their left and top edges perhaps ``swapped``."""
    height, width = deformation.height, deformation.width
    for row, image in zip(out, order[start:].tolist(), strict=False):
        words = checks.philox((ERASE_BLOCK, image, step % 2**32, step // 2**32), key)
        side = int(deformation.tables[SIDE][words[0] >> 22])
        left, top = words[2:0:-1] if swapped else words[1:3]
        left, top = (width + 1 - side) * left >> 32, (height + 1 - side) * top >> 32
        picture = row.reshape(height, width)
        picture[top : top + side, left : left + side] = 0


@wrong("augment", check_augment="out: ")
def squares_with_their_edges_swapped(images, order, start, deformation, key, step, out):
    tables = deformation.tables.copy()
    tables[SIDE] = 0
    right.augment(images, order, start, deformation._replace(tables=tables), key, step, out)
    _erase_afterwards(order, start, deformation, key, step, out, True)


@wrong("augment", check_augment="out: ")
def squares_without_noise(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, key, step, out)
    _erase_afterwards(order, start, deformation, key, step, out, False)


@wrong("augment", check_augment="out: ")
def not_scaled(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, key, step, out)
    out *= 255


@wrong("augment", check_augment="out: ")
def one_grey_level_off(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, key, step, out)
    np.maximum(out - np.float32(1 / 255), 0, out=out)


@wrong("augment", check_augment="out: elements outside")
def writes_the_last_row_twice(images, order, start, deformation, key, step, out):
    right.augment(images, order, start, deformation, key, step, out)
    as_strided(out, (out.shape[0] + 1, out.shape[1]), out.strides)[-1] = out[-1]


# --- gather -----------------------------------------------------------------------------------


@wrong("gather", check_gather="out of ")
def begins_one_late(images, order, start, out):
    right.gather(images, np.roll(order, -1), start, out)


@wrong("gather", check_gather="out of ")
def always_begins_at_the_first(images, order, start, out):
    right.gather(images, order, 0, out)


@wrong("gather", check_gather="out of ")
def order_ignored(images, order, start, out):
    right.gather(images, np.arange(len(order)), start, out)


@wrong("gather", check_gather="out of uint8")
def pixels_not_scaled(images, order, start, out):
    out[...] = images[order[start : start + len(out)]]


@wrong("gather", check_gather="out of uint8")
def pixels_divided_by_256(images, order, start, out):
    right.gather(images, order, start, out)
    if images.dtype == np.uint8:
        out *= 255 / 256


@wrong("gather", check_gather="out of floats")
def floats_scaled_too(images, order, start, out):
    right.gather(images, order, start, out)
    if images.dtype != np.uint8:
        out /= 255


@wrong("gather", check_gather="out of uint8")
def pixels_taken_as_signed(images, order, start, out):
    right.gather(images, order, start, out)
    if images.dtype == np.uint8:
        out[...] = images.view(np.int8)[order[start : start + len(out)]] / 255


@wrong("gather", check_gather="is nan")
def last_image_not_written(images, order, start, out):
    right.gather(images, order, start, out[:-1])


@wrong("gather", check_gather="out: elements outside")
def batch_written_in_full(images, order, start, out):
    """One row more than the short last batch has."""
    right.gather(images, order, start, out)
    as_strided(out, (len(out) + 1, out.shape[1]), out.strides)[-1] = 0


@wrong("gather_values", check_gather_values="out of ")
def labels_in_the_order_of_storage(values, order, start, out):
    out[...] = values[start : start + len(out)]


@wrong("gather_values", check_gather_values="out of ")
def labels_one_late(values, order, start, out):
    right.gather_values(values, np.roll(order, -1), start, out)


@wrong("gather_values", check_gather_values="out of float32")
def weights_passed_through_integers(values, order, start, out):
    out[...] = values[order[start : start + len(out)]].astype(np.int32)


# --- optimizers -------------------------------------------------------------------------------


@wrong("sgd", check_sgd="p: ")
def nesterov_as_plain_momentum(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, momentum, decay, False, decoupled)


@wrong("sgd", check_sgd="p: ")
def plain_momentum_as_nesterov(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, momentum, decay, True, decoupled)


@wrong("sgd", check_sgd="p: ")
def momentum_ignored(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, 0.0, decay, nesterov, decoupled)


@wrong("sgd", check_sgd="p: ")
def gradient_damped_by_momentum(p, g, v, lr, momentum, decay, nesterov, decoupled):
    """v ← momentum·v + (1 - momentum)·g: a mean, another convention."""
    right.sgd(p, g * (1 - momentum), v, lr, momentum, decay, nesterov, decoupled)


@wrong("sgd", check_sgd="v: ")
def learning_rate_inside_the_velocity(p, g, v, lr, momentum, decay, nesterov, decoupled):
    """The same steps while the rate is constant: only the state shows it."""
    if v is None:
        right.sgd(p, g, v, lr, momentum, decay, nesterov, decoupled)
        return
    v /= lr
    right.sgd(p, g, v, lr, momentum, decay, nesterov, decoupled)
    v *= lr


@wrong("sgd", check_sgd="p: ")
def l2_given_as_decoupled(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, momentum, decay, nesterov, True)


@wrong("sgd", check_sgd="p: ")
def decoupled_given_as_l2(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, momentum, decay, nesterov, False)


@wrong("sgd", check_sgd="p: ")
def decay_not_multiplied_by_the_rate(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, momentum, decay / lr if decoupled else decay, nesterov, decoupled)


@wrong("sgd", check_sgd="p: ")
def climbs(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, -lr, momentum, decay, nesterov, decoupled)


@wrong("sgd", check_sgd="p: ")
def velocity_not_kept(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, None if v is None else v.copy(), lr, momentum, decay, nesterov, decoupled)


@wrong("sgd", check_sgd="p: ")
def elements_after_the_last_whole_vector_left_out(p, g, v, lr, momentum, decay, nesterov, decoupled):
    whole = (len(p) - 1) // 32 * 32 - 64
    right.sgd(
        p[:whole], g[:whole], None if v is None else v[:whole], lr, momentum, decay, nesterov, decoupled
    )


@wrong("sgd", check_sgd="g: an input was written to")
def decay_added_to_the_gradient_in_place(p, g, v, lr, momentum, decay, nesterov, decoupled):
    if not decoupled:
        g += decay * p
    right.sgd(p, g, v, lr, momentum, decay if decoupled else 0.0, nesterov, decoupled)


@wrong("sgd", check_sgd="p: the padding is no longer zero")
def noise_on_everything(p, g, v, lr, momentum, decay, nesterov, decoupled):
    right.sgd(p, g, v, lr, momentum, decay, nesterov, decoupled)
    p += np.float32(1e-12)


def adam_variant(*, corrected=True, inside=False, late=False):
    """Adam with its steps spelled out, to change one of them."""

    def kernel(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
        shrink = 1 - lr * decay if decoupled else 1
        if not late:
            p *= shrink
        slope = g if decoupled else g + decay * p
        m[...] = beta1 * m + (1 - beta1) * slope
        v[...] = beta2 * v + (1 - beta2) * slope**2
        m_hat = m / (1 - beta1**t) if corrected else m
        v_hat = v / (1 - beta2**t) if corrected else v
        root = np.sqrt(v_hat + epsilon) if inside else np.sqrt(v_hat) + epsilon
        p -= lr * m_hat / root
        if late:
            p *= shrink

    return kernel


@wrong("adam", check_adam="p: ")
def no_bias_correction(*arguments):
    adam_variant(corrected=False)(*arguments)


@wrong("adam", check_adam="p: ")
def epsilon_inside_the_square_root(*arguments):
    adam_variant(inside=True)(*arguments)


@wrong("adam", check_adam="p: ")
def decay_after_the_update(*arguments):
    adam_variant(late=True)(*arguments)


@wrong("adam", check_adam="p: ")
def epsilon_scaled_by_the_bias_correction(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
    """The "epsilon hat" of section 2: another epsilon."""
    right.adam(p, g, m, v, t, lr, beta1, beta2, epsilon / (1 - beta2**t) ** 0.5, decay, decoupled)


@wrong("adam", check_adam="p: ")
def updates_counted_from_0(p, g, m, v, t, *rest):
    right.adam(p, g, m, v, t + 1, *rest)


@wrong("adam", check_adam="p: ")
def adam_l2_given_as_decoupled(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
    right.adam(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, True)


@wrong("adam", check_adam="p: ")
def adam_decoupled_given_as_l2(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, decoupled):
    right.adam(p, g, m, v, t, lr, beta1, beta2, epsilon, decay, False)


@wrong("adam", check_adam="p: ")
def betas_exchanged(p, g, m, v, t, lr, beta1, beta2, *rest):
    right.adam(p, g, m, v, t, lr, beta2, beta1, *rest)


@wrong("adam", check_adam="p: ")
def variance_not_kept(p, g, m, v, *rest):
    right.adam(p, g, m, v.copy(), *rest)


@wrong("adam", check_adam="g: an input was written to")
def gradient_zeroed_after_use(p, g, *rest):
    """Saves a pass elsewhere; the protocol says that gradients are overwritten, not reset."""
    right.adam(p, g, *rest)
    g[...] = 0


@wrong("clip_norm", check_clip_norm="g clipped to")
def each_element_clipped(g, limit):
    np.clip(g, -limit, limit, out=g)


@wrong("clip_norm", check_clip_norm="g clipped to")
def sum_of_absolute_values_as_norm(g, limit):
    g *= min(1, limit / max(np.abs(g).sum(), limit))


@wrong("clip_norm", check_clip_norm="g clipped to")
def square_root_forgotten(g, limit):
    g *= limit / np.maximum(np.square(g).sum(), limit)


@wrong("clip_norm", check_clip_norm="g below the limit")
def short_gradients_lengthened(g, limit):
    g *= limit / max(float(np.sqrt(np.square(g).sum())), 1e-12)


@wrong("clip_norm", check_clip_norm="g: nan disappeared")
def nan_made_zero(g, limit):
    np.nan_to_num(g, copy=False)
    right.clip_norm(g, limit)


@wrong("clip_norm", check_clip_norm="g: inf disappeared")
def infinity_clipped(g, limit):
    """An infinite gradient looks sound afterwards."""
    infinite = np.isinf(g)
    g[infinite] = np.sign(g[infinite])
    right.clip_norm(g, limit)


# --- attacks ------------------------------------------------------------------------------------


def odds(z, t, loss, correct, dz, *, kept=False, shifted=True):
    """The pieces of log_odds spelled out, to change one of them."""
    rows, others = np.arange(len(t)), z.copy()
    correct[...] = z.argmax(axis=1) == t
    own = z[rows, t]
    if not kept:
        others[rows, t] = -np.inf
    largest = others.max(axis=1) if shifted else np.zeros_like(own)
    powers = np.exp(others - largest[:, None])
    loss[...] = np.log(powers.sum(axis=1)) + (largest - own)
    dz[...] = powers / powers.sum(axis=1, keepdims=True)
    dz[rows, t] = dz[rows, t] - 1 if kept else -1


@wrong("log_odds", check_log_odds="loss: ")
def cross_entropy_instead(z, t, loss, correct, dz):
    odds(z, t, loss, correct, dz, kept=True)


@wrong("log_odds", check_log_odds="loss: ")
def no_maximum_of_the_others(z, t, loss, correct, dz):
    odds(z, t, loss, correct, dz, shifted=False)


@wrong("log_odds", check_log_odds="loss: ")
def maximum_of_all(z, t, loss, correct, dz):
    """Where the target is far above, all others vanish."""
    rows, powers = np.arange(len(t)), np.exp(z - z.max(axis=1, keepdims=True))
    own = np.log(powers[rows, t])
    powers[rows, t] = 0
    total = powers.sum(axis=1)
    correct[...] = z.argmax(axis=1) == t
    loss[...] = np.log(total) - own
    dz[...] = powers / total[:, None]
    dz[rows, t] = -1


@wrong("log_odds", check_log_odds="dz: ")
def averaged_over_the_batch(z, t, loss, correct, dz):
    right.log_odds(z, t, loss, correct, dz)
    dz /= len(t)


@wrong("log_odds", check_log_odds="correct: ")
def correct_from_the_last_of_the_largest(z, t, loss, correct, dz):
    last = z.shape[1] - 1 - z[:, ::-1].argmax(axis=1)
    right.log_odds(z, t, loss, correct, dz)
    correct[...] = last == t


@wrong("log_odds", check_log_odds="z: an input was written to")
def target_taken_out_of_the_logits(z, t, loss, correct, dz):
    right.log_odds(z, t, loss, correct, dz)
    if dz is not z:
        z[np.arange(len(t)), t] = -np.inf


def step_of(x, dx, origin, step, epsilon, norm, *, first_box=False, ball=True, each=False, guard=True):
    """The pieces of ascend spelled out, to change one of them."""
    if norm == "linf":
        moved = x + step * np.sign(dx)
        low, high = origin - epsilon, origin + epsilon
        moved = np.clip(moved, low, high) if ball else moved
    else:
        length = np.linalg.norm(dx.astype(np.float64), axis=None if each else 1, keepdims=True)
        if guard:
            length[length == 0] = 1
        far = x + step * (dx / length) - origin
        if first_box:
            far = np.clip(origin + far, 0, 1) - origin
        distance = np.linalg.norm(far, axis=1, keepdims=True)
        moved = origin + far * (np.minimum(1, epsilon / distance) if ball else 1)
    x[...] = np.clip(moved, 0, 1)


@wrong("ascend", check_ascend="x: ")
def descends(x, dx, origin, step, epsilon, norm):
    right.ascend(x, dx, origin, -step, epsilon, norm)


@wrong("ascend", check_ascend="x: ")
def ball_forgotten(x, dx, origin, step, epsilon, norm):
    step_of(x, dx, origin, step, epsilon, norm, ball=False)


@wrong("ascend", check_ascend="x: a pixel outside of 0 … 1")
def box_kept_up_to_rounding(x, dx, origin, step, epsilon, norm):
    right.ascend(x, dx, origin, step, epsilon, norm)
    x -= np.float32(1e-8)


@wrong("ascend", check_ascend="x: ")
def box_forgotten(x, dx, origin, step, epsilon, norm):
    move = step * np.sign(dx) if norm == "linf" else x * 0
    far = np.clip(x + move, origin - epsilon, origin + epsilon)
    right.ascend(x, dx, origin, step, epsilon, norm)
    if norm == "linf":
        x[...] = far


@wrong("ascend", check_ascend="x: ")
def box_before_the_ball(x, dx, origin, step, epsilon, norm):
    step_of(x, dx, origin, step, epsilon, norm, first_box=True)


@wrong("ascend", check_ascend="x: ")
def ball_around_where_it_is(x, dx, origin, step, epsilon, norm):
    """Drifts further with every step."""
    right.ascend(x, dx, x.copy(), step, epsilon, norm)


@wrong("ascend", check_ascend="x: ", check_ascend_passes_nan_on="x: a NaN of one image is in another")
def one_length_for_the_whole_batch(x, dx, origin, step, epsilon, norm):
    step_of(x, dx, origin, step, epsilon, norm, each=True)


@wrong("ascend", check_ascend="is nan", check_ascend_passes_nan_on="x: a NaN of one image is in another")
def divides_by_a_length_of_zero(x, dx, origin, step, epsilon, norm):
    with np.errstate(invalid="ignore"):
        step_of(x, dx, origin, step, epsilon, norm, guard=False)


@wrong("ascend", check_ascend="x: ")
def squares_in_float32(x, dx, origin, step, epsilon, norm):
    """A gradient that is small everywhere has no length then."""
    if norm == "l2":
        length = np.sqrt(np.square(dx).sum(axis=1, keepdims=True))
        dx = dx / np.where(length > 0, length, 1)
        dx[length[:, 0] == 0] = 0
    right.ascend(x, dx, origin, step, epsilon, norm)


@wrong("ascend", check_ascend="x: ")
def a_gradient_of_zero_counts_as_positive(x, dx, origin, step, epsilon, norm):
    right.ascend(x, np.where(dx == 0, np.float32(1e-30), dx), origin, step, epsilon, norm)


@wrong("ascend", check_ascend_passes_nan_on="x: a NaN in the gradient disappeared")
def nan_in_a_gradient_ignored(x, dx, origin, step, epsilon, norm):
    right.ascend(x, np.nan_to_num(dx), origin, step, epsilon, norm)


@wrong("ascend", check_ascend="dx: an input was written to")
def gradient_normalised_in_place(x, dx, origin, step, epsilon, norm):
    np.sign(dx, out=dx)
    right.ascend(x, dx, origin, step, epsilon, norm)


@wrong("add_noise", check_add_noise="x: ")
def noise_of_the_row(x, order, start, size, key, step):
    """Another batch, other numbers."""
    right.add_noise(x, np.arange(len(order)), start, size, key, step)


@wrong("add_noise", check_add_noise="x: ")
def noise_of_the_first_images(x, order, start, size, key, step):
    right.add_noise(x, order, 0, size, key, step)


@wrong("add_noise", check_add_noise="x: ")
def noise_of_one_sign(x, order, start, size, key, step):
    right.add_noise(x, order, start, size / 2, key, step)
    x += size / 2


@wrong("add_noise", check_add_noise="x: ")
def late_steps_forgotten(x, order, start, size, key, step):
    right.add_noise(x, order, start, size, key, step % 2**32)


@wrong("add_noise", check_add_noise="x: ")
def noise_in_place_of_the_pixels(x, order, start, size, key, step):
    x[...] = 0
    right.add_noise(x, order, start, size, key, step)


# --- max-norm ---------------------------------------------------------------------------------


@wrong("max_norm", check_max_norm="w of ", check_max_norm_of_extremes="w that is huge")
def rows_shortened(w, limit):
    """What goes out of a unit, not what comes in."""
    right.max_norm(w.T, limit)


@wrong("max_norm", check_max_norm="w of ", check_max_norm_of_extremes="w that is huge")
def whole_matrix_shortened(w, limit):
    w *= limit / max(float(np.sqrt(np.square(w, dtype=np.float64).sum())), limit)


@wrong("max_norm", check_max_norm="w of short columns")
def short_columns_lengthened(w, limit):
    lengths = np.sqrt(np.square(w, dtype=np.float64).sum(axis=0))
    w *= limit / np.maximum(lengths, 1e-300)


@wrong("max_norm", check_max_norm="w of long columns", check_max_norm_of_extremes="w that is huge")
def square_root_of_the_sum_forgotten(w, limit):
    w *= limit / np.maximum(np.square(w, dtype=np.float64).sum(axis=0), limit)


@wrong("max_norm", check_max_norm="w of long columns", check_max_norm_of_extremes="w that is huge")
def each_weight_clipped(w, limit):
    np.clip(w, -limit, limit, out=w)


@wrong("max_norm", check_max_norm="w of long columns", check_max_norm_of_extremes="w that is huge")
def largest_weight_as_length(w, limit):
    w *= limit / np.maximum(np.abs(w).max(axis=0), limit)


@wrong("max_norm", check_max_norm_of_extremes="w that is huge")
def lengths_from_squares_in_float32(w, limit):
    with np.errstate(over="ignore"):
        lengths = np.sqrt(np.square(w).sum(axis=0))
    w *= limit / np.maximum(lengths, limit)


@wrong("max_norm", check_max_norm="w of long columns", check_max_norm_of_extremes="w that is huge")
def last_column_forgotten(w, limit):
    right.max_norm(w[:, :-1], limit)


@wrong("max_norm", check_max_norm="w of long columns")
def sum_cut_to_whole_pieces_of_2_rows(w, limit):
    lengths = np.sqrt(np.square(w[: len(w) // 2 * 2], dtype=np.float64).sum(axis=0))
    w *= limit / np.maximum(lengths, limit)


@wrong("max_norm", check_max_norm="w: elements outside", check_max_norm_of_extremes="w: elements outside")
def padding_shortened_too(w, limit):
    right.max_norm(whole_vectors(w), limit)


@wrong("max_norm", check_max_norm_of_extremes="w: nan disappeared")
def broken_weights_made_zero(w, limit):
    right.max_norm(w, limit)
    np.nan_to_num(w, copy=False)


# Not faulty: these must pass every check, or the rejections above say nothing.
RIGHT = {
    operation: getattr(right, operation)
    for operation in (
        "dense",
        "dense_grad_input",
        "dense_grad_weight",
        "softmax",
        "softmax_xent",
        "dropout",
        "augment",
        "gather",
        "gather_values",
        "sgd",
        "adam",
        "clip_norm",
        "log_odds",
        "ascend",
        "add_noise",
        "max_norm",
    )
} | {
    "relu": partial(relu_reference.relu, np),
    "relu_grad": partial(relu_reference.relu_grad, np),
    "adam, spelled out": adam_variant(),
    "log_odds, spelled out": odds,
    "ascend, spelled out": step_of,
}
