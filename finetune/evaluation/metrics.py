"""How good is a classifier, and how sure can we be: every number of the report, from probabilities.

    metrics = measure(probabilities, labels, classes)     # (N, C), (N,), names of the C classes
    metrics.accuracy                                      # Proportion(value=0.943, low=0.914, high=0.962)
    metrics.to_json()                                     # the "test" part of report.json

Plain numpy: no model, no files. Sources stand at the functions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.utils import DataError

Z95 = 1.959963984540054  # standard normal quantile of 0.975: two-sided 95 %
BINS = 15  # of the calibration curve, as in Guo et al. 2017
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Proportion:
    """A share of n images with its 95 % interval; all three in 0..1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassMetrics:
    """One class. All is None without images of it (n = 0); so is the precision if it was never predicted."""

    name: str
    n: int
    precision: float | None
    recall: Proportion | None
    f1: float | None
    average_precision: Proportion | None = None  # this and the threshold only where images have several labels
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Flat, so that a list of these is a table: `pandas.DataFrame(report["test"]["per_class"])`."""
        recall, average = self.recall, self.average_precision
        labelled = {
            "average_precision": average.value if average else None,
            "average_precision_low": average.low if average else None,
            "average_precision_high": average.high if average else None,
            "threshold": self.threshold,
        }
        return {
            "class": self.name,
            "n": self.n,
            "precision": self.precision,
            "recall": recall.value if recall else None,
            "recall_low": recall.low if recall else None,
            "recall_high": recall.high if recall else None,
            "f1": self.f1,
            **(labelled if self.threshold is not None else {}),
        }


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose highest probability lies in (low, high]: what was claimed and what came true."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class MulticlassMetrics:
    """What `measure` found on n images. `confusion[t, p]` counts images of class t that were called p."""

    classes: tuple[str, ...]
    n: int
    accuracy: Proportion
    top5: Proportion | None  # None for five classes or fewer, where it is 1 whatever the model says
    balanced_accuracy: float
    log_loss: float
    calibration_error: float
    calibration_noise: float  # the error that honest probabilities would show on so few images
    calibration: tuple[CalibrationBin, ...]
    per_class: tuple[ClassMetrics, ...]
    confusion: Ints  # (C, C)

    @property
    def headline(self) -> tuple[str, Proportion]:
        """The one figure to look at, and its name."""
        return "accuracy", self.accuracy

    def summary(self) -> dict[str, Proportion | float]:
        """All figures over all classes, by name."""
        return {
            "accuracy": self.accuracy,
            **({"top-5 accuracy": self.top5} if self.top5 else {}),
            "balanced accuracy": self.balanced_accuracy,
            "log loss": self.log_loss,
            "calibration error": self.calibration_error,
        }

    @property
    def correct(self) -> int:
        """How many of the n images were named right."""
        return int(np.trace(self.confusion))

    @property
    def mean_confidence(self) -> float:
        """What the model claims on average; above the accuracy it is overconfident."""
        return sum(item.confidence * item.n for item in self.calibration) / self.n

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
            "calibration_noise": self.calibration_noise,
            "calibration": [asdict(item) for item in self.calibration],
            "per_class": [item.to_json() for item in self.per_class],
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


def multiclass_metrics(probabilities: Floats, labels: Ints, classes: Sequence[str]) -> MulticlassMetrics:
    """All metrics of `probabilities` (N, C), rows that sum to 1, against `labels` (N,) in 0..C-1.

    Raises:
        DataError: there is no image, or a probability is not a finite number. The rows of unreadable images
            (NaN by convention) must be taken out first: they are not wrong answers.
        ValueError: shapes, labels or sums that cannot be: a mistake of the caller.
    """
    check_probabilities(probabilities, labels, classes)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels must lie in 0..{len(classes) - 1}, got {labels.min()}..{labels.max()}")
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-2):
        raise ValueError("the rows of probabilities must be positive and sum to 1: are these logits?")
    n, c = probabilities.shape
    own = probabilities[np.arange(n), labels]  # (N,) what the true class was given
    ranks = _ranks(probabilities, labels)
    confusion = np.bincount(labels.astype(np.int64) * c + probabilities.argmax(axis=1), minlength=c * c)
    confusion = confusion.reshape(c, c)
    per_class = tuple(_class_metrics(confusion, i, name) for i, name in enumerate(classes))
    recalls = [item.recall.value for item in per_class if item.recall]
    bins = calibration_bins(probabilities.max(axis=1), ranks == 0)
    return MulticlassMetrics(
        classes=tuple(classes),
        n=n,
        accuracy=wilson_interval(int((ranks == 0).sum()), n),
        top5=wilson_interval(int((ranks < 5).sum()), n) if c > 5 else None,
        balanced_accuracy=float(np.mean(recalls)),
        # clipped at the precision of the numbers, as in sklearn.metrics.log_loss: no error is infinitely bad
        log_loss=float(-np.log(own.clip(np.finfo(own.dtype).eps).astype(np.float64)).mean()),
        calibration_error=calibration_error(bins),
        calibration_noise=expected_ece_if_calibrated(bins),
        calibration=bins,
        per_class=per_class,
        confusion=confusion,
    )


def wilson_interval(successes: int, n: int) -> Proportion:
    """The share `successes / n` with its 95 % score interval (Wilson 1927), honest also for few images."""
    share = successes / n
    center = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * (share * (1 - share) / n + Z95**2 / (4 * n**2)) ** 0.5
    low = 0.0 if successes == 0 else center - half  # exactly 0 and 1 in theory, nearly so in floating point
    high = 1.0 if successes == n else center + half
    return Proportion(share, low, high)


@dataclass(frozen=True)
class PairedTest:
    """Two classifiers on the same n images: how often only one was right (or one was righter than the other), and
    whether that can be chance."""

    n: int
    only_first: int
    only_second: int
    p_value: float
    difference: float  # accuracy of the second less accuracy of the first

    @property
    def better(self) -> str | None:
        """`first` or `second` where the 5 % level speaks for one, else None: no evidence."""
        if self.p_value >= 0.05:
            return None
        return "second" if self.only_second > self.only_first else "first"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "better": self.better}


def paired_test(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> PairedTest:
    """McNemar's exact test (1947) on how right each was: arrays (N,) in the same order, boolean or from 0 to 1.

    Images on which both agree say nothing; of the others, each would win half if there were no difference.
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # comes with scikit-learn

    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"two answers for each image are needed, not shapes {first.shape}, {second.shape}")
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    disagreements = only_first + only_second
    p_value = float(binomtest(only_first, disagreements).pvalue) if disagreements else 1.0
    difference = float(second.sum(dtype=np.float64) - first.sum(dtype=np.float64)) / first.size
    return PairedTest(first.size, only_first, only_second, p_value, difference)


