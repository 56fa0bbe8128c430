"""How good a classifier is, and how sure that is: every figure of the report, from probabilities.

    metrics = multiclass_metrics(probabilities, labels, classes)   # (N, C), (N,), names of the C classes
    metrics.accuracy                                               # Proportion(value=0.943, low=0.914, high=0.962)
    metrics.to_json()                                              # the "test" part of report.json

Arrays only: no model, no files. Sources stand at the functions. `multilabel` has the same for several labels an image.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.utils import DataError

BINS = 15  # of the calibration curve, as in Guo et al. 2017
EXACT_SIGNS = 14  # of so many differences, all 16,384 combinations of signs are looked at
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Proportion:
    """A fraction of n images with its 95 % interval; all three in 0..1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassMetrics:
    """One class. All is None without images of it (n = 0), and the precision if it was never predicted."""

    name: str
    n: int
    precision: float | None
    recall: Proportion | None
    f1: float | None
    average_precision: Proportion | None = None  # this and the threshold: several labels only
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Flat, so that a list of these is a table: `pandas.DataFrame(report["test"]["per_class"])`."""
        recall, average = self.recall, self.average_precision
        row: dict[str, Any] = {
            "class": self.name,
            "n": self.n,
            "precision": self.precision,
            "recall": recall.value if recall else None,
            "recall_low": recall.low if recall else None,
            "recall_high": recall.high if recall else None,
            "f1": self.f1,
        }
        if self.threshold is not None:
            row["average_precision"] = average.value if average else None
            row["average_precision_low"] = average.low if average else None
            row["average_precision_high"] = average.high if average else None
            row["threshold"] = self.threshold
        return row


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose highest probability lies in (low, high], its mean, and the fraction predicted correctly."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class MulticlassMetrics:
    """All figures of n images. `confusion[t, p]` counts images of class t that were predicted as p."""

    classes: tuple[str, ...]
    n: int
    accuracy: Proportion
    top5: Proportion | None  # None for five classes or fewer, where it is always 1
    balanced_accuracy: float
    log_loss: float
    calibration_error: float
    expected_ece_if_calibrated: float  # the calibration error that true probabilities would have on so few images
    calibration: tuple[CalibrationBin, ...]
    per_class: tuple[ClassMetrics, ...]
    confusion: Ints  # (C, C)

    @property
    def headline(self) -> tuple[str, Proportion]:
        """The one figure to look at, and its name."""
        return "accuracy", self.accuracy

    def summary(self) -> dict[str, Proportion | float]:
        """All figures over all classes, by name."""
        figures: dict[str, Proportion | float] = {"accuracy": self.accuracy}
        if self.top5:
            figures["top-5 accuracy"] = self.top5
        figures["balanced accuracy"] = self.balanced_accuracy
        figures["log loss"] = self.log_loss
        figures["calibration error"] = self.calibration_error
        return figures

    @property
    def correct(self) -> int:
        """How many of the n images were predicted correctly."""
        return int(np.trace(self.confusion))

    @property
    def mean_confidence(self) -> float:
        """The mean of the highest probabilities; above the accuracy, the classifier is overconfident."""
        return sum(row.confidence * row.n for row in self.calibration) / self.n

    def confused_pairs(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """The most frequent mistakes as (true class, predicted class, images), most frequent first."""
        mistakes = self.confusion * (1 - np.eye(len(self.classes), dtype=int))
        order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
        cells = [(*np.unravel_index(i, mistakes.shape), int(mistakes.flat[i])) for i in order]
        return [(self.classes[t], self.classes[p], count) for t, p, count in cells if count]

    def to_json(self) -> dict[str, Any]:
        """Numbers, lists and names only, ready for `json.dump`; what is unknown is None."""
        return {
            "n": self.n,
            "accuracy": asdict(self.accuracy),
            "top5": asdict(self.top5) if self.top5 else None,
            "balanced_accuracy": self.balanced_accuracy,
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
            "calibration_noise": self.expected_ece_if_calibrated,
            "calibration": [asdict(row) for row in self.calibration],
            "per_class": [row.to_json() for row in self.per_class],
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


def multiclass_metrics(probabilities: Floats, labels: Ints, classes: Sequence[str]) -> MulticlassMetrics:
    """All metrics of `probabilities` (N, C), rows that sum to 1, against `labels` (N,) in 0..C-1.

    Raises:
        DataError: there is no image, or a probability is not a finite number. The rows of unreadable images
            (NaN by convention) must be taken out first: they are not wrong predictions.
        ValueError: impossible shapes, labels or sums.
    """
    from sklearn.metrics import confusion_matrix, top_k_accuracy_score  # type: ignore[import-untyped]

    check_probabilities(probabilities, labels, classes)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels must lie in 0..{len(classes) - 1}, got {labels.min()}..{labels.max()}")
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-2):
        raise ValueError("the rows of probabilities must be positive and sum to 1: are these logits?")
    n, numbers = len(labels), range(len(classes))
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, labels=numbers)
    per_class = class_metrics(labels, predicted, classes, confusion.diagonal())
    bins = calibration_bins(probabilities.max(axis=1), predicted == labels)
    top5 = None
    if len(classes) > 5:
        among_top5 = top_k_accuracy_score(labels, probabilities, k=5, normalize=False, labels=numbers)
        top5 = wilson_interval(int(among_top5), n)
    of_label = probabilities[np.arange(n), labels]  # (N,) the probability of the true class
    return MulticlassMetrics(
        classes=tuple(classes),
        n=n,
        accuracy=wilson_interval(int(confusion.trace()), n),
        top5=top5,
        balanced_accuracy=float(np.mean([row.recall.value for row in per_class if row.recall])),
        # clipped at the precision of the numbers, as in sklearn.metrics.log_loss: no error is infinitely bad
        log_loss=float(-np.log(of_label.clip(np.finfo(of_label.dtype).eps).astype(np.float64)).mean()),
        calibration_error=calibration_error(bins),
        expected_ece_if_calibrated=expected_ece_if_calibrated(bins),
        calibration=bins,
        per_class=per_class,
        confusion=confusion,
    )


def class_metrics(
    labels: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: Sequence[str], hits: Ints
) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 of every class; `hits` counts the images of it for which it was predicted.

    `labels` and `predicted` are class numbers (N,), or 0 and 1 (N, C).
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers = range(len(classes))
    columns = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=np.nan)
    rows = []
    for name, correct, precision, _, f1, n in zip(classes, hits, *columns, strict=True):
        if n == 0:
            rows.append(ClassMetrics(name, 0, None, None, None))
            continue
        recall = wilson_interval(int(correct), int(n))
        rows.append(ClassMetrics(name, int(n), None if np.isnan(precision) else float(precision), recall, float(f1)))
    return tuple(rows)


def wilson_interval(successes: int, n: int) -> Proportion:
    """The fraction `successes / n` with its 95 % score interval (Wilson 1927), which holds for few images too."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return Proportion(successes / n, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class PairedTest:
    """Two classifiers on the same n images: for how many only one is correct (or more correct than the other), and
    whether the difference of their means can be chance."""

    n: int
    only_first: int
    only_second: int
    p_value: float
    difference: float  # accuracy of the second less accuracy of the first

    @property
    def better(self) -> str | None:
        """`first` or `second` where one is better at the 5 % level, else None: no evidence."""
        if self.p_value >= 0.05:
            return None
        return "second" if self.difference > 0 else "first"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "better": self.better}


