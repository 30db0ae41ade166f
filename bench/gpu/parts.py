"""The parts of ``bench.gpu``: each a function of options and of ``save``, which gets what there is so far.

In the order in which they are measured: what decides most comes first.
"""

import time
from functools import partial

import fastdigit as fd

from .. import train
from . import bandwidth, correctness, goals, launches, multiplication, products, sanitizer, steps

FLOAT32_SIDES = (
    *("fastdigit-cuda", "torch-cuda-graph", "torch-cuda-compile", "torch-cuda-compile-graph", "jax-cuda"),
)
TF32_SIDES = ("fastdigit-cuda-tf32", "torch-cuda-tf32")
BF16_SIDES = ("fastdigit-cuda-bf16", "torch-cuda-bf16", "torch-cuda-compile-bf16", "jax-cuda-bf16")
NETWORKS = ("small-128", "deep-512", "deep-4096")  # of latency, and of arithmetic
PATIENCE = 100  # seconds in which a side must have compiled, or answered
READY = 0.65  # of a network's time, in which its sides must have compiled
LEAST = 15  # seconds without which no network is begun
IN_TIME = 0.95  # of a part's time, in which it ends by itself
SHARE = 0.8  # of a part's time, in which it begins what nobody asked for, or has what it starts end


def sides_of(network):
    """Those with something asked of them: in float32 where latency decides, else in bfloat16."""
    return list(BF16_SIDES if network.layer_sizes == train.cases.DEEP else FLOAT32_SIDES)


def more_sides_of(network):
    """Those of which nothing is asked."""
    return [] if network.layer_sizes == train.cases.DEEP else list(TF32_SIDES)


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


def _steps(options, save):
    import cupy

    return steps.steps(cupy, fd.get_backend("cuda"), multiplication.capability(), save=save)


def _train(options, save):
    """What is asked for of all networks, each of which gets its share of the time left; then the rest,
    while there is time. A network's result, as far as it came, stays whatever becomes of the others."""
    data, found = fd.load_mnist().train, {}
    until = time.monotonic() + IN_TIME * options["left"]
    networks = {name: train.ALL_NETWORKS[name] for name in options["networks"]}
    asked = [(name, sides_of(network)) for name, network in networks.items()]
    more = [(name, more_sides_of(network)) for name, network in networks.items()]

    def keep(before, name, result):
        found[name] = _together(before, {"name": name, **result})
        save(list(found.values()))

    for number, (name, sides) in enumerate([*asked, *((name, sides) for name, sides in more if sides)]):
        left = (until - time.monotonic()) / max(1, len(asked) - number)
        kept = partial(keep, found.get(name), name)
        kept(_compared(networks[name], data, sides, options, left, kept))
    return list(found.values())


def _compared(network, data, sides, options, left, save):
    """The result of a network in so many seconds, as far as one comes; ``save`` gets it meanwhile."""
    task = train.task_of(network, data, "cuda", whole=True)
    comparison = train.Comparison(task, sides, options["python"])
    if left < LEAST:
        comparison.give_up("no time was left for it")
        return comparison.result()
    until, patience = time.monotonic() + left, min(PATIENCE, READY * left)
    try:
        comparison.take_turns_at_once(options["rounds"], options["seconds"], patience, until, save)
    except Exception as error:  # whatever it is, the other networks are measured
        comparison.give_up(correctness.said(error))
    return comparison.result()


def _together(before, result):
    """The results of some sides of a network, if there are such, and of others."""
    if before is None:
        return result
    best = {**before["best_peers"], **result["best_peers"]}
    return {**before, "rows": before["rows"] + result["rows"], "best_peers": best}


def _sanitizer(options, save):
    return sanitizer.sanitizer(SHARE * options["left"], save=save)


PARTS = {
    "checks": _checks("cuda"),
    "launches": _of_cuda(_launches),
    "goals": _of_cuda(_goals),
    "epochs": _of_cuda(_epochs),
    "products": _of_cuda(_products),
    "bandwidth": _of_cuda(_bandwidth),
    "steps": _of_cuda(_steps),
    "train": _of_cuda(_train),
    "sanitizer": _of_cuda(_sanitizer),
    "cupy": _checks("cupy"),
}
# Seconds at most; what the budget leaves is less. The first seven fit in a call of ten minutes.
LONGEST = {
    "checks": 110,
    "launches": 40,
    "goals": 130,
    "epochs": 80,
    "products": 100,
    "bandwidth": 60,
    "steps": 60,
    "train": 270,
    "sanitizer": 150,
    "cupy": 90,
}
