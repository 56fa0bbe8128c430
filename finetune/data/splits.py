"""Which image goes into which split, so that every class has its share of each.

    splits = by_class(labels, keys, {VALIDATION: 0.1, TEST: 0.1}, 1.0, 5)      labels (n,)
    splits = by_label(labels, keys, {VALIDATION: 0.1, TEST: 0.1}, 1.0)         labels (n, classes)

Shares are of `whole`. 0 is train, and gets what the others leave. `keys` (n,) decide who goes where among equals: they
come from seed and name, so the result is the same on every machine.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Splits = NDArray[np.int8]


def split_by_class(
    labels: NDArray[np.int32], keys: NDArray[np.uint64], shares: Mapping[int, float], whole: float, classes: int
) -> Splits:
    """Class by class. A class of two images or more has one in train and one in the first of `shares`."""
    splits = np.zeros(len(labels), np.int8)
    order = np.lexsort((keys, labels))
    edges = np.searchsorted(labels[order], np.arange(classes + 1))
    for start, end in pairwise(edges.tolist()):
        size = end - start
        for split, share in shares.items():
            count = min(max(1, round(size * share / whole)), end - start - 1)
            splits[order[start : start + count]] = split
            start += count
    return splits


def split_by_label(
    labels: NDArray[np.uint8], keys: NDArray[np.uint64], shares: Mapping[int, float], whole: float
) -> Splits:
    """Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011): the rarest label first, each of its images to
    the split that still lacks it most."""
    shares = {split: share / whole for split, share in shares.items()}
    places = [0, *shares]  # split of each row below
    needed = _quotas(labels.sum(axis=0, dtype=np.int64), shares)  # (splits, classes)
    room = np.array([1 - sum(shares.values()), *shares.values()]) * len(labels)
    left = labels.sum(axis=0, dtype=np.int64)
    splits = np.full(len(labels), -1, np.int8)
    order = np.argsort(keys, kind="stable")
    while left.any():
        rarest = np.where(left > 0, left, left.max() + 1).argmin()
        for image in order[(splits[order] < 0) & (labels[order, rarest] > 0)]:
            row = np.lexsort((room, needed[:, rarest]))[-1]
            splits[image] = places[row]
            needed[row] -= labels[image]
            room[row] -= 1
            left -= labels[image]
    for image in order[splits[order] < 0]:  # those without a label
        row = room.argmax()
        splits[image] = places[row]
        room[row] -= 1
    return splits


def _quotas(counts: NDArray[np.int64], shares: Mapping[int, float]) -> NDArray[np.float64]:
    """How many images of each label each split should have (splits, classes), train first; one where that is few."""
    rows, left = [], counts.astype(np.float64)
    for share in shares.values():
        rows.append(np.minimum(np.maximum(1, counts * share), np.maximum(left - 1, 0)))
        left = left - rows[-1]
    return np.array([left, *rows])
