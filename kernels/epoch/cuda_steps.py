"""The steps of a network of any depth on a GPU, as launches that are the same in every step.

What differs from step to step, which images, which learning rate, which random numbers, kernels look up in
the GPU's memory at the place of a counter, and the last launch counts on. So the launches of some steps,
captured once as a CUDA graph, make all steps of a training: the host asks for them and does not wait. A last
batch that is shorter is filled up with images that weigh nothing.

Storage and products are those of the network's precision: float32 multiplied in float32; float32 on tensor
cores, which look at 19 bits of each number ("tf32"); or images, outputs of layers and their gradients in
bfloat16 ("bf16"). Weights, their gradients, sums and the optimizer are always float32; for bfloat16 the
optimizer writes a rounded copy of the weights, which the products read.

Dropout is done by the products whose outputs it thins out, and the optimizer's update by those that compute
the gradients of weights, which are then never in memory: ``plan.gradients`` are written only where they are
clipped, for which the norm of all has to be known first; one more launch then updates all.

The inputs of each layer have a column of ones behind them, for the gradient of the biases, which lie behind
the weights like one more row of these: they come from the same product.

All memory is one allocation, made before the first step.
"""

import math
from functools import cache

import numpy as np
from numba import float32, int32, int64, uint64

from ..augment.cuda import DEFORMATION, MOST_KNOTS, MOST_LINES, RESIDENT, arguments_of, pixel, prepare
from ..augment.reference import ARRAYS, KEY
from ..common import cuda as gpu  # its launches by this name: tests without a GPU put others there
from ..common import ptx
from ..common.arena import Arena
from ..common.cuda import (
    BYTES,
    FLOATS,
    INTS,
    LONGS,
    WORDS,
    Kernel,
    blocks_for,
    copy_onto,
    cuda,
    device,
    flat,
    places_of,
    recorded,
    row_distance,
)
from ..common.fours import AS_IT_IS, write4_halves
from ..common.lanes import exchanged
from ..common.philox import MASK, SHIFT, philox4x32
from ..common.ptx import load4, store4
from ..dropout.cuda import dropping
from ..dropout.reference import INPUT_LAYER, keep_threshold
from ..matmul import cuda_mma
from ..matmul.cuda import TECHNIQUES, sum_columns, technique_for
from ..matmul.cuda_epilogue import words_of
from ..optimizer.cuda import CHUNK, NUMBERS, clip_norm_with, step_numbers, updating
from ..softmax_xent.cuda import (
    LANES,
    ROWS,
    depth_of,
    expected_logit,
    largest_of,
    place_of_lane,
    smoothed,
    sums_of,
)
from ..softmax_xent.cuda import THREADS as THREADS_OF_ROWS

PRECISIONS = ("float32", "tf32", "bf16")
THREADS = 128
TAKEN = 4  # pixels of a thread
ROW = 64  # numbers that rows of matrices are padded to
ONE = 0x3F80  # in bfloat16
MANY = 16  # steps that one call of the driver asks for

# The words of the counter: which step it is of this call, of the epoch and of the whole training.
STEP, STEP_OF_EPOCH, UPDATE_NUMBER, POSITION = range(4)


@device
def _place(position, batch, row):
    """Of a row of the batch in the order of the epoch."""
    return position[STEP_OF_EPOCH] * batch + row


@device
def _put(matrix, at, c, value, there):
    """A number of a row of float32, if it is there."""
    if there:
        matrix[at + c] = value


