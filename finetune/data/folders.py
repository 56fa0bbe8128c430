"""A folder of images: where its class folders are, and which of its folders are splits.

    listing = read_folder(Path("photos"))

The class folders are the uppermost ones: photos/CLASS/1.jpg, or photos/SPLIT/CLASS/1.jpg. Folders that hold one folder
and nothing else, as archives often do, are opened; below the class folders there may be more, whose images count to the
class, unless `data.class_level` says that a deeper level names the classes.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.data.discovery import LeftOut, list_images
from finetune.data.image_formats import IMAGE_SUFFIXES
from finetune.data.listing import Listing, list_multiclass
from finetune.data.problems import join_some
from finetune.data.splits import LAYOUT, UNASSIGNED, has_split_folders, split_of_name
from finetune.utils import DataError, did_you_mean, format_count, printable

Level = int | Literal["last"]


@dataclass(frozen=True)
class FolderImages:
    """The images below a folder, before it is decided which of their folders are classes.

    `names` are relative to `root`, which may be a folder in the one that was asked for; those without a class folder
    are not among them. With `has_splits` the uppermost folders are splits.
    """

    root: Path
    names: list[str]
    has_splits: bool
    warnings: list[str]

    def class_folders(self, level: Level) -> list[str]:
        """The class folder of each image below its split, such as `cat` or `pets/cat`; "" if it lies above `level`."""
        first = 1 if self.has_splits else 0
        folders = (name.split("/")[first:-1] for name in self.names)
        if level == "last":
            return ["/".join(path) for path in folders]
        return ["/".join(path[:level]) if len(path) >= level else "" for path in folders]


def find_folder_images(folder: Path) -> FolderImages:
    """The images below `folder`. Raises DataError, with the expected layout, when none is in a class folder."""
    shown = printable(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{shown} is a file, not a folder", hint=LAYOUT)
    if not folder.exists():
        near = did_you_mean(folder.name, os.listdir(folder.parent)) if folder.parent.is_dir() else ""
        raise DataError(f"there is no folder {shown}.{near}", hint=LAYOUT)
    every_name, left_out = list_images(folder)
    if not every_name:
        endings = f"\n  images end in {' '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"{shown} holds no images{_describe(left_out)}", hint=LAYOUT + endings)
    root, names = _unwrap(folder, every_name)
    has_splits = has_split_folders(names, printable(root))
    depth = 1 if has_splits else 0
    in_class = [name for name in names if name.count("/") > depth]
    if not in_class:
        holds = f"{format_count(len(every_name), 'image')} but no class folders"
        raise DataError(f"{shown} holds {holds}{_describe(left_out)}", hint=LAYOUT)
    warnings = [f"the class folders are those in {printable(root)}"] if root != folder else []
    warnings += [f"left out: {left_out}"] if left_out else []
    if len(every_name) > len(in_class):
        loose = format_count(len(every_name) - len(in_class), "image that is", "images that are")
        warnings.append(f"left out: {loose} in no class folder")
    return FolderImages(root, in_class, has_splits, warnings)


def _describe(left_out: LeftOut) -> str:
    return f"; left out: {left_out}" if left_out else ""


def _unwrap(folder: Path, names: list[str]) -> tuple[Path, list[str]]:
    """The folder in `folder` that holds the class folders, and the image names relative to it.

    While all images lie in one folder, and none of them directly in it, it is only a wrapper.
    """
    while not has_split_folders(names, printable(folder)):
        tops = {name.partition("/")[0] for name in names if "/" in name}
        inner = [name.partition("/")[2] for name in names if "/" in name]
        if len(tops) != 1 or not all("/" in name for name in inner):
            break
        folder, names = folder / tops.pop(), inner
    return folder, names


def read_folder(folder: Path, level: Level = 1) -> Listing:
    """The images below `folder` with their classes; `level` is the config's `data.class_level`.

    Raises DataError that says what is missing and what is expected.
    """
    images = find_folder_images(folder)
    folders = images.class_folders(level)
    warnings = list(images.warnings)
    if above := folders.count(""):
        warnings.append(f"left out: {format_count(above, 'image')} above level {level} of the folders")
    kept = [position for position, path in enumerate(folders) if path]
    if not kept:
        raise DataError(f"{printable(folder)} has no folders on level {level}", hint=f"data.class_level=1\n  {LAYOUT}")
    names, folders = [images.names[position] for position in kept], [sys.intern(folders[position]) for position in kept]
    name_of = _class_names(folders)
    depth = 1 if images.has_splits else 0
    deeper = {
        name.rpartition("/")[0]
        for name, path in zip(names, folders, strict=True)
        if name.count("/") - depth > path.count("/") + 1
    }
    if deeper:
        warnings.append(
            f"{format_count(len(deeper), 'folder lies', 'folders lie')} deeper, such as {printable(min(deeper))}, and "
            "their images count to the class folders above: data.class_level=last would make each of them a class"
        )
    if level == 1 and (empty := _empty_class_folders(images.root, names, images.has_splits)):
        warnings.append(f"no images in the class folders: {join_some(empty)}")
    splits = [split_of_name(name.partition("/")[0]) if images.has_splits else UNASSIGNED for name in names]
    labels = [name_of[path] for path in folders]
    return list_multiclass(folder.name or "data", images.root, names, labels, splits, warnings)


def _class_names(folders: Sequence[str]) -> dict[str, str]:
    """The class name of each class folder: its own name, or the whole path where another one has the same name."""
    last = {path: path.rpartition("/")[2] for path in set(folders)}
    times = Counter(last.values())
    return {path: name if times[name] == 1 else path for path, name in last.items()}


def _empty_class_folders(root: Path, names: Sequence[str], has_splits: bool) -> list[str]:
    """Folders, relative to `root`, where a class should be and no image is."""
    depth = 2 if has_splits else 1
    used = {"/".join(name.split("/")[:depth]) for name in names}
    empty = []
    for parent in {os.path.dirname(folder) for folder in used}:
        for entry in os.scandir(root / parent):
            name = f"{parent}/{entry.name}" if parent else entry.name
            if entry.is_dir() and name not in used and not entry.name.startswith((".", "__")):
                empty.append(name)
    return sorted(empty)
