"""``fastdigit bench``: the parts of the suite, one after the other, and one JSON file of all results.

A part that cannot run here leaves a row that says why; what was measured before is kept. The file holds the
machine, the versions and the commit (``bench.machine``), the settings, and one entry for each part:
``bench.report`` makes tables and pages of it, ``bench.compare`` holds two of them against each other.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import fastdigit as fd
from fastdigit.errors import ConfigError, FastdigitError

from . import (
    accuracy,
    ceilings,
    compare,
    kernels,
    machine,
    peers,
    predict,
    profile,
    scaling,
    start,
    train,
)
from .gpu import run as gpu

FORMAT = 2
PARTS = ("start", "train", "predict", "accuracy", "kernels", "profile", "scaling", "gpu")
MISSING = "is not installed"


@dataclass(frozen=True)
class Settings:
    """What to measure. ``backends``: ours, the first one with everything, others beside it. ``python``: the
    interpreter of the peers. ``rounds`` and ``seconds`` are those of ``train``."""

    parts: tuple[str, ...] = PARTS
    backends: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    batch: int | None = None
    python: str = sys.executable
    rounds: int = train.ROUNDS
    seconds: float = train.SECONDS
    quick: bool = False

    @classmethod
    def quickly(cls, **chosen):
        """What a minute is enough for, without compiling from nothing."""
        parts = tuple(part for part in PARTS if part not in ("scaling", "gpu"))
        chosen = {"parts": parts, "networks": ("small-128", "medium-128"), **chosen}
        return cls(**{"rounds": 3, "seconds": 0.4, "quick": True, **chosen})

    def checked(self):
        """Itself, complete: ConfigError for what does not exist, BackendError for what cannot run here."""
        for what, chosen, known in (
            ("part", self.parts, PARTS),
            ("network", self.networks, train.NETWORKS),
            ("backend", self.backends, fd.backends()),
        ):
            for name in chosen:
                if name not in known:
                    raise ConfigError(f"there is no {what} {name!r}: choose from {', '.join(known)}")
        for name in self.backends:
            fd.get_backend(name)
        if shutil.which(self.python) is None:
            raise ConfigError(f"there is no interpreter {self.python}: --python names one that has the peers")
        usable = [name for name, state in fd.backends().items() if state == "ok"]
        best = fd.get_backend("auto").name
        every = tuple(sorted(usable, key=lambda name: name != best))
        backends = self.backends or (every[:1] if self.quick else every)
        return replace(self, backends=backends, networks=self.networks or tuple(train.NETWORKS))

    def chosen_networks(self):
        """{name: network}."""
        chosen = {name: train.NETWORKS[name] for name in self.networks}
        if self.batch is None:
            return chosen
        again = {name.rpartition("-")[0]: network for name, network in chosen.items()}
        return {f"{name}-{self.batch}": replace(n, batch=self.batch) for name, n in again.items()}


def data_set():
    """(name, data): MNIST, or where that cannot be had the embedded digits."""
    try:
        return "mnist", fd.load_mnist()
    except (FastdigitError, OSError):
        return "digits", fd.load_digits()


def run(settings, say=print, save=None):
    """All parts: {"machine", "settings", "data", part: result, …}. ``save`` gets it after each part."""
    settings, results = settings.checked(), {}
    name, data = data_set()
    results = {
        "format": FORMAT,
        "machine": machine.describe(settings.python),
        "settings": {**asdict(settings), "python": Path(settings.python).name},
        "data": name,
        "limits": {"gflops": ceilings.multiply_add(), "copy": ceilings.copy()},
    }
    for part in settings.parts:
        begun = time.perf_counter()
        if part in compare.LIMITED:
            results["limits"][part] = ceilings.multiply_add()
        say(f"{part} …")
        try:
            results[part] = MEASURE[part](settings, name, data)
        except (FastdigitError, OSError, RuntimeError) as error:
            results[part] = {"no_time": f"{type(error).__name__}: {error}"}
        say(f"{part}: {time.perf_counter() - begun:.0f} s")
        if save is not None:
            save(results)
    return results


def _start(settings, name, data):
    backend = settings.backends[0]
    # Also for what follows: a "first call" there is that of a new process, not of a new installation.
    start.compile_all(backend, next(iter(settings.chosen_networks().values())))
    return start.measure(backend, *((False, 3) if settings.quick else (True, 5)))


def _train(settings, name, data):
    chosen, networks = settings.chosen_networks(), []
    for network in chosen.values():
        sides = train.sides_for(network, None)
        if settings.quick:
            sides = [s for s in sides if peers.SIDES[s].precision == "float32" and "1thread" not in s]
        sides += [f"fastdigit-{b}" for b in settings.backends[1:] if f"fastdigit-{b}" in peers.SIDES]
        networks.append((network, sides))
    how = settings.rounds, settings.seconds, settings.backends[0], settings.python
    passes = 1 if settings.quick else train.PASSES
    found = train.measure_all(networks, data.train, *how, passes)
    return [{"name": label, **result} for label, result in zip(chosen, found, strict=True)]


def _predict(settings, name, data):
    rounds = 1 if settings.quick else 9
    return predict.measure(data, list(predict.SIDES), rounds, settings.backends[0], settings.python)


def _accuracy(settings, name, data):
    if name != "mnist":
        return {"no_time": "needs MNIST, which is not here and could not be downloaded"}
    how = {"seeds": 1, "most": 0.98} if settings.quick else {}
    return accuracy.measure(settings.backends, python=settings.python, **how)


def _kernels(settings, name, data):
    backends, networks = settings.backends, list(settings.chosen_networks().values())
    networks = networks[:1] if settings.quick else networks
    baseline = "numpy" if "numpy" in fd.backends() else backends[-1]
    limits, rows = kernels.measure(backends, networks, 5 if settings.quick else 9, baseline)
    return {"limits": limits, "rows": rows}


def _profile(settings, name, data):
    networks = settings.chosen_networks()
    return [profile.measure(n, data.train, settings.backends[0]) for n in networks.values()]


def _scaling(settings, name, data):
    return scaling.measure(data.train, settings.backends[0])


def _gpu(settings, name, data):
    """With its own networks, rounds and seconds, where nobody chose others."""
    chosen = {"networks": settings.networks, "rounds": settings.rounds, "seconds": settings.seconds}
    usual = {"networks": tuple(train.NETWORKS), "rounds": train.ROUNDS, "seconds": train.SECONDS}
    chosen = {name: value for name, value in chosen.items() if value != usual[name]}
    return gpu.measure(python=settings.python, **chosen)


MEASURE = {
    "start": _start,
    "train": _train,
    "predict": _predict,
    "accuracy": _accuracy,
    "kernels": _kernels,
    "profile": _profile,
    "scaling": _scaling,
    "gpu": _gpu,
}


write = machine.save


def read(path):
    """The results in a file; ConfigError if there is none, or none of ours."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}: name one that fastdigit bench has written") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ConfigError(f"{path} was not written by this version of fastdigit bench")
    return results
