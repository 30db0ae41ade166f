"""What NVIDIA's assembler makes of a kernel: registers, shared memory, spills and machine code.

``ptxas`` and ``cuobjdump`` come from packages of PyPI and need no GPU.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from fastdigit.files import atomic_write

# Of a multiprocessor: registers, threads, blocks, bytes of shared memory (1 KiB more for each block
# from 8.0 on). CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
LIMITS = {
    (7, 5): (65536, 1024, 16, 64 * 1024, 0),
    (8, 0): (65536, 2048, 32, 164 * 1024, 1024),
    (9, 0): (65536, 2048, 32, 228 * 1024, 1024),
}


@dataclass(frozen=True)
class Assembled:
    """One kernel for one compute capability."""

    registers: int  # of a thread
    shared: int  # bytes of a block, without what is asked for at the launch
    stack: int  # bytes of local memory of a thread
    spills: int  # bytes stored and loaded
    said: str  # by the assembler
    binary: bytes = field(repr=False)

    @cached_property
    def lines(self):
        """((address, opcode as it is written, such as LDGSTS.E.BYPASS.128, operands), …) of the whole kernel.
        Takes longer than the assembler, so only who asks waits for it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "kernel.cubin")
            file.write_bytes(self.binary)
            code = subprocess.run(
                [_tool("cuobjdump"), "--dump-sass", str(file)], capture_output=True, text=True, check=True
            ).stdout
        lines = tuple((int(place, 16), opcode, rest) for place, opcode, rest in _LINE.findall(code))
        assert lines, "cuobjdump shows no instructions"
        return lines

    @cached_property
    def opcodes(self):
        """How many there are of each in the whole kernel, without modifiers."""
        return Counter(opcode.split(".")[0] for _, opcode, _ in self.lines)

    @cached_property
    def loop(self):
        """The same of the loop with most multiplications."""
        return Counter(opcode.split(".")[0] for _, opcode, _ in _main_loop(self.lines))

    def blocks(self, capability, threads, asked=0):
        """How many blocks a multiprocessor holds at a time, each with so many bytes of shared memory asked
        for at the launch."""
        registers, most_threads, most_blocks, shared, for_block = LIMITS[capability[:2]]
        warps = -(-threads // 32)
        by_registers = registers // (-(-self.registers * 32 // 256) * 256 * warps)
        used = self.shared + asked
        by_shared = shared // (used + for_block) if used else most_blocks
        return min(by_registers, most_threads // (32 * warps), most_blocks, by_shared)

    @property
    def modifiers(self):
        """Opcodes as they are written."""
        return {opcode for _, opcode, _ in self.lines}

    def share(self, *opcodes):
        """Of these among the instructions of the main loop."""
        return sum(self.loop[opcode] for opcode in opcodes) / max(1, self.loop.total())


def _tool(name):
    for folder in map(Path, sys.path):
        for found in sorted(folder.glob(f"nvidia/*/bin/{name}")):
            return str(found)
    raise FileNotFoundError(f"{name} is not installed: pip install nvidia-cuda-nvcc nvidia-cuda-cuobjdump")


def _number(pattern, text):
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


_LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.MULTILINE)
ON_TENSOR_CORES, MULTIPLY = ("HMMA", "HGMMA", "IMMA"), ("FFMA", "FFMA2")


def _main_loop(lines):
    """The instructions of the smallest loop with most multiplications, on tensor cores if there are such."""
    tensor_cores = any(opcode.split(".")[0] in ON_TENSOR_CORES for _, opcode, _ in lines)
    counted = ON_TENSOR_CORES if tensor_cores else MULTIPLY
    places = [place for place, _, _ in lines]
    best, most = [], 0
    for place, opcode, operands in lines:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target and int(target[1], 16) < place:
            body = [line for at, line in zip(places, lines, strict=True) if int(target[1], 16) <= at <= place]
            count = sum(line[1].split(".")[0] in counted for line in body)
            if count > most or (count == most and best and len(body) < len(best)):
                best, most = body, count
    return best


FOLDER = None  # where processes that test side by side leave their code for each other, if anywhere


@cache
def ptx_of(kernel, capability):
    """Its code, compiled once for all tests."""
    from fastdigit.kernels.common.cuda_cache import values_of

    values = values_of(kernel.function)
    if FOLDER is None or values is None:  # a test has made something of it
        return kernel.ptx(capability)
    about = kernel.name, str(kernel.signature), kernel.threads, kernel.resident, values, capability
    file = FOLDER / f"{hashlib.sha256(repr(about).encode()).hexdigest()}.ptx"
    if not file.exists():
        FOLDER.mkdir(exist_ok=True)
        atomic_write(file, kernel.ptx(capability).encode())
    return file.read_text(encoding="utf-8")


@cache
def assemble(kernel, capability):
    """The :class:`Assembled` of a kernel for a compute capability."""
    ptx = ptx_of(kernel, capability)
    architecture = "sm_" + "".join(map(str, capability))
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        said = subprocess.run(
            [_tool("ptxas"), "-v", f"-arch={architecture}", str(source), "-o", str(binary)],
            capture_output=True,
            text=True,
        )
        if said.returncode:
            raise AssertionError(f"ptxas: {said.stderr}")
        content = binary.read_bytes()
    return Assembled(
        registers=_number(r"Used (\d+) registers", said.stderr),
        shared=_number(r"(\d+) bytes smem", said.stderr),
        stack=_number(r"(\d+) bytes stack frame", said.stderr),
        spills=_number(r"(\d+) bytes spill stores", said.stderr)
        + _number(r"(\d+) bytes spill loads", said.stderr),
        said=said.stderr,
        binary=content,
    )
