"""What only training sees: random changes of images, and mixing of the examples of a batch. Keras' own layers.

    changed = Augmenter(config.augment)(images, key=(seed, view, batch))

The `key` alone decides what is drawn, never what was drawn before: a killed run that resumes draws as it would have.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.config import AugmentConfig
from finetune.utils import keras, tf

BLANK = (125, 122, 114)  # what erases: the mean colour of ImageNet (Zhong et al. 2020, Random Erasing)


class Augmenter:
    """Random changes of training images; the same `key` always gives the same changes.

    Everything is drawn again for each image. False where the config asks for no change.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._layers = _augmentation_layers(config)
        self._generators = [generator for layer in self._layers for generator in _generators_of(layer)]

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
    """A Keras layer for each kind of change in `config`.

    Factors are pairs: what Keras makes of a single number, "from -f to f" or "from 0 to f", differs between layers.
    """
    kl = keras.layers
    layers: list[Any] = []
    if config.flip != "none":
        layers.append(kl.RandomFlip("horizontal", seed=0))
    if config.flip == "both":  # Keras' "horizontal_and_vertical" draws once for both, which only turns by 180 degrees
        layers.append(kl.RandomFlip("vertical", seed=0))
    if config.rotate:
        layers.append(kl.RandomRotation(_around(0, config.rotate / 360), fill_mode="reflect", seed=0))
    if config.zoom:
        layers.append(kl.RandomZoom(_around(0, config.zoom), fill_mode="reflect", seed=0))
    if config.shift:
        layers.append(kl.RandomTranslation(*2 * [_around(0, config.shift)], fill_mode="reflect", seed=0))
    if config.brightness:
        layers.append(kl.RandomBrightness(_around(0, config.brightness), seed=0))
    if config.contrast:
        layers.append(_contrast(config.contrast))
    if config.saturation:
        layers.append(_saturation(config.saturation))
    if config.hue:  # Keras turns by half of its factor, either way; half a circle is all of it
        layers.append(kl.RandomHue((0, min(1, 2 * config.hue)), seed=0))
    if config.rand_augment:
        layers.append(RandAugment(config.rand_augment))
    if config.erase:
        layers.append(kl.RandomErasing((config.erase, config.erase), fill_value=BLANK, seed=0))
    return layers


def _around(middle: float, width: float) -> tuple[float, float]:
    return middle - width, middle + width


def _contrast(fraction: float) -> Any:
    """Distances from the mean colour times 1 - fraction .. 1 + fraction."""
    return keras.layers.RandomContrast((fraction, fraction), seed=0)  # Keras adds the 1


def _saturation(fraction: float) -> Any:
    """Saturations times 1 - fraction .. 1 + fraction. Keras multiplies by f / (1 - f): a factor of 0.5 changes nothing.

    The saturation itself is what Keras clips to `value_range`, and a saturation is from 0 to 1 in images of any range.
    """
    factors = (1 - fraction) / (2 - fraction), (1 + fraction) / (2 + fraction)
    return keras.layers.RandomSaturation(factors, value_range=(0, 1), seed=0)


class RandAugment:
    """Two of the 14 changes of Cubuk et al. 2020 (one of them: none) in each image, each of up to `strength`.

    At strength 1 they reach as far as in the paper (table 6 of AutoAugment, Cubuk et al. 2019). Keras' layer of that
    name draws the two for a whole batch, turns, moves and brightens one way only, and keeps as little as one bit.
    """

    def __init__(self, strength: float) -> None:
        kl, far = keras.layers, 0.9 * strength
        turn, move = _around(0, 30 / 360 * strength), _around(0, 0.3 * strength)
        self.generator = keras.random.SeedGenerator(0)
        self.changes = [
            kl.AutoContrast(),
            Equalize(),
            kl.RandomRotation(turn, fill_mode="reflect", seed=0),
            kl.RandomShear(x_factor=0.3 * strength, seed=0),
            kl.RandomShear(y_factor=0.3 * strength, seed=0),
            kl.RandomTranslation(0, move, seed=0),
            kl.RandomTranslation(move, 0, seed=0),
            kl.RandomBrightness(_around(0, far / 2), seed=0),  # added; the paper multiplies by 1 - far .. 1 + far
            _contrast(far),
            _saturation(far),
            kl.RandomSharpness(_around(0.5, far / 2), seed=0),  # Keras doubles it
            kl.RandomPosterization(
                (8 - round(4 * strength), 8), seed=0
            ),  # bits that are kept; Keras leaves out the last
            Solarize(strength),
        ]

    def __call__(self, images: Any, training: bool) -> Any:
        """Images (n, S, S, 3) in 0..255 -> the same shape."""
        for _ in range(2):
            count = tf.shape(images)[0]
            chosen = keras.random.randint((count,), 0, len(self.changes) + 1, seed=self.generator)  # the last: none
            for number, change in enumerate(self.changes):
                rows = tf.where(chosen == number)
                changed = change(tf.gather(images, rows[:, 0]), training=training)
                images = tf.tensor_scatter_nd_update(images, rows, changed)
        return images


class Equalize:
    """Spreads the values of each colour evenly over 0..255. (Keras' layer looks at all images of a batch together.)"""

    def __init__(self) -> None:
        self._layer = keras.layers.Equalization()

    def __call__(self, images: Any, training: bool) -> Any:
        return tf.map_fn(self._layer, images)


class Solarize:
    """Inverts what is lighter than a threshold, 255 - 255 * strength at the lowest. (Keras' scales only one bound.)"""

    def __init__(self, strength: float) -> None:
        self.strength, self.generator = strength, keras.random.SeedGenerator(0)

    def __call__(self, images: Any, training: bool) -> Any:
        drawn = keras.random.uniform((tf.shape(images)[0], 1, 1, 1), 0, self.strength, seed=self.generator)
        return tf.where(images < 255 * (1 - drawn), images, 255 - images)


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
        mixed = [_mix(layer, maps, targets) for layer in self._layers]
        chosen = mixed[0]
        if len(mixed) == 2:  # one of the two at random, as timm and torchvision do
            use_mixup = keras.random.uniform((), seed=self._generators[0]) < 0.5
            chosen = tuple(tf.where(use_mixup, *both) for both in zip(*mixed, strict=True))
        return tf.reshape(chosen[0], shape), chosen[1]


def _mix(layer: Any, maps: Any, targets: Any) -> tuple[Any, Any]:
    """Mixed `maps` (n, h, w, channels) and `targets` (n, classes)."""
    drawn = layer.get_random_transformation(maps, training=True)
    if "batch_masks" in drawn:
        # Keras weighs the targets by the rectangle that it drew, of which only whole places of the map are pasted.
        # Where these are few the two differ much: on maps of 3 x 3 by up to 0.17.
        drawn["mix_weight"] = 1 - tf.reduce_mean(tf.cast(drawn["batch_masks"], tf.float32), axis=(1, 2, 3))
    return layer.transform_images(maps, drawn), layer.transform_labels(targets, drawn)


def _generators_of(layer: Any) -> list[Any]:
    """The random generators of `layer` and of the changes in it; AutoContrast and Equalize draw nothing."""
    parts = [layer, *getattr(layer, "changes", ())]
    return [part.generator for part in parts if hasattr(part, "generator")]


def _reseed(generators: Sequence[Any], key: tuple[int, ...]) -> None:
    states = np.random.SeedSequence(key).generate_state(2 * len(generators), np.uint32)
    for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
        generator.state.assign(state)
