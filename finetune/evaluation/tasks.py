"""How predictions are scored: against one class per image, or against any number of labels. In numpy.

    task = task_for(dataset.label_type)
    task.metrics(task.probabilities(logits), labels, classes, thresholds)

The same two tasks as in `data.labels`, which knows what a label is; the losses are in `training.losses`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data import MULTILABEL, LabelType, label_type_of
from finetune.evaluation.metrics import (
    CalibrationBin,
    Mistake,
    MulticlassMetrics,
    Proportion,
    calibration_bins,
    multiclass_metrics,
    multiclass_mistakes,
    wilson_interval,
)
from finetune.evaluation.multilabel import (
    MultilabelMetrics,
    bootstrap_mean,
    jaccard,
    multilabel_metrics,
    multilabel_mistakes,
)

Array = npt.NDArray[Any]
Metrics = MulticlassMetrics | MultilabelMetrics


class MulticlassTask:
    """One class per image: softmax, and the most probable class is the prediction. Without state.

    `thresholds` are those of the labels of a multilabel task; here they are ignored.
    """

    def probabilities(self, logits: Array) -> Array:
        """(n, classes) of class scores."""
        from scipy.special import softmax  # type: ignore[import-untyped]

        return np.asarray(softmax(logits, axis=1))

    def logits(self, probabilities: Array) -> Array:
        """Class scores (n, classes) in float64 that have these probabilities."""
        return np.asarray(np.log(probabilities.astype(np.float64).clip(np.finfo(np.float32).tiny)))

    def calibration(self, probabilities: Array, labels: Array) -> tuple[CalibrationBin, ...]:
        """How often the most probable class is correct, by its probability."""
        return calibration_bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)

    def losses(self, logits: Array, labels: Array) -> Array:
        """Cross-entropy in nats of float64 logits (n,)."""
        from scipy.special import log_softmax

        return np.asarray(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels])

    def agreement(self, predicted: Array, labels: Array) -> Array:
        """How correct each prediction is (n,), 0 to 1; the accuracy is its mean."""
        return np.asarray(predicted == labels)

    def same_prediction(self, before: Array, after: Array, thresholds: Any, tie: float) -> Array:
        """How far two sets of probabilities predict the same (n,), 0 to 1; a distance up to `tie` is no difference."""
        chosen = before[np.arange(len(before)), after.argmax(axis=1)]
        return np.asarray(before.max(axis=1) - chosen <= tie)

    def accuracy(self, probabilities: Array, labels: Array, thresholds: Any) -> Proportion:
        """The mean agreement with its interval."""
        return wilson_interval(int((probabilities.argmax(axis=1) == labels).sum()), len(labels))

    def metrics(
        self, probabilities: Array, labels: Array, classes: Sequence[str], thresholds: Any
    ) -> MulticlassMetrics:
        """All metrics of these probabilities."""
        return multiclass_metrics(probabilities, labels, classes)

    def mistakes(
        self, probabilities: Array, labels: Array, classes: Sequence[str], paths: Sequence[Path], thresholds: Any
    ) -> list[Mistake]:
        """What was predicted wrong, the most confident first."""
        return multiclass_mistakes(probabilities, labels, classes, paths)


class MultilabelTask:
    """Any number of labels per image: a sigmoid for each, and every label above its threshold is predicted.

    Its methods are those of `MulticlassTask`; `thresholds` are (classes,), or one for all.
    """

    def probabilities(self, logits: Array) -> Array:
        from scipy.special import expit

        return np.asarray(expit(logits))

    def logits(self, probabilities: Array) -> Array:
        from scipy.special import logit

        return np.asarray(logit(probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)))  # float32 rounds to 1 there

    def calibration(self, probabilities: Array, labels: Array) -> tuple[CalibrationBin, ...]:
        """How often a label is present, by its probability; over every label of every image."""
        return calibration_bins(probabilities.ravel(), labels.ravel() > 0)

    def losses(self, logits: Array, labels: Array) -> Array:
        """The mean over the labels, so that the number of them changes no learning rate."""
        return np.asarray((np.logaddexp(0, logits) - logits * labels).mean(axis=1))

    def agreement(self, predicted: Array, labels: Array) -> Array:
        return jaccard(predicted > 0, labels > 0)

    def same_prediction(self, before: Array, after: Array, thresholds: Any, tie: float) -> Array:
        predicted = after >= thresholds
        near = np.abs(before - thresholds) <= tie
        return jaccard(np.where(near, predicted, before >= thresholds), predicted)

    def accuracy(self, probabilities: Array, labels: Array, thresholds: Any) -> Proportion:
        return bootstrap_mean(self.agreement(MULTILABEL.decide(probabilities, thresholds), labels))

    def metrics(
        self, probabilities: Array, labels: Array, classes: Sequence[str], thresholds: Any
    ) -> MultilabelMetrics:
        return multilabel_metrics(probabilities, labels, classes, thresholds)

    def mistakes(
        self, probabilities: Array, labels: Array, classes: Sequence[str], paths: Sequence[Path], thresholds: Any
    ) -> list[Mistake]:
        return multilabel_mistakes(probabilities, labels, classes, paths, thresholds)


def task_for(label_type: LabelType) -> MulticlassTask | MultilabelTask:
    """The task that belongs to labels of this type."""
    return MultilabelTask() if label_type is MULTILABEL else MulticlassTask()


@dataclass(frozen=True)
class ValidationScores:
    """The cross-entropy in nats (n,) of each validation image, and how correct its prediction is (n,).

    Correct is 1 for the true class, else 0; where images have any number of labels, it is the intersection of
    predicted and true labels over their union.
    """

    losses: np.ndarray
    correct: np.ndarray

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def means(self) -> dict[str, float]:
        return {"loss": self.loss, "accuracy": self.accuracy}

    def scores(self, monitor: str) -> np.ndarray:
        """The values of each image (n,) that `monitor` compares; more is better."""
        return self.correct.astype(np.float64) if monitor == "accuracy" else -self.losses


def score_logits(logits: np.ndarray, labels: np.ndarray) -> ValidationScores:
    """Loss and correctness of logits (n, classes) against `labels`, image by image."""
    label_type, logits = label_type_of(labels), logits.astype(np.float64)
    task, predicted = task_for(label_type), label_type.decide(logits, 0.0)
    return ValidationScores(task.losses(logits, labels), task.agreement(predicted, labels))
