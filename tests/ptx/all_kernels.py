"""Every kernel for the GPU: modules add their own to KERNELS as they are imported, and those that are made on
demand are made here, in the variants that most of a training's time goes to."""

from importlib import import_module
from typing import Any, NamedTuple

from fastdigit.kernels.common import cuda
from fastdigit.kernels.common.fours import AS_IT_IS
from fastdigit.kernels.dropout.cuda import DROPOUT
from fastdigit.kernels.matmul import cuda as matmul
from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma
from fastdigit.kernels.matmul.cuda_epilogue import BIAS, HALVES, MASK, RELU, VECTORS, WHOLE
from fastdigit.kernels.optimizer.cuda import KINDS, UPDATES, update_kernel
from fastdigit.kernels.softmax_xent.cuda import FEW, loss_of_few

# (module, what it multiplies) of all kinds of products.
TECHNIQUES = ((cuda_mma, "bf16"), (cuda_mma, "tf32"), (cuda_simt, "float32"), (cuda_wgmma, "bf16"))
# Whether a and b are given transposed, and what follows: forward, back to the input, to the weights.
NN, NT, TN = (False, False), (False, True), (True, False)
PLAIN = AS_IT_IS.epilogue
ADAM = UPDATES[2, False]  # which has most to read and to write


class Form(NamedTuple):
    """Of a product in a training; in bfloat16 it writes that, or float32, or both."""

    turned: tuple
    epilogue: Any
    changes: int
    outputs: tuple

    def how(self, kind):
        written = {"c": WHOLE, "half": HALVES}
        outputs = self.outputs if kind == "bf16" else ("c",)
        return VECTORS | self.changes | sum(written[name] for name in outputs)


FORMS = (
    Form(NN, PLAIN, BIAS | RELU, ("half",)),
    Form(NT, PLAIN, MASK, ("half",)),
    Form(TN, PLAIN, 0, ("c",)),
    Form(NN, DROPOUT, BIAS | RELU, ("half",)),
    Form(TN, ADAM, 0, ("c", "half")),
)

CLASSES_OF_FEW = 10, 16, FEW  # rows that are read by twos, by fours, and as long as there are

for technique, kind in TECHNIQUES:
    for tile in technique.TILES:
        for form in FORMS:
            by_k = not form.turned[0], form.turned[1]
            known = () if technique is cuda_simt else (form.how(kind),)
            technique.kernel(kind, tile, *by_k, form.epilogue, *known)
for tile in cuda_wgmma.TILES:
    cuda_wgmma.kernel("tf32", tile, True, True, PLAIN, VECTORS | WHOLE)  # for ``matmul`` alone
for halves in (False, True):
    for epilogue in (PLAIN, ADAM):
        matmul.column_sums(halves, epilogue)
for kind in KINDS:
    update_kernel(*kind)
for classes in CLASSES_OF_FEW:
    loss_of_few(classes)
MODULES = "attack", "augment", "gather", "max_norm", "relu", "softmax_xent"
for module in ("epoch.cuda", "epoch.cuda_steps", *(f"{module}.cuda" for module in MODULES)):
    import_module(f"fastdigit.kernels.{module}")

KERNELS = tuple(cuda.KERNELS)  # tests make others
