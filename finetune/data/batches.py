"""From files to batches: reading ahead in threads, and the augmentation that only training sees.

Pillow lets go of Python's lock while it decodes and resizes, so threads keep the cores busy and the network fed. There
is no shuffle buffer: the order is a list of indices, `f(seed, epoch)`, which is also what makes an exact resume simple.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.config import AugmentConfig
from finetune.data.images import Transform, read_square
from finetune.utils import ImageError, available_cores, keras, tf

ReadImage = Callable[[int], np.ndarray]
AHEAD = 3  # batches being read while the network works on one


@dataclass(frozen=True)
class Batch:
    """`images` is (n, S, S, 3) uint8; the image of an index in `problems` could not be read and is black."""

    indices: np.ndarray
    images: np.ndarray
    problems: dict[int, str]


def image_reader(paths: Sequence[str], transform: Transform) -> ReadImage:
    """`index -> (S, S, 3) uint8`: the evaluation transform of the image at `paths[index]`."""
    return lambda index: read_square(paths[index], transform)


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
    """One batch for each of `chunks`, places of images (n,), read ahead of its use."""
    pool = ThreadPoolExecutor(workers or available_cores() + 1, thread_name_prefix="read")
    try:
        pending: deque[tuple[np.ndarray, list[Future[np.ndarray]]]] = deque()
        for chunk in chunks[:AHEAD]:
            pending.append((chunk, [pool.submit(read, int(index)) for index in chunk]))
        for position in range(len(chunks)):
            chunk, futures = pending.popleft()
            if position + AHEAD < len(chunks):
                following = chunks[position + AHEAD]
                pending.append((following, [pool.submit(read, int(index)) for index in following]))
            yield _collect(chunk, futures)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _collect(chunk: np.ndarray, futures: list["Future[np.ndarray]"]) -> Batch:
    images: list[np.ndarray | None] = []
    problems: dict[int, str] = {}
    for index, future in zip(chunk, futures, strict=True):
        try:
            images.append(future.result())
        except ImageError as problem:
            images.append(None)
            problems[int(index)] = problem.message
    shape = next((image.shape for image in images if image is not None), (1, 1, 3))
    stacked = np.stack([np.zeros(shape, np.uint8) if image is None else image for image in images])
    return Batch(chunk, stacked, problems)


class WaitMeter:
    """Counts the seconds that a loop spends waiting for its input."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def waiting_for(self, stream: Iterator[Batch]) -> Iterator[Batch]:
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
    nor on its place: the matrix kernels treat the last rows of a batch apart (they differ in the last bit), and the
    spare image takes that place. Measured on 3 x 320 images: 168 results differed without it, none with it.
    """
    missing = size + 1 - len(images)
    return np.pad(images, ((0, missing),) + ((0, 0),) * (images.ndim - 1))


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` examples in one epoch: a permutation that depends on nothing but the two numbers."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def balanced_epoch_order(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Places in `labels` (n,) so that every class comes equally often: each as often as the largest one.

    Images of smaller classes come again; those that come once more than others change from epoch to epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(map(len, members))
    repeated = [np.concatenate([rng.permutation(own) for _ in range(-(-most // len(own)))])[:most] for own in members]
    return rng.permutation(np.concatenate(repeated))


class MixUpCutMix:
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, with Keras' own layers, at the phase's cut.

    Mixing what comes out of the frozen part (Verma et al. 2019, Manifold Mixup) works on cached features too. CutMix
    needs a map with places, so pooled features (the head phase) are left alone by it. `key` decides what is drawn.
    """

    def __init__(self, config: AugmentConfig, *, spatial: bool) -> None:
        self._layers = [keras.layers.MixUp(config.mixup, seed=0)] if config.mixup else []
        if config.cutmix and spatial:
            self._layers.append(keras.layers.CutMix((config.cutmix, config.cutmix), seed=0))
        self._generators = [layer.generator for layer in self._layers]

    def __bool__(self) -> bool:
        return bool(self._layers)

    def reseed(self, key: tuple[int, ...]) -> None:
        _reseed(self._generators, key)

    def __call__(self, features: Any, targets: Any) -> tuple[Any, Any]:
        """Features (n, ..., channels) and targets (n, classes) float32 -> the same shapes."""
        shape = tf.shape(features)
        flat = features if features.shape.rank == 4 else features[:, None, None, :]  # the layers want maps
        mixed = [layer({"images": flat, "labels": targets}, training=True) for layer in self._layers]
        chosen = mixed[0]
        if len(mixed) == 2:  # turn about at random, as timm and torchvision do
            coin = keras.random.uniform((), seed=self._generators[0]) < 0.5
            chosen = {name: tf.where(coin, mixed[0][name], mixed[1][name]) for name in mixed[0]}
        return tf.reshape(chosen["images"], shape), chosen["labels"]


def _reseed(generators: Sequence[Any], key: tuple[int, ...]) -> None:
    states = np.random.SeedSequence(key).generate_state(2 * len(generators), np.uint32)
    for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
        generator.state.assign(state)


class Augmenter:
    """Random changes of training images, with Keras' own layers; the same `key` always gives the same changes.

    Geometry and colour are drawn per image. `augmenter(batch, key)` takes (N,S,S,3) in 0..255 and returns the same
    shape, float32, 0..255. What it did is decided by `key` alone (seed, view or epoch, batch), never by what was
    drawn before: a killed run draws on where the unbroken one would be.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._layers = _layers(config)
        self._apply = tf.function(self._all, autograph=False)

    def __bool__(self) -> bool:
        return bool(self._layers)

    def _all(self, images: Any) -> Any:
        x = tf.cast(images, tf.float32)
        for layer in self._layers:
            x = layer(x, training=True)
        return tf.clip_by_value(x, 0.0, 255.0)

    def __call__(self, images: np.ndarray, key: tuple[int, ...]) -> Any:
        _reseed(self._generators, key)
        return self._apply(images)

    @property
    def _generators(self) -> list[Any]:
        parts = [part for layer in self._layers for part in layer._flatten_layers()]  # RandAugment holds layers
        return [part.generator for part in parts if hasattr(part, "generator")]


def _layers(config: AugmentConfig) -> list[Any]:
    """One Keras layer per kind of change that the config asks for."""
    kl = keras.layers
    made: list[Any] = []
    if config.flip != "none":
        made.append(kl.RandomFlip("horizontal" if config.flip == "horizontal" else "horizontal_and_vertical", seed=0))
    if config.rotate:
        made.append(kl.RandomRotation(config.rotate / 360, fill_mode="reflect", seed=0))
    if config.zoom:
        made.append(kl.RandomZoom((-config.zoom, config.zoom), fill_mode="reflect", seed=0))
    if config.shift:
        made.append(kl.RandomTranslation(config.shift, config.shift, fill_mode="reflect", seed=0))
    scale = {"value_range": (0, 255), "seed": 0}
    if config.brightness:
        made.append(kl.RandomBrightness(config.brightness, **scale))
    if config.contrast:
        made.append(kl.RandomContrast(config.contrast, **scale))
    if config.saturation:
        made.append(kl.RandomSaturation(config.saturation, **scale))
    if config.hue:
        made.append(kl.RandomHue(config.hue, **scale))
    if config.rand_augment:  # Cubuk et al. 2020, with two changes per image as in the paper
        made.append(kl.RandAugment((0, 255), num_ops=2, factor=config.rand_augment, seed=0))
    if config.erase:
        made.append(kl.RandomErasing(config.erase, **scale))
    return made
