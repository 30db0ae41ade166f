"""The table of kernels for the GPU in kernels/README.md: what the assembler and the interpreter count.

``python -m tests.ptx.table`` measures it and writes it to ``bench/results/cuda_code.json`` and to the page.
Nothing of it was measured on a GPU.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fastdigit.files import atomic_write
from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma

from .all_kernels import KERNELS
from .assembled import assemble
from .emulated import backend, emulated

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = PROJECT / "bench" / "results" / "cuda_code.json"
README = PROJECT / "kernels" / "README.md"
BEGIN, END = "<!-- table: cuda -->", "<!-- end of table -->"
CAPABILITIES = ((7, 5), (8, 0), (9, 0, "a"))
MULTIPLY = ("FFMA", "FFMA2", "HMMA", "HGMMA")
DEPTH = 64  # of the products whose traffic is counted: one tile of the output


def traffic():
    """For each product: bank conflicts for each access of shared memory, and the sectors of 32 bytes that it
    moves over those that its operands have. At a tile's size, so that no edge counts."""
    found = {}
    techniques = (
        (cuda_simt, np.float32),
        (cuda_mma, np.uint16),
        (cuda_mma, np.float32),
        (cuda_wgmma, np.uint16),
    )
    for technique, dtype in techniques:
        for tile in technique.TILES:
            for turned in ((False, False), (False, True), (True, False)):
                rows, columns = tile
                zeros = backend().zeros  # aligned as arrays of a GPU are
                a = zeros((DEPTH, rows) if turned[0] else (rows, DEPTH), dtype)
                b = zeros((columns, DEPTH) if turned[1] else (DEPTH, columns), dtype)
                c = zeros(tile, np.float32)
                with emulated(race=False, metrics=True) as emulator:
                    if technique is cuda_simt:
                        technique.multiply(a, b, c, turned=turned, tile=tile)
                    else:
                        technique.multiply(a, b, c=c, turned=turned, tile=tile)
                ((kernel, report),) = emulator.reports
                requests = sum(n for key, n in report.requests.items() if "shared" in key)
                ideal = (a.nbytes + b.nbytes + c.nbytes) / 32
                found[kernel.name] = {
                    "conflicts": sum(report.bank_conflicts.values()) / requests,
                    "sectors": sum(report.sectors.values()) / ideal,
                }
    return found


def measure():
    counted = traffic()
    rows = []
    for kernel in KERNELS:
        row = {
            "kernel": kernel.name,
            "threads": kernel.threads,
            "registers": {},
            **counted.get(kernel.name, {}),
        }
        for capability in CAPABILITIES:
            if not kernel.runs_on(capability):
                continue
            code = assemble(kernel.ptx(capability), capability)
            row["registers"][".".join(map(str, capability[:2]))] = code.registers
            row["shared"] = code.shared + kernel.shared
            row["blocks"] = code.blocks(capability, kernel.threads, kernel.shared)  # the last one stays: 9.0a
            row["multiplications"] = code.share(*MULTIPLY) if "matmul" in kernel.name else None
            row["spills"] = row.get("spills", 0) + code.spills + code.stack
        rows.append(row)
    tools = ("numba-cuda", "nvidia-cuda-nvcc")
    return {"tools": {name: version(name) for name in tools}, "kernels": rows}


def markdown(results):
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
        lines.append(
            f"| {row['kernel']} | {row['threads']} | {registers} | {row['shared']:,} B | {row['blocks']} "
            f"| {share} | {conflicts} | {sectors} |"
        )
    tools = ", ".join(f"{name} {number}" for name, number in results["tools"].items())
    return "\n".join([*lines, "", f"Compiled with {tools}; not run on a GPU."])


def in_page(text):
    """What stands between the marks of a page."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def main():
    results = measure()
    atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    head, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END, 1)
    atomic_write(README, f"{head}{BEGIN}\n{markdown(results)}\n{END}{tail}".encode())


if __name__ == "__main__":
    main()
