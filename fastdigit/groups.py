"""Who is read worse: accuracy by groups of images, and training that lets each group count alike.

A grouping is a column: one value for each image, equal for images of one group (a writer, a series, a pen).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist

import numpy as np

from .errors import DataError, check_count
from .evaluation import wilson_interval
from .streams import CHANCE, RESAMPLING, random_stream

MIN_IMAGES = 10  # of a group with fewer, the 95 % interval of the accuracy spans 30 points or more
DRAWS = 1000  # simulations of groups that are alike
LINE = 200  # bytes of a value in a file, at most


@dataclass(frozen=True, eq=False)
class GroupAccuracy:
    """Images and correct answers of G groups, from the worst accuracy to the best (equals: by name).

    ``names`` [G], ``count`` [G] and ``correct`` [G]. ``seed`` is that of the simulations.
    """

    names: np.ndarray
    count: np.ndarray
    correct: np.ndarray
    seed: int = 0

    def __repr__(self):
        return f"<{len(self)} groups of {self.count.sum():,} images>"

    def __len__(self):
        return len(self.names)

    @property
    def accuracy(self):
        """[G], ascending."""
        return self.correct / self.count

    @cached_property
    def interval(self):
        """The 95 % Wilson interval of each group's accuracy: [G,2]."""
        pairs = zip(self.correct.tolist(), self.count.tolist(), strict=True)
        return np.array([wilson_interval(*pair) for pair in pairs])

    @property
    def small(self):
        """Which groups have fewer than ``MIN_IMAGES`` images, too few to say anything about: bool[G]."""
        return self.count < MIN_IMAGES

    def gap(self):
        """Between the best and the worst group: ``{"worst", "best", "difference", "interval_95"}``.

        The interval is Newcombe's hybrid of Wilson's, for all pairs of groups at once (Bonferroni), since
        the two were chosen by their accuracy: with many groups it is wide. Small groups do not take part.
        None where fewer than two are left.
        Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions",
        Statistics in Medicine 17 (1998), method 10.
        """
        large = np.flatnonzero(~self.small)
        if len(large) < 2:
            return None
        z = NormalDist().inv_cdf(1 - 0.025 / math.comb(len(large), 2))
        ends = large[[0, -1]]
        worst, best = self.accuracy[ends].tolist()
        (low_worst, high_worst), (low_best, high_best) = (
            wilson_interval(int(self.correct[at]), int(self.count[at]), z) for at in ends
        )
        return {
            "worst": self.names[ends[0]].item(),
            "best": self.names[ends[1]].item(),
            "difference": best - worst,
            "interval_95": [
                best - worst - math.hypot(best - low_best, high_worst - worst),
                best - worst + math.hypot(high_best - best, worst - low_worst),
            ],
        }

    def by_chance(self, min_images=MIN_IMAGES):
        """Error rates, the largest first, of the groups with at least ``min_images`` images, if all groups
        were equally hard: [DRAWS, groups]. Each image is then misread with the same probability."""
        count, correct = self._large(min_images)
        if not len(count):
            return np.empty((DRAWS, 0))
        rate = 1 - correct.sum() / count.sum()
        errors = random_stream(self.seed, CHANCE).binomial(count, rate, (DRAWS, len(count)))
        return np.sort(errors / count, axis=1)[:, ::-1]

    def worst_decile(self, min_images=MIN_IMAGES):
        """The worst tenth (rounded up) of the groups with at least ``min_images`` images.

        ``error``: the mean of their error rates, each group counting alike; ``pooled_error``: the share of
        their images that are misread. The worst groups look bad by chance too: ``chance`` is the error to
        expect, and ``chance_95`` its range in 95 % of cases, if all groups were equally hard.
        None where fewer than ten groups are that large.
        """
        check_count("min_images", min_images)
        count, correct = self._large(min_images)
        if len(count) < 10:
            return None
        worst = math.ceil(len(count) / 10)
        # from the worst to the best, as all groups are
        wrong = (count - correct)[:worst]
        chance = self.by_chance(min_images)[:, :worst].mean(axis=1)
        return {
            "min_images": int(min_images),
            "groups": worst,
            "of": len(count),
            "images": int(count[:worst].sum()),
            "error": float((wrong / count[:worst]).mean()),
            "pooled_error": float(wrong.sum() / count[:worst].sum()),
            "chance": float(chance.mean()),
            "chance_95": [float(q) for q in np.quantile(chance, (0.025, 0.975))],
        }

    def _large(self, min_images):
        large = self.count >= min_images
        return self.count[large], self.correct[large]

    def rows(self):
        """``[{"group", "images", "correct", "accuracy", "interval_95"}, …]``, the worst first."""
        columns = (part.tolist() for part in (self.names, self.count, self.correct, self.interval))
        return [
            {"group": name, "images": n, "correct": right, "accuracy": right / n, "interval_95": interval}
            for name, n, right, interval in zip(*columns, strict=True)
        ]

    def as_dict(self):
        """Ready for JSON."""
        return {
            "groups": self.rows(),
            "too_small": int(self.small.sum()),
            "gap": self.gap(),
            "worst_decile": self.worst_decile(),
        }


