"""What would spoil a training is an error or a warning before it: classes with too few images, and leaks.

A leak is one image in two splits, which makes a test too easy, or with two labels, one of which is wrong: files of
equal content, and images that only look the same (see `duplicates`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from finetune.config import SplitConfig
from finetune.data.dataset import Dataset
from finetune.data.duplicates import (
    MIN_FINGERPRINT_SIMILARITY,
    find_copies_in_later_splits,
    find_near_duplicates,
    fingerprint_vectors,
)
from finetune.data.labels import label_type_of
from finetune.data.listing import Listing
from finetune.data.problems import Problem, format_problems, join_some, problems_error
from finetune.data.splits import SPLITS, TEST, TRAIN, UNASSIGNED, VALIDATION
from finetune.utils import DataError, format_count, printable

Leaks = Literal["warn", "error", "drop", "drop_near_duplicates"]  # data.leaks
IMBALANCE = 10  # the largest class may have so many times the images of the smallest before a warning


def require_two_classes(listing: Listing, hint: str = "") -> None:
    """Raises DataError, with `hint`, when there are fewer than two classes."""
    if len(listing.classes) < 2:
        has = f"only the class {listing.classes[0]!r}" if listing.classes else "no class"
        raise DataError(f"{listing.name} has {has}; a classifier needs 2 at least", hint=hint)


def check_split_classes(listing: Listing) -> None:
    """Raises DataError unless the splits that the data brings along include train, and train has all their classes.

    A split that lacks classes is no error: see the remarks of `check_class_counts`.
    """
    given = sorted(set(np.unique(listing.splits).tolist()) - {UNASSIGNED})
    if given and TRAIN not in given:
        names = join_some(SPLITS[split] for split in given)
        raise DataError(f"{listing.name} has no train split, only {names}")
    in_train = _classes_in(listing, TRAIN)
    for split in given:
        if only_there := sorted(_classes_in(listing, split) - in_train):
            raise DataError(
                f"{listing.name}: the {SPLITS[split]} split has classes that train lacks: "
                f"{join_some(listing.classes[number] for number in only_there)}",
                hint="add training images of them, or choose classes with data.classes",
            )


def _classes_in(listing: Listing, split: int) -> set[int]:
    """Numbers of the classes that occur in a split."""
    labels = listing.labels[listing.splits == split]
    return set(np.flatnonzero(label_type_of(labels).counts(labels, len(listing.classes))).tolist())


def check_class_counts(dataset: Dataset, fractions: SplitConfig) -> list[str]:
    """Warnings about classes with few images. Raises DataError when a class cannot be trained or validated."""
    counts = np.stack([dataset.counts(split) for split in SPLITS], axis=1)  # (classes, splits)
    lacking = [
        (name, f"{train + validation + test} in all, {train} train, {validation} validation")
        for name, (train, validation, test) in zip(dataset.classes, counts.tolist(), strict=True)
        if not train or train + validation < 2
    ]
    if lacking:
        what = f"{dataset.name}: classes with too few images, each needs two beside the test images"
        raise problems_error(what, lacking, "add images, or leave the class out with data.classes")
    train_labels = dataset.labels[dataset.indices("train")]
    if not dataset.label_type.covers_all(train_labels, len(dataset.classes)):  # several labels, one on every image
        everywhere = np.flatnonzero(counts[:, TRAIN] == len(train_labels))
        raise DataError(
            f"{dataset.name}: every training image has {join_some(dataset.classes[number] for number in everywhere)}",
            hint="add images without it, or leave it out with data.classes",
        )
    warnings = []
    for split, consequence in ((VALIDATION, "the best epoch is chosen without"), (TEST, "nothing is measured about")):
        absent = [name for name, count in zip(dataset.classes, counts[:, split], strict=True) if not count]
        if absent and (split == VALIDATION or fractions.test > 0):
            some = "it" if len(absent) == 1 else "them"
            warnings.append(
                f"no {SPLITS[split]} images of {len(absent):,} of the {len(dataset.classes):,} classes "
                f"({join_some(absent, 5)}): {consequence} {some}"
            )
    totals = counts.sum(axis=1)
    least, most = totals.argmin(), totals.argmax()
    if totals[most] >= IMBALANCE * totals[least]:
        warnings.append(
            f"{dataset.classes[most]} has {totals[most]:,} images and {dataset.classes[least]} only "
            f"{totals[least]:,}: look at the figures per class, the accuracy hides the small ones"
        )
    return warnings


def handle_leaks(dataset: Dataset, leaks: Leaks) -> Dataset:
    """`dataset` with a warning that names the leaks, or without them (`drop`); DataError with `error`.

    Of an image in two splits the copy in the later split stays, so that the test is kept whole. Of an image with two
    labels no copy stays, because nobody knows which label is correct.
    """
    leaking: dict[int, str] = {}
    examples: list[Problem] = []
    for group in _same_content(dataset.hashes):
        labels, splits = dataset.labels[group], dataset.splits[group]
        if (labels != labels[0]).any():
            dropped, why = group, "the same image has another label:"
        else:
            why = "the same image as"
            dropped = [index for index in group if dataset.splits[index] < splits.max()]
        if dropped:
            examples.append((" = ".join(_describe(dataset, index) for index in group[:3]), ""))
        for index in dropped:
            other = group[-1] if group[-1] != index else group[-2]
            leaking[index] = f"{why} {printable(dataset.names[other])}"
    if not examples:
        return dataset
    what = f"{dataset.name}: {format_count(len(examples), 'image is', 'images are')} in two splits or two classes"
    if leaks == "error":
        raise problems_error(what, examples, "delete the copies, or let them be dropped: data.leaks=drop")
    if leaks in ("drop", "drop_near_duplicates"):
        return dataset.without(leaking)
    warning = f"{what}; data.leaks=drop drops them:{format_problems(examples, 3)}"
    return replace(dataset, warnings=(*dataset.warnings, warning))


def handle_near_duplicates(dataset: Dataset, leaks: Leaks) -> Dataset:
    """`dataset` with a warning about images that look the same in two splits or classes, or without the former.

    They are dropped with `drop_near_duplicates` alone: fingerprints may be wrong, and two labels may both be correct.
    Of two splits the later one is kept whole.
    """
    vectors = fingerprint_vectors(dataset.fingerprints)
    if leaks == "drop_near_duplicates":
        copies = find_copies_in_later_splits(vectors, dataset.splits)
        return dataset.without(
            {
                position: f"looks like {printable(dataset.names[other])} ({SPLITS[dataset.splits[other]]})"
                for position, other in copies.items()
            }
        )
    groups = dataset.label_type.group_ids(dataset.labels)
    similar, _ = find_near_duplicates(vectors, groups, dataset.splits, min_similarity=MIN_FINGERPRINT_SIMILARITY)
    pairs = [(pair.first, pair.second) for pair in similar if dataset.hashes[pair.first] != dataset.hashes[pair.second]]
    if not pairs:
        return dataset
    across = sum(dataset.splits[first] != dataset.splits[second] for first, second in pairs)
    of_two = sum(groups[first] != groups[second] for first, second in pairs)
    consequences = []
    if across:
        consequences.append(
            f"{across:,} in two splits, so the test may be too easy (data.leaks=drop_near_duplicates drops the copy in "
            "train)"
        )
    if of_two:
        consequences.append(f"{of_two:,} of two classes, so a label may be wrong")
    examples = [(f"{_describe(dataset, first)} ~ {_describe(dataset, second)}", "") for first, second in pairs]
    what = f"{dataset.name}: {format_count(len(pairs), 'pair')} of near-duplicate images: {'; '.join(consequences)}"
    return replace(dataset, warnings=(*dataset.warnings, f"{what}:{format_problems(examples, 3)}"))


def _describe(dataset: Dataset, index: int) -> str:
    return f"{printable(dataset.names[index])} ({SPLITS[dataset.splits[index]]}, {dataset.text(index)})"


def _same_content(hashes: Sequence[str]) -> Iterator[list[int]]:
    """Groups of indices with equal hashes."""
    starts = np.array([int(digest[:16], 16) for digest in hashes], np.uint64)  # 8 bytes are unique among millions
    order = np.argsort(starts, kind="stable")
    edges = np.concatenate(([0], np.flatnonzero(np.diff(starts[order])) + 1, [len(order)]))
    for run in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[run] : edges[run + 1]].tolist()
