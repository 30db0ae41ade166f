"""A stretch of an epoch of a network with one hidden layer in one launch: the weights stay on the chip.

Small networks are all latency: a step of 784-128-10 is a microsecond of arithmetic, and launching a kernel
takes longer. Here every block owns some hidden units: their columns of the first weights, their rows of the
second and what the optimizer keeps for both stay in its shared memory from the first step to the last. In
each step a block

1. computes its units' outputs for all images of the batch, and what these add to the logits;
2. meets the others, adds up the logits of its share of the images (in the order of the blocks), writes their
   loss and the logits' gradient;
3. meets the others again, reads the gradients of all images, and updates what it owns. The bias of the
   output layer every block keeps for itself, with the same bits.

Where the logits to be added up are few (ONE_MEETING), each block does so for all images, and need not meet
the others again. Blocks that are ahead then write their next ones elsewhere.

The next batch is on its way while this one is computed with. No sum depends on who comes first.

Source: the idea of weights that stay in registers or shared memory across steps is that of Diamos et al.,
"Persistent RNNs", ICML 2016.
"""

import math

import numpy as np
from numba import float32, int64, uint8, uint32, uint64

from ..common import lanes, ptx
from ..common.arena import Arena
from ..common.cuda import BYTES, FLOATS, INTS, LONGS, Kernel, blocks_for, cuda, device
from ..common.lanes import ALL, exchanged
from ..optimizer.cuda import NUMBERS, numbers_of, step_numbers, stepped
from ..softmax_xent.cuda import expected_logit, smoothed

THREADS = 256
WARPS = THREADS // 32
MOST_CLASSES = 32  # one for each lane

# Bytes of logits that a block reads from the second cache in about the time of a barrier: one to two
# microseconds, at some 80 GB/s for each of all blocks. By estimate; to be measured.
ONE_MEETING = 128 * 1024

# The words of the plan.
(
    STEPS,
    FIRST_STEP,
    BATCH,
    COUNT,
    PIXELS,
    HIDDEN,
    CLASSES,
    UNITS,  # of a block
    W1,  # where in the flat buffer, and how far apart the rows are
    W1_ROW,
    B1,
    W2,
    W2_ROW,
    B2,
    STATES,  # 0, 1 or 2 vectors of the optimizer
    NESTEROV,
    WEIGHTED,
    X,  # where in shared memory, in words, from here on
    X_ROW,
    X_BUFFERS,  # 1 or 2
    X_WORDS,  # of a buffer
    OWN,  # w1 [UNITS, OWN_ROW], then its states
    OWN_ROW,
    SMALL,  # b1 [UNITS], w2 [UNITS, CLASSES], b2 [CLASSES], then their states
    SMALL_WORDS,
    Y,  # [UNITS, Y_ROW], the units' outputs, then their gradients
    Y_ROW,
    DZ,  # [BATCH, DZ_ROW]
    DZ_ROW,
    SHARED_WORDS,
    MEETINGS,  # of all blocks in a step, 1 or 2
    WORDS,
) = range(32)


_warp_sum = lanes.summing(32)


@device
def _warp_largest(value):
    for distance in (16, 8, 4, 2, 1):
        other = exchanged(value, distance)
        value = value if value > other or value != value else other
    return value


@device
def _update(memory, at, states, gradient, plan, numbers):
    """The parameter at ``memory[at]``, whose states are ``states`` words further each, by its gradient."""
    zero = float32(0)
    count = plan[STATES]
    state_0 = memory[at + states] if count > 0 else zero
    state_1 = memory[at + 2 * states] if count > 1 else zero
    found = stepped(memory[at], gradient, state_0, state_1, count, plan[NESTEROV], numbers)
    memory[at] = found[0]
    if count > 0:
        memory[at + states] = found[1]
    if count > 1:
        memory[at + 2 * states] = found[2]


