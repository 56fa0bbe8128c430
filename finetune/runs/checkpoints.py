"""Checkpoints of a training: numbered folders, written whole, verified when they are read.

    checkpoints = CheckpointFolder(run.path / "checkpoints")
    checkpoints.save("head-3", arrays, state, history, phases)     checkpoints/0003-head-3/
    checkpoint = checkpoints.load()                                the newest that is whole, or None

    0003-head-3/arrays.npz       weights and the optimizer's variables
    0003-head-3/state.json       the state, and the history and phases of that moment
    0003-head-3/manifest.json    the SHA-256 of both
    LAST                         the name of the newest

The newest two are kept. Nothing is pickled, and no file holds a path, so the folder may be moved.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.utils import WeightsError, atomic_write_folder, file_sha256, write_text

FORMAT = 1
HistoryRow = Mapping[str, Any]

_ARRAYS, _STATE, _MANIFEST = "arrays.npz", "state.json", "manifest.json"


class CheckpointState(BaseModel):
    """The content of a checkpoint's state.json."""

    model_config = ConfigDict(extra="forbid")

    state: dict[str, Any]
    history: list[dict[str, Any]]
    phases: list[dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given: arrays, the state, and the history and finished phases of that moment.

    `lost` is None, or says which newer checkpoints could not be used and why.
    """

    name: str
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    history: Sequence[HistoryRow]
    phases: list[dict[str, Any]]
    lost: str | None = None


class CheckpointFolder:
    """The checkpoints of a run. Only the holder of the run's lock may save."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: str | None = None  # the last checkpoint known to be whole

    def save(
        self,
        step_name: str,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
        history: Sequence[HistoryRow],
        phases: Sequence[Mapping[str, Any]],
    ) -> Path:
        """Save a checkpoint as `<number>-<step_name>/`; keep the one before, and delete older ones.

        Until the new one is whole and on the disk, the older ones stay. Raises ResourceError when it cannot
        be written, TypeError for an array that numpy would pickle or not read back as it was (bfloat16).
        """
        for key, array in arrays.items():
            if array.dtype.hasobject or np.dtype(array.dtype.str) != array.dtype:
                raise TypeError(f"array {key!r} has type {array.dtype}, which cannot be stored in a checkpoint")
        names = self._names()
        previous = self._whole or next(iter(names), None)
        number = _number(names[0]) + 1 if names else 1
        facts = {"state": dict(state), "history": history, "phases": phases}

        def write(folder: Path) -> None:
            np.savez(folder / _ARRAYS, **arrays)  # type: ignore[arg-type]
            (folder / _STATE).write_text(json.dumps(facts, indent=2))
            hashes = {file: file_sha256(folder / file) for file in (_ARRAYS, _STATE)}
            (folder / _MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": hashes}, indent=2))

        folder = self.path / f"{number:04d}-{step_name}"
        atomic_write_folder(folder, write, needed=sum(array.nbytes for array in arrays.values()))
        write_text(self.path / "LAST", folder.name + "\n")
        for name in set(names) - {previous}:
            self._delete(name)
        self._whole = folder.name
        return folder

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; None if none was ever saved; WeightsError if all are damaged."""
        damage: list[str] = []
        for name in self._names():
            try:
                arrays, content = self._read(name)
            except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
                damage.append(f"checkpoint {name} cannot be used ({explain_damage(error)})")
                continue
            self._whole = name
            lost = f"{'; '.join(damage)}; going on from {name}" if damage else None
            return Checkpoint(name, arrays, content.state, content.history, content.phases, lost)
        if not damage:
            return None
        raise WeightsError(
            f"{self.path.parent}: no checkpoint is whole: {'; '.join(damage)}",
            hint="Nothing was deleted. Restore the files from a copy, or start a new run.",
        )

    def _read(self, name: str) -> tuple[dict[str, np.ndarray], CheckpointState]:
        folder = self.path / name
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        for file in (_ARRAYS, _STATE):
            if file_sha256(folder / file) != manifest["sha256"][file]:
                raise ValueError(f"{file} was changed: its SHA-256 is not the one in {_MANIFEST}")
        with np.load(folder / _ARRAYS, allow_pickle=False) as stored:
            arrays = dict(stored)
        return arrays, CheckpointState.model_validate(json.loads((folder / _STATE).read_bytes()))

    def _names(self) -> list[str]:
        """Newest first, by number, because clocks may jump; with the name in LAST, even if its folder is gone."""
        names = set(subfolder_names(self.path))
        with contextlib.suppress(OSError, UnicodeError):
            names.add((self.path / "LAST").read_text("utf-8").strip())
        return sorted((name for name in names if re.fullmatch(r"\d+-.+", name)), key=_number, reverse=True)

    def _delete(self, name: str) -> None:
        """Delete our three files and the folder, which stays if somebody put anything else there."""
        folder = self.path / name
        with contextlib.suppress(OSError):
            for file in (_ARRAYS, _STATE, _MANIFEST):
                (folder / file).unlink(missing_ok=True)
            folder.rmdir()


def subfolder_names(folder: Path) -> list[str]:
    """The names of the folders in `folder`; none if it does not exist."""
    try:
        return [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def explain_damage(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    return f"no {error} in it" if isinstance(error, KeyError) else str(error)


def _number(name: str) -> int:
    return int(name.partition("-")[0])
