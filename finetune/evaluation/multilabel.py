"""How good a classifier is that gives an image any number of labels, and where each label's threshold should be.

    found = measure(probabilities, labels, classes, thresholds)   # (N, C) in 0..1, (N, C) of 0 and 1, names, (C,)
    found.mean_average_precision                                  # Proportion(value=0.91, low=0.88, high=0.93)
    thresholds = best_thresholds(probabilities, labels)           # on validation images

The sister of `evaluation`, which measures where exactly one class is right. Plain numpy: no model, no files.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    expected_ece_if_calibrated,
    wilson_interval,
)

DRAWS = 1000  # of the bootstrap
WORK = 200_000_000  # draws x images x labels; with more, fewer draws


@dataclass(frozen=True, eq=False)
class MultilabelMetrics:
    """What `measure` found on n images. Intervals are from a bootstrap over images (Efron 1979).

    `accuracy`: what the labels said and true have in common, of all that either names; the mean over images (Godbole
    & Sarawagi 2004). `exact`: the share of the images with no label wrong. `calibration` looks at every label of
    every image.
    """

    classes: tuple[str, ...]
    n: int
    mean_average_precision: Proportion  # no threshold has a part in it; the mean over labels
    accuracy: Proportion
    exact: Proportion
    micro_f1: Proportion  # over all labels of all images
    macro_f1: Proportion  # the mean over labels
    log_loss: float  # binary cross-entropy in nats, the mean over labels
    calibration_error: float
    calibration_noise: float
    calibration: tuple[CalibrationBin, ...]
    per_class: tuple[ClassMetrics, ...]
    expected: float  # labels an image, by the probabilities
    present: float  # labels an image, in truth

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
        """None: where labels stand side by side, one is not taken for another."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Numbers, lists and names only, ready for `json.dump`."""
        shares = ("mean_average_precision", "accuracy", "exact", "micro_f1", "macro_f1")
        return {
            "n": self.n,
            "multi_label": True,
            **{name: asdict(getattr(self, name)) for name in shares},
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
            "calibration_noise": self.calibration_noise,
            "calibration": [asdict(item) for item in self.calibration],
            "labels_expected": self.expected,
            "labels_present": self.present,
            "per_class": [item.to_json() for item in self.per_class],
            "classes": list(self.classes),
        }


def multilabel_metrics(
    probabilities: Floats, labels: Ints, classes: Sequence[str], thresholds: npt.ArrayLike
) -> MultilabelMetrics:
    """All metrics of `probabilities` (N, C) in 0..1 against `labels` (N, C) of 0 and 1; a label is said from its
    threshold, (C,) or one for all, on. DataError when there is no image or a probability is not a number."""
    check_probabilities(probabilities, labels, classes)
    n, truth = len(labels), labels > 0
    thresholds = np.broadcast_to(thresholds, len(classes))
    said = probabilities >= thresholds
    weights = _draws(n, len(classes))  # (draws, N); row 0 is the sample itself
    precisions = np.stack(
        [average_precision(probabilities[:, at], truth[:, at], weights) for at in range(len(classes))], axis=1
    )  # (draws, C), NaN where the label does not occur
    hits, claims, there = (weights @ part.astype(np.float32) for part in (said & truth, said, truth))  # (draws, C)
    f1 = _ratio(2 * hits, claims + there)
    f1[there == 0] = np.nan
    clipped = probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)
    bins = calibration_bins(probabilities.ravel(), truth.ravel())
    return MultilabelMetrics(
        classes=tuple(classes),
        n=n,
        mean_average_precision=_interval(_mean(precisions), n),
        accuracy=bootstrap_mean(jaccard(said, truth)),
        exact=wilson_interval(int((said == truth).all(axis=1).sum()), n),
        micro_f1=_interval(_ratio(2 * hits.sum(axis=1), claims.sum(axis=1) + there.sum(axis=1)), n),
        macro_f1=_interval(_mean(f1), n),
        log_loss=float(-np.where(truth, np.log(clipped), np.log1p(-clipped)).mean()),
        calibration_error=calibration_error(bins),
        calibration_noise=expected_ece_if_calibrated(bins),
        calibration=bins,
        per_class=tuple(
            _label(name, truth[:, at], said[:, at], precisions[:, at], float(thresholds[at]))
            for at, name in enumerate(classes)
        ),
        expected=float(probabilities.sum(axis=1).mean()),
        present=float(truth.sum(axis=1).mean()),
    )


