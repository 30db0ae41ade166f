"""The tables of kernels for the GPU, and of steps made of them, in kernels/README.md: what the assembler and
the interpreter count.

``python -m tests.ptx.table`` counts anew and writes them to ``bench/results/cuda_code.json`` and to the page.
Nothing of it was measured on a GPU.
"""

import json
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

import fastdigit as fd
from fastdigit.files import atomic_write
from fastdigit.kernels.common.cuda import Limits
from fastdigit.kernels.common.fours import AS_IT_IS
from fastdigit.kernels.dropout.cuda import DROPOUT, dropping
from fastdigit.kernels.epoch.cuda_steps import POSITION
from fastdigit.kernels.matmul import cuda_mma, cuda_wgmma
from fastdigit.kernels.matmul.cuda import sum_columns
from fastdigit.kernels.matmul.cuda_epilogue import BIAS, MASK, RELU
from fastdigit.kernels.optimizer.cuda import CHUNK, NUMBERS, updating
from fastdigit.kernels.relu import cuda as relu
from fastdigit.kernels.softmax_xent.cuda import THREADS

from . import steps
from .all_kernels import ADAM, CLASSES_OF_FEW, FORMS, KERNELS, TECHNIQUES
from .assembled import assemble
from .emulated import backend, emulated

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = PROJECT / "bench" / "results" / "cuda_code.json"
README = PROJECT / "kernels" / "README.md"
END = "<!-- end of table -->"
CAPABILITIES = ((7, 5), (8, 0), (9, 0, "a"))
MULTIPLY = ("FFMA", "FFMA2", "HMMA", "HGMMA")
AT_ONCE = {cuda_mma: 32, cuda_wgmma: 16}  # rows of sums that a warp has in shared memory at a time
DEPTH = 64  # of the products whose traffic is counted: one tile of the output
ROWS, COLUMNS, CLASSES = 64, 256, 16  # of what other operations work on


def _operands(technique, kind, tile, form):
    """a, b and what multiply takes by name, of zeros, and the bytes of all: one tile with DEPTH k, aligned as
    arrays of a GPU are."""
    zeros, (rows, columns), turned = backend().zeros, tile, form.turned
    dtype = np.uint16 if kind == "bf16" else np.float32
    a = zeros((DEPTH, rows) if turned[0] else (rows, DEPTH), dtype)
    b = zeros((columns, DEPTH) if turned[1] else (DEPTH, columns), dtype)
    outputs, dtypes = form.outputs if kind == "bf16" else ("c",), {"c": np.float32, "half": np.uint16}
    named = {name: zeros(tile, dtypes[name]) for name in outputs}
    if form.changes & MASK:
        named["y_below"] = zeros(tile, dtype)
    size = sum(array.nbytes for array in (a, b, *named.values()))
    if kind != "float32":  # whose kernels are told what becomes of an output at the launch
        named["relu"] = bool(form.changes & RELU)
        if form.changes & BIAS:
            named["bias"] = zeros((columns,), np.float32)
            # Each warp, or each part of its rows, reads it, from caches: it has registers for no more.
            size += named["bias"].nbytes * rows // AT_ONCE[technique]
    return a, b, named, size


def _then(epilogue, c):
    """The epilogue of that name with numbers, and the bytes of what it moves besides writing c."""
    step = np.zeros(1, np.int64)
    if epilogue == DROPOUT:
        return dropping(0.5, (0, 0), step), 0
    if epilogue == ADAM:
        state = [backend().zeros(c.shape, np.float32) for _ in range(2)]
        return updating(state, False, backend().zeros((1, NUMBERS), np.float32), step), 5 * c.nbytes
    return AS_IT_IS, 0


def _counted(report, ideal):
    """Bank conflicts for each access of shared memory, and the sectors of 32 bytes that are asked for over
    those of ``ideal`` bytes."""
    accesses = sum(count for kind, count in report.requests.items() if "shared" in kind)
    return {
        "conflicts": sum(report.bank_conflicts.values()) / max(1, accesses),
        "sectors": sum(report.sectors.values()) / (ideal / 32),
    }


