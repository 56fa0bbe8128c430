"""Where images and their classes come from: a folder, a table, a TensorFlow dataset, a package.

    listing = list_source(config.data)      names, labels, classes, and the splits that the data has already

Nothing is decoded here and nothing is written beside the data. To add a kind of source, add a key to
`config.DataConfig` and a branch to `list_source`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.config import DataConfig
from finetune.data.folders import read_folder
from finetune.data.labels import SEPARATOR
from finetune.data.listing import Listing
from finetune.data.prepared import CLASSES, TABLE, prepare_digits, prepare_tfds
from finetune.data.problems import join_some
from finetune.data.splits import SPLITS, TEST, TRAIN, UNASSIGNED, VALIDATION
from finetune.data.tables import read_table
from finetune.utils import DataError, ProgressCallback, format_count


def list_source(config: DataConfig, progress: ProgressCallback | None = None) -> Listing:
    """The images that `config` names. Raises DataError that says what is missing and what is expected."""
    if config.folder is not None:
        listing = read_folder(config.folder.absolute(), config.class_level)
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
    if config.classes is not None:
        listing = listing.select_classes(config.classes)
    return _use_only_held_out_split(listing, config)


def _use_only_held_out_split(listing: Listing, config: DataConfig) -> Listing:
    """`listing` with its only split beside train, under whatever name, as `config.held_out` says: test or validation.

    Images that were set aside with care must not choose the epoch while the result rests on a few cut from train.
    """
    given = sorted(set(np.unique(listing.splits).tolist()) - {UNASSIGNED, TRAIN})
    if len(given) != 1:
        if config.held_out == "validation":
            names = join_some(SPLITS[split] for split in given) or "none"
            what = f"is for data with one split beside train; {listing.name} has {names}"
            raise DataError(f"data.held_out=validation {what}", hint="leave it out")
        return listing
    wanted = SPLITS.index(config.held_out)
    if given[0] == wanted:
        return listing
    images = format_count(int((listing.splits == given[0]).sum()), "image is", "images are")
    remark = (
        f"{SPLITS[given[0]]} is the only split beside train: its {images} the {config.held_out} split, and "
        f"{SPLITS[VALIDATION + TEST - wanted]} is cut from train"
    )
    if config.held_out == "test":
        remark += " (data.held_out=validation: the other way round)"
    splits = np.where(listing.splits == given[0], np.int8(wanted), listing.splits)
    return replace(listing, splits=splits, warnings=[*listing.warnings, remark])


def _list_prepared(name: str, folder: Path, warnings: list[str]) -> Listing:
    """A folder that `prepared` wrote: its classes keep their own order."""
    table = folder / TABLE
    listing = read_table(table, DataConfig(csv=table))
    classes = tuple((folder / CLASSES).read_text("utf-8").splitlines())
    number_of = np.array([classes.index(name) for name in listing.classes], np.int32)
    return replace(listing, name=name, classes=classes, labels=number_of[listing.labels], warnings=warnings)
