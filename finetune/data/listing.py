"""The images of a source with their labels, before any of them is opened."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.labels import MULTICLASS, MULTILABEL, SEPARATOR, label_type_of
from finetune.data.problems import join_some
from finetune.utils import DataError, did_you_mean, printable


@dataclass(frozen=True)
class Listing:
    """The images of a source. `names[i]`, relative to `root`, has the label `labels[i]`."""

    name: str
    root: Path  # absolute
    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[Any]  # (n,) class numbers, or (n, classes) of 0 and 1
    splits: NDArray[np.int8]  # (n,) TRAIN, VALIDATION, TEST or UNASSIGNED
    warnings: list[str] = field(default_factory=list)

    def select_classes(self, classes: tuple[str, ...]) -> "Listing":
        """Only the images of these classes, numbered in this order. Raises DataError for an unknown class."""
        if unknown := [name for name in classes if name not in self.classes]:
            hint = did_you_mean(unknown[0], self.classes) or f" There are: {join_some(self.classes)}."
            raise DataError(f"data.classes: {self.name} has no class {', '.join(map(repr, unknown))}.{hint}")
        number_of = np.full(len(self.classes), -1, np.int32)  # -1 drops a class
        number_of[[self.classes.index(name) for name in classes]] = np.arange(len(classes))
        labels, kept = label_type_of(self.labels).renumber(self.labels, number_of, len(classes))
        names = [self.names[index] for index in kept]
        return replace(self, classes=classes, names=names, labels=labels, splits=self.splits[kept])


def list_multiclass(
    name: str, root: Path, names: list[str], labels: Sequence[str], splits: Sequence[int], warnings: Sequence[str] = ()
) -> Listing:
    """A listing where `labels` are class names; classes are in alphabetical order, as in torchvision and Keras."""
    order = sorted(set(labels))
    numbers = MULTICLASS.parse(labels, {label: number for number, label in enumerate(order)})
    classes = tuple(map(printable, order))  # printable, because classes.txt has one on each line
    warnings = [*warnings, *(f"are these one class? {twins}" for twins in _similar_names(classes))]
    return Listing(name, root, classes, names, numbers, np.array(splits, np.int8), warnings)


def list_multilabel(
    name: str,
    root: Path,
    names: list[str],
    labels: Sequence[str],
    splits: Sequence[int],
    columns: Sequence[str] | None = None,
) -> Listing:
    """A listing where each of `labels` is any number of names with `|` between, in the order of `columns` if given."""
    cells = [[label.strip() for label in cell.split(SEPARATOR)] for cell in labels]
    order = list(columns or sorted({label for cell in cells for label in cell if label}))
    number_of = {label: number for number, label in enumerate(order)}
    ticks = MULTILABEL.parse([SEPARATOR.join(cell) for cell in cells], number_of)
    classes = tuple(map(printable, order))
    warnings = [f"are these one label? {twins}" for twins in _similar_names(classes)]
    if (ticks.sum(axis=1) == 1).all():
        how = "" if columns else f"; several labels in one cell have a {SEPARATOR} between them"
        warnings.append(f"every image has exactly one label, where data.multi_label expects any number{how}")
    return Listing(name, root, classes, names, ticks, np.array(splits, np.int8), warnings)


def _similar_names(classes: Sequence[str]) -> list[str]:
    """Groups of names that differ only in case, in spaces or in how accents are encoded."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        key = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        groups.setdefault(key, []).append(name)
    return [join_some(map(repr, group)) for group in groups.values() if len(group) > 1]
