"""The training loop against a plain loop, its promises about bits, and its errors."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import checks
from fastdigit.streams import ORDER, random_stream

from .conftest import same_bits


def plain_training(
    net, images, labels, *, rates, batch, epochs, seed, momentum=0.0, weight=None, after=lambda *step: None
):
    """Float64 minibatch SGD with nothing of fastdigit but the starting point and the order.

    ``after`` is called with the tensors and the step of the epoch, from 1.
    """
    x = images.reshape(len(images), -1) / 255
    tensors = {name: value.astype(np.float64) for name, value in net.get_parameters().items()}
    layers = len(tensors) // 2
    velocity = {name: np.zeros_like(value) for name, value in tensors.items()}
    weight = np.ones(len(x)) if weight is None else weight * len(x) / weight.sum()
    losses, rates = [], iter(rates)
    for epoch in range(epochs):
        order = random_stream(seed, ORDER, epoch).permutation(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            ys = [x[rows]]
            for layer in range(1, layers + 1):
                z = ys[-1] @ tensors[f"w{layer}"] + tensors[f"b{layer}"]
                ys.append(np.maximum(z, 0) if layer < layers else z)
            p = np.exp(ys[-1] - ys[-1].max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            t = labels[rows]
            losses.append(np.mean(-np.log(p[np.arange(len(rows)), t]) * weight[rows]))
            p[np.arange(len(rows)), t] -= 1
            dz = p * weight[rows, None] / len(rows)
            gradients = {}
            for layer in range(layers, 0, -1):
                gradients[f"w{layer}"] = ys[layer - 1].T @ dz
                gradients[f"b{layer}"] = dz.sum(axis=0)
                dz = (dz @ tensors[f"w{layer}"].T) * (ys[layer - 1] > 0)
            rate = next(rates)
            for name, gradient in gradients.items():
                velocity[name] = momentum * velocity[name] + gradient
                tensors[name] -= rate * velocity[name]
            after(tensors, start // batch + 1)
    return tensors, losses


# In float64, where 600 steps of one image each stay close together; in float32 over fewer steps.
@pytest.mark.parametrize(
    ("precision", "batch"),
    [("float64", 1), ("float64", 32), ("float32", 32), ("float32", 299), ("float32", 300), ("float32", 301)],
)
def test_trains_as_a_plain_loop_does(make_network, backend, blobs, precision, batch):
    if precision not in backend.precisions:
        pytest.skip(f"{backend.name} does not compute in {precision}")
    net = make_network(precision=precision)
    steps = 2 * math.ceil(300 / batch)
    rates = [0.05 * fd.OneCycle()(step, steps, steps // 2) for step in range(steps)]
    expected, losses = plain_training(
        net, blobs.images, blobs.labels, rates=rates, batch=batch, epochs=2, seed=5, momentum=0.9
    )
    log = fd.fit(net, blobs, optimizer=fd.SGD(0.05, momentum=0.9), epochs=2, batch_size=batch, seed=5)
    assert len(log.step_losses) == steps
    rtol, atol = (1e-7, 1e-10) if precision == "float64" else (1e-3, 1e-4)
    np.testing.assert_allclose(log.step_losses, losses, rtol=rtol, atol=atol)
    for name, value in net.get_parameters().items():
        np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=atol)


def test_sample_weights_weigh(make_network, blobs):
    weight = np.random.default_rng(0).uniform(0, 3, 300)
    net = make_network()
    expected, losses = plain_training(
        net, blobs.images, blobs.labels, rates=[0.1] * 8, batch=80, epochs=2, seed=0, weight=weight
    )
    log = fd.fit(
        net,
        (blobs.images, blobs.labels),
        optimizer=fd.SGD(0.1),
        schedule=fd.Constant(),
        epochs=2,
        batch_size=80,
        sample_weight=weight,
    )
    np.testing.assert_allclose(log.step_losses, losses, rtol=1e-4)
    for name, value in net.get_parameters().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


def test_inputs_are_dropped_by_the_definition_of_dropout(make_network, blobs):
    """A step of gradient descent is that of the images with Philox's masks, scaled up, and no others."""
    seed, layer, rate = 3, 2**32 - 1, 0.3
    masked, plain = make_network(input_dropout=rate, pixels=False), make_network(pixels=False)
    order = random_stream(5, ORDER, 0).permutation(300)
    keep = checks.keep_mask((300, 36), rate, (seed, layer), 0)
    images = blobs.images[order].reshape(300, 36) / 255 * keep / (1 - rate)
    gradients = plain.gradients(images, blobs.labels[order])
    options = {"batch_size": 300, "epochs": 1, "seed": 5, "schedule": fd.Constant()}
    log = fd.fit(masked, blobs, optimizer=fd.SGD(0.5), **options)
    assert log.loss == pytest.approx(plain.loss(images, blobs.labels[order]), rel=1e-5)
    for name, value in plain.get_parameters().items():
        expected = value - 0.5 * gradients[name]
        np.testing.assert_allclose(masked.get_parameters()[name], expected, rtol=1e-4, atol=1e-6)


