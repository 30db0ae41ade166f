"""The numpy backend against the loop that one would write by hand: what does the layer cost?

    python -m fastdigit.bench.numpy_loop [--json FILE]

Both train the same network on the same images with SGD, Nesterov momentum and one-cycle rates in
float32, from the same weights and in the same order; the hand-written loop keeps plain contiguous
arrays and has no backend, layout, log or checks. Their losses are compared before any time is
taken. Then they alternate, and the ratio is taken pair by pair.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import fastdigit as fd
from fastdigit.streams import ORDER, random_stream

from . import machine

NETWORKS = (((784, 128, 10), 64), ((784, 128, 10), 128), ((784, 512, 256, 10), 128))
RATE, MOMENTUM = 0.1, 0.9


def hand_written(parameters, images, labels, orders, batch, rates):
    """Train in place; returns the loss of every step. ``parameters`` is [(w, b), …]."""
    velocity = [(np.zeros_like(w), np.zeros_like(b)) for w, b in parameters]
    losses, rates = [], iter(rates)
    for order in orders:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            activations = [images[chosen] * np.float32(1 / 255)]
            target = labels[chosen]
            for w, b in parameters[:-1]:
                activations.append(np.maximum(activations[-1] @ w + b, 0))
            w, b = parameters[-1]
            z = activations[-1] @ w + b
            z -= z.max(axis=1, keepdims=True)
            e = np.exp(z)
            total = e.sum(axis=1)
            rows = np.arange(len(chosen))
            losses.append((np.log(total) - z[rows, target]).mean())
            dz = e / total[:, None]
            dz[rows, target] -= 1
            dz /= len(chosen)
            gradients = []
            for layer in range(len(parameters) - 1, -1, -1):
                x, (w, _) = activations[layer], parameters[layer]
                gradients.append((x.T @ dz, dz.sum(axis=0)))
                if layer:
                    dz = (dz @ w.T) * (x > 0)
            rate = next(rates)
            for pair, moved, gradient in zip(parameters, velocity, reversed(gradients), strict=True):
                for p, v, g in zip(pair, moved, gradient, strict=True):
                    v *= MOMENTUM
                    v += g
                    p -= rate * (g + MOMENTUM * v)
    return losses


def compare(sizes, batch, data, rounds):
    """One row of the table: both losses, images per second, and the ratio's quartiles."""
    images, labels = data.images.reshape(len(data), -1), data.labels.astype(np.int64)
    steps = -(-len(images) // batch)
    rates = [RATE * fd.OneCycle()(step, steps, steps) for step in range(steps)]
    seconds = {"hand-written": [], "fastdigit": []}
    for _ in range(rounds + 1):
        net = fd.Network(sizes, backend="numpy", seed=0)
        started = net.get_parameters()
        parameters = [(started[f"w{i}"], started[f"b{i}"]) for i in range(1, len(sizes))]
        order = random_stream(0, ORDER, 0).permutation(len(images))
        begun = time.perf_counter()
        by_hand = hand_written(parameters, images, labels, [order], batch, rates)
        seconds["hand-written"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        log = fd.fit(
            net,
            data,
            optimizer=fd.SGD(RATE, momentum=MOMENTUM, nesterov=True),
            epochs=1,
            batch_size=batch,
        )
        seconds["fastdigit"].append(time.perf_counter() - begun)
        np.testing.assert_allclose(np.mean(log.step_losses), np.mean(by_hand), rtol=1e-3)
    pairs = np.divide(seconds["hand-written"][1:], seconds["fastdigit"][1:])  # the first was the warm-up
    low, middle, high = np.percentile(pairs, [25, 50, 75])
    return {
        "network": "-".join(map(str, sizes)),
        "batch": batch,
        "loss_fastdigit": float(np.mean(log.step_losses)),
        "loss_hand_written": float(np.mean(by_hand)),
        **{f"images_per_second_{k}": len(images) / float(np.median(v[1:])) for k, v in seconds.items()},
        "speed_ratio_median": float(middle),
        "speed_ratio_quartiles": [float(low), float(high)],
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the MNIST files (default: as fastdigit.load_mnist)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    options = parser.parse_args(arguments)
    data = fd.load_mnist(options.data).train
    rows = [compare(sizes, batch, data, options.rounds) for sizes, batch in NETWORKS]
    for row in rows:
        speed = row["images_per_second_fastdigit"]
        print(
            f"{row['network']:>16} batch {row['batch']:<4} {speed:>9,.0f} images/s, "
            f"{row['speed_ratio_median']:.3f} times the hand-written loop"
        )
    if options.json:
        machine.write(options.json, rows=rows)
    return rows


if __name__ == "__main__":
    main()
