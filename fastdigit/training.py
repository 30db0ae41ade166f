"""The training loop: epochs of shuffled mini-batches, with validation, early stopping, a log,
checkpoints, and resuming bit for bit.

An epoch is run in short stretches of steps, so that progress is seen and ctrl-C works. A stretch
goes to the backend in one call where it has ``train_epoch``, else step by step through its single
operations; both get the same :class:`~fastdigit.backend.TrainPlan` and write the same buffers.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .backend import TrainPlan
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .errors import BusyError, CheckpointError, ConfigError, TrainingDivergedError, check_count, check_number
from .evaluation import evaluate
from .files import remove_leftovers
from .inputs import TrainingData
from .log import Epoch, JsonLines, TrainingLog
from .optimizers import SGD, Adam
from .schedules import OneCycle
from .streams import ORDER, random_stream

STRETCH_SECONDS = 0.2  # about how long a stretch of steps takes: how often progress is seen


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after ``patience`` epochs without a higher validation accuracy, and go back to the
    weights of the best epoch."""

    patience: int = 5

    def __post_init__(self):
        check_count("patience", self.patience)

    @staticmethod
    def best_epoch(log):
        """The number of the best epoch so far (from 1); the first of equals; 0 if there is none."""
        return max(log.epochs, key=lambda e: (e.validation_accuracy, -e.epoch)).epoch if log.epochs else 0


@dataclass
class OptimizerState:
    """What an optimizer remembers from one call of :func:`fit` to the next, on the host.

    Pass the same object again, with the same kind of optimizer, and momentum, Adam's moments and
    its bias correction (and the numbering of dropout masks) go on where they were.
    """

    updates: int = 0
    buffers: dict[str, np.ndarray] = field(default_factory=dict)  # name of the state -> [P]


def fit(
    net,
    train,
    *,
    optimizer=None,
    schedule=None,
    epochs=6,
    batch_size=128,
    validation=None,
    early_stopping=None,
    sample_weight=None,
    clip_norm=None,
    seed=0,
    optimizer_state=None,
    checkpoint=None,
    checkpoint_every=None,
    resume=False,
    log_file=None,
    callbacks=(),
    progress=None,
    path="auto",
):
    """Train a network in place: a :class:`~fastdigit.log.TrainingLog`.

    - ``train``: what has ``images`` and ``labels`` (``dataset.train``), or a pair of arrays, as
      :meth:`Network.predict` takes them, with one label of ``net.classes`` for each image.
    - ``optimizer``: an SGD or Adam record; by default ``SGD(0.1, momentum=0.9, nesterov=True)``.
      ``schedule``: a function that scales its learning rate, by default ``OneCycle()``.
    - ``epochs``, ``batch_size``: the last batch of an epoch may be shorter; none is left out.
    - ``validation``: a fraction of the training images to hold back (stratified, seeded), or data
      of its own. ``early_stopping``: an EarlyStopping record, needs ``validation``.
    - ``sample_weight`` [N]: weights of the images, brought to a mean of 1.
    - ``clip_norm``: shorten gradients to this length.
    - ``seed``: of the shuffling and the validation split. Same seed, same backend, same data: the
      same weights, bit for bit.
    - ``optimizer_state``: an OptimizerState to go on from; it is brought up to date at the end.
    - ``checkpoint``: a file that is rewritten atomically after every epoch, and every
      ``checkpoint_every`` steps. ``resume=True`` goes on from it if it is there; the result has the
      same bits as a training that was never interrupted.
    - ``log_file``: JSON lines, one for every step and epoch.
    - ``callbacks``: functions of (net, log) called after every epoch; a true result stops.
    - ``progress``: an object like :class:`fastdigit.progress.Progress`, or None for silence.
    - ``path``: "step" for single operations, "epoch" for the backend's whole-epoch kernel, "auto"
      for the latter where there is one.

    Errors: ConfigError, DataError for arguments and data that make no sense; CheckpointError for a
    checkpoint that is damaged or belongs to another network, other data or settings (all that
    differ are named); TrainingDivergedError when the loss or weights are no longer finite (the
    checkpoint stays the last good one, the network gets back its weights of the epoch's start);
    BusyError when another thread is training the network; OSError when a file cannot be written.
    """
    if not net._training.acquire(blocking=False):
        raise BusyError("this network is being trained by another thread: wait for it, or train a copy")
    try:
        options = _Options(
            optimizer=SGD(0.1, momentum=0.9, nesterov=True) if optimizer is None else optimizer,
            schedule=OneCycle() if schedule is None else schedule,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            clip_norm=clip_norm,
            seed=seed,
            optimizer_state=OptimizerState() if optimizer_state is None else optimizer_state,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            checkpoint_every=checkpoint_every,
            callbacks=tuple(callbacks),
            progress=progress,
            whole_epoch=_use_train_epoch(net.backend, path),
        )
        data = TrainingData.of(net, train, validation, sample_weight, seed)
        if early_stopping is not None and data.validation is None:
            raise ConfigError("early_stopping needs validation data: pass validation=0.1, say")
        training = _Training(net, data, options)
        training.begin(resume)
        return training.run(log_file)
    finally:
        net._training.release()


