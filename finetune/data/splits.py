"""Which image goes into which split, so that every class has its fraction of each.

    splits = assign_splits(names, labels, given, config.data.split, classes=5, seed=0)

The order among equals comes from a hash of the seed and the name of the image alone: the result is the same on every
machine, and adding images moves few others.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import SplitConfig
from finetune.data.labels import MULTILABEL, label_type_of
from finetune.data.split_names import TEST, TRAIN, UNASSIGNED, VALIDATION

Splits = NDArray[np.int8]


def assign_splits(
    names: Sequence[str],
    labels: NDArray[Any],
    given: Splits,
    fractions: SplitConfig,
    *,
    classes: int,
    seed: int,
) -> Splits:
    """The split of each image (n,): as `given`, and what is missing is cut from train by `fractions`, class by class.

    `given` holds TRAIN, VALIDATION, TEST or UNASSIGNED; `labels` are (n,) class numbers or (n, classes) of 0 and 1.
    """
    splits = given.copy()
    present = set(np.unique(splits).tolist())
    by_split = {VALIDATION: fractions.validation, TEST: fractions.test}  # validation first: no class may lack it
    missing = {split: fraction for split, fraction in by_split.items() if split not in present and fraction}
    whole = fractions.train + sum(missing.values())
    pool = np.flatnonzero((splits == UNASSIGNED) | (splits == TRAIN))
    keys = np.empty(len(pool), np.uint64)
    for row, index in enumerate(pool.tolist()):
        text = f"{seed}/{names[index]}".encode("utf-8", "surrogateescape")
        keys[row] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    if label_type_of(labels) is MULTILABEL:
        splits[pool] = split_by_label(labels[pool], keys, missing, whole)
    else:
        splits[pool] = split_by_class(labels[pool], keys, missing, whole, classes)
    return splits


def split_by_class(
    labels: NDArray[np.int32], keys: NDArray[np.uint64], fractions: Mapping[int, float], whole: float, classes: int
) -> Splits:
    """Splits (n,) of class numbers `labels` (n,), class by class in the order of `keys` (n,).

    `fractions` maps splits to parts of `whole`; train gets the rest. A class of two images or more has at least one in
    train and one in the first of `fractions`.
    """
    splits = np.full(len(labels), TRAIN, np.int8)
    order = np.lexsort((keys, labels))
    edges = np.searchsorted(labels[order], np.arange(classes + 1))
    for start, end in pairwise(edges.tolist()):
        size = end - start
        for split, fraction in fractions.items():
            count = min(max(1, round(size * fraction / whole)), end - start - 1)
            splits[order[start : start + count]] = split
            start += count
    return splits


def split_by_label(
    labels: NDArray[np.uint8], keys: NDArray[np.uint64], fractions: Mapping[int, float], whole: float
) -> Splits:
    """Splits (n,) of `labels` (n, classes) of 0 and 1; `fractions` as in `split_by_class`.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011): the rarest label first, each of its images to
    the split that still lacks it most.
    """
    fractions = {split: fraction / whole for split, fraction in fractions.items()}
    split_of_row = [TRAIN, *fractions]  # rows of `needed` and `room`
    needed = _quotas(labels.sum(axis=0, dtype=np.int64), fractions)  # (splits, classes)
    room = np.array([1 - sum(fractions.values()), *fractions.values()]) * len(labels)  # (splits,)
    left = labels.sum(axis=0, dtype=np.int64)  # (classes,) images without a split
    splits = np.full(len(labels), UNASSIGNED, np.int8)
    order = np.argsort(keys, kind="stable")
    while left.any():
        rarest = np.where(left > 0, left, left.max() + 1).argmin()
        for image in order[(splits[order] == UNASSIGNED) & (labels[order, rarest] > 0)]:
            row = np.lexsort((room, needed[:, rarest]))[-1]
            splits[image] = split_of_row[row]
            needed[row] -= labels[image]
            room[row] -= 1
            left -= labels[image]
    for image in order[splits[order] == UNASSIGNED]:  # those without a label
        row = room.argmax()
        splits[image] = split_of_row[row]
        room[row] -= 1
    return splits


def _quotas(counts: NDArray[np.int64], fractions: Mapping[int, float]) -> NDArray[np.float64]:
    """How many images of each label each split should have (splits, classes), train first; one where that is few."""
    rows = []
    left = counts.astype(np.float64)
    for fraction in fractions.values():
        rows.append(np.minimum(np.maximum(1, counts * fraction), np.maximum(left - 1, 0)))
        left = left - rows[-1]
    return np.array([left, *rows])
