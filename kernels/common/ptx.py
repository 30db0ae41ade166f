"""Instructions of the GPU that Numba has no name for, and what is laid out by the compiler alone.

What the simulator of Numba needs exists twice: for the compiler, as LLVM code that becomes the
instruction, and in plain Python. Tensor cores and asynchronous copies are for the compiler only.
Sections in brackets are those of NVIDIA's PTX ISA, version 9.0.
"""

from functools import cache, reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from .cuda import DEPENDENT_FROM, SIMULATED, compiled_for, data_of, device, types

FLOAT, WORD, ADDRESS = ir.FloatType(), ir.IntType(32), ir.IntType(64)


# Loops whose turns have constants of their own, which Numba cannot compile as one.


def sequence(functions):
    """A device function that calls all of these with its arguments, one after the other."""

    def both(first, second):
        def both(*arguments):
            first(*arguments)
            second(*arguments)

        return device(both)

    return _by_twos(both, functions)


def fold(functions):
    """A device function ``(value, arguments…)``: each function gets what the one before it returned, and
    the arguments."""

    def both(first, second):
        def both(value, *arguments):
            return second(first(value, *arguments), *arguments)

        return device(both)

    return _by_twos(both, functions)


def choose(functions, first=0):
    """A device function ``(index, arguments…)``: the function of that index, counted from ``first`` on, is
    called with the arguments."""
    if len(functions) == 1:
        (only,) = functions
        return device(lambda index, *arguments: only(*arguments))
    middle = len(functions) // 2
    bound = first + middle
    low, high = choose(functions[:middle], first), choose(functions[middle:], bound)

    def chosen(index, *arguments):
        if index < bound:
            low(index, *arguments)
        else:
            high(index, *arguments)

    return device(chosen)


