"""From files to batches: images read ahead in threads, in an order that depends on seed and epoch alone.

    read = image_reader(dataset.paths(range(len(dataset))), transform)
    for batch in image_batches(read, epoch_order(len(dataset), seed=0, epoch=3), 32): ...

Pillow releases Python's lock while it decodes and resizes, so threads keep the cores busy and the network fed. There
is no shuffle buffer: the order is an array of indices, which also makes an exact resume simple.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from finetune.data.images import ImageSource, Transform, read_square
from finetune.utils import ImageError, available_cores

AHEAD = 3  # batches being read while the network works on another


class ReadImage(Protocol):
    """`index -> (S, S, 3) uint8`. Raises ImageError."""

    @property
    def size(self) -> int:
        """S, known before an image is read."""

    def __call__(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class ImageReader:
    """Reads the image `sources[index]` as the network sees it in evaluation."""

    sources: Sequence[ImageSource]
    transform: Transform

    @property
    def size(self) -> int:
        return self.transform.size

    def __call__(self, index: int) -> np.ndarray:
        return read_square(self.sources[index], self.transform)


def image_reader(sources: Sequence[ImageSource], transform: Transform) -> ReadImage:
    """A function `index -> (S, S, 3) uint8`: the evaluation transform of the image `sources[index]`."""
    return ImageReader(sources, transform)


@dataclass(frozen=True)
class Batch:
    """`images` is (n, S, S, 3) uint8; `problems` maps the indices of unreadable images to reasons, these are black."""

    indices: np.ndarray
    images: np.ndarray
    problems: dict[int, str]


def image_batches(
    read: ReadImage, indices: np.ndarray, batch_size: int, *, workers: int | None = None
) -> Iterator[Batch]:
    """The images of `indices`, in that order, `batch_size` at a time, read ahead of their use.

    Holds `AHEAD + 1` batches at most, however long `indices` is.
    """
    return read_ahead(read, index_batches(indices, batch_size), workers=workers)


def index_batches(indices: np.ndarray, batch_size: int, *, skip: int = 0) -> list[np.ndarray]:
    """`indices` cut into batches; the first `skip` of them are left out."""
    return [indices[start : start + batch_size] for start in range(skip * batch_size, len(indices), batch_size)]


def read_ahead(read: ReadImage, chunks: Sequence[np.ndarray], *, workers: int | None = None) -> Iterator[Batch]:
    """A batch of images for each of `chunks`, arrays of indices (n,), read ahead of its use."""
    pool = ThreadPoolExecutor(workers or available_cores() + 1, thread_name_prefix="read")
    pending: deque[tuple[np.ndarray, list[Future[np.ndarray]]]] = deque()

    def submit(chunk: np.ndarray) -> None:
        pending.append((chunk, [pool.submit(read, int(index)) for index in chunk]))

    try:
        for chunk in chunks[:AHEAD]:
            submit(chunk)
        for position in range(len(chunks)):
            indices, futures = pending.popleft()
            if position + AHEAD < len(chunks):
                submit(chunks[position + AHEAD])
            yield _collect(indices, futures, read.size)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _collect(indices: np.ndarray, futures: Sequence["Future[np.ndarray]"], size: int) -> Batch:
    """Wait for the images of a batch; one that could not be read is black and has its reason in `problems`."""
    images = np.zeros((len(indices), size, size, 3), np.uint8)
    problems: dict[int, str] = {}
    for position, (index, future) in enumerate(zip(indices, futures, strict=True)):
        try:
            images[position] = future.result()
        except ImageError as problem:
            problems[int(index)] = problem.message
    return Batch(indices, images, problems)


class WaitMeter:
    """Counts in `seconds` how long a loop waits for its input."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def waiting_for(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of `stream`, with the time measured that each takes to come."""
        while True:
            started = time.monotonic()
            batch = next(stream, None)
            self.seconds += time.monotonic() - started
            if batch is None:
                return
            yield batch


def pad_batch(images: np.ndarray, size: int) -> np.ndarray:
    """`images` (at most `size`) filled up with black ones to `size + 1`.

    With one batch shape TensorFlow plans the network once, and an image's result depends neither on its neighbours
    nor on its position: the matrix kernels treat the last rows of a batch differently (they differ in the last bit),
    and the spare image takes that position. Measured on 3 x 320 images: 168 results differed without it, none with it.
    """
    missing = size + 1 - len(images)
    return np.pad(images, ((0, missing),) + ((0, 0),) * (images.ndim - 1))


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` examples in an epoch: a permutation (count,) that depends on the two numbers alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def balanced_epoch_order(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Positions in class numbers `labels` (n,), with every class as often as the largest one, in random order.

    Images of smaller classes are repeated; which of them are repeated most changes from epoch to epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    members_by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    largest = max(len(members) for members in members_by_class)
    repeated = []
    for members in members_by_class:
        rounds = -(-largest // len(members))
        repeated.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:largest])
    return rng.permutation(np.concatenate(repeated))