def test_dropping_inputs_leaves_the_masks_of_hidden_layers(make_network):
    """Nothing can be dropped of blank images, so all that there is comes from hidden masks."""
    blank = np.zeros((60, 6, 6), np.uint8), np.arange(60) % 4
    a, b = make_network(dropout=0.5), make_network(dropout=0.5, input_dropout=0.5)
    for net in (a, b):
        bias = {name: value + 0.5 * name.startswith("b") for name, value in net.get_parameters().items()}
        net.set_parameters(bias)
        fd.fit(net, blank, epochs=3, batch_size=20)
    assert same_bits(a, b)


def test_smoothed_labels_are_for_the_training_loss_alone(make_network, blobs):
    """The first step, of all images, has the loss of the formula; validation has the plain one."""
    net, held = make_network(), blobs.take(np.arange(100))
    z = net.logits(blobs.images).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    target = log_p[np.arange(300), blobs.labels]
    expected = -(0.8 * target + 0.2 * log_p.mean(axis=1)).mean()
    log = fd.fit(net, blobs, epochs=1, batch_size=300, validation=held, label_smoothing=0.2)
    assert log.step_losses == [pytest.approx(expected, rel=1e-5)]
    assert log.epochs[0].validation_loss == fd.evaluate(net, held).loss


def test_it_learns_and_the_log_tells(make_network, blobs):
    net = make_network()
    log = fd.fit(net, blobs, epochs=8, batch_size=32, validation=0.2)
    assert [record.epoch for record in log.epochs] == list(range(1, 9))
    assert log.epochs[0].loss > 3 * log.loss
    assert log.accuracy > 0.95
    assert log.epochs[-1].validation_accuracy > 0.9
    assert fd.evaluate(net, blobs).accuracy > 0.95
    steps = math.ceil(240 / 32)
    assert len(log.step_losses) == 8 * steps
    # The mean of an epoch weighs its short last batch (16 images) by what it holds.
    sizes = [32] * (steps - 1) + [240 - 32 * (steps - 1)]
    assert log.loss == pytest.approx(np.average(log.step_losses[-steps:], weights=sizes))
    assert log.epochs[0].images_per_second > 0


