"""Instructions that copy while others go on, and what says that they are done: cp.async, bulk and tensor
copies, mbarriers."""

import re

import numpy as np

from .bits import swizzled, to_tf32
from .device import GLOBAL, POISON, SHARED, PTXError, UnsupportedPTX
from .instructions import op

WAITS_IN_VAIN = 10_000


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
        return
    if "commit_group" in s or "wait_group" in s or "prefetch" in s:
        return
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
                where = f"shared offset {sm} of {b.smem_size}"
                b.fault(
                    f"tensor copy at {where}: outside, or not at a multiple of 128",
                    one,
                    i,
                )
            for idx in np.ndindex(*box[:-1]):
                row = np.zeros(inner, np.uint8)
                pos = [c[k] + idx[k] for k in range(len(idx))]
                inside = all(0 <= p < n for p, n in zip(pos, shape, strict=False))
                lo, hi = max(0, c[-1]), min(shape[-1], c[-1] + box[-1])
                flat = int(np.ravel_multi_index(idx, box[:-1])) if idx else 0
                addrs = swizzled(sm_off + flat * inner + np.arange(0, inner), swz)
                within = slice((lo - c[-1]) * es, (hi - c[-1]) * es)
                g = array.start + sum(p * n for p, n in zip(pos, strides, strict=False)) + lo * es
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
                        row = to_tf32(row.view(np.uint32)).view(np.uint8)
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
            k = next(j for j, x in enumerate(i.args) if x.startswith("["))
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
