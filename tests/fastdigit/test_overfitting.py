"""What is there against overfitting and to see it: max-norm, the average of the weights, and the rule that
tells from a log."""

import numpy as np
import pytest

import fastdigit as fd
from fastdigit import training
from fastdigit.log import Epoch
from fastdigit.options import UPKEEP_EVERY

from .conftest import same_bits
from .test_training import plain_training

BATCH = 12  # 25 steps an epoch: weights are looked after behind steps 16 and 25
STEPS = 25
AGAINST = {"max_norm": 1.3, "average": fd.WeightAverage(0.95), "label_smoothing": 0.1}


def lengths(weights):
    return np.sqrt(np.square(weights, dtype=np.float64).sum(axis=0))


def is_due(step):
    return step % UPKEEP_EVERY == 0 or step == STEPS


def plainly(net, blobs, after, **options):
    """Plain steps of gradient descent, and their parameters."""
    rates = [0.3] * 2 * STEPS
    tensors, _ = plain_training(
        net, blobs.images, blobs.labels, rates=rates, batch=BATCH, epochs=2, seed=0, after=after, **options
    )
    return tensors


def descend(net, blobs, **options):
    settings = {"optimizer": fd.SGD(0.3), "schedule": fd.Constant(), "batch_size": BATCH, "epochs": 2}
    return fd.fit(net, blobs, **{**settings, **options})


# --- max-norm -------------------------------------------------------------------------------------


def test_weights_are_shortened_every_few_steps(make_network, blobs):
    def shorten(tensors, step):
        for name, value in tensors.items():
            if name.startswith("w") and is_due(step):
                value *= np.minimum(1, 1.3 / lengths(value))

    net = make_network()
    expected = plainly(net, blobs, shorten)
    descend(net, blobs, max_norm=1.3)
    for name, value in net.get_parameters().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    found = np.concatenate([lengths(value) for name, value in net.get_parameters().items() if name[0] == "w"])
    assert found.max() == pytest.approx(1.3, rel=1e-6)
    assert found.min() < 1.25  # the others are as long as they were


def test_a_norm_that_no_unit_reaches_changes_no_bit(make_network, blobs):
    a, b = make_network(), make_network()
    descend(a, blobs)
    descend(b, blobs, max_norm=1e3)
    assert same_bits(a, b)


# --- the average ----------------------------------------------------------------------------------


