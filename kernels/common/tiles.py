"""Tile shapes of the CPU micro-kernels, chosen from the processor that code is compiled for."""

from dataclasses import dataclass

from llvmlite.binding import llvm_version_info
from numba.core import config
from numba.core.codegen import get_host_cpu_features


@dataclass(frozen=True)
class Tile:
    """A micro-kernel's piece of the output: ``rows`` × (``vectors`` · ``lanes``) float32 numbers.

    All of them stay in vector registers, together with one row of the right-hand operand and one
    broadcast number of the left-hand one: rows · vectors + vectors + 1 registers.
    """

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self):
        return self.vectors * self.lanes

    @property
    def masked(self):
        """Whether loads of part of a vector are as quick as whole ones (AVX-512 has mask registers)."""
        return self.lanes == 16


AVX512 = Tile(rows=14, vectors=2, lanes=16)  # 31 of 32 registers
AVX2 = Tile(rows=6, vectors=2, lanes=8)  # 15 of 16
NEON = Tile(rows=8, vectors=3, lanes=4)  # 28 of 32
SSE = Tile(rows=6, vectors=2, lanes=4)  # 15 of 16


def features():
    """Of the processor that Numba compiles for: the host, or what NUMBA_CPU_FEATURES says."""
    return set((config.CPU_FEATURES or get_host_cpu_features()).split(","))


def can_compress():
    """Whether the processor packs the chosen elements of a vector in one instruction."""
    return "+avx512vbmi2" in features() and llvm_version_info[0] >= 19  # LLVM's name for it is young


def has_bfloat16():
    """Whether the processor multiplies pairs of bfloat16 numbers (AVX-512 BF16)."""
    return {"+avx512f", "+avx512bf16"} <= features()


def has_amx():
    """Whether it is one of Intel's processors with tile registers, which some choices are measured for.

    Whether these may be used is another question: :func:`~.amx.has_tiles`.
    """
    return "+amx-tile" in features()


def host_tile():
    """The tile for the processor that Numba compiles for."""
    offered = features()
    if "+avx512f" in offered:
        return AVX512
    if {"+avx2", "+fma"} <= offered:
        return AVX2
    return NEON if "+neon" in offered else SSE
