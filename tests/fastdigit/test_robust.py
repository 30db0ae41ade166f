"""What is left under attack, counted by hand, and checks that notice a gradient that says nothing."""

import json

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import robust


@pytest.fixture(scope="module")
def data():
    """As ``blobs``, for the whole module."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 4, 300).astype(np.uint8)
    images = random.integers(0, 90, (300, 6, 6)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 3 * (label // 2), 3 * (label % 2)
        image[row : row + 3, column : column + 3] += 60
    return fd.Images(images, labels)


@pytest.fixture(scope="module")
def nets(data):
    """Two networks that read these images."""
    found = [fd.Network([36, hidden, 4], backend="numpy", seed=hidden) for hidden in (16, 12)]
    for net in found:
        fd.fit(net, data, epochs=8, batch_size=32)
    return found


@pytest.fixture(scope="module")
def flat(data):
    """A network that reads the images well, by steps of brightness between which its gradient is 0."""
    net = fd.Network([36, 8, 4], backend="numpy")
    weights, sharp = np.zeros((36, 8)), 100
    quadrant = np.kron([[0, 1], [2, 3]], np.ones((3, 3), int)).ravel()
    for q in range(4):
        bright = np.where(quadrant == q, 1 / 9, -1 / 27)
        weights[:, 2 * q : 2 * q + 2] = sharp * bright[:, None]
    steps = np.tile(
        [-sharp * 0.11, -sharp * 0.11 - 1], 4
    )  # each pair rises from 0 to 1 at a contrast of 0.11
    outputs = 20 * np.kron(np.eye(4), [[1], [-1]])
    net.set_parameters({"w1": weights, "b1": steps, "w2": outputs, "b2": np.zeros(4)})
    assert fd.evaluate(net, data).accuracy > 0.95
    return net


def test_it_counts_what_attacks_leave(nets, data):
    net, _ = nets
    method = fd.PGD(9.0, step=0.02, steps=6)
    found = fd.adversarial_robustness(net, data, method, (0.1, 0.03), checks=False, seed=5)
    assert (found.clean, found.count) == (fd.evaluate(net, data).accuracy, 300)
    assert [each.epsilon for each in found.attacked] == [0.03, 0.1]
    for each in found.attacked:
        moved = fd.attack(net, data.images, data.labels, fd.PGD(each.epsilon, step=0.02, steps=6), seed=5)
        assert each.accuracy == fd.evaluate(net, (moved, data.labels)).accuracy
        assert each.interval[0] < each.accuracy < each.interval[1]
        assert each.reached is None
    assert found.checks == ()
    assert found.believable


def test_a_target_leaves_out_its_own_images(nets, data):
    net, _ = nets
    found = fd.adversarial_robustness(
        net, data, fd.FGSM(1.0, targeted=True), (0.1, 0.3), target=2, checks=False
    )
    others = np.flatnonzero(data.labels != 2)
    assert found.count == len(others)
    for each in found.attacked:
        wanted = np.full(len(others), 2)
        moved = fd.attack(net, data.images[others], wanted, fd.FGSM(each.epsilon, targeted=True))
        assert each.reached == (net.predict(moved) == 2).mean()
        assert each.accuracy == (net.predict(moved) == data.labels[others]).mean()
    assert found.attacked[1].reached > found.attacked[0].reached > 0


@pytest.mark.parametrize(
    "method", [fd.PGD(0.1, steps=10), fd.PGD(1.0, steps=10, norm="l2"), fd.FGSM(0.1)], ids=str
)
def test_checks_pass_for_an_ordinary_network(nets, data, method):
    net, other = nets
    epsilons = (0.3, 0.9) if method.norm == "l2" else (0.05, 0.15)
    found = fd.adversarial_robustness(net, data, method, epsilons, other=other)
    assert {check.name: check.passed for check in found.checks} == {
        "many steps beat one": True,
        "a larger ball is never safer": True,
        "nothing is left of everything": True,
        "more steps do not help the network": True,
        "its own gradient is the worst": True,
    }
    numbers = {check.name: check.numbers for check in found.checks}
    own, transferred = (numbers["its own gradient is the worst"][side] for side in ("own", "transferred"))
    assert own[0] < transferred[0]


def test_a_gradient_that_says_nothing_is_noticed(nets, flat, data):
    """The attack finds next to nothing, though another network's gradient misleads this one."""
    found = fd.adversarial_robustness(flat, data, fd.PGD(0.15, steps=10), (0.05, 0.15), other=nets[0])
    assert found.attacked[0].accuracy > 0.9
    failed = {check.name for check in found.checks if not check.passed}
    assert {"nothing is left of everything", "its own gradient is the worst"} <= failed
    assert not found.believable


