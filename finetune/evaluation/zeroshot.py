"""What a 1000-class network knows of a folder of images without training, and what a new head would reach.

    survey = survey_folders(Path("photos"))
    survey.folders[0].classes              # the ImageNet classes that its images are predicted as
    survey.without_training.value          # accuracy when these classes stand for the folder
    survey.with_head.value                 # estimate for a head on the frozen backbone

A few images of each folder go through the network once. Both accuracies are cross-validated: the images that say which
ImageNet class stands for which folder, or that fit the head, are never those that it is measured on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import DataConfig
from finetune.data import image_batches, image_reader, list_source, pad_batch
from finetune.evaluation.linear_probe import Floats, Ints, cross_validate, cross_validate_probe, sample_per_class
from finetune.evaluation.metrics import PairedTest, Proportion, paired_test, wilson_interval
from finetune.models import Classifier, inference_function, load_classifier
from finetune.utils import DataError, ProgressCallback, UsageError, keras, printable, tf

IMAGES = 20  # of each folder: enough to see, and some seconds for a handful of folders
BATCH = 16
TOP_CLASSES = 3  # ImageNet classes shown for a folder


@dataclass(frozen=True)
class Folder:
    """A class of the user, and the ImageNet classes predicted most for its images: (name, fraction of the images)."""

    name: str
    images: int
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Survey:
    """What is known before any training. `paired` compares the head with the untrained mapping."""

    model: str
    folders: tuple[Folder, ...]
    without_training: Proportion
    with_head: Proportion
    paired: PairedTest
    skipped: tuple[tuple[str, str], ...]  # (path, reason)
    warnings: tuple[str, ...]  # about the folder

    def to_json(self) -> dict[str, Any]:
        """Names and numbers only, for `json.dump`."""
        folders = [{"name": row.name, "pictures": row.images, "classes": row.classes} for row in self.folders]
        return {**asdict(self), "folders": folders}


def survey_folders(
    folder: Path,
    *,
    model: str = "efficientnet_lite0",
    images: int = IMAGES,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Survey:
    """Predict up to `images` images of each class folder in `folder` with the 1000-class network `model`.

    Raises DataError for a folder without classes or with too few readable images, UsageError for a `model` that has
    no ImageNet classes, WeightsError when its weights cannot be had.
    """
    listing = list_source(DataConfig(folder=folder.absolute()))
    if len(listing.classes) < 2:
        raise DataError(f"{folder}: only one class folder.", hint="At least two are needed.")
    classifier = load_classifier(model)
    if not classifier.spec.pretrained:
        raise UsageError(
            f"{model} predicts classes of its own, not those of ImageNet.",
            hint="zeroshot takes a backbone: finetune zeroshot FOLDER --model mobilenet_v2",
        )
    chosen = sample_per_class(listing.labels, images, seed)
    paths = [str(Path(listing.root, listing.names[index])) for index in chosen]
    features, probabilities, problems = _predict(classifier, paths, progress)
    readable = [at for at in range(len(paths)) if at not in problems]
    features, probabilities = features[readable], probabilities[readable]
    labels = listing.labels[chosen][readable].astype(np.int64)
    counts = np.bincount(labels, minlength=len(listing.classes))
    rare = [printable(name) for name, count in zip(listing.classes, counts, strict=True) if count < 2]
    if rare:
        raise DataError(
            f"too few readable images of {', '.join(rare[:10])}.",
            hint="At least two images of each class are needed; twenty are better.",
        )
    folders = []
    for number, name in enumerate(listing.classes):
        predicted = probabilities[labels == number].argmax(axis=1)
        hits = np.bincount(predicted, minlength=len(classifier.classes))
        top = np.argsort(-hits, kind="stable")[:TOP_CLASSES]
        fractions = tuple((classifier.classes[at], float(hits[at] / len(predicted))) for at in top if hits[at])
        folders.append(Folder(name, len(predicted), fractions))
    mapped = cross_validate(labels, lambda train, test: vote(probabilities, labels, train, test), seed=seed)
    fitted = cross_validate_probe(features, labels, seed=seed)
    return Survey(
        model=classifier.row.title,
        folders=tuple(folders),
        without_training=wilson_interval(int(mapped.sum()), len(labels)),
        with_head=wilson_interval(int(fitted.sum()), len(labels)),
        paired=paired_test(mapped, fitted),
        skipped=tuple((paths[at], reason) for at, reason in problems.items()),
        warnings=tuple(listing.warnings),
    )


def _predict(
    classifier: Classifier, paths: Sequence[str], progress: ProgressCallback | None
) -> tuple[Floats, Floats, dict[int, str]]:
    """Pooled features (N, c) and probabilities (N, 1000) in one pass, and why images could not be read."""
    pooled = keras.layers.GlobalAveragePooling2D()(classifier.feature_map)
    run = inference_function(keras.Model(classifier.model.inputs[0], [pooled, classifier.model.output]))
    read = image_reader(paths, classifier.transform)
    features, probabilities = [], []
    problems: dict[int, str] = {}
    for batch in image_batches(read, np.arange(len(paths)), BATCH):
        count = len(batch.indices)
        batch_features, logits = run(pad_batch(batch.images, BATCH))
        features.append(batch_features.numpy()[:count])
        probabilities.append(tf.nn.softmax(logits).numpy()[:count])
        problems |= batch.problems
        if progress:
            progress(int(batch.indices[-1]) + 1, len(paths))
    return np.concatenate(features), np.concatenate(probabilities), problems


def vote(probabilities: Floats, labels: Ints, train: Ints, test: Ints) -> Ints:
    """Folders (n,) predicted for the images `test` from their ImageNet `probabilities` (N, 1000), without training.

    Every ImageNet class votes for the folders in proportion to its mean probability among their images in `train`.
    """
    means = [probabilities[train][labels[train] == label].mean(axis=0) for label in np.unique(labels)]
    seen = np.stack(means, axis=1) + 1e-6  # (1000, folders); a class that was not seen votes for all equally
    weight = seen / seen.sum(axis=1, keepdims=True)
    return np.asarray((probabilities[test] @ weight).argmax(axis=1), np.int64)