def _by_twos(both, functions):
    while len(functions) > 1:
        pairs = zip(functions[0::2], functions[1::2], strict=False)
        functions = [both(*pair) for pair in pairs] + functions[len(functions) // 2 * 2 :]
    return functions[0]


def _either(simulated):
    """``@_either(function)`` above an intrinsic: the function takes its place in the simulator."""
    return (lambda generator: simulated) if SIMULATED else intrinsic


def _is_vector(array):
    return isinstance(array, types.Array) and (array.ndim, array.layout) == (1, "C")


def _pack(builder, kind, values):
    return reduce(
        lambda whole, place: builder.insert_value(whole, values[place], place),
        range(len(values)),
        ir.Constant(kind, ir.Undefined),
    )


# --- several numbers in one access (9.7.9.8, ld; 9.7.9.11, st) ------------------------------------


def _loader(count, number=types.float32):
    kind = {types.float32: FLOAT, types.uint32: WORD}[number]

    @_either(lambda array, index: tuple(array[index + i] for i in range(count)))
    def load(typing_context, array, index):
        if not _is_vector(array) or array.dtype != number or not isinstance(index, types.Integer):
            return None

        def generate(context, builder, signature, arguments):
            index = context.cast(builder, arguments[1], signature.args[1], types.int64)
            place = builder.gep(data_of(context, builder, signature.args[0], arguments[0]), [index])
            pointer = ir.VectorType(kind, count).as_pointer()
            vector = builder.load(builder.bitcast(place, pointer), align=4 * count)
            numbers = [builder.extract_element(vector, WORD(i)) for i in range(count)]
            return _pack(builder, ir.ArrayType(kind, count), numbers)

        return types.UniTuple(number, count)(array, index), generate

    return load


def _storer(count, number=types.float32):
    kind = {types.float32: FLOAT, types.uint32: WORD}[number]

    def simulated(array, index, values):
        for i in range(count):
            array[index + i] = values[i]

    @_either(simulated)
    def store(typing_context, array, index, values):
        if not _is_vector(array) or array.dtype != number or values != types.UniTuple(number, count):
            return None

        def generate(context, builder, signature, arguments):
            index = context.cast(builder, arguments[1], signature.args[1], types.int64)
            place = builder.gep(data_of(context, builder, signature.args[0], arguments[0]), [index])
            together = ir.VectorType(kind, count)
            vector = ir.Constant(together, ir.Undefined)
            for i in range(count):
                vector = builder.insert_element(vector, builder.extract_value(arguments[2], i), WORD(i))
            builder.store(vector, builder.bitcast(place, together.as_pointer()), align=4 * count)
            return context.get_dummy_value()

        return types.void(array, index, values), generate

    return store


# load4(array, index) is array[index : index + 4] of float32 as a tuple, load2 two of them, load4_words and
# load2_words those of uint32; store4(array, index, values) writes it, store2_words two of uint32: accesses of
# 128 bits, or 64 for two.
# The address must be a multiple of their size.
load2, load4 = _loader(2), _loader(4)
load2_words, load4_words = _loader(2, types.uint32), _loader(4, types.uint32)
store2, store4, store2_words = _storer(2), _storer(4), _storer(2, types.uint32)


# --- a square of sums in registers ----------------------------------------------------------------

SIDE = 8  # of a thread's square
_SQUARE = types.UniTuple(types.float32, SIDE * SIDE)


def _zeros(count):
    """``zeros()``: so many sums of float32, all zero."""

    @_either(lambda: np.zeros(count, np.float32))
    def zeros(typing_context):
        def generate(context, builder, signature, arguments):
            return ir.Constant(ir.ArrayType(FLOAT, count), [0.0] * count)

        return types.UniTuple(types.float32, count)(), generate

    return zeros


no_sums = _zeros(SIDE * SIDE)  # no_sums(): a square of 8 × 8 sums, row by row


def _add_outer(sums, a_0, a_4, b_0, b_4):
    column, row = np.array([*a_0, *a_4], np.float64), np.array([*b_0, *b_4], np.float64)
    # One rounding, as in a fused multiply-add (but for the rare sums that float64 has to round).
    return (sums + np.outer(column, row).ravel()).astype(np.float32)


@_either(_add_outer)
def add_outer(typing_context, sums, a_0, a_4, b_0, b_4):
    """sums[8·i + j] + a[i]·b[j], where a_0 holds a[0 : 4], a_4 a[4 : 8], and so for b: 64 fused
    multiply-adds. (9.7.3.6, fma)"""

    def generate(context, builder, signature, arguments):
        sums = arguments[0]
        a, b = (
            [builder.extract_value(four, i) for four in pair for i in range(4)]
            for pair in (arguments[1:3], arguments[3:5])
        )
        totals = [
            builder.fma(a[i], b[j], builder.extract_value(sums, SIDE * i + j))
            for i in range(SIDE)
            for j in range(SIDE)
        ]
        return _pack(builder, ir.ArrayType(FLOAT, SIDE * SIDE), totals)

    return _SQUARE(sums, a_0, a_4, b_0, b_4), generate


# --- addresses ------------------------------------------------------------------------------------


@intrinsic
def shared_address(typing_context, array):
    """Where a shared array begins in the shared memory of its block, in bytes. (9.7.9.20, cvta)"""

    def generate(context, builder, signature, arguments):
        pointer = data_of(context, builder, signature.args[0], arguments[0])
        kind = ir.FunctionType(ADDRESS, [pointer.type])
        address = builder.call(ir.InlineAsm(kind, "cvta.to.shared.u64 $0, $1;", "=l,l"), [pointer])
        return builder.trunc(address, WORD)

    return types.uint32(array), generate


@intrinsic
def global_address(typing_context, array):
    """Where a vector in the GPU's memory begins."""

    def generate(context, builder, signature, arguments):
        pointer = data_of(context, builder, signature.args[0], arguments[0])
        return builder.ptrtoint(pointer, ADDRESS)

    return types.uint64(array), generate


# --- one instruction ------------------------------------------------------------------------------


def _instruction(template, constraints, result, *parameters):
    """An intrinsic for PTX with ``$0``, ``$1`` …: results first, then the arguments' numbers.

    ``result`` and ``parameters`` are types of Numba; tuples count as their numbers.
    """

    def build(typing_context, *arguments):
        def generate(context, builder, signature, arguments):
            numbers = []
            for given, kind, argument in zip(signature.args, parameters, arguments, strict=True):
                if isinstance(kind, types.UniTuple):
                    numbers += [builder.extract_value(argument, i) for i in range(kind.count)]
                else:
                    numbers.append(context.cast(builder, argument, given, kind))
            many = isinstance(result, types.UniTuple)
            if result == types.void:
                kind = ir.VoidType()
            elif many:
                kind = ir.LiteralStructType([context.get_value_type(result.dtype)] * result.count)
            else:
                kind = context.get_value_type(result)
            code = ir.InlineAsm(
                ir.FunctionType(kind, [n.type for n in numbers]), template, constraints, side_effect=True
            )
            found = builder.call(code, numbers)
            if result == types.void:
                return context.get_dummy_value()
            if not many:
                return found
            values = [builder.extract_value(found, i) for i in range(result.count)]
            return _pack(builder, context.get_value_type(result), values)

        return result(*arguments), generate

    # Numba wants to see how many arguments there are.
    return intrinsic(
        [
            lambda context: build(context),
            lambda context, a: build(context, a),
            lambda context, a, b: build(context, a, b),
            lambda context, a, b, c: build(context, a, b, c),
            lambda context, a, b, c, d: build(context, a, b, c, d),
            lambda context, a, b, c, d, e: build(context, a, b, c, d, e),
        ][len(parameters)]
    )


# --- whole numbers and bytes ----------------------------------------------------------------------

# divided(a, b) is a // b of uint32: with 64 bits, which Numba takes, a GPU needs some hundred instructions.
# (9.7.1.8, div)
divided = _instruction("div.u32 $0, $1, $2;", "=r,r,r", types.uint32, types.uint32, types.uint32)
# high_product(a, b): the upper half of a · b of uint32. (9.7.1.3, mul)
high_product = _instruction("mul.hi.u32 $0, $1, $2;", "=r,r,r", types.uint32, types.uint32, types.uint32)
# rounded(x): the nearest int32. (9.7.9.21, cvt)
rounded = _instruction("cvt.rni.s32.f32 $0, $1;", "=r,f", types.int32, types.float32)
bits_of = _instruction("mov.b32 $0, $1;", "=r,f", types.uint32, types.float32)
# larger(a, b) of uint32, and the largest of the values of a warp's lanes, all of which take part. (9.7.1.12,
# max; 9.7.13.12, redux)
larger = _instruction("max.u32 $0, $1, $2;", "=r,r,r", types.uint32, types.uint32, types.uint32)
largest_of_warp = _instruction("redux.sync.max.u32 $0, $1, 0xffffffff;", "=r,r", types.uint32, types.uint32)


# keep_larger(shared, number): a word of shared memory becomes the larger of it and a number, whoever comes
# first. (9.7.13.17, red)
keep_larger = _instruction(
    "red.shared.max.u32 [$0], $1;", "r,r,~{memory}", types.void, types.uint32, types.uint32
)


def _picked(selector):
    """``pick(a, b)``: the four of their eight bytes that a selector names. (9.7.9.7, prmt)"""
    return _instruction(
        f"prmt.b32 $0, $1, $2, {selector};", "=r,r,r", types.uint32, types.uint32, types.uint32
    )


_low_bytes, _high_bytes = _picked(0x5140), _picked(0x7362)
_low_pairs, _high_pairs = _picked(0x5410), _picked(0x7632)


# Of eight bytes every second one, from the first on or from the second.
even_bytes, odd_bytes = _picked(0x6420), _picked(0x7531)


@device
def turned_bytes(a, b, c, d):
    """Four words of four bytes each, transposed: the first bytes of all, the second ones, and so on."""
    first, second = _low_bytes(a, b), _low_bytes(c, d)
    third, fourth = _high_bytes(a, b), _high_bytes(c, d)
    return (
        _low_pairs(first, second),
        _high_pairs(first, second),
        _low_pairs(third, fourth),
        _high_pairs(third, fourth),
    )


@device
def pairs_of_bytes(a, b):
    """Of two words of four bytes, in two: the first byte of each, the second of each, and so on."""
    return _low_bytes(a, b), _high_bytes(a, b)


# load_shared(shared), store_shared(shared, number): a float32 by its address, which a loop adds to; from an
# index the address is made anew each time. (9.7.9.8, ld; 9.7.9.11, st)
load_shared = _instruction("ld.shared.f32 $0, [$1];", "=f,r", types.float32, types.uint32)
store_shared = _instruction(
    "st.shared.f32 [$0], $1;", "r,f,~{memory}", types.void, types.uint32, types.float32
)
# turned(word, bits): its bits as many places further up, those at its end at the other end. (9.7.8.6, shf)
turned = _instruction("shf.l.wrap.b32 $0, $1, $1, $2;", "=r,r,r", types.uint32, types.uint32, types.uint32)
# store_bytes(shared, word): its four bytes to places 32 bytes apart. (9.7.9.11, st)
store_bytes = _instruction(
    "{ .reg .b32 %b1; .reg .b32 %b2; .reg .b32 %b3; "
    "shr.u32 %b1, $1, 8; shr.u32 %b2, $1, 16; shr.u32 %b3, $1, 24; "
    "st.shared.b8 [$0], $1; st.shared.b8 [$0+32], %b1; "
    "st.shared.b8 [$0+64], %b2; st.shared.b8 [$0+96], %b3; }",
    "r,r,~{memory}",
    types.void,
    types.uint32,
    types.uint32,
)
# store_halves(shared, other, first, second): the low half of two words to places 128 bytes apart, then their
# high halves to others.
store_halves = _instruction(
    "{ .reg .b32 %h1; .reg .b32 %h2; shr.u32 %h1, $2, 16; shr.u32 %h2, $3, 16; "
    "st.shared.b16 [$0], $2; st.shared.b16 [$0+128], $3; "
    "st.shared.b16 [$1], %h1; st.shared.b16 [$1+128], %h2; }",
    "r,r,r,r,~{memory}",
    types.void,
    types.uint32,
    types.uint32,
    types.uint32,
    types.uint32,
)

# byte_sums(a, b_0, b_1, sums): 16 × 8 sums of int32 with the product of 16 × 32 bytes and 32 × 8 signed
# bytes. Lane l has of the left operand, in four words, bytes 4 · (l % 4) to 3 further of rows l / 4 and
# l / 4 + 8, and the same 16 bytes on; of the right one, in two words, these bytes of column l / 4; and sums
# as in tensor_sums. (9.7.15.5.10, mma.m16n8k32)
byte_sums = _instruction(
    "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
    "=r,=r,=r,=r,r,r,r,r,r,r,0,1,2,3",
    types.UniTuple(types.int32, 4),
    types.UniTuple(types.uint32, 4),
    types.uint32,
    types.uint32,
    types.UniTuple(types.int32, 4),
)

# --- words that blocks tell each other by (9.7.13.16, atom; 9.7.9.8, ld) --------------------------

# add_releasing(address, number): what a word in the GPU's memory was before the number was added. Whoever
# sees the new one by load_acquiring(address) sees all that this thread had written, or known to be written.
add_releasing = _instruction(
    "atom.release.gpu.global.add.u32 $0, [$1], $2;",
    "=r,l,r,~{memory}",
    types.uint32,
    types.uint64,
    types.uint32,
)
load_acquiring = _instruction(
    "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l,~{memory}", types.uint32, types.uint64
)

# tell(address, number, tag): a float32 and a word in one word of 64 bits, which others see as one, at some
# time. (9.7.9.11, st)
tell = _instruction(
    "{ .reg .b64 %told; mov.b64 %told, {$1, $2}; st.relaxed.gpu.global.b64 [$0], %told; }",
    "l,f,r,~{memory}",
    types.void,
    types.uint64,
    types.float32,
    types.uint32,
)
# tell2(address, number, other, tag): two of these beside each other, at a multiple of 16 bytes.
tell2 = _instruction(
    "{ .reg .b64 %told; .reg .b64 %other; mov.b64 %told, {$1, $3}; mov.b64 %other, {$2, $3}; "
    "st.relaxed.gpu.global.v2.b64 [$0], {%told, %other}; }",
    "l,f,f,r,~{memory}",
    types.void,
    types.uint64,
    types.float32,
    types.float32,
    types.uint32,
)
# hear(address): two of these beside each other, at a multiple of 16 bytes, as they are now: (the bits of a
# number, its tag, the bits of the other, its tag). (9.7.9.8, ld)
hear = _instruction(
    "{ .reg .b64 %first; .reg .b64 %second; ld.relaxed.gpu.global.v2.b64 {%first, %second}, [$4]; "
    "mov.b64 {$0, $1}, %first; mov.b64 {$2, $3}, %second; }",
    "=r,=r,=r,=r,l,~{memory}",
    types.UniTuple(types.uint32, 4),
    types.uint64,
)

# --- launches that depend on each other (9.7.13.13, griddepcontrol) -------------------------------


def _of_launches(what):
    """An intrinsic, to be called by kernels themselves: device functions are compiled for one capability
    only. No instruction before DEPENDENT_FROM, where no launch begins before the last has ended."""

    @_either(lambda: None)
    def control(typing_context):
        def generate(context, builder, signature, arguments):
            if compiled_for()[:2] >= DEPENDENT_FROM:
                kind = ir.FunctionType(ir.VoidType(), [])
                code = ir.InlineAsm(kind, f"griddepcontrol.{what};", "~{memory}", side_effect=True)
                builder.call(code, [])
            return context.get_dummy_value()

        return types.void(), generate

    return control


# launch_dependents(): when all blocks have called it, or ended, the next launch may begin, if it is one that
# waits itself. wait_for_launches(): until all that was launched before has ended and can be seen.
launch_dependents, wait_for_launches = _of_launches("launch_dependents"), _of_launches("wait")

# --- asynchronous copies (9.7.9.25.3, cp.async) ---------------------------------------------------

# copy_16(shared, address, count): the first count of 16 bytes at an address to shared memory, zeros
# behind them, at some time before a wait.
copy_16 = _instruction(
    "cp.async.cg.shared.global [$0], [$1], 16, $2;",
    "r,l,r,~{memory}",
    types.void,
    types.uint32,
    types.uint64,
    types.uint32,
)


def copies_16(count, apart):
    """``copy(shared, sources, further, asked)``: :func:`copy_16` for each of ``count`` sources, ``further``
    bytes behind it, of as many as are asked for of each, to places ``apart`` bytes from each other."""
    template = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
    places, counts = types.UniTuple(types.uint64, count), types.UniTuple(types.uint32, count)

    @intrinsic
    def copy(typing_context, shared, sources, further, asked):
        if (sources, asked) != (places, counts):
            return None

        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [WORD, ADDRESS, WORD])
            code = ir.InlineAsm(kind, template, "r,l,r,~{memory}", side_effect=True)
            shared = context.cast(builder, arguments[0], signature.args[0], types.uint32)
            further = context.cast(builder, arguments[2], signature.args[2], types.uint64)
            for i in range(count):
                source = builder.add(builder.extract_value(arguments[1], i), further)
                place, asked = builder.add(shared, WORD(i * apart)), builder.extract_value(arguments[3], i)
                builder.call(code, [place, source, asked])
            return context.get_dummy_value()

        return types.void(shared, sources, further, asked), generate

    return copy


