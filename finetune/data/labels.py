"""The label of an image: one of the classes, or any number of them. Labels as numpy arrays.

    MULTICLASS   labels (n,) are class numbers; the most probable class is predicted
    MULTILABEL   labels (n, classes) are 0 and 1; every class above its threshold is predicted

`label_type_of(labels)` decides by their shape; a `Dataset` and a `Classifier` have the result as `label_type`.
How predictions are scored is in `evaluation.tasks`, which loss is trained with in `training.losses`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SEPARATOR = "|"  # between the labels of an image, in tables
NO_LABEL = "none"  # what an image without labels is called
Array = npt.NDArray[Any]


class Multiclass:
    """Every image has exactly one class. How its labels are counted, written, read and predicted; without state."""

    noun = "classes"  # what messages call the class names
    activation: Literal["softmax", "sigmoid"] = "softmax"  # of the last layer: logits -> probabilities

    def counts(self, labels: Array, classes: int) -> Array:
        """How many images have each class (classes,)."""
        return np.bincount(labels, minlength=classes)

    def indices_with(self, labels: Array, number: int) -> Array:
        """Positions of the images that have class `number`."""
        return np.flatnonzero(labels == number)

    def group_ids(self, labels: Array) -> Array:
        """Integers (n,), equal for images with equal labels."""
        return labels

    def binary_columns(self, labels: Array) -> list[Array]:
        """The targets (n,) of the logistic regressions of a linear probe, which are fitted one after the other."""
        return [labels]

    def covers_all(self, labels: Array, classes: int) -> bool:
        """Whether something can be learned about every class: there are images with it, and images without it."""
        return bool(self.counts(labels, classes).all())

    def text(self, label: Any, classes: Sequence[str]) -> str:
        """The label of an image as text, as in tables."""
        return str(classes[label])

    def display_text(self, label: Any, classes: Sequence[str]) -> str:
        """The label of an image as text for people: `none` where it has no label."""
        return self.text(label, classes)

    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        """Labels (n, ...) of texts as `text` returns; `number` maps names to class numbers. Raises KeyError."""
        return np.fromiter((number[text] for text in texts), np.int32, len(texts))

    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        """(labels, positions kept), with class i becoming `new[i]` of `classes` classes; -1 drops its images."""
        changed = new[labels]
        kept = np.flatnonzero(changed >= 0)
        return changed[kept], kept

    def decide(self, values: Array, thresholds: Any) -> Array:
        """Predicted labels; `values` (n, classes) are probabilities, or logits if `thresholds` are logits too."""
        return np.asarray(values.argmax(axis=1))

    def predicted_classes(self, probabilities: Array, thresholds: Any) -> Array | None:
        """Which classes (classes,) are predicted for one image; None if that is simply the most probable class."""
        return None


class Multilabel:
    """Every image has any number of the classes; the methods do what those of `Multiclass` do."""

    noun = "labels"
    activation: Literal["softmax", "sigmoid"] = "sigmoid"

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
        return SEPARATOR.join(classes[number] for number in np.flatnonzero(label).tolist())

    def display_text(self, label: Any, classes: Sequence[str]) -> str:
        return self.text(label, classes) or NO_LABEL

    def parse(self, texts: Sequence[str], number: Mapping[str, int]) -> Array:
        labels = np.zeros((len(texts), len(number)), np.uint8)
        for row, text in zip(labels, texts, strict=True):
            row[[number[name] for name in text.split(SEPARATOR) if name]] = 1
        return labels

    def renumber(self, labels: Array, new: Array, classes: int) -> tuple[Array, Array]:
        changed = np.zeros((len(labels), classes), np.uint8)
        known = new >= 0
        changed[:, new[known]] = labels[:, known]
        return changed, np.arange(len(labels))

    def decide(self, values: Array, thresholds: Any) -> Array:
        return np.asarray(values >= thresholds, np.uint8)

    def predicted_classes(self, probabilities: Array, thresholds: Any) -> Array | None:
        return np.asarray(probabilities >= thresholds)


LabelType = Multiclass | Multilabel
MULTICLASS = Multiclass()
MULTILABEL = Multilabel()


def label_type_of(labels: Array) -> LabelType:
    """`MULTICLASS` for class numbers (n,), `MULTILABEL` for 0 and 1 (n, classes)."""
    return MULTILABEL if labels.ndim == 2 else MULTICLASS
