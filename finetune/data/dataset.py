"""The images of a run: every file checked, every label known, train, validation and test decided once.

    dataset = open(config.data, seed=0)
    dataset.paths(dataset.indices("train"))
    dataset.write_splits(run.splits_csv)
    dataset = reopen(config.data, run.splits_csv, run.classes_txt)    later, to go on

`sources` lists the files, `scan` decodes each once; here bad, doubled and too few images are found, all of
a kind reported together. Which split an image is in depends on the seed and its name alone, so it is the
same on every machine, and adding images moves few others.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import DataConfig, DataFacts, SplitConfig
from finetune.data.images import typical_size
from finetune.data.labels import MULTICLASS, MULTILABEL, LabelType, label_type_of
from finetune.data.scan import scan_images
from finetune.data.sources import (
    SPLITS,
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    Listing,
    Problem,
    format_problems,
    join_some,
    list_source,
    problems_error,
)
from finetune.utils import DataError, ProgressCallback, atomic_write, cache_folder, has_gpu, printable

Indices = NDArray[np.int64]
MOST_BAD = 0.05  # of the images; above that skipping them would train on something else than was meant
COLUMNS = ("path", "label", "split", "sha256")
SKIPPED = "skipped"  # in the split column: not used, and the record of it


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels. Sequences of the same length: `names`, `labels`, `splits`, `hashes`.

    `names` are relative to `root` (absolute), with "/" between; `labels` (n,) are positions in `classes`, or, where a
    image has any number of them, (n, classes) of 0 and 1; `splits` are 0 train, 1 validation, 2 test; `hashes` are
    the SHA-256 of the files; `skipped` are (name, why) of files left out.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[Any]
    splits: NDArray[np.int8]
    hashes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label_type(self) -> LabelType:
        """What the labels are."""
        return label_type_of(self.labels)

    def counts(self, split: str | None = None) -> NDArray[Any]:
        """How many images (of a split) have each class (classes,)."""
        labels = self.labels if split is None else self.labels[self.indices(split)]
        return self.label_type.counts(labels, len(self.classes))

    def text(self, index: int) -> str:
        """The label of an image in words."""
        return self.label_type.text(self.labels[index], self.classes)

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def paths(self, indices: Sequence[int] | Indices) -> list[str]:
        return [self.path(index) for index in indices]

    def indices(self, split: str) -> Indices:
        """Positions of the images in "train", "validation" or "test", in the order of `names`."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def write_splits(self, path: Path) -> None:
        """Write path, label, split and sha256 of every image and skipped file, for `read_splits`."""

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(COLUMNS)
                columns = zip(self.names, self.labels, self.splits, self.hashes, strict=True)
                for name, label, split, digest in columns:
                    table.writerow((name, self.label_type.text(label, self.classes), SPLITS[split], digest))
                table.writerows((name, "", SKIPPED, "") for name, _ in self.skipped)

        atomic_write(path, write)


def open_dataset(config: DataConfig, *, seed: int, progress: ProgressCallback | None = None) -> Dataset:
    """The data set that `config` describes, every file decoded once (or known from an earlier time).

    Raises DataError for anything that would spoil the training later. `progress(done, total)` counts files.
    """
    listing = list_source(config, progress)
    _check_classes(listing)
    dataset = _inspected(listing, config.bad_images, progress)
    dataset = replace(dataset, splits=_split(dataset, config.split, seed))
    dataset = _without_leaks(dataset, config.leaks)
    return replace(dataset, warnings=dataset.warnings + tuple(_check_counts(dataset, config.split)))


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
    wanted = SPLITS.index(split) if (listing.splits != UNASSIGNED).any() else UNASSIGNED
    kept = np.flatnonzero(listing.splits == wanted)
    if not len(kept):
        raise DataError(f"{listing.name} has no {split} split")
    number = np.array([list(classes).index(name) for name in listing.classes], np.int32)
    dataset = _inspected(
        replace(
            listing,
            classes=tuple(classes),
            names=[listing.names[index] for index in kept],
            labels=label_type_of(listing.labels).renumber(listing.labels[kept], number, len(classes))[0],
            splits=np.full(len(kept), TEST, np.int8),
        ),
        config.bad_images,
        progress,
    )
    missing = [name for name in classes if name not in listing.classes]
    note = (f"no images of {len(missing)} of the {len(classes)} classes: {join_some(missing, 5)}",) if missing else ()
    return replace(dataset, warnings=dataset.warnings + note)


