"""How good a classifier is that gives an image any number of labels, and where the threshold of each label should be.

    metrics = multilabel_metrics(probabilities, labels, classes, thresholds)  # (N, C) in 0..1, (N, C) of 0 and 1, names
    metrics.mean_average_precision                                            # Proportion(value=0.91, ...)
    thresholds = best_thresholds(probabilities, labels)                       # on validation images

The counterpart of `metrics`, which is for exactly one class an image. Arrays only: no model, no files.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data import NO_LABEL, SEPARATOR
from finetune.evaluation.metrics import (
    CalibrationBin,
    ClassMetrics,
    Floats,
    Ints,
    Mistake,
    Proportion,
    calibration_bins,
    calibration_error,
    check_probabilities,
    class_metrics,
    expected_ece_if_calibrated,
    wilson_interval,
)

Bools = npt.NDArray[np.bool_]
DRAWS = 1000  # of the bootstrap
WORK = 200_000_000  # draws x images x labels; with more, fewer draws


@dataclass(frozen=True, eq=False)
class MultilabelMetrics:
    """All figures of n images. Intervals are from a bootstrap over images (Efron 1979).

    `accuracy`: the intersection of predicted and true labels over their union, the mean over images (Godbole &
    Sarawagi 2004). `exact`: the fraction of the images with no label wrong. `calibration` is over every label of every
    image.
    """

    classes: tuple[str, ...]
    n: int
    mean_average_precision: Proportion  # the mean over labels; needs no threshold
    accuracy: Proportion
    exact: Proportion
    micro_f1: Proportion  # over all labels of all images
    macro_f1: Proportion  # the mean over labels
    log_loss: float  # binary cross-entropy in nats, the mean over labels
    calibration_error: float
    expected_ece_if_calibrated: float
    calibration: tuple[CalibrationBin, ...]
    per_class: tuple[ClassMetrics, ...]
    labels_expected: float  # labels an image, by the probabilities
    labels_present: float  # labels an image, in truth

    @property
    def headline(self) -> tuple[str, Proportion]:
        """The one figure to look at, and its name."""
        return "mean average precision", self.mean_average_precision

    def summary(self) -> dict[str, Proportion | float]:
        """All figures over all labels, by name."""
        return {
            "mean average precision": self.mean_average_precision,
            "accuracy": self.accuracy,
            "no label wrong": self.exact,
            "micro F1": self.micro_f1,
            "macro F1": self.macro_f1,
            "log loss": self.log_loss,
            "calibration error": self.calibration_error,
        }

    def confused_pairs(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """None: where an image has several labels, none is predicted instead of another."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Numbers, lists and names only, ready for `json.dump`."""
        fractions = ("mean_average_precision", "accuracy", "exact", "micro_f1", "macro_f1")
        return {
            "n": self.n,
            "multi_label": True,
            **{name: asdict(getattr(self, name)) for name in fractions},
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
            "calibration_noise": self.expected_ece_if_calibrated,
            "calibration": [asdict(item) for item in self.calibration],
            "labels_expected": self.labels_expected,
            "labels_present": self.labels_present,
            "per_class": [item.to_json() for item in self.per_class],
            "classes": list(self.classes),
        }