@device
def _ask_for_batch(plan, step, images, order, base):
    """Copy the images of a step to shared memory, in rows of 32 bytes more than they have: eight lanes that
    read 16 bytes each from rows below each other then meet all banks once."""
    batch, pixels = plan[BATCH], plan[PIXELS]
    start = (plan[FIRST_STEP] + step) * batch
    count = min(batch, plan[COUNT] - start)
    pieces = pixels // 16
    place = base + uint32(4 * (plan[X] + step % plan[X_BUFFERS] * plan[X_WORDS]))
    address = ptx.global_address(images)
    for item in range(cuda.threadIdx.x, count * pieces, THREADS):
        row, piece = item // pieces, item % pieces
        source = address + uint64(order[start + row] * pixels + 16 * piece)
        ptx.copy_16(place + uint32(4 * row * plan[X_ROW] + 16 * piece), source, uint32(16))


@device
def _own(plan, unit):
    """The hidden unit of the network that is a block's ``unit``."""
    return cuda.blockIdx.x * plan[UNITS] + unit


@device
def _update4(memory, at, states, gradient, plan, numbers):
    """The same of four parameters beside each other, in accesses of 128 bits."""
    count, nesterov, zero = plan[STATES], plan[NESTEROV], float32(0)
    p, state_0, state_1 = ptx.load4(memory, at), (zero, zero, zero, zero), (zero, zero, zero, zero)
    if count > 0:
        state_0 = ptx.load4(memory, at + states)
    if count > 1:
        state_1 = ptx.load4(memory, at + 2 * states)
    a = stepped(p[0], gradient[0], state_0[0], state_1[0], count, nesterov, numbers)
    b = stepped(p[1], gradient[1], state_0[1], state_1[1], count, nesterov, numbers)
    c = stepped(p[2], gradient[2], state_0[2], state_1[2], count, nesterov, numbers)
    d = stepped(p[3], gradient[3], state_0[3], state_1[3], count, nesterov, numbers)
    ptx.store4(memory, at, (a[0], b[0], c[0], d[0]))
    if count > 0:
        ptx.store4(memory, at + states, (a[1], b[1], c[1], d[1]))
    if count > 1:
        ptx.store4(memory, at + 2 * states, (a[2], b[2], c[2], d[2]))


@device
def _carry(plan, memory, flat, state, back):
    """Copy a block's parameters (state 0) or states from the flat buffer to shared memory, or back."""
    units, pixels, classes = plan[UNITS], plan[PIXELS], plan[CLASSES]
    here = plan[OWN] + state * units * plan[OWN_ROW]
    for item in range(cuda.threadIdx.x, units * pixels, THREADS):
        unit, pixel = item % units, item // units
        if _own(plan, unit) < plan[HIDDEN]:
            there = plan[W1] + pixel * plan[W1_ROW] + _own(plan, unit)
            if back:
                flat[there] = memory[here + unit * plan[OWN_ROW] + pixel]
            else:
                memory[here + unit * plan[OWN_ROW] + pixel] = flat[there]
        elif not back:
            memory[here + unit * plan[OWN_ROW] + pixel] = float32(0)
    here = plan[SMALL] + state * plan[SMALL_WORDS]
    for item in range(cuda.threadIdx.x, plan[SMALL_WORDS], THREADS):
        there = int64(-1)
        if item < units:
            if _own(plan, item) < plan[HIDDEN]:
                there = plan[B1] + _own(plan, item)
        elif item < units + units * classes:
            unit, c = (item - units) // classes, (item - units) % classes
            if _own(plan, unit) < plan[HIDDEN]:
                there = plan[W2] + _own(plan, unit) * plan[W2_ROW] + c
        elif not back or cuda.blockIdx.x == 0:
            there = plan[B2] + item - units - units * classes
        if back:
            if there >= 0:
                flat[there] = memory[here + item]
        else:
            memory[here + item] = flat[there] if there >= 0 else float32(0)


