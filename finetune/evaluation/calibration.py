"""Answers that mean what they say: probabilities made honest, and the point below which "unknown" is the better answer.

Both are learned from validation images, which training has only looked at to choose epochs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.data import MULTILABEL, label_type_of
from finetune.evaluation.multilabel import best_thresholds
from finetune.evaluation.tasks import score_logits
from finetune.models import RiskCoveragePoint

MOST_ROWS = 200  # of a confidence table
LIMIT = 3.0  # of the logarithm of a temperature, both ways


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide `logits` (n, classes) by, so that softmax or sigmoid gives the likeliest probabilities.

    Temperature scaling (Guo et al. 2017, On Calibration of Modern Neural Networks); it changes no answer. A standard
    normal prior on the logarithm keeps it finite where all answers are right.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # comes with scikit-learn

    def cost(log: float) -> float:
        return float(score_logits(logits / np.exp(log), labels).losses.sum() + log**2 / 2)

    return float(np.exp(minimize_scalar(cost, bounds=(-LIMIT, LIMIT), method="bounded").x))


def fit_decisions(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a `Spec` keeps so that answers can be given: how sure is how right, or a threshold for each label."""
    if label_type_of(labels) is MULTILABEL:
        return {"thresholds": best_thresholds(probabilities, labels)}
    return {"confidences": risk_coverage(probabilities, labels)}


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> tuple[RiskCoveragePoint, ...]:
    """For falling thresholds on the highest probability: how often the answers above it are right, and their share."""
    surest, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(-surest, kind="stable")
    surest, precision = surest[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.flatnonzero(np.append(surest[1:] != surest[:-1], True))  # equal confidences stand or fall together
    last = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), MOST_ROWS)).astype(int))]
    coverage = (last + 1) / len(order)
    columns = zip(surest[last].tolist(), precision[last].tolist(), coverage.tolist(), strict=True)
    return tuple(RiskCoveragePoint(*row) for row in columns)


def threshold_for_precision(table: Sequence[RiskCoveragePoint], precision: float) -> RiskCoveragePoint | None:
    """The row with the most coverage whose answers were right at least as often as `precision`; None if none was."""
    good = [point for point in table if point.precision >= precision]
    return max(good, key=lambda point: point.coverage, default=None)
