"""The innermost loops of :mod:`.cpu`, in LLVM's vectors of 16 int32: Numba's own arithmetic on whole numbers
is in 64 bits, which processors multiply slowly and gather half as many of."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..common.simd import INT, INT32, broadcast, declared

LANES = 16
NUMBERS = ir.VectorType(INT32, LANES)

# The int32 numbers of a map: x = ((SLOPE_X·u + START_X) >> 1) + BASE_X + displacement, and so for y; LAST_X
# and LAST_Y are the largest of both, ROW is the distance of rows of the fours.
SLOPE_X, START_X, BASE_X, LAST_X, SLOPE_Y, START_Y, BASE_Y, LAST_Y, ROW, MAP = range(10)


def _constant(value):
    return NUMBERS([INT32(value)] * LANES)


def _at(build, address, kind):
    return build.inttoptr(address, kind.as_pointer())


@intrinsic
def weighted_sum(typing, target, factors, others, distance, count, shift):
    """target[i] = (Σ factors[k] · others[k · distance + i]) >> shift, for LANES of i and ``count`` of k.

    All int32 at addresses; wraps around where it overflows.
    """

    def generate(context, build, signature, arguments):
        target, factors, others, distance, count, shift = arguments
        before = build.basic_block
        loop, done = map(build.append_basic_block, ("sum", "summed"))
        start = build.icmp_signed(">", count, INT(0))
        build.cbranch(start, loop, done)
        build.position_at_end(loop)
        k, total = build.phi(INT), build.phi(NUMBERS)
        factor = build.load(_at(build, build.add(factors, build.mul(k, INT(4))), INT32), align=4)
        place = build.add(others, build.mul(build.mul(k, distance), INT(4)))
        numbers = build.load(_at(build, place, NUMBERS), align=4)
        more = build.add(total, build.mul(numbers, broadcast(build, factor, INT32, LANES)))
        following = build.add(k, INT(1))
        for phi, first, later in ((k, INT(0), following), (total, _constant(0), more)):
            phi.add_incoming(first, before)
            phi.add_incoming(later, loop)
        build.cbranch(build.icmp_signed("<", following, count), loop, done)
        build.position_at_end(done)
        result = build.phi(NUMBERS)
        result.add_incoming(_constant(0), before)
        result.add_incoming(more, loop)
        result = build.ashr(result, broadcast(build, build.trunc(shift, INT32), INT32, LANES))
        build.store(result, _at(build, target, NUMBERS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def sample(typing, fours, numbers, places, moves_x, moves_y, target):
    """LANES pixels of a deformed image, int32 in 0 … 255, at addresses.

    ``fours``: for each place of the image in its frame the four pixels of a bilinear mean in one word;
    ``numbers``: a map, see above; ``places``: u; ``moves_x``, ``moves_y``: displacements.
    """

    def generate(context, build, signature, arguments):
        fours, numbers, places, moves_x, moves_y, target = arguments

        def vector(address):
            return build.load(_at(build, address, NUMBERS), align=4)

        def number(index):
            place = _at(build, build.add(numbers, INT(4 * index)), INT32)
            return broadcast(build, build.load(place, align=4), INT32, LANES)

        def limited(value, least, most):
            value = build.select(build.icmp_signed("<", value, least), least, value)
            return build.select(build.icmp_signed(">", value, most), most, value)

        def position(slope, start, base, last, moves):
            value = build.ashr(build.add(build.mul(number(slope), vector(places)), number(start)), one)
            value = build.add(value, build.add(number(base), vector(moves)))
            return limited(value, _constant(-(1 << 16)), number(last))

        def mean(low, high, share):
            """low · (256 - share) + high · share."""
            return build.add(build.shl(low, eight), build.mul(build.sub(high, low), share))

        one, eight, byte = _constant(1), _constant(8), _constant(255)
        sixteen = _constant(16)
        x = position(SLOPE_X, START_X, BASE_X, LAST_X, moves_x)
        y = position(SLOPE_Y, START_Y, BASE_Y, LAST_Y, moves_y)
        at = build.mul(build.add(build.ashr(y, sixteen), one), number(ROW))
        at = build.add(at, build.add(build.ashr(x, sixteen), one))
        pointers = build.gep(_at(build, fours, INT32), [at], source_etype=INT32)
        pointers.type = ir.VectorType(ir.PointerType(), LANES)  # llvmlite thinks that it is one pointer
        masks = ir.VectorType(ir.IntType(1), LANES)
        gather = declared(
            build.module,
            f"llvm.masked.gather.v{LANES}i32.v{LANES}p0",
            NUMBERS,
            [pointers.type, INT32, masks, NUMBERS],
        )
        four = build.call(gather, [pointers, INT32(4), masks([ir.IntType(1)(1)] * LANES), _constant(0)])
        pixels = [build.and_(build.lshr(four, _constant(8 * i)), byte) for i in range(4)]
        right, below = (build.and_(build.ashr(p, eight), byte) for p in (x, y))
        result = mean(mean(pixels[0], pixels[1], right), mean(pixels[2], pixels[3], right), below)
        result = build.ashr(build.add(result, _constant(1 << 15)), sixteen)
        build.store(result, _at(build, target, NUMBERS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate
