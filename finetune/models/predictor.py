"""Predictions for images: which classes, how likely, and which images could not be read.

for prediction in predict_images(classifier, ["dog.jpg"], top=5):
    prediction.predictions[0].name, prediction.predictions[0].probability
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.backbones import Level, wordnet_levels
from finetune.data import ImageSource, LabelType

UNKNOWN = "unknown"  # predicted instead of a class that is not likely enough
PREDICT_BATCH = 32  # images that go through the network together


class Predictor(Protocol):
    """The part of a classifier that predictions need."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def label_type(self) -> LabelType: ...

    @property
    def thresholds(self) -> np.ndarray: ...

    def probabilities(
        self, images: Sequence[ImageSource], *, batch_size: int, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]: ...


@dataclass(frozen=True)
class ClassScore:
    """One class and its probability (0..1); `id` is the WordNet id of an ImageNet class, else empty."""

    name: str
    id: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, or the reason why there is no prediction.

    `path` is empty for an image that was not in a file. `unknown` stands in front of `predictions` in the JSON, where
    the likeliest class is not likely enough; its probability is that of any other class.
    """

    path: str
    predictions: tuple[ClassScore, ...] = ()
    error: str = ""
    levels: tuple[Level, ...] = ()  # from the likeliest ImageNet class up to "animal", if requested
    labels: tuple[ClassScore, ...] | None = None  # for multi-label tasks, the classes over their thresholds
    unknown: ClassScore | None = None

    @property
    def shown(self) -> tuple[ClassScore, ...]:
        """What people and programs are told first to last: `unknown`, if it is, then the classes."""
        return self.predictions if self.unknown is None else (self.unknown, *self.predictions)

    def joined(self, others: Iterable["Prediction"]) -> "Prediction":
        """This prediction, followed by those of other classifiers for the same image."""
        return replace(self, predictions=sum((other.predictions for other in others), self.predictions))

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"path": self.path, "error": self.error}
        content: dict[str, Any] = {
            "path": self.path,
            "predictions": [
                {"class": score.name, "id": score.id, "probability": round(score.probability, 6)}
                for score in self.shown
            ],
        }
        if self.labels is not None:
            content["labels"] = [score.name for score in self.labels]
        if self.levels:
            content["levels"] = [
                {**level._asdict(), "probability": round(level.probability, 6)} for level in self.levels
            ]
        return content


def predict_images(
    classifier: Predictor,
    images: Sequence[ImageSource],
    *,
    top: int = 5,
    level: bool = False,
    reject: float = 0.0,
    batch_size: int = PREDICT_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Prediction]:
    """Yield one prediction per image, in order, as they are computed; one that cannot be read gets an `error`.

    `level` adds the WordNet concepts above the likeliest class (UsageError for classes that are not of ImageNet). If
    the likeliest class has a probability below `reject` (0..1), the prediction is `unknown`.
    """
    for start, rows, problems in classifier.probabilities(images, batch_size=batch_size, progress=progress):
        for index, row in enumerate(rows, start=start):
            image = images[index]
            path = str(image) if isinstance(image, str | Path) else ""
            prediction = make_prediction(classifier, path, row, top, problems.get(index, ""))
            if not prediction.error:
                best = prediction.predictions[0].probability
                if best < reject:
                    prediction = replace(prediction, unknown=ClassScore(UNKNOWN, "", 1 - best))
                if level:
                    levels = wordnet_levels(row, classifier.ids, classifier.classes)
                    prediction = replace(prediction, levels=levels)
            yield prediction


def make_prediction(classifier: Predictor, path: str, row: np.ndarray, top: int, problem: str = "") -> Prediction:
    """The prediction of one image from its probabilities `row` (classes,), or the `problem` that it has."""
    if problem:
        return Prediction(path, error=problem)
    if not np.isfinite(row).all():
        return Prediction(path, error="the network's output is not a number; its weights are damaged")
    ranking = np.argsort(-row, kind="stable")
    scores = [ClassScore(classifier.classes[at], classifier.ids[at], float(row[at])) for at in ranking]
    predicted = classifier.label_type.predicted_classes(row, classifier.thresholds)
    labels = None if predicted is None else tuple(scores[at] for at in np.flatnonzero(predicted[ranking]))
    return Prediction(path, tuple(scores[:top]), labels=labels)
