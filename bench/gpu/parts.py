"""The parts of ``bench.gpu``: each a function of options and of ``save``, which gets what there is so far.

In the order in which they are measured: what decides most comes first.
"""

import time

import fastdigit as fd

from .. import train
from . import bandwidth, correctness, goals, launches, multiplication, products, sanitizer

FLOAT32_SIDES = (
    *("fastdigit-cuda", "torch-cuda-graph", "torch-cuda-compile", "torch-cuda-compile-graph", "jax-cuda"),
    *("fastdigit-cuda-tf32", "torch-cuda-tf32"),
)
BF16_SIDES = ("fastdigit-cuda-bf16", "torch-cuda-bf16", "torch-cuda-compile-bf16", "jax-cuda-bf16")
NETWORKS = ("small-128", "deep-512", "deep-4096")  # of latency, and of arithmetic
PATIENCE = 100  # seconds in which a side must have compiled, or answered
SHARE = 0.8  # of a part's time, in which it begins what nobody asked for, or has what it starts end


def sides_of(network):
    """Those with something asked of them: in float32 or TF32 where latency decides, else in bfloat16."""
    return list(BF16_SIDES if network.layer_sizes == train.cases.DEEP else FLOAT32_SIDES)


def _checks(name):
    """The checks of that backend. ``options["found"]``: what another process has found before a fault."""

    def checks(options, save):
        if name not in options["usable"]:
            return {"no_time": f"backend {name} cannot run here"}
        found = {name: dict((options.get("found") or {}).get(name, {}))}

        def keep(results):
            found[name] |= results
            save(found)

        correctness.check_all(fd.get_backend(name), done=tuple(found[name]), save=keep)
        if name == "cuda":
            import cupy

            capability = multiplication.capability()
            correctness.check_products(cupy, capability, tuple(found[name]), keep)
        return found

    return checks


def _of_cuda(measure):
    """A part that is about the ``cuda`` backend alone."""

    def part(options, save):
        if "cuda" not in options["usable"]:
            return {"no_time": "backend cuda cannot run here"}
        return measure(options, save)

    return part


def _launches(options, save):
    return launches.launches()


def _goals(options, save):
    return goals.goals(fd.get_backend("cuda"), fd.load_mnist(), save)


def _epochs(options, save):
    precisions = fd.get_backend("cuda").precisions
    chosen = [name for name in correctness.APART if name in precisions]
    return correctness.check_epochs("cuda", chosen, save=save)


def _products(options, save):
    import cupy

    until = time.monotonic() + SHARE * options["left"]
    return products.products(cupy, multiplication.capability(), save=save, until=until)


def _bandwidth(options, save):
    import cupy

    return bandwidth.bandwidth(cupy, fd.get_backend("cuda"), save=save)


def _train(options, save):
    data, found = fd.load_mnist().train, []
    how = options["rounds"], options["seconds"], "cuda", options["python"]
    more = {"passes": 1, "whole": True, "patience": PATIENCE, "limited": False}
    for name in options["networks"]:
        network = train.ALL_NETWORKS[name]
        (result,) = train.measure_all([(network, sides_of(network))], data, *how, **more)
        found.append({"name": name, **result})
        save(found)
    return found


def _sanitizer(options, save):
    return sanitizer.sanitizer(min(sanitizer.SECONDS, SHARE * options["left"]), save=save)


PARTS = {
    "checks": _checks("cuda"),
    "launches": _of_cuda(_launches),
    "goals": _of_cuda(_goals),
    "epochs": _of_cuda(_epochs),
    "products": _of_cuda(_products),
    "bandwidth": _of_cuda(_bandwidth),
    "train": _of_cuda(_train),
    "sanitizer": _of_cuda(_sanitizer),
    "cupy": _checks("cupy"),
}
# Seconds at most; what the budget leaves is less. The first six fit in a call of ten minutes.
LONGEST = {
    "checks": 110,
    "launches": 40,
    "goals": 130,
    "epochs": 80,
    "products": 100,
    "bandwidth": 60,
    "train": 270,
    "sanitizer": 150,
    "cupy": 90,
}
