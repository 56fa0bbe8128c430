"""Images are read ahead, in an order that depends on seed and epoch alone."""

import threading
import time

import numpy as np

from finetune import data
from finetune.data.batches import AHEAD
from finetune.utils import ImageError


def read(index: int) -> np.ndarray:
    if index == 5:
        raise ImageError("cut short")
    time.sleep(0.001 * (index % 3))  # threads finish out of order
    return np.full((4, 4, 3), index, np.uint8)


read.size = 4


def test_batches_keep_the_order_and_name_problems():
    indices = np.array([9, 5, 2, 7, 1, 0, 3])
    found = list(data.image_batches(read, indices, 3, workers=4))
    assert [len(batch.indices) for batch in found] == [3, 3, 1]
    assert np.concatenate([batch.images[:, 0, 0, 0] for batch in found]).tolist() == [9, 0, 2, 7, 1, 0, 3]
    assert found[0].problems == {5: "cut short"}
    assert not found[1].problems


def test_a_batch_in_which_nothing_can_be_read_has_the_shape_of_every_other():
    (batch,) = data.image_batches(read, np.array([5, 5]), 2)
    assert batch.images.shape == (2, 4, 4, 3)
    assert batch.problems == {5: "cut short"}


def test_batches_read_only_a_little_ahead():
    asked: list[int] = []

    def note(index: int) -> np.ndarray:
        asked.append(index)
        return np.zeros((2, 2, 3), np.uint8)

    note.size = 2
    stream = data.image_batches(note, np.arange(1000), 10, workers=2)
    next(stream)
    time.sleep(0.2)
    assert len(asked) <= 10 * (AHEAD + 1)
    stream.close()


def test_reading_stops_when_nobody_listens():
    stream = data.image_batches(read, np.arange(1000), 10, workers=2)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    first = data.epoch_order(100, seed=1, epoch=2)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, data.epoch_order(100, seed=1, epoch=2))
    assert not np.array_equal(first, data.epoch_order(100, seed=1, epoch=3))
    assert not np.array_equal(first, data.epoch_order(100, seed=2, epoch=2))


def test_balanced_order_repeats_small_classes() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 1)
    places = data.balanced_epoch_order(labels, seed=0, epoch=0)
    assert np.bincount(labels[places]).tolist() == [10, 10, 10]
    assert sorted(set(places)) == list(range(14))  # nobody is left out
    assert not np.array_equal(places, data.balanced_epoch_order(labels, seed=0, epoch=1))
