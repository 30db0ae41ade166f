"""What every kernel must satisfy, whoever wrote it: the references here are float64 formulas.

A check takes an operation with the signature that it has in the ``Backend`` record, a backend for
the arrays, and a case; it raises :class:`Rejected` and returns the worst error/bound ratio. So the
same checks serve every backend, every single implementation, ``bench.kernels``, which times nothing that
they reject, and ``tests/wrong``, whose faulty kernels they must reject.

Three things are checked of every operation besides its result: outputs hold NaN before the call
(what is not written, or accumulated into, shows), operands lie in larger arrays (with rows further
apart than long) whose other elements must not be written, and inputs must not change. The
elements between the rows of an input are NaN: whoever reads them as data is found out.
"""

from .. import cases
from .attacks import (
    ASCENT,
    NOISE,
    ODDS,
    Ascent,
    check_add_noise,
    check_ascend,
    check_ascend_passes_nan_on,
    check_log_odds,
)
from .common import Operand, Rejected, gamma, output, within
from .images import (
    AUGMENT,
    DROPOUT,
    GATHER,
    PHILOX_KNOWN,
    check_augment,
    check_dropout,
    check_dropout_partition,
    check_dropout_rate,
    check_dropout_threshold,
    check_gather,
    check_gather_values,
    keep_mask,
    philox,
)
from .layers import (
    check_dense,
    check_dense_grad_input,
    check_dense_grad_weight,
    check_dense_passes_nan_on,
    check_relu,
    check_relu_grad,
    check_softmax,
    check_softmax_xent,
)
from .optimizers import (
    ADAM,
    MAX_NORM,
    SGD,
    check_adam,
    check_clip_norm,
    check_max_norm,
    check_max_norm_of_extremes,
    check_sgd,
)

__all__ = [
    "AUGMENT",
    "CHECKS",
    "DROPOUT",
    "GATHER",
    "PHILOX_KNOWN",
    "Operand",
    "Rejected",
    "check_augment",
    "check_dense_passes_nan_on",
    "check_dropout",
    "check_gather",
    "check_gather_values",
    "check_softmax",
    "check_softmax_xent",
    "gamma",
    "keep_mask",
    "output",
    "parameters",
    "philox",
    "within",
]


_SMALL = cases.Matmul(5, 7, 3)
ONCE = (None,)  # for checks that bring their own case

# operation → its checks, each with its cases
CHECKS = {
    "dense": ((check_dense, cases.MATMUL), (check_dense_passes_nan_on, (_SMALL,))),
    "dense_grad_input": ((check_dense_grad_input, cases.MATMUL),),
    "dense_grad_weight": ((check_dense_grad_weight, cases.MATMUL),),
    "relu": ((check_relu, cases.MATMUL_EDGES),),
    "relu_grad": ((check_relu_grad, cases.MATMUL_EDGES),),
    "softmax": ((check_softmax, cases.LOGITS),),
    "softmax_xent": ((check_softmax_xent, cases.LOGITS),),
    "dropout": (
        (check_dropout, DROPOUT),
        (check_dropout_threshold, ONCE),
        (check_dropout_partition, ONCE),
        (check_dropout_rate, ONCE),
    ),
    "gather": ((check_gather, GATHER),),
    "augment": ((check_augment, AUGMENT),),
    "gather_values": ((check_gather_values, GATHER),),
    "sgd": ((check_sgd, SGD),),
    "adam": ((check_adam, ADAM),),
    "clip_norm": ((check_clip_norm, ONCE),),
    "log_odds": ((check_log_odds, ODDS),),
    "ascend": (
        (check_ascend, ASCENT),
        (check_ascend_passes_nan_on, (Ascent(5, 17, "linf"), Ascent(5, 17, "l2"))),
    ),
    "add_noise": ((check_add_noise, NOISE),),
    "max_norm": ((check_max_norm, MAX_NORM), (check_max_norm_of_extremes, ONCE)),
}


def parameters(operation):
    """(check, case) of all checks of an operation with readable names, for pytest."""
    import pytest

    return [
        pytest.param(check, case, id=f"{check.__name__}-{case}" if case else check.__name__)
        for check, of_check in CHECKS[operation]
        for case in of_check
    ]