@device
def _add_four(total, word, weights):
    """The sum with four pixels of a word, times weights."""
    total += float32(word & uint32(255)) * weights[0]
    total += float32(word >> uint32(8) & uint32(255)) * weights[1]
    total += float32(word >> uint32(16) & uint32(255)) * weights[2]
    return total + float32(word >> uint32(24)) * weights[3]


@device
def _hidden(plan, memory, words, x, count):
    """y[unit, image] = max(x·w1 + b1, 0): a thread for each image and unit, 16 pixels at a time."""
    units = plan[UNITS]
    sixteens = plan[PIXELS] // 16
    for item in range(cuda.threadIdx.x, units * count, THREADS):
        unit, image = item // count, item % count
        row, w = x + image * plan[X_ROW], plan[OWN] + unit * plan[OWN_ROW]
        total = float32(0)
        for sixteen in range(sixteens):
            ink = ptx.load4_words(words, row + 4 * sixteen)
            at = w + 16 * sixteen
            total = _add_four(total, ink[0], ptx.load4(memory, at))
            total = _add_four(total, ink[1], ptx.load4(memory, at + 4))
            total = _add_four(total, ink[2], ptx.load4(memory, at + 8))
            total = _add_four(total, ink[3], ptx.load4(memory, at + 12))
        total = total * float32(1 / 255) + memory[plan[SMALL] + unit]
        memory[plan[Y] + unit * plan[Y_ROW] + image] = float32(0) if total < float32(0) else total


@device
def _place_of_logits(plan, step, block):
    """Of a block's part of the logits: [2, block, image, class], of this step and the one before."""
    return (step % 2 * cuda.gridDim.x + block) * plan[BATCH] * plan[CLASSES]


@device
def _logits(plan, memory, step, count, logits):
    """What a block's units add to the logits."""
    classes, units = plan[CLASSES], plan[UNITS]
    w2 = plan[SMALL] + units
    there = _place_of_logits(plan, step, cuda.blockIdx.x)
    for item in range(cuda.threadIdx.x, count * classes, THREADS):
        image, c = item // classes, item % classes
        total = float32(0)
        for unit in range(units):
            total += memory[plan[Y] + unit * plan[Y_ROW] + image] * memory[w2 + unit * classes + c]
        logits[there + item] = total


@device
def _loss(plan, memory, step, start, count, logits, labels, order, weight, loss, correct, dz, smoothing):
    """Loss, gradient and whether it is right for a block's share of the images: a warp for each. Where blocks
    meet but once, the gradients of all images, in its own memory."""
    classes, blocks = plan[CLASSES], cuda.gridDim.x
    warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    parts = 32 // classes  # lanes that share a class's sum
    part, c = lane // classes, lane % classes
    b2 = plan[SMALL] + plan[UNITS] * (1 + classes)
    each, right = smoothed(smoothing, classes)
    first, last = count * cuda.blockIdx.x // blocks, count * (cuda.blockIdx.x + 1) // blocks
    alone = plan[MEETINGS] == 1
    begin, end = (int64(0), count) if alone else (first, last)
    for image in range(begin + warp, end, WARPS):
        total = float32(0)
        if part < parts:
            for block in range(part, blocks, parts):
                total += logits[_place_of_logits(plan, step, block) + image * classes + c]
        z = total
        for other in range(1, parts):
            z += cuda.shfl_sync(ALL, total, (other * classes + c) % 32)
        z = z + memory[b2 + c] if lane < classes else float32(-np.inf)
        largest = _warp_largest(z)
        power = math.exp(z - largest) if lane < classes else float32(0)
        whole = _warp_sum(power)
        depths = float32(0)
        if smoothing > float32(0):
            depths = _warp_sum(z - largest if lane < classes else float32(0))
        place = order[start + image]
        target = labels[place]
        best = cuda.ffs(cuda.ballot_sync(ALL, lane < classes and z == largest)) - 1
        of_target = cuda.shfl_sync(ALL, z, target)
        own = weight[place] if plan[WEIGHTED] else float32(1)
        if lane < classes:
            slope = power / whole - (right if lane == target else each)
            slope = slope * own / float32(count)
            if alone:
                memory[plan[DZ] + image * plan[DZ_ROW] + lane] = slope
            else:
                dz[image * classes + lane] = slope
        if lane == 0 and first <= image and image < last:
            expected = expected_logit(of_target - largest, depths, smoothing, each)
            loss[start + image] = (math.log(whole) - expected) * own
            correct[start + image] = uint8(1) if best == target else uint8(0)


