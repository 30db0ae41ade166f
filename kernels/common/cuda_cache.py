"""Machine code of kernels for the GPU: kept on disk for the next process, or made where there is no GPU.

Numba can keep code for a GPU, but not of a function that another function has made, as most kernels here
are. What is kept counts as fresh while all files of this package, the versions of Numba and every number that
the kernel's functions know are the same; of kernels with functions of other packages, whose files nobody has
looked at, nothing is kept. What is damaged is not used, and nothing here fails: the kernel is compiled then.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import numba
import numpy as np
from numba.core import config
from numba.core.caching import FunctionCache

from .compiling import digest_of_sources, warn_once

OURS = __name__.rpartition(".common.")[0]
# Whose functions change with a version that is known, or not at all.
OTHERS = ("numba", "llvmlite", "numpy", "math", "builtins", "operator", "cuda")
VALUES = (bool, int, float, complex, str, bytes, type(None), np.generic)


class Code(NamedTuple):
    """``cubin``: machine code for one compute capability; ``entry``: the kernel's name in it."""

    entry: str
    cubin: bytes


def kept(kernel, capability):
    """The :class:`Code` of a kernel for a compute capability such as (9, 0, "a"), None if there is none."""
    place, label = _place(kernel, capability)
    try:
        if place is None or not place.exists():
            return None
        whole = place.read_bytes()
        digest, said, entry, cubin = whole[:32], *whole[32:].split(b"\n", 2)
        if hashlib.sha256(whole[32:]).digest() != digest:
            raise ValueError("its content is damaged")
        return Code(entry.decode(), cubin) if said == label else None
    except (OSError, ValueError) as error:
        _not_used(place, "read", error)
        return None


def keep(kernel, capability, code):
    """Have the next process find it. Whether it will."""
    place, label = _place(kernel, capability)
    if place is None:
        return False
    content = label + b"\n" + code.entry.encode() + b"\n" + code.cubin
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(6)}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(temporary, place)  # so that nobody finds half of it
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _not_used(place, "written", error)
        return False
    return True


def made(kernel, capability):
    """The :class:`Code` of a kernel for a compute capability. Needs no GPU, but NVIDIA's nvJitLink, which
    comes with ``fastdigit[cuda13]``."""
    from cuda.bindings import nvjitlink

    ptx = kernel.ptx(capability)
    arch = f"-arch=sm_{''.join(map(str, capability))}"
    linker = nvjitlink.create(2, [arch, "-O3"])
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, ptx.encode(), len(ptx.encode()), kernel.name)
        nvjitlink.complete(linker)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, cubin)
    finally:
        nvjitlink.destroy(linker)
    return Code(re.search(r"\.entry\s+([\w$]+)", ptx)[1], bytes(cubin))


@cache
def folder():
    """Where code is kept, beside that of kernels for the CPU; None where nothing can be written."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen) / "fastdigit_cuda"
    try:
        return Path(FunctionCache(kept).cache_path)
    except (RuntimeError, OSError) as error:
        _not_used(None, "kept", error)
        return None


def _not_used(place, what, error):
    where = "" if place is None else f" in {place.parent}"
    warn_once(
        f"compiled kernels for the GPU{where} could not be {what}, so some are compiled again "
        f"({type(error).__name__}: {error})"
    )


def _place(kernel, capability):
    """(file, what it must say that it is) of a kernel's code; (None, None) if none is kept."""
    values, where = values_of(kernel.function), folder()
    if values is None or where is None:
        return None, None
    import numba_cuda

    label = [digest_of_sources(), numba.__version__, numba_cuda.__version__, list(capability)]
    label += [kernel.name, str(kernel.signature), kernel.threads, kernel.resident]
    label += [hashlib.sha256(repr(values).encode()).hexdigest(), config.OPT, config.CUDA_DEBUGINFO_DEFAULT]
    label = json.dumps(label, default=str).encode()
    name = re.sub(r"\W+", "_", kernel.name)[:80]
    return where / f"{name}.{hashlib.sha256(label).hexdigest()[:16]}.cubin", label


def values_of(function):
    """All numbers and names that a function, and those that it calls, know from where they were made: what
    else than source code decides about their machine code. None if one of them is of another package.

    Cost: about a millisecond for a hundred functions.
    """
    found, seen = [], set()

    def look(name, value):
        """False for what is of another package."""
        if isinstance(value, VALUES):
            found.append((name, repr(value)))
            return True
        if id(value) in seen:
            return True
        seen.add(id(value))
        if isinstance(value, tuple | list):
            return all(look(f"{name}[{i}]", each) for i, each in enumerate(value))
        # Of what Numba has compiled, and of intrinsics.
        inner = getattr(value, "py_func", None) or getattr(value, "_defn", None) or value
        if not isinstance(inner, FunctionType):
            return True
        module = inner.__module__ or ""
        if module.partition(".")[0] in OTHERS:
            return True
        # What has our name and was not imported comes from no file that anybody has looked at.
        if not module.startswith(OURS + ".") or module not in sys.modules:
            return False
        return all(look(f"{name}.{each}", value) for each, value in _known_to(inner))

    return found if look("", function) else None


def _known_to(function):
    """(name, value) of what a function takes from around it, but for modules."""
    names, code = [], function.__code__
    for name, cell in sorted(zip(code.co_freevars, function.__closure__ or (), strict=True)):
        names.append((name, cell.cell_contents))
    for name in sorted(_names_in(code)):
        if name in function.__globals__ and not isinstance(function.__globals__[name], ModuleType):
            names.append((name, function.__globals__[name]))
    return names


def _names_in(code):
    inner = (each for each in code.co_consts if isinstance(each, type(code)))
    return set(code.co_names).union(*map(_names_in, inner))
