"""What a training step minimises, for one class per image and for any number of labels; and class imbalance.

    loss = loss_for(dataset.label_type)
    loss.total(smoothing)(loss.encode(labels, classes), logits, class_weights)

The same two tasks as in `data.labels` and `evaluation.tasks`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from finetune.data import MULTILABEL, LabelType
from finetune.utils import keras, tf


class TaskLoss(ABC):
    """Targets, loss and accuracy of a batch as tensors. Without state."""

    @abstractmethod
    def encode(self, labels: Any, classes: int) -> Any:
        """Labels of a batch as a tensor of targets (n, classes) in 0..1."""

    @abstractmethod
    def total(self, smoothing: float) -> Callable[[Any, Any, Any], Any]:
        """(targets, logits, class weights) -> the sum of the losses of the images."""

    @abstractmethod
    def correct(self, logits: Any, labels: Any) -> Any:
        """How many predictions of a batch are correct, with thresholds of 0.5; part of one may be."""

    @abstractmethod
    def class_weights(self, frequencies: np.ndarray) -> np.ndarray:
        """`imbalance: weights` for classes that occur with these `frequencies` (classes,), in 0..1."""


class MulticlassLoss(TaskLoss):
    """Cross-entropy of a softmax."""

    def encode(self, labels: Any, classes: int) -> Any:
        return tf.one_hot(labels, classes, dtype=keras.config.floatx())

    def total(self, smoothing: float) -> Callable[[Any, Any, Any], Any]:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="sum")
        return lambda targets, logits, weights: loss(targets, logits, sample_weight=tf.linalg.matvec(targets, weights))

    def correct(self, logits: Any, labels: Any) -> Any:
        return tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32))

    def class_weights(self, frequencies: np.ndarray) -> np.ndarray:
        """Of an image of each class: the inverse of how common it is, 1 on average."""
        return np.asarray(1 / (len(frequencies) * frequencies))


class MultilabelLoss(TaskLoss):
    """Binary cross-entropy of a sigmoid for each label, their mean for an image."""

    def encode(self, labels: Any, classes: int) -> Any:
        return tf.cast(labels, keras.config.floatx())

    def total(self, smoothing: float) -> Callable[[Any, Any, Any], Any]:
        """Smoothing moves 0 and 1 towards 0.5, as Keras does."""

        def total(targets: Any, logits: Any, weights: Any) -> Any:
            smooth = targets * (1 - smoothing) + smoothing / 2
            losses = tf.nn.weighted_cross_entropy_with_logits(smooth, logits, weights)
            return tf.reduce_sum(tf.reduce_mean(losses, axis=1))

        return total

    def correct(self, logits: Any, labels: Any) -> Any:
        predicted, true = logits >= 0, labels > 0
        both, either = (
            tf.math.count_nonzero(part, axis=1, dtype=tf.float32) for part in (predicted & true, predicted | true)
        )
        return tf.reduce_sum(tf.where(either > 0, both / tf.maximum(either, 1.0), 1.0))

    def class_weights(self, frequencies: np.ndarray) -> np.ndarray:
        """Of an image that has the label, so that those with and without weigh the same."""
        return np.asarray((1 - frequencies) / frequencies)


MULTICLASS_LOSS = MulticlassLoss()
MULTILABEL_LOSS = MultilabelLoss()


def loss_for(label_type: LabelType) -> TaskLoss:
    """The loss that belongs to labels of this type."""
    return MULTILABEL_LOSS if label_type is MULTILABEL else MULTICLASS_LOSS


# ------------------------------------------------------------------------------------------------ class imbalance


class ClassImbalance(NamedTuple):
    """What the config does against rare classes, as arrays of shape (classes,)."""

    weights: np.ndarray  # of an image of each class in the loss
    offsets: np.ndarray  # added to the logits while training


def class_frequencies(labels: np.ndarray, label_type: LabelType, classes: int) -> np.ndarray:
    """How common each class is among `labels`, (classes,) in 0..1; above 0 for all, also for a class without images."""
    counts = label_type.counts(labels, classes)
    return np.asarray(np.maximum(counts, 1) / max(1, len(labels)))


def against_imbalance(method: str, task_loss: TaskLoss, frequencies: np.ndarray) -> ClassImbalance:
    """Weights and offsets for classes of these `frequencies` (classes,); `oversample` and `none` need neither.

    `weights`: see `losses`. `logit_adjust`: the logarithm of how common a class is, so that the logits themselves
    learn to do without it (Menon et al. 2021, Long-tail learning via logit adjustment).
    """
    weights, offsets = np.ones(len(frequencies)), np.zeros(len(frequencies))
    if method == "weights":
        weights = task_loss.class_weights(frequencies)
    if method == "logit_adjust":
        offsets = np.log(frequencies)
    return ClassImbalance(weights, offsets)
