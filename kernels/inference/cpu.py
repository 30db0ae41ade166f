"""The logits or probabilities of images in one call on the CPU.

Images are divided among the threads in chunks; each thread takes its chunks through all layers by
itself, so that the activations of a chunk stay in its cache and no thread waits for another.
"""

from itertools import pairwise

import numpy as np

from ..common.compiling import inner
from ..common.memory import FLOAT_BYTES as SIZE
from ..common.memory import ONE, ZERO, aligned_zeros, bytes_at, floats, ints, matrix
from ..common.simd import count_bits
from ..common.team import Kernel, thread_count
from ..epoch.cpu import nothing
from ..gather.cpu import copy_rows
from ..matmul import cpu as dense
from ..matmul import cpu_sparse as sparse
from ..matmul.cpu import product
from ..softmax_xent.cpu import softmax_rows

CHUNK = 128  # images at a time
ALONE = 4_000_000  # multiplications that take less time than waking another thread

(
    LAYERS,
    PIXELS,
    COUNT,
    IMAGES,
    IMAGES_FLOAT,
    RESULT,
    PROBABILITIES,
    X,
    X_ROW,
    Y,
    Y_ROW,
    BITS,
    LISTS,
    BOUNDS,
    ROOM,
    STRIDE,  # numbers of working space of a thread, all of the above from X on
    HEAD,
) = range(17)
INPUTS, OUTPUTS, W, W_ROW, B, LAYER = range(6)


@inner
def _is_sparse(x, x_row, count, pixels, bits):
    """Whether at most half of the pixels of the first two images have ink in one of them."""
    words, inked = sparse.words_for(pixels), 0
    sparse.bits_of_rows(x, x_row, 0, min(2, count), pixels, bits)
    found = ints(bits, 2 * words)
    for word in range(words):
        inked += count_bits(found[word] | found[words + word] if count > 1 else found[word])
    return 2 * inked <= pixels


@inner
def _chunk(plan, start, count, space):
    """Logits or probabilities of ``count`` images from ``start`` on."""
    pixels, layers = plan[PIXELS], plan[LAYERS]
    x, bits = plan[X] + space, plan[BITS] + space
    rows = matrix(x, plan[X_ROW], count, pixels)
    if plan[IMAGES_FLOAT]:
        all_images = floats(plan[IMAGES], plan[COUNT] * pixels).reshape(plan[COUNT], pixels)
        copy_rows(all_images, start, rows)
    else:
        all_pixels = bytes_at(plan[IMAGES], plan[COUNT] * pixels).reshape(plan[COUNT], pixels)
        copy_rows(all_pixels, start, rows)
    below, below_row = x, plan[X_ROW]
    for number in range(layers):
        layer = plan[HEAD + number * LAYER : HEAD + (number + 1) * LAYER]
        outputs, last = layer[OUTPUTS], number == layers - 1
        y, y_row = plan[Y] + space + SIZE * (number % 2) * CHUNK * plan[Y_ROW], plan[Y_ROW]
        if last:
            y, y_row = plan[RESULT] + SIZE * start * outputs, outputs
        floor = np.float32(-np.inf) if last else np.float32(0)
        part = (ZERO, count, ZERO, outputs)
        if number == 0 and outputs >= sparse.COLUMNS // 2 and _is_sparse(x, plan[X_ROW], count, pixels, bits):
            pairs = (count + 1) // 2
            sparse.bits_of_rows(x, plan[X_ROW], 0, count, pixels, bits)
            inked = sparse.Lists(
                plan[LISTS] + space, plan[BOUNDS] + space, pixels, 64 * sparse.words_for(pixels), ZERO
            )
            sparse.lists_of_pairs(bits, count, 0, pairs, inked)
            sparse.sparse_product(
                x,
                plan[X_ROW],
                ONE,
                False,
                layer[W],
                layer[W_ROW],
                ONE,
                False,
                layer[B],
                y,
                y_row,
                part,
                sparse.COLUMNS,
                floor,
                inked,
                plan[ROOM] + space,
                nothing(),  # the same type as in training, so that products are compiled once
            )
        else:
            product(
                below,
                below_row,
                ONE,
                layer[W],
                layer[W_ROW],
                ONE,
                layer[B],
                y,
                y_row,
                part,
                layer[INPUTS],
                floor,
                None,
                plan[ROOM] + space,
                nothing(),
            )
        below, below_row = y, y_row
    if plan[PROBABILITIES]:
        z = matrix(below, below_row, count, below_row)
        softmax_rows(z, z, 0, count)


