"""Probabilities that can be believed: the temperature, and the thresholds of predictions.

    temperature = fit_temperature(logits, labels)                   # on validation images
    point = threshold_for_precision(risk_coverage(probabilities, labels), 0.98)
    point.threshold                                                 # below it, "unknown" is the better prediction

Both are fitted on validation images, which training has used only to choose epochs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.data import MULTILABEL, label_type_of
from finetune.evaluation.multilabel import best_thresholds
from finetune.evaluation.tasks import score_logits
from finetune.models import RiskCoveragePoint

MAX_POINTS = 200  # of a risk-coverage curve
MAX_LOG = 3.0  # of the logarithm of a temperature, both ways


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide `logits` (n, classes) by, so that softmax or sigmoid gives the most likely probabilities.

    Temperature scaling (Guo et al. 2017, On Calibration of Modern Neural Networks); it changes no predicted class. A
    standard normal prior on the logarithm keeps it finite where all predictions are correct.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    def cost(log: float) -> float:
        return float(score_logits(logits / np.exp(log), labels).losses.sum() + log**2 / 2)

    return float(np.exp(minimize_scalar(cost, bounds=(-MAX_LOG, MAX_LOG), method="bounded").x))


def fit_decisions(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The fields of a `ClassifierSpec` that turn probabilities into predictions, from validation images.

    A threshold for each label, or, with one class per image, the risk-coverage curve.
    """
    if label_type_of(labels) is MULTILABEL:
        return {"thresholds": best_thresholds(probabilities, labels)}
    return {"confidences": risk_coverage(probabilities, labels)}


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> tuple[RiskCoveragePoint, ...]:
    """For falling thresholds on the highest probability: the precision and the coverage of predictions above it."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    confidence, precision = confidence[order], np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))  # equal ones have one threshold
    last = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), MAX_POINTS)).astype(int))]
    coverage = (last + 1) / len(order)
    columns = zip(confidence[last].tolist(), precision[last].tolist(), coverage.tolist(), strict=True)
    return tuple(RiskCoveragePoint(*row) for row in columns)


def threshold_for_precision(curve: Sequence[RiskCoveragePoint], precision: float) -> RiskCoveragePoint | None:
    """The point with the most coverage among those with at least that `precision`; None if there is none."""
    good_enough = [point for point in curve if point.precision >= precision]
    return max(good_enough, key=lambda point: point.coverage, default=None)
