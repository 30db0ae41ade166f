"""Instructions of tensor cores: ldmatrix, stmatrix, mma, wgmma."""

import re
from functools import cache

import numpy as np

from .bits import ALL_WRITTEN, as_words, bf16_to_f32, halves, pack, swizzled
from .device import SHARED, UnsupportedPTX
from .instructions import listed, op


@op("ldmatrix", "stmatrix")
def _ldmatrix(b, i, act, m):
    store = i.parts[0] == "stmatrix"
    n = int(next(p for p in i.parts if re.fullmatch(r"x[124]", p))[1])
    trans = "trans" in i.parts
    regs, addr = (
        (listed(i.args[1]), b.address(i.args[0])) if store else (listed(i.args[0]), b.address(i.args[1]))
    )
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
        return
    mats = np.ascontiguousarray(b.smem[at]).view(np.uint16)
    if trans:
        mats = mats.swapaxes(2, 3)
    words = mats[:, :, row, column].astype(np.uint32)
    words |= mats[:, :, row, column + 1].astype(np.uint32) << np.uint32(16)
    for k, reg in enumerate(regs):
        out = np.zeros(b.T, np.uint32)
        out[lanes] = words[:, k]
        b.put(reg, out, m)


_G, _Q = np.arange(32) // 4, np.arange(32) % 4  # group of four lanes, lane in the group


def _frag16(regs, kind, rows, ks):
    """Registers of two 16-bit elements -> float matrix; rows/ks: index of each register's first element."""
    return [
        (r, k, v)
        for reg, (r, k) in zip(regs, zip(rows, ks, strict=False), strict=False)
        for v in [halves(reg, kind)]
    ]


def _mma_bytes(b, i, act, m):
    """m16n8k32 of bytes, signed or not, with sums of int32 that wrap around."""
    kinds = {"u8": np.uint8, "s8": np.int8}
    a_kind, b_kind = (kinds[kind] for kind in i.parts[-3:-1])
    d, ra, rb, rc = (listed(x) for x in i.args[:4])
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


@op("mma")
def _mma(b, i, act, m):
    shape = next(p for p in i.parts if re.fullmatch(r"m\d+n\d+k\d+", p))
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
    d, ra, rb, rc = (listed(x) for x in i.args[:4])
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
            for e, v in enumerate(halves(reg[lanes], a_ty)):
                a[:, _G + 8 * (k % 2), 2 * _Q + 8 * (k // 2) + e] = v
        for k, reg in enumerate(B_):
            for e, v in enumerate(halves(reg[lanes], b_ty)):
                bm[:, 2 * _Q + 8 * k + e, _G] = v
    if c_ty == "f32":
        for k, reg in enumerate(C_):
            c[:, _G + 8 * (k // 2), 2 * _Q + k % 2] = reg[lanes].view(np.float32)
    else:
        for k, reg in enumerate(C_):
            for e, v in enumerate(halves(reg[lanes], "f16")):
                c[:, _G + 8 * k, 2 * _Q + e] = v
    r = (a @ bm + c).astype(np.float32)
    for k, reg in enumerate(d):
        out = np.zeros(b.T, np.uint32)
        if d_ty == "f32":
            out[lanes] = r[:, _G + 8 * (k // 2), 2 * _Q + k % 2].view(np.uint32)
        else:
            out[lanes] = pack(r[:, _G + 8 * k, 2 * _Q], r[:, _G + 8 * k, 2 * _Q + 1], "f16")
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
    """A descriptor of shared memory -> float matrix [rows, K], read by the warpgroup of that first thread."""
    desc = int(desc)
    start, lbo, sbo = (desc & 0x3FFF) << 4, (desc >> 16 & 0x3FFF) << 4, (desc >> 32 & 0x3FFF) << 4
    mode = {0: 0, 1: 128, 2: 64, 3: 32}[desc >> 62 & 3]
    size = 2 if kind in ("bf16", "f16") else 4
    addr = swizzled(start + _places(rows, K, size, mn_major, mode, lbo, sbo), mode)
    if (addr < 0).any() or (addr + size > b.smem_size).any():
        b.fault("wgmma descriptor reaches outside shared memory", act, i)
    bits, place = 8 * size, addr // size
    if not (as_words(b.smem_init, bits)[place] == ALL_WRITTEN[bits]).all():
        b.fault("wgmma reads shared memory that nothing has written", act, i)
    b.look(act, i, "products_read", addr.ravel(), first, b.products[first] + 1)
    raw = as_words(b.smem, bits)[place]
    if size == 4:
        return (raw & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return (bf16_to_f32(raw) if kind == "bf16" else raw.view(np.float16)).astype(np.float64)


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
        return
    shape = next(p for p in i.parts if re.fullmatch(r"m64n\d+k\d+", p))
    _, N, K = map(int, re.findall(r"\d+", shape))
    d_ty, a_ty, b_ty = i.parts[-3:]
    if d_ty != "f32" or a_ty not in ("bf16", "f16", "tf32"):
        raise UnsupportedPTX(i.text)
    d = listed(i.args[0])
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
                for k, x in enumerate(listed(i.args[1])):
                    reg = b.raw(x, 32)[s]
                    if a_ty == "tf32":
                        a[16 * w + _G + 8 * (k % 2), _Q + 4 * (k // 2)] = (reg & np.uint32(0xFFFFE000)).view(
                            np.float32
                        )
                    else:
                        for e, v in enumerate(halves(reg, a_ty)):
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
        for each, new in zip(out, r.astype(np.float32).view(np.uint32), strict=False):
            each[group] = new
    for reg, v in zip(d, out, strict=False):
        b.put(reg, v, m)
        b.unsummed.setdefault(reg, np.zeros(b.T, np.int64))[act] = b.products[act] + 1