@device
def _backward(plan, memory, words, x, count, numbers):
    """All gradients of what a block owns, used up as soon as they are there."""
    units, classes, pixels = plan[UNITS], plan[CLASSES], plan[PIXELS]
    small, states = plan[SMALL], plan[SMALL_WORDS]
    dy = plan[Y] + units * plan[Y_ROW]
    for item in range(cuda.threadIdx.x, units * count, THREADS):
        unit, image = item // count, item % count
        total = float32(0)
        if memory[plan[Y] + unit * plan[Y_ROW] + image] > float32(0):
            for c in range(classes):
                w2 = memory[small + units + unit * classes + c]
                total += memory[plan[DZ] + image * plan[DZ_ROW] + c] * w2
        memory[dy + unit * plan[Y_ROW] + image] = total
    cuda.syncthreads()
    warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    for item in range(warp, plan[SMALL_WORDS], WARPS):  # b1, w2, b2 in turn
        total = float32(0)
        unit, c = (item - units) // classes, (item - units) % classes
        for image in range(lane, count, 32):
            if item < units:
                total += memory[dy + item * plan[Y_ROW] + image]
            elif unit < units:
                y = memory[plan[Y] + unit * plan[Y_ROW] + image]
                total += y * memory[plan[DZ] + image * plan[DZ_ROW] + c]
            else:
                total += memory[plan[DZ] + image * plan[DZ_ROW] + c]
        total = _warp_sum(total)
        if lane == 0:
            _update(memory, small + item, states, total, plan, numbers)
    fours = pixels // 4
    states = units * plan[OWN_ROW]
    for item in range(cuda.threadIdx.x, units * fours, THREADS):
        unit, four = item // fours, item % fours
        g0, g1, g2, g3 = float32(0), float32(0), float32(0), float32(0)
        for image in range(count):
            word = words[x + image * plan[X_ROW] + four]
            slope = memory[dy + unit * plan[Y_ROW] + image]
            g0 += float32(word & uint32(255)) * slope
            g1 += float32(word >> uint32(8) & uint32(255)) * slope
            g2 += float32(word >> uint32(16) & uint32(255)) * slope
            g3 += float32(word >> uint32(24)) * slope
        at, scale = plan[OWN] + unit * plan[OWN_ROW] + 4 * four, float32(1 / 255)
        _update4(memory, at, states, (g0 * scale, g1 * scale, g2 * scale, g3 * scale), plan, numbers)


_arrived = ptx.copies_but(0)
_copies_end = ptx.copies_end
_shared_address = ptx.shared_address