def jaccard(said: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Floats:
    """What two sets of labels (N, C) have in common, of all that either has (N,); 1 where both are empty."""
    either = (said | truth).sum(axis=1)
    return np.where(either, (said & truth).sum(axis=1) / np.maximum(either, 1), 1.0)


def bootstrap_mean(values: Floats) -> Proportion:
    """The mean of `values` (N,), one an image, with its interval."""
    return _interval(_draws(len(values), 1) @ values.astype(np.float32) / len(values), len(values))


def average_precision(scores: Floats, truth: npt.NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision (draws,) of scores (N,) for images that count `weights` (draws, N) times each.

    The mean precision at every image that has the label, as in scikit-learn; equal scores stand or fall together.
    NaN in a draw without the label.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, there = scores[order], truth[order]
    last = np.searchsorted(-ranked, -ranked[there], side="right") - 1  # the last of those that score the same
    weights = weights[:, order]
    seen = np.cumsum(weights, axis=1)[:, last]
    found = np.cumsum(weights * there, axis=1)[:, last]
    own = weights[:, there]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((own * found / np.maximum(seen, 1)).sum(axis=1) / own.sum(axis=1), np.float64)


def best_thresholds(probabilities: Floats, labels: Ints) -> tuple[float, ...]:
    """For every label the threshold with the highest F1, between two probabilities; of several, that nearest to 0.5."""
    columns = zip(probabilities.T.astype(np.float64), labels.T > 0, strict=True)
    return tuple(_best_threshold(scores, truth) for scores, truth in columns)


def _best_threshold(scores: Floats, truth: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    if not truth.any():
        return 0.5
    edges = np.append(ranked[1:] < ranked[:-1], True)  # no threshold divides equal scores
    f1 = np.where(edges, 2 * hits / (np.arange(1, len(ranked) + 1) + truth.sum()), 0)
    middle = (ranked + np.append(ranked[1:], 0)) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middle[best[np.abs(middle[best] - 0.5).argmin()]])


def multilabel_mistakes(
    probabilities: Floats, labels: Ints, classes: Sequence[str], paths: Sequence[Path], thresholds: Floats
) -> list[Mistake]:
    """Every label that was wrongly said or missed, the surest first."""
    truth, said = labels > 0, probabilities >= thresholds
    rows, columns = np.nonzero(said != truth)
    sure = np.where(said, probabilities, 1 - probabilities)[rows, columns]
    names = [SEPARATOR.join(classes[at] for at in np.flatnonzero(row).tolist()) or NO_LABEL for row in truth]
    return [
        Mistake(
            path=paths[rows[at]],
            true=names[rows[at]],
            predicted=classes[columns[at]] if said[rows[at], columns[at]] else f"not {classes[columns[at]]}",
            probability=float(sure[at]),
            true_probability=float(1 - sure[at]),
            about=classes[columns[at]],
        )
        for at in np.argsort(-sure, kind="stable")
    ]


def _label(
    name: str, truth: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_], precisions: Floats, threshold: float
) -> ClassMetrics:
    n, claims, hits = int(truth.sum()), int(said.sum()), int((truth & said).sum())
    if n == 0:
        return ClassMetrics(name, 0, None, None, None, None, threshold)
    precision = hits / claims if claims else None
    average = _interval(precisions, n)
    return ClassMetrics(name, n, precision, wilson_interval(hits, n), 2 * hits / (n + claims), average, threshold)


def _draws(n: int, classes: int) -> Floats:
    """How often each of n images counts: once in row 0, then as in samples of n with replacement (draws, n)."""
    draws = int(np.clip(WORK // (n * classes), 100, DRAWS))
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([np.ones(n), drawn]).astype(np.float32)


def _interval(values: Floats, n: int) -> Proportion:
    """The value of row 0 with the 95 % interval of the others; draws without the label say nothing.

    A perfect sample of n has perfect draws only, which proves nothing: there the score interval of n of n stands.
    """
    if values[0] > 1 - 1e-6 or values[0] < 1e-6:
        return wilson_interval(n * round(values[0]), n)
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (value, value)
    return Proportion(value, min(value, float(low)), max(value, float(high)))


def _mean(values: Floats) -> Floats:
    """The mean over labels (draws, C) -> (draws,), of those that there are."""
    known = np.isfinite(values)
    return np.asarray(_ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1)), np.float64)


def _ratio(part: Any, whole: Any) -> Floats:
    return np.asarray(part / np.maximum(whole, 1), np.float64)