def paired_test(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> PairedTest:
    """Whether the mean of `second` differs from that of `first` by more than chance: how correct two classifiers are.

    Arrays (N,) in the same order, boolean or from 0 to 1. A randomisation test (Fisher 1935): without a difference
    each image could as well have had the two results the other way round. For booleans this is McNemar's exact test
    (1947). Images with two equal results do not count.
    """
    from scipy.stats import binomtest

    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"two results for each image are needed, not shapes {first.shape}, {second.shape}")
    changes = second.astype(np.float64) - first
    only_first, only_second = int((changes < 0).sum()), int((changes > 0).sum())
    changes = changes[changes != 0]
    if changes.size == 0:
        p_value = 1.0
    elif (np.abs(changes) == 1).all():
        p_value = float(binomtest(only_first, changes.size).pvalue)
    else:
        p_value = sign_flip_p_value(changes)
    return PairedTest(first.size, only_first, only_second, p_value, float(changes.sum()) / first.size)


def sign_flip_p_value(changes: Floats) -> float:
    """How often the sum of `changes` (n,) is at least as far from 0 if every sign is drawn at random.

    All combinations of signs where that are few; else by the normal distribution that they approach.
    """
    from scipy.stats import norm

    total, count = abs(float(changes.sum())), len(changes)
    if count > EXACT_SIGNS:
        return float(2 * norm.sf(total / np.sqrt((changes**2).sum())))
    signs = np.array(list(itertools.product((-1, 1), repeat=count)))
    return float((np.abs(signs @ changes) >= total - 1e-9).mean())


