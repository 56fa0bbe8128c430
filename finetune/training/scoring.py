"""Class scores and validation scores of images, from their features at the cut of a phase."""

from collections.abc import Callable
from typing import Any

import numpy as np

from finetune.evaluation import ValidationScores, score_logits
from finetune.models import Classifier, FeatureSource
from finetune.training.distributed.group import process_group
from finetune.training.phases import Phase
from finetune.utils import keras, tf

VALIDATION_BATCH = 128


def logits_above(classifier: Classifier, phase: Phase, source: FeatureSource, indices: np.ndarray) -> np.ndarray:
    """Class scores (n, classes) of unaugmented images, from what comes out at the cut of `phase`."""
    forward = compile_forward(keras.Model(phase.cut, classifier.model.output))
    return compute_logits(forward, source, indices, len(classifier.classes))


def compile_forward(above: Any) -> Any:
    """The model in inference mode, compiled."""
    return tf.function(lambda x: above(x, training=False), autograph=False, reduce_retracing=True)


def compute_logits(forward: Any, source: FeatureSource, indices: np.ndarray, classes: int) -> np.ndarray:
    """What `forward` gives for the features of `indices`: (n, classes)."""
    batches = source.batches(indices, None, VALIDATION_BATCH)
    parts = [forward(tf.convert_to_tensor(batch)).numpy() for batch in batches]
    return np.concatenate(parts) if parts else np.empty((0, classes), np.float32)


def validation_scores(
    compute_logits: Callable[[np.ndarray], np.ndarray], labels: np.ndarray, indices: np.ndarray
) -> ValidationScores:
    """The scores of the images `indices`, whose `labels` (of the whole data set) are known.

    Each process computes the logits of a part of them, and all get the scores of all.
    """
    group, count = process_group(), len(indices)
    part = group.slice_of_rank(count, VALIDATION_BATCH)
    scores = score_logits(compute_logits(indices[part]), labels[indices[part]])
    losses = group.concatenate(scores.losses, part, count)
    return ValidationScores(losses, group.concatenate(scores.correct.astype(np.float64), part, count))
