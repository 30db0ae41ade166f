"""What is asked of whole trainings on a GPU: milliseconds of an epoch, seconds to an accuracy, seconds of a
comparison that others have published. Each in every precision that the backend has.

An epoch's time is by the host's clock, from the end of one epoch to the end of the next in the same call of
``fit``: an order drawn and sent, the steps, losses and weights fetched and looked at. The images are on the
GPU before. Beside it stands the time of the steps alone, as the log counts it.

The host's share while the GPU works: the time in which the host's Python prepares an epoch's steps and asks
for them, of that and of the time in which it then waits for their losses: at most so much, as the GPU has
nothing to do yet while the first is prepared. (The processor's time would say nothing: the driver waits by
asking the GPU over and over.) And of the whole epoch, the time in which the host
does not wait for the steps, whatever the GPU does meanwhile.

A training whose loss is not that of the ``cpu`` backend with the same seed gets no time.
"""

import time
from dataclasses import replace

import fastdigit as fd

from .. import accuracy, cases, train
from .correctness import said
from .timing import quartiles

EPOCH = cases.Network(cases.SMALL, 128)
EPOCHS = 30  # timed, after one that is not
# 784-1024-10, 10,000 images, 10 epochs: what a widely copied comparison of languages and libraries trains.
COMPARISON, COMPARISON_IMAGES, COMPARISON_EPOCHS = cases.Network((784, 1024, 10), 32), 10_000, 10
COMPARISON_RATE = 0.01
REPEAT = 5
TARGETS = (0.98, 0.99)
SEEDS = 5
PRECISIONS = ("float32", "tf32", "bf16")
# Of the mean loss of an epoch, relative: numpy's and cpu's are 1e-6 apart.
LOSS_APART = {"float32": 1e-4, "tf32": train.TOLERANCE_ROUNDED, "bf16": train.TOLERANCE_ROUNDED}


def goals(backend, mnist, save=lambda found: None):
    """{"epoch": rows, "comparison": rows, "accuracy": rows}, a row for each precision; ``save`` gets what
    there is after each row."""
    found = {}

    def keep(name):
        def saved(rows):
            found[name] = rows
            save(found)

        return saved

    precisions = [name for name in PRECISIONS if name in backend.precisions]
    epoch(backend, precisions, mnist.train, save=keep("epoch"))
    to_accuracy(backend, precisions[:1], save=keep("accuracy"))
    few = slice(COMPARISON_IMAGES)
    comparison(
        *(backend, precisions, fd.Images(mnist.train.images[few], mnist.train.labels[few])),
        save=keep("comparison"),
    )
    to_accuracy(backend, precisions, found["accuracy"], save=keep("accuracy"))
    return found


def _for_each(precisions, measure, rows, save, **about):
    """A row ``about`` something of ``measure(precision)`` for each; ``save`` gets all after each."""
    for precision in precisions:
        try:
            row = measure(precision)
        except Exception as error:  # whatever a GPU or its driver runs into is what was found
            row = {"no_time": said(error)}
        rows.append({"precision": precision, **about, **row})
        save(rows)
    return rows


def _trained(net, images, network, rate, epochs, **more):
    how = {"optimizer": fd.SGD(rate), "schedule": fd.Constant(), "seed": 0}
    return fd.fit(net, images, epochs=epochs, batch_size=network.batch, **how, **more)


def _apart(log, expected, precision):
    """How far the mean loss of a training's last epoch is from the expected one, and, if too far, that."""
    apart = abs(log.loss / expected - 1)
    found = {"loss": log.loss, "loss_apart": apart, "path": log.path}
    if not apart <= LOSS_APART[precision]:
        found = {"no_time": f"refused: loss differs by {apart:.2g}, more than {LOSS_APART[precision]:g}"}
    return found


# --- an epoch ---------------------------------------------------------------------------------------