def accuracy_by(evaluation, groups, seed=0):
    """The accuracy of each group of images: a :class:`GroupAccuracy`.

    ``groups`` [N] holds a value (number or text) for each image of the ``evaluation``.
    Errors: DataError for another number of values, for such as cannot be compared, and for NaN.
    """
    check_count("seed", seed, 0)
    names, group_of, count = _grouped(groups, evaluation.count)
    right = evaluation.predicted == evaluation.targets
    correct = np.bincount(group_of, weights=right, minlength=len(names)).astype(np.int64)
    order = np.argsort(correct / count, kind="stable")  # the names are sorted already
    return GroupAccuracy(names[order], count[order], correct[order], int(seed))


def balanced_weights(groups):
    """Weights of images with which each group counts alike in training: float64[N], of mean 1.

    An image of a group of n, among G groups of N images in all, has N / (G·n).
    Errors: DataError as :func:`accuracy_by`, and for no images.
    """
    names, group_of, count = _grouped(groups)
    return (len(group_of) / (len(names) * count))[group_of]


def balanced_sample(groups, seed=0):
    """Indices of images among which each group is alike in number: int64[N], ascending.

    As many as there are images: N / G of each of the G groups, where that is no whole number one more of
    some. A group that has more images gives some of them, chosen by chance; one that has fewer gives each
    of them several times, all equally often but for one time.
    Errors: DataError as :func:`balanced_weights`; ConfigError for a seed that is none.
    """
    check_count("seed", seed, 0)
    names, group_of, _ = _grouped(groups)
    random = random_stream(seed, RESAMPLING)
    each, left_over = divmod(len(group_of), len(names))
    wanted = each + (random.permutation(len(names)) < left_over)
    by_group = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    chosen = [np.resize(random.permutation(of), n) for of, n in zip(by_group, wanted, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _grouped(groups, count=None):
    """(names [G], the index of each image's group [N], images in each group [G]) of a column."""
    groups = np.asarray(groups)
    if groups.ndim != 1 or groups.dtype.kind not in "buifU":
        raise DataError(
            f"groups must be one number or text for each image, not {groups.dtype} {list(groups.shape)}"
        )
    if count is not None and len(groups) != count:
        raise DataError(f"{count} images need {count} groups, got {len(groups)}")
    if not len(groups):
        raise DataError("there are no images to group")
    if groups.dtype.kind == "f" and np.isnan(groups).any():
        raise DataError(f"the group of image {int(np.isnan(groups).argmax())} is NaN: give it one")
    return np.unique(groups, return_inverse=True, return_counts=True)


def read_groups(path, count):
    """A column of ``count`` groups from a file: .npy, .csv with a heading, or text with one value a line.

    Errors: DataError naming the file and the line: missing, damaged, another number of values, an empty
    one, several columns.
    """
    path = Path(path)
    try:
        groups = _npy(path) if path.suffix == ".npy" else _lines(path, count)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 (for arrays, the name must end in .npy)") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if len(groups) != count:
        raise DataError(f"{path}: {count} images need {count} values, got {len(groups)}")
    return groups


def _npy(path):
    """The array in a file; mapped first, so that a header that promises too much costs no memory."""
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 1:
        raise ValueError(f"holds an array shaped {list(array.shape)}, not one value for each image")
    return np.array(array)


def _lines(path, count):
    """One value a line; a .csv file has one more line on top. No more is read than that may take."""
    heading = path.suffix.lower() == ".csv"
    most = LINE * (count + 1)
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"is larger than {count} values of {LINE} bytes")
    lines = content.decode("utf-8-sig").splitlines()
    values = [line.strip() for line in lines]
    for number, value in enumerate(values[heading:], 1 + heading):
        if not value:
            raise ValueError(f"line {number} is empty: give each image a value, such as unknown")
        if heading and ("," in value or ";" in value):
            raise ValueError(f"line {number} has several columns: keep the one to group by")
    return np.array(values[heading:], dtype=str)