# -------------------------------------------------------------------------------------------------- the files


def _inspected(listing: Listing, bad_images: str, progress: ProgressCallback | None) -> Dataset:
    """`listing` with the hash of each file and without the bad ones; splits as listed."""
    hashes: list[str] = []
    bad: dict[int, str] = {}
    remarks: Counter[str] = Counter()
    example: dict[str, str] = {}
    total = len(listing.names)
    paths = (os.path.join(listing.root, name) for name in listing.names)
    for index, inspection in enumerate(scan_images(paths, cache=cache_folder() / "scan.sqlite")):
        hashes.append(inspection.sha256)
        if inspection.reason is not None:
            bad[index] = inspection.reason
        for remark in inspection.warnings:
            remarks[remark] += 1
            example.setdefault(remark, listing.names[index])
        if progress is not None:
            progress(index + 1, total)
    if bad:
        _check_bad(listing, bad, bad_images)
    notes = (_remark(what, count, example[what]) for what, count in remarks.most_common())
    dataset = Dataset(
        listing.name,
        listing.root,
        listing.classes,
        tuple(listing.names),
        listing.labels,
        listing.splits,
        tuple(hashes),
        warnings=(*listing.warnings, *notes),
    )
    return _without(dataset, bad)


def _remark(what: str, count: int, example: str) -> str:
    return f"{count:,} image{'s' * (count > 1)}: {what} ({printable(example)})"


def _check_bad(listing: Listing, bad: dict[int, str], bad_images: str) -> None:
    """Raise for unreadable files unless they may be skipped, and for too many of them in any case."""
    items = [(printable(listing.names[index]), reason) for index, reason in bad.items()]
    what = f"{listing.name}: {len(bad):,} of {len(listing.names):,} files cannot be used"
    if bad_images == "error":
        raise problems_error(what, items, "mend or delete them, or leave them out: data.bad_images=skip")
    if len(bad) > MOST_BAD * len(listing.names):
        raise problems_error(f"{what}, more than {MOST_BAD:.0%}, too many to skip", items, "mend or delete them")
    good = np.delete(listing.labels, list(bad), axis=0)
    counts = label_type_of(good).counts(good, len(listing.classes))
    if not counts.all():
        empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
        raise problems_error(
            f"{what}, and nothing is left of {join_some(empty)}", items, "mend them, or drop the class"
        )


def _without(dataset: Dataset, out: dict[int, str]) -> Dataset:
    """`dataset` without the images `out` (index -> why), which are noted as skipped."""
    if not out:
        return dataset
    kept = np.setdiff1d(np.arange(len(dataset)), list(out))
    return replace(
        dataset,
        names=tuple(dataset.names[index] for index in kept),
        labels=dataset.labels[kept],
        splits=dataset.splits[kept],
        hashes=tuple(dataset.hashes[index] for index in kept),
        skipped=dataset.skipped + tuple((dataset.names[index], why) for index, why in out.items()),
        warnings=(*dataset.warnings, f"{_files(len(out))} left out, such as {_first(dataset, out)}"),
    )


def _files(count: int) -> str:
    return "1 file is" if count == 1 else f"{count:,} files are"


def _first(dataset: Dataset, out: dict[int, str]) -> str:
    index, why = next(iter(out.items()))
    return f"{printable(dataset.names[index])}: {why}"


# ------------------------------------------------------------------------------------------------ the classes


def _check_classes(listing: Listing) -> None:
    """Two classes at least, and in every split that the data brings along the same ones as in train."""
    if len(listing.classes) < 2:
        found = f"only the class {listing.classes[0]!r}" if listing.classes else "no class"
        raise DataError(f"{listing.name} has {found}; a classifier needs 2 at least")
    given = set(np.unique(listing.splits).tolist()) - {UNASSIGNED}
    if given and TRAIN not in given:
        raise DataError(
            f"{listing.name} has no train split, only {join_some(SPLITS[split] for split in sorted(given))}"
        )
    trained = _present(listing, TRAIN)
    for split in sorted(given - {TRAIN}):
        found_in = _present(listing, split)
        differences = [
            (what, join_some(listing.classes[label] for label in sorted(labels)))
            for what, labels in (("only there", found_in - trained), ("missing there", trained - found_in))
            if labels
        ]
        if differences:
            what = f"{listing.name}: the {SPLITS[split]} split has other classes than train"
            raise problems_error(what, differences, "complete the splits, or choose with data.classes")


