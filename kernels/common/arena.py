"""Arrays out of one allocation: there is memory for all of them, or for none."""

import numpy as np

ALIGN = 256  # bytes


class Arena:
    """First :meth:`array` or :meth:`matrix` for each, then :meth:`allocate`, once.

    ``distance(columns)``: how many numbers the rows of matrices are apart.
    """

    def __init__(self, distance=lambda columns: columns):
        self.distance, self.wanted, self.size = distance, {}, 0

    def array(self, name, shape, dtype):
        """Shapes: any. It begins at a multiple of ALIGN bytes of the memory."""
        self.wanted[name] = self.size, tuple(shape), np.dtype(dtype), None
        self.size += -(-self._bytes(shape, dtype) // ALIGN) * ALIGN

    def matrix(self, name, rows, columns, dtype):
        """Shapes: [rows, columns], with what pads its rows behind them."""
        self.array(name, (rows, self.distance(columns)), dtype)
        self.wanted[name] = *self.wanted[name][:3], columns

    def allocate(self, zeros):
        """{name: array}, all zero; ``zeros`` as of a backend. Errors: what that raises."""
        memory = zeros((self.size,), "uint8")
        return {name: self._cut(memory, *place) for name, place in self.wanted.items()}

    def _cut(self, memory, start, shape, dtype, columns):
        array = memory[start : start + self._bytes(shape, dtype)].view(dtype).reshape(shape)
        return array if columns is None else array[:, :columns]

    @staticmethod
    def _bytes(shape, dtype):
        return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
