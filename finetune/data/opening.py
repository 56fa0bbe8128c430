"""From a config to a `Dataset`: every file checked, every label known, train, validation and test decided once.

    dataset = open_dataset(config.data, seed=0)
    dataset = open_labelled_dataset(config.data, classifier.classes)              to measure a classifier on
    dataset = reopen_dataset(config.data, run.splits_csv, run.classes_txt)        to resume a run

`sources` lists the files, `scan` decodes each once. Bad, leaking and too few images are errors or warnings here, and
all of a kind are reported at once, before training starts.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.config import Config, DataConfig
from finetune.data.checks import (
    check_class_counts,
    check_split_classes,
    handle_leaks,
    handle_near_duplicates,
    require_two_classes,
)
from finetune.data.dataset import Dataset, read_splits
from finetune.data.labels import label_type_of
from finetune.data.listing import Listing
from finetune.data.problems import Problem, format_problems, join_some, problems_error
from finetune.data.scan import scan_images
from finetune.data.sources import list_source
from finetune.data.splits import LAYOUT, SPLITS, TEST, UNASSIGNED, assign_splits
from finetune.utils import DataError, ProgressCallback, format_count, printable

MAX_BAD = 0.05  # fraction of bad images; without more of them the data would not be what was meant


def open_dataset(config: DataConfig, *, seed: int, progress: ProgressCallback | None = None) -> Dataset:
    """The data set that `config` describes, with every file decoded once, now or at an earlier scan.

    Raises DataError for anything that would spoil the training later. `progress(done, total)` counts files.
    """
    listing = list_source(config, progress)
    require_two_classes(listing)
    check_split_classes(listing)
    dataset = _with_splits(_scan_listing(listing, config, progress), config, seed)
    dataset = handle_near_duplicates(handle_leaks(dataset, config.leaks), config.leaks)
    warnings = check_class_counts(dataset, config.split)
    return replace(dataset, warnings=(*dataset.warnings, *warnings))


def check_listing(listing: Listing, config: Config) -> None:
    """Raises the DataError that `open_dataset` would raise about classes and splits, without a look at the files.

    How many images of a class are in a split depends on their content, that there is one does not.
    """
    require_two_classes(listing, hint=LAYOUT)
    check_split_classes(listing)
    dataset = _dataset_of(listing, hashes=listing.names)
    check_class_counts(_with_splits(dataset, config.data, config.seed), config.data.split)


def _with_splits(dataset: Dataset, config: DataConfig, seed: int) -> Dataset:
    classes = len(dataset.classes)
    splits = assign_splits(dataset.hashes, dataset.labels, dataset.splits, config.split, classes=classes, seed=seed)
    return replace(dataset, splits=splits)


def _dataset_of(listing: Listing, hashes: Sequence[str]) -> Dataset:
    return Dataset(
        name=listing.name,
        root=listing.root,
        classes=listing.classes,
        names=tuple(listing.names),
        labels=listing.labels,
        splits=listing.splits,
        hashes=tuple(hashes),
    )


def open_labelled_dataset(
    config: DataConfig, classes: Sequence[str], *, split: str = "test", progress: ProgressCallback | None = None
) -> Dataset:
    """Images to measure a classifier of these `classes` on, all of them in the test split.

    Where the data brings splits of its own, only those of `split` are taken. Classes without images are
    fine, as are classes in another order; DataError names those that the classifier does not know.
    """
    listing = list_source(config, progress)
    if unknown := [name for name in listing.classes if name not in classes]:
        raise DataError(
            f"{listing.name} has classes that the model does not know: {join_some(unknown)}",
            hint=f"it knows: {join_some(classes)}",
        )
    number = SPLITS.index(split) if (listing.splits != UNASSIGNED).any() else UNASSIGNED
    kept = np.flatnonzero(listing.splits == number)
    if not len(kept):
        raise DataError(f"{listing.name} has no {split} split")
    number_of = np.array([list(classes).index(name) for name in listing.classes], np.int32)
    renumbered, _ = label_type_of(listing.labels).renumber(listing.labels[kept], number_of, len(classes))
    selected = replace(
        listing,
        classes=tuple(classes),
        names=[listing.names[index] for index in kept],
        labels=renumbered,
        splits=np.full(len(kept), TEST, np.int8),
    )
    dataset = _scan_listing(selected, config, progress)
    missing = [name for name in classes if name not in listing.classes]
    if not missing:
        return dataset
    warning = f"no images of {len(missing)} of the {len(classes)} classes: {join_some(missing, 5)}"
    return replace(dataset, warnings=(*dataset.warnings, warning))


def _scan_listing(listing: Listing, config: DataConfig, progress: ProgressCallback | None) -> Dataset:
    """`listing` with the hash of each file and without the bad ones; splits as listed."""
    hashes: list[str] = []
    fingerprints: list[str] = []
    bad: dict[int, str] = {}
    remarks: Counter[str] = Counter()
    example_of: dict[str, str] = {}
    paths = (os.path.join(listing.root, name) for name in listing.names)
    for index, inspection in enumerate(scan_images(paths)):
        hashes.append(inspection.sha256)
        fingerprints.append(inspection.fingerprint)
        if inspection.reason is not None:
            bad[index] = inspection.reason
        for remark in inspection.warnings:
            remarks[remark] += 1
            example_of.setdefault(remark, listing.names[index])
        if progress is not None:
            progress(index + 1, len(listing.names))
    if bad:
        _check_bad_images(listing, bad, config)
    warnings = list(listing.warnings)
    for remark, count in remarks.most_common():
        warnings.append(f"{format_count(count, 'image')}: {remark} ({printable(example_of[remark])})")
    dataset = _dataset_of(listing, hashes)
    return replace(dataset, fingerprints=tuple(fingerprints), warnings=tuple(warnings)).without(bad)


def _check_bad_images(listing: Listing, bad: Mapping[int, str], config: DataConfig) -> None:
    """Raise for unreadable files unless they may be skipped, and for too many of them in any case."""
    items = [(printable(listing.names[index]), reason) for index, reason in bad.items()]
    what = f"{listing.name}: {len(bad):,} of {len(listing.names):,} files cannot be used"
    if config.bad_images == "error":
        raise problems_error(what, items, "fix or delete them, or leave them out: data.bad_images=skip")
    if len(bad) > MAX_BAD * len(listing.names):
        raise problems_error(f"{what}, more than {MAX_BAD:.0%}, too many to skip", items, "fix or delete them")
    usable = np.delete(listing.labels, list(bad), axis=0)
    counts = label_type_of(usable).counts(usable, len(listing.classes))
    if empty := [name for name, count in zip(listing.classes, counts, strict=True) if not count]:
        raise problems_error(f"{what}, and nothing is left of {join_some(empty)}", items, "fix them, or drop the class")


def reopen_dataset(
    config: DataConfig,
    splits_csv: Path,
    classes_txt: Path,
    *,
    accept_changes: bool = False,
    hint: str = "bring them back, or start a new run",
    progress: ProgressCallback | None = None,
) -> Dataset:
    """The data set of a run as it was when the run began.

    Raises DataError that lists changed and vanished files. With `accept_changes` the files are taken as they are now:
    a changed image with its new content, while one that vanished or became unreadable is left out. No image
    changes its split.
    """
    listing = list_source(config)
    dataset = read_splits(splits_csv, classes_txt, listing.root, label_type_of(listing.labels))
    dataset = replace(dataset, name=listing.name)
    hashes: list[str] = []
    fingerprints: list[str] = []
    changed: list[Problem] = []
    lost: dict[int, str] = {}
    for index, inspection in enumerate(dataset.scan()):
        hashes.append(inspection.sha256)
        fingerprints.append(inspection.fingerprint)
        if inspection.reason is not None:
            lost[index] = inspection.reason
        if index in lost or inspection.sha256 != dataset.hashes[index]:
            changed.append((printable(dataset.names[index]), inspection.reason or "its content has changed"))
        if progress is not None:
            progress(index + 1, len(dataset))
    dataset = replace(dataset, fingerprints=tuple(fingerprints))
    known = {*dataset.names, *(name for name, _ in dataset.skipped)}
    new = [name for name in listing.names if name not in known]
    warnings = [f"{len(new):,} images are new since the run began and not used: {join_some(new, 3)}"] if new else []
    if not changed:
        return replace(dataset, warnings=tuple(warnings))
    what = f"{listing.name}: {len(changed):,} of {len(dataset):,} images are not what they were"
    if not accept_changes:
        raise problems_error(what, changed, hint)
    dataset = replace(dataset, hashes=tuple(hashes)).without(lost)
    fractions = config.split if len(dataset.indices("test")) else config.split.model_copy(update={"test": 0.0})
    warnings.append(f"{what}, and that is accepted:{format_problems(changed, 3)}")
    return replace(dataset, warnings=(*warnings, *check_class_counts(dataset, fractions)))
