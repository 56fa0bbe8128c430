"""Where images and their classes come from: a folder, a table, a TensorFlow dataset, a package.

    listing = find(config.data)         names, classes, and the splits that the data brings along

Nothing is decoded here and nothing is written beside the data. To add a kind of source, add a key to
`config.Data` and a function to `SOURCES`.
"""

import csv
import os
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import DataConfig
from finetune.data.image_formats import IMAGE_SUFFIXES
from finetune.data.images import list_images
from finetune.data.labels import MULTILABEL, SEPARATOR, label_type_of
from finetune.data.tfds import CLASSES, TABLE, prepare_digits, prepare_tfds
from finetune.utils import DataError, ProgressCallback, csv_cell, did_you_mean, printable

Problem = tuple[str, str]  # where, and what is wrong there; fit for a terminal
TRAIN, VALIDATION, TEST, UNASSIGNED = 0, 1, 2, -1  # OPEN: to be decided by shares and seed
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {
    "train": TRAIN, "training": TRAIN, "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION,
    "dev": VALIDATION, "test": TEST, "testing": TEST,
}  # fmt: skip
TICKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
LAYOUT = """expected one folder per class:      or a folder per split:
  photos/cat/1.jpg                     photos/train/cat/1.jpg
  photos/cat/2.jpg                     photos/val/cat/2.jpg
  photos/dog/3.jpg                     photos/test/dog/3.jpg"""


@dataclass(frozen=True)
class Listing:
    """The images of a source. `names[i]`, relative to `root`, is labelled `labels[i]` (see `labels`)."""

    name: str
    root: Path  # absolute
    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[Any]  # (n,) numbers of classes; or (n, classes) of 0 and 1
    splits: NDArray[np.int8]  # TRAIN, VALIDATION, TEST or OPEN
    warnings: list[str] = field(default_factory=list)


def list_source(config: DataConfig, progress: ProgressCallback | None = None) -> Listing:
    """The images that `config` names. DataError says what is missing and how it should look."""
    kind = next(kind for kind in SOURCES if getattr(config, kind) is not None)
    return _only(SOURCES[kind](config, progress), config.classes)


def _only(listing: Listing, classes: tuple[str, ...] | None) -> Listing:
    """`listing` with these classes only, in this order."""
    if classes is None:
        return listing
    if unknown := [name for name in classes if name not in listing.classes]:
        hint = did_you_mean(unknown[0], listing.classes) or f" There are: {join_some(listing.classes)}."
        raise DataError(f"data.classes: {listing.name} has no class {', '.join(map(repr, unknown))}.{hint}")
    new = np.full(len(listing.classes), -1, np.int32)
    new[[listing.classes.index(name) for name in classes]] = np.arange(len(classes))
    labels, kept = label_type_of(listing.labels).renumber(listing.labels, new, len(classes))
    names = [listing.names[index] for index in kept]
    return replace(listing, classes=classes, names=names, labels=labels, splits=listing.splits[kept])


# ----------------------------------------------------------------------------------------------------- folder


def _folder(config: DataConfig, progress: ProgressCallback | None) -> Listing:
    assert config.folder is not None
    root = config.folder.absolute()
    shown = printable(root)
    if not root.is_dir():
        near = did_you_mean(root.name, os.listdir(root.parent)) if root.parent.is_dir() else ""
        raise DataError(f"{shown} is a file, not a folder" if root.exists() else f"there is no folder {shown}.{near}")
    names, left_out = list_images(root)
    depth = 1 if _has_splits(names, shown) else 0
    inside = [name for name in names if name.count("/") > depth]
    if not inside:
        found = f"{len(names)} images but no class folders" if names else "no images"
        endings = "" if names else f"\n  images end in {' '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"{shown} holds {found}{_list_left_out(left_out)}", hint=LAYOUT + endings)
    warnings = [f"left out{_list_left_out(left_out)}"] if left_out else []
    if len(names) > len(inside):
        warnings.append(f"left out: {len(names) - len(inside)} images that are in no class folder")
    raw = [sys.intern(name.split("/", depth + 1)[depth]) for name in inside]  # a million names, few classes
    splits = [SPLIT_WORDS[name.split("/", 1)[0].lower()] if depth else UNASSIGNED for name in inside]
    if empty := sorted(_empty_folders(root, inside, depth)):
        warnings.append(f"no images in the class folders: {join_some(empty)}")
    return _listing(root.name or "data", root, inside, raw, splits, warnings)


