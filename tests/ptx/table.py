"""The tables of kernels for the GPU, and of steps made of them, in kernels/README.md: what the assembler and
the interpreter count.

``python -m tests.ptx.table`` counts anew and writes them to ``bench/results/cuda_code.json`` and to the page.
Nothing of it was measured on a GPU.
"""

import json
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

from fastdigit.files import atomic_write
from fastdigit.kernels.common.fours import AS_IT_IS
from fastdigit.kernels.dropout.cuda import DROPOUT, dropping
from fastdigit.kernels.optimizer.cuda import NUMBERS, UPDATE, updating

from . import steps
from .all_kernels import FORMS, KERNELS, TECHNIQUES
from .assembled import assemble
from .emulated import backend, emulated

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = PROJECT / "bench" / "results" / "cuda_code.json"
README = PROJECT / "kernels" / "README.md"
END = "<!-- end of table -->"
CAPABILITIES = ((7, 5), (8, 0), (9, 0, "a"))
MULTIPLY = ("FFMA", "FFMA2", "HMMA", "HGMMA")
DEPTH = 64  # of the products whose traffic is counted: one tile of the output


def _operands(kind, tile, turned):
    """a, b and c of zeros: one tile with DEPTH k, aligned as arrays of a GPU are."""
    zeros, (rows, columns) = backend().zeros, tile
    dtype = np.uint16 if kind == "bf16" else np.float32
    a = zeros((DEPTH, rows) if turned[0] else (rows, DEPTH), dtype)
    b = zeros((columns, DEPTH) if turned[1] else (DEPTH, columns), dtype)
    return a, b, zeros(tile, np.float32)


def _then(epilogue, c):
    """The epilogue of that name with numbers, and the bytes of what it moves besides writing c."""
    step = np.zeros(1, np.int64)
    if epilogue == DROPOUT:
        return dropping(0.5, (0, 0), step), 0
    if epilogue == UPDATE:
        state = [backend().zeros(c.shape, np.float32) for _ in range(2)]
        return updating(state, False, backend().zeros((1, NUMBERS), np.float32), step), 5 * c.nbytes
    return AS_IT_IS, 0


def traffic():
    """For each product: bank conflicts for each access of shared memory, and the sectors of 32 bytes that it
    moves over those that its operands have. At a tile's size, so that no edge counts."""
    found = {}
    for technique, kind in TECHNIQUES:
        for tile, (turned, epilogue) in product(technique.TILES, FORMS):
            a, b, c = _operands(kind, tile, turned)
            then, more = _then(epilogue, c)
            with emulated(race=False, metrics=True) as emulator:
                technique.multiply(a, b, c=c, turned=turned, tile=tile, then=then)
            ((kernel, report),) = emulator.reports
            requests = sum(n for key, n in report.requests.items() if "shared" in key)
            ideal = (a.nbytes + b.nbytes + c.nbytes + more) / 32
            found[kernel.name] = {
                "conflicts": sum(report.bank_conflicts.values()) / requests,
                "sectors": sum(report.sectors.values()) / ideal,
            }
    return found


def row_of(kernel, counted):
    """What the assembler makes of a kernel, with what was ``counted`` of it, for all capabilities."""
    row = {"kernel": kernel.name, "threads": kernel.threads, "registers": {}, **counted}
    for capability in CAPABILITIES:
        if not kernel.runs_on(capability):
            continue
        code = assemble(kernel, capability)
        row["registers"][".".join(map(str, capability[:2]))] = code.registers
        # The last one stays: 9.0a. Of a kernel that takes what there is, as many blocks as were meant.
        taken = kernel.shared is None
        row["shared"] = None if taken else code.shared + kernel.shared
        blocks = code.blocks(capability, kernel.threads, kernel.shared or 0)
        row["blocks"] = min(blocks, kernel.resident) if taken else blocks
        row["multiplications"] = code.share(*MULTIPLY) if "matmul" in kernel.name else None
        row["spills"] = row.get("spills", 0) + code.spills + code.stack
    return row


def measure():
    counted = traffic()
    rows = [row_of(kernel, counted.get(kernel.name, {})) for kernel in KERNELS]
    tools = ("numba-cuda", "nvidia-cuda-nvcc")
    return {"tools": {name: version(name) for name in tools}, "kernels": rows, "steps": steps.measure()}


def _kernels(results):
    lines = [
        "| kernel | threads | registers at 7.5, 8.0, 9.0a | shared memory | blocks resident at 9.0a "
        "| multiplications in the main loop | bank conflicts | sectors moved / ideal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["kernels"]:
        registers = ", ".join(str(row["registers"].get(c, "–")) for c in ("7.5", "8.0", "9.0"))
        share = "" if row["multiplications"] is None else f"{row['multiplications']:.0%}"
        conflicts = f"{row['conflicts']:.2f}" if "conflicts" in row else ""
        sectors = f"{row['sectors']:.2f}" if "sectors" in row else ""
        shared = "at launch, up to 227 KiB" if row["shared"] is None else f"{row['shared']:,} B"
        lines.append(
            f"| {row['kernel']} | {row['threads']} | {registers} | {shared} | {row['blocks']} "
            f"| {share} | {conflicts} | {sectors} |"
        )
    tools = ", ".join(f"{name} {number}" for name, number in results["tools"].items())
    return "\n".join([*lines, "", f"Compiled with {tools}; not run on a GPU."])


def markdown(results):
    """{mark in the page: table}"""
    return {"cuda": _kernels(results), "cuda steps": steps.markdown(results["steps"])}


def in_page(text, name):
    """(what stands before, in and behind the table of that name)"""
    begin = f"<!-- table: {name} -->"
    head, rest = text.split(begin)
    table, tail = rest.split(END, 1)
    return head + begin + "\n", table.strip(), "\n" + END + tail


def main():
    results = measure()
    atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    text = README.read_text(encoding="utf-8")
    for name, table in markdown(results).items():
        head, _, tail = in_page(text, name)
        text = head + table + tail
    atomic_write(README, text.encode())


if __name__ == "__main__":
    main()
