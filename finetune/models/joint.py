"""Predictions of several classifiers for the same images: a trained run and, beside it, an ImageNet classifier.

request = PredictionRequest("runs/flowers-1", imagenet=True)
classifiers = load_classifiers(request.model, imagenet=request.imagenet)
for prediction in predict_jointly(classifiers, ["rose.jpg"], request):
    prediction.predictions      # the classes of the run, then those of ImageNet
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.models.classifier import Classifier
from finetune.models.predictor import PREDICT_BATCH, Prediction, predict_images
from finetune.models.saving import load_classifier
from finetune.utils import WeightsError

DEFAULT_IMAGENET = "efficientnet_lite0"  # its weights are always at hand


@dataclass(frozen=True)
class PredictionRequest:
    """What to predict: the arguments of `predict_images`, and `model`, a run or a backbone.

    With `imagenet`, a trained run gets the ImageNet classifier of its backbone beside it. `level` and `reject` are
    for the first classifier only.
    """

    model: str
    top: int = 5
    imagenet: bool = False
    level: bool = False
    reject: float = 0.0
    batch_size: int = PREDICT_BATCH


def load_classifiers(model: str, *, imagenet: bool) -> list[Classifier]:
    """The classifier `model` and, with `imagenet` and unless it is one itself, the ImageNet classifier beside it."""
    classifier = load_classifier(model)
    if imagenet and not classifier.spec.pretrained:
        return [classifier, load_imagenet_classifier(classifier)]
    return [classifier]


def load_imagenet_classifier(classifier: Classifier) -> Classifier:
    """The 1000-class classifier on the same backbone, or on the default one if its weights cannot be had."""
    try:
        return load_classifier(classifier.spec.backbone)
    except WeightsError:
        return load_classifier(DEFAULT_IMAGENET)


def predict_jointly(
    classifiers: Sequence[Classifier], paths: Sequence[str], request: PredictionRequest
) -> Iterator[Prediction]:
    """One prediction per path, in order: the classes of the first classifier, followed by those of the others."""
    first, *others = classifiers
    top, batch_size = request.top, request.batch_size
    streams = [
        predict_images(first, paths, top=top, level=request.level, reject=request.reject, batch_size=batch_size),
        *(predict_images(other, paths, top=top, batch_size=batch_size) for other in others),
    ]
    for predictions in zip(*streams, strict=True):
        yield predictions[0].joined(predictions[1:])
