"""Seconds of training until MNIST's test images are read so well: a recipe for each accuracy.

The seconds are those of the whole training in a process that has compiled before, ours of the whole
``fd.fit``; copies of images that a recipe wants are made within them. Every recipe is trained from several
seeds; the accuracy of a recipe is their median. The sides live in processes of their own and take turns.
(The recipes were chosen by what they reach on these very images: they are for measuring time.)

A peer is torch, eager, with the same recipe from the same weights: ``torch.optim.SGD`` with Nesterov's
momentum, the same rate in each step, images as float32 beforehand, another order.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import product

import numpy as np

import fastdigit as fd

from . import turns
from .peers import cores

MOMENTUM = 0.9
CHILD = ("-m", "fastdigit.bench.accuracy", "--child")
PEERS = ("torch",)
MOST_OF_PEERS = 0.98  # beyond, they would take minutes


@dataclass(frozen=True)
class Recipe:
    """What reaches an accuracy: SGD with Nesterov's momentum, one cycle of the learning rate. ``shifts``: to
    so many sides each image is shifted by one pixel, and counts as another one."""

    target: float
    layer_sizes: tuple[int, ...]
    epochs: int
    batch: int = 128
    rate: float = 0.2
    dropout: float = 0.0
    shifts: int = 0

    def __str__(self):
        more = f", dropout {self.dropout:g}" if self.dropout else ""
        more += f", images shifted in {self.shifts} directions too" if self.shifts else ""
        return f"{'-'.join(map(str, self.layer_sizes))}, {self.epochs} epochs, batch {self.batch}{more}"

    def training_set(self, train):
        """(images, labels), with the shifted ones."""
        if not self.shifts:
            return train.images, train.labels
        sides = sorted(product((0, -1, 1), repeat=2), key=lambda by: abs(by[0]) + abs(by[1]))
        shifted = np.empty((self.shifts + 1, *train.images.shape), train.images.dtype)
        for images, (down, right) in zip(shifted, sides, strict=False):
            _shift(train.images, down, right, images)
        return shifted.reshape(-1, *train.images.shape[1:]), np.tile(train.labels, len(shifted))


def _shift(images, down, right, result):
    """All images by so many pixels, -1 to 1 each way; what comes in is empty."""
    by, pixels, moved = down * images.shape[2] + right, images.reshape(-1), result.reshape(-1)
    moved[max(by, 0) : len(moved) + min(by, 0)] = pixels[max(-by, 0) : len(pixels) - max(by, 0)]
    if down:
        result[:, min(down, 0)] = 0
    if right:
        result[:, :, min(right, 0)] = 0


RECIPES = {
    recipe.target: recipe
    for recipe in (
        Recipe(0.97, (784, 128, 10), 2),
        Recipe(0.98, (784, 128, 10), 6),
        Recipe(0.985, (784, 512, 256, 10), 12, dropout=0.2),
        Recipe(0.99, (784, 512, 256, 10), 8, dropout=0.2, shifts=4),
    )
}

# On a GPU a step takes about as long whatever its batch, so these take fewer and larger ones.
GPU_RECIPES = {
    recipe.target: recipe
    for recipe in (
        Recipe(0.98, (784, 128, 10), 5, batch=256, rate=0.5),
        Recipe(0.99, (784, 512, 256, 10), 6, batch=1024, rate=0.5, dropout=0.2, shifts=4),
    )
}

# --- in the processes of the sides ----------------------------------------------------------------


class Answers:
    """Of one side: to (target, seed) its seconds and the accuracy; seed 0 only gets everything ready."""

    def __init__(self, side, backend, precision="float32", recipes=None):
        self.train = {"fastdigit": self.ours, "torch": self.torch}[side]
        self.backend, self.precision, self.data = backend, precision, fd.load_mnist()
        self.recipes = RECIPES if recipes is None else recipes

    def __call__(self, question):
        target, seed = question
        recipe, data = self.recipes[target], self.data
        if seed == 0:
            few = fd.Images(data.train.images[: 2 * recipe.batch], data.train.labels[: 2 * recipe.batch])
            data = fd.Dataset("few", few, few)
        try:
            seconds, accuracy = self.train(recipe, data, seed)
        except ModuleNotFoundError as error:
            return {"no_time": f"{error.name} is not installed: pip install -r bench/requirements-peers.txt"}
        return {"seconds": seconds, "accuracy": accuracy}

    def ours(self, recipe, data, seed):
        how = {"backend": self.backend, "precision": self.precision, "dropout": recipe.dropout}
        net = fd.Network(recipe.layer_sizes, seed=seed, **how)
        begun = time.perf_counter()
        fd.fit(
            net,
            recipe.training_set(data.train),
            optimizer=fd.SGD(recipe.rate, momentum=MOMENTUM, nesterov=True),
            schedule=fd.OneCycle(),
            epochs=recipe.epochs,
            batch_size=recipe.batch,
            seed=seed,
        )
        return time.perf_counter() - begun, fd.evaluate(net, data.test).accuracy

    def torch(self, recipe, data, seed):
        import torch
        from torch import nn

        torch.set_num_threads(cores())
        torch.manual_seed(seed)
        weights = fd.Network(recipe.layer_sizes, backend="numpy", seed=seed).get_parameters()
        layers = []
        for i, (inputs, outputs) in enumerate(
            zip(recipe.layer_sizes, recipe.layer_sizes[1:], strict=False), 1
        ):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(recipe.dropout)]
            layers[-3].weight.data = torch.from_numpy(np.ascontiguousarray(weights[f"w{i}"].T))
            layers[-3].bias.data = torch.from_numpy(weights[f"b{i}"])
        net = nn.Sequential(*layers[:-2])
        x, x_test = (torch.from_numpy(part.images).flatten(1) / 255 for part in (data.train, data.test))
        y, y_test = (torch.from_numpy(part.labels).long() for part in (data.train, data.test))
        optimizer = torch.optim.SGD(net.parameters(), recipe.rate, momentum=MOMENTUM, nesterov=True)
        schedule, starts = fd.OneCycle(), range(0, len(x), recipe.batch)
        begun, step = time.perf_counter(), 0
        for _ in range(recipe.epochs):
            order = torch.randperm(len(x))
            shuffled = x[order], y[order]
            for start in starts:
                rate = recipe.rate * schedule(step, recipe.epochs * len(starts), len(starts))
                optimizer.param_groups[0]["lr"] = rate
                images, labels = (part[start : start + recipe.batch] for part in shuffled)
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
        seconds = time.perf_counter() - begun
        net.eval()
        with torch.inference_mode():
            return seconds, float((net(x_test).argmax(1) == y_test).double().mean())


# --- in the process that compares -----------------------------------------------------------------


def measure(backends, seeds=5, most=0.99, python=sys.executable):
    """A row for each recipe up to an accuracy and each side: ours on the first backend with all recipes, the
    others and peers as far as MOST_OF_PEERS."""
    commands = {name_of(b, backends): [sys.executable, *CHILD, "fastdigit", "--backend", b] for b in backends}
    commands |= {name: [python, *CHILD, name] for name in PEERS}
    first, rows = next(iter(commands)), []
    with turns.Turns() as running:
        for name, command in commands.items():
            running.start(name, command)
        for target, recipe in RECIPES.items():
            if target > most:
                continue
            sides = list(commands) if target <= MOST_OF_PEERS else [first]
            answers = {name: [running.ask(name, (target, 0))] for name in sides}
            for seed in range(1, seeds + 1):
                for name in sides:
                    if "no_time" not in answers[name][-1]:
                        answers[name].append(running.ask(name, (target, seed)))
            rows += [row_of(name, recipe, answers[name]) for name in sides]
    return rows


def name_of(backend, backends):
    return "fastdigit" if backend == backends[0] else f"fastdigit-{backend}"


def row_of(side, recipe, answers):
    row = {"target": recipe.target, "side": side, "recipe": str(recipe)}
    if "no_time" in answers[-1]:
        return {**row, "no_time": answers[-1]["no_time"]}
    seconds, accuracies = np.array([[found["seconds"], found["accuracy"]] for found in answers[1:]]).T
    return {
        **row,
        "seconds": float(np.median(seconds)),
        "seconds_range": [float(seconds.min()), float(seconds.max())],
        "accuracy": float(np.median(accuracies)),
        "accuracy_range": [float(accuracies.min()), float(accuracies.max())],
        "seeds": len(seconds),
        "reached": bool(np.median(accuracies) >= recipe.target),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--child", choices=("fastdigit", *PEERS), required=True)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    turns.answer_all(Answers(options.child, options.backend))


if __name__ == "__main__":
    main()
