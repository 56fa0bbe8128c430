"""Ranks, shards and sums, without other processes."""

from types import SimpleNamespace

import numpy as np
import pytest

from finetune.training.distributed.cluster import ProcessPlace
from finetune.training.distributed.group import SINGLE, ProcessGroup, process_group, use_devices
from finetune.training.start_checks import refuse_if_not_exact
from finetune.utils import ConfigError, DataError, ResourceError, has_gpu, keras, tf


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_every_row_counts_once(parts: int, count: int) -> None:
    """Of every batch, also of one with fewer rows than there are processes."""
    counted = np.zeros(count)
    for rank in range(parts):
        one = group_of(rank, parts)
        held = one.rows_of_rank(count)
        assert held.stop > held.start  # kernels crash on empty batches
        part = one.shard(rank, tf.constant(count), tf.constant(held.stop - held.start))
        rows = part.rows(np.arange(count))
        assert part.held(np.arange(count)[held]).tolist() == rows.tolist()
        counted[rows] += part.weight.numpy()
    assert counted.tolist() == [1] * count


def test_shares_are_whole_units_and_all_there_is() -> None:
    shares = [group_of(rank, 3).slice_of_rank(100, 32) for rank in range(3)]
    assert [(share.start, share.stop) for share in shares] == [(0, 32), (32, 64), (64, 100)]
    assert [group_of(rank, 3).slice_of_rank(10, 32) for rank in range(3)] == [slice(0, 0), slice(0, 0), slice(0, 10)]


def group_of(rank: int, size: int) -> ProcessGroup:
    """One of `size` processes with a device each, without the others."""
    strategy = SimpleNamespace(num_replicas_in_sync=size)
    return ProcessGroup(ProcessPlace(rank, tuple("abcde"[:size])), strategy)


def test_single_everything_is_as_if_there_were_no_groups() -> None:
    single = process_group()
    assert single is SINGLE
    assert single.describe() == ""
    assert (single.broadcast("a"), single.all_gather("a")) == ("a", ["a"])
    assert single.sum_over_replicas(lambda place: [place, 7]) == [0, 7]
    with pytest.raises(DataError, match="mine"), single.synchronized():
        raise DataError("mine")


def test_a_gpu_that_is_not_there() -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match="no GPU here"), use_devices("gpu"):
        pass


def test_what_would_not_be_the_same_is_refused() -> None:
    two, kl = group_of(0, 2), keras.layers
    refuse_if_not_exact(SINGLE, [kl.GaussianNoise(0.1)], 8, 42)
    refuse_if_not_exact(two, [kl.Dropout(0.2), kl.BatchNormalization()], 8, 42)
    with pytest.raises(ConfigError, match="GaussianNoise"):
        refuse_if_not_exact(two, [kl.GaussianNoise(0.1)], 8, 42)
    with pytest.raises(ConfigError, match="last batch of an epoch has 1 images"):
        refuse_if_not_exact(two, [kl.BatchNormalization()], 8, 41)
