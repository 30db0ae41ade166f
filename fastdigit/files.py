"""Writing files so that a reader sees the old content or the new, never half of it."""

import contextlib
import glob
import os
import secrets
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path):
    """A binary file to write into, which takes the place of ``path`` when the block ends well.

    It is a temporary file in the same folder; at the end it is flushed to the disk and renamed over
    the old file, and the folder is flushed too. After an error, or a kill at any moment, ``path``
    holds what it held before.

    Errors: OSError as the system raises it (disk full, read-only folder …), naming the file.
    """
    path = Path(os.path.realpath(path))  # a link goes on being one
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # with the name that the caller knows
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _flush_folder(path.parent)


def atomic_write(path, data):
    """Replace the file ``path`` by ``data`` (bytes) in one step, durably: see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def remove_leftovers(path):
    """Delete the temporary files that a killed :func:`atomic_write` of ``path`` left behind."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _flush_folder(folder):
    """Make the renaming itself durable, where the system lets a folder be opened (not Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