def test_same_seed_same_bits_and_another_seed_other_bits(make_network, blobs):
    first, again, other = make_network(dropout=0.3), make_network(dropout=0.3), make_network(dropout=0.3)
    fd.fit(first, blobs, epochs=2, seed=1)
    fd.fit(again, blobs, epochs=2, seed=1)
    fd.fit(other, blobs, epochs=2, seed=2)
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize(
    "optimizer",
    [
        fd.SGD(0.1),
        fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        fd.Adam(0.01),
        fd.AdamW(0.01, weight_decay=0.1),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
@pytest.mark.parametrize("stop_after", [1, 4, 10, 13])
def test_a_resumed_training_has_the_same_bits(make_network, blobs, tmp_path, optimizer, stop_after):
    """Broken off after any number of steps (10 make an epoch), at any checkpoint before."""
    options = {
        "optimizer": optimizer,
        "epochs": 3,
        "batch_size": 30,
        "seed": 4,
        "clip_norm": 2.0,
        "validation": 0.1,
        "early_stopping": fd.EarlyStopping(2),
    }
    whole = make_network(dropout=0.2)
    log = fd.fit(whole, blobs, **options)

    class Interrupt:
        seen = 0

        def begin(self, *counts):
            self.counts = counts

        def steps(self, first, losses):
            self.seen += len(losses)
            if self.seen >= stop_after:
                raise KeyboardInterrupt

        def epoch(self, record):
            pass

        def close(self):
            pass

    file = tmp_path / "checkpoint.safetensors"
    interrupted = make_network(dropout=0.2)
    with pytest.raises(KeyboardInterrupt):
        fd.fit(interrupted, blobs, checkpoint=file, checkpoint_every=1, progress=Interrupt(), **options)

    resumed = make_network(dropout=0.2)
    resumed_log = fd.fit(resumed, blobs, checkpoint=file, checkpoint_every=4, resume=True, **options)
    assert same_bits(whole, resumed)
    assert resumed_log.step_losses == log.step_losses
    without_times = {"seconds": 0, "images_per_second": 0}
    assert [dataclasses.replace(e, **without_times) for e in resumed_log.epochs] == [
        dataclasses.replace(e, **without_times) for e in log.epochs
    ]
    assert resumed_log.best_epoch == log.best_epoch
    # And once more: a finished training has nothing left to do.
    finished = make_network(dropout=0.2)
    fd.fit(finished, blobs, checkpoint=file, resume=True, **options)
    assert same_bits(whole, finished)


def test_more_epochs_can_be_added(make_network, blobs, tmp_path):
    file = tmp_path / "c.safetensors"
    options = {"schedule": fd.Constant(), "batch_size": 50}
    straight, extended = make_network(), make_network()
    fd.fit(straight, blobs, epochs=4, **options)
    fd.fit(extended, blobs, epochs=2, checkpoint=file, **options)
    fd.fit(extended, blobs, epochs=4, checkpoint=file, resume=True, **options)
    assert same_bits(straight, extended)


def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(make_network, blobs, tmp_path):
    file = tmp_path / "c.safetensors"
    fd.fit(make_network(), blobs, epochs=1, checkpoint=file)
    net, before = make_network(), make_network()

    def refused(data=blobs, **options):
        with pytest.raises(fd.CheckpointError) as error:
            fd.fit(net, data, checkpoint=file, resume=True, **{"epochs": 1, **options})
        assert same_bits(net, before)
        return str(error.value)

    assert "batch_size was 128, now 64" in refused(batch_size=64)
    assert "optimizer was SGD(learning_rate=0.1" in refused(optimizer=fd.Adam())
    assert "seed was 0, now 9" in refused(seed=9)
    assert "data was" in refused(data=blobs.take(np.arange(299)))
    assert "data was" in refused(sample_weight=np.arange(300.0))
    with pytest.raises(fd.ConfigError, match="exists already: pass resume=True"):
        fd.fit(net, blobs, epochs=1, checkpoint=file)
    other = fd.Network([36, 17, 12, 4], backend=net.backend)
    with pytest.raises(fd.CheckpointError, match=r"w1 is 36×16, expected 36×17.*w2 is 16×12, expected 17×12"):
        fd.fit(other, blobs, epochs=1, checkpoint=file, resume=True)


def test_early_stopping_keeps_the_best_weights(make_network, blobs):
    seen = []
    net = make_network()
    log = fd.fit(
        net,
        blobs,
        epochs=60,
        batch_size=20,
        validation=0.3,
        early_stopping=fd.EarlyStopping(3),
        schedule=fd.Constant(),
        callbacks=[lambda net, log: seen.append(net.get_parameters())],
    )
    assert len(log.epochs) < 60
    assert log.stopped == "no better validation accuracy in 3 epochs"
    assert len(log.epochs) == log.best_epoch + 3
    scores = [record.validation_accuracy for record in log.epochs]
    assert log.best_epoch == 1 + scores.index(max(scores))
    for name, value in net.get_parameters().items():
        np.testing.assert_array_equal(value, seen[log.best_epoch - 1][name])


def test_validation_images_are_not_trained_on(make_network, blobs):
    """Their labels can be anything without changing the weights."""
    rest, held = blobs.take(np.arange(200)), blobs.take(np.arange(200, 300))
    a, b = make_network(), make_network()
    fd.fit(a, rest, epochs=2, validation=held)
    fd.fit(b, rest, epochs=2, validation=(held.images, (held.labels + 1) % 4))
    assert same_bits(a, b)


def test_a_callback_can_stop(make_network, blobs):
    log = fd.fit(make_network(), blobs, epochs=9, callbacks=[lambda net, log: len(log.epochs) == 3])
    assert len(log.epochs) == 3
    assert log.stopped == "a callback asked to stop"


def test_clipping_bounds_the_first_step(make_network, blobs):
    net = make_network()
    before = np.concatenate([v.ravel() for v in net.get_parameters().values()])
    fd.fit(
        net,
        blobs,
        epochs=1,
        batch_size=300,
        clip_norm=0.01,
        optimizer=fd.SGD(1.0),
        schedule=fd.Constant(),
    )
    after = np.concatenate([v.ravel() for v in net.get_parameters().values()])
    assert np.linalg.norm(after - before) == pytest.approx(0.01, rel=1e-3)


def test_json_lines_are_complete_and_survive_a_resume(make_network, blobs, tmp_path):
    log_file, file = tmp_path / "log.jsonl", tmp_path / "c.safetensors"
    options = {"batch_size": 30, "log_file": log_file, "checkpoint": file, "schedule": fd.Constant()}
    fd.fit(make_network(), blobs, epochs=2, **options)
    with log_file.open("a") as lines:  # what a kill leaves behind: lines past the checkpoint, one cut
        lines.write('{"kind": "step", "step": 21, "loss": 9.0}\n{"kind": "st')
    log = fd.fit(make_network(), blobs, epochs=3, resume=True, **options)
    records = [json.loads(line) for line in log_file.read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 31))
    assert [record["loss"] for record in steps] == log.step_losses
    assert [record["epoch"] for record in records if record["kind"] == "epoch"] == [1, 2, 3]
    assert [record["kind"] for record in records].index("epoch") == 10


def test_divergence_names_the_step_and_keeps_the_last_good_state(make_network, blobs, tmp_path):
    file = tmp_path / "c.safetensors"
    net = make_network()
    boom = [1.0] * 12 + [1e30] * 100

    def schedule(step, steps, steps_per_epoch):
        return boom[step]

    with pytest.raises(
        fd.TrainingDivergedError, match=r"loss became (nan|inf) in step 1[45] .*smaller"
    ) as error:
        fd.fit(
            net,
            blobs,
            epochs=3,
            batch_size=30,
            optimizer=fd.SGD(0.05),
            schedule=schedule,
            checkpoint=file,
        )
    assert error.value.step in (14, 15)
    assert str(file) in str(error.value)
    kept = fd.Network.load(file, backend=net.backend)
    assert same_bits(kept, net)  # both are back at the end of epoch 1
    reference = make_network()
    fd.fit(reference, blobs, epochs=1, batch_size=30, optimizer=fd.SGD(0.05), schedule=fd.Constant())
    assert same_bits(kept, reference)


def test_weights_that_overflow_in_the_very_last_step_are_noticed(make_network, blobs):
    """The loss of every step is finite; only the update after the last one is not."""
    net, before = make_network(), make_network()
    with pytest.raises(fd.TrainingDivergedError, match=r"no longer finite in step 1\b"):
        fd.fit(net, blobs, epochs=1, batch_size=300, optimizer=fd.SGD(1e39), schedule=fd.Constant())
    assert same_bits(net, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"clip_norm": 0}, "clip_norm must be a number in"),
        ({"label_smoothing": 1.0}, "label_smoothing must be a number in"),
        ({"label_smoothing": -0.1}, "label_smoothing must be a number in"),
        ({"validation": 1.5}, "validation must be a fraction"),
        ({"early_stopping": fd.EarlyStopping()}, "needs validation data"),
        ({"resume": True}, "needs the checkpoint"),
        ({"checkpoint_every": 5}, "needs a checkpoint file"),
        ({"path": "fast"}, "path must be"),
        ({"optimizer": 0.1}, "optimizer must be"),
        ({"optimizer": "sgd"}, "optimizer must be"),
    ],
)
def test_options_that_make_no_sense(make_network, blobs, options, message):
    with pytest.raises(fd.ConfigError, match=message):
        fd.fit(make_network(), blobs, **options)