# copy_4(shared, address): 4 bytes likewise.
copy_4 = _instruction(
    "cp.async.ca.shared.global [$0], [$1], 4;", "r,l,~{memory}", types.void, types.uint32, types.uint64
)
# copies_end(): what this thread has asked for since the last call becomes one group.
copies_end = _instruction("cp.async.commit_group;", "~{memory}", types.void)


def copies_but(groups):
    """``wait = copies_but(1)``; ``wait()``: until all but the last group of copies have arrived."""
    return _instruction(f"cp.async.wait_group {groups};", "~{memory}", types.void)


# --- tensor cores ---------------------------------------------------------------------------------


def fragments(count, add, xor, turned):
    """``load(address)``: the operands of ``count`` tiles of 16 × 16 bfloat16, 4 words of two each.

    Lane l gives the address in shared memory of a row of 8 numbers: row l % 8 of the l / 8-th of four
    squares of 8 × 8, and gets from each square the two numbers at row l / 4, columns 2 · (l % 4) and the
    next; of the transposed square if ``turned``. Tile i is i · ``add`` bytes behind the first, and then
    the bits of i · ``xor`` in its address are flipped. (9.7.15.5.15, ldmatrix)
    """
    trans = ".trans" if turned else ""
    template = f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
    kind = ir.LiteralStructType([WORD] * 4)

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            code = ir.InlineAsm(
                ir.FunctionType(kind, [WORD]), template, "=r,=r,=r,=r,r,~{memory}", side_effect=True
            )
            first = context.cast(builder, arguments[0], signature.args[0], types.uint32)
            words = []
            for i in range(count):
                place = builder.xor(builder.add(first, WORD(i * add)), WORD(i * xor))
                four = builder.call(code, [place])
                words += [builder.extract_value(four, j) for j in range(4)]
            return _pack(builder, ir.ArrayType(WORD, 4 * count), words)

        return types.UniTuple(types.uint32, 4 * count)(address), generate

    return load


