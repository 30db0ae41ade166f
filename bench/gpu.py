"""What runs on a GPU here: whether it is right, and how fast it is beside cuBLAS and the other libraries.

    python -m fastdigit.bench gpu [--out FILE]
    python -m fastdigit.bench.gpu [PART …] [--networks small-128 …] [--json FILE]

- ``checks``: every operation of the backends for GPUs passes the checks of every backend, from data on the
  host that nobody has computed with before; and each way to multiply, at odd shapes, with what follows it.
- ``epochs``: whole trainings of small networks, by the persistent kernel and by graphs of steps in each
  precision, with each optimizer, dropout, clipping, weights and deformations: their weights held against
  those of float64 and of the ``cpu`` backend.
- ``products``: each way to multiply, at the shapes of the deep network and at square ones, beside cuBLAS
  through CuPy (for bfloat16 its product of float16, which is as fast). A product is first held against
  float64, in some rows where it is large, into an output full of NaN; a wrong one gets no time.
- ``launches``: microseconds of a launch, of a node of a CUDA graph, of a barrier of the whole GPU.
- ``train``: images per second of whole steps (``bench.train``): the persistent kernel, graphs of steps in
  each precision, and torch and JAX on the same GPU, where they are installed.

Times are those of the GPU's own clock, over so many calls in a row that they fill 20 ms (at most 150), which
the GPU makes after all have been asked for; medians of REPEAT. Operands stay where they are: what fits in the
second cache comes from there, for both sides.

Every part runs in a process of its own, and the checks in a new one after each fault, as what follows a fault
on a GPU fails, too. What a part has found until its time is over counts. All parts take less than BUDGET
seconds.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import checks, machine, train, turns

BACKENDS = ("cuda", "cupy")
REPEAT = 7
SECONDS = 0.02
MOST_CALLS = 150  # in a row: the driver lets about a thousand launches wait
BARRIER_SECONDS = 1e-6  # of the whole GPU, about
SQUARES = (512, 1024, 2048, 4096, 8192)
DEEP_BATCH = 512
FORMS = {"nn": (False, False), "nt": (False, True), "tn": (True, False)}  # which operands are transposed
CHECKED_ROWS = 128  # of a product that is too large to be held against float64 as a whole
SIDES = (
    *("fastdigit-cuda", "fastdigit-cuda-tf32", "fastdigit-cuda-bf16", "fastdigit-cupy"),
    *(
        "torch-cuda",
        "torch-cuda-graph",
        "torch-cuda-compile",
        "torch-cuda-tf32",
        "torch-cuda-bf16",
        "jax-cuda",
    ),
)
NETWORKS = ("small-128", "deep-512")  # of latency, and of arithmetic
ROUNDS, TURN_SECONDS = 5, 0.5
BUDGET = 470  # seconds


# --- checks -----------------------------------------------------------------------------------------


def operations_of(backend):
    """{name: function} of all operations that there are checks for."""
    found = {name: getattr(backend, name, None) for name in checks.CHECKS}
    if backend.name == "cuda":  # in a network they are part of products
        from fastdigit.kernels.relu import cuda as relu

        found |= {"relu": relu.relu, "relu_grad": relu.relu_grad}
    return {name: found[name] for name in checks.CHECKS if found.get(name) is not None}


class Fault(Exception):
    """After which the GPU may be of no use to this process."""


def check_all(backend, most=None, done=(), save=lambda found: None):
    """{operation: {"checks": how many passed, "worst": error over bound}, or {"rejected": why}}.

    ``most``: of the cases of each check, evenly chosen. Operations in ``done`` are left out; ``save`` gets
    what was found after each. Fault where one fails otherwise than by a wrong result.
    """

    def tried(operation, function):
        for check, cases in checks.CHECKS[operation]:
            for case in cases if most is None else cases[:: -(-len(cases) // most)]:
                yield f"{check.__name__}, {case}", partial(check, function, backend, case)

    operations = operations_of(backend).items()
    return _all_checked({name: tried(name, function) for name, function in operations}, done, save)


def _all_checked(tried, done, save):
    """What is found of each name, of pairs (what, check)."""
    found = {}
    for name, pairs in tried.items():
        if name in done:
            continue
        passed, worst, what, fault = 0, 0.0, "", None
        try:
            for about, check in pairs:
                what = about
                worst, passed = max(worst, check() or 0.0), passed + 1
            found[name] = {"checks": passed, "worst": worst}
        except Exception as error:  # whatever a GPU or its driver runs into is what was found
            found[name] = {"rejected": f"{what}: {_said(error)}"}
            fault = None if isinstance(error, checks.Rejected) else error
        save(found)
        if fault is not None:
            raise Fault(f"{name}: {_said(fault)}") from fault
    return found


def _said(error):
    """An error as one line."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, checks.Rejected) else f"{type(error).__name__}: "
    return kind + (lines[-1] if lines else "")


