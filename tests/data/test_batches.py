"""Reading ahead, order and augmentation."""

import threading
import time

import numpy as np
import pytest

from finetune.config import AugmentConfig
from finetune.data import batches as pipeline
from finetune.utils.errors import ImageError


def read(index: int) -> np.ndarray:
    if index == 5:
        raise ImageError("cut short")
    time.sleep(0.001 * (index % 3))  # threads finish out of order
    return np.full((4, 4, 3), index, np.uint8)


def test_batches_keep_the_order_and_name_problems():
    indices = np.array([9, 5, 2, 7, 1, 0, 3])
    found = list(pipeline.image_batches(read, indices, 3, workers=4))
    assert [len(batch.indices) for batch in found] == [3, 3, 1]
    assert np.concatenate([batch.images[:, 0, 0, 0] for batch in found]).tolist() == [9, 0, 2, 7, 1, 0, 3]
    assert found[0].problems == {5: "cut short"}
    assert not found[1].problems


def test_batches_read_only_a_little_ahead():
    asked: list[int] = []

    def note(index: int) -> np.ndarray:
        asked.append(index)
        return np.zeros((2, 2, 3), np.uint8)

    stream = pipeline.image_batches(note, np.arange(1000), 10, workers=2)
    next(stream)
    time.sleep(0.2)
    assert len(asked) <= 10 * (pipeline.AHEAD + 1)
    stream.close()


def test_reading_stops_when_nobody_listens():
    stream = pipeline.image_batches(read, np.arange(1000), 10, workers=2)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    first = pipeline.epoch_order(100, seed=1, epoch=2)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, pipeline.epoch_order(100, seed=1, epoch=2))
    assert not np.array_equal(first, pipeline.epoch_order(100, seed=1, epoch=3))
    assert not np.array_equal(first, pipeline.epoch_order(100, seed=2, epoch=2))


@pytest.fixture(scope="module")
def augmenter():
    return pipeline.Augmenter(
        AugmentConfig(flip="horizontal", rotate=20, zoom=0.2, shift=0.1, brightness=0.2, contrast=0.2)
    )


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
    plain = pipeline.Augmenter(AugmentConfig())
    assert not plain
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(plain(images, (0,)).numpy(), images)


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_presets_keep_the_range(preset):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    changed = pipeline.Augmenter(AugmentConfig(preset=preset))(images, (1,)).numpy()
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    assert not np.array_equal(changed, images)


# ------------------------------------------------------------------------------------------------- mixing, balancing


@pytest.mark.parametrize("shape", [(6, 5, 5, 4), (6, 4)])
def test_mixup_blends_images_as_it_blends_targets(shape: tuple[int, ...]) -> None:
    mixer = pipeline.MixUpCutMix(AugmentConfig(mixup=0.5), spatial=len(shape) == 4)
    targets = np.eye(6, dtype=np.float32)
    features = (np.ones(shape, np.float32).T * np.arange(6)).T  # image k is full of k
    mixer.reseed((0, 1))
    mixed, blended = (np.asarray(part) for part in mixer(pipeline.tf.constant(features), pipeline.tf.constant(targets)))
    assert mixed.shape == shape
    np.testing.assert_allclose(mixed.reshape(6, -1).mean(1), blended @ np.arange(6), atol=1e-4)
    assert (blended.max(axis=1) < 0.999).any()
    mixer.reseed((0, 1))
    again = mixer(pipeline.tf.constant(features), pipeline.tf.constant(targets))
    np.testing.assert_array_equal(again[0], mixed)


def test_cutmix_pastes_a_rectangle_and_needs_places() -> None:
    assert not pipeline.MixUpCutMix(AugmentConfig(cutmix=1), spatial=False)
    mixer = pipeline.MixUpCutMix(AugmentConfig(cutmix=1), spatial=True)
    features = (np.ones((4, 8, 8, 2), np.float32).T * np.arange(4)).T
    mixer.reseed((3,))
    mixed, _ = mixer(pipeline.tf.constant(features), pipeline.tf.eye(4))
    assert set(np.unique(mixed)) <= {0, 1, 2, 3}
    assert any(len(np.unique(image)) == 2 for image in np.asarray(mixed))


def test_rand_augment_is_decided_by_the_key_alone() -> None:
    batch = np.random.default_rng(0).integers(0, 255, (3, 24, 24, 3), dtype=np.uint8)
    first, second = (pipeline.Augmenter(AugmentConfig(rand_augment=0.5)) for _ in range(2))
    first(batch, (9, 9))
    np.testing.assert_array_equal(first(batch, (1, 2)), second(batch, (1, 2)))
    assert not np.array_equal(first(batch, (1, 2)), first(batch, (1, 3)))


def test_balanced_order_repeats_small_classes() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 1)
    places = pipeline.balanced_epoch_order(labels, seed=0, epoch=0)
    assert np.bincount(labels[places]).tolist() == [10, 10, 10]
    assert sorted(set(places)) == list(range(14))  # nobody is left out
    assert not np.array_equal(places, pipeline.balanced_epoch_order(labels, seed=0, epoch=1))
