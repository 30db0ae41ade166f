"""The GPU's memory, and what the interpreter of PTX says of faults."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GLOBAL, SHARED, LOCAL = 0x7_0000_0000, 0x1_0000_0000, 0x2_0000_0000  # generic address windows
U = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
S = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
F = {16: np.float16, 32: np.float32, 64: np.float64}
BOOL, UNSIGNED = np.dtype(bool), {bits: np.dtype(kind) for bits, kind in U.items()}
POISON = 0xFF


class PTXError(Exception):
    """A fault of the kernel: bounds, alignment, race, uninitialised read, divergent collective, deadlock."""


class UnsupportedPTX(NotImplementedError):
    """An instruction or form that this interpreter does not know."""


class Device:
    """Global memory: one heap with guard bands between allocations."""

    def __init__(self, size=1 << 28):
        self.heap = np.full(size, POISON, np.uint8)
        self.valid = np.zeros(size, bool)
        self.written = np.zeros(size, bool)
        self.top = 1024
        self.maps = {}

    def _take(self, nbytes):
        start = self.top
        self.top = (start + nbytes + 1023) // 256 * 256 + 256  # at least one guard band
        if self.top > len(self.heap):
            raise MemoryError("Device heap is full; make it larger")
        self.valid[start : start + nbytes] = True
        return start

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        shape = (shape,) if np.isscalar(shape) else tuple(shape)
        return DeviceArray(self, self._take(int(np.prod(shape)) * dtype.itemsize), shape, dtype)

    def array(self, host):
        host = np.ascontiguousarray(host)
        d = self.empty(host.shape, host.dtype)
        d.fill_from(host)
        return d

    def tensor_map(self, array, box, swizzle=0, shape=None, strides=None, tf32=False):
        """A stand-in for cuTensorMapEncodeTiled: `box` innermost dimension last, swizzle 0/32/64/128 bytes.

        shape, strides (bytes): of the tensor in `array`, if not its own; what lies between its rows is no
        part of it.
        tf32: float32 is rounded as it is copied to shared memory, as with CU_TENSOR_MAP_DATA_TYPE_TFLOAT32.
        """
        d = self.array(np.zeros(16, np.uint64))
        shape = array.shape if shape is None else tuple(shape)
        if strides is None:
            strides = [int(np.prod(shape[k + 1 :])) * array.dtype.itemsize for k in range(len(shape))]
        if array.start % 16 or any(s % 16 for s in strides[:-1]) or strides[-1] != array.dtype.itemsize:
            raise PTXError("tensor map: the tensor and its rows must begin at multiples of 16 bytes")
        if max(box) > 256 or (swizzle and box[-1] * array.dtype.itemsize > swizzle):
            raise PTXError(f"tensor map: box {tuple(box)} is too large")
        self.maps[d.ptr] = (array, tuple(box), swizzle, shape, tuple(strides), tf32)
        return d


@dataclass
class DeviceArray:
    dev: Device
    start: int
    shape: tuple
    dtype: np.dtype

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def ptr(self):
        return GLOBAL + self.start

    def _bytes(self):
        return self.dev.heap[self.start : self.start + self.nbytes]

    def host(self):
        return self._bytes().view(self.dtype).reshape(self.shape).copy()

    def fill_from(self, host):
        self._bytes()[:] = np.ascontiguousarray(host, self.dtype).reshape(-1).view(np.uint8)
        self.dev.written[self.start : self.start + self.nbytes] = True

    def unwritten(self):
        """Elements that no kernel and no copy has written: [index, …]."""
        w = self.dev.written[self.start : self.start + self.nbytes].reshape(-1, self.dtype.itemsize).all(1)
        return np.flatnonzero(~w)


def numba_args(*args):
    """Expand arguments as numba.cuda does: an array becomes meminfo, parent, nitems, itemsize, data, shape…,
    strides…"""
    out = []
    for a in args:
        if isinstance(a, DeviceArray):
            strides = [int(np.prod(a.shape[i + 1 :])) * a.dtype.itemsize for i in range(len(a.shape))]
            out += [
                np.uint64(0),
                np.uint64(0),
                np.int64(np.prod(a.shape)),
                np.int64(a.dtype.itemsize),
                np.uint64(a.ptr),
            ]
            out += [np.int64(n) for n in a.shape] + [np.int64(s) for s in strides]
        else:
            out.append(a)
    return out