def two_sample_p_value(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """How likely chance alone makes the means of two groups of images at least so different.

    Arrays (N,) and (M,) of how correct each prediction is, boolean or from 0 to 1. Without a difference each image
    could as well be in the other group: for booleans Fisher's exact test (1935), else its normal approximation for
    any numbers (Pitman 1937).
    """
    from scipy.stats import fisher_exact, norm

    pooled = np.concatenate([first, second]).astype(np.float64)
    if np.isin(pooled, (0, 1)).all():
        table = [[int(group.sum()), len(group) - int(group.sum())] for group in (first, second)]
        return float(fisher_exact(table).pvalue)
    spread = pooled.std(ddof=1) * np.sqrt(1 / len(first) + 1 / len(second))
    return float(2 * norm.sf(abs(first.mean() - second.mean()) / spread)) if spread > 0 else 1.0


@dataclass(frozen=True)
class Mistake:
    """One image with a wrong prediction, with the probability of the predicted class and of the true one."""

    path: Path
    true: str
    predicted: str
    probability: float
    true_probability: float
    about: str = ""  # the class in question, where `predicted` is more than its name


def multiclass_mistakes(
    probabilities: Floats, labels: Ints, classes: Sequence[str], paths: Sequence[Path]
) -> list[Mistake]:
    """Every wrong prediction, the most confident first: among these are the wrong labels."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]
    return [
        Mistake(
            path=paths[i],
            true=classes[labels[i]],
            predicted=classes[predicted[i]],
            probability=float(probabilities[i, predicted[i]]),
            true_probability=float(probabilities[i, labels[i]]),
        )
        for i in order
    ]


def check_probabilities(probabilities: Floats, labels: Ints, classes: Sequence[str]) -> None:
    """Raise what `multiclass_metrics` says for probabilities that cannot be measured."""
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(classes)):
        raise ValueError(f"probabilities {probabilities.shape}, {len(labels)} labels, {len(classes)} classes")
    if len(labels) == 0:
        raise DataError("There are no images to measure on.", hint="Give the test split a fraction above 0.")
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if broken.size:
        raise DataError(
            f"{broken.size} of {len(labels)} predictions are not numbers (first: image {broken[0] + 1}).",
            hint="Such images were not readable, or the weights of the model are damaged (NaN).",
        )
    if probabilities.min() < 0 or probabilities.max() > 1.01:
        raise ValueError("probabilities lie in 0..1, and the rows must be positive and sum to 1: are these logits?")


def calibration_bins(confidence: Floats, correct: npt.NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    """Those of 15 equal bins of `confidence` (N,) that hold images.

    Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return tuple(
        CalibrationBin(
            low=float(i / BINS),
            high=float((i + 1) / BINS),
            n=int((index == i).sum()),
            confidence=float(confidence[index == i].mean(dtype=np.float64)),
            accuracy=float(correct[index == i].mean()),
        )
        for i in np.unique(index)
    )


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Expected calibration error, 0..1: the mean distance between confidence and accuracy, over images."""
    return sum(row.n * abs(row.accuracy - row.confidence) for row in bins) / sum(row.n for row in bins)


def expected_ece_if_calibrated(bins: Sequence[CalibrationBin]) -> float:
    """The calibration error to expect by chance if every probability were true, 0..1.

    Each bin is then a binomial, whose mean absolute deviation De Moivre gave in 1730 (Diaconis & Zabell 1991).
    """
    from scipy.stats import binom

    def deviation(row: CalibrationBin) -> float:
        above = math.floor(row.n * row.confidence) + 1
        return float(2 * above * (1 - row.confidence) * binom.pmf(above, row.n, row.confidence))

    return sum(deviation(row) for row in bins) / sum(row.n for row in bins)
