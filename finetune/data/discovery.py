"""The image files below a folder, and what was left out. Goes by the names of files; none is opened."""

import os
from collections import Counter
from pathlib import Path

from finetune.data.image_formats import CONVERT_HINT, IMAGE_SUFFIXES
from finetune.utils import DataError, printable

SYSTEM_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}
SYSTEM_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found"}
OTHER_IMAGES = {  # never opened
    ".heic", ".heif", ".svg", ".eps", ".pdf", ".jp2", ".jxl", ".ico", ".psd", ".tga", ".qoi", ".dng", ".cr2", ".nef",
}  # fmt: skip


def find_images(folder: str | Path) -> tuple[list[Path], Counter[str]]:
    """The image files below `folder`, sorted, and how many of what was left out. See `list_images`."""
    names, left_out = list_images(folder)
    return [Path(folder, name) for name in names], left_out


def list_images(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """Names of the image files below `folder`, relative with "/" between, sorted; and what was left out.

    Goes by the endings in `IMAGE_SUFFIXES`. Links are followed, each folder once, so that loops end; pipes,
    sockets and devices are never opened. Raises DataError when the folder or one below it cannot be listed.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below) if below else os.fspath(folder)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen and status.st_ino:
                left_out["links to a folder already seen"] += 1
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
                        left_out[kind] += 1
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
    return f"{suffix} ({CONVERT_HINT})" if suffix in OTHER_IMAGES else "other files"
