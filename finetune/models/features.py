"""Where a phase gets its inputs: the features that come out of the frozen part of the network.

    source.batches(indices, epoch, batch_size)     arrays (n, ...), one for each batch

During a phase nothing below the cut changes. `CachedFeatures` reads rows that were computed once (see `feature_cache`);
`LiveFeatures` sends the images through the frozen part whenever they are needed. Both give equal values.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from finetune.data import Augmenter, Batch, ReadImage, index_batches, pad_batch, read_ahead
from finetune.models.inference import inference_function
from finetune.utils import DataError, keras, printable

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier

FEATURE_BATCH = 32  # one batch shape everywhere: an image's features must not depend on its neighbours
CHANGED_HINT = "The file was changed after the check at the start. Start again, so that it is checked again."
Rows = Callable[[int], slice]  # length of a batch -> which of its rows
all_rows: Rows = partial(slice, 0)


class FeatureSource(Protocol):
    """Cached rows, or images sent through the frozen part as they are needed."""

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0, rows: Rows = all_rows
    ) -> Iterator[np.ndarray]:
        """Yield float32 features (n, ...) of the images at `indices` of the data set, in that order.

        They are augmented as training in `epoch` sees them, or undisturbed if it is None. The first `skip` batches are
        left out (a resumed run has seen them). `rows` selects by the length of a batch which of its rows are returned.
        """


class FeatureExtractor:
    """Images -> features at several cuts, in one pass through the frozen part, in inference mode."""

    def __init__(self, classifier: "Classifier", cuts: Sequence[Any]) -> None:
        self.classifier = classifier
        self.cuts = list(cuts)

    @cached_property
    def _run(self) -> Callable[[Any], list[Any]]:
        """Compiled at first use, which never comes if everything is cached."""
        return inference_function(keras.Model(self.classifier.model.inputs[0], self.cuts))

    def __call__(self, images: Any) -> list[np.ndarray]:
        """`images` (n, S, S, 3) in 0..255, n <= FEATURE_BATCH -> a float32 array (n, ...) for each cut."""
        padded = pad_batch(np.asarray(images), FEATURE_BATCH)
        return [output.numpy()[: len(images)] for output in self._run(padded)]


@dataclass(frozen=True)
class CachedFeatures:
    """Features at one cut, in memory or mapped from disk."""

    views: tuple[Any, ...]  # 0: a row for each image of the data set; 1..k: augmented, a row for each training image
    position: np.ndarray  # index in the data set -> row in an augmented view

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0, rows: Rows = all_rows
    ) -> Iterator[np.ndarray]:
        numbers = self._view_numbers(indices, epoch)
        batches = index_batches(indices, batch_size, skip=skip), index_batches(numbers, batch_size, skip=skip)
        for batch, views in zip(*batches, strict=True):
            chosen = rows(len(batch))
            yield self._read(batch[chosen], views[chosen])

    def _view_numbers(self, indices: np.ndarray, epoch: int | None) -> np.ndarray:
        """The view (n,) that each of the images at `indices`, all of an epoch, is shown in.

        Neighbours have different views, and so has an image that comes again in the epoch (oversampling); in as many
        epochs as there are views each image has all of them.
        """
        augmented = len(self.views) - 1
        if epoch is None or augmented == 0:
            return np.zeros(len(indices), int)
        return np.asarray(1 + (indices + epoch + count_before(indices)) % augmented)

    def _read(self, indices: np.ndarray, views: np.ndarray) -> np.ndarray:
        values = np.empty((len(indices), *self.views[0].shape[1:]), np.float32)
        for number in np.unique(views):
            chosen = views == number
            rows = self.position[indices[chosen]] if number else indices[chosen]
            values[chosen] = self.views[number][rows]
        return values


@dataclass(frozen=True)
class LiveFeatures:
    """No cache: images are read, augmented and sent through the frozen part when they are needed."""

    extractor: FeatureExtractor
    cut: int  # its number among the extractor's cuts
    paths: Sequence[str]
    read: ReadImage
    augmenter: Augmenter
    seed: int

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0, rows: Rows = all_rows
    ) -> Iterator[np.ndarray]:
        whole_batches = index_batches(indices, batch_size, skip=skip)
        selected = [batch[rows(len(batch))] for batch in whole_batches]
        for position, batch in enumerate(read_ahead(self.read, selected)):
            refuse_unreadable(batch, self.paths)
            images: Any = batch.images
            if epoch is not None and self.augmenter:
                # Random numbers belong to places in the whole batch, so the selected rows are put where they belong.
                count = len(whole_batches[position])
                canvas = np.zeros((count, *images.shape[1:]), images.dtype)
                canvas[rows(count)] = images
                images = self.augmenter(canvas, (self.seed, epoch, skip + position)).numpy()[rows(count)]
            starts = range(0, len(images), FEATURE_BATCH)
            yield np.concatenate([self.extractor(images[at : at + FEATURE_BATCH])[self.cut] for at in starts])


def count_before(values: np.ndarray) -> np.ndarray:
    """How often each of `values` (n,) has come before: [7, 3, 7, 7] -> [0, 0, 1, 2]."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    counts = np.empty(len(values), int)
    counts[order] = np.arange(len(values)) - np.searchsorted(in_order, in_order)
    return counts


def refuse_unreadable(batch: Batch, paths: Sequence[str]) -> None:
    """DataError for an image that was readable at the start and is not any more: nothing is trained on grey images."""
    if batch.problems:
        index, reason = next(iter(batch.problems.items()))
        raise DataError(f"{printable(paths[index])} can no longer be read: {reason}", hint=CHANGED_HINT)
