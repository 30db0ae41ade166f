"""Run PTX on the CPU, and check it: an interpreter for CUDA kernels where there is no GPU.

It executes the PTX text that a compiler made (numba.cuda.compile_ptx, nvcc -ptx …), thread block by thread block, with
all threads of a block vectorised by numpy. Unlike numba's simulator it runs what the GPU would run: typed registers,
warp shuffles and votes, cp.async, ldmatrix/stmatrix, mma.sync, wgmma, mbarrier, tensor copies, atomics, grid barriers.
And it checks, as compute-sanitizer would:

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

`args` follow the kernel's parameters: DeviceArray gives its address; numpy scalars their bytes; numba_args(array, …)
expands arrays to the seven or nine words that numba.cuda passes for them. Timing means nothing here; counts do.
What it does not know raises UnsupportedPTX with the line; nothing is skipped in silence. Asynchronous copies write late
(at the wait that makes them visible) and poison their destination at issue, so a missing wait or an early
overwrite shows as a wrong result. wgmma and tensor copies complete at once: that their operands are overwritten too
early shows as a race, that sums are used before the wait as a fault of its own.
Layouts: PTX ISA 9.x, sections on mma, ldmatrix, wgmma and tensor maps. Checked with public kernels compiled by nvcc: three
SIMT products, and two for Hopper (tensor copies, mbarriers, K-major wgmma with 128-byte swizzle, one warp-specialised); MN-major operands follow
CUTLASS' canonical layouts, but no known-good kernel has been run through them; im2col and clusters of several blocks: no.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from .races import Everywhere, Races

GLOBAL, SHARED, LOCAL = 0x7_0000_0000, 0x1_0000_0000, 0x2_0000_0000  # generic address windows
U = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
S = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
F = {16: np.float16, 32: np.float32, 64: np.float64}
BOOL, UNSIGNED = np.dtype(bool), {bits: np.dtype(kind) for bits, kind in U.items()}
POISON = 0xFF
WAITS_IN_VAIN = 10_000
# What threads that wait for a word to change execute, and how often all blocks may do nothing else.
SPINNING = frozenset("ld setp bra xor and or not mov add sub selp nanosleep".split())
ROUNDS_IN_VAIN = 300
END = np.iinfo(np.int64).max


class PTXError(Exception):
    """A fault of the kernel: bounds, alignment, race, uninitialised read, divergent collective, deadlock."""


class UnsupportedPTX(NotImplementedError):
    """An instruction or form that this interpreter does not know."""


# ---------------------------------------------------------------- device memory
class Device:
    """Global memory: one heap with guard bands between allocations."""

    def __init__(self, size=1 << 28):
        self.heap = np.full(size, POISON, np.uint8)
        self.valid = np.zeros(size, bool)
        self.written = np.zeros(size, bool)
        self.top = 1024
        self.maps = {}

    def _take(self, nbytes):
        start = self.top
        self.top = (start + nbytes + 1023) // 256 * 256 + 256  # at least one guard band
        if self.top > len(self.heap):
            raise MemoryError("Device heap is full; make it larger")
        self.valid[start : start + nbytes] = True
        return start

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        shape = (shape,) if np.isscalar(shape) else tuple(shape)
        return DeviceArray(self, self._take(int(np.prod(shape)) * dtype.itemsize), shape, dtype)

    def array(self, host):
        host = np.ascontiguousarray(host)
        d = self.empty(host.shape, host.dtype)
        d.fill_from(host)
        return d

    def tensor_map(self, array, box, swizzle=0, shape=None, strides=None, tf32=False):
        """A stand-in for cuTensorMapEncodeTiled: `box` innermost dimension last, swizzle 0/32/64/128 bytes.

        shape, strides (bytes): of the tensor in `array`, if not its own; what lies between its rows is no part of it.
        tf32: float32 is rounded as it is copied to shared memory, as with CU_TENSOR_MAP_DATA_TYPE_TFLOAT32.
        """
        d = self.array(np.zeros(16, np.uint64))
        shape = array.shape if shape is None else tuple(shape)
        if strides is None:
            strides = [int(np.prod(shape[k + 1 :])) * array.dtype.itemsize for k in range(len(shape))]
        if array.start % 16 or any(s % 16 for s in strides[:-1]) or strides[-1] != array.dtype.itemsize:
            raise PTXError("tensor map: the tensor and its rows must begin at multiples of 16 bytes")
        if max(box) > 256 or (swizzle and box[-1] * array.dtype.itemsize > swizzle):
            raise PTXError(f"tensor map: box {tuple(box)} is too large")
        self.maps[d.ptr] = (array, tuple(box), swizzle, shape, tuple(strides), tf32)
        return d


@dataclass
class DeviceArray:
    dev: Device
    start: int
    shape: tuple
    dtype: np.dtype

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def ptr(self):
        return GLOBAL + self.start

    def _bytes(self):
        return self.dev.heap[self.start : self.start + self.nbytes]

    def host(self):
        return self._bytes().view(self.dtype).reshape(self.shape).copy()

    def fill_from(self, host):
        self._bytes()[:] = np.ascontiguousarray(host, self.dtype).reshape(-1).view(np.uint8)
        self.dev.written[self.start : self.start + self.nbytes] = True

    def unwritten(self):
        """Elements that no kernel and no copy has written: [index, …]."""
        w = self.dev.written[self.start : self.start + self.nbytes].reshape(-1, self.dtype.itemsize).all(1)
        return np.flatnonzero(~w)


def numba_args(*args):
    """Expand arguments as numba.cuda does: an array becomes meminfo, parent, nitems, itemsize, data, shape…, strides…"""
    out = []
    for a in args:
        if isinstance(a, DeviceArray):
            strides = [int(np.prod(a.shape[i + 1 :])) * a.dtype.itemsize for i in range(len(a.shape))]
            out += [
                np.uint64(0),
                np.uint64(0),
                np.int64(np.prod(a.shape)),
                np.int64(a.dtype.itemsize),
                np.uint64(a.ptr),
            ]
            out += [np.int64(n) for n in a.shape] + [np.int64(s) for s in strides]
        else:
            out.append(a)
    return out


# ---------------------------------------------------------------- parsing
@dataclass
class Instr:
    op: str  # "ld.global.v4.f32"
    parts: tuple  # ("ld", "global", "v4", "f32")
    args: list  # operand strings, vectors as lists
    guard: tuple | None  # (register, negated)
    text: str
    run: object = None
    target: int = -1
    joint: bool = False  # whether a whole warpgroup has to be there


@dataclass
class Program:
    name: str
    params: list  # (name, bytes)
    instrs: list
    labels: dict
    regs: dict  # name or (prefix) -> bits (1 for predicates)
    shared: dict  # symbol -> offset
    shared_size: int
    dynamic: list  # symbols of memory asked for at the launch, all at one place
    local_size: int
    constants: dict = field(default_factory=dict)
    dynamic_align: int = 16


_TYPE_BITS = {
    "pred": 1,
    "b8": 8,
    "u8": 8,
    "s8": 8,
    "b16": 16,
    "u16": 16,
    "s16": 16,
    "f16": 16,
    "bf16": 16,
    "b32": 32,
    "u32": 32,
    "s32": 32,
    "f32": 32,
    "f16x2": 32,
    "bf16x2": 32,
    "tf32": 32,
    "b64": 64,
    "u64": 64,
    "s64": 64,
    "f64": 64,
}


# Types that a register of as many bits is only seen as: as what, None for what it is stored as.
_SEEN_AS = {
    ty: (F if ty[0] == "f" else S)[bits] if ty[0] in "fs" else None
    for ty, bits in _TYPE_BITS.items()
    if ty not in ("pred", "bf16", "f16x2", "bf16x2")
}
_STORED_AS = {ty: UNSIGNED[_TYPE_BITS[ty]] for ty in _SEEN_AS}


def _split_operands(s):
    out, depth, cur = [], 0, ""
    for ch in s:
        if ch in "{[(":
            depth += 1
        if ch in "}])":
            depth -= 1
        if ch == "," and depth == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += ch
    if cur.strip():
        out.append(cur.strip())
    return out


def _closing(text, start):
    """Index just past the brace that closes the one at `start`."""
    depth = 0
    for q in re.finditer(r"[{}]", text[start:]):
        depth += 1 if q.group(0) == "{" else -1
        if depth == 0:
            return start + q.end()
    raise ValueError("unbalanced braces")


def _statements(body):
    i, n = 0, len(body)
    while i < n:
        while i < n and (body[i].isspace() or body[i] in "{}"):
            i += 1
        if i >= n:
            return
        j = i
        while j < n and body[j] not in ";":
            if body[j] == ":" and re.fullmatch(r"[$\w%.]+", body[i:j].strip()) and body[j + 1 : j + 2] != ":":
                break
            j += 1
        yield body[i:j].strip() + (":" if j < n and body[j] == ":" else "")
        i = j + 1


def parse(ptx, entry=None):
    """PTX text -> Program of the named (or only) kernel."""
    text = re.sub(r"/\*.*?\*/", " ", ptx, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\s*\.(version|target|address_size|file|section|loc)\b[^\n]*$", "", text, flags=re.M)
    found = [m for m in re.finditer(r"\.entry\s+([\w$]+)\s*\(", text)]
    found = [m for m in found if entry is None or m.group(1) == entry or entry in m.group(1)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels match {entry!r}: " + ", ".join(m.group(1) for m in found[:5]))
    m = found[0]
    close = text.index(")", m.end())
    params = []
    for p in filter(None, (x.strip() for x in text[m.end() : close].split(","))):
        q = re.match(
            r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?",
            p,
        )
        if not q:
            raise UnsupportedPTX(f"parameter {p}")
        params.append((q.group(2), _TYPE_BITS[q.group(1)] // 8 * int(q.group(3) or 1)))
    start = text.index("{", close)
    prog = Program(m.group(1), params, [], {}, {}, {}, 0, [], 0)
    prog.local_symbols = {}

    def shared_decl(s):
        q = re.match(
            r"(?:\.visible\s+|\.weak\s+|\.common\s+|\.extern\s+)*\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?",
            s,
        )
        if not q:
            raise UnsupportedPTX(s)
        if q.group(4) == "":
            prog.dynamic.append(q.group(3))
            prog.dynamic_align = max(prog.dynamic_align, int(q.group(1) or 16))
            return
        align = int(q.group(1) or 4)
        prog.shared_size = -(-prog.shared_size // align) * align
        prog.shared[q.group(3)] = prog.shared_size
        prog.shared_size += _TYPE_BITS[q.group(2)] // 8 * int(q.group(4) or 1)

    for s in re.findall(r"^[^\n{};]*\.shared\s+\.align[^;]*;", text[: m.start()], flags=re.M):
        shared_decl(s.strip())
    functions = {
        q.group(2): (
            re.findall(r"([\w$]+)\s*(?:\[\d*\])?\s*(?=,|$)", q.group(1) or ""),
            q.group(3),
            text[q.end() - 1 : _closing(text, q.end() - 1)],
        )
        for q in re.finditer(
            r"\.func\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)\s*(?:\.noinline\s*|\.noreturn\s*)*\{", text
        )
    }
    copies = [0]

    def emit(body, rename, leave):
        for s in _statements(body):
            if s.endswith(":"):
                prog.labels[rename(s[:-1])] = len(prog.instrs)
            elif s.startswith(".reg"):
                q = re.match(r"\.reg\s+\.(\w+)\s+(.*)", s)
                for r in q.group(2).split(","):
                    prog.regs[rename(r.strip().split("<")[0])] = _TYPE_BITS[q.group(1)]
            elif s.startswith((".shared", ".extern .shared", ".visible .shared")):
                shared_decl(s)
            elif s.startswith(".local"):
                q = re.match(r"\.local\s+(?:\.align\s+(\d+)\s+)?\.b8\s+([\w$]+)\[(\d+)\]", s)
                prog.local_size = -(-prog.local_size // 16) * 16
                prog.local_symbols[rename(q.group(2))] = prog.local_size
                prog.local_size += int(q.group(3))
            elif s.startswith(
                (".pragma", ".maxn", ".reqn", ".minn", ".loc", ".param", ".branchtargets", ".callprototype")
            ):
                continue
            elif s:
                guard, s2 = None, s
                g = re.match(r"@(!?)([%\w$]+)\s+(.*)", s, flags=re.S)
                if g:
                    guard, s2 = (rename(g.group(2)), g.group(1) == "!"), g.group(3)
                head = s2.split(None, 1)
                op, ops = head[0], _split_operands(head[1]) if len(head) > 1 else []
                if op.startswith("call"):
                    ret = ops[0].strip("()").strip() if ops[0].startswith("(") else None
                    name = ops[1 if ret else 0]
                    if name in functions and not guard:
                        inline(
                            functions[name],
                            [x.strip() for x in ops[-1].strip("() \n").split(",") if x.strip()]
                            if ops[-1].startswith("(")
                            else [],
                            ret,
                            rename,
                        )
                        continue
                ops = [re.sub(r"[%$\w]+", lambda t: rename(t.group(0)), o) for o in ops]
                if leave and op in ("ret", "ret.uni"):
                    op, ops = "bra", [leave]
                prog.instrs.append(Instr(op, tuple(op.replace("::", "@").split(".")), ops, guard, s))

    def inline(function, args, ret, outer):
        """The body of a device function in place of its call, its registers, labels and parameters renamed."""
        results, params_text, body = function
        copies[0] += 1
        tag = f"c{copies[0]}_"
        names = [
            re.search(r"([\w$]+)\s*(?:\[\d*\])?$", p.strip()).group(1)
            for p in params_text.split(",")
            if p.strip()
        ]
        table = dict(zip(names, (outer(x) for x in args)))
        if ret and results:
            table[results[0]] = outer(ret)
        own = (
            set(re.findall(r"([$\w]+)\s*:", body))
            | set(re.findall(r"\.local[^;]*?([\w$]+)\[\d+\];", body))
            | set(re.findall(r"\b(param\d+|retval\d+)\b", body))
        )

        def rename(t):
            if t in table:
                return table[t]
            if t.startswith("%") and not re.match(
                r"%(tid|ntid|ctaid|nctaid|laneid|warpid|smid|clock|lanemask|globaltimer|dynamic|total|cluster|gridid|nwarpid|is_)",
                t,
            ):
                return "%" + tag + t[1:]
            return "$" + tag + t if t in own else t

        leave = f"$leave{copies[0]}"
        if copies[0] > 2000:
            raise UnsupportedPTX("recursive device functions")
        emit(body, rename, leave)
        prog.labels[leave] = len(prog.instrs)

    emit(text[start + 1 : _closing(text, start) - 1], lambda t: t, None)
    return prog


# ---------------------------------------------------------------- helpers on bits
def _bf16_to_f32(u16):
    return (u16.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _f32_to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), r).astype(np.uint16)


def _halves(u32, kind):
    lo, hi = (u32 & np.uint32(0xFFFF)).astype(np.uint16), (u32 >> np.uint32(16)).astype(np.uint16)
    f = _bf16_to_f32 if kind == "bf16" else (lambda v: v.view(np.float16).astype(np.float32))
    return f(lo), f(hi)


def _pack(lo, hi, kind):
    f = _f32_to_bf16 if kind == "bf16" else (lambda v: v.astype(np.float16).view(np.uint16))
    return f(lo).astype(np.uint32) | (f(hi).astype(np.uint32) << np.uint32(16))


def _to_tf32(bits):
    """To the nearest of 10 bits of mantissa, ties to even; infinities and NaN stay. (Measured by Triton's tests of its
    descriptors, on a GPU of capability 12.0: triton-lang/triton, pull request 11751.)"""
    special = bits & 0x7F800000 == 0x7F800000
    return np.where(special, bits, bits + np.uint32(0xFFF) + (bits >> 13 & 1) & np.uint32(0xFFFFE000)).astype(np.uint32)


def _swizzle(addr, mode):
    if mode == 0:
        return addr
    bits = {128: 7, 64: 3, 32: 1}[mode]
    return addr ^ (((addr >> 7) & bits) << 4)


@dataclass
class Report:
    instructions: Counter = field(default_factory=Counter)  # warp-level executions by opcode
    sectors: Counter = field(default_factory=Counter)  # 32-byte sectors moved by ld.global / st.global
    requests: Counter = field(default_factory=Counter)  # warp-level memory requests
    bank_conflicts: Counter = field(default_factory=Counter)  # extra passes over the shared-memory banks
    shared_bytes: int = 0
    barriers: int = 0


_ALL_WRITTEN = {bits: U[bits](0x0101010101010101 & ((1 << bits) - 1)) for bits in U}


# What a register has before anything is written to it.
_UNSET = {UNSIGNED[bits]: U[bits](0xAAAAAAAAAAAAAAAA & ((1 << bits) - 1)) for bits in U} | {BOOL: np.False_}


def _words(memory, bits):
    """Bytes, or whether there are some, as numbers of so many bits; what is left of them at the end is not
    seen."""
    whole = len(memory) // 8 * 8
    return memory[:whole].view(U[bits])


# ---------------------------------------------------------------- one thread block
class Block:
    def __init__(self, prog, dev, ctaid, grid, block, params, dynamic, rep, everywhere, metrics, burst):
        self.burst = burst
        self.p, self.dev, self.rep, self.metrics = prog, dev, rep, metrics
        self.T = int(np.prod(block))
        self.W = -(-self.T // 32)
        self.params = params
        t = np.arange(self.T)
        self.tid_all = t
        self.lane, self.warp = t % 32, t // 32
        self.regs, self.constants = {}, {}
        self.pc = np.zeros(self.T, np.int64)
        self.done = np.zeros(self.T, bool)
        self.wait = np.zeros(self.T, np.int64) - 1  # barrier id waited on, -1 none, -2 grid barrier
        self.wait_count = {}
        base = prog.shared_size
        self.shared_symbols = dict(prog.shared)
        if prog.dynamic:
            base = -(-base // prog.dynamic_align) * prog.dynamic_align
            self.shared_symbols |= dict.fromkeys(prog.dynamic, base)
            base += dynamic
        self.smem = np.full(base + 16, POISON, np.uint8)
        self.smem_size = base
        self.smem_init = np.zeros(base + 16, bool)
        rep.shared_bytes = max(rep.shared_bytes, base)
        self.lmem = np.full((self.T, prog.local_size + 16), POISON, np.uint8)
        self.mbar = {}
        self.in_vain = 0  # waits for an mbarrier since anything was done for one
        self.calls = {}
        self.pending = []  # cp.async records
        self.commits = np.zeros(self.T, np.int64)
        self.products = np.zeros(self.T, np.int64)  # groups of wgmma committed
        # Whether each thread has waited for the launches before, if the kernel does so at all.
        self.waited = np.zeros(self.T, bool) if prog.waits else None
        self.unsummed = {}  # register of sums that nothing has waited for: of which group, from 1 on, [T]
        x, y, z = (list(block) + [1, 1])[:3]
        gx, gy, gz = (list(grid) + [1, 1])[:3]
        cx, cy, cz = ctaid
        self.races = None
        if everywhere is not None:
            self.races = Races(self.T, base + 16, cx + gx * (cy + gy * cz), everywhere)
        c32 = lambda v: np.full(self.T, v, np.uint32)
        self.special = {
            "%tid.x": (t % x).astype(np.uint32),
            "%tid.y": (t // x % y).astype(np.uint32),
            "%tid.z": (t // (x * y)).astype(np.uint32),
            "%ntid.x": c32(x),
            "%ntid.y": c32(y),
            "%ntid.z": c32(z),
            "%ctaid.x": c32(cx),
            "%ctaid.y": c32(cy),
            "%ctaid.z": c32(cz),
            "%nctaid.x": c32(gx),
            "%nctaid.y": c32(gy),
            "%nctaid.z": c32(gz),
            "%laneid": self.lane.astype(np.uint32),
            "%warpid": self.warp.astype(np.uint32),
            "%smid": c32(cx),
            "%nwarpid": c32(self.W),
            "%gridid": c32(0),
            "%clock": c32(0),
            "%clock_hi": c32(0),
            "%clock64": np.zeros(self.T, np.uint64),
            "%globaltimer": np.zeros(self.T, np.uint64),
            "%dynamic_smem_size": c32(dynamic),
            "%total_smem_size": c32(base),
            "%cluster_ctarank": c32(0),
            "%cluster_nctarank": c32(1),
            "%cluster_ctaid.x": c32(0),
            "%cluster_nctaid.x": c32(1),
            "%is_explicit_cluster": np.zeros(self.T, np.uint32),
            "%lanemask_eq": (np.uint32(1) << self.lane.astype(np.uint32)),
            "%lanemask_lt": ((np.uint64(1) << self.lane.astype(np.uint64)) - np.uint64(1)).astype(np.uint32),
            "%lanemask_le": ((np.uint64(2) << self.lane.astype(np.uint64)) - np.uint64(1)).astype(np.uint32),
        }
        le = self.special["%lanemask_le"]
        self.special["%lanemask_gt"] = ~le
        self.special["%lanemask_ge"] = ~self.special["%lanemask_lt"]

    # -- operands
    def bits_of(self, name):
        r = self.p.regs
        if name not in r:
            r[name] = r[re.sub(r"\d+$", "", name)]
        return r[name]

    def raw(self, o, bits):
        """Operand as raw bits: uint array [T] (bool for predicates), not to be written to."""
        v = self.regs.get(o)
        if v is not None:
            if v.dtype is UNSIGNED[bits] or v.dtype is BOOL:
                return v
            return v.astype(U[bits])  # a narrower or wider register used as `bits`
        if (o, bits) in self.constants:
            return self.constants[o, bits]
        if o.startswith("%") and o not in self.special and re.fullmatch(r"%[\w.$]+", o):
            b = self.bits_of(o)  # a register that was never written
            return np.full(self.T, _UNSET[UNSIGNED[b] if b > 1 else BOOL])
        found = self.constants[o, bits] = self.constant(o, bits)
        found.flags.writeable = False
        return found

    def constant(self, o, bits):
        if o in self.special:
            return self.special[o].astype(U[bits])
        if o in self.shared_symbols:
            return np.full(self.T, self.shared_symbols[o], U[bits])
        if o in self.p.local_symbols:
            return np.full(self.T, self.p.local_symbols[o], U[bits])
        m = re.fullmatch(r"([\w$]+)\s*\+\s*(\d+)", o)
        if m and m.group(1) in self.shared_symbols:
            return np.full(self.T, self.shared_symbols[m.group(1)] + int(m.group(2)), U[bits])
        return np.full(self.T, _literal(o, bits), U[bits])

    def val(self, o, ty):
        v = self.regs.get(o)
        if v is not None and v.dtype is _STORED_AS.get(ty):
            seen = _SEEN_AS[ty]
            return v if seen is None else v.view(seen)
        b = _TYPE_BITS[ty]
        if b == 1:
            if o in ("true", "false") or re.fullmatch(r"-?\d+", o):
                return np.full(self.T, o == "true" or o not in ("false", "0"))
            if o.startswith("!"):
                return ~self.val(o[1:], ty)
            v = self.regs.get(o)
            return v if v is not None else np.zeros(self.T, bool)
        r = self.raw(o, b)
        if r.dtype == bool:
            r = r.astype(U[b])
        if ty == "bf16":
            return _bf16_to_f32(r)
        if ty[0] == "f":
            return r.view(F[b])
        return r.view(S[b]) if ty[0] == "s" else r

    def put(self, o, value, mask):
        """A register becomes ``value``, an array that nobody changes from here on."""
        if o == "_":
            return
        kind = value.dtype
        if kind is not BOOL:
            want = self.p.regs.get(o) or self.bits_of(o)
            if kind is not UNSIGNED.get(want):
                bits = kind.itemsize * 8
                if bits == want or kind.kind == "f":
                    value = value.view(U[bits])
                elif kind.kind == "i":
                    value = value.astype(S[want]).view(U[want])
                if value.dtype.itemsize * 8 != want:
                    value = value.astype(U[want])
        if mask is None:
            self.regs[o] = value
            return
        old = self.regs.get(o)
        self.regs[o] = np.where(mask, value, _UNSET[value.dtype] if old is None else old)

    # -- memory
    def address(self, o):
        base, off = _address_of(o)
        address = self.raw(base, 64).view(np.int64)
        return address + off if off else address

    def space(self, parts, addr, act):
        named = _space_of(parts)
        if named:
            return named, addr
        a = addr[act]
        if a.size == 0:
            return "global", addr
        lo, hi = a.min(), a.max()
        if lo >= GLOBAL:
            return "global", addr
        if SHARED <= lo and hi < LOCAL:
            return "shared", addr - SHARED
        if LOCAL <= lo and hi < GLOBAL:
            return "local", addr - LOCAL
        raise PTXError(f"address {int(lo):#x} is in no memory (null or wild pointer)")

    def check(self, space, addr, nbytes, act, ins, write, total=None, aligned=True):
        total = total or nbytes
        a = addr[act]
        if a.size == 0:
            return
        if space == "global":
            self.may_touch_global(act, ins)
        if aligned and (a % total).any():
            self.fault(f"misaligned {total}-byte access at {int(a[(a % total) != 0][0]):#x}", act, ins)
        if space == "global":
            i = a - GLOBAL
            bad = (i < 0) | (i + total > len(self.dev.heap))
            if not bad.any():
                bad = ~self.dev.valid[i] | ~self.dev.valid[i + total - 1]
            if bad.any():
                self.fault(
                    f"out of bounds {total}-byte {'write' if write else 'read'} at {int(a[bad][0]):#x}",
                    act,
                    ins,
                )
        elif space == "shared":
            bad = (a < 0) | (a + total > self.smem_size)
            if bad.any():
                self.fault(
                    f"out of bounds shared access at offset {int(a[bad][0])} of {self.smem_size}", act, ins
                )
        elif space == "local":
            if ((a < 0) | (a + total > self.p.local_size)).any():
                self.fault("out of bounds local access", act, ins)

    def may_touch_global(self, act, ins):
        if self.waited is not None and not self.waited[act].all():
            self.fault("global memory before griddepcontrol.wait", act & ~self.waited, ins)

    def fault(self, what, act, ins):
        t = int(self.tid_all[act][0]) if act.any() else -1
        cta = tuple(int(self.special[f"%ctaid.{c}"][0]) for c in "xyz")
        raise PTXError(f"{what}; thread {t} of block {cta}: {ins.text[:160]}")

    def load(self, space, addr, bits, act, ins, count=1):
        """``count`` numbers from each thread's address on, each [T]."""
        nb, full = bits // 8, bool(act.all())
        if not full and not act.any():
            return [np.zeros(self.T, U[bits])] * count
        start, thread = (addr, self.tid_all) if full else (addr[act], self.tid_all[act])
        if space == "global":
            start = start - GLOBAL
        if count > 1:
            start = (start[:, None] + np.arange(0, nb * count, nb)).ravel()
        who = thread if count == 1 else np.repeat(thread, count)
        if space == "local":
            found = self.lmem[who[:, None], start[:, None] + np.arange(nb)]
            found = np.ascontiguousarray(found).view(U[bits])
        else:
            written, memory = self.memory(space)
            if not written[start].all():
                self.fault(f"read of {space} memory that nothing has written", act, ins)
            if self.races:
                self.look(
                    act, ins, "anywhere" if space == "global" else "shared", start, nb, who, False
                )
            found = _words(memory, bits)[start // nb]
        found = found.reshape(-1, count)
        if full:
            return [found[:, k] for k in range(count)]
        out = [np.zeros(self.T, U[bits]) for _ in range(count)]
        for k, one in enumerate(out):
            one[act] = found[:, k]
        return out

    def store(self, space, addr, values, bits, act, ins):
        """These arrays [T] of numbers to each thread's address and behind it."""
        nb, full, count = bits // 8, bool(act.all()), len(values)
        if not full and not act.any():
            return
        start, thread = (addr, self.tid_all) if full else (addr[act], self.tid_all[act])
        values = [v if full else v[act] for v in values]
        values = [v if v.dtype.itemsize == nb else v.astype(U[bits]) for v in values]
        value = values[0] if count == 1 else np.stack(values, axis=1).ravel()
        if space == "global":
            start = start - GLOBAL
        if count > 1:
            start = (start[:, None] + np.arange(0, nb * count, nb)).ravel()
        who = thread if count == 1 else np.repeat(thread, count)
        if space == "local":
            self.lmem[who[:, None], start[:, None] + np.arange(nb)] = (
                np.ascontiguousarray(value).view(np.uint8).reshape(-1, nb)
            )
            return
        written, memory = self.memory(space)
        if self.races:
            self.look(act, ins, "anywhere" if space == "global" else "shared", start, nb, who, True)
        _words(memory, bits)[start // nb] = value
        _words(written, bits)[start // nb] = _ALL_WRITTEN[bits]

    def memory(self, space):
        """(whether each byte has been written, the bytes)"""
        return (
            (self.dev.written, self.dev.heap) if space == "global" else (self.smem_init, self.smem)
        )

    def is_relaxed(self, ins):
        """Whether an access may meet others' of its kind: each sees a word as one of these has left it."""
        if "relaxed" in ins.parts and "gpu" not in ins.parts and "sys" not in ins.parts:
            raise UnsupportedPTX(ins.text)
        return "relaxed" in ins.parts

    def acquire(self, addr, act, ins):
        """These threads may rely on all that was released at the address that each reads."""
        if "gpu" not in ins.parts and "sys" not in ins.parts:
            raise UnsupportedPTX(ins.text)
        if self.races:
            for thread in np.flatnonzero(act):
                self.races.acquired(thread, int(addr[thread]))

    def release_at(self, addr, act, ins):
        """What these threads know of is there for whoever acquires at the address that each changes."""
        if "gpu" not in ins.parts and "sys" not in ins.parts:
            raise UnsupportedPTX(ins.text)
        if self.races:
            for thread in np.flatnonzero(act):
                self.races.released(thread, int(addr[thread]))

    def look(self, act, ins, what, *access):
        """Have an access looked at by a method of ``Races``."""
        wrong = self.races and getattr(self.races, what)(*access)
        if wrong:
            self.fault(wrong, act, ins)

    def count(self, kind, space, addr, nbytes, act):
        for w in np.unique(self.warp[act]):
            m = act & (self.warp == w)
            a = addr[m]
            key = f"{kind}.{space}"
            self.rep.requests[key] += 1
            if space == "global":
                self.rep.sectors[key] += len(np.unique((a[:, None] + np.arange(0, nbytes, 4)) // 32))
            elif space == "shared":  # 8- and 16-byte accesses go by half and quarter warps
                lanes, group = self.lane[m], {8: 16, 16: 8}.get(nbytes, 32)
                for g in range(0, 32, group):
                    part = a[(lanes >= g) & (lanes < g + group)]
                    if part.size:
                        words = np.unique((part[:, None] + np.arange(0, max(nbytes, 4), 4)) // 4)
                        self.rep.bank_conflicts[key] += int(np.bincount(words % 32, minlength=32).max()) - -(
                            -len(words) // 32
                        )

    # -- scheduling
    def run(self, budget=None):
        """Run until finished ('done'), blocked at a grid barrier ('grid') or out of budget ('more')."""
        segs = 0
        while True:
            runnable = ~self.done & (self.wait == -1)
            if not runnable.any():
                if self.done.all():
                    if self.waited is not None and not self.waited.any():
                        raise PTXError("a block ends, and none of its threads has waited for what was before")
                    return "done"
                if not self.release():
                    if (self.wait[~self.done] == -2).all():
                        return "grid"
                    raise PTXError(
                        f"deadlock: threads wait at barriers {sorted(set(self.wait[~self.done].tolist()))} that the others never reach"
                    )
                continue
            self.moved = False
            wpc = self.warp_pcs(runnable)
            for p in np.unique(wpc[wpc < END]):
                warps = wpc == p
                self.segment(int(p), runnable & warps[self.warp] & (self.pc == p))
                segs += 1
                for _ in range(self.burst - 1):  # the same warps again, before others have their turn
                    able = ~self.done & (self.wait == -1) & warps[self.warp]
                    again = self.warp_pcs(able)
                    for q in np.unique(again[again < END]):
                        self.segment(int(q), able & (again == q)[self.warp] & (self.pc == q))
                        segs += 1
                if segs > 20_000_000:
                    raise PTXError("no end in sight: 20 million segments")
            if not self.moved:
                raise PTXError("wgmma reached by part of a warpgroup; the other warps never come")
            if budget and segs >= budget:
                return "more"

    def warp_pcs(self, able):
        """Where each warp goes on: at the earliest place of its threads that are able to."""
        pad = np.full(self.W * 32, END)
        pad[: self.T] = np.where(able, self.pc, END)
        return pad.reshape(self.W, 32).min(1)

    def count_warps(self, act):
        """How many have a thread among these."""
        if self.T % 32:
            return len(np.unique(self.warp[act]))
        return int(np.count_nonzero(act.reshape(-1, 32).any(1)))

    def segment(self, p, act):
        full = bool(act.all())
        instrs, n = self.p.instrs, len(self.p.instrs)
        stops, counts, regs = self.p.stops, self.rep.instructions, self.regs
        nw = self.W if full else self.count_warps(act)
        while True:
            if p >= n:
                self.done |= act
                return
            ins = instrs[p]
            if ins.joint:
                ready = self.whole_warpgroups(act)
                if not ready.all():  # the other warps wait for the rest of their warpgroup
                    self.pc[act & ~ready] = p
                    act, full = act & ready, False
                    if not act.any():
                        return
                    nw = self.count_warps(act)
            self.moved = True
            if self.unsummed:
                self.no_sums_among(ins, act)
            counts[ins.parts[0]] += nw
            a = act
            m = None if full else act
            if ins.guard:
                g = regs.get(ins.guard[0])
                g = np.zeros(self.T, bool) if g is None else g
                g = ~g if ins.guard[1] else g
                a = act & g
                m = None if a.all() else a
            nxt = ins.run(self, ins, a, m)
            if nxt is None:  # plain instruction
                p += 1
                if p in stops:
                    self.pc[act] = p
                    return
                continue
            kind = nxt
            if kind == "bra":
                self.pc[act] = p + 1
                self.pc[a] = ins.target
            elif kind == "exit":
                self.pc[act] = p + 1
                self.done |= a
            else:  # "bar": the waiting is recorded by the instruction
                self.pc[act] = p + 1
            return

    def no_sums_among(self, ins, act):
        """No operand, but for the sums of another product, is one that wgmma may still be adding to."""
        operands = " ".join(ins.args[ins.parts[0] == "wgmma" :])
        for register in re.findall(r"%[\w$]+", operands):
            if register in self.unsummed and self.unsummed[register][act].any():
                self.fault(f"{register} is used before wgmma.wait_group says that its sums are there", act, ins)

    def release(self):
        """Open every barrier whose threads have arrived; True if one opened."""
        opened = False
        for b in np.unique(self.wait[self.wait >= 0]):
            here = self.wait == b
            need = self.wait_count.get(int(b))
            live = ~self.done
            full = (here | ~live).all() if need is None else here.sum() >= need
            if full:
                if self.races and need is None and len(np.unique(self.pc[here])) > 1:
                    raise PTXError(
                        "threads of one block meet at different bar.sync instructions: "
                        + "; ".join(
                            f"threads {self.tid_all[here & (self.pc == p)][0]}… before {self.p.instrs[int(p)].text[:60]}"
                            for p in np.unique(self.pc[here])
                        )
                    )
                self.wait[here] = -1
                self.rep.barriers += 1
                if self.races:
                    self.races.meet(np.flatnonzero(here))
                opened = True
        return opened

    def whole_warpgroups(self, act):
        """Which threads belong to a warpgroup that is here as a whole, [T]."""
        pad = np.zeros(-(-self.T // 128) * 128, bool)
        pad[: self.T] = act
        return np.repeat(pad.reshape(-1, 128).all(1), 128)[: self.T]

    def whole_warps(self, act, ins):
        pad = np.zeros(self.W * 32, bool)
        pad[: self.T] = act
        k = pad.reshape(self.W, 32).sum(1)
        if ((k != 0) & (k != 32)).any():
            self.fault("warp-collective instruction reached by part of a warp", act, ins)
        return np.flatnonzero(k == 32)


@cache
def _space_of(parts):
    """What memory an instruction names, None if its addresses tell."""
    named = (part.split("@")[0] for part in parts)
    return next((name for name in named if name in ("global", "shared", "local", "param", "const")), None)


@cache
def _address_of(o):
    """(what it starts from, bytes from there on) of an operand such as [%rd1+16]."""
    m = re.fullmatch(r"\[\s*([^\]+]+?)\s*(?:\+\s*(-?\w+))?\s*\]", o)
    if not m:
        raise UnsupportedPTX(f"address {o}")
    return m.group(1), int(m.group(2) or "0", 0)


def _literal(o, bits):
    if o.startswith(("0f", "0F")):
        return int(o[2:], 16)
    if o.startswith(("0d", "0D")):
        v = int(o[2:], 16)
        return (
            v
            if bits == 64
            else int(np.array([v], np.uint64).view(np.float64).astype(np.float32).view(np.uint32)[0])
        )
    if re.fullmatch(r"-?\d+\.\d*(e-?\d+)?", o):
        return int(np.array([float(o)], F[bits]).view(U[bits])[0])
    try:
        return int(o.rstrip("U"), 0) & ((1 << bits) - 1)
    except ValueError:
        raise UnsupportedPTX(f"operand {o}") from None


# ---------------------------------------------------------------- instructions
HANDLERS = {}


def op(*names):
    def deco(f):
        for n in names:
            HANDLERS[n] = f
        return f

    return deco


def _vec(o):
    return [x.strip() for x in o.strip()[1:-1].split(",")] if o.startswith("{") else [o]


_BF16 = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin, "max": np.fmax}
_INT = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}
_FLOAT = _BF16 | {"div": np.divide}
_FLOAT_NAN = _FLOAT | {"min": np.minimum, "max": np.maximum}
_INT2 = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@cache
def _plain(parts):
    """The function of two numbers that an instruction is, None if there is more to it."""
    ty, o = parts[-1], parts[0]
    if ty not in _SEEN_AS or set(parts[1:-1]) - {"lo", "rn", "ftz"}:
        return None
    if ty[0] == "f":
        return _FLOAT.get(o)
    return _INT2.get(o) or (np.multiply if "lo" in parts else _INT.get(o))


@op("add", "sub", "mul", "min", "max", "div", "rem", "and", "or", "xor")
def _binary(b, i, act, m):
    ty, o = i.parts[-1], i.parts[0]
    plain = _plain(i.parts)
    if plain is not None:
        b.put(i.args[0], plain(b.val(i.args[1], ty), b.val(i.args[2], ty)), m)
        return
    if ty == "pred":
        x, y = b.val(i.args[1], ty), b.val(i.args[2], ty)
        b.put(i.args[0], _INT2[o](x, y), m)
        return
    if ty in ("f16x2", "bf16x2"):
        k = ty[:-2]
        (xl, xh), (yl, yh) = _halves(b.raw(i.args[1], 32), k), _halves(b.raw(i.args[2], 32), k)
        f = _BF16[o]
        b.put(i.args[0], _pack(f(xl, yl), f(xh, yh), k), m)
        return
    if ty == "bf16":
        x, y = b.val(i.args[1], ty), b.val(i.args[2], ty)
        b.put(i.args[0], _f32_to_bf16(_BF16[o](x, y)), m)
        return
    if o in _INT2:
        bits = _TYPE_BITS[ty]
        b.put(i.args[0], _INT2[o](b.raw(i.args[1], bits), b.raw(i.args[2], bits)), m)
        return
    x, y = b.val(i.args[1], ty), b.val(i.args[2], ty)

    def calc():
        if ty[0] == "f":
            r = (_FLOAT_NAN if "NaN" in i.parts else _FLOAT)[o](x, y)
            return np.clip(r, 0, 1).astype(r.dtype) if "sat" in i.parts else r
        if o == "mul":
            bits = _TYPE_BITS[ty]
            if "wide" in i.parts:
                w = (S if ty[0] == "s" else U)[bits * 2]
                return x.astype(w) * y.astype(w)
            if "hi" in i.parts:
                return (
                    np.array([(int(p) * int(q)) >> bits for p, q in zip(x, y)], dtype=object).astype(x.dtype)
                    if bits == 64
                    else (
                        (
                            x.astype(S[64] if ty[0] == "s" else U[64])
                            * y.astype(S[64] if ty[0] == "s" else U[64])
                        )
                        >> (S[64] if ty[0] == "s" else U[64])(bits)
                    ).astype(x.dtype)
                )
            return x * y
        if o in ("div", "rem"):
            z = y == 0
            ys = np.where(z, 1, y).astype(y.dtype)
            q = (
                (np.abs(x) // np.abs(ys) * np.sign(x) * np.sign(ys)).astype(x.dtype)
                if ty[0] == "s"
                else x // ys
            )
            return (
                np.where(z, x.dtype.type(-1) if ty[0] == "s" else np.iinfo(x.dtype).max, q).astype(x.dtype)
                if o == "div"
                else (x - q * ys).astype(x.dtype)
            )
        return _INT[o](x, y)

    b.put(i.args[0], calc(), m)


@op("fma", "mad")
def _fma(b, i, act, m):
    ty = i.parts[-1]
    if ty in ("f16x2", "bf16x2"):
        k = ty[:-2]
        v = [_halves(b.raw(a, 32), k) for a in i.args[1:4]]
        b.put(
            i.args[0], _pack(v[0][0] * v[1][0] + v[2][0], v[0][1] * v[1][1] + v[2][1], k), m
        )
        return
    if ty[0] == "f" or ty == "bf16":
        x, y, z = (b.val(a, ty) for a in i.args[1:4])
        if ty == "f32":
            r = (x.astype(np.float64) * y + z).astype(np.float32)
        else:
            r = x * y + z
        b.put(i.args[0], _f32_to_bf16(r) if ty == "bf16" else r, m)
        return
    bits = _TYPE_BITS[ty]
    if "wide" in i.parts:
        w = (S if ty[0] == "s" else U)[bits * 2]
        x, y = b.val(i.args[1], ty).astype(w), b.val(i.args[2], ty).astype(w)
        z = b.raw(i.args[3], bits * 2).view(w)
    else:
        x, y, z = (b.val(a, ty) for a in i.args[1:4])
    b.put(i.args[0], x * y + z, m)


@op(
    "neg",
    "abs",
    "not",
    "sqrt",
    "rcp",
    "rsqrt",
    "ex2",
    "lg2",
    "sin",
    "cos",
    "tanh",
    "popc",
    "clz",
    "brev",
    "cnot",
)
def _unary(b, i, act, m):
    ty, o = i.parts[-1], i.parts[0]
    if ty == "pred":
        b.put(i.args[0], ~b.val(i.args[1], ty), m)
        return
    if ty in ("f16x2", "bf16x2"):
        k = ty[:-2]
        lo, hi = _halves(b.raw(i.args[1], 32), k)
        f = {"neg": np.negative, "abs": np.abs, "ex2": np.exp2, "tanh": np.tanh}[o]
        b.put(i.args[0], _pack(f(lo), f(hi), k), m)
        return
    if o in ("not", "popc", "clz", "brev"):
        bits = _TYPE_BITS[ty]
        x = b.raw(i.args[1], bits)
        if o == "not":
            r = ~x
        elif o == "popc":
            r = np.array([bin(int(v)).count("1") for v in x], np.uint32)
        elif o == "clz":
            r = np.array([bits - int(v).bit_length() for v in x], np.uint32)
        else:
            r = np.array([int(f"{int(v):0{bits}b}"[::-1], 2) for v in x], U[bits])
        b.put(i.args[0], r, m)
        return
    x = b.val(i.args[1], ty)
    f = {
        "neg": np.negative,
        "abs": np.abs,
        "sqrt": np.sqrt,
        "rcp": lambda v: (1 / v).astype(v.dtype),
        "rsqrt": lambda v: (1 / np.sqrt(v)).astype(v.dtype),
        "ex2": np.exp2,
        "lg2": np.log2,
        "sin": np.sin,
        "cos": np.cos,
        "tanh": np.tanh,
    }[o]
    r = f(x)
    b.put(i.args[0], _f32_to_bf16(r) if ty == "bf16" else r, m)


@op("bfind")
def _bfind(b, i, act, m):
    """The place of the highest bit that is set (of unsigned numbers), or how far it is from the top."""
    ty = i.parts[-1]
    if ty not in ("u32", "u64"):
        raise UnsupportedPTX(i.text)
    x = b.raw(i.args[1], _TYPE_BITS[ty])
    top = _TYPE_BITS[ty] - 1
    r = [
        0xFFFFFFFF
        if not v
        else top - int(v).bit_length() + 1
        if "shiftamt" in i.parts
        else int(v).bit_length() - 1
        for v in x
    ]
    b.put(i.args[0], np.array(r, np.uint32), m)


@op("shl", "shr")
def _shift(b, i, act, m):
    ty = i.parts[-1]
    bits = _TYPE_BITS[ty]
    if i.args[2].isdigit() and int(i.args[2]) < bits:
        x = b.val(i.args[1], ty)
        n = x.dtype.type(int(i.args[2]))
        b.put(i.args[0], x << n if i.parts[0] == "shl" else x >> n, m)
        return
    n = b.raw(i.args[2], 32).astype(np.int64)
    if i.parts[0] == "shl":
        x = b.raw(i.args[1], bits)
        r = np.where(n >= bits, 0, x << np.minimum(n, bits - 1).astype(U[bits])).astype(U[bits])
    else:
        x = b.val(i.args[1], ty)
        r = x >> np.minimum(n, bits - 1).astype(x.dtype)
        if ty[0] != "s":
            r = np.where(n >= bits, 0, r).astype(x.dtype)
    b.put(i.args[0], r, m)


@op("shf")
def _funnel(b, i, act, m):
    lo, hi = b.raw(i.args[1], 32).astype(np.uint64), b.raw(i.args[2], 32).astype(np.uint64)
    n = b.raw(i.args[3], 32).astype(np.uint64)
    n = n & np.uint64(31) if "wrap" in i.parts else np.minimum(n, np.uint64(32))
    v = (hi << np.uint64(32)) | lo
    r = (v >> n) if "r" in i.parts else ((v << n) >> np.uint64(32))
    b.put(i.args[0], (r & np.uint64(0xFFFFFFFF)).astype(np.uint32), m)


@op("bfe")
def _bfe(b, i, act, m):
    ty = i.parts[-1]
    bits = _TYPE_BITS[ty]
    x, p, l = (
        b.raw(i.args[1], bits),
        b.raw(i.args[2], 32) & np.uint32(255),
        b.raw(i.args[3], 32) & np.uint32(255),
    )
    out = []
    for v, q, n in zip(x.tolist(), p.tolist(), l.tolist()):
        n = min(n, bits - q) if q < bits else 0
        f = (v >> q) & ((1 << n) - 1) if n > 0 else 0
        if ty[0] == "s" and n > 0 and f >> (n - 1):
            f -= 1 << n
        out.append(f & ((1 << bits) - 1))
    b.put(i.args[0], np.array(out, U[bits]), m)


@op("bfi")
def _bfi(b, i, act, m):
    bits = _TYPE_BITS[i.parts[-1]]
    x, y, p, l = (b.raw(a, bits if k < 2 else 32).tolist() for k, a in enumerate(i.args[1:5]))
    out = []
    for v, w, q, n in zip(x, y, p, l):
        q, n = q & 255, n & 255
        k = ((1 << n) - 1) << q & ((1 << bits) - 1)
        out.append((w & ~k) | ((v << q) & k))
    b.put(i.args[0], np.array(out, U[bits]), m)


@op("lop3")
def _lop3(b, i, act, m):
    x, y, z = (b.raw(a, 32) for a in i.args[1:4])
    t, r = int(i.args[4], 0), np.zeros(b.T, np.uint32)
    for k in range(8):
        if t >> k & 1:
            r |= (x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z)
    b.put(i.args[0], r, m)


@op("prmt")
def _prmt(b, i, act, m):
    if i.parts[-1] != "b32":
        raise UnsupportedPTX(i.text)
    x, y, s = (
        b.raw(i.args[1], 32).astype(np.uint64),
        b.raw(i.args[2], 32).astype(np.uint64),
        b.raw(i.args[3], 32).astype(np.uint64),
    )
    v, r = x | (y << np.uint64(32)), np.zeros(b.T, np.uint64)
    for k in range(4):
        c = (s >> np.uint64(4 * k)) & np.uint64(15)
        byte = (v >> ((c & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        byte = np.where(c & np.uint64(8), np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte)
        r |= byte << np.uint64(8 * k)
    b.put(i.args[0], r.astype(np.uint32), m)


_COMPARED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


@op("setp")
def _setp(b, i, act, m):
    ty, cmp = i.parts[-1], i.parts[1]
    x, y = b.val(i.args[1], ty), b.val(i.args[2], ty)
    f = _COMPARED
    if ty[0] in "f" or ty == "bf16":
        nan = np.isnan(x) | np.isnan(y)
        if cmp == "num":
            r = ~nan
        elif cmp == "nan":
            r = nan
        elif cmp.endswith("u") and cmp[:-1] in f:
            r = f[cmp[:-1]](x, y) | nan
        else:
            r = f[cmp](x, y) & ~nan
    else:
        r = f[cmp](x, y)
    if len(i.args) > 3:
        c = b.val(i.args[3], "pred")
        r = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[i.parts[2]](r, c)
    d = i.args[0].split("|")
    b.put(d[0], r, m)
    if len(d) > 1:
        b.put(d[1], ~r, m)


@op("selp")
def _selp(b, i, act, m):
    bits = _TYPE_BITS[i.parts[-1]]
    b.put(i.args[0], np.where(b.val(i.args[3], "pred"), b.raw(i.args[1], bits), b.raw(i.args[2], bits)), m)


@op("mov")
def _mov(b, i, act, m):
    ty, (d, s) = i.parts[-1], i.args
    if ty == "pred":
        b.put(d, b.val(s, ty), m)
        return
    bits = _TYPE_BITS[ty]
    if s.startswith("{"):
        v = _vec(s)
        each = bits // len(v)
        r = np.zeros(b.T, U[bits])
        for k, x in enumerate(v):
            r |= b.raw(x, each).astype(U[bits]) << U[bits](each * k)
        b.put(d, r, m)
    elif d.startswith("{"):
        v = _vec(d)
        each = bits // len(v)
        r = b.raw(s, bits)
        for k, x in enumerate(v):
            b.put(x, (r >> U[bits](each * k)).astype(U[each]), m)
    else:
        b.put(d, b.raw(s, bits), m)


@op("cvta")
def _cvta(b, i, act, m):
    bits = _TYPE_BITS[i.parts[-1]]
    x = b.raw(i.args[1], 64)
    win = {"global": 0, "shared": SHARED, "local": LOCAL, "param": 0, "const": 0}[
        [p for p in i.parts if p.split("@")[0] in ("global", "shared", "local", "param", "const")][0].split(
            "@"
        )[0]
    ]
    r = x - np.uint64(win) if "to" in i.parts else x + np.uint64(win)
    b.put(i.args[0], r.astype(U[bits]), m)


@op("cvt")
def _cvt(b, i, act, m):
    to, fr = i.parts[-2], i.parts[-1]
    mods = i.parts[1:-2]
    if to in ("bf16x2", "f16x2"):
        hi, lo = b.val(i.args[1], "f32"), b.val(i.args[2], "f32")
        if "relu" in mods:
            hi, lo = np.fmax(hi, 0), np.fmax(lo, 0)
        b.put(i.args[0], _pack(lo.astype(np.float32), hi.astype(np.float32), to[:-2]), m)
        return
    if to == "tf32":
        u = b.raw(i.args[1], 32)
        finite = (u & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
        b.put(i.args[0], np.where(finite, u + np.uint32(0x1000), u) & np.uint32(0xFFFFE000), m)
        return
    x = b.val(i.args[1], fr)

    def calc():
        if to == "bf16":
            return _f32_to_bf16(x.astype(np.float32))
        tf, ff = to[0] == "f", fr[0] == "f" or fr == "bf16"
        bits = _TYPE_BITS[to]
        if tf:
            r = x
            if ff and mods and mods[0] in ("rni", "rzi", "rmi", "rpi"):
                r = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mods[0]](x)
            r = r.astype(F[bits])
            return np.clip(r, 0, 1).astype(F[bits]) if "sat" in mods else r
        if ff:
            r = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[
                [q for q in mods if q in ("rni", "rzi", "rmi", "rpi")][0]
            ](x.astype(np.float64))
            lim = np.iinfo((S if to[0] == "s" else U)[bits])
            r = np.where(np.isnan(r), 0, np.clip(r, float(lim.min), float(lim.max)))
            return (
                np.where(r >= float(lim.max), lim.max, r).astype((S if to[0] == "s" else U)[bits])
                if bits < 64
                else np.array([int(v) for v in r], dtype=object).astype((S if to[0] == "s" else U)[bits])
            )
        if "sat" in mods:
            lim = np.iinfo((S if to[0] == "s" else U)[bits])
            return np.clip(x.astype(np.int64), lim.min, lim.max).astype((S if to[0] == "s" else U)[bits])
        return x.astype((S if to[0] == "s" else U)[bits])

    r = calc()
    want = b.bits_of(i.args[0])
    if r.dtype.kind in "iu" and r.dtype.itemsize * 8 < want:  # sign or zero extension into a wider register
        r = r.astype((S if r.dtype.kind == "i" else U)[want])
    b.put(i.args[0], r, m)


@op("ld", "ldu")
def _ld(b, i, act, m):
    ty = i.parts[-1]
    bits = _TYPE_BITS[ty]
    dst = _vec(i.args[0])
    if "param" in i.parts:
        q = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", i.args[1])
        if q.group(1) not in b.params:  # a parameter or result of a device function
            cell = b.calls.get(q.group(1))
            for k, d in enumerate(dst):
                at = int(q.group(2) or 0) + k * bits // 8
                b.put(
                    d,
                    np.zeros(b.T, U[bits])
                    if cell is None
                    else np.ascontiguousarray(cell[:, at : at + bits // 8]).view(U[bits])[:, 0],
                    m,
                )
            return
        key = i.args[1], bits, len(dst)
        if key not in b.constants:
            data, off = b.params[q.group(1)], int(q.group(2) or 0)
            b.constants[key] = [np.full(b.T, v) for v in np.frombuffer(data, U[bits], len(dst), off)]
        for d, v in zip(dst, b.constants[key]):
            b.put(d, v, m)
        return
    addr = b.address(i.args[1])
    space, addr = b.space(i.parts, addr, act)
    b.check(space, addr, bits // 8, act, i, False, bits // 8 * len(dst))
    if b.metrics:
        b.count("ld", space, addr, bits // 8 * len(dst), act)
    races = b.races
    if "acquire" in i.parts:
        b.acquire(addr, act, i)
    if "acquire" in i.parts or b.is_relaxed(i):
        b.races = None  # it may meet what others do there
    vals = b.load(space, addr, bits, act, i, len(dst))
    b.races = races
    for d, v in zip(dst, vals):
        want = b.bits_of(d)
        if want > bits:
            v = v.view(S[bits]).astype(S[want]) if ty[0] == "s" else v.astype(U[want])
        b.put(d, v, m)


@op("st")
def _st(b, i, act, m):
    bits = _TYPE_BITS[i.parts[-1]]
    src = _vec(i.args[1])
    if "param" in i.parts:  # an argument or the result of a device function
        q = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", i.args[0])
        cell = b.calls.setdefault(q.group(1), np.zeros((b.T, 256), np.uint8))
        for k, x in enumerate(src):
            at = int(q.group(2) or 0) + k * bits // 8
            cell[act, at : at + bits // 8] = (
                np.ascontiguousarray(b.raw(x, bits)).view(np.uint8).reshape(b.T, -1)[act]
            )
        return
    addr = b.address(i.args[0])
    space, addr = b.space(i.parts, addr, act)
    b.check(space, addr, bits // 8, act, i, True, bits // 8 * len(src))
    if b.metrics:
        b.count("st", space, addr, bits // 8 * len(src), act)
    races = b.races
    if b.is_relaxed(i):
        b.races = None
    b.store(space, addr, [b.raw(each, bits) for each in src], bits, act, i)
    b.races = races


@op("atom", "red")
def _atom(b, i, act, m):
    ty = i.parts[-1]
    bits = _TYPE_BITS[ty]
    args = i.args if i.parts[0] == "atom" else ["_"] + i.args
    what = [
        p for p in i.parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
    ][0]
    addr = b.address(args[1])
    space, addr = b.space(i.parts, addr, act)
    b.check(space, addr, bits // 8, act, i, True)
    x = b.val(args[2], ty)
    y = b.val(args[3], ty) if len(args) > 3 else x
    out = np.zeros(b.T, x.dtype)
    if "acquire" in i.parts or "acq_rel" in i.parts:
        b.acquire(addr, act, i)
    if "release" in i.parts or "acq_rel" in i.parts:
        b.release_at(addr, act, i)
    races, b.races = b.races, None
    for t in np.flatnonzero(act):
        one = np.zeros(b.T, bool)
        one[t] = True
        old = b.load(space, addr, bits, one, i)[0].view(x.dtype)[t]
        new = {
            "add": lambda: old + x[t],
            "min": lambda: min(old, x[t]),
            "max": lambda: max(old, x[t]),
            "and": lambda: old & x[t],
            "or": lambda: old | x[t],
            "xor": lambda: old ^ x[t],
            "exch": lambda: x[t],
            "cas": lambda: y[t] if old == x[t] else old,
            "inc": lambda: x.dtype.type(0) if old >= x[t] else old + x.dtype.type(1),
            "dec": lambda: x[t] if old == 0 or old > x[t] else old - x.dtype.type(1),
        }[what]()
        b.store(space, addr, [np.full(b.T, new, x.dtype).view(U[bits])], bits, one, i)
        out[t] = old
    b.races = races
    b.put(args[0], out, m)


@op("bra")
def _bra(b, i, act, m):
    return "bra"


@op("ret", "exit")
def _exit(b, i, act, m):
    return "exit"


@op("trap", "brkpt")
def _trap(b, i, act, m):
    if act.any():
        b.fault("trap", act, i)


@op("bar", "barrier")
def _bar(b, i, act, m):
    if "warp" in i.parts:
        if b.races:
            b.races.meet_in_warps(np.flatnonzero(act))
        return None
    if "cluster" in i.parts:
        return None  # clusters of one block
    if "red" in i.parts:
        raise UnsupportedPTX(i.text)
    ident = int(b.raw(i.args[0], 32)[0]) if i.args else 0
    n = int(b.raw(i.args[1], 32)[0]) if len(i.args) > 1 else None
    b.wait_count[ident] = n
    if "arrive" in i.parts:
        raise UnsupportedPTX(i.text)
    b.wait[act] = ident
    return "bar"


@op("fence")
def _fence(b, i, act, m):
    if b.races and ("async" in i.op or "mbarrier_init" in i.op):
        b.races.open_to_async(np.flatnonzero(act))


@op(
    "membar",
    "nanosleep",
    "prefetch",
    "prefetchu",
    "discard",
    "pragma",
    "applypriority",
    "createpolicy",
)
def _nothing(b, i, act, m):
    return None


@op("griddepcontrol")
def _griddepcontrol(b, i, act, m):
    if "wait" in i.parts:
        b.waited[act] = True


@op("activemask")
def _activemask(b, i, act, m):
    r = np.zeros(b.T, np.uint32)
    for w in np.unique(b.warp[act]):
        k = act & (b.warp == w)
        r[k] = np.uint32(sum(1 << int(l) for l in b.lane[k]))
    b.put(i.args[0], r, m)


@op("elect")
def _elect(b, i, act, m):
    d, p = i.args[0].split("|")
    ws = b.whole_warps(act, i)
    lead = np.zeros(b.T, bool)
    lead[[w * 32 for w in ws]] = True
    b.put(d, np.zeros(b.T, np.uint32), m)
    b.put(p, lead, m)


def _all_named(b, i, act, mask):
    """Every lane that a warp-collective instruction names must take part in it, and so must the one that names."""
    present = np.zeros(b.W, np.uint64)
    np.bitwise_or.at(present, b.warp[act], np.uint64(1) << b.lane[act].astype(np.uint64))
    there = np.zeros(b.W, np.uint64)  # the last warp of a block may have fewer lanes than are named
    np.bitwise_or.at(there, b.warp, np.uint64(1) << b.lane.astype(np.uint64))
    named = b.raw(mask, 32).astype(np.uint64) & there[b.warp]
    own = np.uint64(1) << b.lane.astype(np.uint64)
    if (named & ~present[b.warp])[act].any() or ((named & own) == 0)[act].any():
        b.fault(f"{i.parts[0]} names lanes that do not take part, or not its own", act, i)


@op("shfl")
def _shfl(b, i, act, m):
    if "sync" in i.parts:
        _all_named(b, i, act, i.args[4])
    mode = i.parts[2]
    d = i.args[0].split("|")
    x, src, c = (
        b.raw(i.args[1], 32),
        b.raw(i.args[2], 32).astype(np.int64),
        b.raw(i.args[3], 32).astype(np.int64),
    )
    lane = b.lane
    seg, clamp = (c >> 8) & 31, c & 31
    lo, hi = lane & seg, (lane & seg) | (clamp & ~seg)
    if mode == "up":
        j = lane - src
        ok = j >= hi
    elif mode == "down":
        j = lane + src
        ok = j <= hi
    elif mode == "bfly":
        j = lane ^ src
        ok = j <= hi
    else:
        j = lo | (src & ~seg & 31)
        ok = j <= hi
    j = np.where(ok, j, lane)
    t = b.warp * 32 + j
    if (t[act] >= b.T).any() or not act[np.minimum(t[act], b.T - 1)].all():
        b.fault("shuffle reads a lane that does not take part", act, i)
    b.put(d[0], x[np.minimum(t, b.T - 1)], m)
    if len(d) > 1:
        b.put(d[1], ok, m)


@op("vote", "match")
def _vote(b, i, act, m):
    if i.parts[0] == "match":
        raise UnsupportedPTX(i.text)
    kind = i.parts[2] if i.parts[1] == "sync" else i.parts[1]
    if i.parts[1] == "sync":
        _all_named(b, i, act, i.args[2])
    a = i.args[1]
    p = b.val(a, "pred")
    r = np.zeros(b.T, np.uint32 if kind == "ballot" else bool)
    for w in np.unique(b.warp[act]):
        k = act & (b.warp == w)
        r[k] = (
            np.uint32(sum(1 << int(l) for l in b.lane[k & p]))
            if kind == "ballot"
            else {"all": p[k].all(), "any": p[k].any(), "uni": p[k].all() or not p[k].any()}[kind]
        )
    b.put(i.args[0], r, m)


@op("redux")
def _redux(b, i, act, m):
    ty, what = i.parts[-1], i.parts[2]
    _all_named(b, i, act, i.args[2])
    x = b.val(i.args[1], ty)
    r = np.zeros_like(x)
    for w in np.unique(b.warp[act]):
        k = act & (b.warp == w)
        r[k] = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[what].reduce(x[k])
    b.put(i.args[0], r, m)


# -- asynchronous copies
@op("cp")
def _cp(b, i, act, m):
    s = ".".join(i.parts)
    if s.startswith("cp.async.bulk"):
        return _bulk(b, i, act, m)
    if s.startswith("cp.async.commit_group"):
        for r in b.pending:
            k = act & r["lanes"] & (r["seq"] < 0)
            r["seq"] = np.where(k, b.commits, r["seq"])
        b.commits[act] += 1
        return None
    if s.startswith(("cp.async.wait_group", "cp.async.wait_all")):
        keep = 0 if "wait_all" in s else int(i.args[0])
        for r in b.pending:
            k = (
                act
                & r["lanes"]
                & ~r["done"]
                & (((r["seq"] >= 0) & (r["seq"] < b.commits - keep)) | ("wait_all" in s))
            )
            at = r["dst"][k][:, None] + np.arange(r["n"])
            b.smem[at], b.smem_init[at] = r["data"][k], True
            r["done"] |= k
        b.pending = [r for r in b.pending if not r["done"][r["lanes"]].all()]
        return None
    if not s.startswith(("cp.async.ca.shared", "cp.async.cg.shared")):
        raise UnsupportedPTX(i.text)
    n = int(i.args[2])
    dst, src = b.address(i.args[0]), b.address(i.args[1])
    take = np.full(b.T, n)
    if len(i.args) > 3 and not i.args[3].startswith("p"):
        take = b.raw(i.args[3], 32).astype(np.int64)
    b.check("shared", dst, n, act, i, True)
    full = act & (take > 0)
    if full.any() and (src[full] % n).any():
        b.fault(f"misaligned source of a {n}-byte copy", act, i)
    data = np.zeros((b.T, n), np.uint8)
    for size in np.unique(take[full]).tolist():  # only so many bytes are read
        some = full & (take == size)
        b.check("global", src, size, some, i, False, aligned=False)
        if b.metrics:
            b.count("cp.async", "global", src, size, some)
        first = src[some] - GLOBAL
        at = first[:, None] + np.arange(size)
        if not b.dev.written[at].all():
            b.fault("read of global memory that nothing has written", act, i)
        b.look(act, i, "pieces", first, size, b.tid_all[some])
        data[some, :size] = b.dev.heap[at]
    if b.metrics:
        b.count("cp.async", "shared", dst, n, act)
    at = dst[act][:, None] + np.arange(n)
    b.smem[at], b.smem_init[at] = POISON, False
    b.look(act, i, "shared", dst[act], n, b.tid_all[act], True)
    b.pending.append(
        {
            "lanes": act.copy(),
            "seq": np.full(b.T, -1),
            "dst": dst,
            "n": n,
            "data": data,
            "done": np.zeros(b.T, bool),
        }
    )
    return None


def _bulk(b, i, act, m):
    b.in_vain = 0
    s = ".".join(i.parts)
    if "prefetch.L2" in s and "tensor" not in s:  # brings nothing that could be read here, but must not stray
        for t in np.flatnonzero(act):
            one = np.zeros(b.T, bool)
            one[t] = True
            size, address = int(b.raw(i.args[1], 32)[t]), b.address(i.args[0])
            if size % 16 or size < 16 or address[t] % 16:
                b.fault(f"prefetch of {size} bytes: not in pieces of 16", one, i)
            b.check("global", address, size, one, i, False, aligned=False)
        return None
    if "commit_group" in s or "wait_group" in s or "prefetch" in s:
        return None
    for t in np.flatnonzero(act):
        one = np.zeros(b.T, bool)
        one[t] = True
        b.may_touch_global(one, i)
        if "tensor" in s:
            to_shared = s.index("shared") < s.index("global")
            tm_op = i.args[1] if to_shared else i.args[0]
            q = re.fullmatch(r"\[\s*([%\w$]+)\s*,\s*\{(.*?)\}\s*\]", tm_op)
            array, box, swz, shape, strides, tf32 = b.dev.maps[int(b.raw(q.group(1), 64)[t])]
            c = [int(b.val(x.strip(), "s32")[t]) for x in q.group(2).split(",")][
                ::-1
            ]  # PTX gives the innermost first
            sm = int(b.address(i.args[0] if to_shared else i.args[1])[t])
            sm = sm - SHARED if sm >= SHARED else sm
            sm_off = sm
            es = array.dtype.itemsize
            inner = box[-1] * es
            if sm % 128 or not 0 <= sm <= b.smem_size - int(np.prod(box)) * es:
                b.fault(f"tensor copy at shared offset {sm} of {b.smem_size}: outside, or not at a multiple of 128", one, i)
            for idx in np.ndindex(*box[:-1]):
                row = np.zeros(inner, np.uint8)
                pos = [c[k] + idx[k] for k in range(len(idx))]
                inside = all(0 <= p < n for p, n in zip(pos, shape))
                lo, hi = max(0, c[-1]), min(shape[-1], c[-1] + box[-1])
                flat = int(np.ravel_multi_index(idx, box[:-1])) if idx else 0
                addrs = _swizzle(sm_off + flat * inner + np.arange(0, inner), swz)
                within = slice((lo - c[-1]) * es, (hi - c[-1]) * es)
                g = array.start + sum(p * n for p, n in zip(pos, strides)) + lo * es
                there = slice(g, g + (hi - lo) * es)
                if b.metrics and inside and hi > lo:
                    b.rep.sectors["tensor copy.global"] += (there.stop - 1) // 32 - there.start // 32 + 1
                if to_shared:
                    b.look(one, i, "copy_writes", addrs, t, _mbar_address(b, i.args[2], t))
                    if inside and hi > lo:
                        if not b.dev.written[there].all():
                            b.fault("read of global memory that nothing has written", one, i)
                        b.look(one, i, "piece", there.start, there.stop, t, False)
                        row[within] = b.dev.heap[there]
                    if tf32:
                        row = _to_tf32(row.view(np.uint32)).view(np.uint8)
                    b.smem[addrs] = row
                    b.smem_init[addrs] = True
                elif inside and hi > lo:
                    b.look(one, i, "copy_reads", addrs[within], t)
                    b.look(one, i, "piece", there.start, there.stop, t, True)
                    b.dev.heap[there] = b.smem[addrs][within]
                    b.dev.written[there] = True
            nbytes = int(np.prod(box)) * es
            if to_shared:
                bar = i.args[2]
        else:
            to_shared = "shared" in s.split(".")[3]
            n = int(b.raw(i.args[2], 32)[t])
            d, g = (int(b.address(x)[t]) for x in i.args[:2])
            nbytes = n
            if to_shared:
                d = d - SHARED if d >= SHARED else d
                if d % 16 or n % 16:
                    b.fault(f"misaligned copy of {n} bytes to shared offset {d}: not in pieces of 16", one, i)
                b.check("global", np.full(b.T, g), 16, one, i, False)
                b.look(one, i, "copy_writes", np.arange(d, d + n), t, _mbar_address(b, i.args[3], t))
                b.look(one, i, "piece", g - GLOBAL, g - GLOBAL + n, t, False)
                b.smem[d : d + n] = b.dev.heap[g - GLOBAL : g - GLOBAL + n]
                b.smem_init[d : d + n] = True
                bar = i.args[3]
            else:
                g = g - SHARED if g >= SHARED else g
                b.look(one, i, "copy_reads", np.arange(g, g + n), t)
                b.look(one, i, "piece", d - GLOBAL, d - GLOBAL + n, t, True)
                b.dev.heap[d - GLOBAL : d - GLOBAL + n] = b.smem[g : g + n]
                b.dev.written[d - GLOBAL : d - GLOBAL + n] = True
        if to_shared:
            a = _mbar_address(b, bar, t)
            _mbar_of(b, a, t, one, i, by_copy=True)["tx"] -= nbytes
            _mbar_turn(b, a)
    return None


def _mbar_address(b, operand, t):
    a = int(b.address(operand)[t])
    return a - SHARED if a >= SHARED else a


def _mbar_of(b, a, t, act, i, by_copy=False):
    """The mbarrier at an address, for thread ``t`` or a copy that it has started."""
    if a not in b.mbar:
        raise PTXError(f"mbarrier at shared offset {a} was not initialised")
    b.look(act, i, "of_mbarrier", b.mbar[a]["made"], t, by_copy)
    return b.mbar[a]


def _mbar_turn(b, a):
    """The phase ends if all have arrived, threads and bytes; who waits for it then knows what they knew."""
    s = b.mbar[a]
    if s["pending"] == 0 and s["tx"] == 0:
        s["phase"] ^= 1
        s["pending"] = s["count"]
        if b.races:
            b.races.copies_arrived(a, s["told"])
            s["ended"] = s["told"].copy()


@op("mbarrier")
def _mbarrier(b, i, act, m):
    kind = i.parts[1]
    if kind not in ("try_wait", "test_wait"):
        b.in_vain = 0
    pred, token = None, None
    for t in np.flatnonzero(act):
        if kind == "init":
            n = int(b.raw(i.args[1], 32)[t])
            s = b.mbar[_mbar_address(b, i.args[0], t)] = {"count": n, "pending": n, "phase": 0, "tx": 0}
            s["made"] = (t, b.races.clock[t]) if b.races else None
            if b.races:
                s["told"], s["ended"] = (np.zeros_like(b.races.know[:, t]) for _ in range(2))
        elif kind == "inval":
            b.mbar.pop(_mbar_address(b, i.args[0], t), None)
        elif kind in ("arrive", "expect_tx"):
            k = [j for j, x in enumerate(i.args) if x.startswith("[")][0]
            a = _mbar_address(b, i.args[k], t)
            s = _mbar_of(b, a, t, act, i)
            if k == 1:  # the state returned: here, the phase that is waited for
                token = (i.args[0], np.zeros(b.T, np.uint64)) if token is None else token
                token[1][t] = s["phase"]
            rest = [int(b.raw(x, 32)[t]) for x in i.args[k + 1 :]]
            if "expect_tx" in i.parts:
                s["tx"] += rest[0]
            if kind == "arrive":
                s["pending"] -= rest[0] if rest and "expect_tx" not in i.parts else 1
                if b.races:
                    np.maximum(s["told"], b.races.told(t), out=s["told"])
                if s["pending"] < 0:
                    b.fault("more arrivals at an mbarrier than its count", act, i)
                _mbar_turn(b, a)
        elif kind in ("try_wait", "test_wait"):
            pred = np.zeros(b.T, bool) if pred is None else pred
            s = _mbar_of(b, _mbar_address(b, i.args[1], t), t, act, i)
            pred[t] = s["phase"] != (int(b.raw(i.args[2], 32 if "parity" in i.parts else 64)[t]) & 1)
            if pred[t] and b.races:
                b.races.learn(t, s["ended"])
        else:
            raise UnsupportedPTX(i.text)
    if pred is not None:
        b.put(i.args[0], pred, m)
        b.in_vain = 0 if pred.any() else b.in_vain + 1
        if b.in_vain > WAITS_IN_VAIN:
            b.fault("deadlock: an mbarrier's phase never ends", act, i)
    if token is not None:
        b.put(token[0], token[1], m)
    return None


# -- matrices
@op("ldmatrix", "stmatrix")
def _ldmatrix(b, i, act, m):
    store = i.parts[0] == "stmatrix"
    n = int([p for p in i.parts if re.fullmatch(r"x[124]", p)][0][1])
    trans = "trans" in i.parts
    regs, addr = (_vec(i.args[1]), b.address(i.args[0])) if store else (_vec(i.args[0]), b.address(i.args[1]))
    if addr[act].size and addr[act].min() >= SHARED:
        addr = addr - SHARED
    lane, warps = np.arange(32), b.whole_warps(act, i)
    # Of each warp as many eights of lanes as there are matrices have an address each, of 16 bytes.
    who = np.zeros(b.T, bool)
    who[(32 * warps[:, None] + np.arange(8 * n)).ravel()] = True
    b.check("shared", addr, 16, who, i, store)
    if b.metrics:
        for k in range(n):
            eight = who & (b.lane // 8 == k)
            b.count("stmatrix" if store else "ldmatrix", "shared", addr, 16, eight)
    rows = addr[who].reshape(len(warps), n, 8)
    at = rows[..., None] + np.arange(16)
    if not store and not b.smem_init[at].all():
        b.fault("ldmatrix reads shared memory that nothing has written", act, i)
    b.look(who, i, "shared", rows.ravel(), 16, b.tid_all[who], store)
    lanes = 32 * warps[:, None] + lane
    row, column = lane // 4, 2 * (lane % 4)
    if store:
        mats = np.zeros((len(warps), n, 8, 8), np.uint16)
        seen = mats.swapaxes(2, 3) if trans else mats
        for k, reg in enumerate(regs):
            word = b.raw(reg, 32)[lanes]
            seen[:, k, row, column], seen[:, k, row, column + 1] = word & 0xFFFF, word >> np.uint32(16)
        b.smem[at], b.smem_init[at] = mats.view(np.uint8), True
        return None
    mats = np.ascontiguousarray(b.smem[at]).view(np.uint16)
    if trans:
        mats = mats.swapaxes(2, 3)
    words = mats[:, :, row, column].astype(np.uint32)
    words |= mats[:, :, row, column + 1].astype(np.uint32) << np.uint32(16)
    for k, reg in enumerate(regs):
        out = np.zeros(b.T, np.uint32)
        out[lanes] = words[:, k]
        b.put(reg, out, m)
    return None


_G, _Q = np.arange(32) // 4, np.arange(32) % 4  # group of four lanes, lane in the group


def _frag16(regs, kind, rows, ks):
    """Registers of two 16-bit elements -> float matrix; rows/ks: index of each register's first element."""
    return [(r, k, v) for reg, (r, k) in zip(regs, zip(rows, ks)) for v in [_halves(reg, kind)]]


def _mma_bytes(b, i, act, m):
    """m16n8k32 of bytes, signed or not, with sums of int32 that wrap around."""
    kinds = {"u8": np.uint8, "s8": np.int8}
    a_kind, b_kind = (kinds[kind] for kind in i.parts[-3:-1])
    d, ra, rb, rc = (_vec(x) for x in i.args[:4])
    A_, B_, C_ = ([b.raw(x, 32) for x in v] for v in (ra, rb, rc))
    warps = b.whole_warps(act, i)
    lanes, count = 32 * warps[:, None] + np.arange(32), len(warps)
    a, bm, c = (np.zeros((count, *shape), np.int64) for shape in ((16, 32), (32, 8), (16, 8)))

    def bytes_of(reg, kind):
        return reg[lanes].view(kind).reshape(count, 32, 4)

    for e in range(4):
        for k, reg in enumerate(A_):
            a[:, _G + 8 * (k % 2), 4 * _Q + 16 * (k // 2) + e] = bytes_of(reg, a_kind)[..., e]
        for k, reg in enumerate(B_):
            bm[:, 4 * _Q + 16 * k + e, _G] = bytes_of(reg, b_kind)[..., e]
    for k, reg in enumerate(C_):
        c[:, _G + 8 * (k // 2), 2 * _Q + k % 2] = reg[lanes].view(np.int32)
    r = (a @ bm + c).astype(np.uint32)
    for k, reg in enumerate(d):
        out = np.zeros(b.T, np.uint32)
        out[lanes] = r[:, _G + 8 * (k // 2), 2 * _Q + k % 2]
        b.put(reg, out, m)
    return None


@op("mma")
def _mma(b, i, act, m):
    shape = [p for p in i.parts if re.fullmatch(r"m\d+n\d+k\d+", p)][0]
    M, N, K = map(int, re.findall(r"\d+", shape))
    d_ty, a_ty, b_ty, c_ty = i.parts[-4:]
    if (M, N, K) == (16, 8, 32) and {a_ty, b_ty} <= {"u8", "s8"} and d_ty == c_ty == "s32":
        return _mma_bytes(b, i, act, m)
    if (
        (M, N) != (16, 8)
        or a_ty != b_ty
        or a_ty not in ("bf16", "f16", "tf32")
        or "row" not in i.parts
        or "col" not in i.parts
    ):
        raise UnsupportedPTX(i.text)
    d, ra, rb, rc = (_vec(x) for x in i.args[:4])
    A_, B_, C_ = ([b.raw(x, 32) for x in v] for v in (ra, rb, rc))
    warps = b.whole_warps(act, i)
    lanes, count = 32 * warps[:, None] + np.arange(32), len(warps)
    a, bm, c = (np.zeros((count, *shape)) for shape in ((M, K), (K, N), (M, N)))
    if a_ty == "tf32":
        for k, reg in enumerate(A_):
            seen = (reg[lanes] & np.uint32(0xFFFFE000)).view(np.float32)
            a[:, _G + 8 * (k % 2), _Q + 4 * (k // 2)] = seen
        for k, reg in enumerate(B_):
            bm[:, _Q + 4 * k, _G] = (reg[lanes] & np.uint32(0xFFFFE000)).view(np.float32)
    else:
        for k, reg in enumerate(A_):
            for e, v in enumerate(_halves(reg[lanes], a_ty)):
                a[:, _G + 8 * (k % 2), 2 * _Q + 8 * (k // 2) + e] = v
        for k, reg in enumerate(B_):
            for e, v in enumerate(_halves(reg[lanes], b_ty)):
                bm[:, 2 * _Q + 8 * k + e, _G] = v
    if c_ty == "f32":
        for k, reg in enumerate(C_):
            c[:, _G + 8 * (k // 2), 2 * _Q + k % 2] = reg[lanes].view(np.float32)
    else:
        for k, reg in enumerate(C_):
            for e, v in enumerate(_halves(reg[lanes], "f16")):
                c[:, _G + 8 * k, 2 * _Q + e] = v
    r = (a @ bm + c).astype(np.float32)
    for k, reg in enumerate(d):
        out = np.zeros(b.T, np.uint32)
        if d_ty == "f32":
            out[lanes] = r[:, _G + 8 * (k // 2), 2 * _Q + k % 2].view(np.uint32)
        else:
            out[lanes] = _pack(r[:, _G + 8 * k, 2 * _Q], r[:, _G + 8 * k, 2 * _Q + 1], "f16")
        b.put(reg, out, m)
    return None


@cache
def _places(rows, K, size, mn_major, mode, lbo, sbo):
    """Where the numbers [rows, K] of a tile in shared memory are, from its start on, before any exchange."""
    r, k = np.meshgrid(np.arange(rows), np.arange(K), indexing="ij")
    per = 16 // size  # elements in a 16-byte chunk
    if not mn_major:
        if mode == 0:
            return (r // 8) * sbo + (k // per) * lbo + (r % 8) * 16 + (k % per) * size
        return (r // 8) * sbo + (r % 8) * mode + k * size
    if mode == 0:
        return (r // per) * sbo + (k // 8) * lbo + (k % 8) * 16 + (r % per) * size
    line = mode // size
    return (r // line) * lbo + (k // 8) * sbo + (k % 8) * mode + (r % line) * size


def _descriptor(b, desc, rows, K, kind, mn_major, i, act, first):
    """A shared-memory matrix descriptor -> float matrix [rows, K], read by the warpgroup of that first thread."""
    desc = int(desc)
    start, lbo, sbo = (desc & 0x3FFF) << 4, (desc >> 16 & 0x3FFF) << 4, (desc >> 32 & 0x3FFF) << 4
    mode = {0: 0, 1: 128, 2: 64, 3: 32}[desc >> 62 & 3]
    size = 2 if kind in ("bf16", "f16") else 4
    addr = _swizzle(start + _places(rows, K, size, mn_major, mode, lbo, sbo), mode)
    if (addr < 0).any() or (addr + size > b.smem_size).any():
        b.fault("wgmma descriptor reaches outside shared memory", act, i)
    bits, place = 8 * size, addr // size
    if not (_words(b.smem_init, bits)[place] == _ALL_WRITTEN[bits]).all():
        b.fault("wgmma reads shared memory that nothing has written", act, i)
    b.look(act, i, "products_read", addr.ravel(), first, b.products[first] + 1)
    raw = _words(b.smem, bits)[place]
    if size == 4:
        return (raw & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return (_bf16_to_f32(raw) if kind == "bf16" else raw.view(np.float16)).astype(np.float64)


@op("wgmma")
def _wgmma(b, i, act, m):
    if i.parts[1] == "commit_group":
        b.products[act] += 1
    if i.parts[1] == "wait_group":
        ended = b.products - int(i.args[0], 0)
        for register, group in list(b.unsummed.items()):
            group[act & (group <= ended)] = 0
            if not group.any():
                del b.unsummed[register]
        if b.races:
            b.races.products_ended(np.flatnonzero(act), ended[act])
    if i.parts[1] in ("fence", "commit_group", "wait_group"):
        return None
    shape = [p for p in i.parts if re.fullmatch(r"m64n\d+k\d+", p)][0]
    M, N, K = map(int, re.findall(r"\d+", shape))
    d_ty, a_ty, b_ty = i.parts[-3:]
    if d_ty != "f32" or a_ty not in ("bf16", "f16", "tf32"):
        raise UnsupportedPTX(i.text)
    d = _vec(i.args[0])
    from_regs = i.args[1].startswith("{")
    scale_d = (
        b.val(i.args[3], "pred")
        if i.args[3].startswith(("%", "!", "p"))
        else np.full(b.T, int(i.args[3], 0) != 0)
    )
    sa, sb = int(i.args[4]), int(i.args[5])
    ta = int(i.args[6]) if not from_regs and len(i.args) > 6 else 0
    tb = int(i.args[-1]) if len(i.args) > (6 if from_regs else 7) else 0
    out = [np.zeros(b.T, np.uint32) for _ in d]
    ws = b.whole_warps(act, i)
    for g in sorted({w // 4 for w in ws}):
        if not {4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3} <= set(ws):
            b.fault("wgmma reached by part of a warpgroup", act, i)
        t0 = g * 128
        if from_regs:
            a = np.zeros((64, K))
            for w in range(4):
                s = slice(t0 + 32 * w, t0 + 32 * w + 32)
                for k, x in enumerate(_vec(i.args[1])):
                    reg = b.raw(x, 32)[s]
                    if a_ty == "tf32":
                        a[16 * w + _G + 8 * (k % 2), _Q + 4 * (k // 2)] = (reg & np.uint32(0xFFFFE000)).view(
                            np.float32
                        )
                    else:
                        for e, v in enumerate(_halves(reg, a_ty)):
                            a[16 * w + _G + 8 * (k % 2), 2 * _Q + 8 * (k // 2) + e] = v
        else:
            a = _descriptor(b, b.raw(i.args[1], 64)[t0], 64, K, a_ty, ta, i, act, t0)
        bm = _descriptor(b, b.raw(i.args[2], 64)[t0], N, K, b_ty, tb, i, act, t0)
        r = (sa * a) @ (sb * bm).T
        t, k = np.arange(128), np.arange(len(d))[:, None]
        r = r[16 * (t // 32) + t % 32 // 4 + 8 * (k % 4 // 2), 8 * (k // 4) + 2 * (t % 4) + k % 2]
        group = slice(t0, t0 + 128)
        if scale_d[t0]:
            r = r + np.stack([b.raw(each, 32)[group] for each in d]).view(np.float32)
        for each, new in zip(out, r.astype(np.float32).view(np.uint32)):
            each[group] = new
    for reg, v in zip(d, out):
        b.put(reg, v, m)
        b.unsummed.setdefault(reg, np.zeros(b.T, np.int64))[act] = b.products[act] + 1
    return None


@op("setmaxnreg")
def _setmaxnreg(b, i, act, m):
    """Registers are not counted here, the assembler does that; nor are those that nobody has given away."""
    b.whole_warps(act, i)
    if not 24 <= int(i.args[0]) <= 256 or int(i.args[0]) % 8:
        b.fault("setmaxnreg: not a multiple of 8 from 24 to 256", act, i)


@op("mapa")
def _mapa(b, i, act, m):
    b.put(i.args[0], b.raw(i.args[1], _TYPE_BITS[i.parts[-1]]), m)
    return None


@op("call")
def _call(b, i, act, m):
    name = re.search(r"(cudaCGSynchronize\w*|cudaCGGetIntrinsicHandle|vprintf)", i.text)
    if not name:
        raise UnsupportedPTX(f"{i.text[:120]} (device functions must be inlined: forceinline=True)")
    if name.group(1) == "cudaCGSynchronize":
        b.wait[act] = -2
        return "bar"
    return None


# ---------------------------------------------------------------- launch
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
    """Run a kernel. ptx: text or a Program from parse(). grid, block: ints or tuples, x first. shared: dynamic bytes.

    burst: how many pieces of code warps at one place run before the others have their turn. With many, a warp that
    does not wait for the others where it should runs far ahead of them.

    cooperative: keep all blocks alive and switch between them (needed for grid barriers and for spinning on another
    block); by default only if the kernel calls cudaCGSynchronize. Returns a Report. Raises PTXError on a fault.
    """
    prog = _prepare(ptx, entry)
    grid, block = (tuple(np.atleast_1d(v).tolist()) for v in (grid, block))
    if len(args) != len(prog.params):
        raise ValueError(
            f"{prog.name} takes {len(prog.params)} parameters, {len(args)} given (numba arrays: use numba_args)"
        )
    params = {}
    for (name, n), a in zip(prog.params, args):
        raw = np.uint64(a.ptr).tobytes() if isinstance(a, DeviceArray) else np.asarray(a).tobytes()
        if len(raw) != n:
            raise ValueError(
                f"parameter {name[-12:]} has {n} bytes, {len(raw)} given: pass a numpy scalar of the right type"
            )
        params[name] = raw
    if cooperative is None:
        cooperative = any("cudaCGSynchronize" in x.text for x in prog.instrs)
    rep = Report()
    gx, gy, gz = (list(grid) + [1, 1])[:3]
    ids = [(x, y, z) for z in range(gz) for y in range(gy) for x in range(gx)]
    everywhere = Everywhere(len(dev.heap), len(ids)) if race else None
    make = lambda c: Block(prog, dev, c, grid, block, params, shared, rep, everywhere, metrics, burst)
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
            for k, blk in enumerate(blocks):
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