def _has_splits(names: Sequence[str], shown: str) -> bool:
    """Whether the top folders are train/, val/ and the like."""
    tops = {name.split("/", 1)[0].lower() for name in names if "/" in name}
    splits = tops & SPLIT_WORDS.keys()
    if splits == tops:
        return "train" in tops or "training" in tops
    if len({SPLIT_WORDS[word] for word in splits}) > 1 and TRAIN in {SPLIT_WORDS[word] for word in splits}:
        others = join_some(sorted(tops - splits))
        raise DataError(
            f"{shown} has the folders {join_some(sorted(splits))} beside {others}: are these splits or classes?",
            hint=LAYOUT,
        )
    return False


def _empty_folders(root: Path, names: Iterable[str], depth: int) -> Iterator[str]:
    """Folders where a class should be and no image is."""
    used = {"/".join(name.split("/")[: depth + 1]) for name in names}
    for base in {"/".join(name.split("/")[:depth]) for name in used}:
        for entry in os.scandir(root / base):
            name = f"{base}/{entry.name}" if base else entry.name
            if entry.is_dir() and name not in used and not entry.name.startswith((".", "__")):
                yield name


def _list_left_out(left_out: Counter[str]) -> str:
    return "".join(f"{', ' if i else ': '}{n} {what}" for i, (what, n) in enumerate(sorted(left_out.items())))


# ------------------------------------------------------------------------------------------------------ table


def _csv(config: DataConfig, progress: ProgressCallback | None) -> Listing:
    assert config.csv is not None
    columns = (config.path_column, config.label_column, config.split_column)
    if config.multi_label:
        return read_table(config.csv, *columns, multi_label=True, label_columns=config.label_columns)
    listing = read_table(config.csv, *columns)
    if "multi_label" not in config.model_fields_set:  # whoever said false knows
        listing.warnings.extend(_divided(listing))
    return listing


def _divided(listing: Listing) -> Iterator[str]:
    """A hint where cells look like several labels."""
    if divided := [name for name in listing.classes if SEPARATOR in name]:
        yield (
            f"{len(divided):,} classes have a {SEPARATOR} in their name, such as {divided[0]!r}: if these are "
            "several labels of an image, say data.multi_label=true"
        )


def read_table(
    table: Path,
    path: str = "path",
    label: str = "label",
    split: str = "split",
    *,
    multi_label: bool = False,
    label_columns: Sequence[str] | None = None,
) -> Listing:
    """The images of a CSV file, a row each, paths relative to it. All bad rows are named at once.

    With `multi_label` a cell has any number of names with | between, or each of `label_columns` a 0 or 1.
    """
    root = table.absolute().parent
    reader = _Rows(table, root, path, label, split, multi_label, label_columns)
    given = [word for word in reader.splits if word]
    if given and len(given) < len(reader.splits):
        empty = [f"line {line}" for line, word in zip(reader.lines, reader.splits, strict=True) if not word]
        reader.problems += [(line, f"no {split}, though other rows have one") for line in empty]
    if reader.problems:
        several = not multi_label and any(SEPARATOR in label for label in reader.labels)
        hint = "if an image may have several labels or none: data.multi_label=true" if several else ""
        raise problems_error(f"{printable(table)}: {len(reader.problems)} rows cannot be used", reader.problems, hint)
    if not reader.names:
        raise DataError(
            f"{printable(table)} has no rows",
            hint=f"expected a line {','.join([path, *(label_columns or [label])])} and then a row per image",
        )
    splits = [SPLIT_WORDS[word] if word else UNASSIGNED for word in reader.splits]
    if multi_label:
        return _labelled(table.stem, root, reader.names, reader.labels, splits, label_columns)
    return _listing(table.stem, root, reader.names, reader.labels, splits, [])