def multilabel_metrics(
    probabilities: Floats, labels: Ints, classes: Sequence[str], thresholds: npt.ArrayLike
) -> MultilabelMetrics:
    """All metrics of `probabilities` (N, C) in 0..1 against `labels` (N, C) of 0 and 1.

    A label is predicted from its threshold on; `thresholds` are (C,) or one for all. DataError when there is no image
    or a probability is not a number.
    """
    check_probabilities(probabilities, labels, classes)
    n, truth = len(labels), labels > 0
    thresholds = np.broadcast_to(thresholds, len(classes))
    predicted = probabilities >= thresholds
    weights = _bootstrap_weights(n, len(classes))  # (draws, N); row 0 is the sample itself
    precisions = np.stack(
        [average_precision(probabilities[:, at], truth[:, at], weights) for at in range(len(classes))], axis=1
    )  # (draws, C), NaN where the label does not occur
    hits, predictions, present = _counts(predicted, truth, weights)
    micro_f1 = _ratio(2 * hits.sum(axis=1), predictions.sum(axis=1) + present.sum(axis=1))
    rows = class_metrics(labels, predicted, classes, (truth & predicted).sum(axis=0))
    per_class = tuple(
        replace(
            row,
            threshold=float(thresholds[at]),
            average_precision=_interval(precisions[:, at], row.n) if row.n else None,
        )
        for at, row in enumerate(rows)
    )
    clipped = probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)
    bins = calibration_bins(probabilities.ravel(), truth.ravel())
    return MultilabelMetrics(
        classes=tuple(classes),
        n=n,
        mean_average_precision=_interval(_mean(precisions), n),
        accuracy=bootstrap_mean(jaccard(predicted, truth)),
        exact=wilson_interval(int((predicted == truth).all(axis=1).sum()), n),
        micro_f1=_interval(micro_f1, n),
        macro_f1=_interval(_macro_f1(hits, predictions, present), n),
        log_loss=float(-np.where(truth, np.log(clipped), np.log1p(-clipped)).mean()),
        calibration_error=calibration_error(bins),
        expected_ece_if_calibrated=expected_ece_if_calibrated(bins),
        calibration=bins,
        per_class=per_class,
        labels_expected=float(probabilities.sum(axis=1).mean()),
        labels_present=float(truth.sum(axis=1).mean()),
    )


def jaccard(predicted: Bools, truth: Bools) -> Floats:
    """Intersection over union of two sets of labels (N, C) for each image (N,); 1 where both are empty."""
    union = (predicted | truth).sum(axis=1)
    return np.where(union, (predicted & truth).sum(axis=1) / np.maximum(union, 1), 1.0)


def bootstrap_mean(values: Floats) -> Proportion:
    """The mean of `values` (N,), one for each image, with its interval."""
    means = _bootstrap_weights(len(values), 1) @ values.astype(np.float32) / len(values)
    return _interval(means, len(values))


def average_precision(scores: Floats, truth: Bools, weights: Floats) -> Floats:
    """Average precision (draws,) of scores (N,) for images that count `weights` (draws, N) times each.

    The mean precision at every image that has the label, as `sklearn.metrics.average_precision_score` has it for one
    draw; equal scores have one threshold. NaN in a draw without the label.
    """
    order = np.argsort(-scores, kind="stable")
    scores, truth, weights = scores[order], truth[order], weights[:, order]
    last = np.searchsorted(-scores, -scores[truth], side="right") - 1  # the last of those that score the same
    predicted = np.cumsum(weights, axis=1)[:, last]
    hits = np.cumsum(weights * truth, axis=1)[:, last]
    present = weights[:, truth]
    with np.errstate(invalid="ignore", divide="ignore"):
        precisions = present * hits / np.maximum(predicted, 1)  # (draws, images that have the label)
        return np.asarray(precisions.sum(axis=1) / present.sum(axis=1), np.float64)


def best_thresholds(probabilities: Floats, labels: Ints) -> tuple[float, ...]:
    """For every label the threshold with the highest F1, midway between two probabilities; of several, the one
    nearest to 0.5. It is 0.5 for a label that no image has."""
    thresholds = []
    for scores, truth in zip(probabilities.T.astype(np.float64), labels.T > 0, strict=True):
        if not truth.any():
            thresholds.append(0.5)
            continue
        order = np.argsort(-scores, kind="stable")
        scores, hits = scores[order], np.cumsum(truth[order])
        f1 = 2 * hits / (np.arange(1, len(scores) + 1) + truth.sum())
        f1[:-1][scores[1:] == scores[:-1]] = 0  # no threshold divides equal scores
        middle = (scores + np.append(scores[1:], 0)) / 2
        best = middle[f1 >= f1.max() - 1e-12]
        thresholds.append(float(best[np.abs(best - 0.5).argmin()]))
    return tuple(thresholds)


