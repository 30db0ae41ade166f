"""The training loop: epochs of shuffled mini-batches, with validation, early stopping, a log,
checkpoints, and resuming bit for bit.

An epoch is run in short stretches of steps, so that progress is seen and ctrl-C works. A stretch
goes to the backend in one call where it has ``train_epoch``, else step by step through its single
operations; both get the same :class:`~fastdigit.backend.TrainPlan` and write the same buffers.
"""

import time
from dataclasses import dataclass, field

import numpy as np

from .attacks import Adversary, Room, check_attackable
from .augmentation import Augment
from .backend import TrainPlan
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .errors import BusyError, CheckpointError, ConfigError, TrainingDivergedError
from .evaluation import evaluate
from .files import remove_leftovers
from .inputs import TrainingData
from .kernels.augment.reference import ARRAYS
from .kernels.common.arena import Arena
from .log import Epoch, JsonLines, TrainingLog
from .network import Network
from .optimizers import SGD
from .options import UPKEEP_EVERY, EarlyStopping, FitOptions, OptimizerState, as_path
from .schedules import BUILT_IN, OneCycle
from .steps import train_steps
from .streams import ORDER, random_stream

STRETCH_SECONDS = 0.5  # about how long a stretch of steps takes: how often progress is seen


def fit(
    net,
    train,
    *,
    optimizer=None,
    schedule=None,
    epochs=6,
    batch_size=128,
    augment=None,
    validation=None,
    early_stopping=None,
    sample_weight=None,
    label_smoothing=0.0,
    max_norm=None,
    average=None,
    clip_norm=None,
    adversary=None,
    clean_share=0.0,
    seed=0,
    optimizer_state=None,
    checkpoint=None,
    checkpoint_every=None,
    resume=False,
    log_file=None,
    callbacks=(),
    progress=None,
    path="auto",
    threads=None,
    sparse_input=None,
    sparse_hidden=None,
):
    """Train a network in place: a :class:`~fastdigit.log.TrainingLog`.

    - ``train``: what has ``images`` and ``labels`` (``dataset.train``), or a pair of arrays, as
      :meth:`Network.predict` takes them, with one label of ``net.classes`` for each image; or a
      TrainingData, which several networks can share. Backends "cpu" and "numpy" read C-contiguous images,
      uint8 or of the network's dtype, where they are (in a mapped file, say): leave them as they are until it
      returns, or as long as their TrainingData is used.
    - ``optimizer``: an SGD or Adam record; by default ``SGD(0.1, momentum=0.9, nesterov=True)``.
      ``schedule``: what scales its learning rate, by default ``OneCycle()``; any function of (step
      from 0, steps in all, steps in an epoch) that gives a factor will do.
    - ``epochs``, ``batch_size``: the last batch of an epoch may be shorter; none is left out.
    - ``augment``: an :class:`~fastdigit.augmentation.Augment` record, or True for its ``standard()``:
      deforms the images, uint8 pictures, each time anew.
    - ``validation``: a fraction of the training images to hold back (stratified, seeded), or data
      of its own. ``early_stopping``: an EarlyStopping record, needs ``validation``.
    - ``sample_weight`` [N]: weights of the images, brought to a mean of 1.
    - ``label_smoothing``: the share of each label that is spread evenly over all classes, in the
      training loss and its gradient (Szegedy et al., CVPR 2016); validation is without.
    - ``max_norm``: the weights that come in to a hidden or output unit are shortened to this length (3,
      say), every 16 steps and at the end of an epoch (Srivastava et al., JMLR 15, 2014).
    - ``average``: a WeightAverage record: validation, early stopping and the weights at the end are
      those of a running mean. Callbacks see the weights that are being trained.
    - ``clip_norm``: shorten gradients to this length.
    - ``adversary``: FGSM(0.1) or PGD(0.1, steps=7), say: each batch is attacked with the weights as they
      are, without dropout, and then trained on, so loss and accuracy of the log are those under attack
      (Madry et al., ICLR 2018). ``clean_share`` of each batch is left as it is. Goes by single operations.
    - ``seed``: of the shuffling and the validation split. Same seed, same backend, same data: the
      same weights, bit for bit.
    - ``optimizer_state``: an OptimizerState to go on from; it is brought up to date at the end.
    - ``checkpoint``: a file that is written atomically at the start, after every epoch, and every
      ``checkpoint_every`` steps. ``resume=True`` goes on from it if it is there; the result has the
      same bits as a training that was never interrupted.
    - ``log_file``: JSON lines, one for every step and epoch.
    - ``callbacks``: functions of (net, log) called after every epoch, before the checkpoint is
      written; a true result stops.
    - ``progress``: an object like :class:`fastdigit.progress.Progress`, or None for silence.
    - ``path``: "step" for single operations, "epoch" for the backend's whole-epoch kernel, "auto"
      for the latter where there is one.
    - ``threads``: how many the whole-epoch kernel uses; None for FASTDIGIT_THREADS, else all
      processors. ``sparse_input``: whether it skips the zeros of the images, ``sparse_hidden``:
      those that ReLU and dropout leave in hidden layers; None decides by how many there are. None
      of these changes a bit of the result, but that a first layer whose zeros are skipped is computed in
      float32 whatever the network's precision.

    Errors: ConfigError, DataError for arguments and data that make no sense; CheckpointError for a
    checkpoint that is damaged or belongs to another network, other data or settings (all that
    differ are named); TrainingDivergedError when the loss or weights are no longer finite (the
    checkpoint stays the last good one, the network gets back its weights of the epoch's start);
    BusyError when another thread is training the network; OSError when a file cannot be written.
    """
    if not isinstance(net, Network):
        raise ConfigError(f"fit takes a Network first, then the data; got {type(net).__name__}")
    if not net._training.acquire(blocking=False):
        raise BusyError("this network is being trained already: wait for that to end, or train a copy")
    try:
        options = FitOptions(
            optimizer=SGD(0.1, momentum=0.9, nesterov=True) if optimizer is None else optimizer,
            schedule=OneCycle() if schedule is None else schedule,
            epochs=epochs,
            batch_size=batch_size,
            augment=Augment.standard() if augment is True else augment or None,
            early_stopping=early_stopping,
            label_smoothing=label_smoothing,
            max_norm=max_norm,
            average=average,
            clip_norm=clip_norm,
            adversary=adversary,
            clean_share=clean_share,
            seed=seed,
            optimizer_state=OptimizerState() if optimizer_state is None else optimizer_state,
            checkpoint=as_path("checkpoint", checkpoint),
            checkpoint_every=checkpoint_every,
            log_file=as_path("log_file", log_file),
            resume=resume,
            callbacks=(callbacks,) if callable(callbacks) else tuple(callbacks),
            progress=progress,
            path=path,
            threads=threads,
            sparse_input=sparse_input,
            sparse_hidden=sparse_hidden,
        )
        options.optimizer_state.check(options.optimizer, net.layout)
        if path == "epoch" and net.backend.train_epoch is None:
            why = f", as {net.backend.only_steps}" if net.backend.only_steps else ""
            raise ConfigError(f"backend {net.backend.name!r} has no whole-epoch kernel{why}: use path='auto'")
        if path == "epoch" and options.only_steps:
            raise ConfigError(f"path='epoch' is not for this training, as {options.only_steps}: use 'auto'")
        if (path == "step" or options.only_steps) and net.precision not in ("float32", "float64"):
            instead = "float32, as " + options.only_steps if options.only_steps else "path='auto'"
            raise ConfigError(
                f"precision {net.precision!r} is for the whole-epoch kernel alone: use {instead}"
            )
        data = TrainingData.of(net, train, validation, sample_weight, seed)
        if adversary is not None:
            check_attackable(net, data.inputs)
        if early_stopping is not None and data.validation is None:
            raise ConfigError("early_stopping needs validation data: pass validation=0.1, say")
        if options.augment is not None and data.inputs.dtype != np.uint8:
            raise ConfigError("augment needs images of uint8 pixels, 0 to 255, not floats")
        training = _Training(net, data, options)
        training.begin()
        return training.run()
    finally:
        net._training.release()