# --- products ---------------------------------------------------------------------------------------


def techniques(capability):
    """{name: (kind, function (a, b, c, turned))} of what a GPU of this capability can run."""
    from fastdigit.kernels.matmul import cuda_mma, cuda_simt, cuda_wgmma

    def of(module):
        return lambda a, b, c, turned, **then: module.multiply(a, b, c=c, turned=turned, **then)

    found = {"simt": ("float32", of(cuda_simt))}
    if capability >= (8, 0):
        found |= {"mma tf32": ("tf32", of(cuda_mma)), "mma bf16": ("bf16", of(cuda_mma))}
    if capability == cuda_wgmma.CAPABILITY:
        found["wgmma bf16"] = "bf16", of(cuda_wgmma)
    return found


def shapes():
    """[((rows, depth, columns), turned)]: squares, and the products of the deep network's layers."""
    found = [((size, size, size), turned) for size in SQUARES for turned in FORMS.values()]
    for layer in train.cases.Network(train.cases.DEEP, DEEP_BATCH).layers[:-1]:
        batch, inputs, outputs = layer.batch, layer.inputs, layer.outputs
        found += [
            ((batch, inputs, outputs), FORMS["nn"]),
            ((inputs, batch, outputs), FORMS["tn"]),
            ((batch, outputs, inputs), FORMS["nt"]),
        ]
    return found


ODD_SHAPES = ((1, 1, 1), (17, 31, 33), (66, 130, 72), (129, 785, 11), (300, 64, 257))