class _Rows:
    """The rows of a table, checked one by one."""

    def __init__(
        self,
        table: Path,
        root: Path,
        path: str,
        label: str,
        split: str,
        multi_label: bool,
        label_columns: Sequence[str] | None,
    ) -> None:
        self.root = root
        self.multi_label = multi_label
        self.lines: list[int] = []
        self.names: list[str] = []
        self.labels: list[str] = []
        self.splits: list[str] = []
        self.problems: list[Problem] = []
        self.seen: dict[str, int] = {}
        for line, row in _read_csv(table, required=(path, *(label_columns or (label,)))):
            self._add(
                line,
                row.get(path) or "",
                self._ticked(line, row, label_columns) if label_columns else (row.get(label) or "").strip(),
                (row.get(split) or "").strip().lower(),
            )

    def _ticked(self, line: int, row: dict[str, str], columns: Sequence[str]) -> str:
        """The names of the columns that hold a 1, as one cell would have them."""
        cells = {column: (row.get(column) or "").strip().lower() for column in columns}
        if strange := [column for column, text in cells.items() if text not in TICKS]:
            text = f"{printable(cells[strange[0]])!r} in column {printable(strange[0])}, expected 0 or 1"
            self.problems.append((f"line {line}", text))
        return SEPARATOR.join(column for column, text in cells.items() if TICKS.get(text))

    def _add(self, line: int, path: str, label: str, split: str) -> None:
        name = self._relative(path)
        problem = ""
        if not path:
            problem = "no path"
        elif name in self.seen:
            problem = f"{printable(path)} was in line {self.seen[name]} already"
        elif not os.path.isfile(self.root / name):
            problem = f"no such file: {printable(path)}"
        elif not label and not self.multi_label:
            problem = f"no label for {printable(path)}"
        elif split and split not in SPLIT_WORDS:
            problem = f"unknown split {printable(split)!r}, expected {', '.join(SPLITS)}"
        if problem:
            self.problems.append((f"line {line}", problem))
        self.seen.setdefault(name, line)
        self.lines.append(line)
        self.names.append(name)
        self.labels.append(label)
        self.splits.append(split)

    def _relative(self, path: str) -> str:
        """Relative to the table with "/" between if below it, so that both can be moved; else absolute."""
        whole = os.path.normpath(os.path.join(self.root, path))
        start = os.path.join(self.root, "")
        return whole.removeprefix(start).replace(os.sep, "/")