@dataclass(frozen=True)
class Mistake:
    """One image that was given the wrong class, with the probability of that class and of the true one."""

    path: Path
    true: str
    predicted: str
    probability: float
    true_probability: float
    about: str = ""  # the class to look at, where `predicted` is more than its name


def multiclass_mistakes(
    probabilities: Floats, labels: Ints, classes: Sequence[str], paths: Sequence[Path]
) -> list[Mistake]:
    """Every wrong answer, the surest first: there are the wrong labels, and what was not understood."""
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
    """What `measure` raises for answers that are none."""
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(classes)):
        raise ValueError(f"probabilities {probabilities.shape}, {len(labels)} labels, {len(classes)} classes")
    if len(labels) == 0:
        raise DataError("There are no images to measure on.", hint="Give the test split a share above 0.")
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if broken.size:
        raise DataError(
            f"{broken.size} of {len(labels)} predictions are not numbers (first: image {broken[0] + 1}).",
            hint="Such images were not readable, or the weights of the model are damaged (NaN).",
        )
    if probabilities.min() < 0 or probabilities.max() > 1.01:
        raise ValueError("probabilities lie in 0..1, and the rows must be positive and sum to 1: are these logits?")


def _ranks(probabilities: Floats, labels: Ints) -> Ints:
    """How many classes come before the true one (N,); among equals the first class wins, as in argmax."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    before = (probabilities > own) | ((probabilities == own) & earlier)  # (N, C)
    return np.asarray(before.sum(axis=1), np.int64)


def _class_metrics(confusion: Ints, i: int, name: str) -> ClassMetrics:
    right, n, predicted = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
    if n == 0:
        return ClassMetrics(name, 0, None, None, None)
    precision = right / predicted if predicted else None
    return ClassMetrics(name, n, precision, wilson_interval(right, n), 2 * right / (n + predicted))


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
    """Expected calibration error, 0..1: the mean distance between what is stated and what is right, over images."""
    return sum(item.n * abs(item.accuracy - item.confidence) for item in bins) / sum(item.n for item in bins)


def expected_ece_if_calibrated(bins: Sequence[CalibrationBin]) -> float:
    """The calibration error to expect if every stated probability were true: chance alone, 0..1.

    Each bin is then a binomial, whose mean absolute deviation De Moivre gave in 1730 (Diaconis & Zabell 1991).
    """
    from scipy.stats import binom  # type: ignore[import-untyped]  # comes with scikit-learn

    def deviation(item: CalibrationBin) -> float:
        above = math.floor(item.n * item.confidence) + 1
        return float(2 * above * (1 - item.confidence) * binom.pmf(above, item.n, item.confidence))

    return sum(deviation(item) for item in bins) / sum(item.n for item in bins)