def _steps(
    plan,
    images,
    labels,
    order,
    weight,
    parameters,
    state_0,
    state_1,
    numbers,
    smoothing,
    logits,
    dz,
    loss,
    correct,
):
    memory, words = cuda.shared.array(0, float32), cuda.shared.array(0, uint32)
    base = _shared_address(words)
    grid = cuda.cg.this_grid()
    _ask_for_batch(plan, int64(0), images, order, base)
    _copies_end()
    _carry(plan, memory, parameters, 0, False)
    if plan[STATES] > 0:
        _carry(plan, memory, state_0, 1, False)
    if plan[STATES] > 1:
        _carry(plan, memory, state_1, 2, False)
    for step in range(plan[STEPS]):
        start = (plan[FIRST_STEP] + step) * plan[BATCH]
        count = min(plan[BATCH], plan[COUNT] - start)
        x = plan[X] + step % plan[X_BUFFERS] * plan[X_WORDS]
        _arrived()
        cuda.syncthreads()
        if plan[X_BUFFERS] > 1 and step + 1 < plan[STEPS]:
            _ask_for_batch(plan, step + 1, images, order, base)
        _copies_end()
        _hidden(plan, memory, words, x, count)
        cuda.syncthreads()
        _logits(plan, memory, step, count, logits)
        grid.sync()
        _loss(plan, memory, step, start, count, logits, labels, order, weight, loss, correct, dz, smoothing)
        if plan[MEETINGS] > 1:
            grid.sync()
            for item in range(cuda.threadIdx.x, count * plan[CLASSES], THREADS):
                image, c = item // plan[CLASSES], item % plan[CLASSES]
                memory[plan[DZ] + image * plan[DZ_ROW] + c] = dz[item]
        cuda.syncthreads()
        _backward(plan, memory, words, x, count, numbers_of(numbers, step))
        if plan[X_BUFFERS] == 1 and step + 1 < plan[STEPS]:
            cuda.syncthreads()
            _ask_for_batch(plan, step + 1, images, order, base)
            _copies_end()
    cuda.syncthreads()
    _carry(plan, memory, parameters, 0, True)
    if plan[STATES] > 0:
        _carry(plan, memory, state_0, 1, True)
    if plan[STATES] > 1:
        _carry(plan, memory, state_1, 2, True)


persistent = Kernel(
    _steps,
    *(LONGS, BYTES, INTS, LONGS, FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, float32),
    *(FLOATS, FLOATS, FLOATS, BYTES),
    threads=THREADS,
    resident=1,
    name="epoch, persistent",
    least=(8, 0),
    shared=None,
    simulated=False,
)


def _barriers(count):
    grid = cuda.cg.this_grid()
    for _ in range(count):
        grid.sync()


# What a step costs at least, for benchmarks: so many barriers of all blocks.
barriers = Kernel(_barriers, int64, threads=THREADS, resident=1, name="grid barriers", simulated=False)


# --- for the backend ------------------------------------------------------------------------------


