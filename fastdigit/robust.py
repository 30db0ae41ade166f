"""How well a network holds out under attack, and whether the attack is to be believed.

A network can look strong because an attack is weak: its gradients may say nothing, or too few steps
were made. The checks are those that Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense
of security", ICML 2018, section 3.1, tell from: where one fails, it takes a better attack to know.
"""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from .attacks import FGSM, PGD, attack, check_method
from .errors import ConfigError, DataError, check_number
from .evaluation import evaluate, wilson_interval
from .inputs import as_targets, unpack
from .network import Network

SLACK = 0.01  # by how much accuracies may be off before a check fails
CHECKED = 1000  # images that the checks are made with, the first ones
EPSILONS = {"linf": (0.05, 0.1, 0.2), "l2": (0.5, 1.0, 2.0)}


@dataclass(frozen=True)
class UnderAttack:
    """What is left at one epsilon: the ``accuracy`` of ``count`` images that were attacked; with a target
    also the share that is ``reached``, taken for it."""

    epsilon: float
    count: int
    accuracy: float
    reached: float | None = None

    @property
    def interval(self):
        """The 95 % confidence interval (low, high) of the accuracy."""
        return wilson_interval(round(self.accuracy * self.count), self.count)


@dataclass(frozen=True)
class Check:
    """One sign of an attack that can be believed: ``passed``, and the ``numbers`` that say so."""

    name: str
    passed: bool
    meaning: str
    numbers: dict


@dataclass(frozen=True)
class AdversarialRobustness:
    """What :func:`adversarial_robustness` found. ``attacked`` holds an :class:`UnderAttack` for each epsilon,
    ``checks`` a :class:`Check` each, or nothing where none were asked for."""

    method: FGSM | PGD
    clean: float  # accuracy
    count: int
    attacked: tuple[UnderAttack, ...]
    checks: tuple[Check, ...] = ()
    target: int | None = None

    @property
    def believable(self):
        """Whether all checks that were made have passed."""
        return all(check.passed for check in self.checks)

    def as_dict(self):
        """Everything, ready for JSON."""
        return {
            "method": type(self.method).__name__.lower(),
            **{name: value for name, value in asdict(self.method).items() if name != "epsilon"},
            "images": self.count,
            "clean_accuracy": self.clean,
            "clean_interval_95": list(wilson_interval(round(self.clean * self.count), self.count)),
            "target": self.target,
            "attacked": [{**asdict(each), "interval_95": list(each.interval)} for each in self.attacked],
            "checks": [asdict(check) for check in self.checks],
        }


def adversarial_robustness(net, data, method, epsilons=None, *, target=None, checks=True, other=None, seed=0):
    """Attack labelled images at several epsilons: a :class:`AdversarialRobustness`.

    ``fd.adversarial_robustness(net, data.test, fd.PGD(0.1, step=0.01), (0.05, 0.1, 0.2)).attacked``

    - ``data`` has ``images`` and ``labels`` (as ``dataset.test``), or is a pair of them.
    - ``method``: an FGSM or PGD record; it is used with each of ``epsilons`` in place of its own, by default
      with EPSILONS of its norm.
    - ``target``: the class that images of all others shall be taken for, by a ``targeted`` method; those
      that show it are left out.
    - ``checks``: whether to make them too (:func:`checks_of`), with ``other`` to transfer from.
    - ``seed``: of PGD's random starts.

    Errors: ConfigError, DataError as :func:`fastdigit.attack`, for an epsilon that is none, and for a target
    without a targeted method or the reverse.
    """
    check_method(method)
    images, labels = unpack(data)
    epsilons = EPSILONS[method.norm] if epsilons is None else tuple(epsilons)
    if not epsilons:
        raise ConfigError("there is no epsilon to attack with: give one, such as 0.1")
    for epsilon in epsilons:
        check_number("epsilon", epsilon, "(0, inf)")
    if method.targeted != (target is not None):
        raise ConfigError("target=… and a method with targeted=True belong together")
    images, labels = np.asarray(images), np.asarray(labels)
    if target is not None:
        images, labels = _others(images, labels, target, net.classes)
    wanted = labels if target is None else np.full(len(labels), target)
    clean, attacked = evaluate(net, (images, labels)), []
    for epsilon in sorted(epsilons):
        moved = attack(net, images, wanted, replace(method, epsilon=epsilon), seed=seed)
        guesses = net.predict(moved)
        reached = None if target is None else float((guesses == target).mean())
        found = float((guesses == labels).mean())
        attacked.append(UnderAttack(float(epsilon), len(labels), found, reached))
    found = checks_of(net, (images, labels), method, sorted(epsilons), other, seed) if checks else ()
    return AdversarialRobustness(method, clean.accuracy, clean.count, tuple(attacked), found, target)