@dataclass
class _Training:
    """One call of :func:`fit`: buffers on the device, position and log on the host."""

    net: Network
    data: TrainingData
    options: FitOptions
    epochs_done: int = 0
    steps_done: int = 0  # in the epoch that is under way
    log: TrainingLog = field(default_factory=TrainingLog)
    best: dict | None = None
    stretch: int = 1  # steps to run before looking up
    order: tuple | None = None  # (epoch, its images' order on the backend), made ready before it is needed
    factors: tuple | None = None  # (epoch, its steps' factors of the learning rate), the same

    def __post_init__(self):
        net, data, options = self.net, self.data, self.options
        backend = net.backend
        self.count = len(data.inputs)
        self.steps_per_epoch = -(-self.count // options.batch_size)
        self.images, self.labels, self.weight = data.on(backend, net.dtype)
        self._allocate()
        self._fill_state(options.optimizer_state.tensors)
        if self.average is not None:
            self.average[...] = net._parameters
        self.deformation = None
        if options.augment is not None:
            deformation = options.augment.deformation(data.inputs.shape[1], data.shape)
            arrays = {name: backend.to_device(getattr(deformation, name)) for name in ARRAYS}
            self.deformation = deformation._replace(**arrays)
        self.adversary = self._adversary()
        self.data_digest = data.digest() if options.checkpoint else ""
        self.last_good = net._parameters.copy()  # stays where the network is: many have more than 10 MB

    def _allocate(self):
        """What a training writes besides what the network has, in one allocation."""
        net, options = self.net, self.options
        arena, parameters = Arena(), (net.layout.size,)
        for name in options.optimizer.state_names:
            arena.array(name, parameters, net.dtype)
        if options.average is not None:
            arena.array("average", parameters, net.dtype)
        arena.array("loss", (self.count,), net.dtype)
        arena.array("correct", (self.count,), "uint8")
        found = arena.allocate(net.backend.zeros)
        self.state = tuple(found[name] for name in options.optimizer.state_names)
        self.average, self.loss, self.correct = found.get("average"), found["loss"], found["correct"]
        self.losses = np.zeros(self.count)  # the epoch's on the host, as far as there are any

    def _adversary(self):
        """The :class:`~fastdigit.attacks.Adversary` of the batches, or None."""
        net, options = self.net, self.options
        if options.adversary is None:
            return None
        size = min(options.batch_size, self.count)
        room = Room.allocate(net.backend, net.layer_sizes[0], size, net.dtype)
        return Adversary(options.adversary, options.clean_share, room)

    def _named_state(self):
        """The optimizer's state on the host: {name of the state: {name of the parameter: array}}."""
        layout, to_host = self.net.layout, self.net.backend.to_host
        names = self.options.optimizer.state_names
        return {name: layout.named(to_host(flat)) for name, flat in zip(names, self.state, strict=True)}

    def _fill_state(self, named):
        for name, flat in zip(self.options.optimizer.state_names, self.state, strict=True):
            if name in named:
                self.net.backend.to_device(self.net.layout.flatten(named[name], self.net.dtype), out=flat)

    # --- checkpoints ------------------------------------------------------------------------

    def begin(self):
        """Start from the checkpoint if there is one; else write the first, before anything is done,
        so that a place that cannot be written to is known at once."""
        file = self.options.checkpoint
        resumed = file is not None and file.exists()
        if resumed:
            self._restore(file)
        self.net.temperature = 1.0  # what it was is right for the weights of before alone
        if file is not None:
            if not resumed:
                self._save(self.net.get_parameters())
            remove_leftovers(file)

    def _restore(self, file):
        net, backend = self.net, self.net.backend
        saved = load_checkpoint(file, net)
        self._check_saved(file, saved)
        net.set_parameters(saved.parameters)
        self._fill_state(saved.state)
        if saved.average is not None:
            backend.to_device(net.layout.flatten(saved.average, net.dtype), out=self.average)
        seen = len(saved.epoch_loss)
        self.losses[:seen] = saved.epoch_loss
        backend.to_device(saved.epoch_loss, out=self.loss[:seen])
        backend.to_device(saved.epoch_correct, out=self.correct[:seen])
        self.epochs_done, self.steps_done = saved.epochs_done, saved.steps_done
        self.log, self.best = saved.log, saved.best
        self.last_good[...] = net._parameters
        if self.options.epochs > saved.settings["epochs"]:
            self.log.stopped = None  # more epochs than planned at first: what ended it no longer counts

    def _check_saved(self, file, saved):
        """CheckpointError unless a saved training is this one, and whole."""
        wanted = {**self.options.settings(), "data": self.data_digest}
        found = {**saved.settings, "data": saved.data_digest}
        differing = [
            f"{name} was {found.get(name)}, now {wanted.get(name)}"
            for name in {**found, **wanted}
            # More epochs are welcome; the schedule then follows the new plan.
            if found.get(name) != wanted.get(name) and name != "epochs"
        ]
        if differing:
            raise CheckpointError(f"{file} belongs to another training: {'; '.join(differing)}")
        if self.options.epochs < saved.epochs_done:
            raise CheckpointError(
                f"{file} has {saved.epochs_done} epochs behind it, epochs={self.options.epochs} is less"
            )
        epochs, stopping = saved.log.epochs, self.options.early_stopping
        seen = min(saved.steps_done * self.options.batch_size, self.count)
        sound = (
            set(saved.state) == set(self.options.optimizer.state_names)
            and 0 <= saved.steps_done < self.steps_per_epoch
            and [epoch.epoch for epoch in epochs] == list(range(1, saved.epochs_done + 1))
            and len(saved.log.step_losses) == saved.epochs_done * self.steps_per_epoch + saved.steps_done
            and len(saved.epoch_loss) == len(saved.epoch_correct) == seen
            and all((e.validation_accuracy is None) == (self.data.validation is None) for e in epochs)
            and (saved.average is None) == (self.average is None)
            and (saved.best is not None) == (stopping is not None and bool(epochs))
        )
        if not sound:
            raise CheckpointError(f"{file} contradicts itself: position, log and state do not fit together")

    def _save(self, parameters):
        to_host = self.net.backend.to_host
        seen = min(self.steps_done * self.options.batch_size, self.count)
        training = TrainingState(
            epochs_done=self.epochs_done,
            steps_done=self.steps_done,
            settings=self.options.settings(),
            data_digest=self.data_digest,
            log=self.log,
            parameters=parameters,
            state=self._named_state(),
            average=self._averaged_parameters(),
            best=self.best,
            epoch_loss=np.array(to_host(self.loss[:seen])),
            epoch_correct=np.array(to_host(self.correct[:seen])),
        )
        save_checkpoint(self.options.checkpoint, self.net, training)

    # --- the loop ---------------------------------------------------------------------------

    def run(self):
        """Train to the end and return the log."""
        options, observers = self.options, []
        try:
            if options.progress is not None:
                observers.append(options.progress)
                options.progress.begin(
                    options.epochs, self.steps_per_epoch, self.count, self.epochs_done, self.steps_done
                )
            if options.log_file is not None:
                observers.append(JsonLines(options.log_file, self.log, self.steps_per_epoch))
            while self.epochs_done < options.epochs and not self.log.stopped:
                self._epoch(observers)
        finally:
            for observer in observers:
                observer.close()
        if self.best is not None:
            self.log.best_epoch = EarlyStopping.best_epoch(self.log)
            self.net.set_parameters(self.best)
        elif self.average is not None:
            self.net.set_parameters(self._averaged_parameters())
        options.optimizer_state.updates += self.epochs_done * self.steps_per_epoch
        options.optimizer_state.tensors = self._named_state()
        return self.log

    def _epoch(self, observers):
        options, first = self.options, self.steps_done
        order, seconds = self._order_of(self.epochs_done), 0.0
        while self.steps_done < self.steps_per_epoch:
            start = self.steps_done
            stop = min(start + self.stretch, self._next_due(start))
            began = time.perf_counter()
            losses, rates = self._stretch(order, start, stop)
            if self._is_due(stop, options.upkeep_every):
                self._keep_up(stop)
            took = time.perf_counter() - began
            seconds += took
            self.stretch = max(1, int((stop - start) * min(4.0, STRETCH_SECONDS / max(took, 1e-9))))
            self._check_losses(losses, start, rates)
            self.log.step_losses += losses
            self.steps_done = stop
            for observer in observers:
                observer.steps(self.epochs_done * self.steps_per_epoch + start, losses)
            unfinished = stop < self.steps_per_epoch
            if unfinished and self._is_due(stop, options.checkpoint_every):
                self._save(self._finite_parameters())
        images = self.count - first * options.batch_size
        self._end_of_epoch(rates[-1], seconds, images / max(seconds, 1e-9), observers)

    def _order_of(self, epoch):
        """In which order an epoch goes through the images."""
        if self.order is None or self.order[0] != epoch:
            order = random_stream(self.options.seed, ORDER, epoch).permutation(self.count)
            self.order = epoch, self.net.backend.to_device(order.astype(np.int64))
        return self.order[1]

    def _factors_of(self, start, stop):
        """What the schedule scales the learning rate by in steps ``start`` … ``stop - 1`` of the epoch."""
        if self.factors is not None and self.factors[0] == self.epochs_done:
            return self.factors[1][start:stop]
        return self._scheduled(self.epochs_done, start, stop)

    def _scheduled(self, epoch, start=0, stop=None):
        """The same of an epoch, all of it if nothing else is said, as the schedule says now."""
        schedule, each = self.options.schedule, self.steps_per_epoch
        first, total = epoch * each, self.options.epochs * each
        steps = range(first + start, first + (each if stop is None else stop))
        factors = [schedule(step, total, each) for step in steps]
        if not np.isfinite(factors).all():
            raise ConfigError(f"the schedule {schedule!r} gave {factors}")
        return np.array(factors, np.float64)

    def _next_due(self, start):
        """The step of the epoch that a stretch from ``start`` on ends with at the latest."""
        every = self.options.checkpoint_every, self.options.upkeep_every
        return min([self.steps_per_epoch, *(start - start % n + n for n in every if n)])

    def _is_due(self, stop, every):
        """Whether step ``stop`` of the epoch ends with what is done every so many steps, if it is done."""
        return every is not None and (stop % every == 0 or stop == self.steps_per_epoch)

    def _keep_up(self, stop):
        """Shorten the weights and have the average look at them, as is due after step ``stop``."""
        net, options = self.net, self.options
        with net._lock, np.errstate(all="ignore"):
            if options.max_norm is not None:
                for w, _ in net._layers:
                    net.backend.max_norm(w, float(options.max_norm))
            if self.average is not None:
                steps, since = self.epochs_done * self.steps_per_epoch + stop, (stop - 1) % UPKEEP_EVERY + 1
                change = net._parameters - self.average
                change *= 1 - options.average.kept(steps, since)
                self.average += change

    def _stretch(self, order, start, stop):
        """Steps ``start`` … ``stop - 1`` of the epoch: their losses and learning rates."""
        net, options = self.net, self.options
        backend = net.backend
        update = self.epochs_done * self.steps_per_epoch + start
        rates = options.optimizer.learning_rate * self._factors_of(start, stop)
        # A training that diverges overflows; _check_losses says so better than NumPy's warnings.
        with net._lock, np.errstate(all="ignore"):
            plan = TrainPlan(
                layout=net.layout,
                precision=net.precision,
                buffers=net._batch_buffers(min(options.batch_size, self.count)),
                parameters=net._parameters,
                gradients=net._gradients,
                state=self.state,
                optimizer=options.optimizer,
                learning_rates=rates,
                update=options.optimizer_state.updates + update,
                first_step=start,
                batch_size=options.batch_size,
                dropout=net.dropout,
                input_dropout=net.input_dropout,
                seed=net.seed,
                label_smoothing=float(options.label_smoothing),
                clip_norm=options.clip_norm,
                adversary=self.adversary,
                weight=self.weight,
                deformation=self.deformation,
                threads=options.threads,
                sparse_input=options.sparse_input,
                sparse_hidden=options.sparse_hidden,
            )
            arrays = (plan, self.images, self.labels, order, self.loss, self.correct)
            if backend.train_epoch is None or options.path == "step" or options.only_steps:
                train_steps(backend, *arrays)
                why = options.only_steps or (options.path == "auto" and backend.only_steps)
                self.log.path = f"step, as {why}" if why else "step"
            else:
                how = backend.train_epoch(*arrays)
                self.log.path = f"epoch: {how}" if how else "epoch"
            on_gpu = type(self.loss) is not np.ndarray
            if on_gpu and stop == self.steps_per_epoch and self.epochs_done + 1 < options.epochs:
                self._order_of(self.epochs_done + 1)  # while it works
                if type(options.schedule) in BUILT_IN:
                    self.factors = self.epochs_done + 1, self._scheduled(self.epochs_done + 1)
            first, last = start * options.batch_size, min(stop * options.batch_size, self.count)
            loss = self.losses[first:last]
            loss[...] = backend.to_host(self.loss[first:last])
        return _means(loss, options.batch_size), rates

    def _end_of_epoch(self, rate, seconds, images_per_second, observers):
        net, options, to_host = self.net, self.options, self.net.backend.to_host
        self._check_parameters()
        averaged = self._averaged_parameters()
        validation = self._validation(averaged) if self.data.validation else None
        record = Epoch(
            epoch=self.epochs_done + 1,
            loss=float(np.mean(self.losses)),
            accuracy=float(np.mean(to_host(self.correct))),
            learning_rate=float(rate),
            seconds=seconds,
            images_per_second=images_per_second,
            validation_loss=validation and validation.loss,
            validation_accuracy=validation and validation.accuracy,
        )
        self.log.epochs.append(record)
        self.epochs_done, self.steps_done = record.epoch, 0
        if options.early_stopping:
            if EarlyStopping.best_epoch(self.log) == record.epoch:
                self.best = net.get_parameters() if averaged is None else averaged
            self.log.stopped = options.early_stopping.reason(self.log)
        for observer in observers:
            observer.epoch(record)
        # Callbacks come before the checkpoint: what they change or decide is part of what is resumed.
        called = [callback(net, self.log) for callback in options.callbacks]
        if any(called) and not self.log.stopped:
            self.log.stopped = "a callback asked to stop"
        if called:
            self._check_parameters()
        with net._lock:
            self.last_good[...] = net._parameters
        if options.checkpoint:
            self._save(net.get_parameters())

    def _validation(self, averaged):
        """How good the network is with its average, if there is one; then it has its parameters again."""
        own = None
        if averaged is not None:
            own = self.net.get_parameters()
            self.net.set_parameters(averaged)
        with np.errstate(all="ignore"):
            validation = evaluate(self.net, self.data.validation)
        if not np.isfinite(validation.loss):
            self._diverged(f"the validation loss became {validation.loss}", self.steps_done - 1, None)
        if own is not None:
            self.net.set_parameters(own)
        return validation

    # --- divergence -------------------------------------------------------------------------

    def _check_losses(self, losses, start, rates):
        for i in np.flatnonzero(~np.isfinite(losses))[:1].tolist():
            self._diverged(f"the loss became {losses[i]}", start + i, rates[i])

    def _check_parameters(self):
        """Whether the parameters are what one may go on with, asked where they are."""
        net = self.net
        with net._lock:
            finite = bool(np.isfinite(net._parameters).all())  # of CuPy's arrays CuPy's own
        if not finite:
            self._finite(net.get_parameters())

    def _finite_parameters(self):
        """The parameters on the host, if they are what one may go on with."""
        return self._finite(self.net.get_parameters())

    def _averaged_parameters(self):
        """The same of their average; None where there is none."""
        net = self.net
        if self.average is None:
            return None
        return self._finite(net.layout.named(net.backend.to_host(self.average)))

    def _finite(self, parameters):
        for name, value in parameters.items():
            if not np.isfinite(value).all():
                self._diverged(f"{name} is no longer finite", self.steps_done - 1, None)
        return parameters

    def _diverged(self, what, step, rate):
        with self.net._lock:
            self.net._parameters[...] = self.last_good
        step += self.epochs_done * self.steps_per_epoch + 1
        at = "" if rate is None else f" at learning rate {rate:.3g}"
        file = self.options.checkpoint
        raise TrainingDivergedError(
            f"training diverged: {what} in step {step}{at}; try a smaller learning rate (a tenth, say) or "
            f"gradient clipping{f'; {file} holds the last good state' if file else ''}",
            step,
        )


def _means(losses, batch_size):
    """Of each batch, the last of which may be shorter."""
    whole = len(losses) // batch_size * batch_size
    means = losses[:whole].reshape(-1, batch_size).mean(axis=1).tolist()
    return means + ([float(losses[whole:].mean())] if whole < len(losses) else [])
