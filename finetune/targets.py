"""What the label of a picture is: one of the classes, or any of them. All that follows from it stands here.

    ONE_OF   labels (n,) are class numbers; softmax, cross-entropy, the likeliest class is the answer
    ANY_OF   labels (n, classes) are 0 and 1; a sigmoid each, binary cross-entropy, labels over their thresholds answer

`of(labels)` tells which it is, from their shape; a `Dataset` and the `Spec` of a classifier know it as `targets`.
Everybody else asks these two and never what they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune import evaluation, multilabel, stratification
from finetune.evaluation import Mistake, Proportion

SEPARATOR = "|"  # between the labels of a picture, in tables
Array = npt.NDArray[Any]
Metrics = evaluation.Metrics | multilabel.Metrics


class Targets(ABC):
    """Labels, and how answers are made, trained towards and measured against them. Without state."""

    noun: str  # what the names are
    activation: str  # of the last layer; makes probabilities of logits

    # ------------------------------------------------------------------------------------------- labels as data

    @abstractmethod
    def counts(self, labels: Array, classes: int) -> Array:
        """How many pictures have each class (classes,)."""

    @abstractmethod
    def having(self, labels: Array, number: int) -> Array:
        """Positions of the pictures that have class `number`."""

    @abstractmethod
    def groups(self, labels: Array) -> Array:
        """(n,) integers, equal for pictures that are labelled the same."""

    @abstractmethod
    def columns(self, labels: Array) -> list[Array]:
        """Vectors (n,) that a regression is fitted to, one after the other."""

    @abstractmethod
    def complete(self, labels: Array, classes: int) -> bool:
        """Whether there is something to learn about every class."""

    @abstractmethod
    def text(self, label: Any, classes: Sequence[str]) -> str:
        """The label of one picture in words, as tables have it."""

    def name(self, label: Any, classes: Sequence[str]) -> str:
        """The same for people, to whom a picture without a label has `none`."""
        return self.text(label, classes) or multilabel.NOTHING

    @abstractmethod
    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        """Labels (n, ...) of such words; KeyError for one that has no `number`."""

    @abstractmethod
    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        """(labels, positions kept) with class i becoming `new[i]` of `classes`; -1 drops it."""

    @abstractmethod
    def divide(self, labels: Array, keys: Array, shares: Mapping[int, float], whole: float, classes: int) -> Array:
        """Splits (n,), see `stratification`."""

    # ------------------------------------------------------------------------------------------ answers in numpy

    @abstractmethod
    def probabilities(self, logits: Array) -> Array:
        """(n, classes) of class scores."""

    @abstractmethod
    def losses(self, logits: Array, labels: Array) -> Array:
        """Cross-entropy in nats of float64 logits (n,)."""

    @abstractmethod
    def decide(self, values: Array, thresholds: Any) -> Array:
        """The answers as labels; `values` (n, classes) are probabilities, or logits where thresholds are such."""

    def several(self, row: Array, thresholds: Any) -> Array | None:
        """Which classes (classes,) are said of one picture by its probabilities; None where it is the likeliest."""
        return None

    @abstractmethod
    def agreement(self, said: Array, labels: Array) -> Array:
        """How right each answer is (n,), 0 to 1; the accuracy is its mean."""

    @abstractmethod
    def same(self, before: Array, after: Array, thresholds: Any, tie: float) -> Array:
        """How far two sets of probabilities give the same answer (n,); what is closer than `tie` may go either way."""

    @abstractmethod
    def accuracy(self, probabilities: Array, labels: Array, thresholds: Any) -> Proportion:
        """The mean agreement with its interval."""

    @abstractmethod
    def measure(self, probabilities: Array, labels: Array, classes: Sequence[str], thresholds: Any) -> Any:
        """All metrics."""

    @abstractmethod
    def mistakes(
        self, probabilities: Array, labels: Array, classes: Sequence[str], paths: Sequence[Path], thresholds: Any
    ) -> list[Mistake]:
        """What was answered wrong, the surest first."""

    # ------------------------------------------------------------------------------------------- tensors, training

    @abstractmethod
    def encode(self, labels: Any, classes: int) -> Any:
        """Labels of a batch as a tensor (n, classes) of float32."""

    @abstractmethod
    def loss(self, smoothing: float) -> Callable[[Any, Any, Any], Any]:
        """(targets, logits, weights of the classes) -> the mean loss."""

    @abstractmethod
    def correct(self, logits: Any, labels: Any) -> Any:
        """The sum of the agreements of a batch, with thresholds of 0.5."""

    @abstractmethod
    def weights(self, common: Array) -> Array:
        """`imbalance: weights` for classes of which each picture has the share `common` (classes,)."""

    def activate(self, logits: Any) -> Any:
        """Probabilities of a tensor of logits."""
        from finetune.device import tf

        return getattr(tf.nn, self.activation)(logits)


class _OneOf(Targets):
    noun = "classes"
    activation = "softmax"

    def counts(self, labels: Array, classes: int) -> Array:
        return np.bincount(labels, minlength=classes)

    def having(self, labels: Array, number: int) -> Array:
        return np.flatnonzero(labels == number)

    def groups(self, labels: Array) -> Array:
        return labels

    def columns(self, labels: Array) -> list[Array]:
        return [labels]

    def complete(self, labels: Array, classes: int) -> bool:
        return bool(self.counts(labels, classes).all())

    def text(self, label: Any, classes: Sequence[str]) -> str:
        return str(classes[label])

    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        return np.fromiter((number[text] for text in texts), np.int32, len(texts))

    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        changed = new[labels]
        kept = np.flatnonzero(changed >= 0)
        return changed[kept], kept

    def divide(self, labels: Array, keys: Array, shares: Mapping[int, float], whole: float, classes: int) -> Array:
        return stratification.by_class(labels, keys, shares, whole, classes)

    def probabilities(self, logits: Array) -> Array:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def losses(self, logits: Array, labels: Array) -> Array:
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return np.asarray(-log_probability[np.arange(len(labels)), labels])

    def decide(self, values: Array, thresholds: Any) -> Array:
        return np.asarray(values.argmax(axis=1))

    def agreement(self, said: Array, labels: Array) -> Array:
        return np.asarray(said == labels)

    def same(self, before: Array, after: Array, thresholds: Any, tie: float) -> Array:
        chosen = before[np.arange(len(before)), after.argmax(axis=1)]
        return np.asarray(before.max(axis=1) - chosen <= tie)

    def accuracy(self, probabilities: Array, labels: Array, thresholds: Any) -> Proportion:
        return evaluation.wilson(int((probabilities.argmax(axis=1) == labels).sum()), len(labels))

    def measure(self, probabilities: Array, labels: Array, classes: Sequence[str], thresholds: Any) -> Any:
        return evaluation.measure(probabilities, labels, classes)

    def mistakes(
        self, probabilities: Array, labels: Array, classes: Sequence[str], paths: Sequence[Path], thresholds: Any
    ) -> list[Mistake]:
        return evaluation.mistakes(probabilities, labels, classes, paths)

    def encode(self, labels: Any, classes: int) -> Any:
        from finetune.device import tf

        return tf.one_hot(labels, classes)

    def loss(self, smoothing: float) -> Callable[[Any, Any, Any], Any]:
        from finetune.device import keras, tf

        loss_of = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        return lambda targets, logits, weights: loss_of(
            targets, logits, sample_weight=tf.linalg.matvec(targets, weights)
        )

    def correct(self, logits: Any, labels: Any) -> Any:
        from finetune.device import tf

        return tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32))

    def weights(self, common: Array) -> Array:
        """Of a picture of each class: the inverse of how common it is, 1 on average."""
        return np.asarray(1 / (len(common) * common))


class _AnyOf(Targets):
    noun = "labels"
    activation = "sigmoid"

    def counts(self, labels: Array, classes: int) -> Array:
        return np.asarray(labels.sum(axis=0, dtype=np.int64))

    def having(self, labels: Array, number: int) -> Array:
        return np.flatnonzero(labels[:, number])

    def groups(self, labels: Array) -> Array:
        return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)

    def columns(self, labels: Array) -> list[Array]:
        return list(labels.T)

    def complete(self, labels: Array, classes: int) -> bool:
        counts = self.counts(labels, classes)
        return bool(((counts > 0) & (counts < len(labels))).all())

    def text(self, label: Any, classes: Sequence[str]) -> str:
        return SEPARATOR.join(classes[at] for at in np.flatnonzero(label).tolist())

    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        labels = np.zeros((len(texts), len(number)), np.uint8)
        for row, text in zip(labels, texts, strict=True):
            row[[number[name] for name in text.split(SEPARATOR) if name]] = 1
        return labels

    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        changed, known = np.zeros((len(labels), classes), np.uint8), new >= 0
        changed[:, new[known]] = labels[:, known]
        return changed, np.arange(len(labels))

    def divide(self, labels: Array, keys: Array, shares: Mapping[int, float], whole: float, classes: int) -> Array:
        return stratification.by_label(labels, keys, shares, whole)

    def probabilities(self, logits: Array) -> Array:
        powers = np.exp(-np.abs(logits))  # of a number below 0, so that none is too large
        return np.asarray(np.where(logits >= 0, 1, powers) / (1 + powers))

    def losses(self, logits: Array, labels: Array) -> Array:
        """The mean over the labels, so that the number of them changes no learning rate."""
        return np.asarray((np.logaddexp(0, logits) - logits * labels).mean(axis=1))

    def decide(self, values: Array, thresholds: Any) -> Array:
        return np.asarray(values >= thresholds, np.uint8)

    def several(self, row: Array, thresholds: Any) -> Array | None:
        return np.asarray(row >= thresholds)

    def agreement(self, said: Array, labels: Array) -> Array:
        return multilabel.overlap(said > 0, labels > 0)

    def same(self, before: Array, after: Array, thresholds: Any, tie: float) -> Array:
        said = after >= thresholds
        near = np.abs(before - thresholds) <= tie
        return multilabel.overlap(np.where(near, said, before >= thresholds), said)

    def accuracy(self, probabilities: Array, labels: Array, thresholds: Any) -> Proportion:
        return multilabel.bootstrap(self.agreement(self.decide(probabilities, thresholds), labels))

    def measure(self, probabilities: Array, labels: Array, classes: Sequence[str], thresholds: Any) -> Any:
        return multilabel.measure(probabilities, labels, classes, thresholds)

    def mistakes(
        self, probabilities: Array, labels: Array, classes: Sequence[str], paths: Sequence[Path], thresholds: Any
    ) -> list[Mistake]:
        return multilabel.mistakes(probabilities, labels, classes, paths, thresholds)

    def encode(self, labels: Any, classes: int) -> Any:
        from finetune.device import tf

        return tf.cast(labels, tf.float32)

    def loss(self, smoothing: float) -> Callable[[Any, Any, Any], Any]:
        """Smoothing moves 0 and 1 towards 0.5, as Keras does."""
        from finetune.device import tf

        def mean_loss(targets: Any, logits: Any, weights: Any) -> Any:
            smooth = targets * (1 - smoothing) + smoothing / 2
            return tf.reduce_mean(tf.nn.weighted_cross_entropy_with_logits(smooth, logits, weights))

        return mean_loss

    def correct(self, logits: Any, labels: Any) -> Any:
        from finetune.device import tf

        said, true = logits >= 0, labels > 0
        both, either = (tf.math.count_nonzero(part, axis=1, dtype=tf.float32) for part in (said & true, said | true))
        return tf.reduce_sum(tf.where(either > 0, both / tf.maximum(either, 1.0), 1.0))

    def weights(self, common: Array) -> Array:
        """Of a picture that has the label, so that those with and without weigh the same."""
        return np.asarray((1 - common) / common)


ONE_OF: Targets = _OneOf()
ANY_OF: Targets = _AnyOf()


def of(labels: Array) -> Targets:
    """What `labels` are: class numbers (n,), or 0 and 1 (n, classes)."""
    return ANY_OF if labels.ndim == 2 else ONE_OF


def named(multi_label: bool) -> Targets:
    return ANY_OF if multi_label else ONE_OF
