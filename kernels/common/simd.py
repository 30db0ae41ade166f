"""Vector code emitted as LLVM IR: what Numba's own vectoriser does not find by itself.

Plain Numba loops keep a tile's accumulators in memory. Here they are the phi nodes of one loop, so
they stay in registers, and each step is one fused multiply-add a register.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import FLOAT_BYTES

INT = ir.IntType(64)
HALF = ir.IntType(16)
INT32 = ir.IntType(32)
BYTES = ir.IntType(8).as_pointer()
FLOAT = ir.FloatType()


class _BFloat(ir.Type):
    """bfloat16, which llvmlite does not know: the upper half of a float32."""

    def __str__(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


BFLOAT = _BFloat()


def declared(module, name, result, arguments):
    """An LLVM function of that name, declared once a module."""
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def _fma(module, vector):
    return declared(module, f"llvm.fma.v{vector.count}f32", vector, [vector] * 3)


def _first(build, lanes, count):
    """A mask of the first ``count`` lanes."""
    spread = broadcast(build, build.trunc(count, INT32), INT32, lanes)
    numbers = ir.VectorType(INT32, lanes)([INT32(i) for i in range(lanes)])
    return build.icmp_unsigned("<", numbers, spread)


def broadcast(build, number, kind, lanes):
    """One number in every lane."""
    undefined = ir.VectorType(kind, lanes)(ir.Undefined)
    everywhere = ir.VectorType(INT32, lanes)([0] * lanes)
    return build.shuffle_vector(build.insert_element(undefined, number, INT32(0)), undefined, everywhere)


def _masked_load(build, vector, pointer, mask):
    name = f"llvm.masked.load.v{vector.count}f32.p0"
    masks = ir.VectorType(ir.IntType(1), vector.count)
    load = declared(build.module, name, vector, [vector.as_pointer(), INT32, masks, vector])
    return build.call(load, [pointer, INT32(FLOAT_BYTES), mask, vector([0.0] * vector.count)])


def _masked_store(build, value, pointer, mask):
    vector = value.type
    name = f"llvm.masked.store.v{vector.count}f32.p0"
    masks = ir.VectorType(ir.IntType(1), vector.count)
    store = declared(build.module, name, ir.VoidType(), [vector, vector.as_pointer(), INT32, masks])
    build.call(store, [value, pointer, INT32(FLOAT_BYTES), mask])


def _multiply_add(module, vector, pairs):
    """(left, right, sum) -> sum + left·right, lane by lane; lanes of two bfloat16 add two products."""
    if not pairs:
        fma = _fma(module, vector)
        return lambda build, left, right, total: build.call(fma, [left, right, total])
    halves = ir.VectorType(BFLOAT, 2 * vector.count)
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    dot = declared(module, name, vector, [vector, halves, halves])

    def add(build, left, right, total):
        return build.call(dot, [total, build.bitcast(left, halves), build.bitcast(right, halves)])

    return add


def _meaning(build, module, meanings, address):
    """The float32 number that a byte stands for."""
    kind, name = ir.ArrayType(FLOAT, 256), "fastdigit_meanings"
    table = module.globals.get(name)
    if table is None:
        table = ir.GlobalVariable(module, kind, name)
        table.linkage, table.global_constant, table.align = "internal", True, 64
        table.initializer = kind([FLOAT(float(number)) for number in meanings])
    place = build.gep(table, [INT(0), build.zext(build.load(address, align=1), INT)])
    return build.load(place, align=FLOAT_BYTES)


def _micro_kernel(module, rows, vectors, lanes, listed, masked, pairs, meanings):
    """The LLVM function for ``rows`` × ``vectors`` registers; see :func:`micro_kernel`."""
    kind = "_listed" * listed + "_pairs" * pairs + "_masked" * masked + "_bytes" * (meanings is not None)
    name = f"fastdigit_tile_{rows}x{vectors}x{lanes}{kind}"
    if name in module.globals:
        return module.globals[name]
    vector = ir.VectorType(FLOAT, lanes)
    signature = ir.FunctionType(ir.VoidType(), [INT] * 13 + [FLOAT])
    function = ir.Function(module, signature, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")  # one copy, however many callers
    a, a_row, a_step, b, b_step, start, start_row, c, c_row, following, depth, steps, last, floor = (
        function.args
    )
    entry, loop, done = map(function.append_basic_block, ("entry", "loop", "done"))

    def vector_at(build, address, v):
        return build.inttoptr(build.add(address, INT(FLOAT_BYTES * lanes * v)), vector.as_pointer())

    def row(build, address, distance, r):
        return build.add(address, build.mul(distance, INT(r)))

    build = ir.IRBuilder(entry)
    mask = _first(build, lanes, last)

    def load(build, address, v, only=True):
        pointer = vector_at(build, address, v)
        if only and v == vectors - 1:
            return _masked_load(build, vector, pointer, mask)
        return build.load(pointer, align=FLOAT_BYTES)

    begin = [[load(build, row(build, start, start_row, r), v) for v in range(vectors)] for r in range(rows)]
    # The lines of the tile that comes next, to be written to, are asked for in time.
    if vectors * lanes * FLOAT_BYTES >= 64 and not listed:
        prefetch = declared(module, "llvm.prefetch.p0", ir.VoidType(), [BYTES, INT32, INT32, INT32])
        for r in range(rows):
            for line in range(vectors * lanes * FLOAT_BYTES // 64):
                address = build.add(row(build, build.add(c, following), c_row, r), INT(64 * line))
                pointer = build.inttoptr(address, BYTES)
                build.call(prefetch, [pointer, INT32(1), INT32(3), INT32(1)])
    build.cbranch(build.icmp_signed(">", depth, INT(0)), loop, done)

    build = ir.IRBuilder(loop)
    step = build.phi(INT)
    a_moving, b_moving = (None, None) if listed else (build.phi(INT), build.phi(INT))
    sums = [[build.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    step.add_incoming(INT(0), entry)
    if listed:
        place = build.inttoptr(build.add(steps, build.mul(step, INT(2))), HALF.as_pointer())
        k = build.zext(build.load(place, align=2), INT)
        a_now, b_now = build.add(a, build.mul(k, a_step)), build.add(b, build.mul(k, b_step))
    else:
        a_moving.add_incoming(a, entry)
        b_moving.add_incoming(b, entry)
        a_now, b_now = a_moving, b_moving
    add = _multiply_add(module, vector, pairs)
    right = [load(build, b_now, v, masked) for v in range(vectors)]
    new, a_here = [], a_now
    for r in range(rows):
        if meanings is None:
            number = build.load(build.inttoptr(a_here, FLOAT.as_pointer()), align=FLOAT_BYTES)
        else:
            number = _meaning(build, module, meanings, build.inttoptr(a_here, BYTES))
        a_here = build.add(a_here, a_row)
        left = broadcast(build, number, FLOAT, lanes)
        new.append([add(build, left, right[v], sums[r][v]) for v in range(vectors)])
    next_step = build.add(step, INT(1))
    step.add_incoming(next_step, loop)
    if not listed:
        a_moving.add_incoming(build.add(a_now, a_step), loop)
        b_moving.add_incoming(build.add(b_now, b_step), loop)
    for r in range(rows):
        for v in range(vectors):
            sums[r][v].add_incoming(begin[r][v], entry)
            sums[r][v].add_incoming(new[r][v], loop)
    build.cbranch(build.icmp_signed("<", next_step, depth), loop, done)

    build = ir.IRBuilder(done)
    ends = [[build.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    lowest = broadcast(build, floor, FLOAT, lanes)
    for r in range(rows):
        target = row(build, c, c_row, r)
        for v in range(vectors):
            ends[r][v].add_incoming(begin[r][v], entry)
            ends[r][v].add_incoming(new[r][v], loop)
            below = build.fcmp_ordered("<", ends[r][v], lowest)  # false for NaN, which stays
            value = build.select(below, lowest, ends[r][v])
            if v == vectors - 1:
                _masked_store(build, value, vector_at(build, target, v), mask)
            else:
                build.store(value, vector_at(build, target, v), align=FLOAT_BYTES)
    build.ret_void()
    return function


def micro_kernel(tile, listed=False, pairs=False, meanings=None):
    """A function for jitted code that multiplies one tile, made for a :class:`~.tiles.Tile`.

    ``multiply(a, a_row, a_step, b, b_step, start, start_row, c, c_row, following, depth, steps, rows,
    columns, floor)`` computes, for i < rows (1 … tile.rows) and j < columns (1 … tile.columns):

        c[i, j] = max(start[i, j] + Σ_k a[i, k] · b[k, j], floor)

    where a[i, k] lies at address a + 4·(i·a_row + k·a_step), b[k, j] at b + 4·(k·b_step + j), and
    start[i, j] and c[i, j] likewise at i·start_row + j and i·c_row + j. So ``start`` may be c itself,
    or one row for all (a bias, or zeros) with start_row = 0. ``following`` is how far behind c the tile lies
    that is written next: asked for ahead, it must not be another thread's, or both cores fetch it back and
    forth (0: none). k runs over 0 … depth - 1, or, if
    ``listed``, over the ``depth`` uint16 numbers at the address ``steps``. Addresses are integers
    (``array.ctypes.data``), distances count float32 numbers. Nothing is checked. The sum runs over k
    in order, with one rounding a step. A floor of -inf changes nothing; NaN passes any floor.

    With ``pairs``, each 4 bytes of a and b hold two bfloat16 numbers, of two neighbouring k (the lower
    half first), whose two products are added without rounding in between; all distances and ``depth``
    then count pairs. For processors with AVX-512 BF16.

    With ``meanings``, 256 numbers, a is bytes: each stands for one of these. a_row and a_step then count
    bytes. All kernels of a program that have meanings have the same.

    Where ``tile.masked`` is not set, or k is ``listed``, whole vectors of b are read: its rows must go on
    behind ``columns`` to a multiple of the lanes.

    Cost: rows · ⌈columns / lanes⌉ fused multiply-adds a step; a tile of all rows runs at the
    processor's limit while its operands come from the first or second cache.
    """

    @intrinsic
    def multiply(
        typing,
        a,
        a_row,
        a_step,
        b,
        b_step,
        start,
        start_row,
        c,
        c_row,
        following,
        depth,
        steps,
        rows,
        columns,
        floor,
    ):
        signature = types.void(*[types.intp] * 14, types.float32)

        def generate(context, build, signature, arguments):
            a, a_row, a_step, b, b_step, start, start_row, c, c_row, *rest = arguments
            following, depth, steps, rows, columns, floor = rest

            def in_bytes(distance, unit=FLOAT_BYTES):
                return build.mul(distance, INT(unit))

            of_a = FLOAT_BYTES if meanings is None else 1

            before = build.sdiv(build.sub(columns, INT(1)), INT(tile.lanes))  # vectors before the last
            last = build.sub(columns, build.mul(before, INT(tile.lanes)))
            passed = [
                a,
                in_bytes(a_row, of_a),
                in_bytes(a_step, of_a),
                b,
                in_bytes(b_step),
                start,
                in_bytes(start_row),
                c,
                in_bytes(c_row),
                in_bytes(following),
                depth,
                steps,
                last,
                floor,
            ]
            end = build.append_basic_block("end")
            choice = build.switch(build.add(build.mul(before, INT(tile.rows + 1)), rows), end)
            for vectors in range(1, tile.vectors + 1):
                for count in range(1, tile.rows + 1):
                    block = build.append_basic_block(f"tile_{count}x{vectors}")
                    choice.add_case(INT((vectors - 1) * (tile.rows + 1) + count), block)
                    with build.goto_block(block):
                        # So few operations a step as a list has feel that a vector is loaded by a mask.
                        masked = tile.masked and not listed
                        kernel = _micro_kernel(
                            build.module, count, vectors, tile.lanes, listed, masked, pairs, meanings
                        )
                        build.call(kernel, passed)
                        build.branch(end)
            build.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    return multiply


def _halved(build, low, high):
    """Two vectors of float32, one behind the other, as one of bfloat16 (round to nearest, even)."""
    count = low.type.count
    order = ir.VectorType(INT32, 2 * count)([INT32(i) for i in range(2 * count)])
    both = build.shuffle_vector(low, high, order)
    return build.fptrunc(both, ir.VectorType(BFLOAT, 2 * count))


def _first_numbers(build, address, count, first):
    """16 float32 numbers from number ``first`` on; those from ``count`` on are not read but zero."""
    vector = ir.VectorType(FLOAT, 16)
    pointer = build.inttoptr(build.add(address, INT(FLOAT_BYTES * first)), vector.as_pointer())
    left = build.sub(count, INT(first))
    return _masked_load(
        build,
        vector,
        pointer,
        _first(build, 16, build.select(build.icmp_signed(">", left, INT(0)), left, INT(0))),
    )


def _in_pieces(build, low, high, count):
    """Two vectors of float32, one behind the other, as ``count`` vectors of bfloat16 that sum to them."""
    halves = _halved(build, low, high)
    if count == 1:
        return [halves]
    whole = build.fpext(halves, ir.VectorType(FLOAT, 32))
    parts = [
        build.shuffle_vector(whole, whole, ir.VectorType(INT32, 16)([INT32(first + i) for i in range(16)]))
        for first in (0, 16)
    ]
    left = (build.fsub(x, part) for x, part in zip((low, high), parts, strict=True))
    return [halves, *_in_pieces(build, *left, count - 1)]


def splitters(count):
    """Two functions for jitted code that write float32 numbers as sums of ``count`` bfloat16 numbers.

    The first piece is the number rounded (to nearest, ties to even), the second what is left of it
    rounded, and so on; infinities leave NaN. Piece p goes to ``target`` + p·``apart``, in bytes. Numbers
    are multiplied by ``scale``, a float32, before.

    ``split_row(source, count, scale, target, apart)``: 32 numbers, of which those from ``count`` on are not
    read but zero. ``split_rows(first, second, first_count, second_count, scale, target, apart)``: 16 of each
    of two rows, with counts likewise, in pairs: first[0], second[0], first[1] …
    """

    def store(build, numbers, scale, target, apart, order=None):
        factor = broadcast(build, scale, FLOAT, 16)
        pieces = _in_pieces(build, *(build.fmul(x, factor) for x in numbers), count)
        for p, piece in enumerate(pieces):
            if order is not None:
                piece = build.shuffle_vector(piece, piece.type(ir.Undefined), order)
            place = build.add(target, build.mul(apart, INT(p)))
            build.store(piece, build.inttoptr(place, piece.type.as_pointer()), align=2)

    @intrinsic
    def split_row(typing, source, some, scale, target, apart):
        def generate(context, build, signature, arguments):
            source, some, *how = arguments
            store(build, (_first_numbers(build, source, some, first) for first in (0, 16)), *how)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.float32, types.intp, types.intp), generate

    @intrinsic
    def split_rows(typing, first, second, first_count, second_count, scale, target, apart):
        def generate(context, build, signature, arguments):
            first, second, first_count, second_count, *how = arguments
            rows = (_first_numbers(build, *row, 0) for row in ((first, first_count), (second, second_count)))
            order = ir.VectorType(INT32, 32)([INT32(i // 2 + 16 * (i % 2)) for i in range(32)])
            store(build, rows, *how, order)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4, types.float32, types.intp, types.intp), generate

    return split_row, split_rows


@intrinsic
def write_half(typing, address, value):
    """Store a float32 number rounded to bfloat16 at an address."""

    def generate(context, build, signature, arguments):
        half = build.fptrunc(arguments[1], BFLOAT)
        build.store(half, build.inttoptr(arguments[0], BFLOAT.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), generate


def transposer(lanes, halve=False):
    """A function for jitted code that transposes a square of ``lanes`` × ``lanes`` numbers.

    ``transpose(source, source_row, target, target_row)``: target[j, i] = source[i, j], with addresses
    and distances as in :func:`micro_kernel`. With ``halve``, the source's rows have 2·lanes numbers,
    which are rounded to bfloat16 first; pairs of them are the numbers that change places.
    Cost: lanes loads and stores, lanes · log₂ lanes shuffles.
    """

    @intrinsic
    def transpose(typing, source, source_row, target, target_row):
        def generate(context, build, signature, arguments):
            source, source_row, target, target_row = arguments
            vector = ir.VectorType(FLOAT, lanes)

            def pointer(address, distance, r):
                offset = build.mul(distance, INT(FLOAT_BYTES * r))
                return build.inttoptr(build.add(address, offset), vector.as_pointer())

            now = [build.load(pointer(source, source_row, r), align=FLOAT_BYTES) for r in range(lanes)]
            if halve:
                source = build.add(source, INT(FLOAT_BYTES * lanes))
                behind = [build.load(pointer(source, source_row, r), align=FLOAT_BYTES) for r in range(lanes)]
                now = [
                    build.bitcast(_halved(build, low, high), vector)
                    for low, high in zip(now, behind, strict=True)
                ]
            # Squares of side 2, 4, … are transposed inside squares of twice the side: rows r and
            # r + side exchange every second piece of ``side`` numbers.
            side = 1
            while side < lanes:
                low = [i if i // side % 2 == 0 else lanes + i - side for i in range(lanes)]
                high = [i + side if i // side % 2 == 0 else lanes + i for i in range(lanes)]
                masks = [ir.VectorType(INT32, lanes)([INT32(i) for i in order]) for order in (low, high)]
                after = list(now)
                for r in range(lanes):
                    if r // side % 2 == 0:
                        pair = now[r], now[r + side]
                        after[r] = build.shuffle_vector(*pair, masks[0])
                        after[r + side] = build.shuffle_vector(*pair, masks[1])
                now, side = after, 2 * side
            for r in range(lanes):
                build.store(now[r], pointer(target, target_row, r), align=FLOAT_BYTES)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return transpose


def copier(count):
    """A function for jitted code, ``copy(source, target)``: ``count`` float32 numbers at addresses.

    All are read before any is written. Numba makes a loop over single numbers of the same.
    """

    @intrinsic
    def copy(typing, source, target):
        def generate(context, build, signature, arguments):
            pointers = [build.inttoptr(a, ir.VectorType(FLOAT, count).as_pointer()) for a in arguments]
            build.store(build.load(pointers[0], align=FLOAT_BYTES), pointers[1], align=FLOAT_BYTES)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return copy


@intrinsic
def not_zero(typing, address):
    """Of 16 float32 numbers at an address, bit i says whether number i is something else than zero."""

    def generate(context, build, signature, arguments):
        vector = ir.VectorType(FLOAT, 16)
        numbers = build.load(build.inttoptr(arguments[0], vector.as_pointer()), align=FLOAT_BYTES)
        different = build.fcmp_unordered("!=", numbers, vector([0.0] * 16))
        return build.zext(build.bitcast(different, HALF), INT)

    return types.intp(types.intp), generate


@intrinsic
def not_zero_bytes(typing, address):
    """Of 64 bytes at an address, bit i says whether byte i is something else than zero."""

    def generate(context, build, signature, arguments):
        vector = ir.VectorType(ir.IntType(8), 64)
        numbers = build.load(build.inttoptr(arguments[0], vector.as_pointer()), align=1)
        return build.bitcast(build.icmp_unsigned("!=", numbers, vector([0] * 64)), INT)

    return types.intp(types.intp), generate


@intrinsic
def last_bit(typing, bits):
    """The place of the lowest bit that is set in a 64-bit word (64 where none is)."""

    def generate(context, build, signature, arguments):
        return build.cttz(arguments[0], ir.IntType(1)(0))

    return types.intp(types.int64), generate


@intrinsic
def count_bits(typing, bits):
    """How many bits of a 64-bit word are set."""

    def generate(context, build, signature, arguments):
        return build.ctpop(arguments[0])

    return types.intp(types.int64), generate


@intrinsic
def list_32(typing, bits, first, target):
    """Write uint16 numbers ``first`` + i for the bits i < 32 that are set, in order, at an address.

    32 numbers are written, whatever the bits; those behind the last set bit are arbitrary. For
    processors with AVX-512 VBMI2; elsewhere LLVM makes slow code of it.
    """

    def generate(context, build, signature, arguments):
        bits, first, target = arguments
        vector, masks = ir.VectorType(HALF, 32), ir.VectorType(ir.IntType(1), 32)
        mask = build.bitcast(build.trunc(bits, INT32), masks)
        spread = broadcast(build, build.trunc(first, HALF), HALF, 32)
        numbers = build.add(spread, vector([HALF(i) for i in range(32)]))
        name = "llvm.experimental.vector.compress.v32i16"
        compress = declared(build.module, name, vector, [vector, masks, vector])
        pressed = build.call(compress, [numbers, mask, vector(ir.Undefined)])
        build.store(pressed, build.inttoptr(target, vector.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def write_16(typing, address, value):
    """Store a number as uint16 at an address."""

    def generate(context, build, signature, arguments):
        place = build.inttoptr(arguments[0], HALF.as_pointer())
        build.store(build.trunc(arguments[1], HALF), place, align=2)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def read(typing, address):
    """The float32 number at an address."""

    def generate(context, build, signature, arguments):
        return build.load(build.inttoptr(arguments[0], FLOAT.as_pointer()), align=FLOAT_BYTES)

    return types.float32(types.intp), generate


@intrinsic
def write(typing, address, value):
    """Store a float32 number at an address."""

    def generate(context, build, signature, arguments):
        build.store(arguments[1], build.inttoptr(arguments[0], FLOAT.as_pointer()), align=FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), generate