class Watch:
    """Over a training: when its epochs end, and how long the host asks for steps and waits for them.

    ``backend`` is one that tells it; the training's ``progress`` is the watch itself.
    """

    def __init__(self, backend):
        self.ends, self.asked, self.waited, self.waiting = [], [], [], False
        self._asked = self._waited = 0.0

        def train_epoch(*arguments):
            begun = time.perf_counter()
            try:
                return backend.train_epoch(*arguments)
            finally:
                self._asked += time.perf_counter() - begun
                self.waiting = True

        def to_host(array):
            begun = time.perf_counter()
            try:
                return backend.to_host(array)
            finally:
                if self.waiting:  # the first after the steps were asked for
                    self._waited += time.perf_counter() - begun
                    self.waiting = False

        self.backend = replace(backend, train_epoch=train_epoch, to_host=to_host)

    def begin(self, *about):
        pass

    def steps(self, first_step, losses):
        pass

    def epoch(self, record):
        self.ends.append(time.perf_counter())
        self.asked.append(self._asked)
        self.waited.append(self._waited)
        self._asked = self._waited = 0.0

    def close(self):
        pass


def epoch(backend, precisions, images, network=EPOCH, epochs=EPOCHS, save=lambda rows: None):
    """Rows of one epoch: "milliseconds", its quartiles, "milliseconds_of_steps", both shares of the host."""
    expected = _trained(
        fd.Network(network.layer_sizes, backend="cpu", seed=0), images, network, train.RATE, 1
    ).loss

    def measure(precision):
        watch = Watch(backend)
        net = fd.Network(network.layer_sizes, backend=watch.backend, precision=precision, seed=0)
        found = _apart(_trained(net, images, network, train.RATE, 1), expected, precision)
        if "no_time" in found:
            return found
        log = _trained(net, images, network, train.RATE, 1 + epochs, progress=watch)
        wall = [end - begin for begin, end in zip(watch.ends, watch.ends[1:], strict=False)]
        asked, waited = watch.asked[-epochs:], watch.waited[-epochs:]
        low, middle, high = quartiles(wall)
        pairs = list(zip(wall, asked, waited, strict=True))
        return {
            **found,
            "milliseconds": 1e3 * middle,
            "milliseconds_quartiles": [1e3 * low, 1e3 * high],
            "milliseconds_of_steps": 1e3 * quartiles([record.seconds for record in log.epochs[1:]])[1],
            "host_share_while_gpu_works": quartiles([ask / (ask + wait) for _, ask, wait in pairs])[1],
            "host_share_of_epoch": quartiles([1 - wait / whole for whole, _, wait in pairs])[1],
        }

    return _for_each(precisions, measure, [], save)


# --- a comparison, and accuracy ---------------------------------------------------------------------


def comparison(
    backend,
    precisions,
    images,
    network=COMPARISON,
    epochs=COMPARISON_EPOCHS,
    repeat=REPEAT,
    save=lambda rows: None,
):
    """Rows of "seconds" of whole calls of ``fit``, the images on the host before: median and range."""

    def net_of(side, precision="float32"):
        return fd.Network(network.layer_sizes, backend=side, precision=precision, seed=0)

    expected = _trained(net_of("cpu"), images, network, COMPARISON_RATE, epochs).loss
    few = fd.Images(images.images[: 2 * network.batch], images.labels[: 2 * network.batch])

    def measure(precision):
        _trained(net_of(backend, precision), few, network, COMPARISON_RATE, 1)  # all is compiled
        seconds = []
        for _ in range(repeat):
            net, begun = net_of(backend, precision), time.perf_counter()
            log = _trained(net, images, network, COMPARISON_RATE, epochs)
            seconds.append(time.perf_counter() - begun)
        found = _apart(log, expected, precision)
        if "no_time" in found:
            return found
        span = {"seconds": quartiles(seconds)[1], "seconds_range": [min(seconds), max(seconds)]}
        return {**found, **span, "steps": len(log.step_losses)}

    return _for_each(precisions, measure, [], save)


def to_accuracy(backend, precisions, rows=(), targets=TARGETS, seeds=SEEDS, save=lambda rows: None):
    """``bench.accuracy``'s rows of the precisions and targets that ``rows`` lack, in this process."""
    rows = list(rows)
    for target in targets:
        recipe = accuracy.GPU_RECIPES[target]

        def measure(precision, target=target, recipe=recipe):
            side = accuracy.Answers("fastdigit", backend, precision, accuracy.GPU_RECIPES)
            answers = [side((target, seed)) for seed in range(seeds + 1)]  # with 0 all is compiled
            return accuracy.row_of("fastdigit-cuda", recipe, answers)

        measured = {(row["precision"], row["target"]) for row in rows}
        missing = [name for name in precisions if (name, target) not in measured]
        _for_each(missing, measure, rows, save, target=target)
    return rows
