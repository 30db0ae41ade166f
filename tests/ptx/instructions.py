"""What instructions do: arithmetic, memory, control, warps.

HANDLERS has a function of (block, instruction, threads that are at it, mask of what is written) for the
first part of each instruction's name. It returns None, or in a word what becomes of these threads ("bar",
"exit" …).
"""

import re
from functools import cache

import numpy as np

from .bits import f32_to_bf16, halves, pack
from .device import LOCAL, SHARED, F, S, U, UnsupportedPTX
from .program import SEEN_AS, TYPE_BITS

HANDLERS = {}


def op(*names):
    def deco(f):
        for n in names:
            HANDLERS[n] = f
        return f

    return deco


def listed(o):
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
    if ty not in SEEN_AS or set(parts[1:-1]) - {"lo", "rn", "ftz"}:
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
        (xl, xh), (yl, yh) = halves(b.raw(i.args[1], 32), k), halves(b.raw(i.args[2], 32), k)
        f = _BF16[o]
        b.put(i.args[0], pack(f(xl, yl), f(xh, yh), k), m)
        return
    if ty == "bf16":
        x, y = b.val(i.args[1], ty), b.val(i.args[2], ty)
        b.put(i.args[0], f32_to_bf16(_BF16[o](x, y)), m)
        return
    if o in _INT2:
        bits = TYPE_BITS[ty]
        b.put(i.args[0], _INT2[o](b.raw(i.args[1], bits), b.raw(i.args[2], bits)), m)
        return
    x, y = b.val(i.args[1], ty), b.val(i.args[2], ty)

    def calc():
        if ty[0] == "f":
            r = (_FLOAT_NAN if "NaN" in i.parts else _FLOAT)[o](x, y)
            return np.clip(r, 0, 1).astype(r.dtype) if "sat" in i.parts else r
        if o == "mul":
            bits = TYPE_BITS[ty]
            if "wide" in i.parts:
                w = (S if ty[0] == "s" else U)[bits * 2]
                return x.astype(w) * y.astype(w)
            if "hi" in i.parts:
                return (
                    np.array(
                        [(int(p) * int(q)) >> bits for p, q in zip(x, y, strict=False)], dtype=object
                    ).astype(x.dtype)
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
        v = [halves(b.raw(a, 32), k) for a in i.args[1:4]]
        b.put(i.args[0], pack(v[0][0] * v[1][0] + v[2][0], v[0][1] * v[1][1] + v[2][1], k), m)
        return
    if ty[0] == "f" or ty == "bf16":
        x, y, z = (b.val(a, ty) for a in i.args[1:4])
        r = (x.astype(np.float64) * y + z).astype(np.float32) if ty == "f32" else x * y + z
        b.put(i.args[0], f32_to_bf16(r) if ty == "bf16" else r, m)
        return
    bits = TYPE_BITS[ty]
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
        lo, hi = halves(b.raw(i.args[1], 32), k)
        f = {"neg": np.negative, "abs": np.abs, "ex2": np.exp2, "tanh": np.tanh}[o]
        b.put(i.args[0], pack(f(lo), f(hi), k), m)
        return
    if o in ("not", "popc", "clz", "brev"):
        bits = TYPE_BITS[ty]
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
    b.put(i.args[0], f32_to_bf16(r) if ty == "bf16" else r, m)


@op("bfind")
def _bfind(b, i, act, m):
    """The place of the highest bit that is set (of unsigned numbers), or how far it is from the top."""
    ty = i.parts[-1]
    if ty not in ("u32", "u64"):
        raise UnsupportedPTX(i.text)
    x = b.raw(i.args[1], TYPE_BITS[ty])
    top = TYPE_BITS[ty] - 1
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
    bits = TYPE_BITS[ty]
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
    bits = TYPE_BITS[ty]
    x, p, count = (
        b.raw(i.args[1], bits),
        b.raw(i.args[2], 32) & np.uint32(255),
        b.raw(i.args[3], 32) & np.uint32(255),
    )
    out = []
    for v, q, n in zip(x.tolist(), p.tolist(), count.tolist(), strict=True):
        n = min(n, bits - q) if q < bits else 0
        f = (v >> q) & ((1 << n) - 1) if n > 0 else 0
        if ty[0] == "s" and n > 0 and f >> (n - 1):
            f -= 1 << n
        out.append(f & ((1 << bits) - 1))
    b.put(i.args[0], np.array(out, U[bits]), m)


@op("bfi")
def _bfi(b, i, act, m):
    bits = TYPE_BITS[i.parts[-1]]
    x, y, p, count = (b.raw(a, bits if k < 2 else 32).tolist() for k, a in enumerate(i.args[1:5]))
    out = []
    for v, w, q, n in zip(x, y, p, count, strict=True):
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
    bits = TYPE_BITS[i.parts[-1]]
    b.put(i.args[0], np.where(b.val(i.args[3], "pred"), b.raw(i.args[1], bits), b.raw(i.args[2], bits)), m)


@op("mov")
def _mov(b, i, act, m):
    ty, (d, s) = i.parts[-1], i.args
    if ty == "pred":
        b.put(d, b.val(s, ty), m)
        return
    bits = TYPE_BITS[ty]
    if s.startswith("{"):
        v = listed(s)
        each = bits // len(v)
        r = np.zeros(b.T, U[bits])
        for k, x in enumerate(v):
            r |= b.raw(x, each).astype(U[bits]) << U[bits](each * k)
        b.put(d, r, m)
    elif d.startswith("{"):
        v = listed(d)
        each = bits // len(v)
        r = b.raw(s, bits)
        for k, x in enumerate(v):
            b.put(x, (r >> U[bits](each * k)).astype(U[each]), m)
    else:
        b.put(d, b.raw(s, bits), m)


@op("cvta")
def _cvta(b, i, act, m):
    bits = TYPE_BITS[i.parts[-1]]
    x = b.raw(i.args[1], 64)
    win = {"global": 0, "shared": SHARED, "local": LOCAL, "param": 0, "const": 0}[
        next(p for p in i.parts if p.split("@")[0] in ("global", "shared", "local", "param", "const")).split(
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
        b.put(i.args[0], pack(lo.astype(np.float32), hi.astype(np.float32), to[:-2]), m)
        return
    if to == "tf32":
        u = b.raw(i.args[1], 32)
        finite = (u & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
        b.put(i.args[0], np.where(finite, u + np.uint32(0x1000), u) & np.uint32(0xFFFFE000), m)
        return
    x = b.val(i.args[1], fr)

    def calc():
        if to == "bf16":
            return f32_to_bf16(x.astype(np.float32))
        tf, ff = to[0] == "f", fr[0] == "f" or fr == "bf16"
        bits = TYPE_BITS[to]
        if tf:
            r = x
            if ff and mods and mods[0] in ("rni", "rzi", "rmi", "rpi"):
                r = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mods[0]](x)
            r = r.astype(F[bits])
            return np.clip(r, 0, 1).astype(F[bits]) if "sat" in mods else r
        if ff:
            r = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[
                next(q for q in mods if q in ("rni", "rzi", "rmi", "rpi"))
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
    bits = TYPE_BITS[ty]
    dst = listed(i.args[0])
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
        for d, v in zip(dst, b.constants[key], strict=False):
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
    for d, v in zip(dst, vals, strict=False):
        want = b.bits_of(d)
        if want > bits:
            v = v.view(S[bits]).astype(S[want]) if ty[0] == "s" else v.astype(U[want])
        b.put(d, v, m)


@op("st")
def _st(b, i, act, m):
    bits = TYPE_BITS[i.parts[-1]]
    src = listed(i.args[1])
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


_ATOMIC = {
    "add": lambda old, x, y: old + x,
    "min": lambda old, x, y: min(old, x),
    "max": lambda old, x, y: max(old, x),
    "and": lambda old, x, y: old & x,
    "or": lambda old, x, y: old | x,
    "xor": lambda old, x, y: old ^ x,
    "exch": lambda old, x, y: x,
    "cas": lambda old, x, y: y if old == x else old,
    "inc": lambda old, x, y: type(x)(0) if old >= x else old + type(x)(1),
    "dec": lambda old, x, y: x if old == 0 or old > x else old - type(x)(1),
}


@op("atom", "red")
def _atom(b, i, act, m):
    ty = i.parts[-1]
    bits = TYPE_BITS[ty]
    args = i.args if i.parts[0] == "atom" else ["_", *i.args]
    what = next(p for p in i.parts if p in _ATOMIC)
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
        new = _ATOMIC[what](old, x[t], y[t])
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
        r[k] = np.uint32(sum(1 << int(lane) for lane in b.lane[k]))
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
    """Every lane that a warp-collective instruction names must take part in it, and so must the one that
    names."""
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
            np.uint32(sum(1 << int(lane) for lane in b.lane[k & p]))
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


@op("setmaxnreg")
def _setmaxnreg(b, i, act, m):
    """Registers are not counted here, the assembler does that; nor are those that nobody has given away."""
    b.whole_warps(act, i)
    if not 24 <= int(i.args[0]) <= 256 or int(i.args[0]) % 8:
        b.fault("setmaxnreg: not a multiple of 8 from 24 to 256", act, i)


@op("mapa")
def _mapa(b, i, act, m):
    b.put(i.args[0], b.raw(i.args[1], TYPE_BITS[i.parts[-1]]), m)


@op("call")
def _call(b, i, act, m):
    name = re.search(r"(cudaCGSynchronize\w*|cudaCGGetIntrinsicHandle|vprintf)", i.text)
    if not name:
        raise UnsupportedPTX(f"{i.text[:120]} (device functions must be inlined: forceinline=True)")
    if name.group(1) == "cudaCGSynchronize":
        b.wait[act] = -2
        return "bar"
    return None
