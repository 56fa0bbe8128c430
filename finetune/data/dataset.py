"""`Dataset`: the images of a run with their labels and splits; written to a run's splits.csv and read from there.

    dataset.paths(dataset.indices("train"))
    dataset.write_splits(run.splits_csv)
    dataset = read_splits(run.splits_csv, run.classes_txt, root)

`opening` makes one from a config.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import DataFacts
from finetune.data.duplicates import distinct_images
from finetune.data.inspection import Inspection, typical_size
from finetune.data.labels import MULTICLASS, MULTILABEL, LabelType, label_type_of
from finetune.data.problems import join_some
from finetune.data.scan import scan_images
from finetune.data.splits import SPLITS, require_split
from finetune.utils import DataError, atomic_write, format_count, has_gpu, printable

Indices = NDArray[np.int64]
COLUMNS = ("path", "label", "split", "sha256")
SKIPPED = "skipped"  # in the split column, for a file that is not used


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels. `names`, `labels`, `splits` and `hashes` have one item per image.

    `names` are relative to `root` (absolute), with "/" between; `labels` are (n,) positions in `classes`, or, where an
    image has any number of them, (n, classes) of 0 and 1; `splits` are 0 train, 1 validation, 2 test; `hashes` are
    the SHA-256 of the files; `skipped` are (name, reason) of files left out. `fingerprints` say what the images look
    like (see `inspect_image`); they are empty if the images have not been looked at.
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
    fingerprints: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label_type(self) -> LabelType:
        """Whether an image has one class or any number of labels."""
        return label_type_of(self.labels)

    def counts(self, split: str | None = None) -> NDArray[Any]:
        """How many images, of all or of one split, have each class (classes,)."""
        labels = self.labels if split is None else self.labels[self.indices(split)]
        return self.label_type.counts(labels, len(self.classes))

    def text(self, index: int) -> str:
        """The label of an image in words."""
        return self.label_type.text(self.labels[index], self.classes)

    def path(self, index: int) -> str:
        """The absolute path of an image."""
        return os.path.join(self.root, self.names[index])

    def paths(self, indices: Sequence[int] | Indices) -> list[str]:
        """The absolute paths of several images."""
        return [self.path(index) for index in indices]

    def indices(self, split: str) -> Indices:
        """Positions of the images in "train", "validation" or "test" (or "val" ...), in the order of `names`."""
        return np.flatnonzero(self.splits == require_split(split))

    def distinct(self, split: str) -> Indices:
        """Positions of the different images of a split: of copies and near-copies with one label, only the first."""
        if split not in self._distinct:
            indices = self.indices(split)
            hashes = [self.hashes[index] for index in indices]
            fingerprints = [self.fingerprints[index] if self.fingerprints else "" for index in indices]
            labels = self.label_type.group_ids(self.labels[indices])
            self._distinct[split] = indices[distinct_images(hashes, fingerprints, labels)]
        return self._distinct[split]

    @cached_property
    def _distinct(self) -> dict[str, Indices]:
        """What `distinct` returns; many figures ask for it."""
        return {}

    def scan(self, indices: Sequence[int] | Indices | None = None) -> Iterator[Inspection]:
        """An `Inspection` of every image, or of those at `indices`, as the files are now."""
        return scan_images(map(self.path, range(len(self)) if indices is None else indices))

    def without(self, reasons: Mapping[int, str]) -> "Dataset":
        """This data set without the images at the keys of `reasons`, which are noted as skipped, with a warning."""
        if not reasons:
            return self
        kept = np.setdiff1d(np.arange(len(self)), list(reasons))
        skipped = tuple((self.names[index], reason) for index, reason in reasons.items())
        files = format_count(len(reasons), "file is", "files are")
        name, reason = skipped[0]
        return replace(
            self,
            names=tuple(self.names[index] for index in kept),
            labels=self.labels[kept],
            splits=self.splits[kept],
            hashes=tuple(self.hashes[index] for index in kept),
            fingerprints=tuple(self.fingerprints[index] for index in kept if self.fingerprints),
            skipped=self.skipped + skipped,
            warnings=(*self.warnings, f"{files} left out, such as {printable(name)}: {reason}"),
        )

    def write_splits(self, path: Path) -> None:
        """Write path, label, split and sha256 of every image and skipped file, for `read_splits`."""

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(COLUMNS)
                for index, name in enumerate(self.names):
                    table.writerow((name, self.text(index), SPLITS[self.splits[index]], self.hashes[index]))
                table.writerows((name, "", SKIPPED, "") for name, _ in self.skipped)

        atomic_write(path, write)


def read_splits(splits_csv: Path, classes_txt: Path, root: Path, label_type: LabelType = MULTICLASS) -> Dataset:
    """What `Dataset.write_splits` wrote, without a look at the images below `root`.

    Raises DataError when a file cannot be read or is damaged.
    """
    try:
        classes = tuple(classes_txt.read_text("utf-8").splitlines())
        rows = _read_rows(splits_csv)
        used = [(name, label, SPLITS.index(split), digest) for name, label, split, digest in rows if split != SKIPPED]
        number_of = {name: number for number, name in enumerate(classes)}
        return Dataset(
            name=root.name,
            root=root,
            classes=classes,
            names=tuple(row[0] for row in used),
            labels=label_type.parse([row[1] for row in used], number_of),
            splits=np.array([row[2] for row in used], np.int8),
            hashes=tuple(row[3] for row in used),
            skipped=tuple((row[0], "") for row in rows if row[2] == SKIPPED),
        )
    except OSError as error:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}") from None
    except (csv.Error, ValueError, KeyError) as error:
        raise DataError(f"{printable(splits_csv)} is damaged: {printable(str(error))}") from None


def read_image_names(splits_csv: Path) -> dict[tuple[str, str, str], str]:
    """{(SHA-256, split, name): name} of the images of a run or a sweep; empty if the file is not there or damaged."""
    try:
        rows = _read_rows(splits_csv)
        return {(digest, split, name): name for name, _, split, digest in rows if split != SKIPPED}
    except (OSError, csv.Error, ValueError):
        return {}


def _read_rows(splits_csv: Path) -> list[list[str]]:
    with splits_csv.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows.pop(0)) != COLUMNS:
        raise ValueError(f"its first line is not {','.join(COLUMNS)}")
    return rows


def describe_changes(before: Mapping[Any, str], now: Mapping[Any, str]) -> str:
    """Which images `now` has and `before` has not, and the reverse: `2 added (a.jpg, b.jpg), 1 removed (c.jpg)`.

    Images are the same if their keys are equal; the values are their names. Empty where nothing changed.
    """
    differences = {
        "added": [name for key, name in now.items() if key not in before],
        "removed": [name for key, name in before.items() if key not in now],
    }
    return ", ".join(f"{len(names):,} {what} ({join_some(names, 3)})" for what, names in differences.items() if names)


def data_facts(dataset: Dataset, device: str = "auto") -> DataFacts:
    """What `recipe: auto` is decided by: facts about `dataset`, and whether the config's `device` is a GPU.

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
