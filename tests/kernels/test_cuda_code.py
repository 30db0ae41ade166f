"""What NVIDIA's assembler makes of every kernel for the GPU: no number leaves the registers, what is meant
to be resident fits, and the instructions are those that the kernel was written for."""

import json
import re

import pytest

from fastdigit.kernels.matmul import cuda_wgmma

from ..ptx import steps, table
from ..ptx.all_kernels import KERNELS
from ..ptx.assembled import LIMITS, assemble

CAPABILITIES = ((7, 5), (8, 0), (9, 0, "a"))
COMPILED = [
    pytest.param(kernel, capability, id=f"{kernel.name}, {'.'.join(map(str, capability))}")
    for kernel in KERNELS
    for capability in CAPABILITIES
    if kernel.runs_on(capability)
]


@pytest.mark.parametrize(("kernel", "capability"), COMPILED)
def test_registers_and_memory(kernel, capability):
    code = assemble(kernel, capability)
    assert code.spills == 0
    assert code.stack == 0, "numbers in local memory"
    most = LIMITS[capability[:2]][1] // kernel.threads  # 7.5 holds fewer threads than the others
    shared = kernel.shared or 0
    shared_fits = LIMITS[capability[:2]][3] // max(1, code.shared + shared)
    if capability >= (9, 0) or not kernel.runs_on((9, 0, "a")):
        assert shared_fits >= kernel.resident, "shared memory for fewer blocks than are meant to be resident"
    wanted = min(kernel.resident, most, shared_fits)
    assert code.blocks(capability, kernel.threads, shared) >= wanted >= 1


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_products_of_float32_multiply(capability):
    for kernel in KERNELS:
        if kernel.name.startswith("matmul_simt"):
            code = assemble(kernel, capability)
            # The code for the edges is in the loop, too, and hardly ever runs.
            large = kernel.threads == 256
            assert code.share("FFMA", "FFMA2") > (0.75 if large else 0.65), (kernel.name, code.loop)
            assert any(opcode.startswith("LDS") and opcode.endswith("128") for opcode in code.modifiers)


@pytest.mark.parametrize("capability", CAPABILITIES[1:], ids=str)
def test_products_use_tensor_cores_and_asynchronous_copies(capability):
    for kernel in KERNELS:
        if kernel.name.startswith("matmul_mma"):
            code = assemble(kernel, capability)
            assert code.opcodes["HMMA"] > 0
            assert code.opcodes["LDSM"] > 0 or "tf32" in kernel.name
            assert any(opcode.startswith("LDGSTS") for opcode in code.modifiers)
            # An HMMA keeps a tensor core busy for 8 cycles at 8.0, a warp issues one instruction a cycle:
            # what a stage of a large tile takes, copies and all, is to be less than that. Each operand in
            # TF32 is rounded by two instructions.
            large, tf32 = code.shared > 40_000, "tf32" in kernel.name
            least = (0.16 if tf32 else 0.3) if large else (0.06 if tf32 else 0.08)
            assert code.share("HMMA") > least, (kernel.name, code.loop)
            assert code.loop["HMMA"] % (64 if large else 16) == 0, "whole stages"


def test_products_for_hopper_use_what_it_has():
    for kernel in KERNELS:
        if kernel.name.startswith("matmul_wgmma"):
            code = assemble(kernel, (9, 0, "a"))
            assert code.loop["HGMMA"] == 4, (kernel.name, code.loop)  # of 32 bytes of k each
            assert code.opcodes["UTMALDG"] >= 2
            assert code.opcodes["SYNCS"] > 0  # barriers that count
            assert code.opcodes["USETMAXREG"] == 2  # from who copies to who computes: as many as there are
            copies, computes = cuda_wgmma.REGISTERS
            assert copies + cuda_wgmma.GROUPS * computes <= (1 + cuda_wgmma.GROUPS) * code.registers
            # It would wait for each multiplication where it finds that registers are moved meanwhile.
            assert "serializ" not in code.said
            assert "(C7" not in code.said  # nor adds waits, nor ignores the change of registers


def test_updates_ask_for_several_fours_before_they_finish_one():
    """Of parameters and two states; and, on Hopper, memory is asked when a tile begins."""
    for kernel in KERNELS:
        if re.match(r"matmul_(mma|wgmma) .*, update", kernel.name):
            code = assemble(kernel, (9, 0, "a"))
            opcodes = [opcode for _, opcode, _ in code.lines]
            before = opcodes[: opcodes.index("STG.E.128")]
            at_once = 2 if "256" in kernel.name else 4
            assert sum(opcode == "LDG.E.128" for opcode in before) >= 3 * at_once, kernel.name
            assert opcodes.count("UBLKPF.L2") == 3 * ("wgmma" in kernel.name), kernel.name


