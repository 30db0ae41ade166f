"""Tests of ptxrun itself: numba kernels compiled without a GPU, run here, compared with numpy; and planted
faults that must be found."""

import numpy as np
import pytest
from llvmlite import ir
from numba import cuda, float32, int32, types, uint32
from numba.extending import intrinsic

from .device import Device, PTXError, numba_args
from .ptxrun import launch

CC = (8, 0)


def f32a(n):
    return types.Array(float32, n, "C")


def ptx_of(f, *sig, cc=CC):
    """Compile without a GPU. Device functions ask for the current device's capability: answer for it."""
    from numba.cuda import dispatcher

    asked, dispatcher.get_current_device = (
        dispatcher.get_current_device,
        lambda: type("Device", (), {"compute_capability": cc}),
    )
    try:
        return cuda.compile_ptx(f, types.void(*sig), cc=cc)[0]
    finally:
        dispatcher.get_current_device = asked


def asm(arity, result, template, constraints):
    """A PTX instruction as a numba intrinsic over `arity` scalars or tuples."""

    def build(ctx, *args):
        sig = result(*args)

        def gen(context, bld, sig, vals):
            flat = []
            for ty, v in zip(sig.args, vals, strict=False):
                n = getattr(ty, "count", None)
                flat += [bld.extract_value(v, k) for k in range(n)] if n else [v]
            many = hasattr(result, "count")
            if result == types.void:
                rt = ir.VoidType()
            else:
                el = context.get_value_type(result.dtype if many else result)
                rt = ir.LiteralStructType([el] * result.count) if many else el
            r = bld.call(
                ir.InlineAsm(
                    ir.FunctionType(rt, [v.type for v in flat]), template, constraints, side_effect=True
                ),
                flat,
            )
            if not many:
                return context.get_dummy_value() if result == types.void else r
            out = ir.Constant(context.get_value_type(result), ir.Undefined)
            for k in range(result.count):
                out = bld.insert_value(out, bld.extract_value(r, k), k)
            return out

        return sig, gen

    return intrinsic(
        [
            lambda c: build(c),
            lambda c, x: build(c, x),
            lambda c, x, y: build(c, x, y),
            lambda c, x, y, z: build(c, x, y, z),
        ][arity]
    )


