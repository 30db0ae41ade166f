"""Whether what a GPU computes is right: operations, products with what follows them, whole trainings."""

from functools import partial

import numpy as np

import fastdigit as fd

from .. import checks
from .multiplication import FORMS, check_product, drawn, operands, techniques

# --- operations -------------------------------------------------------------------------------------


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
            found[name] = {"rejected": f"{what}: {said(error)}"}
            fault = None if isinstance(error, checks.Rejected) else error
        save(found)
        if fault is not None:
            raise Fault(f"{name}: {said(fault)}") from fault
    return found


def said(error):
    """An error as one line."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, checks.Rejected) else f"{type(error).__name__}: "
    return kind + (lines[-1] if lines else "")


# --- products ---------------------------------------------------------------------------------------

ODD_SHAPES = ((1, 1, 1), (17, 31, 33), (66, 130, 72), (129, 785, 11), (300, 64, 257))


def check_products(xp, capability, done=(), save=lambda found: None, odd=ODD_SHAPES, ways=None):
    """As :func:`check_all`, of each way to multiply, at odd shapes, plain and with what may follow. ``ways``:
    not all that there are, but these."""

    def tried(kind, multiply):
        for shape in odd:
            for form, turned in FORMS.items():
                given, random = operands(xp, kind, shape, turned), xp.random.default_rng(1)
                _, bias = drawn(xp, "float32", random, 1, shape[2])
                y_below, below_64 = drawn(xp, kind, random, shape[0], shape[2])
                for then in (
                    {},
                    {"bias": bias[0].astype(np.float32), "relu": True},
                    {"y_below": y_below, "scale": 1.25, "mask": below_64 > 0},
                ):
                    what = f"{shape}, {form}, {', '.join(then) or 'plain'}"
                    yield what, partial(check_product, xp, multiply, kind, shape, turned, given, **then)

    ways = techniques(capability) if ways is None else ways
    return _all_checked({f"product, {name}": tried(*how) for name, how in ways.items()}, done, save)


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
    side,
    precisions,
    sizes=(ONE_HIDDEN, TWO_HIDDEN),
    count=1000,
    batch=128,
    save=lambda rows: None,
    trainings=None,
    against_cpu=True,
):
    """A row for each training, network and precision: how far its weights end from those of float64
    and, unless it is not asked for, of the ``cpu`` backend in float32, relative to the way they went, and
    "rejected" if too far. ``trainings``: names of TRAININGS, by default all."""
    rows, random = [], np.random.default_rng(0)
    for layers in sizes:
        pixels = int(np.sqrt(layers[0]))
        images = random.integers(0, 256, (count, pixels, pixels)).astype(np.uint8)
        labels = random.integers(0, layers[-1], count).astype(np.uint8)
        for name in TRAININGS if trainings is None else trainings:
            training = TRAININGS[name]
            task = layers, images, labels, training, batch
            before, exact, _ = trained("numpy", "float64", *task)
            others, way = {"off_float64": exact}, np.linalg.norm(exact - before)
            if against_cpu:
                others["off_cpu"] = trained("cpu", "float32", *task)[1]
            for precision in precisions:
                row = {"training": name, "network": "-".join(map(str, layers)), "precision": precision}
                rows.append(row)
                most = APART[precision] * (APART_ADAM if "Adam" in name else 1)
                try:
                    _, found, row["path"] = trained(side, precision, *task)
                except Exception as error:  # as above; what follows it would fail, too
                    row["rejected"] = said(error)
                    save(rows)
                    return rows
                off = {what: float(np.linalg.norm(found - other) / way) for what, other in others.items()}
                row |= {**off, "most": most}
                if not all(each <= most for each in off.values()):  # also if one is not a number
                    far = ", ".join(f"{each:.2g} from {what[4:]}" for what, each in off.items())
                    row["rejected"] = f"{far}: more than {most:g}"
                    row |= dict.fromkeys(off) if not np.isfinite([*off.values()]).all() else {}
                save(rows)
    return rows
