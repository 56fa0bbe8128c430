"""Train, validation and test: their names, and which image belongs to which.

    split_of_name("val")                                      VALIDATION, which is 1
    has_split_folders(["train/cat/1.jpg", ...], "photos")     True
    splits = assign_splits(hashes, labels, given, config.data.split, classes=5, seed=0)

Folders, tables, TensorFlow datasets and `finetune init` all take the names from here. The split of an image is drawn
by its content and the seed alone: it is the same on every machine and under every name, copies of an image have it too,
and adding or removing other images does not change it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import SplitConfig
from finetune.data.labels import MULTILABEL, label_type_of
from finetune.data.problems import join_some
from finetune.utils import DataError, UsageError, did_you_mean

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


def require_split(name: str) -> int:
    """TRAIN, VALIDATION or TEST. UsageError for a name that is no usual spelling of one."""
    if (split := split_of_name(name)) == UNASSIGNED:
        raise UsageError(
            f"there is no split {name!r}.{did_you_mean(name, SPLITS)}", hint=f"Known: {', '.join(SPLITS)}."
        )
    return split


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
    hashes: Sequence[str],
    labels: NDArray[Any],
    given: Splits,
    fractions: SplitConfig,
    *,
    classes: int,
    seed: int,
) -> Splits:
    """The split of each image (n,): as `given`, and what is missing is cut from train by `fractions`.

    `given` holds TRAIN, VALIDATION, TEST or UNASSIGNED; `labels` are (n,) class numbers or (n, classes) of 0 and 1;
    `hashes` are of the images' content. Each image has a place between 0 and 1: below the fraction of test it is a test
    image, from 1 less the fraction of validation on a validation image. So the sizes of the splits vary by chance, as
    those of a binomial distribution do. Only where chance leaves a class out of a split, see `_fill_gaps`.
    """
    splits = given.copy()
    present = set(np.unique(splits).tolist())
    by_split = {VALIDATION: fractions.validation, TEST: fractions.test}
    missing = {split: fraction for split, fraction in by_split.items() if split not in present and fraction}
    whole = fractions.train + sum(missing.values())
    first_train, first_validation = missing.get(TEST, 0) / whole, 1 - missing.get(VALIDATION, 0) / whole
    pool = np.flatnonzero((splits == UNASSIGNED) | (splits == TRAIN))
    places = np.array([_place(seed, hashes[index]) for index in pool.tolist()])
    drawn = np.select([places < first_train, places >= first_validation], [TEST, VALIDATION], TRAIN).astype(np.int8)
    centres = {TRAIN: (first_train + first_validation) / 2, VALIDATION: 1.0, TEST: 0.0}  # the most needed first
    wanted = {split: centre for split, centre in centres.items() if split == TRAIN or split in missing}
    splits[pool] = _fill_gaps(drawn, places, labels[pool], wanted, classes)
    return splits


def _place(seed: int, image: str) -> float:
    """Where the image with this hash lies between 0 and 1."""
    digest = hashlib.blake2b(f"{seed}/{image}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _fill_gaps(
    splits: Splits, places: NDArray[np.float64], labels: NDArray[Any], wanted: Mapping[int, float], classes: int
) -> Splits:
    """`splits` (n,) with an image of every class in each of `wanted`, as far as there are enough images.

    `wanted` maps splits, the most needed first, to a place. A split that lacks a class gets its image nearest to that
    place from another split that has two, or that is needed less. No other image is moved.
    """
    splits, order = splits.copy(), list(wanted)
    row_of = np.zeros(3, int)
    row_of[order] = np.arange(len(order))
    label_type = label_type_of(labels)
    counts = np.stack([label_type.counts(labels[splits == split], classes) for split in order])  # (wanted, classes)
    for number in np.argsort(counts.sum(axis=0), kind="stable"):  # the rarest first
        for row, split in enumerate(order):
            if counts[row, number]:
                continue
            members = label_type.indices_with(labels, number)
            donors = row_of[splits[members]]
            movable = (counts[donors, number] > 1) | (donors > row)
            if label_type is MULTILABEL:  # nor must the donor lose another label
                others = labels[members].astype(bool)
                others[:, number] = False
                movable &= ~(others & (counts[donors] < 2)).any(axis=1)
            if movable.any():
                image = members[movable][np.abs(places[members[movable]] - wanted[split]).argmin()]
                moved = label_type.counts(labels[image : image + 1], classes)
                counts[row_of[splits[image]]] -= moved
                counts[row] += moved
                splits[image] = split
    return splits
