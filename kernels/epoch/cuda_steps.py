"""The steps of a network of any depth on a GPU, as launches that are the same in every step.

What differs from step to step, which images, which learning rate, which random numbers, kernels look up in
the GPU's memory at the place of a counter, and the last launch counts on. So the launches of one step,
captured once as a CUDA graph, make all steps of a training, without the host in between. A last batch that
is shorter is filled up with images that weigh nothing.

Storage and products are those of the network's precision: float32 multiplied in float32; float32 on tensor
cores, which look at 19 bits of each number ("tf32"); or images, outputs of layers and their gradients in
bfloat16 ("bf16"). Weights, their gradients, sums and the optimizer are always float32; for bfloat16 the
optimizer writes a rounded copy of the weights, which the products read.

Dropout is done by the products whose outputs it thins out, and the optimizer's update by those that compute
the gradients of weights, which are then never in memory: ``plan.gradients`` are written only where they are
clipped, for which the norm of all has to be known first; one more launch then updates all.

All memory is one allocation, made before the first step.
"""

import math

import numpy as np
from numba import float32, int32, int64, uint64

from ..augment.cuda import DEFORMATION, MOST_KNOTS, MOST_LINES, RESIDENT, arguments_of, pixel, prepare
from ..augment.reference import ARRAYS, KEY
from ..common import cuda as gpu  # its launches by this name: tests without a GPU put others there
from ..common import ptx
from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    LONGS,
    WORDS,
    Kernel,
    address_of,
    blocks_for,
    cuda,
    device,
    flat,
    recorded,
    row_distance,
)
from ..common.fours import AS_IT_IS, write4_halves
from ..common.philox import MASK, SHIFT, philox4x32
from ..common.ptx import load4, store4
from ..dropout.cuda import dropping
from ..dropout.reference import INPUT_LAYER, keep_threshold
from ..matmul import cuda_mma
from ..matmul.cuda import TECHNIQUES, sum_columns, technique_for
from ..matmul.cuda_epilogue import words_of
from ..optimizer.cuda import CHUNK, NUMBERS, UPDATE, clip_norm_with, step_numbers, updating
from ..softmax_xent.cuda import expected_logit, largest_of, smoothed

PRECISIONS = ("float32", "tf32", "bf16")
THREADS = 128
ALIGN = 256  # bytes
ROW = 64  # numbers that rows of matrices are padded to

# The words of the counter: which step it is of this call, of the epoch and of the whole training.
STEP, STEP_OF_EPOCH, UPDATE_NUMBER, POSITION = range(4)


@device
def _place(position, batch, row):
    """Of a row of the batch in the order of the epoch."""
    return position[STEP_OF_EPOCH] * batch + row


@device
def _put_pair(matrix, at, first, second, both):
    """Two numbers of a row of float32, or the only one that is left."""
    matrix[at] = first
    if both:
        matrix[at + 1] = second


