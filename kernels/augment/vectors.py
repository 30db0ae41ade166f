"""The innermost loops of :mod:`.cpu`, in LLVM's vectors of 16 int32: Numba's own arithmetic on whole numbers
is in 64 bits, which processors multiply slowly and gather half as many of."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..common.simd import INT, INT32, broadcast, declared
from .reference import PAPER

LANES = 16
NUMBERS = ir.VectorType(INT32, LANES)

# The int32 numbers of a map: x = ((SLOPE_X·u + START_X) >> 1) + BASE_X + displacement, and so for y; LAST_X
# and LAST_Y are the largest of both, ROW is the distance of rows of the fours.
SLOPE_X, START_X, BASE_X, LAST_X, SLOPE_Y, START_Y, BASE_Y, LAST_Y, ROW, MAP = range(10)


def _constant(value):
    return NUMBERS([INT32(value)] * LANES)


def _element(build, address, index):
    return build.add(address, build.mul(index, INT(4)))


def _at(build, address, kind):
    return build.inttoptr(address, kind.as_pointer())


def weighted_sums(sums):
    """A function for jitted code, ``add(target, factors, apart, others, distance, count, shift)``: so many

        target[LANES · s + i] = (Σ factors[apart · s + k] · others[distance · k + i]) >> shift

    for LANES of i and ``count`` of k, at least one. All int32 at addresses; wraps around where it overflows.
    """

    @intrinsic
    def add(typing, target, factors, apart, others, distance, count, shift):
        def generate(context, build, signature, arguments):
            target, factors, apart, others, distance, count, shift = arguments
            before, loop = build.basic_block, build.append_basic_block("sum")
            build.branch(loop)
            build.position_at_end(loop)
            k, totals = build.phi(INT), [build.phi(NUMBERS) for _ in range(sums)]
            numbers = build.load(
                _at(build, _element(build, others, build.mul(k, distance)), NUMBERS), align=4
            )
            k_next, more = build.add(k, INT(1)), []
            for s, total in enumerate(totals):
                place = _element(build, factors, build.add(build.mul(apart, INT(s)), k))
                factor = broadcast(build, build.load(_at(build, place, INT32), align=4), INT32, LANES)
                more.append(build.add(total, build.mul(numbers, factor)))
            for phi, first, later in [
                (k, INT(0), k_next),
                *zip(totals, [_constant(0)] * sums, more, strict=True),
            ]:
                phi.add_incoming(first, before)
                phi.add_incoming(later, loop)
            done = build.append_basic_block("summed")
            build.cbranch(build.icmp_signed("<", k_next, count), loop, done)
            build.position_at_end(done)
            shift = broadcast(build, build.trunc(shift, INT32), INT32, LANES)
            for s, total in enumerate(more):
                place = _element(build, target, INT(LANES * s))
                build.store(build.ashr(total, shift), _at(build, place, NUMBERS), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return add


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
            place = _at(build, _element(build, numbers, INT(index)), INT32)
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
        paper = build.icmp_signed("<", result, _constant(PAPER))
        result = build.select(paper, _constant(0), result)
        build.store(result, _at(build, target, NUMBERS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate
