"""The same few validation images, epoch after epoch: what the classifier calls them, and where it looks.

    samples = SampleSheet(trainer)         at the start of a phase
    jpeg = samples.sheet()                 whenever the weights have moved

What is frozen is computed once, so that a sheet costs a few milliseconds in the head phase and less than a small batch
when fine-tuning. Nothing here draws a random number or changes a weight: the training is the same without it.
"""

import dataclasses
from typing import Any

import numpy as np

from finetune.data import Transform, epoch_order, image_batches, image_reader
from finetune.evaluation import draw_pairs, grad_cam, heatmap, overlay_heatmap, task_for
from finetune.models import FEATURE_BATCH
from finetune.training.loop import Trainer
from finetune.utils import keras

COUNT = 8


class SampleSheet:
    """Up to `COUNT` validation images of a phase, chosen by the seed, as many classes among them as there can be."""

    def __init__(self, trainer: Trainer) -> None:
        classifier, dataset = trainer.classifier, trainer.dataset
        self.classes, self.label_type = classifier.classes, classifier.label_type
        groups = dataset.label_type.group_ids(dataset.labels)
        chosen = spread_over_classes(trainer.validation_indices, groups, COUNT, seed=trainer.seed)
        images, readable = _read(trainer, chosen, classifier.transform)
        self.indices, self.images = chosen[readable], images[readable]  # a file may have gone since the check
        self.truth = dataset.labels[self.indices]
        learning = bool(trainer.phase.blocks)  # else the whole backbone is frozen, and its output is what we keep
        self._above = keras.Model(trainer.phase.cut, classifier.feature_map) if learning else None
        self._head = keras.Model(classifier.feature_map, classifier.model.output)
        if learning:
            self._below = next(trainer.source.batches(self.indices, None, COUNT))
        else:
            self._below = classifier.backbone(self.images.astype(np.float32), training=False)

    def sheet(self) -> bytes:
        """A JPEG: each image, below it what spoke for the prediction (Grad-CAM), then the prediction."""
        feature_map = self._below if self._above is None else self._above(self._below, training=False)
        cells, logits = (array.numpy() for array in grad_cam(self._head, feature_map))
        task = task_for(self.label_type)
        predicted, probabilities = self.label_type.decide(logits, 0.0), task.probabilities(logits)
        correct = task.agreement(predicted, self.truth) == 1
        overlays = [
            overlay_heatmap(image, heatmap(map, len(image))) for image, map in zip(self.images, cells, strict=True)
        ]
        captions = [
            f"{self._name(label)}\n{row.max():.0%}" + ("" if is_correct else f", is {self._name(true)}")
            for label, true, row, is_correct in zip(predicted, self.truth, probabilities, correct, strict=True)
        ]
        return draw_pairs(list(self.images), overlays, captions, correct.tolist())

    def _name(self, label: Any) -> str:
        return self.label_type.display_text(label, self.classes)


def spread_over_classes(indices: np.ndarray, labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """`count` of `indices` (or all, if fewer), in the order of their classes; each class once before any comes twice.

    `labels` (n,) are those of the whole data set, as groups. The choice depends on nothing but the arguments.
    """
    shuffled = indices[epoch_order(len(indices), seed=seed, epoch=0)]
    seen: dict[int, int] = {}
    turns = []  # how many of its class come before each
    for label in labels[shuffled].tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    chosen = shuffled[np.argsort(turns, kind="stable")[:count]]
    ordered: np.ndarray = chosen[np.argsort(labels[chosen], kind="stable")]
    return ordered


def thumbnails(trainer: Trainer, indices: np.ndarray, side: int) -> np.ndarray:
    """(n, side, side, 3) uint8: what the network sees of `indices`, small; black where a file has gone."""
    return _read(trainer, indices, dataclasses.replace(trainer.classifier.transform, size=side))[0]


def _read(trainer: Trainer, indices: np.ndarray, transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, S, S, 3), and which of them could be read."""
    paths = trainer.dataset.paths(indices)
    (batch,) = image_batches(image_reader(paths, transform), np.arange(len(paths)), len(paths))
    readable = np.array([at not in batch.problems for at in range(len(paths))])
    return batch.images, readable


def feature_vectors(trainer: Trainer, indices: np.ndarray) -> np.ndarray:
    """(n, channels) float32: what the head sees of `indices`, with the weights as they are now."""
    head_input: Any = trainer.classifier.head_input
    above = keras.Model(trainer.phase.cut, head_input) if trainer.phase.blocks else None
    parts = trainer.source.batches(indices, None, FEATURE_BATCH)
    whole = np.concatenate([part if above is None else above(part, training=False).numpy() for part in parts])
    return whole.astype(np.float32)