def scattered(count, offsets, add, xor):
    """``load(address)``: for each of ``count`` tiles four words of shared memory, at the given offsets
    ``(added, flipped)`` from its start; tile i starts as for :func:`fragments`.

    For operands of float32 that would have to be transposed, which ldmatrix can do with numbers of 16
    bits alone. (9.7.9.8, ld)
    """

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            code = ir.InlineAsm(
                ir.FunctionType(WORD, [WORD]), "ld.shared.u32 $0, [$1];", "=r,r,~{memory}", side_effect=True
            )
            first = context.cast(builder, arguments[0], signature.args[0], types.uint32)
            words = []
            for i in range(count):
                place = builder.xor(builder.add(first, WORD(i * add)), WORD(i * xor))
                for added, flipped in offsets:
                    there = builder.add(builder.xor(place, WORD(flipped)), WORD(added))
                    words.append(builder.call(code, [there]))
            return _pack(builder, ir.ArrayType(WORD, 4 * count), words)

        return types.UniTuple(types.uint32, 4 * count)(address), generate

    return load


@cache
def tensor_sums(tiles_down, tiles_across, kind):
    """``zeros()`` and ``add(sums, a, b)`` for a warp's tile of (16 · tiles_down) × (8 · tiles_across).

    ``sums`` are 4 numbers of each piece of 16 × 8, row by row of pieces: lane l has rows l / 4 and
    l / 4 + 8 of its columns 2 · (l % 4) and the next. ``a`` are the 4 words of each 16 × 16 of the left
    operand, ``b`` 2 words of each 16 × 8 of the right one, for ``kind`` "bf16" or "f16"; for "tf32" those of
    16 × 8 and 8 × 8, of which tensor cores cut off the last 13 bits: see :func:`ready`.
    (9.7.15.5.8, mma.m16n8k16; 9.7.15.5.4, mma.m16n8k8)
    """
    count = 4 * tiles_down * tiles_across
    sums_type = types.UniTuple(types.float32, count)
    a_type, b_type = (
        types.UniTuple(types.uint32, 4 * tiles_down),
        types.UniTuple(types.uint32, 2 * tiles_across),
    )
    four = ir.LiteralStructType([FLOAT] * 4)
    depth = {"bf16": 16, "f16": 16, "tf32": 8}[kind]
    template = (
        f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )

    @intrinsic
    def add(typing_context, sums, a, b):
        if (sums, a, b) != (sums_type, a_type, b_type):
            return None

        def generate(context, builder, signature, arguments):
            code = ir.InlineAsm(
                ir.FunctionType(four, [WORD] * 6 + [FLOAT] * 4),
                template,
                "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3",
                side_effect=True,
            )
            sums, a, b = arguments
            words_a = [builder.extract_value(a, k) for k in range(4 * tiles_down)]
            words_b = [builder.extract_value(b, k) for k in range(2 * tiles_across)]
            totals = []
            for i in range(tiles_down):
                for j in range(tiles_across):
                    place = 4 * (i * tiles_across + j)
                    found = builder.call(
                        code,
                        words_a[4 * i : 4 * i + 4]
                        + words_b[2 * j : 2 * j + 2]
                        + [builder.extract_value(sums, place + k) for k in range(4)],
                    )
                    totals += [builder.extract_value(found, k) for k in range(4)]
            return _pack(builder, ir.ArrayType(FLOAT, count), totals)

        return sums_type(sums, a, b), generate

    return _zeros(count), add