def test_data_that_makes_no_sense(make_network, blobs):
    net = make_network()
    with pytest.raises(fd.DataError, match="no images to train on"):
        fd.fit(net, blobs.take(np.arange(0)))
    with pytest.raises(fd.DataError, match="300 images need 300 labels"):
        fd.fit(net, (blobs.images, blobs.labels[:-1]))
    with pytest.raises(fd.DataError, match="label 7 of row 5 is not one of"):
        fd.fit(net, (blobs.images, np.where(np.arange(300) == 5, 7, blobs.labels)))
    with pytest.raises(fd.DataError, match="must have images and labels"):
        fd.fit(net, blobs.images)
    with pytest.raises(fd.DataError, match="cannot be split"):
        fd.fit(net, blobs.take(np.arange(5)), validation=0.1)


def test_one_class_only_and_one_image_only(make_network, blobs):
    net = make_network()
    zeros = blobs.take(np.flatnonzero(blobs.labels == 0))
    assert fd.fit(net, zeros, epochs=20, batch_size=16).accuracy == 1
    assert fd.fit(make_network(), blobs.take([0]), epochs=1).epochs[0].loss > 0


def test_one_network_cannot_be_trained_twice_at_once(make_network, blobs):
    net, inside, leave = make_network(), threading.Event(), threading.Event()

    def wait(net, log):
        inside.set()
        leave.wait(20)

    thread = threading.Thread(target=lambda: fd.fit(net, blobs, epochs=1, callbacks=[wait]))
    thread.start()
    try:
        assert inside.wait(20)
        with pytest.raises(fd.BusyError, match="being trained already"):
            fd.fit(net, blobs, epochs=1)
        assert len(net.predict(blobs.images)) == 300  # prediction in between is fine
    finally:
        leave.set()
        thread.join()
    fd.fit(net, blobs, epochs=1)  # and it is free again


