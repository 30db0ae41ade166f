"""Every kernel for the GPU: each module adds its own to KERNELS as it is imported."""

from importlib import import_module

from fastdigit.kernels.common.cuda import KERNELS

MODULES = (
    *("attack.cuda", "augment.cuda", "dropout.cuda", "epoch.cuda", "epoch.cuda_steps", "gather.cuda"),
    *("matmul.cuda", "matmul.cuda_mma", "matmul.cuda_wgmma", "max_norm.cuda", "optimizer.cuda"),
    *("relu.cuda", "softmax_xent.cuda"),
)
for module in MODULES:
    import_module(f"fastdigit.kernels.{module}")

__all__ = ["KERNELS"]
