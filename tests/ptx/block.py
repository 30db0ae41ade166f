"""A thread block: its registers and memory, what each access is checked for, and who waits for whom."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from .bits import ALL_WRITTEN, as_words, bf16_to_f32
from .device import BOOL, GLOBAL, LOCAL, POISON, SHARED, UNSIGNED, F, PTXError, S, U, UnsupportedPTX
from .program import SEEN_AS, STORED_AS, TYPE_BITS
from .races import Races

END = np.iinfo(np.int64).max
# What a register has before anything is written to it.
_UNSET = {UNSIGNED[bits]: U[bits](0xAAAAAAAAAAAAAAAA & ((1 << bits) - 1)) for bits in U} | {BOOL: np.False_}


@dataclass
class Report:
    instructions: Counter = field(default_factory=Counter)  # warp-level executions by opcode
    sectors: Counter = field(default_factory=Counter)  # 32-byte sectors moved by ld.global / st.global
    requests: Counter = field(default_factory=Counter)  # warp-level memory requests
    bank_conflicts: Counter = field(default_factory=Counter)  # extra passes over the shared-memory banks
    shared_bytes: int = 0
    barriers: int = 0


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
        x, y, z = ([*list(block), 1, 1])[:3]
        gx, gy, gz = ([*list(grid), 1, 1])[:3]
        cx, cy, cz = ctaid
        self.races = None
        if everywhere is not None:
            self.races = Races(self.T, base + 16, cx + gx * (cy + gy * cz), everywhere)

        def c32(v):
            return np.full(self.T, v, np.uint32)

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
        if v is not None and v.dtype is STORED_AS.get(ty):
            seen = SEEN_AS[ty]
            return v if seen is None else v.view(seen)
        b = TYPE_BITS[ty]
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
            return bf16_to_f32(r)
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
        if lo >= SHARED and hi < LOCAL:
            return "shared", addr - SHARED
        if lo >= LOCAL and hi < GLOBAL:
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
        elif space == "local" and ((a < 0) | (a + total > self.p.local_size)).any():
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
                self.look(act, ins, "anywhere" if space == "global" else "shared", start, nb, who, False)
            found = as_words(memory, bits)[start // nb]
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
        as_words(memory, bits)[start // nb] = value
        as_words(written, bits)[start // nb] = ALL_WRITTEN[bits]

    def memory(self, space):
        """(whether each byte has been written, the bytes)"""
        return (self.dev.written, self.dev.heap) if space == "global" else (self.smem_init, self.smem)

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
                    barriers = sorted(set(self.wait[~self.done].tolist()))
                    raise PTXError(
                        f"deadlock: threads wait at barriers {barriers} that the others never reach"
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
                self.fault(
                    f"{register} is used before wgmma.wait_group says that its sums are there", act, ins
                )

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
                    each = (
                        f"threads {self.tid_all[here & (self.pc == p)][0]}… before "
                        f"{self.p.instrs[int(p)].text[:60]}"
                        for p in np.unique(self.pc[here])
                    )
                    what = "threads of one block meet at different bar.sync instructions"
                    raise PTXError(f"{what}: {'; '.join(each)}")
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
