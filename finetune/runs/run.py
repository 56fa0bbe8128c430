"""A run: one folder that holds everything about one training, and from which it can go on after any crash.

    run = runs.create(Path("runs"), "flowers")        # -> runs/flowers-1
    with run.lock():
        checkpoint = run.load_checkpoint()            # None at the start: starting is resuming from nothing
        run.rewind(checkpoint)
        for epoch in ...:
            run.append_history({"phase": "head", "epoch": epoch, "loss": 0.3})
            run.save_checkpoint(f"head-{epoch}", arrays, state)

The newest whole checkpoint is the truth. `history.csv` and `state.json` are its readable copies: `rewind`
makes them say what they said when it was saved, so a resumed run has exactly the rows of one that was never
killed. The best weights so far belong into the same `arrays` (say, under `best/...`), with their score in
`state`; then no crash can separate the two. Nothing in the folder holds a path, so it may be moved, and
nothing is pickled.
"""

import contextlib
import csv
import errno
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.runs.lock import hold_lock
from finetune.utils import (
    ConfigError,
    ResourceError,
    UsageError,
    WeightsError,
    atomic_write_folder,
    did_you_mean,
    explain_os_errors,
    file_sha256,
    remove_leftovers,
    require_space,
    write_json,
    write_text,
)

FORMAT = 1
Status = Literal["not started", "running", "stopped", "done", "failed"]
HistoryRow = Mapping[str, Any]