def _read_csv(table: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) for each row; comma, semicolon or tab. Names that are not UTF-8 keep their bytes."""
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
            if header.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                raise DataError(f"{printable(table)} is UTF-16 text", hint="save it as UTF-8")
            delimiter = max(",;\t", key=header.count)
            columns = next(csv.reader([header], delimiter=delimiter), [])
            columns = [column.strip() for column in columns]
            for column in required:
                if column not in columns:
                    hint = did_you_mean(column, columns) or f" It has: {join_some(columns)}."
                    what = f"{printable(table)}: there is no column {column!r}.{hint}"
                    raise DataError(what, hint="data.path_column, data.label_column and data.label_columns name them")
            reader = csv.reader(file, delimiter=delimiter)
            last = 1
            for row in reader:
                if row:
                    yield last + 1, dict(zip(columns, row, strict=False))
                last = 1 + reader.line_num
    except OSError as error:
        raise DataError(f"{printable(table)} cannot be read: {error.strerror or error}") from None
    except csv.Error as error:
        raise DataError(f"{printable(table)} is not a CSV table: {error}") from None


# -------------------------------------------------------------------------------- data sets turned into files


def _tfds(config: DataConfig, progress: ProgressCallback | None) -> Listing:
    assert config.tfds is not None
    return _prepared(config.tfds, *prepare_tfds(config.tfds, SPLIT_WORDS, progress))


def _builtin(config: DataConfig, progress: ProgressCallback | None) -> Listing:
    return _prepared("digits", prepare_digits(), [])


def _prepared(name: str, folder: Path, warnings: list[str]) -> Listing:
    listing = read_table(folder / TABLE)
    classes = tuple((folder / CLASSES).read_text("utf-8").splitlines())
    position = np.array([classes.index(name) for name in listing.classes], np.int32)
    return replace(listing, name=name, classes=classes, labels=position[listing.labels], warnings=warnings)


SOURCES: dict[str, Callable[[DataConfig, ProgressCallback | None], Listing]] = {
    "folder": _folder,
    "csv": _csv,
    "tfds": _tfds,
    "builtin": _builtin,
}

# ----------------------------------------------------------------------------------------------------- common


def _listing(
    name: str, root: Path, names: list[str], raw: Sequence[str], splits: Sequence[int], warnings: list[str]
) -> Listing:
    """Classes in the order of their names, as torchvision, Keras and everybody has it."""
    order = sorted(set(raw))
    number = {name: index for index, name in enumerate(order)}
    labels = np.fromiter((number[one] for one in raw), np.int32, len(raw))
    classes = tuple(map(printable, order))  # printable, for a file with a class per line
    warnings += [f"are these one class? {join_some(map(repr, twins))}" for twins in _twins(classes)]
    return Listing(name, root, classes, names, labels, np.array(splits, np.int8), warnings)


def _labelled(
    name: str,
    root: Path,
    names: list[str],
    cells: Sequence[str],
    splits: Sequence[int],
    columns: Sequence[str] | None,
) -> Listing:
    """As `_listing`, for cells with any number of names; `columns` have an order of their own."""
    parts = [[one.strip() for one in cell.split(SEPARATOR)] for cell in cells]
    order = list(columns or sorted({one for row in parts for one in row if one}))
    number = {name: index for index, name in enumerate(order)}
    labels = MULTILABEL.parse([SEPARATOR.join(row) for row in parts], number)
    classes = tuple(map(printable, order))
    warnings = [f"are these one label? {join_some(map(repr, twins))}" for twins in _twins(classes)]
    if (labels.sum(axis=1) == 1).all():
        sign = "" if columns else f"; several stand with {SEPARATOR} between them"
        warnings.append(f"every image has exactly one label, where data.multi_label expects any number{sign}")
    return Listing(name, root, classes, names, labels, np.array(splits, np.int8), warnings)


def _twins(classes: Sequence[str]) -> Iterator[list[str]]:
    """Classes that differ in case, spaces or the composition of accents only."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(" ".join(unicodedata.normalize("NFC", name).casefold().split()), []).append(name)
    return (group for group in groups.values() if len(group) > 1)


def join_some(items: Iterable[str], most: int = 20) -> str:
    """`a, b, c and 7 more`."""
    shown = list(items)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(map(printable, shown[:most])) + more


def problems_error(what: str, problems: Sequence[Problem], hint: str = "") -> DataError:
    """An error with the `problems` below it."""
    return DataError(f"{what}:{format_problems(problems)}", hint=hint)


def format_problems(problems: Sequence[Problem], most: int = 20) -> str:
    """The first of `problems`, a line each; if there are more, also the name of a table that has them all."""
    shown = "".join(f"\n  {': '.join(filter(None, problem))}" for problem in problems[:most])
    if len(problems) <= most:
        return shown
    return f"{shown}\n  ... and {len(problems) - most:,} more{_table(problems)}"


def _table(problems: Sequence[Problem]) -> str:
    with suppress(OSError):  # a full disk, say: the message alone must do
        with tempfile.NamedTemporaryFile(
            "w", prefix="finetune-problems-", suffix=".csv", encoding="utf-8", newline="", delete=False
        ) as file:
            table = csv.writer(file)
            table.writerow(("where", "problem"))
            table.writerows(map(csv_cell, problem) for problem in problems)
        return f"; all are in {file.name}"
    return ""