def _layout(sizes, batch, blocks, states, shared):
    """The words of the plan that say where things are in ``shared`` bytes; None if they do not fit."""
    pixels, hidden, classes = sizes
    units = blocks_for(hidden, blocks)
    own_row, y_row = pixels + 4, batch | 1
    x_row = 4 * (pixels // 16 | 1)  # of odd sixteens: eight rows' accesses of 128 bits meet all banks
    dz_row = classes | 1
    small = units + units * classes + classes
    parts = [
        (OWN, (1 + states) * units * own_row),
        (SMALL, (1 + states) * small),
        (Y, 2 * units * y_row),
        (DZ, batch * dz_row),
    ]
    for buffers in (2, 1):
        words, at = {}, 0
        for name, count in [(X, buffers * batch * x_row), *parts]:
            words[name] = at
            at += -(-count // 4) * 4  # four words are read at a time
        if 4 * at <= shared:
            sizes = {UNITS: units, X_ROW: x_row, X_BUFFERS: buffers, X_WORDS: batch * x_row}
            sizes |= {OWN_ROW: own_row, SMALL_WORDS: small, Y_ROW: y_row, DZ_ROW: dz_row, SHARED_WORDS: at}
            return words | sizes
    return None


def unsuited(plan, images, blocks, shared):
    """Why :class:`Persistent` cannot do what a ``fastdigit.backend.TrainPlan`` asks for; None if it can.

    ``blocks`` is how many can be there at a time, ``shared`` the bytes of shared memory that each can have.
    """
    sizes, batch = plan.layout.layer_sizes, min(plan.batch_size, len(images))
    if len(sizes) != 3:
        return f"it needs one hidden layer, there are {len(sizes) - 2}"
    if plan.precision != "float32":
        return f"it computes in float32, not in {plan.precision}"
    if any(plan.dropout) or plan.input_dropout:
        return "it has no dropout"
    if plan.clip_norm is not None:
        return "it does not clip gradients"
    if images.dtype != np.uint8:
        return "it needs images of bytes"
    if sizes[0] % 16:
        return f"it needs a multiple of 16 pixels, there are {sizes[0]}"
    if sizes[2] > MOST_CLASSES:
        return f"it needs at most {MOST_CLASSES} classes, there are {sizes[2]}"
    if _layout(sizes, batch, blocks, len(plan.state), shared) is None:
        return f"a block's share of {sizes[1]} hidden units and {batch} images do not fit in {shared:,} bytes"
    return None


class Persistent:
    """Stretches of epochs in one launch each, where :func:`unsuited` allows it: for all plans that
    :meth:`settings` says the same of.

    All memory is one allocation, made before the first step: twice as many numbers as the blocks add to the
    logits, and little else.
    """

    def __init__(self, plan, count, zeros, *, blocks, shared):
        """For ``count`` images. ``blocks`` and ``shared`` as of :func:`unsuited`, ``zeros`` of a backend."""
        sizes, tensors = plan.layout.layer_sizes, plan.layout.tensors
        (pixels, hidden, classes), batch = sizes, min(plan.batch_size, count)
        self.words = _layout(sizes, batch, blocks, len(plan.state), shared) | {
            BATCH: batch,
            COUNT: count,
            PIXELS: pixels,
            HIDDEN: hidden,
            CLASSES: classes,
            W1: tensors[0].offset,
            W1_ROW: tensors[0].row,
            B1: tensors[1].offset,
            W2: tensors[2].offset,
            W2_ROW: tensors[2].row,
            B2: tensors[3].offset,
            STATES: len(plan.state),
        }
        self.blocks = blocks_for(hidden, self.words[UNITS])  # those that have a unit
        read = 4 * self.blocks * batch * classes  # bytes of each block, if it adds up all logits
        self.words[MEETINGS] = 1 if read <= ONE_MEETING else 2
        arena = Arena()
        arena.array("plan", (WORDS,), np.int64)
        arena.array("numbers", (blocks_for(count, batch), NUMBERS), np.float32)
        arena.array("logits", (2 * self.blocks * batch * classes,), np.float32)
        arena.array("dz", (batch * classes,), np.float32)
        self.memory = arena.allocate(zeros)

    @staticmethod
    def settings(plan, images):
        """What must be the same for :meth:`run`."""
        return plan.layout, plan.batch_size, len(images), len(plan.state)

    def run(self, plan, images, labels, order, loss, correct, to_device):
        """The steps of a ``fastdigit.backend.TrainPlan``.

        Shapes: images [N, I], labels, loss and correct [N], order [N]; all contiguous.
        Dtypes: images uint8, labels int32, order int64, correct uint8, all else float32.
        Writes: parameters, the optimizer's state, and loss and correct at the places of the plan's steps.
        Cost: for each step one barrier of the whole GPU or two, and for each block the batch's pixels once
        from memory. The blocks must be able to be there all at a time.
        """
        memory, steps = self.memory, len(plan.learning_rates)
        values = self.words | {
            STEPS: steps,
            FIRST_STEP: plan.first_step,
            NESTEROV: getattr(plan.optimizer, "nesterov", False),
            WEIGHTED: plan.weight is not None,
        }
        to_device(np.array([values[word] for word in range(WORDS)], np.int64), out=memory["plan"])
        to_device(step_numbers(plan), out=memory["numbers"][:steps])
        nothing = plan.parameters[:0]
        state = [*plan.state, nothing, nothing][:2]
        persistent(
            self.blocks,
            *(memory["plan"], images.reshape(-1), labels, order),
            nothing if plan.weight is None else plan.weight,
            *(plan.parameters, *state, memory["numbers"].reshape(-1), plan.label_smoothing),
            *(memory["logits"], memory["dz"], loss, correct),
            shared=4 * values[SHARED_WORDS],
        )