@cache
def ready(count, kind):
    """``ready(words)``: so many words for :func:`tensor_sums`, those of "tf32" such that what tensor cores
    make of them are the nearest numbers of 11 bits: they cut off, always towards zero."""
    if kind != "tf32":
        return device(lambda words: words)

    @intrinsic
    def ready(typing_context, words):
        def generate(context, builder, signature, arguments):
            # Half of the last bit that counts is added, and x · 0, which is NaN where that would make a
            # number of one. The instruction for it, cvt.rna.tf32, takes as long as four others. (x · (1 + c)
            # is one: 5 to 10 % less time for a product on an H200, but trainings were further off.)
            function = ir.FunctionType(FLOAT, [FLOAT] * 2)
            code = ir.InlineAsm(function, "fma.rn.f32 $0, $2, 0f00000000, $1;", "=f,f,f")
            found = []
            for i in range(count):
                word = builder.extract_value(arguments[0], i)
                numbers = [builder.bitcast(n, FLOAT) for n in (builder.add(word, WORD(1 << 12)), word)]
                found.append(builder.bitcast(builder.call(code, numbers), WORD))
            return _pack(builder, ir.ArrayType(WORD, count), found)

        return types.UniTuple(types.uint32, count)(words), generate

    return ready


def store_pairs(places):
    """``store(sums, memory, at)``: for each (place, further) of ``places`` two of the sums, from that place
    on, go to a vector of float32, so much further than ``at``, which makes an even number.

    One function for all: Numba takes a hundred times as long to compile one for each.
    """

    @intrinsic
    def store(typing_context, sums, memory, at):
        if not isinstance(sums, types.UniTuple) or not _is_vector(memory) or memory.dtype != types.float32:
            return None

        def generate(context, builder, signature, arguments):
            pair = ir.VectorType(FLOAT, 2)
            at = context.cast(builder, arguments[2], signature.args[2], types.int64)
            first = builder.gep(data_of(context, builder, signature.args[1], arguments[1]), [at])
            for place, further in places:
                vector = ir.Constant(pair, ir.Undefined)
                for i in range(2):
                    vector = builder.insert_element(
                        vector, builder.extract_value(arguments[0], place + i), WORD(i)
                    )
                there = builder.gep(first, [ADDRESS(further)])
                builder.store(vector, builder.bitcast(there, pair.as_pointer()), align=8)
            return context.get_dummy_value()

        return types.void(sums, memory, at), generate

    return store


