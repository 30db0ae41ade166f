"""Run PTX on the CPU, and check it: an interpreter for CUDA kernels where there is no GPU.

It executes the PTX text that a compiler made (numba.cuda.compile_ptx, nvcc -ptx …), thread block by thread
block, with all threads of a block vectorised by numpy. Unlike numba's simulator it runs what the GPU would
run: typed registers, warp shuffles and votes, cp.async, ldmatrix/stmatrix, mma.sync, wgmma, mbarrier,
tensor copies, atomics, grid barriers. And it checks, as compute-sanitizer would:

    bounds   every access inside an allocation, aligned for its width          (always on)
    init     a read of shared memory, or of Device.empty memory, that nothing wrote        (always on)
    race     two threads, products or copies on one place in shared or global memory, one of them
             writing, and nothing that orders them: barriers of blocks, of some threads, of warps and
             of the grid, mbarriers, waits; threads that meet at different barriers  (race=True)
    warp     a warp-collective instruction reached by part of its warp              (always on)
    launch   in a kernel with griddepcontrol.wait, a thread that touches global memory before it, or
             a block that ends without it                                           (always on)

    dev = Device()
    a, c = dev.array(host_a), dev.empty((64, 64), np.float32)
    report = launch(ptx, grid=(1, 1), block=(128,), args=[a, c, np.int32(64)], dev=dev)
    c.host()                       # ndarray
    report.instructions["mma"]     # executed per warp, by opcode; .sectors, .bank_conflicts with metrics=True

`args` follow the kernel's parameters: DeviceArray gives its address; numpy scalars their bytes;
numba_args(array, …) expands arrays to the seven or nine words that numba.cuda passes for them. Timing means
nothing here; counts do. What it does not know raises UnsupportedPTX with the line; nothing is skipped in
silence. Asynchronous copies write late (at the wait that makes them visible) and poison their destination
at issue, so a missing wait or an early overwrite shows as a wrong result. wgmma and tensor copies complete
at once: that their operands are overwritten too early shows as a race, that sums are used before the wait
as a fault of its own.

Layouts: PTX ISA 9.x, sections on mma, ldmatrix, wgmma and tensor maps. Checked with public kernels compiled
by nvcc: three SIMT products, and two for Hopper (tensor copies, mbarriers, K-major wgmma with 128-byte
swizzle, one warp-specialised); MN-major operands follow CUTLASS' canonical layouts, but no known-good
kernel has been run through them; im2col and clusters of several blocks: no.
"""

import numpy as np

from . import copies, tensor  # noqa: F401 - they say what their instructions do
from .block import Block, Report
from .device import DeviceArray, PTXError, UnsupportedPTX
from .instructions import HANDLERS
from .program import Program, parse
from .races import Everywhere

# What threads that wait for a word to change execute, and how often all blocks may do nothing else.
SPINNING = frozenset(
    ["ld", "setp", "bra", "xor", "and", "or", "not", "mov", "add", "sub", "selp", "nanosleep"]
)
ROUNDS_IN_VAIN = 300


def _prepare(ptx, entry):
    prog = ptx if isinstance(ptx, Program) else parse(ptx, entry)
    if not getattr(prog, "ready", False):
        prog.stops = set(prog.labels.values())
        prog.waits = any(ins.op == "griddepcontrol.wait" for ins in prog.instrs)
        for ins in prog.instrs:
            ins.run = HANDLERS.get(ins.parts[0])
            if ins.run is None:
                raise UnsupportedPTX(ins.text)
            ins.joint = ins.parts[:2] == ("wgmma", "mma_async")
            if ins.parts[0] == "bra":
                ins.target = prog.labels[ins.args[0]]
        prog.ready = True
    return prog


@np.errstate(all="ignore")
def launch(
    ptx, grid, block, args, dev, entry=None, shared=0, race=False, metrics=False, cooperative=None, burst=1
):
    """Run a kernel: a Report. Raises PTXError on a fault.

    ptx: text or a Program from parse(). grid, block: ints or tuples, x first. shared: dynamic bytes.

    burst: how many pieces of code warps at one place run before the others have their turn. With many, a warp
    that does not wait for the others where it should runs far ahead of them.

    cooperative: keep all blocks alive and switch between them (needed for grid barriers and for spinning on
    another block); by default only if the kernel calls cudaCGSynchronize.
    """
    prog = _prepare(ptx, entry)
    grid, block = (tuple(np.atleast_1d(v).tolist()) for v in (grid, block))
    if len(args) != len(prog.params):
        count = f"{len(prog.params)} parameters, {len(args)} given"
        raise ValueError(f"{prog.name} takes {count} (numba arrays: use numba_args)")
    params = {}
    for (name, n), a in zip(prog.params, args, strict=False):
        raw = np.uint64(a.ptr).tobytes() if isinstance(a, DeviceArray) else np.asarray(a).tobytes()
        if len(raw) != n:
            short = f"{n} bytes, {len(raw)} given"
            raise ValueError(f"parameter {name[-12:]} has {short}: pass a numpy scalar of the right type")
        params[name] = raw
    if cooperative is None:
        cooperative = any("cudaCGSynchronize" in x.text for x in prog.instrs)
    rep = Report()
    gx, gy, gz = ([*list(grid), 1, 1])[:3]
    ids = [(x, y, z) for z in range(gz) for y in range(gy) for x in range(gx)]
    everywhere = Everywhere(len(dev.heap), len(ids)) if race else None

    def make(c):
        return Block(prog, dev, c, grid, block, params, shared, rep, everywhere, metrics, burst)

    if not cooperative:
        for c in ids:
            if make(c).run() == "grid":
                raise PTXError("grid barrier in a launch that is not cooperative")
        return rep
    blocks = [make(c) for c in ids]
    state = ["more"] * len(blocks)
    idle, vain, work = 0, 0, -1
    while any(s != "done" for s in state):
        before = rep.instructions.total()
        for k, blk in enumerate(blocks):
            if state[k] == "more":
                state[k] = blk.run(budget=64)
        if all(s in ("grid", "done") for s in state) and "grid" in state:
            if "done" in state:
                raise PTXError("deadlock: some blocks left before the grid barrier")
            for blk in blocks:
                if blk.races:
                    blk.races.leave_for_grid(np.flatnonzero(blk.wait == -2))
            for k, blk in enumerate(blocks):
                if blk.races:
                    blk.races.meet_grid(np.flatnonzero(blk.wait == -2))
                blk.wait[blk.wait == -2] = -1
                state[k] = "more"
            rep.instructions["grid barrier"] += 1
        idle = idle + 1 if rep.instructions.total() == before else 0
        before, work = work, sum(n for name, n in rep.instructions.items() if name not in SPINNING)
        vain = vain + 1 if work == before else 0
        if idle > 100 or vain > ROUNDS_IN_VAIN or rep.instructions.total() > 10**9:
            raise PTXError("deadlock or livelock between blocks")
    return rep
