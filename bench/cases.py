"""The one table of cases that tests and benchmarks share: what is measured is what is checked.

Letters as everywhere: B rows of a batch, I inputs, O outputs, C classes.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Matmul:
    """A dense layer: x [B, I] · w [I, O]. Its gradients have the same three sizes."""

    batch: int
    inputs: int
    outputs: int

    def __str__(self):
        return f"{self.batch}x{self.inputs}x{self.outputs}"

    @property
    def flops(self):
        """Of the product, and of each of its two gradients."""
        return 2 * self.batch * self.inputs * self.outputs


@dataclass(frozen=True)
class Network:
    """A network and the batch size to train it with."""

    layer_sizes: tuple[int, ...]
    batch: int

    def __str__(self):
        return "-".join(map(str, self.layer_sizes)) + f"@{self.batch}"

    @property
    def layers(self):
        """The matrix products of its forward pass."""
        return tuple(Matmul(self.batch, i, o) for i, o in pairwise(self.layer_sizes))

    @property
    def flops_per_image(self):
        """One training step's matrix products: three a layer, two for the first (no input gradient)."""
        products = [2 * i * o for i, o in pairwise(self.layer_sizes)]
        return 3 * sum(products) - products[0]


@dataclass(frozen=True)
class Logits:
    """Rows of logits: normally distributed times ``scale``, or one of the ``kind``s that break
    careless code: "extreme" (every row holds +1e4 and -1e4), "apart" (each row far below the one
    before it), "equal" (all the same in a row: ties)."""

    batch: int
    classes: int
    scale: float = 3.0
    kind: str = "normal"

    def __str__(self):
        return f"{self.batch}x{self.classes}-{self.kind}" + (f"-{self.scale:g}" if self.scale != 3 else "")


# --- matrix products ------------------------------------------------------------------------

TILES = (14, 16, 32, 64)  # sides of the tiles that kernels compute at once, on a CPU or a GPU
PRIMES = (2, 3, 5, 7, 11, 13, 37, 101)
EDGES = tuple(sorted({1, *PRIMES, *(tile + d for tile in TILES for d in (-1, 0, 1))}))


def _edge_cases():
    """Every edge size along each side in turn, the other two odd; and along all three at once."""
    for n in EDGES:
        yield Matmul(n, 37, 10)
        yield Matmul(5, n, 19)
        yield Matmul(17, 29, n)
        yield Matmul(n, n, n)


MATMUL_EDGES = tuple(dict.fromkeys(_edge_cases()))

# The layers of 784-128-10 with the usual batch sizes; 96 images are left of 60,000 after batches
# of 128, 1 is the smallest last batch that there can be.
BATCHES = (1, 64, 96, 100, 128, 512)
MATMUL_LAYERS = tuple(Matmul(batch, i, o) for batch in BATCHES for i, o in ((784, 128), (128, 10)))

MATMUL = MATMUL_EDGES + MATMUL_LAYERS

# --- networks ---------------------------------------------------------------------------------

SMALL = (784, 128, 10)
MEDIUM = (784, 512, 256, 10)
WIDE = (784, 1000, 500, 10)
DEEP = (784, 2500, 2000, 1500, 1000, 500, 10)  # Cireşan et al., Neural Computation 22 (2010)

NETWORKS = (
    Network(SMALL, 64),
    Network(SMALL, 128),
    Network(MEDIUM, 128),
    Network(WIDE, 256),
    Network(DEEP, 512),
)
GPU_NETWORKS = (Network(DEEP, 4096),)  # beside some of those

# --- softmax and cross-entropy ----------------------------------------------------------------

LOGITS = (
    Logits(1, 1),
    Logits(1, 10),
    Logits(3, 2),
    Logits(7, 10, kind="equal"),
    Logits(13, 17),
    Logits(64, 10),
    Logits(96, 10, scale=40.0),
    Logits(128, 10, kind="extreme"),
    Logits(260, 16),
    Logits(16, 10, kind="apart"),
    Logits(5, 1000),
    Logits(6, 31, kind="extreme"),
)