def _use_train_epoch(backend, path):
    if path not in ("auto", "step", "epoch"):
        raise ConfigError(f"path must be 'auto', 'step' or 'epoch', got {path!r}")
    if path == "epoch" and backend.train_epoch is None:
        raise ConfigError(f"backend {backend.name!r} has no whole-epoch kernel: use path='auto'")
    return path != "step" and backend.train_epoch is not None


@dataclass(frozen=True)
class _Options:
    optimizer: Any
    schedule: Any
    epochs: int
    batch_size: int
    early_stopping: EarlyStopping | None
    clip_norm: float | None
    seed: int
    optimizer_state: OptimizerState
    checkpoint: Path | None
    checkpoint_every: int | None
    callbacks: tuple
    progress: Any
    whole_epoch: bool

    def __post_init__(self):
        if not isinstance(self.optimizer, SGD | Adam):
            raise ConfigError(f"optimizer must be an SGD or Adam record, got {self.optimizer!r}")
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_count("seed", self.seed, 0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, "(0, inf)")
        if self.checkpoint_every is not None:
            check_count("checkpoint_every", self.checkpoint_every)
            if self.checkpoint is None:
                raise ConfigError("checkpoint_every needs a checkpoint file")
        if self.checkpoint is not None and self.optimizer_state.updates:
            raise ConfigError("a checkpoint covers a training from its start: pass a fresh optimizer_state")

    def settings(self):
        """What a resumed training must agree on, readable in the file."""
        return {
            "optimizer": repr(self.optimizer),
            "schedule": repr(self.schedule),
            "epochs": int(self.epochs),
            "batch_size": int(self.batch_size),
            "clip_norm": None if self.clip_norm is None else float(self.clip_norm),
            "early_stopping": None if self.early_stopping is None else repr(self.early_stopping),
            "seed": int(self.seed),
        }


