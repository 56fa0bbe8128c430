"""Augmentation and mixing are decided by their key alone."""

import numpy as np
import pytest

from finetune.config import AugmentConfig
from finetune.data import Augmenter, MixUpCutMix
from finetune.utils import tf


@pytest.fixture(scope="module")
def augmenter():
    return Augmenter(AugmentConfig(flip="horizontal", rotate=20, zoom=0.2, shift=0.1, brightness=0.2, contrast=0.2))


def test_augmentation_is_decided_by_its_key_alone(augmenter):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    first = augmenter(images, (0, 1, 2)).numpy()
    other = augmenter(images, (0, 1, 3)).numpy()
    again = augmenter(images, (0, 1, 2)).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1
    assert first.min() >= 0
    assert first.max() <= 255


def test_each_image_is_changed_differently(augmenter):
    same = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)), 4, axis=0).astype(np.uint8)
    changed = augmenter(same, (3,)).numpy()
    assert np.abs(changed[0] - changed[1]).mean() > 1


def test_no_augmentation_changes_nothing():
    plain = Augmenter(AugmentConfig())
    assert not plain
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(plain(images, (0,)).numpy(), images)


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_presets_keep_the_range(preset):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    changed = Augmenter(AugmentConfig(preset=preset))(images, (1,)).numpy()
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    assert not np.array_equal(changed, images)


# ------------------------------------------------------------------------------------------------- mixing, balancing


@pytest.mark.parametrize("shape", [(6, 5, 5, 4), (6, 4)])
def test_mixup_blends_images_as_it_blends_targets(shape: tuple[int, ...]) -> None:
    mixer = MixUpCutMix(AugmentConfig(mixup=0.5), spatial=len(shape) == 4)
    targets = np.eye(6, dtype=np.float32)
    features = (np.ones(shape, np.float32).T * np.arange(6)).T  # image k is full of k
    mixer.reseed((0, 1))
    mixed, blended = (np.asarray(part) for part in mixer(tf.constant(features), tf.constant(targets)))
    assert mixed.shape == shape
    np.testing.assert_allclose(mixed.reshape(6, -1).mean(1), blended @ np.arange(6), atol=1e-4)
    assert (blended.max(axis=1) < 0.999).any()
    mixer.reseed((0, 1))
    again = mixer(tf.constant(features), tf.constant(targets))
    np.testing.assert_array_equal(again[0], mixed)


def test_cutmix_pastes_a_rectangle_and_needs_places() -> None:
    assert not MixUpCutMix(AugmentConfig(cutmix=1), spatial=False)
    mixer = MixUpCutMix(AugmentConfig(cutmix=1), spatial=True)
    features = (np.ones((4, 8, 8, 2), np.float32).T * np.arange(4)).T
    mixer.reseed((3,))
    mixed, _ = mixer(tf.constant(features), tf.eye(4))
    assert set(np.unique(mixed)) <= {0, 1, 2, 3}
    assert any(len(np.unique(image)) == 2 for image in np.asarray(mixed))


def test_rand_augment_is_decided_by_the_key_alone() -> None:
    batch = np.random.default_rng(0).integers(0, 255, (3, 24, 24, 3), dtype=np.uint8)
    first, second = (Augmenter(AugmentConfig(rand_augment=0.5)) for _ in range(2))
    first(batch, (9, 9))
    np.testing.assert_array_equal(first(batch, (1, 2)), second(batch, (1, 2)))
    assert not np.array_equal(first(batch, (1, 2)), first(batch, (1, 3)))