def _present(listing: Listing, split: int) -> set[int]:
    """Numbers of the classes that occur in a split."""
    labels = listing.labels[listing.splits == split]
    return set(np.flatnonzero(label_type_of(labels).counts(labels, len(listing.classes))).tolist())


def _check_counts(dataset: Dataset, shares: SplitConfig) -> Iterator[str]:
    """Raise when a class cannot be trained or validated; remarks where it is only poor."""
    counts = np.stack([dataset.counts(split) for split in SPLITS], axis=1)
    lacking = [
        (name, f"{train + validation + test} in all, {train} train, {validation} validation")
        for name, (train, validation, test) in zip(dataset.classes, counts.tolist(), strict=True)
        if not train or not validation
    ]
    if lacking:
        what = f"{dataset.name}: classes with too few images, each needs one in train and one in validation"
        raise problems_error(what, lacking, "add images, or leave the class out with data.classes")
    _check_contrast(dataset)
    untested = [name for name, test in zip(dataset.classes, counts[:, TEST], strict=True) if not test]
    if untested and shares.test > 0:
        yield f"no test images of {join_some(untested, 5)}: too few images"
    least, most = counts.sum(axis=1).argmin(), counts.sum(axis=1).argmax()
    few, many = counts[least].sum(), counts[most].sum()
    if many >= 10 * few:
        yield (
            f"{dataset.classes[most]} has {many:,} images and {dataset.classes[least]} only {few:,}: "
            "look at the figures per class, the accuracy hides the small ones"
        )


def _check_contrast(dataset: Dataset) -> None:
    """Raise where every training image has the same label among others: nothing can be learned about it."""
    train = dataset.labels[dataset.indices("train")]
    if not dataset.label_type.covers_all(train, len(dataset.classes)):
        everywhere = np.flatnonzero(dataset.counts("train") == len(train))
        raise DataError(
            f"{dataset.name}: every training image has {join_some(dataset.classes[at] for at in everywhere)}",
            hint="add images without it, or leave it out with data.classes",
        )


# ------------------------------------------------------------------------------------------------- the splits


def _split(dataset: Dataset, shares: SplitConfig, seed: int) -> NDArray[np.int8]:
    """Splits as given; those not given are cut from train by `shares`, every class alike."""
    splits = dataset.splits.copy()
    given = set(np.unique(splits).tolist()) - {UNASSIGNED}
    rest = {VALIDATION: shares.validation, TEST: shares.test}  # validation first: it must have one of each, and train
    wanted = {split: share for split, share in rest.items() if split not in given and share}
    whole = shares.train + sum(wanted.values())
    pool = np.flatnonzero((splits == UNASSIGNED) | (splits == TRAIN))
    keys = np.array([_key(seed, dataset.names[index]) for index in pool], np.uint64)
    splits[pool] = dataset.label_type.assign_splits(dataset.labels[pool], keys, wanted, whole, len(dataset.classes))
    return splits


def _key(seed: int, name: str) -> int:
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _without_leaks(dataset: Dataset, leaks: str) -> Dataset:
    """Look for one image in two splits or with two labels, and warn, raise or drop."""
    out: dict[int, str] = {}
    pairs: list[Problem] = []
    for group in _same_content(dataset.hashes):
        labels, splits = dataset.labels[group], dataset.splits[group]
        if (labels != labels[0]).any():
            dropped = group  # nobody knows which label is right
        else:
            dropped = [index for index in group if dataset.splits[index] < splits.max()]  # the test stays as it is
        if dropped:
            pairs.append((" = ".join(_where(dataset, index) for index in group[:3]), ""))
            out |= {index: f"the same image as {printable(dataset.names[_other(group, index)])}" for index in dropped}
    if not pairs:
        return dataset
    images = "1 image is" if len(pairs) == 1 else f"{len(pairs):,} images are"
    what = f"{dataset.name}: {images} in two splits or two classes"
    if leaks == "error":
        raise problems_error(what, pairs, "delete the doubles, or let them be dropped: data.leaks=drop")
    if leaks == "drop":
        return _without(dataset, out)
    warning = f"{what}; data.leaks=drop drops them:{format_problems(pairs, 3)}"
    return replace(dataset, warnings=(*dataset.warnings, warning))