def _infer(thread, threads, barrier, arguments):
    head = ints(arguments, HEAD)
    plan = ints(arguments, HEAD + head[LAYERS] * LAYER)
    chunks = -(-plan[COUNT] // CHUNK)
    for chunk in range(chunks * thread // threads, chunks * (thread + 1) // threads):
        start = chunk * CHUNK
        _chunk(plan, start, min(CHUNK, plan[COUNT] - start), SIZE * thread * plan[STRIDE])


_kernel = Kernel(_infer)


def predictor(layout, parameters):
    """A function that computes what a network of this ``fastdigit.layout.Layout`` makes of images.

    ``predict(images, result, probabilities, threads=None)`` writes the logits, or their softmax, to
    result. It reads ``parameters`` [P], the flat buffer, at every call; one thread at a time may call it.

    Shapes: images [N, I], result [N, C], both contiguous. Dtypes: images uint8 or float32, the rest
    float32. Writes: result.
    Cost: 2 flops for each weight and image; the first layer a third of that for images that are mostly
    paper. Working space: about 4·128·(I + 2·(widest layer)) bytes and 0.6 MB a thread.
    """
    sizes, pixels = layout.layer_sizes, layout.layer_sizes[0]
    x_row, y_row = (dense.odd_lines(columns) for columns in (pixels, max(sizes[1:])))
    room = max(
        sparse.room_for(0, False),
        *(dense.room_for(CHUNK, outputs, inputs) for inputs, outputs in pairwise(sizes)),
    )
    # Float32 numbers of each part of a thread's working space, a multiple of a cache line.
    parts = {
        X: CHUNK * x_row,
        Y: 2 * CHUNK * y_row,
        BITS: CHUNK * 2 * sparse.words_for(pixels),
        LISTS: CHUNK // 4 * sparse.list_row_for(pixels),
        BOUNDS: 2 * CHUNK,  # int64
        ROOM: room,
    }
    parts = {name: -(-numbers // 16) * 16 for name, numbers in parts.items()}
    stride = sum(parts.values())
    multiplications = sum(inputs * outputs for inputs, outputs in pairwise(sizes))
    words = np.zeros(HEAD + (len(sizes) - 1) * LAYER, np.int64)
    words[[LAYERS, PIXELS, X_ROW, Y_ROW, STRIDE]] = len(sizes) - 1, pixels, x_row, y_row, stride
    base = parameters.__array_interface__["data"][0]
    for number in range(len(sizes) - 1):
        w, b = layout.tensors[2 * number : 2 * number + 2]
        at = HEAD + number * LAYER
        words[at : at + LAYER] = (
            sizes[number],
            sizes[number + 1],
            base + SIZE * w.offset,
            w.row,
            base + SIZE * b.offset,
        )
    spaces = {}  # threads -> working space, kept

    def predict(images, result, probabilities, threads=None):
        count = len(images)
        threads = 1 if count * multiplications < ALONE else thread_count(threads)
        threads = min(threads, -(-count // CHUNK))
        if threads not in spaces:
            spaces.clear()
            spaces[threads] = aligned_zeros(threads * stride, np.float32)
            address = spaces[threads].ctypes.data
            for name, numbers in parts.items():
                words[name] = address
                address += SIZE * numbers
        words[COUNT] = count
        words[IMAGES] = images.__array_interface__["data"][0]
        words[IMAGES_FLOAT] = images.dtype != np.uint8
        words[RESULT] = result.__array_interface__["data"][0]
        words[PROBABILITIES] = probabilities
        _kernel.run(address_of_words, threads)

    address_of_words = words.ctypes.data
    predict.parameters = parameters  # whose address is all that the words hold
    return predict