def _others(images, labels, target, classes):
    """The images, and their labels, that do not show the target yet. Errors: DataError if there are none."""
    as_targets([target], classes, 1)
    others = np.flatnonzero(labels != target)
    if not len(others):
        raise DataError(f"all images show a {target} already: choose another target")
    return images[others], labels[others]


def checks_of(net, data, method, epsilons, other=None, seed=0):
    """Signs that an attack finds what there is to find: a tuple of :class:`Check`.

    All but the second are made by PGD, without a target on the first CHECKED images, with the norm and steps
    of ``method``, 40 where that is FGSM; ``epsilons`` ascend. An accuracy may be off by SLACK.
    ``other``: a network for the same images. What misleads it is tried on ``net``; without one that check is
    left out.
    """
    images, labels = unpack(data)
    probe = _Probe(net, images[:CHECKED], labels[:CHECKED], method, list(epsilons), seed)
    makers = (_many_steps, _larger_ball, _everything, _more_steps)
    found = [make(probe) for make in makers]
    return tuple(found if other is None else [*found, _transfer(probe, other)])


class _Probe:
    """What the checks share."""

    def __init__(self, net, images, labels, method, epsilons, seed):
        self.net, self.images, self.labels, self.seed = net, images, labels, seed
        self.single_step, self.epsilons = isinstance(method, FGSM), epsilons
        pgd = PGD(method.epsilon, norm=method.norm) if self.single_step else method
        self.method = replace(pgd, targeted=False, restarts=1)
        self.clean = evaluate(net, (images, labels)).accuracy
        self.pgd, self.fgsm = self.at_each(self.method), self.at_each(FGSM(1.0, norm=method.norm))

    def left(self, method, source=None):
        """The accuracy that is left of images that were moved for the network ``source``, or for its own."""
        moved = attack(source or self.net, self.images, self.labels, method, seed=self.seed)
        return evaluate(self.net, (moved, self.labels)).accuracy

    def at_each(self, method, source=None):
        return [self.left(replace(method, epsilon=epsilon), source) for epsilon in self.epsilons]


def _none_above(lower, upper):
    """Whether no accuracy is above its partner, by more than SLACK."""
    return all(a <= b + SLACK for a, b in zip(lower, upper, strict=True))


def _many_steps(probe):
    return Check(
        "many steps beat one",
        _none_above(probe.pgd, probe.fgsm),
        "PGD leaves no more right than the single step of FGSM",
        {"epsilons": probe.epsilons, "pgd": probe.pgd, "fgsm": probe.fgsm},
    )


def _larger_ball(probe):
    """By the method that was asked for."""
    accuracies = [probe.clean, *(probe.fgsm if probe.single_step else probe.pgd)]
    return Check(
        "a larger ball is never safer",
        _none_above(accuracies[1:], accuracies[:-1]),
        "what is found in a ball is in every larger one",
        {"epsilons": [0.0, *probe.epsilons], "accuracy": accuracies},
    )


def _everything(probe):
    """Any image is within reach of any other, so that a gradient that leads anywhere leads there."""
    norm = probe.method.norm
    epsilon = 1.0 if norm == "linf" else math.sqrt(probe.net.layer_sizes[0])
    accuracy = probe.left(PGD(epsilon, norm=norm))
    return Check(
        "nothing is left of everything",
        accuracy <= SLACK,
        "where any picture is allowed, all images are misread",
        {"epsilon": epsilon, "accuracy": accuracy},
    )


def _more_steps(probe):
    method = replace(probe.method, epsilon=probe.epsilons[len(probe.epsilons) // 2])
    method = replace(method, step=method.step_size)
    counts = [max(1, method.steps // 2), method.steps, 2 * method.steps]
    accuracies = [probe.left(replace(method, steps=steps)) for steps in counts]
    return Check(
        "more steps do not help the network",
        _none_above(accuracies[1:], accuracies[:-1]),
        "with twice the steps no more images are read right",
        {"epsilon": method.epsilon, "steps": counts, "accuracy": accuracies},
    )


def _transfer(probe, other):
    """By one whole step: PGD stops where the other network is misled, and this one seldom is by so little."""
    transferred = probe.at_each(FGSM(1.0, norm=probe.method.norm), other)
    return Check(
        "its own gradient is the worst",
        _none_above(probe.pgd, transferred),
        "what misleads another network misleads this one less than its own",
        {"epsilons": probe.epsilons, "own": probe.pgd, "transferred": transferred},
    )


def substitute(train, classes, seed=0):
    """A small network trained on the same kind of images, to transfer attacks from."""
    from .training import fit

    pixels = int(np.prod(train.images.shape[1:]))
    net = Network([pixels, 64, len(classes)], seed=seed, classes=classes)
    fit(net, train, epochs=max(3, math.ceil(1500 * 64 / len(train.labels))), batch_size=64, seed=seed)
    return net
