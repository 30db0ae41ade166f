"""Every kernel for the GPU: modules add their own to KERNELS as they are imported, and those that are made on
demand are made here, in all variants that a training asks for."""

from importlib import import_module

from fastdigit.kernels.common import cuda
from fastdigit.kernels.common.fours import AS_IT_IS
from fastdigit.kernels.dropout.cuda import DROPOUT
from fastdigit.kernels.matmul import cuda as matmul
from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma
from fastdigit.kernels.optimizer.cuda import UPDATE
from fastdigit.kernels.softmax_xent.cuda import FEW, loss_of_few

# (module, what it multiplies) of all kinds of products.
TECHNIQUES = ((cuda_mma, "bf16"), (cuda_mma, "tf32"), (cuda_simt, "float32"), (cuda_wgmma, "bf16"))
# Whether a and b are given transposed, and what follows: forward, back to the input, to the weights.
NN, NT, TN = (False, False), (False, True), (True, False)
PLAIN = AS_IT_IS.epilogue
FORMS = ((NN, PLAIN), (NT, PLAIN), (TN, PLAIN), (NN, DROPOUT), (TN, UPDATE))

CLASSES_OF_FEW = 10, 16, FEW  # rows that are read by twos, by fours, and as long as there are

for technique, kind in TECHNIQUES:
    for tile in technique.TILES:
        for turned, epilogue in FORMS:
            technique.kernel(kind, tile, not turned[0], turned[1], epilogue)
for halves in (False, True):
    for epilogue in (PLAIN, UPDATE):
        matmul.column_sums(halves, epilogue)
for classes in CLASSES_OF_FEW:
    loss_of_few(classes)
MODULES = "attack", "augment", "gather", "max_norm", "relu", "softmax_xent"
for module in ("epoch.cuda", "epoch.cuda_steps", *(f"{module}.cuda" for module in MODULES)):
    import_module(f"fastdigit.kernels.{module}")

KERNELS = tuple(cuda.KERNELS)  # tests make others
