"""Numbers as their bits: bfloat16, TF32, halves of a word, swizzled addresses."""

import numpy as np

from .device import U


def bf16_to_f32(u16):
    return (u16.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), r).astype(np.uint16)


def halves(u32, kind):
    lo, hi = (u32 & np.uint32(0xFFFF)).astype(np.uint16), (u32 >> np.uint32(16)).astype(np.uint16)
    f = bf16_to_f32 if kind == "bf16" else (lambda v: v.view(np.float16).astype(np.float32))
    return f(lo), f(hi)


def pack(lo, hi, kind):
    f = f32_to_bf16 if kind == "bf16" else (lambda v: v.astype(np.float16).view(np.uint16))
    return f(lo).astype(np.uint32) | (f(hi).astype(np.uint32) << np.uint32(16))


def to_tf32(bits):
    """To the nearest of 10 bits of mantissa, ties to even; infinities and NaN stay. (Measured by Triton's
    tests of its descriptors, on a GPU of capability 12.0: triton-lang/triton, pull request 11751.)"""
    special = bits & 0x7F800000 == 0x7F800000
    rounded = bits + np.uint32(0xFFF) + (bits >> 13 & 1) & np.uint32(0xFFFFE000)
    return np.where(special, bits, rounded).astype(np.uint32)


def swizzled(addr, mode):
    if mode == 0:
        return addr
    bits = {128: 7, 64: 3, 32: 1}[mode]
    return addr ^ (((addr >> 7) & bits) << 4)


ALL_WRITTEN = {bits: U[bits](0x0101010101010101 & ((1 << bits) - 1)) for bits in U}


def as_words(memory, bits):
    """Bytes, or whether there are some, as numbers of so many bits; what is left of them at the end is not
    seen."""
    whole = len(memory) // 8 * 8
    return memory[:whole].view(U[bits])
