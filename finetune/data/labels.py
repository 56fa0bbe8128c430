"""What the label of an image is: one of the classes, or any number of them. Labels as data, in numpy.

    MULTICLASS   labels (n,) are class numbers; the likeliest class is predicted
    MULTILABEL   labels (n, classes) are 0 and 1; every class above its threshold is predicted

`label_type_of(labels)` tells which it is, from their shape; a `Dataset` and a `Classifier` know it as `label_type`.
How predictions are scored is in `evaluation.tasks`, what is trained towards in `training.losses`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SEPARATOR = "|"  # between the labels of an image, in tables
NO_LABEL = "none"  # what an image without labels is called
Array = npt.NDArray[Any]


class LabelType(ABC):
    """Multiclass or multilabel, with all that follows for labels as arrays. Without state."""

    noun: str  # what the names are
    activation: Literal["softmax", "sigmoid"]  # of the last layer; makes probabilities of logits

    @abstractmethod
    def counts(self, labels: Array, classes: int) -> Array:
        """How many images have each class (classes,)."""

    @abstractmethod
    def indices_with(self, labels: Array, number: int) -> Array:
        """Positions of the images that have class `number`."""

    @abstractmethod
    def group_ids(self, labels: Array) -> Array:
        """(n,) integers, equal for images that are labelled the same."""

    @abstractmethod
    def binary_columns(self, labels: Array) -> list[Array]:
        """Vectors (n,) that a logistic regression is fitted to, one after the other."""

    @abstractmethod
    def covers_all(self, labels: Array, classes: int) -> bool:
        """Whether there is something to learn about every class."""

    @abstractmethod
    def text(self, label: Any, classes: Sequence[str]) -> str:
        """The label of one image in words, as tables have it."""

    def display_text(self, label: Any, classes: Sequence[str]) -> str:
        """The same for people, to whom an image without a label has `none`."""
        return self.text(label, classes) or NO_LABEL

    @abstractmethod
    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        """Labels (n, ...) of such words; KeyError for one that has no `number`."""

    @abstractmethod
    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        """(labels, positions kept) with class i becoming `new[i]` of `classes`; -1 drops it."""

    @abstractmethod
    def decide(self, values: Array, thresholds: Any) -> Array:
        """Predicted labels; `values` (n, classes) are probabilities, or logits where thresholds are such."""

    def predicted_classes(self, probabilities: Array, thresholds: Any) -> Array | None:
        """Which classes (classes,) are predicted for one image; None where it is simply the likeliest."""
        return None


class Multiclass(LabelType):
    """Every image has exactly one class."""

    noun = "classes"
    activation = "softmax"

    def counts(self, labels: Array, classes: int) -> Array:
        return np.bincount(labels, minlength=classes)

    def indices_with(self, labels: Array, number: int) -> Array:
        return np.flatnonzero(labels == number)

    def group_ids(self, labels: Array) -> Array:
        return labels

    def binary_columns(self, labels: Array) -> list[Array]:
        return [labels]

    def covers_all(self, labels: Array, classes: int) -> bool:
        return bool(self.counts(labels, classes).all())

    def text(self, label: Any, classes: Sequence[str]) -> str:
        return str(classes[label])

    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        return np.fromiter((number[text] for text in texts), np.int32, len(texts))

    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        changed = new[labels]
        kept = np.flatnonzero(changed >= 0)
        return changed[kept], kept

    def decide(self, values: Array, thresholds: Any) -> Array:
        return np.asarray(values.argmax(axis=1))


class Multilabel(LabelType):
    """Every image has any number of the classes."""

    noun = "labels"
    activation = "sigmoid"

    def counts(self, labels: Array, classes: int) -> Array:
        return np.asarray(labels.sum(axis=0, dtype=np.int64))

    def indices_with(self, labels: Array, number: int) -> Array:
        return np.flatnonzero(labels[:, number])

    def group_ids(self, labels: Array) -> Array:
        return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)

    def binary_columns(self, labels: Array) -> list[Array]:
        return list(labels.T)

    def covers_all(self, labels: Array, classes: int) -> bool:
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

    def decide(self, values: Array, thresholds: Any) -> Array:
        return np.asarray(values >= thresholds, np.uint8)

    def predicted_classes(self, probabilities: Array, thresholds: Any) -> Array | None:
        return np.asarray(probabilities >= thresholds)


MULTICLASS = Multiclass()
MULTILABEL = Multilabel()


def label_type_of(labels: Array) -> LabelType:
    """What `labels` are: class numbers (n,), or 0 and 1 (n, classes)."""
    return MULTILABEL if labels.ndim == 2 else MULTICLASS


def label_type(multi_label: bool) -> LabelType:
    """`MULTILABEL` or `MULTICLASS`."""
    return MULTILABEL if multi_label else MULTICLASS
