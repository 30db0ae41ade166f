"""Checks of what is drawn at random or gathered: dropout, mini-batches, deformed images."""

import math
from dataclasses import dataclass, replace

import numpy as np

from fastdigit.kernels.augment import reference as augment_reference

from .common import SENTINEL, Operand, both_layouts, gamma, output, random_for, same, within
from .deformed import deformed

# --- dropout ----------------------------------------------------------------------------------

# The published vectors of Random123 (kat_vectors, philox4x32, 10 rounds): counter, key, words.
PHILOX_KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def philox(counter, key):
    """Philox4x32-10 in Python integers, from the paper's definition (SC 2011, section 3)."""
    left, right = [counter[0], counter[2]], [counter[1], counter[3]]
    for step in range(10):
        keys = [(k + step * weyl) % 2**32 for k, weyl in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        (high0, low0), (high1, low1) = (
            divmod(0xD2511F53 * left[0], 2**32),
            divmod(0xCD9E8D57 * left[1], 2**32),
        )
        left, right = [high1 ^ right[0] ^ keys[0], high0 ^ right[1] ^ keys[1]], [low1, low0]
    return (left[0], right[0], left[1], right[1])


def keep_mask(shape, p, key, step):
    """Which elements dropout keeps, one by one."""
    mask = np.empty(shape, bool)
    for row, column in np.ndindex(shape):
        word = philox((column // 4, row, step % 2**32, step // 2**32), key)[column % 4]
        mask[row, column] = word >= math.floor(p * 2**32)
    return mask


@dataclass(frozen=True)
class Dropout:
    """A matrix [batch, outputs] from which elements are dropped with probability ``p``."""

    batch: int
    outputs: int
    p: float
    key: tuple[int, int] = (0, 0)
    step: int = 0

    def __str__(self):
        return f"{self.batch}x{self.outputs}-p{self.p:g}-key{self.key[0]}.{self.key[1]}-step{self.step}"


DROPOUT = (
    Dropout(1, 1, 0.5),
    Dropout(2, 3, 0.5, key=(1, 0), step=1),
    Dropout(5, 17, 0.2, key=(7, 2), step=12345),
    Dropout(9, 33, 0.7, key=(2**32 - 1, 1), step=2**32 - 1),
    Dropout(3, 64, 0.999, key=(3, 3), step=2**32 + 5),
    Dropout(4, 18, 0.0, key=(3, 3)),
)


def _dropped(dropout, backend, y, case, spread=True):
    operand = Operand("y", backend, y, spread=spread, around=SENTINEL)
    dropout(operand.array, case.p, case.key, case.step)
    backend.synchronize()
    return operand.read()


@both_layouts
def check_dropout(dropout, backend, case, dtype, spread):
    """Which elements stay, by Philox's definition; those are scaled by 1/(1 - p), the rest is 0."""
    y = random_for(case).standard_normal((case.batch, case.outputs)).astype(dtype)
    result = _dropped(dropout, backend, y, case, spread)
    keep = keep_mask(y.shape, case.p, case.key, case.step)
    expected = np.where(keep, y.astype(np.float64) / (1 - case.p), 0)
    return within("y", result, expected, 4 * gamma(1, dtype) * np.abs(expected))


def check_dropout_threshold(dropout, backend, case=None, dtype="float32"):
    """On the published words of counter 0: kept at p = word/2³², dropped at the next larger p."""
    words = PHILOX_KNOWN[0][2]
    ones = np.ones((1, 4), dtype)
    for column, word in enumerate(words):
        for p, kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
            result = _dropped(dropout, backend, ones, Dropout(1, 4, p))[0, column]
            what = f"element of word {word:#x} at p = {p:.10f}"
            within(what, result, kept / (1 - p), 4 * gamma(1, dtype) / (1 - p))
    return 0.0


def check_dropout_partition(dropout, backend, case=None, dtype="float32"):
    """An element's fate depends on its row and column, not on how many others there are."""
    case = Dropout(40, 50, 0.4, key=(5, 1), step=3)
    whole = _dropped(dropout, backend, np.ones((40, 50), dtype), case)
    for rows, columns in ((1, 50), (17, 50), (40, 49), (40, 1), (23, 31)):
        part = _dropped(dropout, backend, np.ones((rows, columns), dtype), case)
        same(f"the first {rows} rows and {columns} columns", part, whole[:rows, :columns])
    return 0.0


def check_dropout_rate(dropout, backend, case=None, dtype="float32"):
    """The share that is dropped, in all and by column; and independence of step, layer and seed.

    Five standard deviations of a binomial distribution. The numbers are no accident of a run: they
    are the same in each.
    """
    rows, columns = 500, 64
    for p in (0.1, 0.5, 0.8):
        base = Dropout(rows, columns, p, key=(11, 0), step=100)
        deviation = math.sqrt(p * (1 - p))
        ones = np.ones((rows, columns), dtype)
        gone = _dropped(dropout, backend, ones, base) == 0
        within("share dropped", gone.mean(), p, 5 * deviation / math.sqrt(rows * columns))
        within(
            "share dropped by column", gone.mean(axis=0), np.full(columns, p), 5 * deviation / math.sqrt(rows)
        )
        within(
            "share dropped by row", gone.mean(axis=1), np.full(rows, p), 5 * deviation / math.sqrt(columns)
        )
        others = {
            "the next step": replace(base, step=101),
            "a step 2³² later": replace(base, step=100 + 2**32),
            "the next layer": replace(base, key=(11, 1)),
            "the next seed": replace(base, key=(12, 0)),
        }
        for what, other in others.items():
            gone_too = gone & (_dropped(dropout, backend, ones, other) == 0)
            deviation_of_both = math.sqrt(p * p * (1 - p * p) / (rows * columns))
            within(f"share dropped now and in {what}", gone_too.mean(), p * p, 5 * deviation_of_both)
    return 0.0


# --- gather -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gather:
    """``batch`` rows from ``order[start:]`` out of ``count``."""

    count: int
    size: int
    start: int
    batch: int

    def __str__(self):
        return f"{self.count}x{self.size}-{self.start}+{self.batch}"


GATHER = (
    Gather(1, 1, 0, 1),
    Gather(10, 784, 0, 4),
    Gather(10, 784, 8, 2),  # the short last batch
    Gather(7, 17, 3, 4),
    Gather(50, 33, 13, 37),
    Gather(300, 64, 256, 44),
)


@both_layouts
def check_gather(gather, backend, case, dtype, spread):
    """out[i] = images[order[start + i]]: uint8 divided by 255, floats as they are."""
    random = random_for(case)
    order = random.permutation(case.count)
    chosen = order[case.start : case.start + case.batch]
    pixels = random.integers(256, size=(case.count, case.size)).astype(np.uint8)
    pixels[chosen[0], 0], pixels[chosen[-1], -1] = 255, 0
    worst = 0.0
    for images in (pixels, random.standard_normal(pixels.shape).astype(dtype)):
        device_order = backend.to_device(order.astype(np.int64))
        device_images = backend.to_device(images)
        out = output("out", backend, (case.batch, case.size), dtype, spread=spread)
        gather(device_images, device_order, case.start, out.array)
        backend.synchronize()
        if images.dtype == np.uint8:
            expected = images[chosen] / 255
            worst = max(worst, within("out of uint8", out.read(), expected, 2 * gamma(1, dtype) * expected))
        else:
            same("out of floats", out.read(), images[chosen])
        same("images", backend.to_host(device_images), images)
        same("order", backend.to_host(device_order), order)
    return worst


def check_gather_values(gather_values, backend, case, dtype="float32"):
    """out[i] = values[order[start + i]], for labels and for weights."""
    random = random_for(case)
    order = random.permutation(case.count)
    for kind in ("int32", dtype):
        values = (random.standard_normal(case.count) * 100).astype(kind)
        out = output("out", backend, (case.batch,), kind)
        gather_values(backend.to_device(values), backend.to_device(order), case.start, out.array)
        backend.synchronize()
        same(f"out of {kind}", out.read(), values[order[case.start : case.start + case.batch]])
    return 0.0


# --- augment ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """``batch`` images of ``height`` × ``width`` from ``order[start:]`` out of ``count``, deformed."""

    height: int
    width: int
    strengths: tuple  # of (name, strength)
    count: int = 4
    start: int = 1
    batch: int = 2
    key: tuple[int, int] = (3, 2**32 - 2)
    step: int = 2**32 + 5

    def __str__(self):
        names = ",".join(f"{name}={value:g}" for name, value in self.strengths)
        return f"{self.height}x{self.width}-{names}"


_AFFINE = (("rotation", 40), ("scale", 0.4), ("shear", 0.5), ("shift", 3))
_ALL = (*_AFFINE, ("elastic", 1.4), ("thickness", 0.8), ("noise", 60), ("erase", 12), ("faint", 0.9))
AUGMENT = (
    Augment(5, 7, ()),
    Augment(9, 6, _AFFINE),
    Augment(8, 16, (("elastic", 2), ("smoothness", 1.5)), key=(2**32 - 1, 0), step=0),
    Augment(11, 8, (("thickness", 1),), step=2**40 + 1),
    Augment(7, 9, (("noise", 255),)),
    Augment(6, 18, (("erase", 9),), count=9, batch=8),
    Augment(10, 5, (("faint", 0.99),)),
    Augment(28, 28, _ALL, count=1, start=0, batch=1),
    Augment(17, 33, _ALL, count=6, start=3, batch=3),
)


@both_layouts
def check_augment(augment, backend, case, dtype, spread):
    """Every pixel of every image as :mod:`.deformed` has it, divided by 255."""
    random = random_for(case)
    order = random.permutation(case.count)
    pixels = random.integers(256, size=(case.count, case.height, case.width)).astype(np.uint8)
    pixels[random.random(pixels.shape) < 0.3] = 0
    deformation = augment_reference.deformation(case.height, case.width, **dict(case.strengths))
    arrays = {name: backend.to_device(getattr(deformation, name)) for name in augment_reference.ARRAYS}
    device_images = backend.to_device(pixels.reshape(case.count, -1))
    device_order = backend.to_device(order.astype(np.int64))
    out = output("out", backend, (case.batch, case.height * case.width), dtype, spread=spread)
    how = deformation._replace(**arrays), case.key, case.step
    augment(device_images, device_order, case.start, *how, out.array)
    backend.synchronize()
    found = out.read()
    for row, number in enumerate(order[case.start : case.start + case.batch].tolist()):

        def words(block, number=number):
            return philox((block, number, case.step % 2**32, case.step // 2**32), case.key)

        expected = deformed(pixels[number], dict(case.strengths), words).reshape(-1)
        within("out", found[row], expected / 255, 2 * gamma(1, dtype) * expected / 255)
    same("images", backend.to_host(device_images), pixels.reshape(case.count, -1))
    same("order", backend.to_host(device_order), order)
    return 0.0
