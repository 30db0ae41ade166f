"""Progress of a training, as people see it: a bar in a terminal, a line per epoch elsewhere."""

import sys


class Progress:
    """Pass ``progress=Progress()`` to :func:`fastdigit.fit`.

    In a terminal: one bar with the epoch, the loss of the latest steps, the accuracy (of the
    validation images if there are some, else of the training images in the last epoch), images per
    second and the time left. Where the output goes to a file or a pipe: one plain line per epoch.

    The training loop calls ``begin`` once, ``steps`` after every stretch of steps, ``epoch`` after
    every epoch and ``close`` at the end, whatever happened; any object with these four methods
    can take the place of this one.
    """

    def __init__(self):
        self._view = None

    def begin(self, epochs, steps_per_epoch, images, epochs_done, steps_done):
        """A training of ``epochs`` epochs of ``images`` images starts, or goes on after
        ``epochs_done`` epochs and ``steps_done`` steps of the next one."""
        view = _Bar if sys.stdout.isatty() else _Lines
        self._view = view(epochs, steps_per_epoch, images, epochs_done, steps_done)

    def steps(self, first_step, losses):
        """Steps ``first_step``, ``first_step + 1`` … of the training (from 0) had these losses."""
        self._view.steps(first_step, losses)

    def epoch(self, record):
        """An epoch ended; ``record`` is a :class:`fastdigit.log.Epoch`."""
        self._view.epoch(record)

    def close(self):
        """Leave the terminal clean; may be called twice, or without ``begin``."""
        if self._view is not None:
            self._view.close()


class _Lines:
    """One line per epoch."""

    def __init__(self, epochs, steps_per_epoch, images, epochs_done, steps_done):
        self.epochs = epochs

    def steps(self, first_step, losses):
        pass

    def epoch(self, record):
        parts = [
            f"epoch {record.epoch:{len(str(self.epochs))}}/{self.epochs}",
            f"loss {record.loss:.4f}",
            f"accuracy {100 * record.accuracy:.2f} %",
        ]
        if record.validation_accuracy is not None:
            parts.append(f"validation {100 * record.validation_accuracy:.2f} %")
        parts.append(f"{record.images_per_second:,.0f} images/s")
        print("  ".join(parts), flush=True)

    def close(self):
        pass


class _Bar:
    """One bar over all steps of the training."""

    def __init__(self, epochs, steps_per_epoch, images, epochs_done, steps_done):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.images_per_step = images / steps_per_epoch
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[accuracy]}"),
            TextColumn("{task.fields[speed]:>16}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            expand=True,
            console=Console(),  # rich's default is one for the whole process
        )
        done = epochs_done * steps_per_epoch + steps_done
        self.task = self.bar.add_task(
            "",
            total=epochs * steps_per_epoch,
            completed=done,
            epoch=self._epoch_of(done),
            loss="-",
            accuracy="",
            speed="",
        )
        self.bar.start()

    def _epoch_of(self, step):
        """The epoch that step ``step`` (from 0) belongs to, as it is shown."""
        return f"{min(step // self.steps_per_epoch + 1, self.epochs)}/{self.epochs}"

    def steps(self, first_step, losses):
        speed = self.bar.tasks[0].speed  # steps per second in the last half minute
        self.bar.update(
            self.task,
            completed=first_step + len(losses),
            epoch=self._epoch_of(first_step + len(losses) - 1),
            loss=f"{sum(losses) / len(losses):.4f}",
            speed=f"{speed * self.images_per_step:,.0f} images/s" if speed else "",
        )

    def epoch(self, record):
        if record.validation_accuracy is None:
            accuracy = f"accuracy {100 * record.accuracy:.2f} %"
        else:
            accuracy = f"validation {100 * record.validation_accuracy:.2f} %"
        self.bar.update(self.task, accuracy=accuracy)

    def close(self):
        self.bar.stop()
