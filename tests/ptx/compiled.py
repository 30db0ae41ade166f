"""Compiles, where there is no GPU, what ``bench.gpu`` will launch on one of capability 9.0:

    python -m tests.ptx.compiled FOLDER

FOLDER is ``NUMBA_CACHE_DIR`` on the machine with the GPU, which has the same sources, and the same versions
of Numba and numba-cuda. What it does not find it compiles, which takes it 1 to 5 s for each kernel.
"""

import contextlib
import multiprocessing
import os
import sys
from itertools import product

import numpy as np

from fastdigit.bench import accuracy, train
from fastdigit.bench.gpu import bandwidth, correctness, goals, sanitizer
from fastdigit.bench.gpu.parts import NETWORKS
from fastdigit.kernels.common import cuda, cuda_cache
from fastdigit.kernels.matmul.cuda_epilogue import VECTORS, WHOLE

from .all_kernels import KERNELS, NN, NT, PLAIN, TECHNIQUES, TN
from .emulated import CAPABILITY, backend, emulated

GPU = cuda.Limits((9, 0), 132, 232_448)  # NVIDIA H100 and H200
BATCHES = 2  # of a training
COUNT = 1 << 12  # numbers of a pass over memory


def asked_for():
    """All kernels that are launched, whatever the results would be: nothing is computed."""
    found = {}

    def launch(kernel, *how):
        found[id(kernel)] = kernel

    def try_all(tried, done, save):
        for _, check in (pair for pairs in tried.values() for pair in pairs):
            with contextlib.suppress(Exception):  # the result is wrong
                check()

    with emulated() as emulator, contextlib.ExitStack() as changed:
        emulator.launch = cuda.launch = launch
        cuda.limits = lambda: GPU
        changed.callback(setattr, correctness, "_all_checked", correctness._all_checked)
        correctness._all_checked = try_all
        side = backend(GPU)
        correctness.check_all(side)
        correctness.check_products(np, GPU.capability)
        correctness.check_products(np, GPU.capability, odd=[sanitizer.SHAPE])
        for ready in bandwidth.passes(np, side, COUNT):
            one = ready()
            one.call(*one.arrays)
        for task, precision in product(trainings(), goals.PRECISIONS):
            _train(side, precision, *task)
    for technique, kind in TECHNIQUES:  # of large products
        for tile, turned in product(technique.TILES, (NN, NT, TN)):
            how = () if kind == "float32" else (VECTORS | WHOLE,)
            kernel = technique.kernel(kind, tile, not turned[0], turned[1], PLAIN, *how)
            found[id(kernel)] = kernel
    return [*found.values(), *(kernel for kernel in KERNELS if id(kernel) not in found)]


def trainings():
    """(layer sizes, batch, training as in correctness.TRAININGS) of all that are checked or measured."""
    networks = [*map(train.ALL_NETWORKS.get, NETWORKS), goals.EPOCH, goals.COMPARISON]
    found = [(network.layer_sizes, network.batch, {}) for network in networks]
    for recipe in accuracy.GPU_RECIPES.values():
        optimizer = "SGD", recipe.rate, {"momentum": accuracy.MOMENTUM, "nesterov": True}
        training = {"optimizer": optimizer, "label_smoothing": accuracy.SMOOTHING, "augment": recipe.augment}
        found.append((recipe.layer_sizes, recipe.batch, training))
    for module, batch in (correctness, 128), (sanitizer, sanitizer.EPOCHS["batch"]):
        layers = module.ONE_HIDDEN, module.TWO_HIDDEN
        found += [(sizes, batch, training) for training in correctness.TRAININGS.values() for sizes in layers]
    return found


def _train(side, precision, sizes, batch, training):
    random, pixels, count = np.random.default_rng(0), int(np.sqrt(sizes[0])), BATCHES * batch
    images = random.integers(0, 256, (count, pixels, pixels)).astype(np.uint8)
    labels = random.integers(0, sizes[-1], count).astype(np.uint8)
    correctness.trained(side, precision, sizes, images, labels, training, batch)


def _keep(kernel):
    if cuda_cache.kept(kernel, CAPABILITY) is None:
        cuda_cache.keep(kernel, CAPABILITY, cuda_cache.made(kernel, CAPABILITY))


def main(folder):
    os.environ["NUMBA_CACHE_DIR"] = folder
    kernels = [kernel for kernel in asked_for() if kernel.runs_on(CAPABILITY)]
    count = os.cpu_count()

    def some(first):
        for kernel in kernels[first::count]:
            _keep(kernel)

    processes = [multiprocessing.get_context("fork").Process(target=some, args=(n,)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    missing = [kernel.name for kernel in kernels if cuda_cache.kept(kernel, CAPABILITY) is None]
    print(f"{len(kernels) - len(missing)} kernels are in {cuda_cache.folder()}", *missing, sep="\nmissing: ")
    return 1 if missing else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.ptx.compiled FOLDER")
    sys.exit(main(sys.argv[1]))