def _same_content(hashes: Sequence[str]) -> Iterator[list[int]]:
    """Groups of indices with equal hashes."""
    starts = np.array([int(digest[:16], 16) for digest in hashes], np.uint64)  # 8 bytes tell millions apart
    order = np.argsort(starts, kind="stable")
    edges = np.concatenate(([0], np.flatnonzero(np.diff(starts[order])) + 1, [len(order)]))
    for run in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[run] : edges[run + 1]].tolist()


def _where(dataset: Dataset, index: int) -> str:
    return f"{printable(dataset.names[index])} ({SPLITS[dataset.splits[index]]}, {dataset.text(index)})"


def _other(group: Sequence[int], index: int) -> int:
    return next(other for other in reversed(group) if other != index)


# ------------------------------------------------------------------------------------------------- from a run


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

    DataError lists changed and vanished files. With `accept_changes` it goes on with what is there now: a changed
    image with its new content, one that vanished or cannot be read any more is left out, and none changes its split.
    """
    listing = list_source(config)
    known = read_splits(splits_csv, classes_txt, listing.root, label_type_of(listing.labels))
    dataset = replace(known, name=listing.name)
    hashes: list[str] = []
    changed: list[Problem] = []
    lost: dict[int, str] = {}
    scanned = scan_images(map(dataset.path, range(len(dataset))), cache=cache_folder() / "scan.sqlite")
    for index, inspection in enumerate(scanned):
        hashes.append(inspection.sha256)
        if inspection.reason is not None:
            lost[index] = inspection.reason
        if index in lost or inspection.sha256 != dataset.hashes[index]:
            changed.append((printable(dataset.names[index]), inspection.reason or "its content has changed"))
        if progress is not None:
            progress(index + 1, len(dataset))
    noted = {*dataset.names, *(name for name, _ in dataset.skipped)}
    new = [name for name in listing.names if name not in noted]
    notes = [f"{len(new):,} images are new since the run began and not used: {join_some(new, 3)}"] if new else []
    if not changed:
        return replace(dataset, warnings=tuple(notes))
    what = f"{listing.name}: {len(changed):,} of {len(dataset):,} images are not what they were"
    if not accept_changes:
        raise problems_error(what, changed, hint)
    dataset = _without(replace(dataset, hashes=tuple(hashes)), lost)
    shares = config.split if len(dataset.indices("test")) else config.split.model_copy(update={"test": 0.0})
    notes += [f"{what}, and that is accepted:{format_problems(changed, 3)}", *_check_counts(dataset, shares)]
    return replace(dataset, warnings=tuple(notes))


def read_splits(splits_csv: Path, classes_txt: Path, root: Path, label_type: LabelType = MULTICLASS) -> Dataset:
    """What `Dataset.write_splits` wrote; nothing is looked at below `root`."""
    try:
        classes = tuple(classes_txt.read_text("utf-8").splitlines())
        with splits_csv.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return _parse(file, classes, root, label_type)
    except OSError as error:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}") from None
    except (csv.Error, ValueError, KeyError) as error:
        raise DataError(f"{printable(splits_csv)} is damaged: {printable(str(error))}") from None


def _parse(file: IO[str], classes: tuple[str, ...], root: Path, label_type: LabelType) -> Dataset:
    rows = csv.reader(file)
    if tuple(next(rows, ())) != COLUMNS:
        raise ValueError(f"its first line is not {','.join(COLUMNS)}")
    number = {name: index for index, name in enumerate(classes)}
    names: list[str] = []
    hashes: list[str] = []
    labels: list[str] = []
    splits: list[int] = []
    skipped: list[tuple[str, str]] = []
    for name, label, split, digest in rows:
        if split == SKIPPED:
            skipped.append((name, ""))
            continue
        names.append(name)
        hashes.append(digest)
        labels.append(label)
        splits.append(SPLITS.index(split))
    return Dataset(
        root.name,
        root,
        classes,
        tuple(names),
        label_type.parse(labels, number),
        np.array(splits, np.int8),
        tuple(hashes),
        tuple(skipped),
    )


# ------------------------------------------------------------------------------------------- for `recipe: auto`


def data_facts(dataset: Dataset, device: str = "auto") -> DataFacts:
    """What `recipe: auto` looks at in `dataset` and in the machine, used as the config's `device` says.

    The headers of a few images are read.
    """
    train = dataset.indices("train")
    return DataFacts(
        images=len(train),
        classes=len(dataset.classes),
        size=typical_size(dataset.paths(train)),
        multi_label=dataset.label_type is MULTILABEL,
        gpu=device != "cpu" and has_gpu(),
    )
