"""What a step of the deep network takes as a graph of launches: how many there are, and how many bytes they
read and write, with dropout and updates in the epilogues of products or alone. Counted, not measured."""

from itertools import pairwise

import numpy as np

import fastdigit as fd
from fastdigit.bench import cases
from fastdigit.bench.gpu.steps import plan_of
from fastdigit.kernels.epoch import cuda_steps
from fastdigit.layout import Layout

from .emulated import backend, emulated

NETWORK = cases.Network(cases.DEEP, 512)
SETTINGS = [
    (precision, *how)
    for precision in ("float32", "bf16")
    for how in ((fd.SGD(0.1, momentum=0.9), 0.0), (fd.Adam(0.001), 0.5))
]


def launches(precision, optimizer, dropout):
    """Of the steps as they are."""
    sizes, zeros = NETWORK.layer_sizes, backend().zeros
    layout = Layout(sizes, 64)
    parameters = np.zeros(layout.size, np.float32)  # of which no page is touched
    plan = plan_of(np, NETWORK, layout, parameters, precision, optimizer, dropout)
    images = zeros((NETWORK.batch, sizes[0]), "uint8")
    labels, correct = zeros((NETWORK.batch,), "int32"), zeros((NETWORK.batch,), "uint8")
    loss = zeros((NETWORK.batch,), "float32")
    with emulated():
        return len(cuda_steps.Steps(plan, images, labels, loss, correct, zeros, (8, 0)).launches)


def bytes_moved(precision, optimizer, dropout, in_epilogues):
    """Of all launches of a step: what each reads and writes, once; biases and what belongs to images are left
    out, as they are small."""
    batch, sizes = NETWORK.batch, NETWORK.layer_sizes
    number = 2 if precision == "bf16" else 4  # of outputs, their gradients, and weights as products read them
    outputs = [batch * size * number for size in sizes]
    outputs[-1] = batch * sizes[-1] * 4
    total = batch * sizes[0] + outputs[0] + 2 * outputs[-1]  # images, loss
    for layer, (inputs, units) in enumerate(pairwise(sizes)):
        weights, last = inputs * units, layer == len(sizes) - 2
        total += outputs[layer] + weights * number + outputs[layer + 1]  # forward
        if dropout and not last and not in_epilogues:
            total += 2 * outputs[layer + 1]
        dy = batch * units * number
        total += dy + outputs[layer]  # to the weights and the biases
        if layer:
            total += dy + weights * number + 2 * outputs[layer]  # to the input, with its mask
        total += weights * 4 * 2 * (1 + len(optimizer.state_names))  # the update
        total += weights * 2 * (number == 2)
        if not in_epilogues:
            total += weights * 4 * 2  # the gradient, written and read
    return total


def measure():
    rows = []
    for setting in SETTINGS:
        precision, optimizer, dropout = setting
        now, hidden = launches(*setting), len(NETWORK.layer_sizes) - 2
        rows.append(
            {
                "precision": precision,
                "optimizer": repr(optimizer),
                "dropout": dropout,
                "launches": now,
                "launches_of_their_own": now
                + 1
                + hidden * bool(dropout),  # an update, a dropout for each layer
                "bytes": bytes_moved(*setting, in_epilogues=True),
                "bytes_of_their_own": bytes_moved(*setting, in_epilogues=False),
            }
        )
    return rows


def markdown(rows):
    lines = [
        f"| {NETWORK} | launches of a step: alone, in epilogues | MB read and written: alone, in epilogues |",
        "|---|---|---|",
    ]
    for row in rows:
        kind, dropout = row["optimizer"].partition("(")[0], ", dropout" if row["dropout"] else ""
        kind += " with momentum" if "momentum=0.9" in row["optimizer"] else ""
        alone, fused = row["bytes_of_their_own"] / 1e6, row["bytes"] / 1e6
        lines.append(
            f"| {row['precision']}, {kind}{dropout} | {row['launches_of_their_own']}, {row['launches']} "
            f"| {alone:.0f}, {fused:.0f} (− {1 - fused / alone:.0%}) |"
        )
    return "\n".join(lines)
