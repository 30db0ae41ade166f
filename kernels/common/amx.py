"""Intel's tile registers (AMX): eight of 16 rows × 64 bytes, multiplied as whole matrices of bfloat16.

One instruction adds a product of 16 × 32 and 32 × 16 numbers to 16 × 16 float32 sums. Operands are
*tiles* of 1 KiB, one behind the other, so that each is 16 whole cache lines: rows of tiles that lie
far apart share cache sets, which takes a quarter of the speed (measured, see kernels/README.md).

- A *left* tile holds a[i, k], 16 rows i of 32 steps k: number (i, k) at bytes 64·i + 2·k.
- A *right* tile holds b[k, j], 32 steps k of 16 columns j, two steps side by side: number (k, j) at
  bytes 64·(k // 2) + 4·j + 2·(k % 2).

An operand can be one *piece*, rounded to bfloat16, or three, which sum to all 24 bits of a float32: the
number rounded, what is left rounded, and what is left then. Six products of pieces make a float32's; the
three others are below half a unit in its last place. A whole number up to 256 is one piece: then three do.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume
2, TDPBF16PS; Linux, Documentation/arch/x86/xstate.rst for the permission.
"""

import ctypes
import platform
import sys
from functools import cache
from itertools import product

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import BYTES, INT, INT32, declared
from .tiles import features

ROWS = COLUMNS = 16
STEPS = 32
TILE = 1024  # bytes

_NUMBER = ir.IntType(8)
_VOID = ir.VoidType()
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux on x86-64


@cache
def has_tiles():
    """Whether the processor has tiles of bfloat16, and Linux lets this process use them.

    Linux gives the permission to the whole process when it is first asked, unless the memory of one of
    its threads for signals is too small for tiles (and refuses too small ones from then on).
    """
    if not {"+amx-tile", "+amx-bf16", "+avx512bf16"} <= features():
        return False
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arguments = (ctypes.c_long(x) for x in (_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA))
    return ctypes.CDLL(None).syscall(*arguments) == 0