def test_a_training_ends_with_the_mean_that_the_record_describes(make_network, blobs):
    """And trains on with the weights themselves: the losses are those without."""
    decay, net, other = 0.9, make_network(), make_network()
    mean, done = {name: value.astype(np.float64) for name, value in net.get_parameters().items()}, [0, 0]

    def look(tensors, step):
        done[0] += 1
        if is_due(step):
            kept = min(decay, (1 + done[0]) / (10 + done[0])) ** (done[0] - done[1])
            done[1] = done[0]
            for name, value in tensors.items():
                mean[name] = kept * mean[name] + (1 - kept) * value

    raw = plainly(net, blobs, look)
    log = descend(net, blobs, average=fd.WeightAverage(decay))
    for name, value in net.get_parameters().items():
        np.testing.assert_allclose(value, mean[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert np.abs(raw["w1"] - mean["w1"]).max() > 1e-2
    assert descend(other, blobs).step_losses == log.step_losses


def test_what_is_kept_of_the_mean():
    average = fd.WeightAverage(0.999)
    assert average.kept(16, 16) == pytest.approx((17 / 26) ** 16)
    assert average.kept(10**6, 16) == pytest.approx(0.999**16)
    assert average.kept(10**6, 1) == 0.999
    with pytest.raises(fd.ConfigError, match="decay must be a number in"):
        fd.WeightAverage(1)


def test_validation_is_of_the_average(make_network, blobs):
    rest, held, seen = blobs.take(np.arange(200)), blobs.take(np.arange(200, 300)), []
    net = make_network()
    log = descend(
        net,
        rest,
        validation=held,
        average=fd.WeightAverage(0.9),
        callbacks=lambda net, log: seen.append(fd.evaluate(net, held).loss),
    )
    assert log.epochs[-1].validation_loss == fd.evaluate(net, held).loss
    assert log.epochs[-1].validation_loss != seen[-1]  # callbacks see what is trained


def test_early_stopping_keeps_the_best_average(make_network, blobs):
    """A training that ends at the best epoch ends with the same weights."""
    rest, held = blobs.take(np.arange(200)), blobs.take(np.arange(200, 300))
    options = {"validation": held, "average": fd.WeightAverage(0.9)}
    stopped, until_then = make_network(), make_network()
    log = descend(stopped, rest, epochs=30, early_stopping=fd.EarlyStopping(2), **options)
    assert log.best_epoch < len(log.epochs) < 30
    descend(until_then, rest, epochs=log.best_epoch, **options)
    assert same_bits(stopped, until_then)


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_how_far_is_trained_at_a_time_changes_no_bit(make_network, blobs, monkeypatch, seconds):
    networks = make_network(dropout=0.2, input_dropout=0.2), make_network(dropout=0.2, input_dropout=0.2)
    for net in networks:
        descend(net, blobs, **AGAINST)
        monkeypatch.setattr(training, "STRETCH_SECONDS", seconds)
    assert same_bits(*networks)


@pytest.mark.parametrize("stop_after", [3, 16, 20, 25, 41])
def test_a_resumed_training_has_the_same_bits(make_network, blobs, tmp_path, stop_after):
    """Broken off before, at and behind the steps that weights are looked after, in both epochs."""
    options = {**AGAINST, "validation": 0.1, "early_stopping": fd.EarlyStopping(2), "batch_size": 11}
    network = {"dropout": 0.2, "input_dropout": 0.2}
    whole, resumed, file = make_network(**network), make_network(**network), tmp_path / "c.safetensors"
    descend(whole, blobs, **options)

    class Interrupt:
        def begin(self, *counts):
            pass

        def steps(self, first, losses):
            if first + len(losses) > stop_after:
                raise KeyboardInterrupt

        epoch = close = begin

    with pytest.raises(KeyboardInterrupt):
        descend(
            make_network(**network),
            blobs,
            checkpoint=file,
            checkpoint_every=1,
            progress=Interrupt(),
            **options,
        )
    descend(resumed, blobs, checkpoint=file, checkpoint_every=7, resume=True, **options)
    assert same_bits(whole, resumed)
    finished = make_network(**network)
    descend(finished, blobs, checkpoint=file, resume=True, **options)
    assert same_bits(whole, finished)


def test_more_epochs_can_be_added(make_network, blobs, tmp_path):
    """A file of a finished training holds what was trained, not only its average."""
    file, straight, extended = tmp_path / "c.safetensors", make_network(), make_network()
    descend(straight, blobs, epochs=3, **AGAINST)
    descend(extended, blobs, epochs=2, checkpoint=file, **AGAINST)
    descend(extended, blobs, epochs=3, checkpoint=file, resume=True, **AGAINST)
    assert same_bits(straight, extended)


def test_a_checkpoint_of_other_options_is_refused(make_network, blobs, tmp_path):
    file = tmp_path / "c.safetensors"
    descend(make_network(), blobs, epochs=1, checkpoint=file, **AGAINST)
    for changed, said in (
        ({"max_norm": None}, "max_norm was 1.3, now None"),
        ({"average": None}, r"average was WeightAverage\(decay=0.95\), now None"),
        ({"label_smoothing": 0}, "label_smoothing was 0.1, now None"),
    ):
        with pytest.raises(fd.CheckpointError, match=said):
            descend(make_network(), blobs, epochs=1, checkpoint=file, resume=True, **{**AGAINST, **changed})


def test_a_checkpoint_without_its_average_contradicts_itself(make_network, blobs, tmp_path):
    from .test_checkpoint import rewrite

    file = tmp_path / "c.safetensors"
    descend(make_network(), blobs, epochs=1, checkpoint=file, **AGAINST)
    rewrite(file, lambda d, tensors: [tensors.pop(name) for name in list(tensors) if name[:4] == "aver"])
    with pytest.raises(fd.CheckpointError, match="contradicts itself"):
        descend(make_network(), blobs, epochs=1, checkpoint=file, resume=True, **AGAINST)


# --- errors ---------------------------------------------------------------------------------------


def test_a_training_that_diverges_leaves_the_weights_of_its_start(make_network, blobs):
    net, before = make_network(), make_network()
    with pytest.raises(fd.TrainingDivergedError):
        descend(net, blobs, optimizer=fd.SGD(1e30), validation=0.2, **AGAINST)
    assert same_bits(net, before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_norm": 0}, "max_norm must be a number in"),
        ({"max_norm": "3"}, "max_norm must be a number in"),
        ({"average": 0.999}, r"average must be WeightAverage\(decay\), got 0.999"),
    ],
)
def test_options_that_make_no_sense(make_network, blobs, options, said):
    with pytest.raises(fd.ConfigError, match=said):
        descend(make_network(), blobs, **options)


# --- seeing it ------------------------------------------------------------------------------------


def log_of(losses, validation_losses):
    epochs = [
        Epoch(n, float(loss), 0.9, 0.1, 1.0, 100.0, other if other is None else float(other), 0.9)
        for n, (loss, other) in enumerate(zip(losses, validation_losses, strict=True), start=1)
    ]
    return fd.TrainingLog(epochs=epochs)


def first_alarm(losses, validation_losses):
    """The epoch that the rule speaks up in, as a training goes on; None if never."""
    for n in range(1, len(losses) + 1):
        if log_of(losses[:n], validation_losses[:n]).overfitting:
            return n
    return None


EPOCHS = np.arange(1, 61)
FALLING = np.exp(-EPOCHS / 10)
TURNING = 0.3 + 0.02 * np.abs(EPOCHS - 15)  # lowest in epoch 15


def test_a_gap_that_opens_is_seen_and_dated():
    assert log_of(FALLING, TURNING).overfitting == 15
    assert 20 <= first_alarm(FALLING, TURNING) <= 30


@pytest.mark.parametrize(
    ("losses", "validation_losses"),
    [
        (FALLING, 0.3 + FALLING),
        (FALLING, np.full(60, 0.3)),
        (FALLING, 0.3 + 0.0001 * EPOCHS),  # rises, by too little to matter
        (0.3 + TURNING, TURNING),  # both rise: another trouble
        (FALLING[:9], TURNING[10:19]),  # too few to tell
        (FALLING, [None] * 60),
        ([], []),
    ],
    ids=["healthy", "flat", "hardly", "both rise", "too few", "no validation", "nothing"],
)
def test_no_alarm(losses, validation_losses):
    assert first_alarm(losses, validation_losses) is None


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.3])
def test_noise_is_no_alarm(noise):
    """Forty trainings of a hundred epochs, looked at after each."""
    random, n = np.random.default_rng(0), np.arange(1, 101)
    for _ in range(40):
        losses = np.exp(-n / 10) * np.exp(0.05 * random.standard_normal(100))
        validation_losses = (0.3 + np.exp(-n / 6)) * np.exp(noise * random.standard_normal(100))
        assert first_alarm(losses, validation_losses) is None


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.1])
def test_a_gap_is_seen_through_noise(noise):
    random = np.random.default_rng(0)
    for _ in range(30):
        validation_losses = TURNING * np.exp(noise * random.standard_normal(60))
        assert first_alarm(FALLING, validation_losses) is not None


@pytest.fixture(scope="module")
def few_digits():
    data = fd.load_digits()
    return data.train.take(np.arange(200)), data.test


def test_a_real_overfitting(few_digits):
    """A wide network without dropout, on few images."""
    train, held = few_digits
    net = fd.Network([784, 256, 10], backend="cpu", seed=0)
    options = {"optimizer": fd.Adam(3e-3), "schedule": fd.Constant(), "batch_size": 25}
    log = fd.fit(net, train, validation=held, epochs=60, **options)
    losses = [epoch.validation_loss for epoch in log.epochs]
    assert losses[-1] > 1.05 * min(losses)
    assert abs(log.overfitting - 1 - np.argmin(losses)) <= 5


def test_a_real_training_that_is_healthy(few_digits):
    """The defaults for small data."""
    train, held = few_digits
    net = fd.Network([784, 128, 10], backend="cpu", seed=0, dropout=0.3)
    optimizer = fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    seen = []
    options = {"callbacks": lambda net, log: seen.append(log.overfitting), "batch_size": 32}
    fd.fit(net, train, validation=held, optimizer=optimizer, epochs=60, **options)
    assert seen == [None] * 60