@dataclass
class _Training:
    """One call of :func:`fit`: buffers on the device, position and log on the host."""

    net: Any
    data: TrainingData
    options: _Options
    epochs_done: int = 0
    steps_done: int = 0  # in the epoch that is under way
    log: TrainingLog = field(default_factory=TrainingLog)
    best: dict | None = None

    def __post_init__(self):
        net, data = self.net, self.data
        self.count = len(data.inputs)
        self.steps_per_epoch = -(-self.count // self.options.batch_size)
        device = net.backend.to_device
        self.images = device(data.inputs)
        self.labels = device(data.targets)
        self.weight = None if data.weight is None else device(data.weight.astype(net.precision))
        self.state = tuple(net._zeros(net.layout.size) for _ in self.options.optimizer.state_names)
        for name, flat in zip(self.options.optimizer.state_names, self.state, strict=True):
            if name in self.options.optimizer_state.buffers:
                device(self.options.optimizer_state.buffers[name], out=flat)
        self.loss = net._zeros(self.count)
        self.correct = net._zeros(self.count, dtype="uint8")
        self.data_digest = data.digest() if self.options.checkpoint else ""
        self.last_good = net.get_parameters()

    # --- checkpoints ------------------------------------------------------------------------

    def begin(self, resume):
        """Start anew, or from the checkpoint if there is one."""
        file = self.options.checkpoint
        if file is None:
            if resume:
                raise ConfigError("resume=True needs the checkpoint to resume from")
            return
        remove_leftovers(file)
        if file.exists():
            if not resume:
                raise ConfigError(f"{file} exists already: pass resume=True to go on from it, or delete it")
            self._restore(file)

    def _restore(self, file):
        net, options = self.net, self.options
        saved = load_checkpoint(file, net)
        self._check_settings(file, saved)
        net.set_parameters(saved.parameters)
        for name, flat in zip(options.optimizer.state_names, self.state, strict=True):
            net._fill(flat, saved.state[name])
        seen = len(saved.epoch_loss)
        net.backend.to_device(saved.epoch_loss, out=self.loss[:seen])
        net.backend.to_device(saved.epoch_correct, out=self.correct[:seen])
        self.epochs_done, self.steps_done = saved.epochs_done, saved.steps_done
        self.log, self.best = saved.log, saved.best
        self.last_good = net.get_parameters()

    def _check_settings(self, file, saved):
        # More epochs than planned at first are welcome; the schedule then follows the new plan.
        wanted = {**self.options.settings(), "data": self.data_digest}
        found = {**saved.settings, "data": saved.data_digest}
        differing = [
            f"{name} was {found.get(name)}, now {wanted.get(name)}"
            for name in {**found, **wanted}
            if found.get(name) != wanted.get(name) and name != "epochs"
        ]
        if differing:
            raise CheckpointError(f"{file} belongs to another training: {'; '.join(differing)}")
        seen = min(saved.steps_done * self.options.batch_size, self.count)
        sound = (
            set(saved.state) == set(self.options.optimizer.state_names)
            and 0 <= saved.steps_done < self.steps_per_epoch
            and saved.epochs_done == len(saved.log.epochs)
            and len(saved.log.step_losses) == saved.epochs_done * self.steps_per_epoch + saved.steps_done
            and len(saved.epoch_loss) == len(saved.epoch_correct) == seen
        )
        if not sound:
            raise CheckpointError(f"{file} contradicts itself: position, log and state do not fit together")

    def _save(self):
        net = self.net
        seen = min(self.steps_done * self.options.batch_size, self.count)
        training = TrainingState(
            epochs_done=self.epochs_done,
            steps_done=self.steps_done,
            settings=self.options.settings(),
            data_digest=self.data_digest,
            log=self.log,
            parameters=net.get_parameters(),
            state={
                name: net._named_host(flat)
                for name, flat in zip(self.options.optimizer.state_names, self.state, strict=True)
            },
            best=self.best,
            epoch_loss=np.array(net.backend.to_host(self.loss[:seen])),
            epoch_correct=np.array(net.backend.to_host(self.correct[:seen])),
        )
        save_checkpoint(self.options.checkpoint, net, training)

    # --- the loop ---------------------------------------------------------------------------

    def run(self, log_file):
        """Train to the end and return the log."""
        observers = []
        try:
            if self.options.progress is not None:
                observers.append(self.options.progress)
                self.options.progress.begin(
                    self.options.epochs,
                    self.steps_per_epoch,
                    self.count,
                    self.epochs_done,
                    self.steps_done,
                )
            if log_file is not None:
                observers.append(JsonLines(log_file, self.log, self.steps_per_epoch))
            stop = self._stop_reason()
            while self.epochs_done < self.options.epochs and not stop:
                record = self._epoch(observers)
                for observer in observers:
                    observer.epoch(record)
                called = [callback(self.net, self.log) for callback in self.options.callbacks]
                stop = self._stop_reason() or ("a callback asked to stop" if any(called) else None)
            self.log.stopped = stop
        finally:
            for observer in observers:
                observer.close()
        if self.best is not None:
            self.log.best_epoch = EarlyStopping.best_epoch(self.log)
            self.net.set_parameters(self.best)
        remembered = self.options.optimizer_state
        remembered.updates += self.epochs_done * self.steps_per_epoch
        remembered.buffers = {
            name: np.array(self.net.backend.to_host(flat))
            for name, flat in zip(self.options.optimizer.state_names, self.state, strict=True)
        }
        return self.log

    def _stop_reason(self):
        stopping = self.options.early_stopping
        if stopping is None or not self.log.epochs:
            return None
        waited = self.epochs_done - stopping.best_epoch(self.log)
        return f"no better validation accuracy in {waited} epochs" if waited >= stopping.patience else None

    def _epoch(self, observers):
        net, options = self.net, self.options
        order = random_stream(options.seed, ORDER, self.epochs_done).permutation(self.count)
        order = net.backend.to_device(order.astype(np.int64))
        seconds, first, stretch = 0.0, self.steps_done, 1
        while self.steps_done < self.steps_per_epoch:
            start = self.steps_done
            stop = min(start + stretch, self.steps_per_epoch)
            if options.checkpoint_every:
                due = start - start % options.checkpoint_every + options.checkpoint_every
                stop = min(stop, due)
            began = time.perf_counter()
            losses, rates = self._stretch(order, start, stop)
            took = time.perf_counter() - began
            seconds += took
            stretch = max(1, int((stop - start) * min(4.0, STRETCH_SECONDS / max(took, 1e-9))))
            self._check_finite(losses, start, rates)
            self.log.step_losses += losses
            self.steps_done = stop
            for observer in observers:
                observer.steps(self.epochs_done * self.steps_per_epoch + start, losses)
            unfinished = stop < self.steps_per_epoch
            if options.checkpoint_every and unfinished and stop % options.checkpoint_every == 0:
                self._check_parameters()
                self._save()
        images = self.count - first * options.batch_size
        return self._end_of_epoch(rates[-1], seconds, images / max(seconds, 1e-9))

    def _stretch(self, order, start, stop):
        """Steps ``start`` … ``stop - 1`` of the epoch: their losses and learning rates."""
        net, options = self.net, self.options
        update = self.epochs_done * self.steps_per_epoch + start
        total = options.epochs * self.steps_per_epoch
        rates = options.optimizer.learning_rate * np.array(
            [
                options.schedule(step, total, self.steps_per_epoch)
                for step in range(update, update + stop - start)
            ]
        )
        plan = TrainPlan(
            layout=net.layout,
            precision=net.precision,
            parameters=net._parameters,
            gradients=net._gradients,
            state=self.state,
            optimizer=options.optimizer,
            learning_rates=rates,
            update=options.optimizer_state.updates + update,
            first_step=start,
            batch_size=options.batch_size,
            dropout=net.dropout,
            seed=net.seed,
            clip_norm=options.clip_norm,
            weight=self.weight,
        )
        # A training that diverges overflows; _check_finite says so better than NumPy's warnings.
        with net._lock, np.errstate(all="ignore"):
            run = net.backend.train_epoch if options.whole_epoch else self._steps
            run(plan, self.images, self.labels, order, self.loss, self.correct)
            first, last = start * options.batch_size, min(stop * options.batch_size, self.count)
            loss = np.array(net.backend.to_host(self.loss[first:last]), np.float64)
        batches = np.split(loss, range(options.batch_size, len(loss), options.batch_size))
        return [float(batch.mean()) for batch in batches], rates

    def _steps(self, plan, images, labels, order, loss, correct):
        """The step path: what ``Backend.train_epoch`` does, in single operations."""
        net, backend = self.net, self.net.backend
        for i, rate in enumerate(plan.learning_rates.tolist()):
            start = (plan.first_step + i) * plan.batch_size
            stop = min(start + plan.batch_size, len(order))
            buffers = net._batch_buffers(stop - start)
            backend.gather(images, order, start, buffers.x)
            backend.gather_values(labels, order, start, buffers.t)
            if plan.weight is not None:
                backend.gather_values(plan.weight, order, start, buffers.weight)
            net._forward(buffers, update=plan.update + i)
            backend.softmax_xent(
                buffers.y[-1],
                buffers.t,
                None if plan.weight is None else buffers.weight,
                loss[start:stop],
                correct[start:stop],
                buffers.dy[-1],
            )
            net._backward(buffers)
            if plan.clip_norm is not None:
                backend.clip_norm(plan.gradients, plan.clip_norm)
            plan.optimizer.update(
                backend, plan.parameters, plan.gradients, plan.state, rate, plan.update + i + 1
            )

    def _end_of_epoch(self, rate, seconds, images_per_second):
        net, options = self.net, self.options
        self._check_parameters()
        self.last_good = net.get_parameters()
        loss = np.array(net.backend.to_host(self.loss), np.float64)
        validation = evaluate(net, self.data.validation) if self.data.validation else None
        record = Epoch(
            epoch=self.epochs_done + 1,
            loss=float(loss.mean()),
            accuracy=float(np.mean(net.backend.to_host(self.correct))),
            learning_rate=float(rate),
            seconds=seconds,
            images_per_second=images_per_second,
            validation_loss=validation and validation.loss,
            validation_accuracy=validation and validation.accuracy,
        )
        self.log.epochs.append(record)
        self.epochs_done, self.steps_done = record.epoch, 0
        if options.early_stopping and EarlyStopping.best_epoch(self.log) == record.epoch:
            self.best = self.last_good
        if options.checkpoint:
            self._save()
        return record

    # --- divergence -------------------------------------------------------------------------

    def _check_finite(self, losses, start, rates):
        for i, loss in enumerate(losses):
            if not np.isfinite(loss):
                self._diverged(f"the loss became {loss}", start + i, rates[i])

    def _check_parameters(self):
        for name, value in self.net.get_parameters().items():
            if not np.isfinite(value).all():
                self._diverged(f"{name} is no longer finite", self.steps_done - 1, None)

    def _diverged(self, what, step, rate):
        self.net.set_parameters(self.last_good)
        step += self.epochs_done * self.steps_per_epoch + 1
        at = "" if rate is None else f" at learning rate {rate:.3g}"
        file = self.options.checkpoint
        kept = f"; {file} holds the last good state" if file and file.exists() else ""
        raise TrainingDivergedError(
            f"training diverged: {what} in step {step}{at}; try a smaller learning rate "
            f"(a tenth, say) or clip_norm=1{kept}",
            step,
        )
