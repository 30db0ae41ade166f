"""Vector code emitted as LLVM IR: what Numba's own vectoriser does not find by itself.

Plain Numba loops keep a tile's accumulators in memory. Here they are the phi nodes of one loop, so
they stay in registers, and each step is one fused multiply-add a register.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

INT = ir.IntType(64)
BYTES = ir.IntType(8).as_pointer()
FLOAT = ir.FloatType()
FLOAT_BYTES = 4


def _fma(module, vector):
    name = f"llvm.fma.v{vector.count}f32"
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(vector, [vector] * 3), name)


def _micro_kernel(module, rows, vectors, lanes):
    """The LLVM function for ``rows`` rows: c = (c if add else 0) + a·b over ``depth`` steps.

    Arguments: a, its row and step distance; b, its step distance; c, its row distance (distances in
    bytes); depth ≥ 1; add.
    """
    name = f"fastdigit_tile_{rows}x{vectors}x{lanes}"
    if name in module.globals:
        return module.globals[name]
    vector = ir.VectorType(FLOAT, lanes)
    signature = ir.FunctionType(ir.VoidType(), [BYTES, INT, INT, BYTES, INT, BYTES, INT, INT, ir.IntType(1)])
    function = ir.Function(module, signature, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")  # one copy, however many callers
    a, a_row, a_step, b, b_step, c, c_row, depth, add = function.args
    entry, fresh, previous, loop, done = map(
        function.append_basic_block, ("entry", "fresh", "previous", "loop", "done")
    )

    build = ir.IRBuilder(entry)
    c_rows = [c]
    while len(c_rows) < rows:
        c_rows.append(build.gep(c_rows[-1], [c_row]))
    build.cbranch(add, previous, fresh)

    def nth_vector(build, pointer, n):
        return build.bitcast(build.gep(pointer, [INT(FLOAT_BYTES * lanes * n)]), vector.as_pointer())

    def load(build, pointer, n):
        return build.load(nth_vector(build, pointer, n), align=FLOAT_BYTES)

    build = ir.IRBuilder(previous)
    before = [[load(build, row, v) for v in range(vectors)] for row in c_rows]
    build.branch(loop)
    ir.IRBuilder(fresh).branch(loop)

    build = ir.IRBuilder(loop)
    step, a_now, b_now = build.phi(INT), build.phi(BYTES), build.phi(BYTES)
    sums = [[build.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    zero = vector([0.0] * lanes)
    for block in (fresh, previous):
        step.add_incoming(INT(0), block)
        b_now.add_incoming(b, block)
        a_now.add_incoming(a, block)
        for r in range(rows):
            for v in range(vectors):
                sums[r][v].add_incoming(zero if block is fresh else before[r][v], block)

    fma, undefined = _fma(module, vector), vector(ir.Undefined)
    everywhere = ir.VectorType(ir.IntType(32), lanes)([0] * lanes)
    right = [load(build, b_now, v) for v in range(vectors)]
    new, a_here = [], a_now
    for r in range(rows):
        number = build.load(build.bitcast(a_here, FLOAT.as_pointer()), align=FLOAT_BYTES)
        a_here = build.gep(a_here, [a_row])
        first = build.insert_element(undefined, number, ir.IntType(32)(0))
        left = build.shuffle_vector(first, undefined, everywhere)
        new.append([build.call(fma, [left, right[v], sums[r][v]]) for v in range(vectors)])
    next_step = build.add(step, INT(1))
    step.add_incoming(next_step, loop)
    b_now.add_incoming(build.gep(b_now, [b_step]), loop)
    a_now.add_incoming(build.gep(a_now, [a_step]), loop)
    for r in range(rows):
        for v in range(vectors):
            sums[r][v].add_incoming(new[r][v], loop)
    build.cbranch(build.icmp_signed("<", next_step, depth), loop, done)

    build = ir.IRBuilder(done)
    for r in range(rows):
        for v in range(vectors):
            build.store(new[r][v], nth_vector(build, c_rows[r], v), align=FLOAT_BYTES)
    build.ret_void()
    return function


def micro_kernel(tile):
    """A function for jitted code that multiplies one tile, made for a :class:`~.tiles.Tile`.

    ``multiply(a, a_row, a_step, b, b_step, c, c_row, depth, rows, add)`` computes, for i < rows
    (1 … tile.rows) and j < tile.columns:

        c[i, j] = (c[i, j] if add else 0) + Σ_k a[i, k] · b[k, j]      k = 0 … depth - 1

    where a[i, k] lies at address a + 4·(i·a_row + k·a_step), b[k, j] at b + 4·(k·b_step + j) and
    c[i, j] at c + 4·(i·c_row + j). Addresses are integers (``array.ctypes.data``), distances count
    float32 numbers. Nothing is checked. The sum runs over k in order, with one rounding a step.

    Cost: rows · tile.vectors fused multiply-adds a step; a tile of all rows runs at the processor's
    limit while its operands come from the first or second cache.
    """

    @intrinsic
    def multiply(typing, a, a_row, a_step, b, b_step, c, c_row, depth, rows, add):
        signature = types.void(*[types.intp] * 9, types.boolean)

        def generate(context, build, signature, arguments):
            a, a_row, a_step, b, b_step, c, c_row, depth, rows, add = arguments

            def pointer(address):
                return build.inttoptr(address, BYTES)

            def in_bytes(distance):
                return build.mul(distance, INT(FLOAT_BYTES))

            passed = [
                pointer(a),
                in_bytes(a_row),
                in_bytes(a_step),
                pointer(b),
                in_bytes(b_step),
                pointer(c),
                in_bytes(c_row),
                depth,
                add,
            ]
            end = build.append_basic_block("end")
            choice = build.switch(rows, end)
            for count in range(1, tile.rows + 1):
                block = build.append_basic_block(f"rows_{count}")
                choice.add_case(INT(count), block)
                with build.goto_block(block):
                    build.call(_micro_kernel(build.module, count, tile.vectors, tile.lanes), passed)
                    build.branch(end)
            build.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    return multiply


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
