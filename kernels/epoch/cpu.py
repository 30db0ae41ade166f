"""Steps of a training in one call on the CPU: gather, forward, loss, backward, update.

A team of threads (:mod:`~..common.team`) runs all steps together and meets at barriers. Within a step
a thread keeps to its own columns of the first layer, the widest as a rule, so that they stay in its
core's cache from one step to the next; all else is cut as :mod:`~..matmul.cpu` cuts single products.
The order of every sum is that of the single operations: the bits are those of the step-by-step path
with the same backend, for any number of threads.

Where the pictures are mostly paper, the first layer goes through :mod:`~..matmul.cpu_sparse`, and
wherever ReLU left enough zeros in a step's activations, the other hidden layers. Where nothing else
needs the gradients (no clipping), each piece of them is used up by the optimizer while it is in the
cache, and never stored.

What one core has written comes to another slowly, line by line, and back as slowly, to be written again.
So each thread gathers all of a batch for itself where there is room: as floats, or, for first layers of few
outputs, as the bytes that images are, of which the products over lists look each up in a table.
"""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba.extending import overload

from ..augment import cpu as augment
from ..augment.reference import KEY as AUGMENT
from ..common import amx
from ..common.compiling import c_function, inner
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import (
    ONE,
    ZERO,
    aligned_zeros,
    bytes_at,
    doubles,
    floats,
    ints,
    ints32,
    matrix,
    prefetch_far,
)
from ..common.team import Kernel, call, thread_count, wait_for_all
from ..common.tiles import has_amx
from ..dropout.cpu import dropout_rows, dropout_sparse_rows
from ..dropout.reference import INPUT_LAYER, keep_threshold
from ..gather.cpu import gather_pixels, gather_rows, gather_span
from ..matmul import cpu as dense
from ..matmul import cpu_sparse as sparse
from ..matmul.cpu import column_sums, product, share
from ..matmul.pieces import beside, finish, mask_row, prefetch_matrix, prepare
from ..optimizer.cpu import CHUNK, Numbers, adam_numbers, adam_span, clip_norm_share, sgd_numbers, sgd_span
from ..softmax_xent.cpu import softmax_xent_rows

SGD, ADAM = 0, 1
FUSED_BATCH = dense.DEPTH  # larger batches take several passes over k, so gradients are stored

# What is sparse enough: of the pixels, those where one of two pictures has ink, and the least number
# of outputs of the first layer that make up for the lists.
SPARSE_SHARE = 0.5
SPARSE_OUTPUTS = 32
PIXEL_OUTPUTS = 256  # of the first layer, at most, where lists are of bytes: a look at a table for each
LISTED_OUTPUTS = 512  # at most, where the others would be products of three pieces in tiles
SAMPLE = 256  # pictures that are looked at to find out

# The same for hidden layers: of their outputs, those where one of two images is not zero; and the least
# sizes, of both layers and of the batch, that make up for the lists.
HIDDEN_SHARE = 0.85
# Intel's cores with tiles begin two multiply-adds of 512 bits in a cycle, AMD's Zen 4 one, with as many
# loads. Lists, which load more for each, gain nothing there: without them networks train 1.03 to 1.13
# times as fast (see kernels/README.md).
HIDDEN_LISTS = not has_amx()
HIDDEN_UNITS = 128
HIDDEN_BATCH = 64
UNITS_BATCH = 192  # the same for lists by units, which take longer to make
PAIRED_OUTPUTS = 512  # of the first layer, that make up for looking for pairs of similar pictures

# The words of the plan: one block for all, then one for each layer.
(
    LAYERS,
    BATCH,
    FIRST_STEP,
    STEPS,
    COUNT,
    PIXELS,
    IMAGES,
    IMAGES_FLOAT,
    LABELS,
    ORDER,
    WEIGHT,
    LOSS,
    CORRECT,
    X,
    X_OTHERS,  # where the second thread's own batch is, and how far the next lie behind it; 0: all share one
    X_APART,
    X_ROW,
    X_PIXELS,  # whether batches stay bytes
    T,
    BATCH_WEIGHT,
    RATES,
    OPTIMIZER,
    NUMBERS,
    UPDATE,
    SEED,
    DEFORM,  # the function that gathers deformed images, or 0; and what it needs
    DEFORMATION,
    DEFORM_ROOM,
    DROP_INPUT,
    INPUT_THRESHOLD,
    CLIP,
    FUSED,
    FIRST_PIECES,  # the ``half`` of the first layer's products, where they have one
    IS_SPARSE,
    WIDE,
    PANELS,
    PANELS_0,
    PANELS_1,
    PARAMETERS,
    GRADIENTS,
    STATE_0,
    STATE_1,
    SIZE_OF_ALL,
    LIST_BITS,
    LIST_TURNED,
    LARGEST,
    SUMS,
    ROOM,
    ROOM_NUMBERS,
    HEAD,
) = range(50)
(
    INPUTS,
    OUTPUTS,
    W,
    W_ROW,
    B,
    Y,
    Y_ROW,
    DY,
    DY_ROW,
    DROP,
    THRESHOLD,
    ROW_LISTS,  # of the layer's input, by images, or 0
    ROW_BOUNDS,
    ROW_BLOCK,
    ROW_ORDER,
    COLUMN_LISTS,  # the same, by units, or 0
    COLUMN_BOUNDS,
    COLUMN_BLOCK,
    COLUMN_ORDER,
    TURNED,  # the same transposed, or 0: pairs of units far apart are then in lines and pages of their own
    TURNED_ROW,
    LAYER,
) = range(22)
# The float64 numbers: of the optimizer, of the loss, and the largest share of hidden outputs that is worth
# lists.
MOMENTUM, DECAY, NESTEROV, DECOUPLED, BETA_1, BETA_2, EPSILON, LIMIT, SMOOTHING = range(9)
INPUT_SCALE, MOST_LISTED, ALL_NUMBERS = 9, 10, 11