def _operations():
    """(what launches kernels of a training, {kernel: bytes that it has to read and write}), where no
    edge counts. Everything that is too long is shortened."""
    side, zeros, count = backend(), backend().zeros, ROWS * COLUMNS
    x, y, dy, w, g = (zeros((ROWS, COLUMNS), np.float32) for _ in range(5))
    w[:], g[:] = 1, 1
    logits, dz = (zeros((ROWS, CLASSES), np.float32) for _ in range(2))
    images, correct = zeros((ROWS, COLUMNS), np.uint8), zeros((ROWS,), np.uint8)
    labels, of_batch = (zeros((ROWS,), np.int32) for _ in range(2))
    loss, sums = zeros((ROWS,), np.float32), zeros((COLUMNS,), np.float32)
    order, all_x, chunks = zeros((ROWS,), np.int64), 4 * count, 12 * -(-count // CHUNK)
    order[:] = np.arange(ROWS)
    every_loss = 2 * logits.nbytes + 9 * ROWS
    yield partial(relu.relu, x, y), {"relu": 2 * all_x}
    yield partial(relu.relu_grad, w, dy, y), {"relu_grad": 3 * all_x}
    yield partial(side.dropout, x, 0.5, (0, 0), 0), {"dropout": 2 * all_x}
    yield partial(side.gather, images, order, 0, x), {"gather uint8": count + all_x + 8 * ROWS}
    yield partial(side.gather, y, order, 0, x), {"gather float32": 2 * all_x + 8 * ROWS}
    yield partial(side.gather_values, labels, order, 0, of_batch), {"gather_values int32": 16 * ROWS}
    yield partial(sum_columns, dy, sums), {"column sums": all_x + sums.nbytes}
    state = [array.reshape(-1) for array in (x, y, dy, w)]
    yield partial(side.adam, *state, 1, 0.1, 0.9, 0.9, 1e-8, 0.0, False), {"update (Adam)": 7 * all_x}
    clipped = {"largest": all_x, "squares": all_x + chunks, "scale": 2 * all_x + chunks}
    clipped = {f"clip_norm, {kernel}": size for kernel, size in clipped.items()}
    yield partial(side.clip_norm, g.reshape(-1), 1e-3), clipped
    yield partial(side.max_norm, w, 1e-3), {"max_norm": 3 * all_x}
    rounded = zeros((ROWS, COLUMNS), np.uint16)
    yield partial(cuda_mma.to_bfloat16, x, rounded), {"to_bfloat16": all_x + rounded.nbytes}
    yield partial(side.add_noise, x, order, 0, 0.1, (0, 0), 0), {"add_noise": 2 * all_x + 8 * ROWS}
    yield partial(side.ascend, x, dy, w, 0.1, 0.1, "linf"), {"ascend, linf": 4 * all_x}
    yield partial(side.log_odds, logits, labels, loss, correct, dz), {"log_odds": every_loss}
    yield partial(side.softmax, logits, dz), {"softmax": 2 * logits.nbytes}
    apart = zeros((ROWS, 2 * CLASSES), np.float32)[:, :CLASSES]
    yield partial(side.softmax_xent, apart, labels, None, loss, correct, dz), {"softmax_xent": every_loss}
    for classes in CLASSES_OF_FEW:
        logits, dz = (zeros((THREADS, classes), np.float32) for _ in range(2))
        loss, labels = zeros((THREADS,), np.float32), zeros((THREADS,), np.int32)
        arrays = logits, labels, None, loss, zeros((THREADS,), np.uint8), dz
        moved = 2 * logits.nbytes + 9 * THREADS
        yield partial(side.softmax_xent, *arrays), {f"softmax_xent, {classes} classes": moved}


def _trainings():
    """{kernel: what is counted} of those that are launched in whole trainings alone."""
    random, found = np.random.default_rng(0), {}
    images = random.integers(0, 256, (ROWS, 16, COLUMNS // 16)).astype(np.uint8)
    labels, all_x, logits = np.arange(ROWS) % CLASSES, ROWS * COLUMNS, ROWS * CLASSES
    of_batch = 8 * ROWS + 8 * POSITION  # where each image is, and which step it is
    losses = 4 * logits + (4 + 4 + 1) * ROWS + of_batch
    ideal = {
        "step: images of uint8 to float32": 5 * all_x + of_batch,
        "step: images of uint8 to bfloat16": 3 * all_x + of_batch,
        "step: loss, gradient in float32": losses + 4 * logits,
        "step: loss, gradient in bfloat16": losses + 2 * logits,
    }
    for hidden, precision in ((32, "float32"), (32, "bf16"), (COLUMNS, "float32")):
        limits = Limits((8, 0), 4 if hidden == 32 else COLUMNS // 16, 200_000)
        net = fd.Network([COLUMNS, hidden, CLASSES], backend=backend(limits), precision=precision, seed=0)
        how = {"input_dropout": 1e-9} if hidden == 32 else {}  # which the persistent kernel does not take
        net.input_dropout = how.get("input_dropout", 0.0)
        with emulated(race=False, metrics=True) as emulator:
            fd.fit(net, (images, labels), epochs=1, batch_size=ROWS)
        for kernel, report in emulator.reports:
            if kernel.name in ideal:
                found[kernel.name] = _counted(report, ideal[kernel.name])
            elif kernel.name == "epoch, persistent":
                found[kernel.name] = {"conflicts": _counted(report, 1)["conflicts"]}
    return found


def traffic():
    """For each kernel that multiplies, and others of a training, what is :func:`_counted`. Of products at a
    tile's size, so that no edge counts."""
    found = _trainings()
    for operation, ideal in _operations():
        with emulated(race=False, metrics=True) as emulator:
            operation()
        assert {kernel.name for kernel, _ in emulator.reports} == set(ideal)
        found |= {kernel.name: _counted(report, ideal[kernel.name]) for kernel, report in emulator.reports}
    for technique, kind in TECHNIQUES:
        for tile, form in product(technique.TILES, FORMS):
            a, b, named, ideal = _operands(technique, kind, tile, form)
            then, more = _then(form.epilogue, named.get("c"))
            with emulated(race=False, metrics=True) as emulator:
                technique.multiply(a, b, turned=form.turned, tile=tile, then=then, **named)
            ((kernel, report),) = emulator.reports
            found[kernel.name] = _counted(report, ideal + more)
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