# --- tensor cores of capability 9.0: a warpgroup at once, operands in shared memory --------------

LINE = 128  # bytes of a row of a tile in shared memory, in which 16 bytes are exchanged: xor row % 8
EIGHT = 8 * LINE  # bytes of eight such rows, after which the exchange is the same again
PIECE = 32  # columns of sums that are written at a time: as many as there are banks


def operand(turned, apart):
    """What describes a tile of numbers to :func:`warpgroup_sums`, but for its address: the lower word.

    Its rows are of LINE bytes: k of a row or column of the product, or, ``turned``, 64 rows or columns of
    one k; tiles of 64 × 64 then follow each other ``apart`` bytes apart. (9.7.15.6.5.1.2, matrix descriptor)
    """
    return np.uint32((apart if turned else 16) >> 4 << 16)


class WarpgroupSums(NamedTuple):
    """What :func:`warpgroup_sums` returns."""

    begin: Any
    add: Any
    wait: Any


@cache
def warpgroup_sums(columns, kind, turned_a=False, turned_b=False):
    """64 × ``columns`` sums of float32 of a warpgroup, which is four warps, for one use in a kernel.
    ``kind``: of the numbers that are multiplied, "bf16", or "tf32", which cannot be turned.

    Tensor cores add to registers while the program goes on, and nothing may touch these meanwhile. So they
    are none of the compiler's, which could move them, but have names that only the functions here know,
    :func:`store_sums` and :func:`store_all_sums`:

    ``begin()``, at the kernel's start, names them.
    ``add(a, b, more)`` begins to add LINE bytes of k, 32 by 32, to the sums if ``more``, else to zero. ``a``
    and ``b`` are :func:`operand` with an address (divided by 16) in the lowest bits: 64 rows, ``columns``
    columns. The other half of what describes them is the same for all.
    ``wait(running)()`` is until all but so many additions have ended: their operands may be overwritten.

    A warpgroup calls ``add`` and ``wait`` as one. (9.7.15.6.5.2, wgmma.mma_async; 9.7.15.6.7.3, wait_group)
    """
    count = columns // 2
    if kind == "tf32":
        shape, transposed = "k8.f32.tf32.tf32", ""
    else:
        shape, transposed = "k16.f32.bf16.bf16", f", {int(turned_a)}, {int(turned_b)}"
    # Bytes to what is added next.
    step_a, step_b = (2 * EIGHT if turned else 32 for turned in (turned_a, turned_b))
    sums = ", ".join(f"%wgs{i}" for i in range(count))

    def one(more):
        name = f"wgmma.mma_async.sync.aligned.m64n{columns}{shape}"
        return f"{name} {{{sums}}}, %wga, %wgb, {more}, 1, 1{transposed};"

    described = "mov.b64 %wga, {%wgc, %wgh}; mov.b64 %wgb, {%wgd, %wgh};"
    further = f"add.u32 %wgc, %wgc, {step_a >> 4}; add.u32 %wgd, %wgd, {step_b >> 4}; {described}"
    add = _instruction(
        "{ .reg .pred %wgm; .reg .pred %wgp; .reg .b64 %wga; .reg .b64 %wgb; "
        ".reg .b32 %wgc; .reg .b32 %wgd; .reg .b32 %wgh; "
        "setp.ne.u32 %wgm, $2, 0; setp.eq.u32 %wgp, 0, 0; mov.b32 %wgc, $0; mov.b32 %wgd, $1; "
        f"mov.b32 %wgh, {1 << 30 | EIGHT >> 4}; {described} wgmma.fence.sync.aligned; "
        f"{one('%wgm')} {further} {one('%wgp')} {further} {one('%wgp')} {further} {one('%wgp')} "
        "wgmma.commit_group.sync.aligned; }",
        "r,r,r,~{memory}",
        types.void,
        types.uint32,
        types.uint32,
        types.uint32,
    )

    def wait(running):
        return _instruction(f"wgmma.wait_group.sync.aligned {running};", "~{memory}", types.void)

    begin = _instruction(f".reg .f32 %wgs<{count}>;", "", types.void)
    return WarpgroupSums(begin, add, wait)