NOTHING, MASK, UPDATE_WEIGHTS, UPDATE_PANELS = range(4)


class After(NamedTuple):
    """Details for ``finish``: what becomes of a piece of an output. One type, as each type that a
    product gets is compiled by itself.

    MASK: piece · scale where ``at``, a matrix like the output, is positive, else 0. UPDATE_WEIGHTS: the
    piece is a gradient; update the parameters at ``at`` by it, and the states that lie ``state_0`` and
    ``state_1`` bytes further (0: no such state). ``row`` is the distance of rows in these.
    UPDATE_PANELS: the same, where ``row`` is the number of rows of panels.
    """

    kind: int
    at: int
    row: int
    scale: np.float32
    state_0: int
    state_1: int
    optimizer: int
    numbers: Numbers


@inner
def _numbers(plan, rate, t):
    """What all updates of a step share."""
    n = doubles(plan[NUMBERS], ALL_NUMBERS)
    decay, decoupled = n[DECAY], n[DECOUPLED] != 0
    if plan[OPTIMIZER] == SGD:
        return sgd_numbers(rate, n[MOMENTUM], decay, n[NESTEROV] != 0, decoupled)
    return adam_numbers(t, rate, n[BETA_1], n[BETA_2], n[EPSILON], decay, decoupled)


@inner
def _update(g, p, state_0, state_1, count, optimizer, numbers):
    """One pass of the optimizer over ``count`` numbers at these addresses."""
    if optimizer == SGD:
        state = floats(state_0, count if state_0 != 0 else 0)
        sgd_span(floats(p, count), floats(g, count), state, numbers)
    else:
        adam_span(floats(p, count), floats(g, count), floats(state_0, count), floats(state_1, count), numbers)


@overload(finish)
def _finish_after(details, top, left, rows, columns, piece, piece_row):
    if getattr(details, "instance_class", None) is not After:
        return None

    def after(details, top, left, rows, columns, piece, piece_row):
        if details.kind == NOTHING:
            return
        if details.kind == UPDATE_PANELS:  # a piece of a panel is one span
            there = details.at + SIZE * (left * details.row + top * piece_row)
            _update(
                piece,
                there,
                there + details.state_0 if details.state_0 != 0 else 0,
                there + details.state_1 if details.state_1 != 0 else 0,
                rows * piece_row,
                details.optimizer,
                details.numbers,
            )
            return
        for i in range(rows):
            here, there = piece + SIZE * i * piece_row, details.at + SIZE * ((top + i) * details.row + left)
            if details.kind == MASK:
                mask_row(floats(here, columns), floats(there, columns), details.scale)
            else:
                _update(
                    here,
                    there,
                    there + details.state_0 if details.state_0 != 0 else 0,
                    there + details.state_1 if details.state_1 != 0 else 0,
                    columns,
                    details.optimizer,
                    details.numbers,
                )

    return after


@overload(prepare)
def _prepare_after(details, top, left, rows, columns):
    if getattr(details, "instance_class", None) is not After:
        return None

    def ask(details, top, left, rows, columns):
        if details.kind == UPDATE_WEIGHTS:
            here = details.at + SIZE * (top * details.row + left)
            prefetch_matrix(here, details.row, rows, columns)
            if details.state_0 != 0:
                prefetch_matrix(here + details.state_0, details.row, rows, columns)
            if details.state_1 != 0:
                prefetch_matrix(here + details.state_1, details.row, rows, columns)

    return ask


@overload(beside)
def _beside_after(details, top, left):
    if getattr(details, "instance_class", None) is not After:
        return None

    def where(details, top, left):
        if details.kind == MASK or details.kind == UPDATE_WEIGHTS:
            return details.at + SIZE * (top * details.row + left), details.row
        return 0, 0

    return where


@inner(inline="always")
def _after(kind, at, row, scale):
    """Details without an update."""
    return After(kind, at, row, scale, ZERO, ZERO, ZERO, sgd_numbers(0.0, 0.0, 0.0, False, False))


@inner(inline="always")
def nothing():
    """Details for a product that is ready as it is."""
    return _after(NOTHING, ZERO, ZERO, np.float32(1))


@inner
def _gather(plan, start, count, x_address, first, last):
    """Rows first … last - 1 of the batch."""
    order = ints(plan[ORDER], plan[COUNT])
    if plan[X_PIXELS] != 0:
        row = SIZE * plan[X_ROW]
        gather_pixels(plan[IMAGES], plan[PIXELS], order, start, x_address, row, first, last)
        return
    x = matrix(x_address, plan[X_ROW], count, plan[PIXELS])
    if plan[IMAGES_FLOAT]:
        rows = floats(plan[IMAGES], plan[COUNT] * plan[PIXELS]).reshape(plan[COUNT], plan[PIXELS])
        gather_rows(rows, order, start, x, first, last)
    else:
        pixels = bytes_at(plan[IMAGES], plan[COUNT] * plan[PIXELS]).reshape(plan[COUNT], plan[PIXELS])
        gather_rows(pixels, order, start, x, first, last)


@inner
def _drop_inputs(plan, x_address, count, first, last, step):
    """Dropout of the rows first … last - 1 of the batch."""
    x = matrix(x_address, plan[X_ROW], count, plan[PIXELS])
    scale = np.float32(doubles(plan[NUMBERS], ALL_NUMBERS)[INPUT_SCALE])
    dropout_sparse_rows(x, plan[INPUT_THRESHOLD], scale, plan[SEED], INPUT_LAYER, step, first, last)