@intrinsic
def configure_tiles(typing):
    """Make the thread's eight tile registers 16 rows of 64 bytes each, all zero; needed once a product."""

    def generate(context, build, signature, arguments):
        # Palette 1; from byte 16 on the bytes of a row of each tile, two each; from 48 on its rows, one each.
        content = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [ROWS] * 8 + [0] * 8
        kind = ir.ArrayType(_NUMBER, len(content))
        name = "fastdigit_tile_configuration"
        shape = build.module.globals.get(name)
        if shape is None:
            shape = ir.GlobalVariable(build.module, kind, name)
            shape.linkage, shape.global_constant, shape.align = "internal", True, 64
            shape.initializer = kind([_NUMBER(byte) for byte in content])
        load = declared(build.module, "llvm.x86.ldtilecfg", _VOID, [BYTES])
        build.call(load, [build.bitcast(shape, BYTES)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def release_tiles(typing):
    """The thread's tile registers are no longer used: it is again switched as quickly as others."""

    def generate(context, build, signature, arguments):
        build.call(declared(build.module, "llvm.x86.tilerelease", _VOID, []), [])
        return context.get_dummy_value()

    return types.void(), generate


# Which pieces are multiplied, of the left and of the right operand: the largest last, and each time one of
# the two is already in its registers.
# PIXELS: one piece of the left, three of the right.
PIXELS = 13
_PRODUCTS = {
    1: [(0, 0)],
    3: [(0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)],
    PIXELS: [(0, 2), (0, 1), (0, 0)],
}
_AT_ONCE = 2  # rows that are asked for with each step


def pieces_of(kind):
    """Of how many pieces the left and the right operand are: as many as ``kind``, if that is not PIXELS."""
    return (1, 3) if kind == PIXELS else (kind, kind)


def _kernel(module, kind, tall, wide):
    """The LLVM function for ``tall`` × ``wide`` tiles of sums; see :func:`multiply_tiles`."""
    name = f"fastdigit_amx_{kind}_{tall}x{wide}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(_VOID, [INT] * 9), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    a, b, steps, start, start_row, c, c_row, beside, beside_row = function.args
    entry, loop, done = map(function.append_basic_block, ("entry", "loop", "done"))
    load = declared(module, "llvm.x86.tileloadd64", _VOID, [_NUMBER, BYTES, INT])
    # A hint: what comes is not needed again soon. It leaves the left tiles in the first cache.
    load_past = declared(module, "llvm.x86.tileloaddt164", _VOID, [_NUMBER, BYTES, INT])
    store = declared(module, "llvm.x86.tilestored64", _VOID, [_NUMBER, BYTES, INT])
    dot = declared(module, "llvm.x86.tdpbf16ps", _VOID, [_NUMBER] * 3)
    prefetch = declared(module, "llvm.prefetch.p0", _VOID, [BYTES, INT32, INT32, INT32])

    def every_sum(build, call, address, row):
        """Load or store all tiles of sums, which lie as parts of one matrix."""
        for r in range(tall):
            for v in range(wide):
                place = build.add(address, build.add(build.mul(row, INT(ROWS * r)), INT(64 * v)))
                build.call(call, [_NUMBER(2 * r + v), build.inttoptr(place, BYTES), row])

    build = ir.IRBuilder(entry)
    every_sum(build, load, start, start_row)
    build.cbranch(build.icmp_signed(">", steps, INT(0)), loop, done)

    build = ir.IRBuilder(loop)
    step, a_now, b_now, ahead = (build.phi(INT) for _ in range(4))

    def tile(call, register, address, number):
        place = build.inttoptr(build.add(address, INT(TILE * number)), BYTES)
        build.call(call, [_NUMBER(register), place, INT(64)])

    left_now = right_now = None  # the pieces that are in registers 4 and 5, 6 and 7
    for left, right in _PRODUCTS[kind]:
        for r in range(tall):
            for v in range(wide):
                if r == 0 and right != right_now:
                    tile(load_past, 6 + v, b_now, 2 * right + v)
                if v == 0 and left != left_now:
                    tile(load, 4 + r, a_now, 2 * left + r)
                build.call(dot, [_NUMBER(2 * r + v), _NUMBER(4 + r), _NUMBER(6 + v)])
        left_now, right_now = left, right
    for line in range(_AT_ONCE):
        row = build.add(ahead, build.mul(beside_row, INT(line)))
        for v in range(wide):
            wanted = build.inttoptr(build.add(row, INT(64 * v)), BYTES)
            build.call(prefetch, [wanted, INT32(1), INT32(3), INT32(1)])
    following, (left_pieces, right_pieces) = build.add(step, INT(1)), pieces_of(kind)
    for phi, first, after in (
        (step, INT(0), following),
        (ahead, beside, build.add(ahead, build.mul(beside_row, INT(_AT_ONCE)))),
        (a_now, a, build.add(a_now, INT(2 * left_pieces * TILE))),
        (b_now, b, build.add(b_now, INT(2 * right_pieces * TILE))),
    ):
        phi.add_incoming(first, entry)
        phi.add_incoming(after, loop)
    build.cbranch(build.icmp_signed("<", following, steps), loop, done)

    build = ir.IRBuilder(done)
    every_sum(build, store, c, c_row)
    build.ret_void()
    return function


@intrinsic
def multiply_tiles(typing, kind, a, b, steps, start, start_row, c, c_row, beside, beside_row, tall, wide):
    """c = start + a·b, for ``tall`` × ``wide`` tiles of sums, each 1 or 2; whole tiles are written.

    ``a`` and ``b`` are addresses of two left and two right tiles for each of the pieces of each of ``steps``
    times 32 k; the second of two is not read if its direction has one tile. ``kind`` says how many pieces
    there are (:func:`pieces_of`). ``start`` and
    ``c`` are addresses of float32 matrices whose rows are so many *bytes* apart; a ``start_row`` of 0 takes
    one row for all. The sum runs over steps in order; within one the order is the processor's, which takes
    numbers below 2⁻¹²⁶ for zero. ``beside`` is the address of a matrix like c, its rows ``beside_row``
    bytes apart, that will be read next: two of its rows are asked for with each step (all at once they
    would hold up the tiles).

    Cost: 16 cycles a tile, product of pieces and step, as long as operands come in time.
    """

    def generate(context, build, signature, arguments):
        kind, *passed, tall, wide = arguments
        end = build.append_basic_block("end")
        choice = build.switch(
            build.add(build.mul(kind, INT(8)), build.add(build.mul(tall, INT(2)), wide)), end
        )
        for number, rows, columns in product(_PRODUCTS, (1, 2), (1, 2)):
            block = build.append_basic_block(f"tiles_{rows}x{columns}")
            choice.add_case(INT(8 * number + 2 * rows + columns), block)
            with build.goto_block(block):
                build.call(_kernel(build.module, number, rows, columns), passed)
                build.branch(end)
        build.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 12), generate
