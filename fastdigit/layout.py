"""Layer sizes → where each weight and bias lies in ONE flat parameter buffer.

One buffer means one optimizer pass, one thing to save, copy or all-reduce, and any depth of
network in one call. Gradients and optimizer state have the same shape and use the same layout.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .errors import ConfigError


def round_up(n, multiple):
    """The smallest multiple of ``multiple`` that is at least ``n``."""
    return -(-n // multiple) * multiple


def row_distance(columns, align):
    """How far apart the rows of a matrix are: its columns, padded to a multiple of ``align``.

    Long rows get an odd number of such pieces: with an even one, and worse with a power of two,
    columns would fall on few of a cache's sets, and kernels would have to copy them first.
    """
    pieces = -(-columns // align)
    return align * (pieces | 1 if pieces > 8 else pieces)


@dataclass(frozen=True)
class Tensor:
    """One weight matrix or bias vector inside the flat buffer; numbers count elements."""

    name: str
    shape: tuple[int, ...]
    offset: int
    row: int  # distance between rows: the row length, padded

    @property
    def size(self):
        """Elements taken in the buffer, padding included."""
        return self.row * (self.shape[0] if len(self.shape) == 2 else 1)

    def view(self, flat):
        """This tensor as a view of ``flat`` (any NumPy-like 1-D array of the layout's size)."""
        part = flat[self.offset : self.offset + self.size]
        if len(self.shape) == 1:
            return part[: self.shape[0]]
        return part.reshape(self.shape[0], self.row)[:, : self.shape[1]]

    def padding(self, flat):
        """What of ``flat`` lies behind this tensor's rows, as a view."""
        return flat[self.offset : self.offset + self.size].reshape(-1, self.row)[:, self.shape[-1] :]


@dataclass(frozen=True)
class Layout:
    """Offsets and shapes of all parameters of a network with the given layer sizes.

    Layer l (from 1) has the weight ``w{l}`` [sizes[l-1], sizes[l]] and the bias ``b{l}``
    [sizes[l]], row-major, each row padded with zeros to a multiple of ``row_align`` elements (see
    :func:`row_distance`).

    Errors: ConfigError for fewer than two layers or a size below 1.
    """

    layer_sizes: tuple[int, ...]
    row_align: int = 16

    def __post_init__(self):
        if len(self.layer_sizes) < 2:
            raise ConfigError(
                f"a network needs at least an input and an output size, got {list(self.layer_sizes)}"
            )
        for size in self.layer_sizes:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"layer sizes must be integers of at least 1, got {list(self.layer_sizes)}")

    @cached_property
    def tensors(self):
        """All tensors in the order of the buffer: w1, b1, w2, b2, …"""
        tensors, offset = [], 0
        for layer, (inputs, outputs) in enumerate(
            zip(self.layer_sizes, self.layer_sizes[1:], strict=False), start=1
        ):
            row = row_distance(outputs, self.row_align)
            for name, shape in ((f"w{layer}", (inputs, outputs)), (f"b{layer}", (outputs,))):
                tensors.append(Tensor(name, shape, offset, row))
                offset += tensors[-1].size
        return tuple(tensors)

    @cached_property
    def size(self):
        """Elements of the flat buffer, padding included."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def parameter_count(self):
        """Weights and biases, padding not counted."""
        return sum(i * o + o for i, o in zip(self.layer_sizes, self.layer_sizes[1:], strict=False))

    def views(self, flat):
        """``{"w1": …, "b1": …, …}``: the named tensors as views of a flat buffer."""
        return {tensor.name: tensor.view(flat) for tensor in self.tensors}

    def named(self, host):
        """:meth:`views` of a flat NumPy buffer as copies that stand alone."""
        return {name: np.array(view) for name, view in self.views(host).items()}

    def flatten(self, tensors, dtype):
        """``{"w1": …, "b1": …, …}`` in one flat NumPy buffer; the padding is zero."""
        host = np.zeros(self.size, dtype)
        for name, view in self.views(host).items():
            view[...] = tensors[name]
        return host

    def layers(self, flat):
        """``[(w, b), …]`` from the first layer to the last, as views of a flat buffer."""
        views = [tensor.view(flat) for tensor in self.tensors]
        return list(zip(views[0::2], views[1::2], strict=True))

    def with_biases(self, flat):
        """The weights of each layer with its bias as one more row, [sizes[l-1] + 1, sizes[l]], as views of a
        flat buffer: a bias lies behind its weights, and is as long as their rows."""
        found = []
        for w in self.tensors[0::2]:
            rows, columns = w.shape[0] + 1, w.shape[1]
            found.append(flat[w.offset : w.offset + rows * w.row].reshape(rows, w.row)[:, :columns])
        return found
