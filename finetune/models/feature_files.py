"""The files of the feature cache: one `.npy` file per view and cut, or several that hold consecutive rows of it.

    rows = open_features_file(path, 1200)      what is cached, mapped from disk, or None
    writer = FeatureWriter(path, (1200, 7, 7, 1280), "float32")
    writer.array[:32] = ...; writer.commit()   the file takes its name when it is complete

A file that was computed in parts is `KEY.PART-of-PARTS.npy`, the whole is `KEY.npy`.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.utils import atomic_write, cache_folder, explain_os_errors, require_space, temporary_name


def features_folder() -> Path:
    """The folder of all cached features, which may be missing."""
    return cache_folder() / "features"


def features_disk_space() -> int | None:
    """Free bytes where cached features go, in a folder that is made if missing; None if it cannot be written."""
    folder = features_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK | os.X_OK) else None
    except OSError:
        return None


class ConcatenatedArrays:
    """Arrays (n, ...) of consecutive rows, read as one array."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        values = np.empty((len(rows), *self.shape[1:]), self.arrays[0].dtype)
        for number in np.unique(owner):
            owned = owner == number
            values[owned] = self.arrays[number][rows[owned] - self.starts[number]]
        return values


def part_path(path: Path, part: int, parts: int) -> Path:
    """The file for part number `part` (from 0) of what belongs in `path`."""
    return path if parts == 1 else path.with_name(f"{path.stem}.{part}-of-{parts}.npy")


def open_features_file(path: Path, count: int) -> Any:
    """The `count` rows that belong in `path`, mapped from one file or from its parts; None unless all are there."""
    whole = _load(path)
    if whole is not None:
        return whole
    divisions = {int(part.stem.rpartition("-")[2]) for part in path.parent.glob(f"{path.stem}.*-of-*.npy")}
    for parts in sorted(divisions):
        loaded = [_load(part_path(path, part, parts)) for part in range(parts)]
        arrays = [array for array in loaded if array is not None]  # a part without rows has no file
        if sum(map(len, arrays)) == count:
            return ConcatenatedArrays(arrays)
    return None


def _load(path: Path) -> np.ndarray | None:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, or damaged
        return None
    return array


class FeatureWriter:
    """Rows that are being computed: write them to `array`, then `commit`; `discard` removes what is incomplete.

    With a path they are written to a temporary file beside it, which takes the name at the end. Without one they are
    kept in memory. Raises ResourceError if the disk is too small.
    """

    def __init__(self, path: Path | None, shape: tuple[int, ...], dtype: str) -> None:
        self._path = path
        self._temporary = temporary_name(path) if path else None
        if self._temporary is None:
            self.array: np.ndarray = np.empty(shape, dtype)
            return
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        require_space(self._temporary.parent, size)
        with explain_os_errors(self._temporary, size):
            self.array = np.lib.format.open_memmap(self._temporary, mode="w+", dtype=dtype, shape=shape)
            # Reserve the space now: writing to a mapped file on a full disk kills the process.
            if hasattr(os, "posix_fallocate"):
                with self._temporary.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, self._temporary.stat().st_size)

    def commit(self) -> None:
        if self._path and self._temporary:
            self.array.flush()  # type: ignore[attr-defined]  # a memmap
            atomic_write(self._path, self._temporary.replace)
            self._temporary = None

    def discard(self) -> None:
        """Remove the temporary file; nothing to do after `commit`."""
        if self._temporary:
            self._temporary.unlink(missing_ok=True)