def test_two_networks_in_two_threads_do_not_disturb_each_other(make_network, blobs):
    alone = [make_network(seed=s, dropout=0.1) for s in range(2)]
    together = [make_network(seed=s, dropout=0.1) for s in range(2)]
    for net in alone:
        fd.fit(net, blobs, epochs=3, batch_size=16)
    threads = [
        threading.Thread(target=fd.fit, args=(net, blobs), kwargs={"epochs": 3, "batch_size": 16})
        for net in together
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(a, b) for a, b in zip(alone, together, strict=True))


# --- the seam for whole-epoch kernels --------------------------------------------------------


def epoch_from_the_plan(plan, images, labels, order, loss, correct):
    """A whole-epoch "kernel" in plain NumPy that knows nothing but the plan: SGD with momentum."""
    layers = plan.layout.layers(plan.parameters)
    moved = plan.layout.layers(plan.state[0])
    for i, rate in enumerate(plan.learning_rates):
        start = (plan.first_step + i) * plan.batch_size
        rows = order[start : start + plan.batch_size]
        ys = [images[rows].astype(np.float32) / 255]
        for layer, (w, b) in enumerate(layers):
            z = ys[-1] @ w + b
            ys.append(np.maximum(z, 0) if layer < len(layers) - 1 else z)
        t, n = labels[rows], np.arange(len(rows))
        p = np.exp(ys[-1] - ys[-1].max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss[start : start + len(rows)] = -np.log(p[n, t])
        correct[start : start + len(rows)] = p.argmax(axis=1) == t
        p[n, t] -= 1
        dz = p / len(rows)
        gradients = []
        for layer in reversed(range(len(layers))):
            gradients.append((ys[layer].T @ dz, dz.sum(axis=0)))
            dz = (dz @ layers[layer][0].T) * (ys[layer] > 0)
        for parameters, velocities, gradient in zip(layers, moved, reversed(gradients), strict=True):
            for p_, v, g in zip(parameters, velocities, gradient, strict=True):
                v *= plan.optimizer.momentum
                v += g
                p_ -= np.float32(rate) * v


def test_a_whole_epoch_kernel_gets_all_it_needs(blobs):
    backend = dataclasses.replace(fd.get_backend("numpy"), train_epoch=epoch_from_the_plan)
    by_step = fd.Network([36, 16, 12, 4], backend=backend, seed=3)
    by_epoch = fd.Network([36, 16, 12, 4], backend=backend, seed=3)
    options = {"optimizer": fd.SGD(0.1, momentum=0.9), "epochs": 2, "batch_size": 32}
    steps = fd.fit(by_step, blobs, path="step", **options)
    whole = fd.fit(by_epoch, blobs, path="epoch", **options)
    np.testing.assert_allclose(whole.step_losses, steps.step_losses, rtol=1e-4, atol=1e-6)
    assert [e.accuracy for e in whole.epochs] == [e.accuracy for e in steps.epochs]
    for name, value in by_epoch.get_parameters().items():
        np.testing.assert_allclose(value, by_step.get_parameters()[name], rtol=1e-3, atol=1e-5)


def test_a_whole_epoch_that_is_not_there_is_refused(make_network, blobs):
    net = make_network()
    if net.backend.train_epoch is None:
        with pytest.raises(fd.ConfigError, match="no whole-epoch kernel"):
            fd.fit(net, blobs, path="epoch")
    else:
        assert fd.fit(net, blobs, path="epoch").epochs


# --- what belongs to a training, and what does not ------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dropout": 0.5}, r"dropout was \[0.2, 0.2\], now \[0.5, 0.5\]"),
        ({"dropout": 0.2, "input_dropout": 0.1}, "input_dropout was 0.0, now 0.1"),
        ({"dropout": 0.2, "seed": 4}, "seed was 3, now 4"),
        ({"dropout": 0.2, "classes": (3, 2, 1, 0)}, r"classes was \[0, 1, 2, 3\]"),
        ({"dropout": 0.2, "pixels": False}, "pixels was True, now False"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_network_is_refused(make_network, blobs, tmp_path, other, message):
    options = {"checkpoint": tmp_path / "c.safetensors", "epochs": 1}
    fd.fit(make_network(dropout=0.2), blobs, **options)
    net = make_network(**other)
    before = net.get_parameters()
    with pytest.raises(fd.CheckpointError, match=message):
        fd.fit(net, blobs, resume=True, **options)
    assert all((net.get_parameters()[name] == value).all() for name, value in before.items())


def test_other_validation_data_is_other_data(make_network, blobs, tmp_path):
    options = {"checkpoint": tmp_path / "c.safetensors", "epochs": 1}
    rest, held = blobs.take(np.arange(200)), blobs.take(np.arange(200, 300))
    fd.fit(make_network(), rest, validation=held, **options)
    with pytest.raises(fd.CheckpointError, match="data was"):
        fd.fit(make_network(), rest, validation=blobs.take(np.arange(201, 300)), resume=True, **options)


def halving(step, steps, steps_per_epoch):
    return 0.5 ** (step // steps_per_epoch)


def test_a_function_as_schedule_can_be_resumed_by_name(make_network, blobs, tmp_path):
    options = {"checkpoint": tmp_path / "c.safetensors", "schedule": halving}
    fd.fit(make_network(), blobs, epochs=1, **options)
    fd.fit(make_network(), blobs, epochs=2, resume=True, **options)
    raw = options["checkpoint"].read_bytes()
    assert b"test_training.halving" in raw
    assert b" at 0x" not in raw


def test_one_and_one_point_zero_are_the_same_rate(make_network, blobs, tmp_path):
    options = {"checkpoint": tmp_path / "c.safetensors", "epochs": 1}
    fd.fit(make_network(), blobs, optimizer=fd.SGD(1), **options)
    fd.fit(make_network(), blobs, optimizer=fd.SGD(np.float64(1.0)), resume=True, **options)


def test_callbacks_are_part_of_what_is_resumed(make_network, blobs, tmp_path):
    """One that stops, and one that changes the weights."""

    def shrink(net, log):
        net.set_parameters({name: value * 0.9 for name, value in net.get_parameters().items()})
        return len(log.epochs) == 3

    options = {"epochs": 9, "callbacks": [shrink], "schedule": fd.Constant()}
    whole, resumed = make_network(), make_network()
    fd.fit(whole, blobs, **options)
    file = tmp_path / "c.safetensors"

    def interrupt(net, log):
        if len(log.epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fd.fit(make_network(), blobs, checkpoint=file, **{**options, "callbacks": [interrupt, shrink]})
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        fd.fit(make_network(), blobs, checkpoint=file, **{**options, "callbacks": [shrink, interrupt]})
    log = fd.fit(resumed, blobs, checkpoint=file, resume=True, **options)
    assert same_bits(whole, resumed)
    assert (len(log.epochs), log.stopped) == (3, "a callback asked to stop")
    again = fd.fit(make_network(), blobs, checkpoint=file, resume=True, **options)
    assert len(again.epochs) == 3


def test_a_divergence_in_a_later_epoch_goes_back_to_the_epochs_start(make_network, blobs, tmp_path):
    file = tmp_path / "c.safetensors"
    fd.fit(make_network(), blobs, epochs=1, checkpoint=file, schedule=halving)
    after_one = fd.Network.load(file, backend=make_network().backend).get_parameters()
    net = make_network()  # which the resumed training first brings to the end of epoch 1

    class Ruin:
        """Ruins the weights in the second epoch, before the next mid-epoch checkpoint."""

        def begin(self, *counts):
            pass

        def steps(self, first, losses):
            net.parameters()["w1"][...] = np.nan

        def epoch(self, record):
            pass

        def close(self):
            pass

    before = file.read_bytes()
    with pytest.raises(fd.TrainingDivergedError, match="w1 is no longer finite"):
        fd.fit(
            net,
            blobs,
            epochs=2,
            checkpoint=file,
            checkpoint_every=1,
            resume=True,
            schedule=halving,
            progress=Ruin(),
        )
    assert file.read_bytes() == before
    assert all((net.get_parameters()[name] == value).all() for name, value in after_one.items())


def test_a_validation_loss_that_overflows_is_a_divergence(make_network, blobs, tmp_path):
    """Every training loss is finite, the weights are too, yet nothing can be computed with them."""
    net = make_network()
    options = {"optimizer": fd.SGD(1e30), "schedule": fd.Constant(), "batch_size": 240, "validation": 0.2}
    with pytest.raises(fd.TrainingDivergedError, match="validation loss became"):
        fd.fit(net, blobs, epochs=1, checkpoint=tmp_path / "c", log_file=tmp_path / "l", **options)


def test_weights_are_renormalised_for_what_is_left_after_the_split(make_network, blobs):
    """Doubling all weights changes nothing, also when some images are held back."""
    weight = np.random.default_rng(1).uniform(0.5, 2, 300)
    weight[blobs.labels == 0] *= 20
    seen = []
    for net, factor in ((make_network(), 1.0), (make_network(), 2.0)):
        log = fd.fit(net, blobs, epochs=1, batch_size=240, validation=0.2, sample_weight=factor * weight)
        seen.append(log.step_losses[0])
    assert seen[0] == pytest.approx(seen[1])
    data = fd.inputs.TrainingData.of(make_network(), blobs, 0.2, weight, 0)
    assert data.weight.mean() == pytest.approx(1)


def test_images_per_second_of_a_resumed_epoch_count_what_was_trained(
    make_network, blobs, tmp_path, monkeypatch
):
    file, clock = tmp_path / "c.safetensors", iter(range(10_000))
    monkeypatch.setattr("fastdigit.training.time.perf_counter", lambda: next(clock))

    class Interrupt:
        def begin(self, *counts):
            pass

        def steps(self, first, losses):
            if first == 7:
                raise KeyboardInterrupt

        epoch = steps

        def close(self):
            pass

    options = {"epochs": 1, "batch_size": 30, "checkpoint": file, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        fd.fit(make_network(), blobs, progress=Interrupt(), **options)
    log = fd.fit(make_network(), blobs, resume=True, **options)
    record = log.epochs[0]
    # Each stretch is one step and takes one second by this clock: 3 steps of 30 images were left.
    assert (record.seconds, record.images_per_second) == (3, 30)


# --- optimizer state from one call to the next ----------------------------------------------------


@pytest.mark.parametrize("optimizer", [fd.SGD(0.05, momentum=0.9), fd.Adam(0.01)], ids=["sgd", "adam"])
def test_two_trainings_with_one_state_are_one_training(make_network, blobs, optimizer):
    """Full batches, so that the order of the images is only a matter of rounding."""
    options = {"optimizer": optimizer, "schedule": fd.Constant(), "batch_size": 300}
    once, twice, forgetful = make_network(), make_network(), make_network()
    fd.fit(once, blobs, epochs=6, **options)
    state = fd.OptimizerState()
    for _ in range(2):
        fd.fit(twice, blobs, epochs=3, optimizer_state=state, **options)
        fd.fit(forgetful, blobs, epochs=3, **options)
    assert state.updates == 6
    for name, value in once.get_parameters().items():
        np.testing.assert_allclose(twice.get_parameters()[name], value, rtol=1e-3, atol=1e-4)
    assert np.abs(forgetful.get_parameters()["w1"] - once.get_parameters()["w1"]).max() > 1e-3


def test_a_state_of_another_optimizer_or_network_is_refused(make_network, blobs, tmp_path):
    state = fd.OptimizerState()
    fd.fit(make_network(), blobs, epochs=1, optimizer=fd.SGD(0.1, momentum=0.9), optimizer_state=state)
    with pytest.raises(fd.ConfigError, match=r"holds \['velocity'\], but Adam"):
        fd.fit(make_network(), blobs, epochs=1, optimizer=fd.Adam(), optimizer_state=state)
    other = fd.Network([36, 5, 4], backend="numpy")
    with pytest.raises(fd.ConfigError, match="belongs to another network"):
        fd.fit(other, blobs, epochs=1, optimizer=fd.SGD(0.1, momentum=0.9), optimizer_state=state)
    with pytest.raises(fd.ConfigError, match="fresh optimizer_state"):
        fd.fit(make_network(), blobs, optimizer_state=state, checkpoint=tmp_path / "c")


# --- plausible mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": 5, "validation": 0.1},
        {"progress": True},
        {"schedule": 0.1},
        {"schedule": "cosine"},
        {"schedule": fd.OneCycle},
        {"callbacks": [3]},
        {"optimizer_state": fd.SGD(0.1)},
        {"checkpoint": 5},
        {"log_file": 5},
        {"schedule": lambda *where: math.nan},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_of_the_wrong_kind(make_network, blobs, options):
    net = make_network()
    with pytest.raises(fd.ConfigError):
        fd.fit(net, blobs, **options)
    fd.fit(net, blobs, epochs=1)  # and nothing is left locked


def test_network_and_data_in_the_wrong_order(make_network, blobs):
    with pytest.raises(fd.ConfigError, match="a Network first, then the data"):
        fd.fit(blobs, make_network())


def test_one_function_alone_may_be_the_callbacks(make_network, blobs):
    assert len(fd.fit(make_network(), blobs, epochs=9, callbacks=lambda net, log: True).epochs) == 1


def test_files_are_known_to_be_unwritable_before_the_first_step(make_network, blobs, tmp_path):
    net = make_network()
    before = net.get_parameters()
    with pytest.raises(OSError, match="absent"):
        fd.fit(net, blobs, checkpoint=tmp_path / "absent" / "c")
    assert all((net.get_parameters()[name] == value).all() for name, value in before.items())


def test_an_existing_log_is_not_overwritten(make_network, blobs, tmp_path):
    file = tmp_path / "log"
    file.write_text("precious")
    with pytest.raises(fd.ConfigError, match="exists already"):
        fd.fit(make_network(), blobs, log_file=file)
    with pytest.raises(fd.ConfigError, match="same file"):
        fd.fit(make_network(), blobs, log_file=tmp_path / "x", checkpoint=tmp_path / "x")
    assert file.read_text() == "precious"


def test_no_images_to_validate_with(make_network, blobs):
    with pytest.raises(fd.DataError, match="no images to validate with"):
        fd.fit(make_network(), blobs, validation=(blobs.images[:0], blobs.labels[:0]))


class Elsewhere(np.ndarray):
    """An array that training takes for one of a GPU's."""


def test_an_epochs_factors_are_made_while_a_gpu_is_busy_with_the_one_before(blobs, monkeypatch):
    numpy, asked, whole = fd.get_backend("numpy"), [], fd.OneCycle.__call__
    gpu = dataclasses.replace(numpy, zeros=lambda *how: numpy.zeros(*how).view(Elsewhere))

    def watched(self, step, *plan):
        asked.append((step, ended[0]))
        return whole(self, step, *plan)

    def own(step, *plan):
        return watched(fd.OneCycle(), step, *plan)

    def trained(backend, schedule):
        asked.clear()
        ended[0] = 0
        net = fd.Network((36, 8, 4), backend=backend, seed=1)
        log = fd.fit(net, blobs, epochs=3, batch_size=30, schedule=schedule, callbacks=count)
        return net, log, list(asked), len(log.step_losses) // 3

    def count(net, log):
        ended[0] += 1

    ended = [0]
    monkeypatch.setattr(fd.OneCycle, "__call__", watched)
    net, log, ahead, each = trained(gpu, fd.OneCycle())
    steps = range(3 * each)
    assert ahead == [(step, max(0, step // each - 1)) for step in steps]
    other, same, called, _ = trained(gpu, own)
    assert called == [(step, step // each) for step in steps]  # one's own function not before its epoch
    assert same_bits(net, other)
    assert log.step_losses == same.step_losses
    plain, _, called, _ = trained(numpy, fd.OneCycle())
    assert called == [(step, step // each) for step in steps]
    assert same_bits(net, plain)