@cache
def store_sums(piece, pitch):
    """``store(address)``, after ``wait(0)`` of :func:`warpgroup_sums`, writes a warp's sums of PIECE columns
    to rows of shared memory that are ``pitch`` numbers apart.

    Warp w has the rows from 16 · w on; lane l rows l / 4 and l / 4 + 8, and of each eight columns 2 · (l % 4)
    and the next; the address is for the first of these.
    """

    def pair(eight, below):
        first = 4 * (piece * PIECE // 8 + eight) + 2 * below
        place = 4 * (8 * eight + 8 * below * pitch)
        return f"st.shared.v2.f32 [$0+{place}], {{%wgs{first}, %wgs{first + 1}}};"

    pairs = [pair(eight, below) for eight in range(PIECE // 8) for below in range(2)]
    return _instruction(" ".join(pairs), "r,~{memory}", types.void, types.uint32)


@cache
def store_all_sums(columns):
    """``store(address, further)`` writes them all to memory as they are, as :func:`store_sums`; ``further``:
    bytes to the row that is 8 further down."""

    def pair(eight, below):
        first = 4 * eight + 2 * below
        return (
            f"st.global.v2.f32 [{'%wgr' if below else '$0'}+{32 * eight}], {{%wgs{first}, %wgs{first + 1}}};"
        )

    # Two numbers each of 4 lanes beside each other are 32 bytes: whole sectors, where rows begin at these.
    pairs = [pair(eight, below) for eight in range(columns // 8) for below in range(2)]
    return _instruction(
        "{ .reg .b64 %wgr; add.u64 %wgr, $0, $1; " + " ".join(pairs) + " }",
        "l,l,~{memory}",
        types.void,
        types.uint64,
        types.uint64,
    )


# --- barriers that count (9.7.13.15, mbarrier) and copies of tiles (9.7.9.27, tensor copies) ------

# barrier_init(barrier, arrivals): 8 bytes of shared memory become a barrier of so many arrivals. Its phases
# end in turn: the first has parity 0.
barrier_init = _instruction(
    "mbarrier.init.shared::cta.b64 [$0], $1;", "r,r,~{memory}", types.void, types.uint32, types.uint32
)
# barriers_visible(): of what was initialised, to copies.
barriers_visible = _instruction("fence.proxy.async.shared::cta;", "~{memory}", types.void)
# barrier_arrive(barrier)
barrier_arrive = _instruction(
    "mbarrier.arrive.shared::cta.b64 _, [$0];", "r,~{memory}", types.void, types.uint32
)
# barrier_expect(barrier, bytes): arrive, and the phase lasts until so many bytes were copied, too.
barrier_expect = _instruction(
    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;",
    "r,r,~{memory}",
    types.void,
    types.uint32,
    types.uint32,
)
_barrier_passed = _instruction(
    "{ .reg .pred %mbp; mbarrier.try_wait.parity.shared::cta.b64 %mbp, [$1], $2; selp.u32 $0, 1, 0, %mbp; }",
    "=r,r,r,~{memory}",
    types.uint32,
    types.uint32,
    types.uint32,
)


@device
def barrier_wait(barrier, parity):
    """Until a barrier's phase of this parity has ended."""
    while _barrier_passed(barrier, parity) == 0:
        pass


# copy_tile(shared, map, x, y, barrier): the tile of a tensor map's matrix that begins at column x of row y,
# zeros where the matrix has ended; the barrier counts the tile's bytes as they arrive.
copy_tile = _instruction(
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[$0], [$1, {$2, $3}], [$4];",
    "r,l,r,r,r,~{memory}",
    types.void,
    types.uint32,
    types.uint64,
    types.int32,
    types.int32,
    types.uint32,
)
# copy_row(shared, address, bytes, barrier): so many bytes, a multiple of 16 as both places are, which the
# barrier counts as they arrive. (9.7.9.25.4.1, cp.async.bulk)
copy_row = _instruction(
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];",
    "r,l,r,r,~{memory}",
    types.void,
    types.uint32,
    types.uint64,
    types.uint32,
    types.uint32,
)
# map_visible(map): a tensor map in the GPU's memory that the host has written, to copies. (9.7.13.4, fence)
map_visible = _instruction(
    "fence.proxy.tensormap::generic.acquire.sys [$0], 128;", "l,~{memory}", types.void, types.uint64
)


_expect_bytes = _instruction(
    "cp.async.bulk.prefetch.L2.global [$0], $1;", "l,r,~{memory}", types.void, types.uint64, types.uint32
)


@device
def expect(vector, at, count):
    """So many float32 of a vector will be read soon: memory brings them to the second-level cache. Both
    ``at`` and ``count`` are multiples of 4. (9.7.9.25.5.3, cp.async.bulk.prefetch)"""
    _expect_bytes(global_address(vector) + types.uint64(4 * at), types.uint32(4 * count))


def registers(count, more):
    """``take()``: from here on each thread has so many registers, ``more`` than before or fewer. A warpgroup
    calls it as one, and waits until others have given away what it takes. (9.7.19.5, setmaxnreg)"""
    return _instruction(
        f"setmaxnreg.{'inc' if more else 'dec'}.sync.aligned.u32 {count};", "~{memory}", types.void
    )


def meeting(number, threads):
    """``meet()``: a barrier of so many of a block's threads; each number from 1 to 15 is another barrier.
    (9.7.13.1, bar)"""
    return _instruction(f"bar.sync {number}, {threads};", "~{memory}", types.void)


# --- bfloat16 -------------------------------------------------------------------------------------

# bfloat16_pair(low, high): two float32 rounded to bfloat16, in one word. (9.7.9.21, cvt)
bfloat16_pair = _instruction(
    "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", types.uint32, types.float32, types.float32
)


@device
def low_half(word):
    """The first bfloat16 of a pair, as float32."""
    return float_of(word << types.uint32(16))


@device
def high_half(word):
    """The second bfloat16 of a pair, as float32."""
    return float_of(word & types.uint32(0xFFFF0000))


@intrinsic
def float_of(typing_context, bits):
    def generate(context, builder, signature, arguments):
        word = context.cast(builder, arguments[0], signature.args[0], types.uint32)
        return builder.bitcast(word, FLOAT)

    return types.float32(bits), generate
