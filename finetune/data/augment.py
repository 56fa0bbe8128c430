"""What only training sees: random changes of images, and mixing of the examples of a batch. Keras' own layers.

    changed = Augmenter(config.augment)(images, key=(seed, view, batch))

The `key` alone decides what is drawn, never what was drawn before: a killed run that resumes draws as it would have.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.config import AugmentConfig
from finetune.utils import keras, tf


class Augmenter:
    """Random changes of training images; the same `key` always gives the same changes.

    Geometry and colour are drawn per image. False where the config asks for no change.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._layers = _augmentation_layers(config)
        parts = [part for layer in self._layers for part in layer._flatten_layers()]  # RandAugment holds layers
        self._generators = [part.generator for part in parts if hasattr(part, "generator")]

        def change(images: Any) -> Any:
            x = tf.cast(images, tf.float32)
            for layer in self._layers:
                x = layer(x, training=True)
            return tf.clip_by_value(x, 0.0, 255.0)

        self._apply = tf.function(change, autograph=False)

    def __bool__(self) -> bool:
        return bool(self._layers)

    def __call__(self, images: np.ndarray, key: tuple[int, ...]) -> Any:
        """Images (n, S, S, 3) in 0..255 -> the same shape as float32, 0..255."""
        _reseed(self._generators, key)
        return self._apply(images)


def _augmentation_layers(config: AugmentConfig) -> list[Any]:
    """A Keras layer for each kind of change in `config`."""
    kl = keras.layers
    layers: list[Any] = []
    if config.flip != "none":
        layers.append(kl.RandomFlip("horizontal" if config.flip == "horizontal" else "horizontal_and_vertical", seed=0))
    if config.rotate:
        layers.append(kl.RandomRotation(config.rotate / 360, fill_mode="reflect", seed=0))
    if config.zoom:
        layers.append(kl.RandomZoom((-config.zoom, config.zoom), fill_mode="reflect", seed=0))
    if config.shift:
        layers.append(kl.RandomTranslation(config.shift, config.shift, fill_mode="reflect", seed=0))
    scale = {"value_range": (0, 255), "seed": 0}
    if config.brightness:
        layers.append(kl.RandomBrightness(config.brightness, **scale))
    if config.contrast:
        layers.append(kl.RandomContrast(config.contrast, **scale))
    if config.saturation:
        layers.append(kl.RandomSaturation(config.saturation, **scale))
    if config.hue:
        layers.append(kl.RandomHue(config.hue, **scale))
    if config.rand_augment:  # Cubuk et al. 2020, with two changes per image as in the paper
        layers.append(kl.RandAugment((0, 255), num_ops=2, factor=config.rand_augment, seed=0))
    if config.erase:
        layers.append(kl.RandomErasing(config.erase, **scale))
    return layers


class MixUpCutMix:
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, at the phase's cut.

    Mixing the output of the frozen part (Verma et al. 2019, Manifold Mixup) works on cached features too. CutMix
    needs a feature map (`spatial`), so it leaves pooled features, as in the head phase, unchanged.
    """

    def __init__(self, config: AugmentConfig, *, spatial: bool) -> None:
        self._layers = [keras.layers.MixUp(config.mixup, seed=0)] if config.mixup else []
        if config.cutmix and spatial:
            self._layers.append(keras.layers.CutMix((config.cutmix, config.cutmix), seed=0))
        self._generators = [layer.generator for layer in self._layers]

    def __bool__(self) -> bool:
        return bool(self._layers)

    def reseed(self, key: tuple[int, ...]) -> None:
        """Decide by `key` what the next call draws."""
        _reseed(self._generators, key)

    def __call__(self, features: Any, targets: Any) -> tuple[Any, Any]:
        """Features (n, ..., channels) and targets (n, classes) float32 -> the same shapes."""
        shape = tf.shape(features)
        maps = features if features.shape.rank == 4 else features[:, None, None, :]  # the layers expect maps
        mixed = [layer({"images": maps, "labels": targets}, training=True) for layer in self._layers]
        chosen = mixed[0]
        if len(mixed) == 2:  # one of the two at random, as timm and torchvision do
            use_mixup = keras.random.uniform((), seed=self._generators[0]) < 0.5
            chosen = {name: tf.where(use_mixup, mixed[0][name], mixed[1][name]) for name in mixed[0]}
        return tf.reshape(chosen["images"], shape), chosen["labels"]


def _reseed(generators: Sequence[Any], key: tuple[int, ...]) -> None:
    states = np.random.SeedSequence(key).generate_state(2 * len(generators), np.uint32)
    for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
        generator.state.assign(state)