@device
def _put_half(words, at, c, value, there):
    """The same of bfloat16. All lanes of a warp together: each other one writes its neighbour's, too."""
    after = exchanged(value, 1)
    if there and c % 2 == 0:
        words[(at + c) // 2] = ptx.bfloat16_pair(value, after)


_philox = device(philox4x32)


def _kernel(function, *arguments, name, halves, threads=THREADS, **more):
    """``halves``: whether it rounds to bfloat16, which the simulator cannot."""
    return Kernel(
        function,
        *arguments,
        threads=threads,
        name=name,
        least=(8, 0) if halves else (7, 5),
        dependent=True,
        simulated=not halves,
        **more,
    )


@device
def _drop_input(value, row, column, position, threshold, scale, seed):
    """Dropout, as in kernels/dropout, of a pixel."""
    update = uint64(position[UPDATE_NUMBER])
    words = _philox(
        uint64(column // 4), uint64(row), update & MASK, update >> SHIFT, seed, uint64(INPUT_LAYER)
    )
    at = column % 4
    word = (words[0] if at == 0 else words[1]) if at < 2 else (words[2] if at == 2 else words[3])
    return value * scale if word >= threshold else float32(0)


def _taker(images, halves):
    put, stored = (_put_half, WORDS) if halves else (_put, FLOATS)

    def take(images, pixels, order, position, batch, out, out_row, scale, threshold, kept_scale, seed):
        """TAKEN pixels each of the batch's images; zeros where the epoch has ended."""
        ptx.launch_dependents()
        ptx.wait_for_launches()
        row = cuda.blockIdx.y
        place = _place(position, batch, row)
        live = place < order.size
        first = order[place] * pixels if live else 0
        for i in range(TAKEN):
            column = (cuda.blockIdx.x * TAKEN + i) * THREADS + cuda.threadIdx.x
            value = float32(0)
            if live and column < pixels:
                value = float32(images[first + column]) * scale
                if threshold > 0 and value != float32(0):
                    value = _drop_input(value, row, column, position, threshold, kept_scale, seed)
            put(out, row * out_row, column, value, column < pixels)

    given, kept = "uint8" if images is BYTES else "float32", "bfloat16" if halves else "float32"
    arguments = images, int64, LONGS, LONGS, int64, stored, int64, float32, uint64, float32, uint64
    return _kernel(take, *arguments, name=f"step: images of {given} to {kept}", halves=halves)


def _deformer(halves):
    put, stored = (_put_half, WORDS) if halves else (_put, FLOATS)

    def deform(
        images, order, position, batch, stream, deformation, out, out_row, scale, threshold, kept_scale, seed
    ):
        """As kernels/augment, a block for each of the batch's images; zeros where the epoch has ended."""
        ptx.launch_dependents()
        ptx.wait_for_launches()
        knots = cuda.shared.array(MOST_KNOTS, int32)
        lines = cuda.shared.array(MOST_LINES, int32)
        height, width = deformation[:2]
        row, pixels, key = cuda.blockIdx.x, height * width, (seed, stream)
        place, update = _place(position, batch, row), uint64(position[UPDATE_NUMBER])
        live = place < order.size
        number = order[place] if live else 0
        image, first = uint64(number) & MASK, number * pixels
        prepared = prepare(image, update, key, deformation, knots, lines)
        for begin in range(0, pixels, THREADS):
            at, value = begin + cuda.threadIdx.x, float32(0)
            if live and at < pixels:
                x, y = at % width, at // width
                ink = pixel(images, first, x, y, prepared, image, update, key, deformation, lines)
                value = float32(ink) * scale
                if threshold > 0:
                    value = _drop_input(value, row, at, position, threshold, kept_scale, seed)
            put(out, row * out_row, at, value, at < pixels)

    arguments = BYTES, LONGS, LONGS, int64, uint64, DEFORMATION, stored, int64, float32
    arguments += uint64, float32, uint64
    name = f"step: images deformed, to {'bfloat16' if halves else 'float32'}"
    return _kernel(deform, *arguments, name=name, halves=halves, resident=RESIDENT)


def _losses(halves):
    put, stored = (_put_half, WORDS) if halves else (_put, FLOATS)

    def losses(
        z, z_row, classes, labels, weight, order, position, batch, loss, correct, dz, dz_row, smoothing
    ):
        """Loss, gradient and whether it is right, as in kernels/softmax_xent; zeros past the epoch's end."""
        ptx.launch_dependents()
        ptx.wait_for_launches()
        row, lane = place_of_lane()
        place, at = _place(position, batch, row), row * z_row
        live = row < batch and place < order.size
        there = classes if live else 0
        image = order[place] if live else 0
        target = labels[image] if live else int32(0)
        first, largest, best = largest_of(z, at, lane, there)
        total, of_target, depths = sums_of(z, at, lane, there, first, largest, target, smoothing)
        own = weight[image] if live and weight.size > 0 else float32(1)
        each, right = smoothed(smoothing, classes)
        share = own / float32(min(batch, order.size - _place(position, batch, 0)))
        for begin in range(0, classes, LANES):  # all lanes together
            c, slope = begin + lane, float32(0)
            if c < there:
                p = math.exp(depth_of(z, at, lane, c, first, largest)) / total
                slope = (p - (right if c == target else each)) * share
            put(dz, row * dz_row, c, slope, row < batch and c < classes)
        if live and lane == 0:
            expected = expected_logit(of_target, depths, smoothing, each)
            loss[place] = (math.log(total) - expected) * own
            correct[place] = 1 if best == target else 0

    arguments = (
        *(FLOATS, int64, int64, INTS, FLOATS, LONGS, LONGS, int64, FLOATS, BYTES, stored, int64),
        float32,
    )
    name = f"step: loss, gradient in {'bfloat16' if halves else 'float32'}"
    return _kernel(losses, *arguments, name=name, halves=halves, threads=THREADS_OF_ROWS)


@cache
def _updates(epilogue):
    updated, now, before = epilogue.change, epilogue.begin, epilogue.read

    def update(p, g, rounded, numbers):
        """Four parameters each: gradient descent, and the rounded copy where there is one."""
        ptx.launch_dependents()
        ptx.wait_for_launches()
        at = 4 * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if at < p.size:
            place = int64(0), at, at, int64(4), int64(1)
            values = updated(load4(g, at), place, before(place, p, numbers), now(numbers), numbers)
            store4(p, at, values)
            if rounded.size > 0:
                write4_halves(rounded, at, 4, 1, values)

    return _kernel(update, FLOATS, FLOATS, WORDS, epilogue.kinds, name=f"step: {epilogue.name}", halves=True)


def _count_on(position):
    ptx.launch_dependents()
    ptx.wait_for_launches()
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
_tick = _kernel(_count_on, LONGS, name="step: count", halves=False)


def _padded(columns):
    return -(-columns // ROW) * ROW


class Steps:
    """The steps of a training, ready to be run: for all plans that :meth:`settings` says the same of."""

    def __init__(self, plan, images, labels, loss, correct, zeros, capability, dependent=None):
        """``zeros`` as of a backend, ``capability`` the GPU's. ``dependent``: whether each launch may begin
        before the last has ended; by default where it was quicker, which is with bfloat16's kernels."""
        self.batch, self.count = min(plan.batch_size, len(images)), len(images)
        self.halves, self.capability, self.precision = plan.precision == "bf16", capability, plan.precision
        self.memory = self._memory(plan, zeros)
        with recorded() as launches:
            self._step(plan, images, labels, loss, correct)
        with recorded() as rounding:
            if self.halves:
                cuda_mma.to_bfloat16(plan.parameters.reshape(1, -1), self.memory["rounded"].reshape(1, -1))
        early = self.halves if dependent is None else dependent
        self.launches = [gpu.prepared(*launch, dependent=early) for launch in launches]
        self.rounding = [gpu.prepared(*launch) for launch in rounding]
        self.graphs = ()

    @staticmethod
    def settings(plan, images, labels, loss, correct):
        """What must be the same for :meth:`run`: numbers, and arrays by where they are."""
        arrays = [plan.parameters, plan.gradients, *plan.state, images, labels, loss, correct, plan.weight]
        strengths = None
        if plan.deformation is not None:
            strengths = plan.deformation.thick, plan.deformation.noise, plan.deformation.erase
            arrays += [getattr(plan.deformation, name) for name in ARRAYS]
        numbers = plan.layout, plan.precision, plan.batch_size, plan.dropout, plan.seed, plan.clip_norm
        numbers += plan.input_dropout, plan.label_smoothing
        return places_of(arrays), numbers, strengths, getattr(plan.optimizer, "nesterov", False)

    def _memory(self, plan, zeros):
        sizes, arena, batch = plan.layout.layer_sizes, Arena(_padded), self.batch
        stored = np.uint16 if self.halves else np.float32
        for layer, size in enumerate(sizes[:-1]):
            arena.matrix(f"x{layer}", batch, size + 1, stored)  # of each layer, with its ones
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
        memory = arena.allocate(zeros)
        for layer, size in enumerate(sizes[:-1]):
            memory[f"x{layer}"][:, size] = ONE if self.halves else 1
        return memory

    def _multiply(self, a, b, out, rounded=None, **how):
        """The product of the precision at hand, to float32 or bfloat16 as ``out`` is, and to ``rounded``, of
        bfloat16, if that is not None."""
        technique = technique_for(self.precision, self.capability, out.shape)
        where = {"half": out} if out.dtype == np.uint16 else {"c": out}
        where |= {} if rounded is None else {"half": rounded}
        return TECHNIQUES[technique].multiply(a, b, **where, **how)

    def _step(self, plan, images, labels, loss, correct):
        sizes, memory = plan.layout.layer_sizes, self.memory
        inputs = [memory[f"x{layer}"][:, :size] for layer, size in enumerate(sizes[:-1])]
        x, z = inputs[0], memory["z"]
        dy = [memory[f"dy{layer}"] for layer in range(len(sizes) - 1)]
        numbers_of = words_of if self.halves else flat
        position, order = memory["position"], memory["order"]
        self._take(plan, images, x, numbers_of)
        self._forward(plan, [*inputs, z])
        _LOSSES[self.halves](
            blocks_for(self.batch, ROWS),
            *(flat(z), row_distance(z), sizes[-1], labels),
            plan.parameters[:0] if plan.weight is None else plan.weight,
            *(order, position, self.batch, loss, correct),
            *(numbers_of(dy[-1]), row_distance(dy[-1]), plan.label_smoothing),
        )
        self._backward(plan, inputs, dy)
        if plan.clip_norm is not None:
            clip_norm_with(memory["largest"], memory["squares"], plan.gradients, plan.clip_norm)
            then = self._updating(plan, plan.state)
            _updates(then.epilogue)(
                blocks_for(plan.layout.size // 4, THREADS),
                *(plan.parameters, plan.gradients, memory["rounded"].view(np.uint32), then.numbers),
            )
        _tick(1, position)

    def _take(self, plan, images, x, numbers_of):
        """The batch's images, deformed where they shall be."""
        images, order, position = flat(images.reshape(-1)), self.memory["order"], self.memory["position"]
        to = numbers_of(x), row_distance(x), 1 / 255 if images.dtype == np.uint8 else 1
        dropped = keep_threshold(plan.input_dropout), 1 / (1 - plan.input_dropout), plan.seed
        if plan.deformation is None:
            take = _TAKE[str(images.dtype), self.halves]
            blocks = blocks_for(x.shape[1], TAKEN * THREADS), self.batch
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
        weights = self._weights(plan)
        for layer in reversed(range(len(dy))):
            if layer:  # before the weights, which it reads, are updated
                scale = 1 / (1 - plan.dropout[layer - 1])
                how = {"turned": (False, True), "y_below": y[layer], "scale": scale}
                self._multiply(dy[layer], weights[layer], dy[layer - 1], **how)
            self._to_weights(plan, layer, dy[layer])

    def _to_weights(self, plan, layer, dy):
        """The gradients of a layer's weights and biases, or what these become."""
        clipped, x, layout = plan.clip_norm is not None, self.memory[f"x{layer}"], plan.layout
        flat = plan.gradients if clipped else plan.parameters
        rounded = self.memory["rounded"] if self.halves and not clipped else None

        def then(of):
            return AS_IT_IS if clipped else self._updating(plan, [of(state) for state in plan.state])

        def multiply(x, of):
            half = None if rounded is None else of(rounded)
            self._multiply(x, dy, of(flat), half, turned=(True, False), then=then(of))

        if self._has_ones(layout.layer_sizes[layer]):
            multiply(x, lambda flat: layout.with_biases(flat)[layer])
        else:
            multiply(x[:, :-1], lambda flat: layout.layers(flat)[layer][0])
            sum_columns(dy, layout.layers(flat)[layer][1], then(lambda flat: layout.layers(flat)[layer][1]))

    def _has_ones(self, size):
        """Whether inputs of this size keep their ones: a last number of bfloat16 that has no neighbour is
        written with a zero in its place."""
        return not self.halves or size % 2 == 0

    def _updating(self, plan, state):
        nesterov, step = getattr(plan.optimizer, "nesterov", False), self.memory["position"][STEP:]
        return updating(state, nesterov, self.memory["numbers"], step)

    def run(self, plan, order, to_device):
        """The steps of a plan. ``to_device`` as of a backend."""
        memory, steps = self.memory, len(plan.learning_rates)
        to_device(np.array([0, plan.first_step, plan.update], np.int64), out=memory["position"])
        to_device(step_numbers(plan), out=memory["numbers"][:steps])
        copy_onto(memory["order"], order)
        for launch in self.rounding:  # the weights may have been changed since
            launch()
        if not self.graphs:
            for launch in self.launches:  # one by one: what has to be compiled and loaded now is
                launch()
            steps -= 1
            self.graphs = [(many, gpu.graph(self.launches * many)) for many in (MANY, 1)]
        for many, graph in self.graphs:
            for _ in range(steps // many):
                graph()
            steps %= many
