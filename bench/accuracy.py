"""Seconds of training until MNIST's test images are read so well: a recipe for each accuracy.

The seconds are those of the whole training in a process that has compiled before, ours of the whole
``fd.fit``; copies of images that a recipe wants are made within them. Every recipe is trained from several
seeds; the accuracy of a recipe is their median. The sides live in processes of their own and take turns.
(The recipes were chosen by what they reach on these very images: they are for measuring time.)

A peer is torch, eager, with the same recipe from the same weights: ``torch.optim.SGD`` with Nesterov's
momentum, the same rate in each step, images (and their copies) as float32 beforehand, another order.
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
SMOOTHING = 0.1  # of labels: halves the epochs of the smallest recipes
DEFORMED = fd.Augment(rotation=10, scale=0.1, shear=0.1, shift=1)
CHILD = ("-m", "fastdigit.bench.accuracy", "--child")
PEERS = ("torch",)


@dataclass(frozen=True)
class Recipe:
    """What reaches an accuracy: SGD with Nesterov's momentum, one cycle of the learning rate, SMOOTHING.

    ``shifts``: to so many sides each image is shifted by one pixel, and counts as another one. ``augment``:
    how images are deformed, each time anew.
    """

    target: float
    layer_sizes: tuple[int, ...]
    epochs: int
    batch: int = 128
    rate: float = 0.3
    shifts: int = 0
    augment: fd.Augment | None = None

    def __str__(self):
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        more = f", images shifted in {self.shifts} directions too" if self.shifts else ""
        more += f", images deformed ({self.augment})" if self.augment else ""
        return f"{'-'.join(map(str, self.layer_sizes))}, {epochs}, batch {self.batch}, smoothed labels{more}"

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
        Recipe(0.97, (784, 128, 10), 1),
        Recipe(0.98, (784, 128, 10), 3, rate=0.4),
        Recipe(0.985, (784, 256, 10), 1, shifts=4),
        Recipe(0.99, (784, 512, 64, 10), 1, shifts=8),
    )
}

# On a GPU a step of a small network takes about as long whatever its width and batch, and copies of images
# would take longer to get there than to train on.
GPU_RECIPES = {
    recipe.target: recipe
    for recipe in (
        Recipe(0.98, (784, 256, 10), 2, rate=0.4),
        Recipe(0.99, (784, 1024, 512, 10), 12, batch=1024, rate=0.6, augment=DEFORMED),
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
        if recipe.augment and self.train == self.torch:
            return {"no_time": "torch has no such deformations"}
        try:
            seconds, accuracy = self.train(recipe, data, seed)
        except ModuleNotFoundError as error:
            return {"no_time": f"{error.name} is not installed: pip install -r bench/requirements-peers.txt"}
        return {"seconds": seconds, "accuracy": accuracy}

    def ours(self, recipe, data, seed):
        net = fd.Network(recipe.layer_sizes, backend=self.backend, precision=self.precision, seed=seed)
        begun = time.perf_counter()
        fd.fit(
            net,
            recipe.training_set(data.train),
            optimizer=fd.SGD(recipe.rate, momentum=MOMENTUM, nesterov=True),
            schedule=fd.OneCycle(),
            epochs=recipe.epochs,
            batch_size=recipe.batch,
            label_smoothing=SMOOTHING,
            augment=recipe.augment,
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
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            layers[-2].weight.data = torch.from_numpy(np.ascontiguousarray(weights[f"w{i}"].T))
            layers[-2].bias.data = torch.from_numpy(weights[f"b{i}"])
        net = nn.Sequential(*layers[:-1])
        parts = recipe.training_set(data.train), (data.test.images, data.test.labels)
        (x, y), (x_test, y_test) = (
            (torch.from_numpy(images).flatten(1) / 255, torch.from_numpy(labels).long())
            for images, labels in parts
        )
        entropy = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        optimizer = torch.optim.SGD(net.parameters(), recipe.rate, momentum=MOMENTUM, nesterov=True)
        schedule, starts = fd.OneCycle(), range(0, len(x), recipe.batch)
        begun, step = time.perf_counter(), 0
        for _ in range(recipe.epochs):
            order = torch.randperm(len(x))
            for start in starts:
                rate = recipe.rate * schedule(step, recipe.epochs * len(starts), len(starts))
                optimizer.param_groups[0]["lr"] = rate
                batch = order[start : start + recipe.batch]  # quicker than to shuffle all images first
                images, labels = x[batch], y[batch]
                loss = entropy(net(images), labels)
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
    """A row for each recipe up to an accuracy and each side."""
    commands = {name_of(b, backends): [sys.executable, *CHILD, "fastdigit", "--backend", b] for b in backends}
    commands |= {name: [python, *CHILD, name] for name in PEERS}
    rows = []
    with turns.Turns() as running:
        for name, command in commands.items():
            running.start(name, command)
        for target, recipe in RECIPES.items():
            if target > most:
                continue
            answers = {name: [running.ask(name, (target, 0))] for name in commands}
            for seed in range(1, seeds + 1):
                for name in commands:
                    if "no_time" not in answers[name][-1]:
                        answers[name].append(running.ask(name, (target, seed)))
            rows += [row_of(name, recipe, answers[name]) for name in commands]
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
