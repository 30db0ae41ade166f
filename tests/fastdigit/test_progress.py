"""Progress of a training in a terminal, in a file, and after an error."""

import io
import re
from contextlib import redirect_stdout

import pytest

import fastdigit as fd

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """What is printed ``with redirect_stdout(terminal)`` goes to a terminal of 80 columns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def frames(screen):
    """What the bar's line showed, one after the other, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def net():
    return fd.Network([36, 8, 4], backend="numpy", seed=1)


def test_lines_where_there_is_no_terminal(net, blobs, capsys):
    log = fd.fit(net, blobs, epochs=11, validation=0.2, progress=fd.Progress())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    for number, (line, record) in enumerate(zip(lines, log.epochs, strict=True), start=1):
        assert line == (
            f"epoch {number:2}/11  loss {record.loss:.4f}  accuracy {100 * record.accuracy:.2f} %  "
            f"validation {100 * record.validation_accuracy:.2f} %  {record.images_per_second:,.0f} images/s"
        )


def test_lines_without_validation_data(net, blobs, capsys):
    fd.fit(net, blobs, epochs=1, progress=fd.Progress())
    assert "validation" not in capsys.readouterr().out


def test_bar_in_a_terminal(net, blobs, terminal):
    with redirect_stdout(terminal):
        log = fd.fit(net, blobs, epochs=3, batch_size=32, validation=0.2, progress=fd.Progress())
    last = frames(terminal)[-1]
    assert last.startswith("epoch 3/3 ")
    assert f"validation {100 * log.epochs[-1].validation_accuracy:.2f} %" in last
    assert re.search(r"loss \d+\.\d{4} .* [\d,]+ images/s \d+:\d\d", last)
    assert all(len(frame) <= 80 for frame in frames(terminal))
    assert terminal.getvalue().rstrip().endswith(SHOW_CURSOR)


def test_bar_shows_the_training_accuracy_without_validation_data(net, blobs, terminal):
    with redirect_stdout(terminal):
        log = fd.fit(net, blobs, epochs=2, progress=fd.Progress())
    assert f"accuracy {100 * log.accuracy:.2f} %" in frames(terminal)[-1]


def test_bar_of_a_resumed_training_starts_where_it_was(terminal):
    progress = fd.Progress()
    with redirect_stdout(terminal):
        progress.begin(epochs=4, steps_per_epoch=10, images=320, epochs_done=2, steps_done=5)
        progress.close()
    assert frames(terminal)[0].startswith("epoch 3/4 ")
    done, left = re.search(r"(━+)[╸╺](━+)", frames(terminal)[0]).groups()
    assert len(done) / len(done + left) == pytest.approx(25 / 40, abs=0.05)


def test_terminal_is_left_clean_after_an_error(net, blobs, terminal):
    def interrupt(net, log):
        raise KeyboardInterrupt

    with redirect_stdout(terminal), pytest.raises(KeyboardInterrupt):
        fd.fit(net, blobs, epochs=3, callbacks=[interrupt], progress=fd.Progress())
    output = terminal.getvalue()
    assert output.count(HIDE_CURSOR) == output.count(SHOW_CURSOR) == 1
    assert output.rindex(SHOW_CURSOR) > output.rindex("epoch")


def test_close_needs_no_begin_and_may_come_twice(terminal):
    progress = fd.Progress()
    with redirect_stdout(terminal):
        progress.close()
        progress.begin(1, 1, 1, 0, 0)
        progress.close()
        progress.close()
    assert terminal.getvalue().count(SHOW_CURSOR) == 1
