"""Probabilities that can be believed: the temperature, and all else that is fitted on validation images.

    decisions = fit_decisions(logits, labels)             # of the different validation images
    decisions.temperature, decisions.thresholds, decisions.confidences

Training has used these images only to choose epochs. `reliability` reports whether what fits them holds on the
test images too.
"""

from dataclasses import dataclass

import numpy as np

from finetune.data import MULTILABEL, label_type_of
from finetune.evaluation.multilabel import best_thresholds
from finetune.evaluation.precision import risk_coverage
from finetune.evaluation.tasks import score_logits, task_for
from finetune.models import RiskCoveragePoint

FOLDS = 5
MAX_LOG = 3.0  # of the logarithm of a temperature, both ways


@dataclass(frozen=True)
class Decisions:
    """What turns logits into predictions: `logits / temperature`, then a threshold for each label, or, with one class
    per image, the curve from which a threshold for any precision is taken."""

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    confidences: tuple[RiskCoveragePoint, ...] = ()


def fit_decisions(logits: np.ndarray, labels: np.ndarray, *, calibrate: bool = True) -> Decisions:
    """The decisions that fit `labels` best; without `calibrate`, only the thresholds of labels are fitted."""
    label_type = label_type_of(labels)
    temperature = choose_temperature(logits, labels) if calibrate else 1.0
    probabilities = task_for(label_type).probabilities(logits / temperature)
    if label_type is MULTILABEL:
        return Decisions(temperature, thresholds=best_thresholds(probabilities, labels))
    return Decisions(temperature, confidences=risk_coverage(probabilities, labels) if calibrate else ())


# ----------------------------------------------------------------------------------------------- the temperature


def choose_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The fitted temperature if, in cross-validation, one improves images that it was not fitted on; else 1."""
    folds = np.arange(len(labels)) % FOLDS
    gain = 0.0
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        if inside.any():
            temperature = fit_temperature(logits[inside], labels[inside])
            before, after = (score_logits(logits[outside] / by, labels[outside]).losses for by in (1.0, temperature))
            gain += float((before - after).sum())
    return fit_temperature(logits, labels) if gain > 0 else 1.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide `logits` (n, classes) by, so that softmax or sigmoid gives the most likely probabilities.

    Temperature scaling (Guo et al. 2017, On Calibration of Modern Neural Networks); it changes no predicted class. A
    standard normal prior on the logarithm keeps it finite where all predictions are correct.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    def cost(log: float) -> float:
        return float(score_logits(logits / np.exp(log), labels).losses.sum() + log**2 / 2)

    return float(np.exp(minimize_scalar(cost, bounds=(-MAX_LOG, MAX_LOG), options={"xatol": 1e-3}).x))
