"""The image files below a folder, and what was left out. Goes by the names of files; none is opened."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.image_formats import IMAGE_SUFFIXES
from finetune.utils import DataError, printable

SYSTEM_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}
SYSTEM_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found"}
OTHER_IMAGES = {  # never opened
    ".svg", ".eps", ".pdf", ".jp2", ".jxl", ".ico", ".psd", ".tga", ".qoi", ".dng", ".cr2", ".nef",
}  # fmt: skip


@dataclass
class LeftOut:
    """What was passed over below a folder: how many of each kind, and the first of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count `name` as one more of `kind`, words in the plural."""
        self.counts[kind] += 1
        self.examples[kind] = min(self.examples.get(kind, name), name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """`.svg files (2, such as logo.svg; convert them to JPEG or PNG), other files (1: notes.txt)`."""
        parts = []
        for kind, count in sorted(self.counts.items()):
            example = printable(self.examples[kind])
            text = f"1: {example}" if count == 1 else f"{count:,}, such as {example}"
            parts.append(f"{kind} ({text}{'; convert them to JPEG or PNG' if kind.startswith('.') else ''})")
        return ", ".join(parts)


def find_images(folder: str | Path) -> tuple[list[Path], LeftOut]:
    """The image files below `folder`, sorted, and what was left out. See `list_images`."""
    names, left_out = list_images(folder)
    return [Path(folder, name) for name in names], left_out


def list_images(folder: str | Path) -> tuple[list[str], LeftOut]:
    """Names of the image files below `folder`, relative with "/" between, sorted; and what was left out.

    Goes by the endings in `IMAGE_SUFFIXES`. Links are followed, each folder once, so that loops end; pipes,
    sockets and devices are never opened. Raises DataError when the folder or one below it cannot be listed.
    """
    names: list[str] = []
    left_out = LeftOut()
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below) if below else os.fspath(folder)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen and status.st_ino:
                left_out.add("links to a folder already seen", below)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    name = f"{below}/{entry.name}" if below else entry.name
                    kind = _classify(entry)
                    if kind == "image":
                        names.append(name)
                    elif kind == "folder":
                        waiting.append(name)
                    else:
                        left_out.add(kind, name)
        except PermissionError:
            hint = f"make it readable: chmod u+rx '{printable(place)}'"
            raise DataError(f"{printable(place)}: no permission to list this folder", hint=hint) from None
        except OSError as error:
            raise DataError(f"{printable(place)}: {error.strerror or error}") from None
    return sorted(names), left_out


def _classify(entry: os.DirEntry[str]) -> str:
    """`image`, `folder`, or why the entry is left out."""
    lower = entry.name.lower()
    suffix = os.path.splitext(lower)[1]
    hidden = lower.startswith(".")  # ._x.jpg is where macOS keeps its notes on x.jpg
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_folder:
        if hidden or lower in SYSTEM_FOLDERS:
            return "hidden and system folders"
        return "folders named like an image" if suffix in IMAGE_SUFFIXES else "folder"
    if not is_file:
        return "broken links" if entry.is_symlink() else "pipes, sockets and devices"
    if hidden or lower in SYSTEM_FILES:
        return "hidden and system files"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return f"{suffix} files" if suffix in OTHER_IMAGES else "other files"