def _drawn(xp, kind, random, rows, columns):
    """Random numbers as kernels take them, in rows of a multiple of 64 with zeros behind them; and what they
    stand for in float64."""
    whole = xp.zeros((rows, -(-columns // 64) * 64), np.float32)
    whole[:, :columns] = random.standard_normal((rows, columns), dtype=np.float32)
    meant = bits = whole.view(np.uint32)
    if kind == "bf16":
        # Rounded to the nearest by the bits, not by the kernel that is to be measured.
        rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        whole, meant = rounded, rounded.astype(np.uint32) << 16
    elif kind == "tf32":
        meant = bits & 0xFFFFE000
    return whole[:, :columns], meant.view(np.float32)[:, :columns].astype(np.float64)


def operands(xp, kind, shape, turned, seed=0):
    """(a, b) as kernels take them, and what these stand for in float64."""
    random = xp.random.default_rng(seed)
    rows, depth, columns = shape
    a, a_64 = _drawn(xp, kind, random, *((depth, rows) if turned[0] else (rows, depth)))
    b, b_64 = _drawn(xp, kind, random, *((columns, depth) if turned[1] else (depth, columns)))
    return (a, b), (a_64, b_64)


def check_product(xp, multiply, kind, shape, turned, given=None, mask=None, **then):
    """The largest error over its bound, K · 2⁻²³ · |a|·|b|. checks.Rejected if it is above 1, or not a
    number. ``given``: the :func:`operands`. ``then``: what follows, bias, relu, y_below, scale; ``mask``:
    where y_below is positive."""
    (a, b), (a_64, b_64) = operands(xp, kind, shape, turned) if given is None else given
    c = xp.full((shape[0], -(-shape[2] // 64) * 64), np.nan, np.float32)[:, : shape[2]]
    multiply(a, b, c, turned, **then)
    chosen = np.unique(np.linspace(0, shape[0] - 1, min(shape[0], CHECKED_ROWS)).astype(int))
    a_64 = (a_64.T if turned[0] else a_64)[chosen]
    b_64 = b_64.T if turned[1] else b_64
    expected, bound = a_64 @ b_64, (shape[1] + 2) * 2.0**-23 * (abs(a_64) @ abs(b_64))
    if "bias" in then:
        expected, bound = expected + then["bias"], bound + 2.0**-22 * abs(then["bias"])
    if then.get("relu"):
        expected = xp.maximum(expected, 0)
    if mask is not None:
        scale = then["scale"]
        expected, bound = xp.where(mask[chosen], scale * expected, 0), 1.01 * scale * bound
    worst = float((abs(c[chosen] - expected) / bound).max())
    if not worst <= 1:
        raise checks.Rejected(f"error is {worst:.3g} times its bound")
    if not bool(xp.isfinite(c).all()):
        raise checks.Rejected("some of the output was not written")
    return worst


def check_products(xp, capability, done=(), save=lambda found: None, odd=ODD_SHAPES):
    """As :func:`check_all`, of each way to multiply, at odd shapes, plain and with what may follow."""

    def tried(kind, multiply):
        for shape in odd:
            for form, turned in FORMS.items():
                given, random = operands(xp, kind, shape, turned), xp.random.default_rng(1)
                _, bias = _drawn(xp, "float32", random, 1, shape[2])
                y_below, below_64 = _drawn(xp, kind, random, shape[0], shape[2])
                for then in (
                    {},
                    {"bias": bias[0].astype(np.float32), "relu": True},
                    {"y_below": y_below, "scale": 1.25, "mask": below_64 > 0},
                ):
                    what = f"{shape}, {form}, {', '.join(then) or 'plain'}"
                    yield what, partial(check_product, xp, multiply, kind, shape, turned, given, **then)

    ways = techniques(capability).items()
    return _all_checked({f"product, {name}": tried(*how) for name, how in ways}, done, save)


def _cublas(xp, kind, a, b, turned):
    """cuBLAS' product of the same shape, as a call."""
    if kind == "bf16":
        a, b = ((x.astype(np.uint32) << 16).view(np.float32).astype(np.float16) for x in (a, b))
    a, b = map(xp.ascontiguousarray, (a, b))  # else CuPy copies them in every call
    left, right = (a.T if turned[0] else a), (b.T if turned[1] else b)
    out = xp.empty((left.shape[0], right.shape[1]), left.dtype)
    return lambda: xp.matmul(left, right, out=out)


def seconds_on_gpu(call):
    """Of one call: of REPEAT series between two events.

    The host may take longer to ask for a call than the GPU to make it. So the GPU is kept busy with barriers
    until all of a series has been asked for; checks.Rejected where that did not suffice.
    """
    import cupy

    from fastdigit.kernels.common import cuda
    from fastdigit.kernels.epoch import cuda as persistent

    here, stream = cuda.limits(), cupy.cuda.get_current_stream()

    def series(calls, plug):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        stream.synchronize()
        if plug:
            persistent.barriers(here.multiprocessors, plug)
        begin.record()
        asked = time.perf_counter()
        for _ in range(calls):
            call()
        asked, late = time.perf_counter() - asked, bool(plug and begin.done)
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1e3, asked, late

    series(3, 0)
    alone, asked, _ = series(3, 0)
    calls = min(MOST_CALLS, max(3, int(3 * SECONDS / max(alone, 1e-6))))
    plug = 0 if alone > 4 * asked or here is None else int(1.5 * calls / 3 * asked / BARRIER_SECONDS) + 1000
    found = []
    for _ in range(REPEAT):
        seconds, _, late = series(calls, plug)
        if late:
            raise checks.Rejected("the host asks for calls too slowly to measure them")
        found.append(seconds / calls)
    return found


def products(xp, capability, cases=None, seconds=seconds_on_gpu, save=lambda rows: None):
    """A row for each technique and shape; ``save`` gets them all after each."""
    rows = []
    for shape, turned in shapes() if cases is None else cases:
        flops = 2 * np.prod(shape, dtype=float)
        form = next(name for name, which in FORMS.items() if which == turned)
        for name, (kind, multiply) in techniques(capability).items():
            row = {"technique": name, "shape": "x".join(map(str, shape)), "form": form}
            rows.append(row)
            given = operands(xp, kind, shape, turned)
            try:
                row["worst"] = check_product(xp, multiply, kind, shape, turned, given)
            except checks.Rejected as error:
                row["no_time"] = f"refused: {error}"
                continue
            a, b = given[0]
            del given  # what is in float64
            c = xp.zeros((shape[0], -(-shape[2] // 64) * 64), np.float32)[:, : shape[2]]
            found = []
            try:
                with tf32(kind == "tf32"):
                    cublas = _cublas(xp, kind, a, b, turned)
                    for call in (partial(multiply, a, b, c, turned), cublas):
                        found.append(np.array(seconds(call)))
            except checks.Rejected as error:
                row["no_time"] = str(error)
                continue
            low, middle, high = np.percentile(found[0], [25, 50, 75]).tolist()
            row |= {"microseconds": 1e6 * middle, "microseconds_quartiles": [1e6 * low, 1e6 * high]}
            row |= {"tflops": flops / middle / 1e12, "cublas_tflops": flops / np.median(found[1]) / 1e12}
            row |= {"noisy": high - low > turns.NOISY * middle}
            save(rows)
    return rows


@contextmanager
def tf32(wanted):
    """Whether cuBLAS, as CuPy calls it, may take float32 as TF32. (It reads its variable but once.)"""
    from cupy import _core

    linalg = _core._routines_linalg
    before = _core.get_compute_type(np.float32)
    _core.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32 if wanted else linalg.COMPUTE_TYPE_DEFAULT)
    try:
        yield
    finally:
        _core.set_compute_type(np.float32, before)


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


# --- epochs -----------------------------------------------------------------------------------------

# Of the way that the weights have gone in an epoch of small steps, how far apart two trainings may end: the
# processor's are 2e-5 and 0.02 apart at most. Adam's steps do not grow with gradients: where these are
# roundings alone, so are its steps (0.09).
APART = {"float32": 1e-4, "tf32": 0.01, "bf16": 0.05}
APART_ADAM = 10  # times as far
TRAININGS = {
    "SGD": {},
    "Nesterov, decay, weights, smoothed labels": {
        "optimizer": ("SGD", 0.01, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
        "weighted": True,
        "label_smoothing": 0.1,
    },
    "Adam": {"optimizer": ("Adam", 0.001, {})},
    "AdamW, clipped, dropout": {
        "optimizer": ("AdamW", 0.001, {"weight_decay": 0.01}),
        "clip_norm": 1.0,
        "network": {"dropout": 0.3, "input_dropout": 0.1},
    },
    "deformed": {"augment": True},
}
ONE_HIDDEN, TWO_HIDDEN = (784, 128, 10), (784, 200, 130, 10)


def trained(side, precision, sizes, images, labels, training, batch):
    """(the weights as one vector, at the start and after an epoch, and the log's path)"""
    kind, rate, more = training.get("optimizer", ("SGD", 0.01, {}))
    weight = np.random.default_rng(4).uniform(0.5, 2, len(labels)) if training.get("weighted") else None
    how = {name: training[name] for name in ("label_smoothing", "clip_norm", "augment") if name in training}
    options = training.get("network", {})
    net = fd.Network(sizes, backend=side, precision=precision, seed=3, **options)
    weights = [net.get_parameters()]
    data, optimizer = fd.Images(images, labels), getattr(fd, kind)(rate, **more)
    log = fd.fit(
        net, data, optimizer=optimizer, epochs=1, batch_size=batch, sample_weight=weight, seed=1, **how
    )
    weights.append(net.get_parameters())
    before, after = (np.concatenate([named[n].ravel() for n in sorted(named)]) for named in weights)
    return before.astype(np.float64), after.astype(np.float64), log.path


def check_epochs(
    side, precisions, sizes=(ONE_HIDDEN, TWO_HIDDEN), count=1000, batch=128, save=lambda rows: None
):
    """A row for each training, network and precision: how far its weights end from those of float64
    and of the ``cpu`` backend in float32, relative to the way they went, and "rejected" if too far."""
    rows, random = [], np.random.default_rng(0)
    for layers in sizes:
        pixels = int(np.sqrt(layers[0]))
        images = random.integers(0, 256, (count, pixels, pixels)).astype(np.uint8)
        labels = random.integers(0, layers[-1], count).astype(np.uint8)
        for name, training in TRAININGS.items():
            task = layers, images, labels, training, batch
            before, exact, _ = trained("numpy", "float64", *task)
            near, way = trained("cpu", "float32", *task)[1], np.linalg.norm(exact - before)
            for precision in precisions:
                row = {"training": name, "network": "-".join(map(str, layers)), "precision": precision}
                rows.append(row)
                most = APART[precision] * (APART_ADAM if "Adam" in name else 1)
                try:
                    _, found, row["path"] = trained(side, precision, *task)
                except Exception as error:  # as above; what follows it would fail, too
                    row["rejected"] = _said(error)
                    save(rows)
                    return rows
                off = [float(np.linalg.norm(found - other) / way) for other in (exact, near)]
                row |= {"off_float64": off[0], "off_cpu": off[1], "most": most}
                if not all(each <= most for each in off):  # also if one is not a number
                    row["rejected"] = f"{off[0]:.2g} from float64, {off[1]:.2g} from cpu: more than {most:g}"
                    row |= {"off_float64": None, "off_cpu": None} if not np.isfinite(off).all() else {}
                save(rows)
    return rows


# --- all ----------------------------------------------------------------------------------------------


def _checks(options, save):
    import cupy

    before = options.get("found") or {}
    found = {name: dict(before.get(name, {})) for name in options["usable"]}

    def keep(name, results):
        found[name] |= results
        save(found)

    for name in sorted(options["usable"], key="cuda".__ne__):  # ours first: CuPy compiles a lot
        check_all(fd.get_backend(name), done=tuple(found[name]), save=partial(keep, name))
        if name == "cuda":
            check_products(cupy, _capability(), tuple(found["cuda"]), partial(keep, "cuda"))
    return found


def _epochs(options, save):
    if "cuda" not in options["usable"]:
        return []
    backend = fd.get_backend("cuda")
    return check_epochs("cuda", [name for name in APART if name in backend.precisions], save=save)


def _products(options, save):
    import cupy

    return products(cupy, _capability(), save=save) if "cuda" in options["usable"] else []


def _capability():
    import cupy

    attributes = cupy.cuda.Device().attributes
    return attributes["ComputeCapabilityMajor"], attributes["ComputeCapabilityMinor"]


def _launches(options, save):
    return launches() if "cuda" in options["usable"] else {}


def _train(options, save):
    data, found = fd.load_mnist().train, []
    how = options["rounds"], options["seconds"], "cuda", options["python"]
    for name in options["networks"]:
        (result,) = train.measure_all([(train.NETWORKS[name], list(SIDES))], data, *how, passes=1)
        found.append({"name": name, **result})
        save(found)
    return found


PARTS = {
    "checks": _checks,
    "epochs": _epochs,
    "launches": _launches,
    "products": _products,
    "train": _train,
}
# Seconds at most, of a part that hangs; what BUDGET leaves is the last one's.
LONGEST = {"checks": 150, "epochs": 120, "launches": 30, "products": 130, "train": BUDGET}
MOST_FAULTS = 8  # processes of the checks that may end with one
FAULT = 3  # the exit status of such


def measure(
    parts=tuple(PARTS),
    networks=NETWORKS,
    rounds=ROUNDS,
    seconds=TURN_SECONDS,
    python=sys.executable,
    say=lambda line: None,
    save=lambda found: None,
):
    """{"devices": {backend: device}, part: its result, …}; {"no_time": why} if no backend runs on a GPU.

    ``save`` gets what there is after each part.
    """
    states = fd.backends()
    usable = [name for name in BACKENDS if states.get(name) == "ok"]
    if not usable:
        return {"no_time": "; ".join(f"{name}: {states.get(name, 'unknown')}" for name in BACKENDS)}
    options = {"usable": usable, "networks": networks, "rounds": rounds, "seconds": seconds, "python": python}
    found = {"devices": {name: fd.get_backend(name).device for name in usable}, "driver": _driver()}
    until = time.monotonic() + BUDGET
    for part in parts:
        say(f"gpu, {part} …")
        begun = time.monotonic()
        last = min(until, begun + LONGEST[part])
        for _ in range(MOST_FAULTS):
            found[part], status, why = _in_a_process(part, {**options, "found": found.get(part)}, last)
            if status != FAULT:
                break
        if why:
            found[f"{part}_ended"] = why
        say(f"gpu, {part}: {time.monotonic() - begun:.0f} s" + (f", {why}" if why else ""))
        save(found)
    return found


def _in_a_process(part, options, until):
    """The result of a part, or what it had saved when its time was over or it died; its exit status, None
    if it had to be ended; and why it did not end well, or None."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer, said = (Path(folder) / name for name in ("asked.json", "answer.json", "said"))
        asked.write_text(json.dumps(options))
        command = [sys.executable, "-m", "fastdigit.bench.gpu", part, "--child", str(asked), str(answer)]
        with said.open("w") as errors:
            process = subprocess.Popen(command, stderr=errors)
        left = max(1.0, until - time.monotonic())
        try:
            status, why = process.wait(left), None
            if status:
                lines = said.read_text().strip().splitlines()
                why = lines[-1] if lines else f"exit status {status}"
        except subprocess.TimeoutExpired:
            status, why = None, f"not finished after {left:.0f} s"
            process.terminate()  # so that it can end the processes that it has started
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        found = json.loads(answer.read_text()) if answer.exists() else {"no_time": why or "no answer"}
        return found, status, why


def _child(part, asked, answer):
    """In the process of a part: its result goes to a file, as soon as there is some of it."""

    def save(found):
        part_of = answer.with_suffix(".part")
        part_of.write_text(json.dumps(found, allow_nan=False))
        part_of.replace(answer)

    signal.signal(signal.SIGTERM, lambda *about: sys.exit(1))
    try:
        save(PARTS[part](json.loads(asked.read_text()), save))
    except Fault as fault:
        print(fault, file=sys.stderr)
        return FAULT
    return 0


def _driver():
    """What nvidia-smi says of the first GPU's driver and clocks, or None."""
    asked = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return dict(zip(asked.split(","), map(str.strip, said.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--networks", nargs="+", choices=train.NETWORKS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=TURN_SECONDS)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and jax")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="default: gpu.json")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if options.child:
        return _child(options.parts[0], *options.child)
    from rich.console import Console

    from . import tables

    found = measure(
        tuple(options.parts) or tuple(PARTS),
        *(options.networks, options.rounds, options.seconds, options.python, print),
        save=lambda found: machine.write(options.json, gpu=found),
    )
    console = Console()
    for table in tables.of_gpu(found):
        tables.show(table, console)
    return 1 if tables.gpu_failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
