"""What runs on a GPU here: whether it is right, and how fast it is beside cuBLAS and the other libraries.

    python -m fastdigit.bench gpu
    python -m fastdigit.bench.gpu [PART …] [--networks small-128 …] [--json FILE]

- ``checks``: every operation of the backends for GPUs passes the checks of every backend, from data on the
  host that nobody has computed with before.
- ``products``: each way to multiply, at the shapes of the deep network and at square ones, beside cuBLAS
  through CuPy (for bfloat16 its product of float16, which is as fast). A product is first held against
  float64, in some rows where it is large, into an output full of NaN; a wrong one gets no time.
- ``launches``: microseconds of a launch, of a node of a CUDA graph, of a barrier of the whole GPU.
- ``train``: images per second of whole steps (``bench.train``): the persistent kernel, graphs of steps in
  each precision, and torch and JAX on the same GPU, where they are installed.

Times are those of the GPU's own clock, over so many calls in a row that they fill 20 ms; medians of REPEAT.
"""

import argparse
import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import checks, machine, train, turns

BACKENDS = ("cuda", "cupy")
REPEAT = 9
SECONDS = 0.02
SQUARES = (512, 1024, 2048, 4096, 8192)
DEEP_BATCH = 512
CHECKED_ROWS = 128  # of a product that is too large to be held against float64 as a whole
SIDES = (
    *("fastdigit-cuda", "fastdigit-cuda-tf32", "fastdigit-cuda-bf16", "fastdigit-cupy"),
    *("torch-cuda", "torch-cuda-graph", "torch-cuda-compile", "torch-cuda-tf32", "torch-cuda-bf16", "jax"),
)
NETWORKS = ("small-128", "deep-512")  # of latency, and of arithmetic


# --- checks -----------------------------------------------------------------------------------------


