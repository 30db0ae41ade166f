"""Machine code for the GPU that is kept on disk, without a GPU: the driver is a stand-in."""

import subprocess
import sys
import warnings
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
from numba import njit

from fastdigit.kernels.common import compiling, cuda, cuda_cache, fours
from fastdigit.kernels.common.cuda_cache import Code, keep, kept
from fastdigit.kernels.epoch import cuda_steps
from fastdigit.kernels.matmul import cuda_mma, cuda_simt

from ..ptx import compiled

HOPPER = 9, 0, "a"
CODE = Code("name", b"\x7fELF\n of any bytes \x00\xff\n")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_warned", False)
    cuda_cache.folder.cache_clear()
    yield tmp_path / "cache" / "fastdigit_cuda"
    cuda_cache.folder.cache_clear()


@pytest.fixture
def made_kernel():
    """``made_kernel(number, …)``: a kernel whose function another function has made."""
    known = len(cuda.KERNELS)

    def make(number, function=None, **options):
        def kernel(x):
            x[0] = number if function is None else function(x[0])

        kernel.__module__ = cuda_steps.__name__
        how = {"threads": 32, "name": "made", **options}
        return cuda.Kernel(kernel, cuda.FLOATS, **how)

    yield make
    del cuda.KERNELS[known:]


def test_code_is_found_again_byte_by_byte(folder):
    kernel = cuda_steps._tick
    assert kept(kernel, HOPPER) is None
    assert keep(kernel, HOPPER, CODE)
    assert kept(kernel, HOPPER) == CODE
    assert kept(kernel, (8, 0)) is None
    (file,) = folder.iterdir()
    assert file.name.startswith("step_count.")


def test_of_the_same_name_it_is_that_of_the_same_numbers_types_and_bounds(made_kernel):
    assert keep(made_kernel(1), HOPPER, CODE)
    assert kept(made_kernel(1), HOPPER) == CODE
    others = made_kernel(2), made_kernel(1, threads=64), made_kernel(1, resident=3), made_kernel(1, name="m")
    assert all(kept(kernel, HOPPER) is None for kernel in others)
    other = made_kernel(1)
    other.arguments = (cuda.WORDS,)
    assert kept(other, HOPPER) is None


def test_numbers_of_functions_that_it_calls_and_of_modules_count_too(monkeypatch):
    kernel = cuda_mma.kernel("bf16", (64, 64), True, False)
    assert keep(kernel, HOPPER, CODE)
    before = cuda_cache.values_of(kernel.function)
    monkeypatch.setattr(cuda_mma, "STAGES", 4)  # which the function knows by its module
    assert cuda_cache.values_of(kernel.function) != before
    assert kept(kernel, HOPPER) is None
    monkeypatch.undo()
    assert kept(kernel, HOPPER) == CODE
    monkeypatch.setattr(fours, "TWO", np.uint64(3))  # of a function that one in a closure calls
    assert kept(kernel, HOPPER) is None


@pytest.mark.parametrize("changed", ["sources", "numba", "numba_cuda"])
def test_of_other_versions_it_is_not_taken(monkeypatch, changed):
    import numba
    import numba_cuda

    keep(cuda_steps._tick, HOPPER, CODE)
    if changed == "sources":
        monkeypatch.setattr(cuda_cache, "digest_of_sources", lambda: "other")
    else:
        monkeypatch.setattr({"numba": numba, "numba_cuda": numba_cuda}[changed], "__version__", "0")
    assert kept(cuda_steps._tick, HOPPER) is None


@pytest.mark.parametrize("module", ["other", f"{cuda_steps.__name__}_that_nobody_imported"])
def test_nothing_is_kept_of_what_calls_code_of_others(made_kernel, folder, module):
    def theirs(x):
        return x

    theirs.__module__ = module
    kernel = made_kernel(1, njit(theirs))
    assert not keep(kernel, HOPPER, CODE)
    assert kept(kernel, HOPPER) is None
    assert not folder.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + b"?" + b[41:], lambda b: b""])
def test_damaged_code_is_not_used(folder, damage):
    keep(cuda_steps._tick, HOPPER, CODE)
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(RuntimeWarning, match="could not be read, so some are compiled again"):
        assert kept(cuda_steps._tick, HOPPER) is None
    keep(cuda_steps._tick, HOPPER, CODE)
    assert kept(cuda_steps._tick, HOPPER) == CODE