@inner
def _pairs_of(count, thread, threads):
    """The first of a thread's pairs of rows, and the first that is no longer its own."""
    pairs = (count + 1) // 2
    return pairs * thread // threads, pairs * (thread + 1) // threads


def _deform(thread, threads, arguments, step):
    """A thread's rows of the batch of a step, deformed. Called by its address: it is compiled where it is
    wanted alone."""
    head = ints(arguments, HEAD)
    start = (head[FIRST_STEP] + step) * head[BATCH]
    count = min(head[BATCH], head[COUNT] - start)
    first, last = _pairs_of(count, thread, threads)
    plan = ints(head[DEFORMATION], augment.WORDS)
    room = head[DEFORM_ROOM] + 4 * thread * plan[augment.ROOM]
    update, order = head[UPDATE] + step, ints(head[ORDER], head[COUNT])
    rows = 2 * first, min(2 * last, count)
    augment.deform_rows(plan, head[IMAGES], order, start, update, head[X], head[X_ROW], *rows, room)


@cache
def _deformer():
    return c_function(_deform)


@inner
def _ask_for_images(plan, start, first, last):
    """Have the rows first … last - 1 of a batch fetched from memory while other work goes on."""
    order = ints(plan[ORDER], plan[COUNT])
    size = plan[PIXELS] * (SIZE if plan[IMAGES_FLOAT] else 1)
    for r in range(first, last):
        image = plan[IMAGES] + order[start + r] * size
        for line in range(0, size, 64):
            prefetch_far(image + line)


@inner
def _gather_targets(plan, start, count, first, last):
    """Targets and weights of the rows first … last - 1 of the batch."""
    order = ints(plan[ORDER], plan[COUNT])
    gather_span(ints32(plan[LABELS], plan[COUNT]), order, start, ints32(plan[T], count), first, last)
    if plan[WEIGHT] != 0:
        chosen = floats(plan[BATCH_WEIGHT], count)
        gather_span(floats(plan[WEIGHT], plan[COUNT]), order, start, chosen, first, last)


@inner(inline="always")
def _layer(plan, number):
    """The words of one layer."""
    return plan[HEAD + number * LAYER : HEAD + (number + 1) * LAYER]


@inner
def _half_of(plan, number, half):
    """The ``half`` of a layer's products."""
    if half is None:
        return None
    return plan[FIRST_PIECES] if number == 0 else half


@inner(inline="always")
def _own(thread, threads, plan, layer, number, rows):
    """A thread's part of an output as wide as a layer's, with as many rows as given."""
    if number == 0 and plan[IS_SPARSE]:
        return share(thread, threads, rows, layer[OUTPUTS], sparse.STRIP, plan[WIDE])
    return share(thread, threads, rows, layer[OUTPUTS], dense.ROWS, dense.LANES)


@inner(inline="always")
def _rows_listed(layer):
    """Lists of a layer's input by images."""
    return sparse.Lists(
        layer[ROW_LISTS], layer[ROW_BOUNDS], layer[INPUTS], layer[ROW_BLOCK], layer[ROW_ORDER]
    )


@inner(inline="always")
def _columns_listed(layer, count):
    """Lists of a layer's input by units, for so many images."""
    return sparse.Lists(
        layer[COLUMN_LISTS], layer[COLUMN_BOUNDS], count, layer[COLUMN_BLOCK], layer[COLUMN_ORDER]
    )


@inner(inline="always")
def _worth_it(plan, lists, rows):
    """Whether a product over lists, if there are any, is quicker than a whole one."""
    most = doubles(plan[NUMBERS], ALL_NUMBERS)[MOST_LISTED]
    return lists.places != 0 and sparse.listed(lists, rows) <= most


@inner
def _bits(plan, thread, number):
    """The address of the bits that say where a layer's input is not zero; of its own batch a thread's own."""
    if number == 0 and plan[X_OTHERS] != 0:
        return plan[LIST_BITS] + 8 * thread * min(plan[BATCH], plan[COUNT]) * sparse.words_for(plan[PIXELS])
    return plan[LIST_BITS]


@inner
def _list_rows(plan, thread, number, x, x_row, count, first, last):
    """The lists of a layer's input by images, for the pairs first … last - 1 of these."""
    lists, bits = _rows_listed(_layer(plan, number)), _bits(plan, thread, number)
    rows = 2 * first, min(2 * last, count)
    looked_at = (ZERO, count) if number == 0 and plan[X_OTHERS] != 0 else rows
    if number == 0 and plan[X_PIXELS] != 0:
        sparse.bits_of_pixels(x, SIZE * x_row, *looked_at, lists.length, bits)
    else:
        sparse.bits_of_rows(x, x_row, *looked_at, lists.length, bits)
    if lists.order != 0:
        sparse.pair_up(bits, sparse.words_for(lists.length), *rows, lists.order)
    sparse.lists_of_pairs(bits, count, first, last, lists)