def test_nothing_touches_sums_while_tensor_cores_add_to_them():
    """From the first product of a tile until the wait for the last, also while the next stage is awaited."""
    for kernel in KERNELS:
        if kernel.name.startswith("matmul_wgmma"):
            lines = assemble(kernel, (9, 0, "a")).lines
            products = [operands for _, opcode, operands in lines if opcode.startswith("HGMMA")]
            # "HGMMA.64x256x16.F32.BF16 R24, …", of which the opcode ends where small letters begin.
            ((columns, first),) = {
                re.match(r"x(\d+)x(?:16|8)\S* R(\d+)", operands).groups() for operands in products
            }
            sums = set(range(int(first), int(first) + int(columns) // 2))
            waits = [i for i, (_, opcode, _) in enumerate(lines) if opcode == "WARPGROUP.DEPBAR.LE"]
            assert [lines[i][2].split()[1] for i in waits] == ["0x1", "0x0"], "in the loop, and behind it"
            back = [operands for _, opcode, operands in lines[slice(*waits)] if opcode == "BRA"]
            start = min(int(re.search(r"0x([0-9a-f]+)", operands)[1], 16) for operands in back)
            during = [line for line in lines[: waits[1]] if line[0] >= start]
            assert sum(opcode.startswith("HGMMA") for _, opcode, _ in during) == 4
            # What describes operands stays in the warp's registers, but for the number of their stage.
            assert sum(opcode == "R2UR" for _, opcode, _ in during) == 1, kernel.name
            for _, opcode, operands in during:
                named = set(map(int, re.findall(r"\bR(\d+)", operands)))
                assert not named & sums or opcode.startswith("HGMMA"), (kernel.name, opcode, operands)


@pytest.mark.parametrize("capability", CAPABILITIES[1:], ids=str)
def test_the_persistent_kernel_copies_while_it_computes(capability):
    (kernel,) = (kernel for kernel in KERNELS if kernel.name == "epoch, persistent")
    code = assemble(kernel, capability)
    assert any(opcode.startswith("LDGSTS") for opcode in code.modifiers)
    assert any(opcode.startswith("LDS") and opcode.endswith("128") for opcode in code.modifiers)
    assert code.opcodes["IMMA"] > 0


# A row's index, and which step it is, are read by each of its warps. A warp has the logits of two rows, and
# so two of the labels, losses and places of a sector that holds eight or four. Caches have all of that.
ASKED_FOR_AGAIN = {
    "gather uint8": 1.2,
    "gather float32": 1.13,
    "softmax_xent": 1.3,
    "log_odds": 1.3,
    "step: images of uint8 to float32": 1.4,
    "step: images of uint8 to bfloat16": 1.65,
    "step: loss, gradient in float32": 1.65,
    "step: loss, gradient in bfloat16": 1.85,
}
# Where gradients become digits, and at a batch's end.
CONFLICTS = {"epoch, persistent": 0.02}


def test_what_kernels_move():
    """Where no edge counts: no access of shared memory waits for another's bank, nothing is moved that is not
    an operand."""
    found = table.traffic()
    assert sum(name.startswith("matmul") for name in found) == 45
    assert len(found) == 71
    for name, counted in found.items():
        assert counted["conflicts"] <= CONFLICTS.get(name, 0), name
        if "sectors" in counted:
            assert 0.99 < counted["sectors"] <= ASKED_FOR_AGAIN.get(name, 1.05), name


@pytest.mark.parametrize("setting", steps.SETTINGS[1:3], ids=["float32, dropout", "bf16"])
def test_what_a_step_takes(setting):
    precision, _, dropout = setting
    # Images, loss, counting on; for each layer forward, to weights and biases, and to the input but for one.
    layers = steps.NETWORK.layers
    assert steps.launches(*setting) == 3 + 3 * len(layers) - 1
    saved = 8 * sum(layer.inputs * layer.outputs for layer in layers)  # gradients written and read
    if dropout:
        size = 2 if precision == "bf16" else 4
        saved += 2 * size * sum(layer.batch * layer.outputs for layer in layers[:-1])
    alone, fused = (steps.bytes_moved(*setting, in_epilogues=how) for how in (False, True))
    assert alone - fused == saved


def test_what_was_counted_is_of_this_code():
    results = json.loads(table.RESULTS.read_text())
    tools = {name: table.version(name) for name in results["tools"]}
    if tools != results["tools"]:
        pytest.skip(f"counted with {results['tools']}, here are {tools}: registers may differ")
    stored = {row["kernel"]: row for row in results["kernels"]}
    for kernel in KERNELS:
        row = json.loads(json.dumps(table.row_of(kernel, {})))
        assert row == {name: stored[kernel.name][name] for name in row}


def test_the_page_shows_what_was_counted():
    results = json.loads(table.RESULTS.read_text())
    text = table.README.read_text(encoding="utf-8")
    for name, shown in table.markdown(results).items():
        assert table.in_page(text, name)[1] == shown
    assert {row["kernel"] for row in results["kernels"]} == {kernel.name for kernel in KERNELS}
    assert all(row["spills"] == 0 for row in results["kernels"])
