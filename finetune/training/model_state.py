"""The model of a phase beside its steps: the scores it gives, and variables that get other values.

Values come from before, from a moving average, from a checkpoint, or are new BatchNorm statistics.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluation import ValidationScores, score_logits
from finetune.models import FeatureSource
from finetune.training.distributed.group import process_group
from finetune.training.phases import batch_norm_layers
from finetune.utils import tf

if TYPE_CHECKING:
    from finetune.models import Classifier

VALIDATION_BATCH = 128


class Scorer:
    """The model `above` a cut in inference mode, compiled; `source` has what comes out at the cut."""

    def __init__(self, above: Any, source: FeatureSource) -> None:
        self._forward = tf.function(lambda x: above(x, training=False), autograph=False, reduce_retracing=True)
        self._source, self._classes = source, above.output.shape[-1]

    def logits(self, indices: np.ndarray) -> np.ndarray:
        """Class scores (n, classes) of unaugmented images."""
        batches = self._source.batches(indices, None, VALIDATION_BATCH)
        parts = [self._forward(tf.convert_to_tensor(batch)).numpy() for batch in batches]
        return np.concatenate(parts) if parts else np.empty((0, self._classes), np.float32)

    def validation_scores(self, labels: np.ndarray, indices: np.ndarray) -> ValidationScores:
        """The scores of the images `indices`, whose `labels` (of the whole data set) are known.

        Each process computes the logits of a part of them, and all get the scores of all.
        """
        group, count = process_group(), len(indices)
        part = group.slice_of_rank(count, VALIDATION_BATCH)
        scores = score_logits(self.logits(indices[part]), labels[indices[part]])
        losses = group.concatenate(scores.losses, part, count)
        return ValidationScores(losses, group.concatenate(scores.correct.astype(np.float64), part, count))


# ------------------------------------------------------------------------------------------------- other values


def assign_values(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Give each of `variables` its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextmanager
def weights_restored(variables: Sequence[Any]) -> Iterator[None]:
    """Whatever the block does to `variables` is undone at its end."""
    values = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        assign_values(variables, values)


@contextmanager
def averaged_weights(optimizer: Any, variables: Sequence[Any]) -> Iterator[None]:
    """Inside, `variables` are their moving averages, if the optimizer keeps them (`ema`)."""
    if not optimizer.use_ema:
        yield
        return
    with weights_restored(variables):
        optimizer.finalize_variable_values(variables)
        yield


def restore_model(classifier: "Classifier", arrays: Mapping[str, np.ndarray]) -> None:
    """Put the model's part of a checkpoint back."""
    variables = list(classifier.model.variables)
    for key, value in arrays.items():
        kind, _, at = key.partition("/")
        if kind == "model":
            variables[int(at)].assign(value)
            classifier.changed.add(id(variables[int(at)]))


def recalibrate_batch_norm(above: Any, batches: Iterable[np.ndarray]) -> None:
    """Set the statistics of all BatchNorm layers of `above` to those of all `batches` (features, (n, ...)) together.

    With the weights as they are now: precise statistics (Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, section
    3). All images count equally, and the variance has both parts, that within the batches and that of their means.
    """
    layers = batch_norm_layers(above)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.trainable, layer.momentum = True, 0.0  # so that it shows the statistics of a single batch
    forward = tf.function(lambda x: above(x, training=True), autograph=False, reduce_retracing=True)
    counts: list[int] = []
    moments: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in layers]  # of x and x^2, for each batch
    for inputs in batches:
        forward(tf.convert_to_tensor(inputs))
        counts.append(len(inputs))
        for layer, batch_moments in zip(layers, moments, strict=True):
            mean, variance = (part.numpy().astype(np.float64) for part in (layer.moving_mean, layer.moving_variance))
            batch_moments.append((mean, variance + mean**2))
    for layer, momentum, batch_moments in zip(layers, momenta, moments, strict=True):
        layer.trainable, layer.momentum = False, momentum
        mean, square = np.average(batch_moments, axis=0, weights=counts)
        assign_values([layer.moving_mean, layer.moving_variance], [mean, square - mean**2])