@device
def _put_halves(words, at, first, second, both):
    """The same of bfloat16, the second zero where there is none."""
    words[at // 2] = ptx.bfloat16_pair(first, second)


_philox = device(philox4x32)


def _kernel(function, *arguments, name, halves, **more):
    """``halves``: whether it rounds to bfloat16, which the simulator cannot."""
    return Kernel(
        function,
        *arguments,
        threads=THREADS,
        name=name,
        least=(8, 0) if halves else (7, 5),
        simulated=not halves,
        **more,
    )


@device
def _kept(random, threshold, scale, value):
    return value * scale if random >= threshold else float32(0)


@device
def _drop_inputs(first, second, row, column, position, threshold, scale, seed):
    """Dropout, as in kernels/dropout, of two pixels that are half of a block of four."""
    update = uint64(position[UPDATE_NUMBER])
    words = _philox(
        uint64(column // 4), uint64(row), update & MASK, update >> SHIFT, seed, uint64(INPUT_LAYER)
    )
    begins = column % 4 == 0
    first = _kept(words[0] if begins else words[2], threshold, scale, first)
    return first, _kept(words[1] if begins else words[3], threshold, scale, second)


def _taker(images, halves):
    put, stored = (_put_halves, WORDS) if halves else (_put_pair, FLOATS)

    def take(images, pixels, order, position, batch, out, out_row, scale, threshold, kept_scale, seed):
        """Two pixels each of the batch's images; none where the epoch has ended."""
        column, row = 2 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x), cuda.blockIdx.y
        if column < pixels:
            both = column + 1 < pixels
            first, second = float32(0), float32(0)
            place = _place(position, batch, row)
            if place < order.size:
                at = order[place] * pixels + column
                first = float32(images[at]) * scale
                if both:
                    second = float32(images[at + 1]) * scale
            if threshold > 0 and (first != float32(0) or second != float32(0)):
                drop = threshold, kept_scale, seed
                first, second = _drop_inputs(first, second, row, column, position, *drop)
            put(out, row * out_row + column, first, second, both)

    given, kept = "uint8" if images is BYTES else "float32", "bfloat16" if halves else "float32"
    arguments = images, int64, LONGS, LONGS, int64, stored, int64, float32, uint64, float32, uint64
    return _kernel(take, *arguments, name=f"step: images of {given} to {kept}", halves=halves)


def _deformer(halves):
    put, stored = (_put_halves, WORDS) if halves else (_put_pair, FLOATS)

    def deform(
        images, order, position, batch, stream, deformation, out, out_row, scale, threshold, kept_scale, seed
    ):
        """As kernels/augment, a block for each of the batch's images; none where the epoch has ended."""
        knots = cuda.shared.array(MOST_KNOTS, int32)
        lines = cuda.shared.array(MOST_LINES, int32)
        height, width = deformation[:2]
        row, pixels, key = cuda.blockIdx.x, height * width, (seed, stream)
        place, update = _place(position, batch, row), uint64(position[UPDATE_NUMBER])
        if place >= order.size:
            for at in range(2 * cuda.threadIdx.x, pixels, 2 * THREADS):
                put(out, row * out_row + at, float32(0), float32(0), at + 1 < pixels)
            return
        image, first = uint64(order[place]) & MASK, order[place] * pixels
        prepared = prepare(image, update, key, deformation, knots, lines)
        for at in range(2 * cuda.threadIdx.x, pixels, 2 * THREADS):
            both, x, y = at + 1 < pixels, at % width, at // width
            one = pixel(images, first, x, y, prepared, image, update, key, deformation, lines)
            other = int64(0)
            if both:
                x, y = (at + 1) % width, (at + 1) // width
                other = pixel(images, first, x, y, prepared, image, update, key, deformation, lines)
            one, other = float32(one) * scale, float32(other) * scale
            if threshold > 0:
                drop = threshold, kept_scale, seed
                one, other = _drop_inputs(one, other, row, at, position, *drop)
            put(out, row * out_row + at, one, other, both)

    arguments = BYTES, LONGS, LONGS, int64, uint64, DEFORMATION, stored, int64, float32
    arguments += uint64, float32, uint64
    name = f"step: images deformed, to {'bfloat16' if halves else 'float32'}"
    return _kernel(deform, *arguments, name=name, halves=halves, resident=RESIDENT)


def _losses(halves):
    put, stored = (_put_halves, WORDS) if halves else (_put_pair, FLOATS)

    def losses(
        z, z_row, classes, labels, weight, order, position, batch, loss, correct, dz, dz_row, smoothing
    ):
        """Loss, gradient and whether it is right: a thread for each image, as in kernels/softmax_xent."""
        row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if row >= batch:
            return
        place, zero = _place(position, batch, row), float32(0)
        if place >= order.size:
            for c in range(0, classes, 2):
                put(dz, row * dz_row + c, zero, zero, c + 1 < classes)
            return
        image = order[place]
        target, at = labels[image], row * z_row
        best = largest_of(z, at, classes)
        largest = z[at + best]
        own = weight[image] if weight.size > 0 else float32(1)
        each, right = smoothed(smoothing, classes)
        total, depths = zero, zero
        for c in range(classes):
            depth = z[at + c] - largest
            total += math.exp(depth)
            depths += depth
        share = own / float32(min(batch, order.size - _place(position, batch, 0)))
        for c in range(0, classes, 2):
            both = c + 1 < classes
            first = math.exp(z[at + c] - largest) / total
            second = math.exp(z[at + c + 1] - largest) / total if both else zero
            first = (first - (right if c == target else each)) * share
            second = (second - (right if c + 1 == target else each)) * share
            put(dz, row * dz_row + c, first, second, both)
        expected = expected_logit(z[at + target] - largest, depths, smoothing, each)
        loss[place] = (math.log(total) - expected) * own
        correct[place] = 1 if best == target else 0

    arguments = (
        *(FLOATS, int64, int64, INTS, FLOATS, LONGS, LONGS, int64, FLOATS, BYTES, stored, int64),
        float32,
    )
    name = f"step: loss, gradient in {'bfloat16' if halves else 'float32'}"
    return _kernel(losses, *arguments, name=name, halves=halves)


_updated = UPDATE.change


def _update(p, g, rounded, numbers):
    """Four parameters each: gradient descent, and the rounded copy where there is one."""
    at = 4 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
    if at < p.size:
        values = _updated(load4(g, at), (int64(0), at, at, int64(4), int64(1)), p, numbers)
        store4(p, at, values)
        if rounded.size > 0:
            write4_halves(rounded, at, 4, values)


def _count_on(position):
    if cuda.threadIdx.x == 0:
        position[STEP] += 1
        position[STEP_OF_EPOCH] += 1
        position[UPDATE_NUMBER] += 1


_TAKE = {
    (dtype, halves): _taker(kind, halves)
    for dtype, kind in (("uint8", BYTES), ("float32", FLOATS))
    for halves in (False, True)
}
_DEFORM, _LOSSES = ({halves: make(halves) for halves in (False, True)} for make in (_deformer, _losses))
_updates = _kernel(_update, FLOATS, FLOATS, WORDS, UPDATE.kinds, name="step: update", halves=True)
_tick = _kernel(_count_on, LONGS, name="step: count", halves=False)


class Arena:
    """Arrays out of one allocation: first :meth:`array` for each, then :meth:`allocate`."""

    def __init__(self):
        self.wanted, self.size = {}, 0

    def array(self, name, shape, dtype):
        self.wanted[name] = self.size, shape, np.dtype(dtype)
        self.size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // ALIGN) * ALIGN

    def matrix(self, name, rows, columns, dtype):
        """Its rows begin at multiples of ROW numbers."""
        self.array(name, (rows, -(-columns // ROW) * ROW), dtype)

    def allocate(self, zeros):
        """{name: array}; ``zeros`` as of a backend."""
        memory = zeros((self.size,), "uint8")
        return {
            name: memory[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (start, shape, dtype) in self.wanted.items()
        }


class Steps:
    """The steps of a training, ready to be run: for all plans that :meth:`settings` says the same of."""

    def __init__(self, plan, images, labels, loss, correct, zeros, capability):
        """``zeros`` as of a backend, ``capability`` the GPU's."""
        self.batch, self.count = min(plan.batch_size, len(images)), len(images)
        self.halves, self.capability, self.precision = plan.precision == "bf16", capability, plan.precision
        self.memory = self._memory(plan, zeros)
        with recorded() as launches:
            self._step(plan, images, labels, loss, correct)
        with recorded() as rounding:
            if self.halves:
                cuda_mma.to_bfloat16(plan.parameters.reshape(1, -1), self.memory["rounded"].reshape(1, -1))
        self.launches = [gpu.prepared(*launch) for launch in launches]
        self.rounding = [gpu.prepared(*launch) for launch in rounding]
        self.graph = None

    @staticmethod
    def settings(plan, images, labels, loss, correct):
        """What must be the same for :meth:`run`: numbers, and arrays by where they are."""
        arrays = [plan.parameters, plan.gradients, *plan.state, images, labels, loss, correct, plan.weight]
        strengths = None
        if plan.deformation is not None:
            strengths = plan.deformation.thick, plan.deformation.noise, plan.deformation.erase
            arrays += [getattr(plan.deformation, name) for name in ARRAYS]
        places = tuple(None if a is None else (a.__class__, address_of(a), a.shape) for a in arrays)
        numbers = plan.layout, plan.precision, plan.batch_size, plan.dropout, plan.seed, plan.clip_norm
        numbers += plan.input_dropout, plan.label_smoothing
        return places, numbers, strengths, getattr(plan.optimizer, "nesterov", False)

    def _memory(self, plan, zeros):
        sizes, arena, batch = plan.layout.layer_sizes, Arena(), self.batch
        stored = np.uint16 if self.halves else np.float32
        arena.matrix("x", batch, sizes[0], stored)
        for layer, size in enumerate(sizes[1:-1]):
            arena.matrix(f"y{layer}", batch, size, stored)
        arena.matrix("z", batch, sizes[-1], np.float32)
        for layer, size in enumerate(sizes[1:]):
            arena.matrix(f"dy{layer}", batch, size, stored)
        arena.array("rounded", (plan.layout.size if self.halves else 0,), np.uint16)
        steps = -(-self.count // plan.batch_size)
        arena.array("numbers", (steps, NUMBERS), np.float32)
        arena.array("position", (POSITION,), np.int64)
        arena.array("order", (self.count,), np.int64)
        parts = blocks_for(plan.layout.size, CHUNK) if plan.clip_norm is not None else 0
        arena.array("largest", (parts,), np.float32)
        arena.array("squares", (parts,), np.float64)
        return arena.allocate(zeros)

    def _matrix(self, name, columns):
        return self.memory[name][:, :columns]

    def _multiply(self, a, b, out, rounded=None, **how):
        """The product of the precision at hand, to float32 or bfloat16 as ``out`` is, and to ``rounded``, of
        bfloat16, if that is not None."""
        technique = technique_for(self.precision, self.capability, out.shape)
        where = {"half": out} if out.dtype == np.uint16 else {"c": out}
        where |= {} if rounded is None else {"half": rounded}
        return TECHNIQUES[technique].multiply(a, b, **where, **how)

    def _step(self, plan, images, labels, loss, correct):
        sizes, memory = plan.layout.layer_sizes, self.memory
        x = self._matrix("x", sizes[0])
        y = [self._matrix(f"y{layer}", size) for layer, size in enumerate(sizes[1:-1])]
        z = self._matrix("z", sizes[-1])
        dy = [self._matrix(f"dy{layer}", size) for layer, size in enumerate(sizes[1:])]
        numbers_of = words_of if self.halves else flat
        position, order = memory["position"], memory["order"]
        self._take(plan, images, x, numbers_of)
        self._forward(plan, [x, *y, z])
        _LOSSES[self.halves](
            blocks_for(self.batch, THREADS),
            *(flat(z), row_distance(z), sizes[-1], labels),
            plan.parameters[:0] if plan.weight is None else plan.weight,
            *(order, position, self.batch, loss, correct),
            *(numbers_of(dy[-1]), row_distance(dy[-1]), plan.label_smoothing),
        )
        self._backward(plan, [x, *y], dy)
        if plan.clip_norm is not None:
            clip_norm_with(memory["largest"], memory["squares"], plan.gradients, plan.clip_norm)
            _updates(
                blocks_for(plan.layout.size // 4, THREADS),
                *(plan.parameters, plan.gradients, memory["rounded"].view(np.uint32)),
                self._updating(plan, plan.state).numbers,
            )
        _tick(1, position)

    def _take(self, plan, images, x, numbers_of):
        """The batch's images, deformed where they shall be."""
        images, order, position = flat(images.reshape(-1)), self.memory["order"], self.memory["position"]
        to = numbers_of(x), row_distance(x), 1 / 255 if images.dtype == np.uint8 else 1
        dropped = keep_threshold(plan.input_dropout), 1 / (1 - plan.input_dropout), plan.seed
        if plan.deformation is None:
            take = _TAKE[str(images.dtype), self.halves]
            blocks = blocks_for(blocks_for(x.shape[1], 2), THREADS), self.batch
            take(blocks, images, x.shape[1], order, position, self.batch, *to, *dropped)
        else:
            how = KEY, arguments_of(plan.deformation), *to, *dropped
            _DEFORM[self.halves](self.batch, images, order, position, self.batch, *how)

    def _weights(self, plan):
        """What the products read of each layer's weights."""
        return [w for w, _ in plan.layout.layers(self.memory["rounded"] if self.halves else plan.parameters)]

    def _forward(self, plan, y):
        """All outputs, from those of the layer below."""
        step, last = self.memory["position"][UPDATE_NUMBER:], len(y) - 2
        biases = [b for _, b in plan.layout.layers(plan.parameters)]
        for layer, (w, b) in enumerate(zip(self._weights(plan), biases, strict=True)):
            hidden, then = layer < last, AS_IT_IS
            if hidden and plan.dropout[layer]:
                then = dropping(plan.dropout[layer], (plan.seed, layer), step)
            self._multiply(y[layer], w, y[layer + 1], bias=b, relu=hidden, then=then)

    def _backward(self, plan, y, dy):
        """From the gradient of the logits down to the weights: to their gradients, or to what they become."""
        weights, clipped = self._weights(plan), plan.clip_norm is not None
        outputs = plan.layout.layers(plan.gradients if clipped else plan.parameters)
        states = [plan.layout.layers(state) for state in plan.state]
        for layer in reversed(range(len(dy))):
            if layer:  # before the weights, which it reads, are updated
                scale = 1 / (1 - plan.dropout[layer - 1])
                how = {"turned": (False, True), "y_below": y[layer], "scale": scale}
                self._multiply(dy[layer], weights[layer], dy[layer - 1], **how)
            (w, b), then_w, then_b = outputs[layer], AS_IT_IS, AS_IT_IS
            if not clipped:
                then_w, then_b = (self._updating(plan, [s[layer][i] for s in states]) for i in (0, 1))
            rounded = weights[layer] if self.halves and not clipped else None
            self._multiply(y[layer], dy[layer], w, rounded, turned=(True, False), then=then_w)
            sum_columns(dy[layer], b, then_b)

    def _updating(self, plan, state):
        nesterov, step = getattr(plan.optimizer, "nesterov", False), self.memory["position"][STEP:]
        return updating(state, nesterov, self.memory["numbers"], step)

    def run(self, plan, order, to_device):
        """The steps of a plan. ``to_device`` as of a backend."""
        memory, steps = self.memory, len(plan.learning_rates)
        to_device(np.array([0, plan.first_step, plan.update], np.int64), out=memory["position"])
        to_device(step_numbers(plan), out=memory["numbers"][:steps])
        memory["order"][...] = order
        for launch in self.rounding:  # the weights may have been changed since
            launch()
        if self.graph is None:
            for launch in self.launches:  # one by one: what has to be compiled and loaded now is
                launch()
            self.graph, steps = gpu.graph(self.launches), steps - 1
        for _ in range(steps):
            self.graph()