def check_all(backend, most=None):
    """{operation: {"checks": how many passed, "worst": error over bound}, or {"rejected": why}}.

    ``most``: of the cases of each check, evenly chosen.
    """
    found = {}
    for operation, of_operation in checks.CHECKS.items():
        function = getattr(backend, operation, None)
        if function is None:
            continue
        passed, worst = 0, 0.0
        try:
            for check, cases in of_operation:
                for case in cases if most is None else cases[:: -(-len(cases) // most)]:
                    worst = max(worst, check(function, backend, case) or 0.0)
                    passed += 1
            found[operation] = {"checks": passed, "worst": worst}
        except checks.Rejected as error:
            found[operation] = {"rejected": f"{check.__name__}, {case}: {error}"}
    return found


# --- products ---------------------------------------------------------------------------------------


def techniques(capability):
    """{name: (kind, function (a, b, c, turned))} of what a GPU of this capability can run."""
    from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma

    def of(module):
        return lambda a, b, c, turned: module.multiply(a, b, c=c, turned=turned)

    found = {"simt": ("float32", of(cuda_simt))}
    if capability >= (8, 0):
        found |= {"mma tf32": ("tf32", of(cuda_mma)), "mma bf16": ("bf16", of(cuda_mma))}
    if capability == cuda_wgmma.CAPABILITY:
        found["wgmma bf16"] = "bf16", of(cuda_wgmma)
    return found


def shapes():
    """[((rows, depth, columns), turned)]: squares, and the products of the deep network's layers."""
    nn, nt, tn = (False, False), (False, True), (True, False)
    found = [((size, size, size), turned) for size in SQUARES for turned in (nn, nt, tn)]
    for layer in train.cases.Network(train.cases.DEEP, DEEP_BATCH).layers[:-1]:
        batch, inputs, outputs = layer.batch, layer.inputs, layer.outputs
        found += [
            ((batch, inputs, outputs), nn),
            ((inputs, batch, outputs), tn),
            ((batch, outputs, inputs), nt),
        ]
    return found


def _padded(xp, random, rows, columns):
    """Random numbers in rows of a multiple of 64, zeros behind them."""
    whole = np.zeros((rows, -(-columns // 64) * 64), np.float32)
    whole[:, :columns] = random.standard_normal((rows, columns), np.float32)
    return xp.asarray(whole)[:, :columns]


def _halves(xp, matrix):
    """Rounded to the nearest bfloat16 by the bits, not by the kernel that is to be measured."""
    bits = matrix.base.view(np.uint32) if matrix.base is not None else matrix.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded[:, : matrix.shape[1]]


def operands(xp, kind, shape, turned, seed=0):
    """(a, b) as kernels take them, and what these stand for in float64."""
    random = np.random.default_rng(seed)
    rows, depth, columns = shape
    a = _padded(xp, random, *((depth, rows) if turned[0] else (rows, depth)))
    b = _padded(xp, random, *((columns, depth) if turned[1] else (depth, columns)))
    if kind == "bf16":
        a, b = _halves(xp, a), _halves(xp, b)
        meant = [(x.astype(np.uint32) << 16).view(np.float32) for x in (a, b)]
    elif kind == "tf32":
        meant = [(xp.ascontiguousarray(x).view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b)]
    else:
        meant = [a, b]
    return (a, b), [x.astype(np.float64) for x in meant]


def check_product(xp, multiply, kind, shape, turned):
    """The largest error over its bound, K · 2⁻²³ · |a|·|b|. checks.Rejected if it is above 1, or not a
    number."""
    (a, b), (a_64, b_64) = operands(xp, kind, shape, turned)
    c = xp.full((shape[0], -(-shape[2] // 64) * 64), np.nan, np.float32)[:, : shape[2]]
    multiply(a, b, c, turned)
    chosen = np.unique(np.linspace(0, shape[0] - 1, min(shape[0], CHECKED_ROWS)).astype(int))
    a_64 = (a_64.T if turned[0] else a_64)[chosen]
    b_64 = b_64.T if turned[1] else b_64
    bound = shape[1] * 2.0**-23 * (abs(a_64) @ abs(b_64))
    worst = float((abs(c[chosen] - a_64 @ b_64) / bound).max())
    if not worst <= 1:
        raise checks.Rejected(f"error is {worst:.3g} times its bound")
    if not bool(xp.isfinite(c).all()):
        raise checks.Rejected("some of the output was not written")
    return worst


def _cublas(xp, kind, a, b, turned):
    """cuBLAS' product of the same shape, as a call."""
    if kind == "bf16":
        a, b = ((x.astype(np.uint32) << 16).view(np.float32).astype(np.float16) for x in (a, b))
    left, right = (a.T if turned[0] else a), (b.T if turned[1] else b)
    out = xp.empty((left.shape[0], right.shape[1]), left.dtype)
    return lambda: xp.matmul(left, right, out=out)


def seconds_on_gpu(call):
    """Of one call: the median of REPEAT series between two events, and the quartiles."""
    import cupy

    def series(calls):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1e3

    series(3)
    calls = max(3, int(3 * SECONDS / max(series(3), 1e-6)))
    return [series(calls) / calls for _ in range(REPEAT)]


def products(xp, capability, cases=None, seconds=seconds_on_gpu):
    """A row for each technique and shape."""
    rows = []
    for shape, turned in shapes() if cases is None else cases:
        flops, form = 2 * np.prod(shape, dtype=float), "tn" if turned[0] else "nt" if turned[1] else "nn"
        for name, (kind, multiply) in techniques(capability).items():
            row = {"technique": name, "shape": "x".join(map(str, shape)), "form": form}
            try:
                row["worst"] = check_product(xp, multiply, kind, shape, turned)
            except checks.Rejected as error:
                rows.append({**row, "no_time": f"refused: {error}"})
                continue
            (a, b), _ = operands(xp, kind, shape, turned)
            c = xp.zeros((shape[0], -(-shape[2] // 64) * 64), np.float32)[:, : shape[2]]
            found = []
            with tf32(kind == "tf32"):
                cublas = _cublas(xp, kind, a, b, turned)
                for call in (partial(multiply, a, b, c, turned), cublas):
                    found.append(np.array(seconds(call)))
            low, middle, high = np.percentile(found[0], [25, 50, 75]).tolist()
            row |= {"microseconds": 1e6 * middle, "microseconds_quartiles": [1e6 * low, 1e6 * high]}
            row |= {"tflops": flops / middle / 1e12, "cublas_tflops": flops / np.median(found[1]) / 1e12}
            row |= {"noisy": high - low > turns.NOISY * middle}
            rows.append(row)
    return rows


@contextmanager
def tf32(wanted):
    """Whether cuBLAS, as CuPy calls it, may take float32 as TF32."""
    before = os.environ.get("CUPY_TF32")
    os.environ["CUPY_TF32"] = str(int(wanted))
    try:
        yield
    finally:
        os.environ.pop("CUPY_TF32")
        if before is not None:
            os.environ["CUPY_TF32"] = before


# --- launches ---------------------------------------------------------------------------------------

MANY = 1000


def launches():
    """Microseconds of the smallest launch one by one, and as a node of a graph; of a barrier of a block on
    each multiprocessor."""
    import cupy

    from fastdigit.kernels.common import cuda
    from fastdigit.kernels.epoch import cuda as persistent
    from fastdigit.kernels.epoch import cuda_steps

    position = cupy.zeros(cuda_steps.POSITION, np.int64)
    with cuda.recorded() as written:
        cuda_steps._tick(1, position)
    one = cuda.prepared(*written[0])
    one()
    cupy.cuda.get_current_stream().synchronize()
    begun = time.perf_counter()
    for _ in range(MANY):
        one()
    on_host = (time.perf_counter() - begun) / MANY
    replay = cuda.graph([one] * MANY)
    blocks = cuda.limits().multiprocessors
    meet = [
        float(np.median(seconds_on_gpu(partial(persistent.barriers, blocks, count)))) for count in (0, MANY)
    ]
    return {
        "barrier_microseconds": 1e6 * (meet[1] - meet[0]) / MANY,
        "launch_on_host_microseconds": 1e6 * on_host,
        "launch_microseconds": 1e6 * float(np.median(seconds_on_gpu(one))),
        "graph_node_microseconds": 1e6 * float(np.median(seconds_on_gpu(replay))) / MANY,
        "counted": int(position[cuda_steps.STEP]) > MANY,
    }


# --- all ----------------------------------------------------------------------------------------------


def _checks(options):
    return {name: check_all(fd.get_backend(name)) for name in options["usable"]}


def _products(options):
    import cupy

    if "cuda" not in options["usable"]:
        return []
    capability = tuple(map(int, cupy.cuda.Device().compute_capability))
    return products(cupy, capability)


def _launches(options):
    return launches() if "cuda" in options["usable"] else {}


def _train(options):
    data = fd.load_mnist().train
    networks = [(train.NETWORKS[name], list(SIDES)) for name in options["networks"]]
    how = options["rounds"], options["seconds"], "cuda", options["python"]
    found = train.measure_all(networks, data, *how, passes=1)
    return [{"name": name, **result} for name, result in zip(options["networks"], found, strict=True)]


PARTS = {"checks": _checks, "products": _products, "launches": _launches, "train": _train}


def measure(
    parts=tuple(PARTS), networks=NETWORKS, rounds=5, seconds=0.5, python=sys.executable, say=lambda line: None
):
    """{"devices": {backend: device}, part: its result, …}; {"no_time": why} if no backend runs on a GPU."""
    states = fd.backends()
    usable = [name for name in BACKENDS if states.get(name) == "ok"]
    if not usable:
        return {"no_time": "; ".join(f"{name}: {states.get(name, 'unknown')}" for name in BACKENDS)}
    options = {"usable": usable, "networks": networks, "rounds": rounds, "seconds": seconds, "python": python}
    found = {"devices": {name: fd.get_backend(name).device for name in usable}}
    for part in parts:
        say(f"gpu, {part} …")
        try:
            found[part] = PARTS[part](options)
        except (RuntimeError, OSError) as error:  # CudaError, CuPy's: the other parts still count
            found[part] = {"no_time": f"{type(error).__name__}: {error}"}
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--networks", nargs="+", choices=train.NETWORKS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and jax")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    from rich.console import Console

    from . import tables

    chosen = tuple(options.parts) or tuple(PARTS)
    found = measure(chosen, options.networks, options.rounds, options.seconds, options.python, print)
    if options.json:
        machine.write(options.json, gpu=found)
    console = Console()
    for table in tables.of_gpu(found):
        tables.show(table, console)


if __name__ == "__main__":
    main()