@inner
def _list_columns(plan, number, x, x_row, count, thread, threads):
    """A thread's part of the lists by units: of its own words of bits, so that no barrier is needed."""
    layer = _layer(plan, number)
    units, words = layer[INPUTS], sparse.words_for(layer[INPUTS])
    first, last = words * thread // threads, words * (thread + 1) // threads
    sparse.bits_of_columns(_bits(plan, thread, number), count, units, first, last, plan[LIST_TURNED])
    lists, turned = _columns_listed(layer, count), plan[LIST_TURNED]
    if lists.order != 0:
        behind = min(64 * last, units)
        sparse.pair_up(turned, sparse.words_for(count), 64 * first, behind, lists.order)
        place = layer[TURNED] + SIZE * 64 * first * layer[TURNED_ROW]
        copy = behind - 64 * first, count, layer[TURNED_ROW], place
        sparse.copy_panel(x + SIZE * 64 * first, ONE, x_row, *copy)
    sparse.lists_of_pairs(turned, units, 32 * first, min(32 * last, (units + 1) // 2), lists)


@inner(inline="always")
def _forward(thread, threads, barrier, plan, x, count, room, step, half):
    """From x to the hidden outputs of the last hidden layer; ends with a barrier."""
    none = nothing()
    x_row = plan[X_ROW]
    pairs = (count + 1) // 2
    first, last = pairs * thread // threads, pairs * (thread + 1) // threads
    for number in range(plan[LAYERS] - 1):
        layer, lists = _layer(plan, number), _rows_listed(_layer(plan, number))
        is_first = number == 0 and plan[IS_SPARSE] != 0
        if is_first or (number > 0 and _worth_it(plan, lists, count)):
            b, b_step, b_column, wide = layer[W], layer[W_ROW], ONE, ZERO
            if is_first:
                b, b_step, b_column, wide = plan[PANELS], plan[WIDE], plan[PIXELS], plan[WIDE]
            else:
                wide = sparse.panel_width(layer[OUTPUTS], threads)
            pixels = is_first and plan[X_PIXELS] != 0
            sparse.sparse_product(
                x,
                x_row * SIZE if pixels else x_row,
                ONE,
                pixels,
                b,
                b_step,
                b_column,
                not is_first,
                layer[B],
                layer[Y],
                layer[Y_ROW],
                share(thread, threads, count, layer[OUTPUTS], sparse.STRIP, wide),
                wide,
                np.float32(0),
                lists,
                room,
                none,
            )
        else:
            product(
                x,
                x_row,
                ONE,
                layer[W],
                layer[W_ROW],
                ONE,
                layer[B],
                layer[Y],
                layer[Y_ROW],
                _own(thread, threads, plan, layer, number, count),
                layer[INPUTS],
                np.float32(0),
                _half_of(plan, number, half),
                room,
                none,
            )
        wait_for_all(barrier, threads)
        x, x_row, above = layer[Y], layer[Y_ROW], _layer(plan, number + 1)
        if layer[DROP]:
            y = matrix(x, x_row, count, layer[OUTPUTS])
            kept = np.float32(doubles(plan[NUMBERS], ALL_NUMBERS + plan[LAYERS])[ALL_NUMBERS + number])
            rows = 2 * first, min(2 * last, count)
            dropout_rows(y, layer[THRESHOLD], kept, plan[SEED], number, step, *rows)
        if above[ROW_LISTS] != 0:
            _list_rows(plan, thread, number + 1, x, x_row, count, first, last)
        if layer[DROP] or above[ROW_LISTS] != 0:
            wait_for_all(barrier, threads)
        if above[COLUMN_LISTS] != 0:
            _list_columns(plan, number + 1, x, x_row, count, thread, threads)


@inner(inline="always")
def _loss(thread, threads, plan, x, start, count, room):
    """Logits, loss and the logits' gradient for a thread's own rows."""
    number = plan[LAYERS] - 1
    layer = _layer(plan, number)
    x_row = plan[X_ROW]
    if number > 0:
        below = _layer(plan, number - 1)
        x, x_row = below[Y], below[Y_ROW]
    first, last = count * thread // threads, count * (thread + 1) // threads
    product(
        x,
        x_row,
        ONE,
        layer[W],
        layer[W_ROW],
        ONE,
        layer[B],
        layer[Y],
        layer[Y_ROW],
        (first, last, ZERO, layer[OUTPUTS]),
        layer[INPUTS],
        np.float32(-np.inf),
        None,  # the output layer stays in float32
        room,
        nothing(),
    )
    softmax_xent_rows(
        matrix(layer[Y], layer[Y_ROW], count, layer[OUTPUTS]),
        ints32(plan[T], count),
        floats(plan[BATCH_WEIGHT], count if plan[WEIGHT] != 0 else 0),
        floats(plan[LOSS] + SIZE * start, count),
        bytes_at(plan[CORRECT] + start, count),
        matrix(layer[DY], layer[DY_ROW], count, layer[OUTPUTS]),
        np.float32(1 / count),
        doubles(plan[NUMBERS], ALL_NUMBERS)[SMOOTHING],
        first,
        last,
    )


@inner(inline="always")
def _grad_weight(thread, threads, plan, x, number, count, room, fused, numbers, half):
    """A thread's own part of dw and db, stored or used up."""
    layer = _layer(plan, number)
    x_row = plan[X_ROW]
    if number > 0:
        below = _layer(plan, number - 1)
        x, x_row = below[Y], below[Y_ROW]
    lists = _columns_listed(layer, count)
    with_lists = number == 0 and plan[IS_SPARSE] != 0
    wide = plan[WIDE]
    part = _own(thread, threads, plan, layer, number, layer[INPUTS])
    if number > 0:
        # Cut between rows, where there are enough: these weights the same thread has read for dx.
        with_lists = _worth_it(plan, lists, layer[INPUTS])
        wide = sparse.panel_width(layer[OUTPUTS], threads)
        tall = sparse.STRIP if with_lists else dense.ROWS
        if with_lists or layer[INPUTS] >= 4 * tall * threads:
            part = share(thread, threads, layer[INPUTS], layer[OUTPUTS], tall, layer[OUTPUTS])
    to_state_0 = plan[STATE_0] - plan[PARAMETERS] if plan[STATE_0] != 0 else 0
    to_state_1 = plan[STATE_1] - plan[PARAMETERS] if plan[STATE_1] != 0 else 0
    details = nothing()
    if fused and number == 0 and plan[IS_SPARSE]:
        details = After(
            UPDATE_PANELS,
            plan[PANELS],
            plan[PIXELS],
            np.float32(1),
            plan[PANELS_0] - plan[PANELS] if plan[STATE_0] != 0 else 0,
            plan[PANELS_1] - plan[PANELS] if plan[STATE_1] != 0 else 0,
            plan[OPTIMIZER],
            numbers,
        )
    elif fused:
        details = After(
            UPDATE_WEIGHTS,
            layer[W],
            layer[W_ROW],
            np.float32(1),
            to_state_0,
            to_state_1,
            plan[OPTIMIZER],
            numbers,
        )
    to_gradients = plan[GRADIENTS] - plan[PARAMETERS]
    dw, db = ZERO if fused else layer[W] + to_gradients, layer[B] + to_gradients
    vectors = -(-layer[OUTPUTS] // dense.LANES)
    left = vectors * thread // threads * dense.LANES
    right = min(vectors * (thread + 1) // threads * dense.LANES, layer[OUTPUTS])
    if right > left:
        offset = SIZE * left
        if fused:  # into the room, which the product does not need yet
            db = room - offset
        column_sums(layer[DY], layer[DY_ROW], count, left, right, db)
        if fused:
            _update(
                room,
                layer[B] + offset,
                layer[B] + offset + to_state_0 if to_state_0 != 0 else 0,
                layer[B] + offset + to_state_1 if to_state_1 != 0 else 0,
                right - left,
                plan[OPTIMIZER],
                numbers,
            )
    if with_lists:
        pixels = number == 0 and plan[X_PIXELS] != 0
        sparse.sparse_product(
            layer[TURNED] if number > 0 else x,
            layer[TURNED_ROW] if number > 0 else ONE,
            ONE if number > 0 else x_row * SIZE if pixels else x_row,
            pixels,
            layer[DY],
            layer[DY_ROW],
            ONE,
            number >= 0,  # as a constant it would have the product compiled once more
            ZERO,
            dw,
            layer[W_ROW],
            part,
            wide,
            np.float32(-np.inf),
            lists,
            room,
            details,
        )
    else:
        operands = x, ONE, x_row, layer[DY], layer[DY_ROW], ONE, ZERO, dw, layer[W_ROW], part, count
        if half is None or number == plan[LAYERS] - 1:
            product(*operands, np.float32(-np.inf), None, room, details)
        else:
            product(*operands, np.float32(-np.inf), _half_of(plan, number, half), room, details)


@inner(inline="always")
def _grad_input(thread, threads, plan, number, count, room, half):
    """A thread's own part of the gradient of the layer below.

    Below the output layer these are the rows of which it has the loss: nothing to wait for. And no two
    cores write to lines next to each other, which each would fetch ahead from the other.
    """
    layer, below = _layer(plan, number), _layer(plan, number - 1)
    kept = np.float32(doubles(plan[NUMBERS], ALL_NUMBERS + plan[LAYERS])[ALL_NUMBERS + number - 1])
    details = _after(MASK, below[Y], below[Y_ROW], kept)
    if number < plan[LAYERS] - 1:  # where a hidden output is zero, so is its gradient
        lists = _rows_listed(_layer(plan, number + 1))
        if _worth_it(plan, lists, count):
            wide = sparse.panel_width(layer[INPUTS], threads)
            sparse.sparse_product(
                layer[DY],
                layer[DY_ROW],
                ONE,
                number < 0,  # no bytes; not a constant, as below
                layer[W],
                ONE,
                layer[W_ROW],
                number > 0,  # as a constant it would have the product compiled once more
                ZERO,
                below[DY],
                below[DY_ROW],
                share(thread, threads, count, layer[INPUTS], sparse.STRIP, wide),
                wide,
                np.float32(-np.inf),
                lists,
                room,
                details,
            )
            return
    part = share(thread, threads, count, layer[INPUTS], dense.ROWS, dense.LANES)
    if number == plan[LAYERS] - 1:
        part = count * thread // threads, count * (thread + 1) // threads, ZERO, layer[INPUTS]
    w, dx = (layer[W], ONE, layer[W_ROW]), (below[DY], below[DY_ROW])
    operands = layer[DY], layer[DY_ROW], ONE, *w, ZERO, *dx, part, layer[OUTPUTS]
    if half is None or number == plan[LAYERS] - 1:
        product(*operands, np.float32(-np.inf), None, room, details)
    else:
        product(*operands, np.float32(-np.inf), half, room, details)


@inner
def _panels(thread, threads, plan, with_states, back):
    """Copy a thread's part of the first layer's weights, and of its states, into panels or back."""
    layer = _layer(plan, 0)
    part = _own(thread, threads, plan, layer, 0, layer[INPUTS])
    for state in range(3):
        base = plan[PARAMETERS] if state == 0 else plan[STATE_0] if state == 1 else plan[STATE_1]
        panels = plan[PANELS] if state == 0 else plan[PANELS_0] if state == 1 else plan[PANELS_1]
        if base != 0 and (state == 0 or with_states != 0):
            w = base + layer[W] - plan[PARAMETERS]
            sparse.pack_panels(w, layer[W_ROW], layer[INPUTS], layer[OUTPUTS], part, plan[WIDE], panels, back)


def _steps(half):
    """The function of a kernel; ``half`` as for :func:`product`, which it has compiled for this type."""

    def steps(thread, threads, barrier, arguments):
        head = ints(arguments, HEAD)
        plan = ints(arguments, HEAD + head[LAYERS] * LAYER)
        batch, size = plan[BATCH], plan[SIZE_OF_ALL]
        room = plan[ROOM] + SIZE * thread * plan[ROOM_NUMBERS]
        x = plan[X]
        own = plan[X_OTHERS] != 0  # a batch for each thread
        if own and thread > 0:
            x = plan[X_OTHERS] + (thread - 1) * plan[X_APART]
        fused = plan[FUSED] != 0
        if plan[IS_SPARSE] and fused:  # from here to the end they live in panels
            _panels(thread, threads, plan, ONE, ZERO)
        for i in range(plan[STEPS]):
            start = (plan[FIRST_STEP] + i) * batch
            count = min(batch, plan[COUNT] - start)
            t = plan[UPDATE] + i + 1
            numbers = _numbers(plan, doubles(plan[RATES], plan[STEPS])[i], t)
            first, last = _pairs_of(count, thread, threads)
            behind = min(2 * last, count)
            mine = 2 * first, behind
            if own:
                mine = ZERO, count
            if plan[DEFORM] != 0:
                call(plan[DEFORM], thread, threads, arguments, i)
            else:
                _gather(plan, start, count, x, *mine)
            if plan[DROP_INPUT]:
                _drop_inputs(plan, x, count, *mine, t - 1)
            _gather_targets(plan, start, count, 2 * first, behind)
            if plan[IS_SPARSE]:
                if not fused:
                    _panels(thread, threads, plan, ZERO, ZERO)
                _list_rows(plan, thread, ZERO, x, plan[X_ROW], count, first, last)
            if not own:
                wait_for_all(barrier, threads)
            if plan[IS_SPARSE]:
                _list_columns(plan, ZERO, x, plan[X_ROW], count, thread, threads)
            if own:  # all that columns' lists need is the thread's
                wait_for_all(barrier, threads)
            _forward(thread, threads, barrier, plan, x, count, room, t - 1, half)
            _loss(thread, threads, plan, x, start, count, room)
            if plan[LAYERS] > 1:
                _grad_input(thread, threads, plan, plan[LAYERS] - 1, count, room, half)
            wait_for_all(barrier, threads)
            ahead, behind = ZERO, ZERO  # own rows of the next batch, a few at each layer
            if i + 1 < plan[STEPS]:
                behind = min(batch, plan[COUNT] - start - batch)
                if not own:
                    ahead, behind = behind * thread // threads, behind * (thread + 1) // threads
            for number in range(plan[LAYERS] - 1, -1, -1):
                until = behind - (behind - ahead) * number // (number + 1)
                _ask_for_images(plan, start + batch, ahead, until)
                ahead = until
                if 0 < number < plan[LAYERS] - 1:
                    _grad_input(thread, threads, plan, number, count, room, half)
                    wait_for_all(barrier, threads)  # the weights are read: now they may change
                _grad_weight(thread, threads, plan, x, number, count, room, fused, numbers, half)
            wait_for_all(barrier, threads)
            if not fused:
                if plan[CLIP]:
                    chunks = -(-size // CHUNK)
                    clip_norm_share(
                        floats(plan[GRADIENTS], size),
                        floats(plan[LARGEST], chunks),
                        doubles(plan[SUMS], chunks),
                        doubles(plan[NUMBERS], ALL_NUMBERS)[LIMIT],
                        thread,
                        threads,
                        barrier,
                    )
                    wait_for_all(barrier, threads)
                lines = -(-size // 16)
                left, right = lines * thread // threads * 16, min(lines * (thread + 1) // threads * 16, size)
                if right > left:
                    _update(
                        plan[GRADIENTS] + SIZE * left,
                        plan[PARAMETERS] + SIZE * left,
                        plan[STATE_0] + SIZE * left if plan[STATE_0] != 0 else 0,
                        plan[STATE_1] + SIZE * left if plan[STATE_1] != 0 else 0,
                        right - left,
                        plan[OPTIMIZER],
                        numbers,
                    )
                wait_for_all(barrier, threads)
        if plan[IS_SPARSE] and fused:
            _panels(thread, threads, plan, ONE, ONE)

    return steps


_kernels = {None: Kernel(_steps(None)), 1: Kernel(_steps(ONE)), 3: Kernel(_steps(3 * ONE))}


# --- for the backend ------------------------------------------------------------------------------


def is_sparse(images, outputs):
    """Whether the first layer, with so many outputs, is quicker over lists of pixels that have ink.

    Looks at some of the images, always the same ones.
    """
    if outputs < SPARSE_OUTPUTS or len(images) < 2:
        return False
    some = images[:: max(1, len(images) // SAMPLE)][: SAMPLE // 2 * 2]
    ink = some[: len(some) // 2 * 2] != 0
    return bool((ink[::2] | ink[1::2]).mean() <= SPARSE_SHARE)


def _layers_with_lists(sizes, rows, wanted, precision):
    """For which layers lists of the input are made: by images, and by units.

    Those by images are for the layer's own product and the gradient of the layer below.
    """
    layers, least = len(sizes) - 1, 1 if wanted else HIDDEN_UNITS
    by_rows, by_columns = [False] * layers, [False] * layers
    # Products in bfloat16 are quicker as a whole.
    if precision == "float32" and (wanted or (wanted is None and HIDDEN_LISTS and rows >= HIDDEN_BATCH)):
        for number in range(1, layers):
            above = number < layers - 1 and min(sizes[number : number + 2]) >= least
            below = number > 1 and min(sizes[number - 1 : number + 1]) >= least
            by_rows[number] = above or below
            by_columns[number] = above and (wanted or rows >= UNITS_BATCH)
    return by_rows, by_columns


def train_epoch(plan, images, labels, order, loss, correct):
    """The steps of a ``fastdigit.backend.TrainPlan`` in one call.

    Shapes: images [N, I], labels, loss and correct [N], order [N].
    Dtypes: images uint8 or float32, labels int32, order int64, correct uint8, all else float32.
    Writes: parameters, the optimizer's state, and loss and correct at the places of the plan's steps;
    gradients only where they are clipped or the batch has more than 512 images (else their memory is
    used for other things: all but their padding is arbitrary at the end); the buffers of a batch.
    Cost: 2 flops for each weight and image forward, 4 backward (2 in the first layer), of which lists
    leave a third in MNIST's first layer and about two thirds in the others. Memory: lists of up to 4
    bytes a pixel of the batch and 8 a hidden unit, in the gradients as long as there is room, and about
    0.6 MB a thread at most (2.4 MB in tiles, 5 MB in three pieces).
    """
    threads = thread_count(plan.threads)
    tensors, sizes = plan.layout.tensors, plan.layout.layer_sizes
    count, pixels = images.shape
    batch, hidden = plan.batch_size, sizes[1:-1]
    rows = min(batch, count)
    pieces = first_pieces = dense.PIECES[plan.precision]
    if pieces == 3 and images.dtype == np.uint8 and not plan.input_dropout:
        first_pieces = amx.PIXELS
    with_lists = bool(hidden) and plan.sparse_input is not False
    if plan.deformation is not None and plan.deformation.noise and plan.sparse_input is None:
        with_lists = False  # no paper is left
    if with_lists and plan.sparse_input is None:
        # In tiles, wide layers are quicker than any lists; rounded once, all are.
        tiles = dense.AMX and (pieces == 1 or (pieces == 3 and hidden[0] > LISTED_OUTPUTS))
        with_lists = not tiles and is_sparse(images, hidden[0])

    def whole(length):
        return 64 * sparse.words_for(length)

    def address(array):
        return 0 if array is None else array.__array_interface__["data"][0]

    def space(numbers, dtype):
        kept.append(aligned_zeros(numbers, dtype))
        return address(kept[-1])

    def idle(numbers, dtype):
        """Space in the gradients, as long as there is some, where nothing else uses them."""
        nonlocal borrowed
        count = -(-numbers * np.dtype(dtype).itemsize // 64) * 64 // SIZE
        if not fused or borrowed + count > plan.layout.size:
            return space(numbers, dtype)
        borrowed += count
        return address(plan.gradients) + SIZE * (borrowed - count)

    def lists(places, bounds, order, of, length, block, paired):
        pairs = (of + 1) // 2
        return {
            places: idle(pairs * sparse.list_row_for(length), np.uint16),
            bounds: idle(pairs * (sparse.blocks_of(length, block) + 1), np.int64),
            order: idle(of, np.int64) if paired else 0,
        }

    # Bytes of each thread's own batch, in lines of their own, lie where one batch of floats would.
    apart = SIZE * pixels // threads // 64 * 64
    of_pixels = (
        with_lists
        and images.dtype == np.uint8
        and plan.deformation is None
        and not plan.input_dropout
        and hidden[0] <= PIXEL_OUTPUTS
        and apart >= pixels
    )
    kept, borrowed = [], 0  # what has only its address in the plan; how much of the gradients is in use
    fused = plan.clip_norm is None and batch <= FUSED_BATCH
    optimizer = plan.optimizer
    numbers = np.zeros(ALL_NUMBERS + len(sizes), np.float64)
    numbers[MOMENTUM] = getattr(optimizer, "momentum", 0.0)
    numbers[NESTEROV] = getattr(optimizer, "nesterov", False)
    numbers[BETA_1] = getattr(optimizer, "beta1", 0.0)
    numbers[BETA_2] = getattr(optimizer, "beta2", 0.0)
    numbers[EPSILON] = getattr(optimizer, "epsilon", 0.0)
    numbers[DECAY], numbers[DECOUPLED] = optimizer.weight_decay, optimizer.decoupled
    numbers[LIMIT] = plan.clip_norm or 0.0
    numbers[SMOOTHING] = plan.label_smoothing
    numbers[INPUT_SCALE] = 1 / (1 - plan.input_dropout)
    numbers[MOST_LISTED] = 1 if plan.sparse_hidden else HIDDEN_SHARE
    numbers[ALL_NUMBERS : ALL_NUMBERS + len(hidden)] = [1 / (1 - rate) for rate in plan.dropout]
    numbers[ALL_NUMBERS + len(hidden) :] = 1
    by_rows, by_columns = _layers_with_lists(sizes, rows, plan.sparse_hidden, plan.precision)
    by_rows[0] = by_columns[0] = with_lists
    room = sparse.room_for(rows, False) if with_lists else 0
    if any(by_rows[1:]):
        room = max(room, sparse.room_for(max(rows, *sizes), True))
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        if number > 0 or not with_lists:
            products = (
                (rows, outputs, inputs),
                (inputs, outputs, rows),
                (rows, inputs if number else 1, outputs),
            )
            kinds = {0, (pieces if number else first_pieces) or 0}  # the last layer is float32
            room = max(room, *(dense.room_for(*product, kind) for product in products for kind in kinds))
    room = -(-max(room, *sizes) // 32) * 32
    buffers, state = plan.buffers, [*plan.state, None, None]
    words = np.zeros(HEAD + (len(sizes) - 1) * LAYER, np.int64)
    rates = np.ascontiguousarray(plan.learning_rates, np.float64)
    values = {
        LAYERS: len(sizes) - 1,
        BATCH: batch,
        FIRST_STEP: plan.first_step,
        STEPS: len(rates),
        COUNT: count,
        PIXELS: pixels,
        IMAGES: address(images),
        IMAGES_FLOAT: images.dtype != np.uint8,
        LABELS: address(labels),
        ORDER: address(order),
        WEIGHT: address(plan.weight),
        LOSS: address(loss),
        CORRECT: address(correct),
        X: address(buffers.x),
        X_ROW: buffers.x.strides[0] // SIZE,
        X_OTHERS: address(buffers.x) + apart if of_pixels else 0,
        X_APART: apart,
        X_PIXELS: of_pixels,
        T: address(buffers.t),
        BATCH_WEIGHT: address(buffers.weight),
        RATES: address(rates),
        OPTIMIZER: ADAM if len(plan.state) == 2 else SGD,
        NUMBERS: address(numbers),
        UPDATE: plan.update,
        SEED: plan.seed,
        DROP_INPUT: plan.input_dropout > 0,
        INPUT_THRESHOLD: keep_threshold(plan.input_dropout),
        CLIP: plan.clip_norm is not None,
        FUSED: fused,
        FIRST_PIECES: first_pieces or 0,
        IS_SPARSE: with_lists,
        PARAMETERS: address(plan.parameters),
        GRADIENTS: address(plan.gradients),
        STATE_0: address(state[0]),
        STATE_1: address(state[1]),
        SIZE_OF_ALL: plan.layout.size,
        LARGEST: space(-(-plan.layout.size // CHUNK), np.float32),
        SUMS: space(-(-plan.layout.size // CHUNK), np.float64),
        ROOM: space(room * threads, np.float32),
        ROOM_NUMBERS: room,
    }
    if plan.deformation is not None:
        deformation, alive = augment.words_for(plan.deformation, (plan.seed, AUGMENT))
        alive = np.array(deformation, np.int64), alive
        values |= {
            DEFORM: _deformer().address,
            DEFORMATION: address(alive[0]),
            DEFORM_ROOM: space(threads * deformation[augment.ROOM], np.int32),
        }
    if with_lists:
        wide = sparse.panel_width(hidden[0], threads)
        panels = pixels * -(-hidden[0] // wide) * wide
        values |= {
            WIDE: wide,
            PANELS: idle(panels, np.float32),
            PANELS_0: space(panels, np.float32) if fused and state[0] is not None else 0,
            PANELS_1: space(panels, np.float32) if fused and state[1] is not None else 0,
        }
    if any(by_rows):
        listed = [size for size, has_lists in zip(sizes, by_rows, strict=False) if has_lists]
        values[LIST_BITS] = space(threads * rows * sparse.words_for(max(listed)), np.int64)
        values[LIST_TURNED] = space(max(listed) * sparse.words_for(rows), np.int64)
    # A batch for each thread is quicker than one that all share, where there is room for it: together
    # with the gradients, all that a step needs besides stays below twice the parameters.
    copies = (threads - 1) * rows * (buffers.x.strides[0] // SIZE)
    if (
        copies > 0
        and not of_pixels
        and plan.deformation is None
        and sum(a.nbytes for a in kept) + SIZE * copies <= SIZE * plan.layout.size
    ):
        values[X_OTHERS] = space(copies, np.float32)
        values[X_APART] = rows * buffers.x.strides[0]
    words[list(values)] = list(values.values())
    for number in range(len(sizes) - 1):
        w, b = tensors[2 * number : 2 * number + 2]
        y, dy = buffers.y[number], buffers.dy[number]
        rate = plan.dropout[number] if number < len(hidden) else 0
        at = HEAD + number * LAYER
        layer = {
            INPUTS: sizes[number],
            OUTPUTS: sizes[number + 1],
            W: address(plan.parameters) + SIZE * w.offset,
            W_ROW: w.row,
            B: address(plan.parameters) + SIZE * b.offset,
            Y: address(y),
            Y_ROW: y.strides[0] // SIZE,
            DY: address(dy),
            DY_ROW: dy.strides[0] // SIZE,
            DROP: rate > 0,
            THRESHOLD: keep_threshold(rate),
            ROW_BLOCK: whole(sizes[number]) if number == 0 else sparse.BLOCK,
            COLUMN_BLOCK: whole(rows) if number == 0 else sparse.BLOCK,
        }
        if by_rows[number]:
            paired = number > 0 or sizes[1] >= PAIRED_OUTPUTS
            layer |= lists(ROW_LISTS, ROW_BOUNDS, ROW_ORDER, rows, sizes[number], layer[ROW_BLOCK], paired)
        if by_columns[number]:
            paired = number > 0  # neighbouring pixels are alike
            layer |= lists(
                COLUMN_LISTS, COLUMN_BOUNDS, COLUMN_ORDER, sizes[number], rows, layer[COLUMN_BLOCK], paired
            )
            if number > 0:
                turned_row = dense.odd_lines(rows)
                turned = idle(sizes[number] * turned_row, np.float32)
                layer |= {TURNED: turned, TURNED_ROW: turned_row}
        words[[at + place for place in layer]] = list(layer.values())
    _kernels[pieces](words, threads)
    for tensor in tensors if borrowed else ():
        tensor.padding(plan.gradients)[...] = 0  # single steps write all else and count on that