def test_saxpy_with_tail():
    def k(a, x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = a * x[i] + y[i]

    r = np.random.default_rng(0)
    x, y = r.standard_normal((2, 1000)).astype(np.float32)
    dev = Device()
    dx, dy = dev.array(x), dev.array(y)
    launch(ptx_of(k, float32, f32a(1), f32a(1)), 8, 128, numba_args(np.float32(2), dx, dy), dev)
    np.testing.assert_allclose(dy.host(), 2 * x + y, rtol=1e-6)


def test_math_functions():
    def k(x, y):
        i = cuda.grid(1)
        v = x[i]
        y[i] = (
            cuda.libdevice.expf(v)
            + cuda.libdevice.logf(abs(v) + float32(1))
            + cuda.libdevice.sqrtf(abs(v)) / (float32(1) + v * v)
        )

    x = np.linspace(-20, 20, 256).astype(np.float32)
    dev = Device()
    dx, dy = dev.array(x), dev.empty(256, np.float32)
    launch(ptx_of(k, f32a(1), f32a(1)), 2, 128, numba_args(dx, dy), dev)
    np.testing.assert_allclose(
        dy.host(), np.exp(x) + np.log(abs(x) + 1) + np.sqrt(abs(x)) / (1 + x * x), rtol=3e-6
    )


def test_device_function():
    @cuda.jit(device=True)
    def square(v):
        return v * v

    def k(x):
        x[cuda.grid(1)] = square(x[cuda.grid(1)])

    dev = Device()
    dx = dev.array(np.arange(32, dtype=np.float32))
    launch(ptx_of(k, f32a(1)), 1, 32, numba_args(dx), dev)
    assert (dx.host() == np.arange(32) ** 2).all()


CALLS = """
.version 8.0
.target sm_80
.address_size 64
.func (.param .b32 func_retval0) collatz(.param .b32 collatz_param_0)
{
  .reg .pred %p<4>; .reg .b32 %r<8>;
  ld.param.u32 %r1, [collatz_param_0];
  mov.u32 %r2, 0;
$L__BB0_1:
  setp.le.u32 %p1, %r1, 1;
  @%p1 bra $L__BB0_3;
  and.b32 %r3, %r1, 1;
  setp.eq.u32 %p2, %r3, 0;
  shr.u32 %r4, %r1, 1;
  mad.lo.u32 %r5, %r1, 3, 1;
  selp.b32 %r1, %r4, %r5, %p2;
  add.u32 %r2, %r2, 1;
  bra.uni $L__BB0_1;
$L__BB0_3:
  st.param.b32 [func_retval0+0], %r2;
  ret;
}
.visible .entry k(.param .u64 k_param_0)
{
  .reg .b32 %r<8>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [k_param_0];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  { .param .b32 param0; st.param.b32 [param0+0], %r1; .param .b32 retval0;
    call.uni (retval0), collatz, (param0); ld.param.b32 %r2, [retval0+0]; }
  { .param .b32 param0; st.param.b32 [param0+0], %r2; .param .b32 retval0;
    call.uni (retval0), collatz, (param0); ld.param.b32 %r3, [retval0+0]; }
  shl.b32 %r4, %r3, 8;
  or.b32 %r4, %r4, %r2;
  st.global.u32 [%rd3], %r4;
  ret;
}
"""


def test_device_function_that_was_not_inlined():
    def steps(v):
        n = 0
        while v > 1:
            v = v // 2 if v % 2 == 0 else 3 * v + 1
            n += 1
        return n

    dev = Device()
    d = dev.empty(64, np.uint32)
    launch(CALLS, 1, 64, [d], dev, entry="k")
    assert d.host().tolist() == [steps(steps(v)) << 8 | steps(v) for v in range(64)]


TILE = 16


def tiled(barrier):
    def k(a, b, c):
        sa, sb = cuda.shared.array((TILE, TILE), float32), cuda.shared.array((TILE, TILE), float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        row, col = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx
        acc = float32(0)
        for t in range((a.shape[1] + TILE - 1) // TILE):
            p = t * TILE
            sa[ty, tx] = a[row, p + tx] if row < a.shape[0] and p + tx < a.shape[1] else float32(0)
            sb[ty, tx] = b[p + ty, col] if col < b.shape[1] and p + ty < b.shape[0] else float32(0)
            cuda.syncthreads()
            for j in range(TILE):
                acc += sa[ty, j] * sb[j, tx]
            if barrier:
                cuda.syncthreads()
        if row < c.shape[0] and col < c.shape[1]:
            c[row, col] = acc

    return k


def run_tiled(barrier, race):
    r = np.random.default_rng(1)
    a, b = r.standard_normal((37, 45)).astype(np.float32), r.standard_normal((45, 29)).astype(np.float32)
    dev = Device()
    da, db, dc = dev.array(a), dev.array(b), dev.empty((37, 29), np.float32)
    rep = launch(
        ptx_of(tiled(barrier), f32a(2), f32a(2), f32a(2)),
        (2, 3),
        (16, 16),
        numba_args(da, db, dc),
        dev,
        race=race,
        metrics=True,
    )
    np.testing.assert_allclose(dc.host(), a @ b, rtol=1e-4, atol=1e-4)
    assert len(dc.unwritten()) == 0
    return rep


def test_tiled_matmul_at_odd_shape():
    rep = run_tiled(True, True)
    assert rep.barriers > 0
    assert rep.sectors["ld.global"] > 0


def test_missing_barrier_is_a_race():
    with pytest.raises(PTXError, match="race"):
        run_tiled(False, True)


def test_counts_of_sectors_and_bank_conflicts():
    def k(x, y, stride):
        s = cuda.shared.array(1024, float32)
        i = cuda.threadIdx.x
        s[(i * stride) % 1024] = x[i]
        cuda.syncthreads()
        y[i * 8] = s[(i * stride) % 1024]

    for stride, conflicts in ((1, 0), (2, 1), (32, 31)):
        dev = Device()
        dx, dy = dev.array(np.ones(32, np.float32)), dev.empty(256, np.float32)
        rep = launch(
            ptx_of(k, f32a(1), f32a(1), int32), 1, 32, numba_args(dx, dy, np.int32(stride)), dev, metrics=True
        )
        assert rep.bank_conflicts["st.shared"] == conflicts
        assert rep.sectors["ld.global"] == 4
        assert rep.sectors["st.global"] == 32


def test_out_of_bounds_is_found():
    def k(x, y):
        i = cuda.grid(1)
        y[i] = x[i + 1]

    dev = Device()
    dx, dy = dev.array(np.ones(128, np.float32)), dev.empty(128, np.float32)
    with pytest.raises(PTXError, match="out of bounds"):
        launch(ptx_of(k, f32a(1), f32a(1)), 1, 128, numba_args(dx, dy), dev)


def test_unwritten_memory_is_found():
    def k(x, y):
        y[cuda.grid(1)] = x[cuda.grid(1)]

    dev = Device()
    with pytest.raises(PTXError, match="nothing has written"):
        launch(
            ptx_of(k, f32a(1), f32a(1)),
            1,
            32,
            numba_args(dev.empty(32, np.float32), dev.empty(32, np.float32)),
            dev,
        )


def test_shared_read_before_write_is_found():
    def k(y):
        s = cuda.shared.array(64, float32)
        if cuda.threadIdx.x < 32:
            s[cuda.threadIdx.x] = 1
        cuda.syncthreads()
        y[cuda.threadIdx.x] = s[cuda.threadIdx.x]

    dev = Device()
    with pytest.raises(PTXError, match="shared memory that nothing"):
        launch(ptx_of(k, f32a(1)), 1, 64, numba_args(dev.empty(64, np.float32)), dev)


def test_threads_that_meet_at_different_barriers():
    def k(x, y):
        if cuda.threadIdx.x < 32:
            y[cuda.threadIdx.x] = 1
            cuda.syncthreads()
            y[cuda.threadIdx.x] = x[0]
        else:
            cuda.syncthreads()
            y[cuda.threadIdx.x] = 2

    dev = Device()
    with pytest.raises(PTXError, match=r"different bar\.sync"):
        launch(
            ptx_of(k, f32a(1), f32a(1)),
            1,
            64,
            numba_args(dev.array(np.ones(1, np.float32)), dev.empty(64, np.float32)),
            dev,
            race=True,
        )


@pytest.mark.parametrize("what", ["shuffle", "vote"])
@pytest.mark.parametrize(
    ("lanes", "mask", "right"),
    [
        (32, 0xFFFFFFFF, True),
        (31, 0xFFFFFFFF, False),
        (16, 0xFFFF, True),
        (16, 0x1FFFF, False),
        (16, 0x7FFF, False),
    ],
)
def test_lanes_that_a_shuffle_or_vote_names_must_come(what, lanes, mask, right):
    def shuffle(x, y, lanes, mask):
        i = cuda.threadIdx.x
        v = x[i]
        if i < lanes:
            v = cuda.shfl_sync(mask, v, 3)
        y[i] = v

    def vote(x, y, lanes, mask):
        i = cuda.threadIdx.x
        v = x[i]
        if i < lanes:
            v = float32(cuda.ballot_sync(mask, v > 0))
        y[i] = v

    dev = Device()
    args = numba_args(
        dev.array(np.ones(32, np.float32)), dev.empty(32, np.float32), np.int32(lanes), np.uint32(mask)
    )
    code = ptx_of({"shuffle": shuffle, "vote": vote}[what], f32a(1), f32a(1), int32, uint32)
    if right:
        launch(code, 1, 32, args, dev)
        return
    with pytest.raises(PTXError, match="names lanes that do not take part, or not its own"):
        launch(code, 1, 32, args, dev)


def test_a_last_warp_may_be_small():
    def k(y):
        y[cuda.threadIdx.x] = cuda.popc(cuda.ballot_sync(0xFFFFFFFF, True))

    dev = Device()
    y = dev.empty(40, np.float32)
    launch(ptx_of(k, f32a(1)), 1, 40, numba_args(y), dev)
    assert y.host().tolist() == [32] * 32 + [8] * 8


def test_blocks_that_leave_before_a_grid_barrier():
    def k(x, y):
        if x[cuda.blockIdx.x] > 0:
            cuda.cg.this_grid().sync()
        y[cuda.blockIdx.x] = 1

    for x, right in (([1, 1, 1], True), ([1, -1, 1], False)):
        dev = Device()
        args = numba_args(dev.array(np.array(x, np.float32)), dev.empty(3, np.float32))
        if right:
            launch(ptx_of(k, f32a(1), f32a(1)), 3, 32, args, dev)
            continue
        with pytest.raises(PTXError, match="some blocks left before the grid barrier"):
            launch(ptx_of(k, f32a(1), f32a(1)), 3, 32, args, dev)


def test_warp_shuffle_reduction_and_votes():
    def k(x, y, n):
        i = cuda.threadIdx.x
        v = x[i]
        for s in (16, 8, 4, 2, 1):
            v += cuda.shfl_down_sync(0xFFFFFFFF, v, s)
        b = cuda.ballot_sync(0xFFFFFFFF, x[i] > 0)
        if i % 32 == 0:
            y[i // 32] = v
            n[i // 32] = cuda.popc(b)

    x = np.random.default_rng(2).standard_normal(128).astype(np.float32)
    dev = Device()
    dy, dn = dev.empty(4, np.float32), dev.empty(4, np.int32)
    launch(
        ptx_of(k, f32a(1), f32a(1), types.Array(int32, 1, "C")), 1, 128, numba_args(dev.array(x), dy, dn), dev
    )
    np.testing.assert_allclose(dy.host(), x.reshape(4, 32).sum(1), rtol=1e-5)
    assert (dn.host() == (x.reshape(4, 32) > 0).sum(1)).all()


def test_atomics_and_divergent_loops():
    def k(x, h):
        i = cuda.grid(1)
        n = int32(0)
        v = x[i]
        while v > 1:  # lanes leave at different times
            v = v // 2 if v % 2 == 0 else 3 * v + 1
            n += int32(1)
        cuda.atomic.add(h, n % 16, int32(1))

    x = np.arange(1, 257, dtype=np.int32)
    dev = Device()
    dh = dev.array(np.zeros(16, np.int32))
    launch(
        ptx_of(k, types.Array(int32, 1, "C"), types.Array(int32, 1, "C")),
        2,
        128,
        numba_args(dev.array(x), dh),
        dev,
    )

    def steps(v):
        n = 0
        while v > 1:
            v = v // 2 if v % 2 == 0 else 3 * v + 1
            n += 1
        return n

    want = np.bincount([steps(int(v)) % 16 for v in x], minlength=16)
    assert (dh.host() == want).all()


def test_grid_barrier():
    def k(x, y):
        g = cuda.cg.this_grid()
        i = cuda.grid(1)
        y[i] = x[i] * float32(2)
        g.sync()
        x[i] = y[(i + 128) % 512]

    x = np.arange(512, dtype=np.float32)
    dev = Device()
    dx, dy = dev.array(x), dev.empty(512, np.float32)
    rep = launch(ptx_of(k, f32a(1), f32a(1)), 4, 128, numba_args(dx, dy), dev)
    assert (dx.host() == np.roll(2 * x, -128)).all()
    assert rep.instructions["grid barrier"] == 1


# ---- tensor cores: one warp, m16n8k16 bf16, through cp.async and ldmatrix
mma = asm(
    3,
    types.UniTuple(float32, 4),
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
    "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
    "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
)
ldm4 = asm(
    1,
    types.UniTuple(uint32, 4),
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];",
    "=r,=r,=r,=r,r",
)
ldm2t = asm(
    1, types.UniTuple(uint32, 2), "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {$0,$1}, [$2];", "=r,=r,r"
)
cp16 = asm(2, types.void, "cp.async.cg.shared.global [$0], [$1], 16;", "r,l")
commit = asm(0, types.void, "cp.async.commit_group;", "")
wait0 = asm(0, types.void, "cp.async.wait_group 0;", "")


@intrinsic
def shared_address(ctx, a):
    def gen(context, bld, sig, args):
        from numba.cuda.np.arrayobj import make_array

        p = make_array(sig.args[0])(context, bld, args[0]).data
        return bld.trunc(
            bld.call(
                ir.InlineAsm(ir.FunctionType(ir.IntType(64), [p.type]), "cvta.to.shared.u64 $0, $1;", "=l,l"),
                [p],
            ),
            ir.IntType(32),
        )

    return uint32(a), gen


@intrinsic
def global_address(ctx, a):
    def gen(context, bld, sig, args):
        from numba.cuda.np.arrayobj import make_array

        return bld.ptrtoint(make_array(sig.args[0])(context, bld, args[0]).data, ir.IntType(64))

    return types.uint64(a), gen


def mma_kernel(wait):
    def k(a, b, c):  # a[16,16] bf16 bits, b[16,8] bf16 bits row-major, c[16,8]
        s = cuda.shared.array(16 * 16 + 16 * 8, types.uint16, 16)
        base, t = shared_address(s), cuda.threadIdx.x
        cp16(base + uint32(t * 16), global_address(a) + types.uint64(t * 16))
        if t < 16:
            cp16(base + uint32(512 + t * 16), global_address(b) + types.uint64(t * 16))
        commit()
        if wait:
            wait0()
        cuda.syncthreads()
        A = ldm4(base + uint32((t % 16) * 32 + (t // 16) * 16))
        B = ldm2t(base + uint32(512 + (t % 16) * 16))
        D = mma(A, B, (float32(0), float32(0), float32(0), float32(0)))
        g, q = t // 4, t % 4
        c[g, 2 * q], c[g, 2 * q + 1], c[g + 8, 2 * q], c[g + 8, 2 * q + 1] = D[0], D[1], D[2], D[3]

    return k


def to_bf16(x):
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(u):
    return (u.astype(np.uint32) << 16).view(np.float32)


def run_mma(wait):
    r = np.random.default_rng(3)
    a, b = to_bf16(r.standard_normal((16, 16))), to_bf16(r.standard_normal((16, 8)))
    dev = Device()
    dc = dev.empty((16, 8), np.float32)
    u16 = types.Array(types.uint16, 2, "C")
    rep = launch(
        ptx_of(mma_kernel(wait), u16, u16, f32a(2)),
        1,
        32,
        numba_args(dev.array(a), dev.array(b), dc),
        dev,
        race=True,
    )
    np.testing.assert_allclose(dc.host(), from_bf16(a) @ from_bf16(b), rtol=1e-5, atol=1e-5)
    return rep


def test_mma_through_cp_async_and_ldmatrix():
    rep = run_mma(True)
    assert rep.instructions["mma"] == 1
    assert rep.instructions["ldmatrix"] == 2


def test_missing_async_wait_is_found():
    with pytest.raises(PTXError, match="nothing has written"):
        run_mma(False)


# ---- wgmma: one warpgroup, m64n16k16, both operands K-major in shared memory with 128-byte swizzle
def products(running):
    return asm(
        3,
        types.UniTuple(float32, 8),
        "wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
        "{$0,$1,$2,$3,$4,$5,$6,$7}, $8, $9, 1, 1, 1, 0, 0; "
        f"wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned {running};",
        ",".join(["=f"] * 8 + ["l", "l"] + [str(n) for n in range(8)]),
    )


wg, wg_without_wait = products(0), products(1)
fence_async = asm(0, types.void, "fence.proxy.async.shared::cta;", "~{memory}")


@pytest.mark.parametrize(("threads", "said"), [(64, "part of a warpgroup"), (16, "part of a warp")])
def test_tensor_cores_reached_by_some_threads(threads, said):
    def part_of_a_warp(y, some):
        if cuda.threadIdx.x < some:
            A = uint32(1), uint32(1), uint32(1), uint32(1)
            y[cuda.threadIdx.x] = mma(
                A, (uint32(1), uint32(1)), (float32(0), float32(0), float32(0), float32(0))
            )[0]

    def part_of_a_warpgroup(y, some):
        if cuda.threadIdx.x < some:
            z = float32(0)
            y[cuda.threadIdx.x] = wg(types.uint64(1 << 62), types.uint64(1 << 62), (z, z, z, z, z, z, z, z))[
                0
            ]

    dev = Device()
    kernel, cc = (part_of_a_warp, CC) if threads < 32 else (part_of_a_warpgroup, (9, 0, "a"))
    args = numba_args(dev.empty(128, np.float32), np.int32(threads))
    with pytest.raises(PTXError, match=said):
        launch(ptx_of(kernel, f32a(1), int32, cc=cc), 1, 128, args, dev)


FENCE, BARRIER, WAIT, KEEP = range(4)  # what a kernel with wgmma needs


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (None, None),
        (FENCE, "no fence.proxy.async since"),
        (BARRIER, "race: shared word .* was written by thread .* read by wgmma|nothing has written"),
        (WAIT, "is used before wgmma.wait_group says"),
        (KEEP, "race: shared word .* was read by wgmma of 0.*, written by thread"),
    ],
)
def test_wgmma_with_swizzled_descriptors(without, said):
    K = 64
    fence, barrier, keep = (without != part for part in (FENCE, BARRIER, KEEP))
    multiply = wg_without_wait if without in (WAIT, KEEP) else wg

    def k(a, b, c):  # a[64,64], b[16,64] bf16 bits
        s = cuda.shared.array(64 * 64 + 16 * 64, types.uint16, 1024)
        base, t = shared_address(s), cuda.threadIdx.x
        for e in range(t, 64 * 64, 128):
            r, q = e // 64, e % 64
            s[r * 64 + (((q // 8) ^ (r % 8)) * 8) + q % 8] = a[r, q]
        for e in range(t, 16 * 64, 128):
            r, q = e // 64, e % 64
            s[64 * 64 + r * 64 + (((q // 8) ^ (r % 8)) * 8) + q % 8] = b[r, q]
        if fence:
            fence_async()
        if barrier:
            cuda.syncthreads()
        z = float32(0)
        acc = (z, z, z, z, z, z, z, z)
        head = types.uint64(1 << 62) | types.uint64((1024 >> 4) << 32) | types.uint64(1 << 16)
        for step in range(K // 16):
            da = head | types.uint64((base + uint32(step * 32)) >> 4)
            db = head | types.uint64((base + uint32(64 * 64 * 2 + step * 32)) >> 4)
            acc = multiply(da, db, acc)
        if not keep:
            cuda.syncthreads()
            s[t] = types.uint16(0)
        w, g, q = t // 32, t % 32 // 4, t % 4
        for j in range(2):
            c[16 * w + g, 8 * j + 2 * q], c[16 * w + g, 8 * j + 2 * q + 1] = acc[4 * j], acc[4 * j + 1]
            c[16 * w + g + 8, 8 * j + 2 * q], c[16 * w + g + 8, 8 * j + 2 * q + 1] = (
                acc[4 * j + 2],
                acc[4 * j + 3],
            )

    r = np.random.default_rng(4)
    a, b = to_bf16(r.standard_normal((64, K))), to_bf16(r.standard_normal((16, K)))
    dev = Device()
    dc = dev.empty((64, 16), np.float32)
    u16 = types.Array(types.uint16, 2, "C")
    code, args = ptx_of(k, u16, u16, f32a(2), cc=(9, 0, "a")), numba_args(dev.array(a), dev.array(b), dc)
    if said is not None:
        with pytest.raises(PTXError, match=said):
            launch(code, 1, 128, args, dev, race=True)
        return
    launch(code, 1, 128, args, dev, race=True)
    np.testing.assert_allclose(dc.host(), from_bf16(a) @ from_bf16(b).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "fails"), [(40, False), (16, True), (36, True)])
def test_registers_are_given_away_by_eights(count, fails):
    give = asm(0, types.void, f"setmaxnreg.dec.sync.aligned.u32 {count};", "")

    def k(y):
        give()
        y[cuda.threadIdx.x] = float32(1)

    dev = Device()
    y = dev.empty(128, np.float32)
    code = ptx_of(k, f32a(1), cc=(9, 0, "a"))
    if fails:
        with pytest.raises(PTXError, match="multiple of 8 from 24 to 256"):
            launch(code, 1, 128, numba_args(y), dev)
        return
    launch(code, 1, 128, numba_args(y), dev)
    assert (y.host() == 1).all()


# ---- what orders accesses, and what does not
first_two_warps = asm(0, types.void, "bar.sync 1, 64;", "~{memory}")
barrier_init = asm(2, types.void, "mbarrier.init.shared::cta.b64 [$0], $1;", "r,r,~{memory}")
barrier_arrive = asm(1, types.void, "mbarrier.arrive.shared::cta.b64 _, [$0];", "r,~{memory}")
barrier_passed = asm(
    2,
    uint32,
    "{ .reg .pred %q; mbarrier.try_wait.parity.shared::cta.b64 %q, [$1], $2; selp.u32 $0, 1, 0, %q; }",
    "=r,r,r,~{memory}",
)


def raced(kernel, arguments, grid, block, types_of, **how):
    """Whether a race is found, and which."""
    dev = Device(1 << 16)
    args = numba_args(*(dev.array(a) if isinstance(a, np.ndarray) else a for a in arguments))
    try:
        launch(ptx_of(kernel, *types_of), grid, block, args, dev, race=True, **how)
    except PTXError as fault:
        if "race: " not in str(fault):
            raise
        return str(fault)
    return None


def meeting(meet):
    """Thread 0 writes what all of three warps, or of two, read after a barrier of two warps."""

    def k(y, readers):
        s = cuda.shared.array(4, float32)
        t = cuda.threadIdx.x
        if t == 0:
            s[0] = float32(1)
        if meet and t < 64:
            first_two_warps()
        if t < readers and t >= 32:
            y[t] = s[0]

    return k


@pytest.mark.parametrize(
    ("meet", "readers", "found"), [(True, 64, False), (True, 96, True), (False, 64, True)]
)
def test_a_barrier_of_some_warps_orders_their_accesses_alone(meet, readers, found):
    said = raced(meeting(meet), (np.zeros(96, np.float32), np.int32(readers)), 1, 96, (f32a(1), int32))
    assert (said is not None) is found
    assert not found or "was written by thread 0 since the last barrier, read by thread" in said


@pytest.mark.parametrize("writer", [0, 32, 64])
def test_a_write_races_with_every_reader_not_the_last_one_alone(writer):
    """Two warps read; the first two meet; only who has met all readers may write."""

    def k(x, y, writer):
        s = cuda.shared.array(4, float32)
        t = cuda.threadIdx.x
        if t == 0:
            s[0] = x[0]
        cuda.syncthreads()
        if t < 64:
            y[t] = s[0]
            first_two_warps()
        if t == writer:
            s[0] = float32(2)

    arguments = np.ones(1, np.float32), np.zeros(96, np.float32), np.int32(writer)
    said = raced(k, arguments, 1, 96, (f32a(1), f32a(1), int32))
    assert (said is not None) is (writer == 64)
    assert said is None or "was read by thread" in said


INIT, ARRIVAL, WAITING, MEETING = range(4)


@pytest.mark.parametrize("without", [None, INIT, ARRIVAL, WAITING, MEETING])
def test_what_an_mbarrier_orders(without):
    """The first warp writes and arrives, one lane for all; the second waits and reads."""
    told, late, waits, meets = (without != part for part in (INIT, ARRIVAL, WAITING, MEETING))

    def k(y):
        s, counters = cuda.shared.array(32, float32), cuda.shared.array(1, types.uint64)
        t = cuda.threadIdx.x
        mbarrier = shared_address(counters)
        if t == 0:
            barrier_init(mbarrier, uint32(1))
        if told:
            cuda.syncthreads()
        if t < 32:
            if not late and t == 0:
                barrier_arrive(mbarrier)
            s[t] = float32(t)
            if meets:
                cuda.syncwarp()
            if late and t == 0:
                barrier_arrive(mbarrier)
        else:
            if waits:
                while barrier_passed(mbarrier, uint32(0)) == 0:
                    pass
            y[t] = s[t - 32]

    said = raced(k, (np.zeros(64, np.float32),), 1, 64, (f32a(1),))
    if without is None:
        assert said is None
    else:
        assert ("has initialised the mbarrier" if without == INIT else "was written by thread") in said


def test_blocks_that_write_one_place():
    def k(y, apart):
        y[cuda.blockIdx.x * apart + cuda.threadIdx.x] = 1

    for apart, found in ((32, False), (31, True)):
        said = raced(k, (np.zeros(96, np.float32), np.int32(apart)), 3, 32, (f32a(1), int32))
        assert (said is not None) is found
        assert (
            not found
            or "written by thread 31 of block 0 since the last grid barrier, written by thread 0" in said
        )


def test_blocks_that_write_neighbouring_bytes():
    def k(y):
        y[cuda.grid(1)] = 1

    assert raced(k, (np.zeros(90, np.uint8),), 3, 30, (types.Array(types.uint8, 1, "C"),)) is None


@pytest.mark.parametrize("barrier", [True, False])
def test_a_grid_barrier_orders_what_blocks_do(barrier):
    def k(x, y):
        i = cuda.grid(1)
        y[i] = x[i] * float32(2)
        if barrier:
            cuda.cg.this_grid().sync()
        x[i] = y[(i + 128) % 512]

    def written_early(x, y):
        value = x[0]  # read by all blocks
        y[cuda.grid(1)] = value
        if barrier:
            cuda.cg.this_grid().sync()
        if cuda.grid(1) == 0:
            x[0] = value + float32(1)

    for kernel in (k, written_early):
        arrays = np.ones(512, np.float32), np.zeros(512, np.float32)
        said = raced(kernel, arrays, 4, 128, (f32a(1), f32a(1)), cooperative=True)
        assert (said is None) is barrier


@pytest.mark.parametrize("barrier", [True, False])
def test_a_block_reads_from_global_memory_what_it_wrote_there(barrier):
    def k(y):
        t = cuda.threadIdx.x
        y[t] = t
        if barrier:
            cuda.syncthreads()
        y[t + 64] = y[63 - t]

    assert (raced(k, (np.zeros(128, np.float32),), 1, 64, (f32a(1),)) is None) is barrier


add_released = asm(2, uint32, "atom.release.gpu.global.add.u32 $0, [$1], $2;", "=r,l,r,~{memory}")
add_relaxed = asm(2, uint32, "atom.relaxed.gpu.global.add.u32 $0, [$1], $2;", "=r,l,r,~{memory}")
load_acquired = asm(1, uint32, "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l,~{memory}")
load_relaxed = asm(1, uint32, "ld.relaxed.gpu.global.u32 $0, [$1];", "=r,l,~{memory}")


def counting(before=True, after=True, add=add_released, load=load_acquired, waits_for=4, late=False):
    """Each block tells of what it wrote by counting, and reads what the next has written when all have."""

    def k(x, y, counter):
        i, address = cuda.grid(1), global_address(counter)
        y[i] = x[i] * float32(2)
        if before:
            cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            add(address, uint32(1))
        if late:
            y[i] = x[i] * float32(3)
        if cuda.threadIdx.x == 0:
            while load(address) < waits_for:
                pass
        if after:
            cuda.syncthreads()
        x[i] = y[(i + 64) % 256]

    return k


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({}, False),
        ({"before": False}, True),
        ({"after": False}, True),
        ({"add": add_relaxed}, True),
        ({"load": load_relaxed}, True),
        ({"waits_for": 3}, True),
        ({"late": True}, True),
    ],
    ids=str,
)
def test_words_that_blocks_tell_each_other_by(wrong, found):
    arrays = np.ones(256, np.float32), np.zeros(256, np.float32), np.zeros(1, np.uint32)
    kinds = f32a(1), f32a(1), types.Array(uint32, 1, "C")
    said = raced(counting(**wrong), arrays, 4, 64, kinds, cooperative=True)
    assert (said is not None) is found


def test_blocks_that_wait_for_what_never_comes():
    dev = Device(1 << 16)
    args = numba_args(
        *map(dev.array, (np.ones(256, np.float32), np.zeros(256, np.float32), np.zeros(1, np.uint32)))
    )
    kinds = f32a(1), f32a(1), types.Array(uint32, 1, "C")
    with pytest.raises(PTXError, match="deadlock or livelock between blocks"):
        launch(ptx_of(counting(waits_for=5), *kinds), 4, 64, args, dev, cooperative=True)


mma_bytes = {
    kind: asm(
        3,
        types.UniTuple(int32, 4),
        f"mma.sync.aligned.m16n8k32.row.col.s32.{kind}.s8.s32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=r,=r,=r,=r,r,r,r,r,r,r,0,1,2,3",
    )
    for kind in ("u8", "s8")
}


@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_tensor_cores_multiply_bytes(kind):
    multiply = mma_bytes[kind]

    def k(a, b, c):
        lane = cuda.threadIdx.x
        row, q = lane // 4, lane % 4
        at = row * 8 + 2 * q
        words = a[8 * row + q], a[8 * row + 64 + q], a[8 * row + q + 4], a[8 * row + 64 + q + 4]
        sums = c[at], c[at + 1], c[at + 64], c[at + 65]
        c[at], c[at + 1], c[at + 64], c[at + 65] = multiply(words, (b[8 * row + q], b[8 * row + q + 4]), sums)

    r = np.random.default_rng(0)
    a = r.integers(0, 256, (16, 32)).astype(np.uint8).view(np.uint8 if kind == "u8" else np.int8)
    b, c = r.integers(-128, 128, (8, 32)).astype(np.int8), r.integers(-9, 9, (16, 8)).astype(np.int32)
    dev = Device()
    there = [dev.array(x.reshape(-1)) for x in (a.view(np.uint32), b.view(np.uint32), c)]
    words = types.Array(uint32, 1, "C")
    launch(ptx_of(k, words, words, types.Array(int32, 1, "C")), 1, 32, numba_args(*there), dev)
    assert (there[2].host().reshape(16, 8) == a.astype(int) @ b.T.astype(int) + c).all()
