"""A barrier of all blocks of a launch, in two halves between which there is something to do.

Each block adds its share to one word. The shares of all make half of what 32 bits can count: the highest bit
is then another one, and the others are what they were, for the next barrier and for the next launch.

The blocks must be there all at a time (``Kernel(cooperative=True)``), beside each other in one dimension.

Source: the word whose highest bit tells of the barrier is that of NVIDIA's cooperative groups.
"""

from numba import uint32

from . import ptx
from .cuda import cuda, device

BIT = 0x80000000
_add_releasing, _load_acquiring = ptx.add_releasing, ptx.load_acquiring


@device
def arrive(counter):
    """For all threads of a block: what they have written is there for those who :func:`wait`. ``counter`` is
    the address of a word in the GPU's memory, zero at first. Returns what :func:`wait` is to be given."""
    cuda.syncthreads()
    before = uint32(0)
    if cuda.threadIdx.x == 0:
        share = 1 if cuda.blockIdx.x > 0 else BIT - (cuda.gridDim.x - 1)
        before = _add_releasing(counter, uint32(share))
    return before


@device
def wait(counter, before):
    """For all threads of a block: until all blocks have arrived."""
    if cuda.threadIdx.x == 0:
        while (_load_acquiring(counter) ^ before) & BIT == 0:
            pass
    cuda.syncthreads()