def test_where_nothing_can_be_written_each_process_compiles(folder):
    folder.parent.write_text("a file in the folder's place")
    with pytest.warns(RuntimeWarning, match="could not be written"):
        assert not keep(cuda_steps._tick, HOPPER, CODE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert not keep(cuda_steps._tick, HOPPER, CODE)
        assert kept(cuda_steps._tick, HOPPER) is None


def test_another_process_looks_for_it_at_the_same_place(folder):
    kernels = (
        cuda_simt.kernel("float32", (64, 64), True, False),
        cuda_mma.kernel("tf32", (64, 64), True, True),
    )
    code = f"""
from fastdigit.kernels.common import cuda_cache
from fastdigit.kernels.matmul import cuda_mma, cuda_simt
cuda_mma.kernel("bf16", (128, 128), True, True)
kernels = cuda_mma.kernel("tf32", (64, 64), True, True), cuda_simt.kernel("float32", (64, 64), True, False)
for kernel in kernels:
    print(cuda_cache._place(kernel, {HOPPER})[0])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(cuda_cache._place(kernel, HOPPER)[0]) for kernel in reversed(kernels)]


def test_code_is_made_without_a_gpu():
    code = cuda_cache.made(cuda_steps._tick, HOPPER)
    assert code.cubin.startswith(b"\x7fELF")
    assert "cuda_steps9_count_on" in code.entry
    assert code.entry.encode() in code.cubin


def test_all_that_a_gpu_will_be_asked_for_is_compiled_where_there_is_none(folder, monkeypatch, capsys):
    asked = compiled.asked_for()
    names = {kernel.name for kernel in asked}
    assert len(asked) == len(names)
    for name in ("epoch, persistent", "step: count", "softmax_xent, 10 classes", "step: update (Adam)"):
        assert name in names
    on_tensor_cores = " ".join(name for name in names if "wgmma" in name)
    for what in ("bias, relu", "where y_below > 0", "dropout, bias, relu", "update (Nesterov)"):
        assert what in on_tensor_cores
    few = [cuda_steps._tick, cuda_mma._rounding, cuda.KERNELS[0]]
    monkeypatch.setattr(compiled, "asked_for", lambda: few)
    assert compiled.main(str(folder.parent)) == 0
    assert all(kept(kernel, HOPPER).cubin.startswith(b"\x7fELF") for kernel in few)
    assert "3 kernels are in" in capsys.readouterr().out


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """What the driver was asked for, as a list; ``gpu.fails`` names what it refuses."""
    from cuda.bindings import driver

    asked = SimpleNamespace(calls=[], fails=None)

    def call(name, found):
        def called(*arguments):
            asked.calls.append((name, *arguments))
            wrong = asked.fails == name
            status = "CUDA_ERROR_INVALID_IMAGE" if wrong else "CUDA_SUCCESS"
            return getattr(driver.CUresult, status), found

        monkeypatch.setattr(driver, name, called)

    call("cuLibraryLoadData", "library")
    call("cuLibraryGetKernel", "kernel")
    call("cuKernelGetFunction", "function")
    monkeypatch.setattr(cuda, "_code_for", lambda: HOPPER)
    return asked


def compiled_by_numba(monkeypatch, cubin=CODE.cubin):
    """How often Numba has been asked for the code of a kernel, as a list."""
    times = []

    def compiled(self):
        times.append(self.name)
        library = SimpleNamespace(
            get_cufunc=lambda: SimpleNamespace(handle="function of Numba"),
            get_cubin=lambda: SimpleNamespace(code=cubin),
        )
        overload = SimpleNamespace(_codelibrary=library, entry_name=CODE.entry)
        return SimpleNamespace(overloads={(): overload})

    monkeypatch.setattr(cuda.Kernel, "compiled", cached_property(compiled))
    cuda.Kernel.compiled.__set_name__(cuda.Kernel, "compiled")
    return times


def test_the_first_process_compiles_and_the_next_loads(gpu, monkeypatch, made_kernel):
    times = compiled_by_numba(monkeypatch)
    assert made_kernel(1).on_gpu == "function of Numba"
    assert not gpu.calls
    assert made_kernel(1).on_gpu == "function"
    assert times == ["made"]
    assert gpu.calls == [
        ("cuLibraryLoadData", CODE.cubin, [], [], 0, [], [], 0),
        ("cuLibraryGetKernel", "library", b"name"),
        ("cuKernelGetFunction", "kernel"),
    ]


@pytest.mark.parametrize("fails", ["cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction"])
def test_code_that_the_driver_refuses_is_compiled_again(gpu, monkeypatch, made_kernel, fails):
    times, gpu.fails = compiled_by_numba(monkeypatch), fails
    assert keep(made_kernel(1), HOPPER, CODE)
    assert made_kernel(1).on_gpu == "function of Numba"
    assert times == ["made"]


def test_code_that_is_a_path_is_not_kept(gpu, monkeypatch, made_kernel):
    compiled_by_numba(monkeypatch, cubin="/a/path")
    assert made_kernel(1).on_gpu == "function of Numba"
    assert kept(made_kernel(1), HOPPER) is None


@pytest.mark.parametrize(
    ("capability", "code_for"),
    [((7, 5), (7, 5)), ((8, 9), (8, 9)), ((9, 0), HOPPER), ((10, 0), (10, 0, "a"))],
)
def test_code_is_for_the_gpu_at_hand(monkeypatch, capability, code_for):
    device = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0),
        runtime=SimpleNamespace(
            getDeviceProperties=lambda number: dict(zip(("major", "minor"), capability, strict=True))
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=device))
    cuda._capability_of.cache_clear()
    assert cuda._code_for() == code_for
    cuda._capability_of.cache_clear()
