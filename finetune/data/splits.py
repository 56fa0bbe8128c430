"""Train, validation and test: their names, and which image belongs to which, so that every class has its fraction.

    split_of_name("val")                                      VALIDATION, which is 1
    has_split_folders(["train/cat/1.jpg", ...], "photos")     True
    splits = assign_splits(names, labels, given, config.data.split, classes=5, seed=0)

Folders, tables, TensorFlow datasets and `finetune init` all take the names from here. The order among equals comes
from a hash of the seed and the name of the image alone: the result is the same on every machine, and adding images
moves few others.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import SplitConfig
from finetune.data.labels import MULTILABEL, label_type_of
from finetune.data.problems import join_some
from finetune.utils import DataError

Splits = NDArray[np.int8]
TRAIN, VALIDATION, TEST = 0, 1, 2  # the numbers in `Dataset.splits`
UNASSIGNED = -1  # decided later, by the fractions and the seed of the config
SPLITS = ("train", "validation", "test")
SPELLINGS = {
    "train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST,
    "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION, "dev": VALIDATION,
}  # fmt: skip
LAYOUT = """expected one folder per class:      or a folder per split:
  photos/cat/1.jpg                     photos/train/cat/1.jpg
  photos/cat/2.jpg                     photos/val/cat/2.jpg
  photos/dog/3.jpg                     photos/test/dog/3.jpg"""


def split_of_name(name: str) -> int:
    """TRAIN, VALIDATION or TEST for a usual spelling of a split in any case, UNASSIGNED for any other name."""
    return SPELLINGS.get(name.lower(), UNASSIGNED)


def has_split_folders(names: Iterable[str], folder: str) -> bool:
    """Whether the images `names`, relative to `folder` with "/" between, lie in train/, val/ and so on.

    A class may be called `train` or `test`: the top folders are splits when all of them are called so, train among
    them. Raises DataError where train and another split stand beside folders that are no splits.
    """
    tops = {name.split("/", 1)[0].lower() for name in names if "/" in name}
    split_of = {top: SPELLINGS[top] for top in tops if top in SPELLINGS}
    if TRAIN not in split_of.values():
        return False
    if len(split_of) == len(tops):
        return True
    if len(set(split_of.values())) == 1:
        return False
    splits, others = join_some(sorted(split_of)), join_some(sorted(tops - split_of.keys()))
    raise DataError(f"{folder} has the folders {splits} beside {others}: are these splits or classes?", hint=LAYOUT)


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
