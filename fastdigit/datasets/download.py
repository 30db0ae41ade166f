"""Files of data that are downloaded once, verified, and kept in the user's cache folder."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, DownloadError
from .idx import read_idx

TIMEOUT = 30  # seconds without a byte before the next mirror is tried

log = logging.getLogger(__name__)


def home(name: str) -> Path:
    """``$FASTDIGIT_DATA/name``, or that folder of the user's cache."""
    shared = os.environ.get("FASTDIGIT_DATA")
    if shared:
        return Path(shared) / name
    import pooch

    return Path(pooch.os_cache("fastdigit")) / name


def by_hand(folder: Path, files: Sequence[str]) -> str:
    """What to do where no mirror has the files."""
    wanted = ", ".join(f"{name}.gz" for name in files)
    return (
        f"By hand: put {wanted} into {folder}, or into a folder named {folder.name} and set FASTDIGIT_DATA "
        "to the folder that holds that one"
    )


def cached(path: Path, sha256: str, mirrors: Sequence[str], hint: str) -> tuple[Path, np.ndarray]:
    """``path`` and the tensor in this cached file, which is downloaded if it is missing or damaged.

    Errors: DownloadError if no mirror gave the file, ending in ``hint``.
    """
    if path.exists():
        try:
            return path, read_idx(path, sha256=sha256)
        except DataError as error:
            log.warning("%s; downloading it again", error)
    return path, _download(path, sha256, mirrors, hint)


def _download(path: Path, sha256: str, mirrors: Sequence[str], hint: str) -> np.ndarray:
    """Fetch ``path.name`` from the first mirror that has it whole, verify it, and keep it as ``path``."""
    import pooch
    import requests

    failures = []
    for mirror in mirrors:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # On the same disk as the cache, so that the last step is one rename; gone whatever happens.
            with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder:
                fresh = Path(folder) / path.name
                pooch.HTTPDownloader(timeout=TIMEOUT)(mirror + path.name, str(fresh), None)
                tensor = read_idx(fresh, sha256=sha256)
                os.replace(fresh, path)
                return tensor
        except requests.HTTPError as error:
            failures.append(f"{mirror} answered {error.response.status_code}")
        except requests.Timeout:
            failures.append(f"{mirror} did not answer within {TIMEOUT} s")
        except requests.ConnectionError:
            failures.append(f"{mirror} could not be reached, or broke off")
        except DataError as error:
            failures.append(f"{mirror} sent another file ({str(error).removeprefix(f'{fresh}: ')})")
        except OSError as error:
            failures.append(f"{mirror} failed ({error.strerror or error})")
    raise DownloadError(f"cannot download {path.name}: {'; '.join(failures)}. {hint}")