@dataclass(frozen=True)
class ThresholdComparison:
    """The macro F1 of fitted thresholds and of 0.5 for all labels, and the 95 % interval of the first less the second,
    by a bootstrap over images."""

    fitted: float
    half: float
    low: float
    high: float


def compare_thresholds(probabilities: Floats, labels: Ints, thresholds: npt.ArrayLike) -> ThresholdComparison:
    """Whether `thresholds` (C,) suit these images better than 0.5, by `labels` (N, C) of 0 and 1."""
    truth = labels > 0
    weights = _bootstrap_weights(*labels.shape)
    cuts = np.asarray(thresholds, np.float64), 0.5
    fitted, half = (_macro_f1(*_counts(probabilities >= cut, truth, weights)) for cut in cuts)
    low, high = np.quantile(fitted[1:] - half[1:], [0.025, 0.975])
    return ThresholdComparison(float(fitted[0]), float(half[0]), float(low), float(high))


def multilabel_mistakes(
    probabilities: Floats, labels: Ints, classes: Sequence[str], paths: Sequence[Path], thresholds: Floats
) -> list[Mistake]:
    """Every label that was predicted wrongly or missed, the most confident first."""
    truth, predicted = labels > 0, probabilities >= thresholds
    confidences = np.where(predicted, probabilities, 1 - probabilities)
    wrong = np.argwhere(predicted != truth)
    order = np.argsort(-confidences[tuple(wrong.T)], kind="stable")
    names = [SEPARATOR.join(classes[at] for at in np.flatnonzero(row).tolist()) or NO_LABEL for row in truth]
    mistakes = []
    for row, column in wrong[order].tolist():
        name, confidence = classes[column], float(confidences[row, column])
        mistakes.append(
            Mistake(
                path=paths[row],
                true=names[row],
                predicted=name if predicted[row, column] else f"not {name}",
                probability=confidence,
                true_probability=1 - confidence,
                about=name,
            )
        )
    return mistakes


def _bootstrap_weights(n: int, classes: int) -> Floats:
    """How often each of n images counts (draws, n): once in row 0, then as in samples of n with replacement."""
    draws = int(np.clip(WORK // (n * classes), 100, DRAWS))
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([np.ones(n), drawn]).astype(np.float32)


def _counts(predicted: Bools, truth: Bools, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """How many images have a label rightly predicted, have it predicted, and have it: (draws, C) each."""
    hits, predictions, present = (weights @ part.astype(np.float32) for part in (truth & predicted, predicted, truth))
    return hits, predictions, present


def _macro_f1(hits: Floats, predictions: Floats, present: Floats) -> Floats:
    """The mean F1 (draws,) of the labels that occur."""
    f1 = _ratio(2 * hits, predictions + present)
    f1[present == 0] = np.nan
    return _mean(f1)


def _interval(values: Floats, n: int) -> Proportion:
    """The value of draw 0 with the 95 % interval of the others, without draws in which the label does not occur.

    A perfect sample of n has only perfect draws, which prove nothing: it gets the score interval of n out of n.
    """
    if values[0] > 1 - 1e-6 or values[0] < 1e-6:
        return wilson_interval(n * round(values[0]), n)
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (value, value)
    return Proportion(value, min(value, float(low)), max(value, float(high)))


def _mean(values: Floats) -> Floats:
    """The mean over labels (draws, C) -> (draws,), without those that do not occur."""
    known = np.isfinite(values)
    return np.asarray(_ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1)), np.float64)


def _ratio(part: Any, whole: Any) -> Floats:
    return np.asarray(part / np.maximum(whole, 1), np.float64)
