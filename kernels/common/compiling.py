"""How kernels are compiled: without the interpreter's lock, and kept on disk for the next process.

Numba keeps machine code on disk by itself, in three ways that do not do here, so :class:`_Cache`
changes them. Code counts as fresh while the one file is unchanged that its function stands in, but
kernels are made of functions of several files: here it is while all files of this package are. A
damaged file ends the process, or is run: here what is read is checked, and compiled again if need be.
No place to write to ends the process: here kernels are then compiled in every process.
"""

import hashlib
import pickle
import warnings
from functools import cache
from pathlib import Path

from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.serialize import dumps

# Division follows IEEE 754, as in NumPy, instead of raising: kernels have nobody to raise to.
FLOATS = {"error_model": "numpy"}
# For numba.njit itself, which keeps code as it thinks best; jit() does it as said above.
OPTIONS = {"nogil": True, "cache": True, **FLOATS}


def jit(function=None, signature=None, **options):
    """``numba.njit`` as all kernels use it: ``@jit``, ``@jit(fastmath=…)``, ``jit(function, …)``.

    With a ``signature`` of Numba's types it is compiled now, and for no other types.
    """
    if function is None:
        return lambda function: jit(function, signature, **options)
    compiled = njit(**{**OPTIONS, "cache": False, **options})(function)
    _keep_on_disk(compiled, function)
    if signature is not None:
        compiled.compile(signature)
        compiled.disable_compile()
    return compiled


def inner(function=None, **options):
    """As :func:`jit`, for functions that compiled code calls, and nobody else: a seventh less to compile.

    Called from Python it raises a TypeError (Numba alone would jump to address 0).
    """
    if function is None:
        return lambda function: inner(function, **options)
    compiled = jit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    compiled.__class__ = _Inner
    return compiled


class _Inner(CPUDispatcher):
    def __call__(self, *arguments, **named):
        name = self.py_func.__name__
        raise TypeError(f"{name} is for code that Numba compiles: call it in a function with @njit")


def c_function(function):
    """A function of four int64 words, compiled to what C and other threads can call."""
    signature = (types.int64,) * 4, types.void
    compiled = CFunc(function, signature, {}, {"nopython": True, **FLOATS})
    _keep_on_disk(compiled, function)
    compiled.compile()
    return compiled


# --- on disk ------------------------------------------------------------------------------------


def _keep_on_disk(compiled, function):
    """Give a function that is to be compiled its place on disk, if there is one.

    Numba asks the attribute ``_cache`` of a compiled function; ``enable_caching()``, its own way to
    set it, leaves no choice of the class.
    """
    try:
        compiled._cache = _Cache(function)
    except (RuntimeError, OSError) as error:
        warn_once(
            f"compiled kernels cannot be kept on disk, so each process compiles its own, which takes up "
            f"to a minute: set NUMBA_CACHE_DIR to a folder that can be written to ({error})"
        )


class _Cache(FunctionCache):
    """Numba's cache of one function, fresh while the whole package is, and nothing that can fail."""

    def __init__(self, function):
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp(), digest_of_sources()
        self._cache_file = _CheckedFile(self.cache_path, self._impl.filename_base, stamp)

    def _index_key(self, sig, codegen):
        # Numba's key has the processor, but not what the system lets this process use of it.
        from .amx import has_tiles

        return *super()._index_key(sig, codegen), has_tiles()

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged pickle can raise whatever it likes
            self._not_used("read", error)
            return None  # as if there was nothing: Numba compiles, and saves

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception:
            # It may be the old index that cannot be read.
            try:
                self.flush()
                super().save_overload(sig, data)
            except Exception as error:
                self._not_used("written", error)

    def _not_used(self, what, error):
        warn_once(
            f"compiled kernels in {self.cache_path} could not be {what}, so some are compiled again "
            f"({type(error).__name__}: {error})"
        )


class _CheckedFile(IndexDataCacheFile):
    """Index and data files of one function, where data says what it is and has its own digest.

    Damaged machine code must not run. Nor must that of another signature or of older sources, which
    is what two processes can leave that number their files at the same time.
    """

    def save(self, key, data):
        label, code = dumps((self._source_stamp, key)), dumps(data)
        super().save(key, (hashlib.sha256(label + code).digest(), label, code))

    def load(self, key):
        found = super().load(key)
        if found is None:
            return None
        digest, label, code = found
        if hashlib.sha256(label + code).digest() != digest:
            raise ValueError("its content is damaged")
        return pickle.loads(code) if pickle.loads(label) == (self._source_stamp, key) else None


@cache
def digest_of_sources():
    """Of all Python files of this package: a kernel can have code of any of them inside."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


_warned = False


def warn_once(message):
    """Say what slows the start; it is so for many kernels at once."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=2)
