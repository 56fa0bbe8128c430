"""Reading ahead, order and augmentation."""

import threading
import time

import numpy as np
import pytest

from finetune import pipeline
from finetune.config import Augment
from finetune.errors import ImageProblem


def read(index: int) -> np.ndarray:
    if index == 5:
        raise ImageProblem("cut short")
    time.sleep(0.001 * (index % 3))  # threads finish out of order
    return np.full((4, 4, 3), index, np.uint8)


def test_batches_keep_the_order_and_name_problems():
    indices = np.array([9, 5, 2, 7, 1, 0, 3])
    found = list(pipeline.batches(read, indices, 3, workers=4))
    assert [len(batch.indices) for batch in found] == [3, 3, 1]
    assert np.concatenate([batch.images[:, 0, 0, 0] for batch in found]).tolist() == [9, 0, 2, 7, 1, 0, 3]
    assert found[0].problems == {5: "cut short"}
    assert not found[1].problems


def test_batches_read_only_a_little_ahead():
    asked: list[int] = []

    def note(index: int) -> np.ndarray:
        asked.append(index)
        return np.zeros((2, 2, 3), np.uint8)

    stream = pipeline.batches(note, np.arange(1000), 10, workers=2)
    next(stream)
    time.sleep(0.2)
    assert len(asked) <= 10 * (pipeline.AHEAD + 1)
    stream.close()


def test_reading_stops_when_nobody_listens():
    stream = pipeline.batches(read, np.arange(1000), 10, workers=2)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    first = pipeline.order(100, seed=1, epoch=2)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, pipeline.order(100, seed=1, epoch=2))
    assert not np.array_equal(first, pipeline.order(100, seed=1, epoch=3))
    assert not np.array_equal(first, pipeline.order(100, seed=2, epoch=2))


@pytest.fixture(scope="module")
def augmenter():
    return pipeline.Augmenter(Augment(flip="horizontal", rotate=20, zoom=0.2, shift=0.1, brightness=0.2, contrast=0.2))


def test_augmentation_is_decided_by_its_key_alone(augmenter):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    first = augmenter(pictures, (0, 1, 2)).numpy()
    other = augmenter(pictures, (0, 1, 3)).numpy()
    again = augmenter(pictures, (0, 1, 2)).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1
    assert first.min() >= 0
    assert first.max() <= 255


def test_each_picture_is_changed_differently(augmenter):
    same = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)), 4, axis=0).astype(np.uint8)
    changed = augmenter(same, (3,)).numpy()
    assert np.abs(changed[0] - changed[1]).mean() > 1


def test_no_augmentation_changes_nothing():
    plain = pipeline.Augmenter(Augment())
    assert not plain
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(plain(pictures, (0,)).numpy(), pictures)


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_presets_keep_the_range(preset):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    changed = pipeline.Augmenter(Augment(preset=preset))(pictures, (1,)).numpy()
    assert changed.shape == pictures.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    assert not np.array_equal(changed, pictures)