_ARRAYS, _STATE, _MANIFEST = "arrays.npz", "state.json", "manifest.json"
_CHECKPOINT_NAME = re.compile(r"(\d+)-.+")


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` was given, and the history and finished phases of that moment.

    `lost` is None, or says which newer checkpoints could not be used and why.
    """

    name: str
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    history: list[HistoryRow]
    phases: list[dict[str, Any]]
    lost: str | None = None


class Run:
    """One run folder, made by `create` or found by `open`; only the holder of `lock()` may train in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_yaml = self.path / "config.yaml"
        self.run_json = self.path / "run.json"
        self.classes_txt = self.path / "classes.txt"
        self.splits_csv = self.path / "splits.csv"
        self.state_json = self.path / "state.json"
        self.history_csv = self.path / "history.csv"
        self.predictions_csv = self.path / "predictions.csv"
        self.model_keras = self.path / "model.keras"
        self.report_json = self.path / "report.json"
        self.report_html = self.path / "report.html"
        self.run_lock = self.path / "run.lock"
        self.figures = self.path / "figures"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self._previous: str | None = None  # the last checkpoint known to be whole

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def require_space(self, needed: int) -> None:
        """ResourceError unless `needed` bytes are free on the disk of the run."""
        require_space(self.path, needed)

    # --- state.json

    @property
    def status(self) -> Status:
        status: Status = self._state()["status"]
        return status

    @property
    def phases(self) -> list[dict[str, Any]]:
        """One mapping for each finished phase, in order; each has a "name"."""
        return list(self._state()["phases"])

    def set_status(self, status: Status) -> None:
        self._write_state(status, self.phases)

    def finish_phase(self, facts: Mapping[str, Any]) -> None:
        """Note a phase as done; a checkpoint should follow."""
        self._write_state(self.status, [*self.phases, dict(facts)])

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_json.read_text("utf-8"))
            newer = state["format"] > FORMAT
            if not newer:
                return {"status": state["status"], "phases": state["phases"]}
        except (FileNotFoundError, NotADirectoryError):
            near = did_you_mean(self.path.name, set(_names(self.path.parent)) - {self.path.name})
            raise UsageError(f"{self.path} is not a run: it has no state.json.{near}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResourceError(
                f"{self.state_json} cannot be used: {_reason(error)}",
                hint="Bring it back from a copy, or start a new run.",
            ) from error
        raise UsageError(
            f"{self.path} was written by a newer finetune: format {state['format']}, known here: {FORMAT}",
            hint="Update: pip install --upgrade finetune",
        )

    def _write_state(self, status: Status, phases: Sequence[Mapping[str, Any]]) -> None:
        write_json(self.state_json, {"format": FORMAT, "status": status, "phases": phases})

    # --- history.csv

    def history(self) -> list[HistoryRow]:
        """The rows of history.csv, numbers as int or float; a cell without a value is left out."""
        if not self.history_csv.exists():
            return []
        with self.history_csv.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            return [{key: _value(text) for key, text in row.items() if key and text} for row in table]

    def append_history(self, row: HistoryRow) -> None:
        """Add a row (of an epoch); new columns are welcome. Append first, then save the checkpoint."""
        self._write_history([*self.history(), row])

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Make history.csv and the finished phases what they were at `checkpoint` (None: empty)."""
        self._write_history(checkpoint.history if checkpoint else [])
        self._write_state(self.status, checkpoint.phases if checkpoint else [])

    def _write_history(self, rows: Sequence[HistoryRow]) -> None:
        # The whole file each time: a few kilobytes, and no line is ever torn.
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.history_csv, text.getvalue() if rows else "")

    # --- checkpoints

    def save_checkpoint(self, step_name: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Save the arrays and the JSON `state` as `checkpoints/<number>-<step_name>/`; keep the one before.

        Until the new one is whole and on the disk, the older ones stay. Raises ResourceError when it cannot
        be written, TypeError for an array that numpy would pickle or not read back as it was (bfloat16).
        """
        for key, array in arrays.items():
            if array.dtype.hasobject or np.dtype(array.dtype.str) != array.dtype:
                raise TypeError(f"array {key!r} has type {array.dtype}, which has no place in a checkpoint")
        with explain_os_errors(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        names = self._checkpoint_names()
        self._previous = self._previous or next(iter(names), None)
        name = f"{_number(names[0]) + 1 if names else 1:04d}-{step_name}"
        facts = {"state": dict(state), "history": self.history(), "phases": self.phases}

        def write(folder: Path) -> None:
            np.savez(folder / _ARRAYS, **arrays)  # type: ignore[arg-type]
            (folder / _STATE).write_text(json.dumps(facts, indent=2))
            hashes = {file: file_sha256(folder / file) for file in (_ARRAYS, _STATE)}
            (folder / _MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": hashes}, indent=2))

        folder = self.checkpoints / name
        atomic_write_folder(folder, write, needed=sum(array.nbytes for array in arrays.values()))
        write_text(self.checkpoints / "LAST", name + "\n")
        for old in set(names) - {self._previous}:
            self._delete_checkpoint(old)
        self._previous = name
        return folder

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; None if none was ever saved; WeightsError if all are damaged."""
        damage: list[str] = []
        for name in self._checkpoint_names():
            try:
                arrays, facts = self._read_checkpoint(name)
                facts["lost"] = f"{'; '.join(damage)}; going on from {name}" if damage else None
                checkpoint = Checkpoint(name, arrays, **facts)
            except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
                damage.append(f"checkpoint {name} cannot be used ({_reason(error)})")
                continue
            self._previous = name
            return checkpoint
        if not damage:
            return None
        raise WeightsError(
            f"{self.path}: no checkpoint is whole: {'; '.join(damage)}",
            hint="Nothing was deleted. Bring the files back from a copy, or start a new run.",
        )

    def _read_checkpoint(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        folder = self.checkpoints / name
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        for file in (_ARRAYS, _STATE):
            if file_sha256(folder / file) != manifest["sha256"][file]:
                raise ValueError(f"{file} was changed: its SHA-256 is not the one in {_MANIFEST}")
        with np.load(folder / _ARRAYS, allow_pickle=False) as stored:
            arrays = dict(stored)
        return arrays, json.loads((folder / _STATE).read_text("utf-8"))

    def _checkpoint_names(self) -> list[str]:
        """Newest first, by number, for clocks jump. What LAST names is among them even if it is gone."""
        names = set(_names(self.checkpoints))
        with contextlib.suppress(OSError, UnicodeError):
            names.add((self.checkpoints / "LAST").read_text("utf-8").strip())
        return sorted(filter(_CHECKPOINT_NAME.fullmatch, names), key=_number, reverse=True)

    def _delete_checkpoint(self, name: str) -> None:
        """Our three files and the folder, which stays if somebody put anything else there."""
        folder = self.checkpoints / name
        with contextlib.suppress(OSError):
            for file in (_ARRAYS, _STATE, _MANIFEST):
                (folder / file).unlink(missing_ok=True)
            folder.rmdir()

    # --- run.lock

    @contextlib.contextmanager
    def lock(self, *, break_lock: bool = False) -> Iterator[None]:
        """Hold the run for training (see `locks.hold`), and remove what killed processes left half made."""
        with hold_lock(self.run_lock, f"{self.path} is in use", break_lock=break_lock):
            for folder in (self.path, self.checkpoints, self.figures):
                remove_leftovers(folder)
            yield


class ReadOnlyRun(Run):
    """The run of another process, the chief of a training on several machines: read here, and written only there."""

    def _write_state(self, status: Status, phases: Sequence[Mapping[str, Any]]) -> None: ...

    def _write_history(self, rows: Sequence[HistoryRow]) -> None: ...

    def save_checkpoint(self, step_name: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        return self.checkpoints / step_name


def create_run(output: Path, name: str, *, config: str = "", data_root: Path | None = None) -> Run:
    """A new run folder `output/<name>-<n>`, n one more than the highest there; never one that exists.

    It appears whole, with `config` as its config.yaml, so that a run that exists can always be resumed. `data_root` is
    a folder whose subfolders are read as classes; a run in it would become one of them. Raises ConfigError for a place
    or name that cannot be meant, ResourceError where files cannot be safely written.
    """
    if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise ConfigError(f"{name!r} cannot be the name of a run", hint="Use letters, digits, '-' and '_'.")
    refuse_run_folder(output, data_root)
    with explain_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        pattern = re.compile(re.escape(name) + r"-(\d+)")
        number = max((int(match[1]) for match in map(pattern.fullmatch, _names(output)) if match), default=0)
    while True:
        number += 1
        run = Run(output / f"{name}-{number}")
        try:
            atomic_write_folder(run.path, partial(_begin, config=config))
        except ResourceError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue  # somebody else was faster
            raise
        return run


def open_run(path: Path) -> Run:
    """The run in the folder `path`; UsageError if it is not one or was written by a newer version."""
    run = Run(path)
    _ = run.status
    return run


def _begin(folder: Path, config: str) -> None:
    run = Run(folder)
    # Twice: the second replaces the first, which some network file systems cannot. Better to know it now.
    run._write_state("not started", [])
    run._write_state("not started", [])
    if config:
        write_text(run.config_yaml, config)


def refuse_run_folder(output: Path, data_root: Path | None) -> None:
    """ConfigError for a folder that cannot be meant for runs: the data folder, the home folder, the root."""
    place = output.resolve()
    hint = "Give runs a folder of their own, such as --output runs"
    if data_root is not None and place.is_relative_to(data_root.resolve()):
        raise ConfigError(f"runs cannot go to {output}, inside the data folder {data_root}", hint=hint)
    with contextlib.suppress(RuntimeError):  # no home
        if place == Path.home().resolve():
            raise ConfigError(f"runs cannot go directly to the home folder {output}", hint=hint)
    if place == Path(place.anchor):
        raise ConfigError(f"runs cannot go directly to {output}", hint=hint)


def _names(folder: Path) -> list[str]:
    """The names of the folders in `folder`; none if it is not there."""
    try:
        return [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _number(checkpoint_name: str) -> int:
    return int(checkpoint_name.partition("-")[0])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return f"no {error} in it" if isinstance(error, KeyError) else str(error)


def _value(text: str) -> int | float | str:
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text
