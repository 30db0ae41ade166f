"""From the text of PTX to a list of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .device import UNSIGNED, F, S, UnsupportedPTX


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


TYPE_BITS = {
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
SEEN_AS = {
    ty: (F if ty[0] == "f" else S)[bits] if ty[0] in "fs" else None
    for ty, bits in TYPE_BITS.items()
    if ty not in ("pred", "bf16", "f16x2", "bf16x2")
}
STORED_AS = {ty: UNSIGNED[TYPE_BITS[ty]] for ty in SEEN_AS}


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
    found = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(", text))
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
        params.append((q.group(2), TYPE_BITS[q.group(1)] // 8 * int(q.group(3) or 1)))
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
        prog.shared_size += TYPE_BITS[q.group(2)] // 8 * int(q.group(4) or 1)

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
                    prog.regs[rename(r.strip().split("<")[0])] = TYPE_BITS[q.group(1)]
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
        """A device function's body in place of its call, its registers, labels and parameters renamed."""
        results, params_text, body = function
        copies[0] += 1
        tag = f"c{copies[0]}_"
        names = [
            re.search(r"([\w$]+)\s*(?:\[\d*\])?$", p.strip()).group(1)
            for p in params_text.split(",")
            if p.strip()
        ]
        table = dict(zip(names, (outer(x) for x in args), strict=False))
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