@pytest.mark.parametrize(
    ("maker", "upset"),
    [
        ("many steps beat one", lambda method: isinstance(method, fd.PGD)),
        ("a larger ball is never safer", lambda method: method.epsilon == 0.15),
        ("nothing is left of everything", lambda method: method.epsilon == 1.0),
        ("more steps do not help the network", lambda method: method.steps == 20),
    ],
)
def test_each_check_can_fail(nets, data, monkeypatch, maker, upset):
    """An attack that does nothing where the check looks."""
    real = robust.attack

    def lame(net, images, labels, method, seed=0):
        return images if upset(method) else real(net, images, labels, method, seed=seed)

    monkeypatch.setattr(robust, "attack", lame)
    found = robust.checks_of(nets[0], data, fd.PGD(0.1, steps=10), (0.05, 0.15))
    assert maker in {check.name for check in found if not check.passed}


def test_the_larger_ball_is_that_of_the_method(nets, data, monkeypatch):
    """A network that has learnt to read FGSM's step, but is misled by PGD as any other."""
    real = robust.attack

    def lame(net, images, labels, method, seed=0):
        learnt = isinstance(method, fd.FGSM) and method.epsilon == 0.15
        return images if learnt else real(net, images, labels, method, seed=seed)

    monkeypatch.setattr(robust, "attack", lame)
    for method, passed in ((fd.PGD(0.1, steps=10), True), (fd.FGSM(0.1), False)):
        found = {check.name: check for check in robust.checks_of(nets[0], data, method, (0.05, 0.15))}
        assert found["a larger ball is never safer"].passed == passed


def test_figures_are_ready_for_json(nets, data):
    found = fd.adversarial_robustness(nets[0], data, fd.PGD(0.1, steps=4), (0.05, 0.1), other=nets[1])
    figures = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (figures["method"], figures["norm"], figures["steps"]) == ("pgd", "linf", 4)
    assert figures["images"] == 300
    assert figures["clean_accuracy"] == found.clean
    assert [row["accuracy"] for row in figures["attacked"]] == [each.accuracy for each in found.attacked]
    assert all(len(row["interval_95"]) == 2 for row in figures["attacked"])
    assert [check["passed"] for check in figures["checks"]] == [check.passed for check in found.checks]
    assert "epsilon" not in figures


def test_what_makes_no_sense(nets, data):
    net, _ = nets
    method, targeted = fd.FGSM(0.1), fd.FGSM(0.1, targeted=True)
    for call, error, message in (
        (lambda: fd.adversarial_robustness(net, data, 0.1), fd.ConfigError, "an attack is made by"),
        (lambda: fd.adversarial_robustness(net, data, method, ()), fd.ConfigError, "there is no epsilon"),
        (
            lambda: fd.adversarial_robustness(net, data, method, (0.1, -1)),
            fd.ConfigError,
            "epsilon must be a number",
        ),
        (lambda: fd.adversarial_robustness(net, data, method, target=1), fd.ConfigError, "belong together"),
        (lambda: fd.adversarial_robustness(net, data, targeted), fd.ConfigError, "belong together"),
        (lambda: fd.adversarial_robustness(net, data, targeted, target=7), fd.DataError, "label 7"),
        (
            lambda: fd.adversarial_robustness(net, data.subset([1]), targeted, target=1),
            fd.DataError,
            "show a 1 already",
        ),
    ):
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_substitute_learns(data):
    net = robust.substitute(data, np.arange(4), seed=1)
    assert fd.evaluate(net, data).accuracy > 0.9
