"""Where images and their classes come from: a folder, a table, a TensorFlow dataset, a package.

    listing = list_source(config.data)      names, labels, classes, and the splits that the data has already

Nothing is decoded here and nothing is written beside the data. To add a kind of source, add a key to
`config.DataConfig` and a branch to `list_source`.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.config import DataConfig
from finetune.data.discovery import LeftOut, list_images
from finetune.data.image_formats import IMAGE_SUFFIXES
from finetune.data.labels import SEPARATOR
from finetune.data.listing import Listing, list_multiclass
from finetune.data.prepared import CLASSES, TABLE, prepare_digits, prepare_tfds
from finetune.data.problems import join_some
from finetune.data.splits import LAYOUT, UNASSIGNED, has_split_folders, split_of_name
from finetune.data.tables import read_table
from finetune.utils import DataError, ProgressCallback, did_you_mean, printable


def list_source(config: DataConfig, progress: ProgressCallback | None = None) -> Listing:
    """The images that `config` names. Raises DataError that says what is missing and what is expected."""
    if config.folder is not None:
        listing = _list_folder(config.folder.absolute())
    elif config.csv is not None:
        listing = read_table(config.csv, config)
        joined = [name for name in listing.classes if SEPARATOR in name]
        if joined and "multi_label" not in config.model_fields_set:  # who wrote multi_label: false means it
            listing.warnings.append(
                f"{len(joined):,} classes have a {SEPARATOR} in their name, such as {joined[0]!r}: if these are "
                "several labels of an image, say data.multi_label=true"
            )
    elif config.tfds is not None:
        listing = _list_prepared(config.tfds, *prepare_tfds(config.tfds, progress))
    else:
        listing = _list_prepared("digits", prepare_digits(), [])
    return listing if config.classes is None else listing.select_classes(config.classes)


def _list_folder(root: Path) -> Listing:
    shown = printable(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"{shown} is a file, not a folder", hint=LAYOUT)
    if not root.exists():
        near = did_you_mean(root.name, os.listdir(root.parent)) if root.parent.is_dir() else ""
        raise DataError(f"there is no folder {shown}.{near}", hint=LAYOUT)
    every_name, left_out = list_images(root)
    depth = 1 if has_split_folders(every_name, shown) else 0  # of the class folders
    names = [name for name in every_name if name.count("/") > depth]
    if not every_name:
        endings = f"\n  images end in {' '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"{shown} holds no images{_passed_over(left_out)}", hint=LAYOUT + endings)
    if not names:
        holds = f"{len(every_name)} images but no class folders"
        raise DataError(f"{shown} holds {holds}{_passed_over(left_out)}", hint=LAYOUT)
    warnings = [f"left out: {left_out}"] if left_out else []
    if len(every_name) > len(names):
        warnings.append(f"left out: {len(every_name) - len(names)} images that are in no class folder")
    labels, splits = [], []
    for name in names:
        folders = name.split("/", depth + 1)
        labels.append(sys.intern(folders[depth]))  # a million names, few classes
        splits.append(split_of_name(folders[0]) if depth else UNASSIGNED)
    if empty := _empty_class_folders(root, names, depth):
        warnings.append(f"no images in the class folders: {join_some(empty)}")
    return list_multiclass(root.name or "data", root, names, labels, splits, warnings)


def _empty_class_folders(root: Path, names: Sequence[str], depth: int) -> list[str]:
    """Folders, relative to `root`, where a class should be and no image is."""
    used = {"/".join(name.split("/")[: depth + 1]) for name in names}
    parents = {os.path.dirname(folder) for folder in used}
    empty = []
    for parent in parents:
        for entry in os.scandir(root / parent):
            name = f"{parent}/{entry.name}" if parent else entry.name
            if entry.is_dir() and name not in used and not entry.name.startswith((".", "__")):
                empty.append(name)
    return sorted(empty)


def _passed_over(left_out: LeftOut) -> str:
    return f"; left out: {left_out}" if left_out else ""


def _list_prepared(name: str, folder: Path, warnings: list[str]) -> Listing:
    """A folder that `prepared` wrote: its classes keep their own order."""
    table = folder / TABLE
    listing = read_table(table, DataConfig(csv=table))
    classes = tuple((folder / CLASSES).read_text("utf-8").splitlines())
    number_of = np.array([classes.index(name) for name in listing.classes], np.int32)
    return replace(listing, name=name, classes=classes, labels=number_of[listing.labels], warnings=warnings)
