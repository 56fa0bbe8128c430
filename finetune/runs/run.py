"""A run: one folder that holds everything about one training, and from which it can resume after any crash.

    run = create_run(Path("runs"), "flowers")         # -> runs/flowers-1
    with run.lock():
        checkpoint = run.load_checkpoint()            # None at the start: starting is resuming from nothing
        run.rewind(checkpoint)
        for epoch in ...:
            run.append_history({"phase": "head", "epoch": epoch, "loss": 0.3})
            run.save_checkpoint(f"head-{epoch}", arrays, state)

The newest whole checkpoint is the truth. `history.csv` and `state.json` are its readable copies: `rewind`
restores them to the moment when it was saved, so a resumed run has exactly the rows of one that was never
killed. The best weights so far belong into the same `arrays` (say, under `best/...`), with their score in
`state`; then no crash can separate the two. Nothing in the folder holds a path, so it may be moved.
"""

import contextlib
import csv
import errno
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from finetune.runs.checkpoints import Checkpoint, CheckpointFolder, HistoryRow, explain_damage, subfolder_names
from finetune.runs.lock import hold_lock
from finetune.utils import (
    ConfigError,
    ResourceError,
    UsageError,
    atomic_write_folder,
    did_you_mean,
    explain_os_errors,
    remove_leftovers,
    require_space,
    write_json,
    write_text,
)

FORMAT = 1
Status = Literal["not started", "running", "stopped", "done", "failed"]


class RunState(BaseModel):
    """The content of state.json."""

    format: int = FORMAT
    status: Status
    phases: list[dict[str, Any]]  # the finished ones, in order, each with its "name"


class Run:
    """A run folder, made by `create_run` or opened by `open_run`; only the holder of `lock()` may train in it."""

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
        self._checkpoint_folder = CheckpointFolder(self.checkpoints)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)  # a run is taken wherever the path of one is

    def require_space(self, needed: int) -> None:
        """ResourceError unless `needed` bytes are free on the disk of the run."""
        require_space(self.path, needed)

    @contextlib.contextmanager
    def lock(self, *, break_lock: bool = False) -> Iterator[None]:
        """Hold the run for training (see `hold_lock`), and remove the unfinished files of killed processes."""
        with hold_lock(self.run_lock, f"{self.path} is in use", break_lock=break_lock):
            for folder in (self.path, self.checkpoints, self.figures):
                remove_leftovers(folder)
            yield

    # --- state.json

    @property
    def status(self) -> Status:
        """How far the training is. UsageError if this is not a run, ResourceError if state.json is damaged."""
        return self._read_state().status

    @property
    def phases(self) -> list[dict[str, Any]]:
        """A mapping for each finished phase, in order, with its "name"."""
        return self._read_state().phases

    def set_status(self, status: Status) -> None:
        """Write `status` into state.json."""
        self._write_state(status, self.phases)

    def finish_phase(self, facts: Mapping[str, Any]) -> None:
        """Add a finished phase to state.json; a checkpoint should follow."""
        self._write_state(self.status, [*self.phases, dict(facts)])

    def _read_state(self) -> RunState:
        try:
            state = json.loads(self.state_json.read_bytes())
            if state["format"] <= FORMAT:
                return RunState.model_validate(state)
        except (FileNotFoundError, NotADirectoryError):
            near = did_you_mean(self.path.name, set(subfolder_names(self.path.parent)) - {self.path.name})
            raise UsageError(f"{self.path} is not a run: it has no state.json.{near}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResourceError(
                f"{self.state_json} cannot be used: {explain_damage(error)}",
                hint="Restore it from a copy, or start a new run.",
            ) from error
        raise UsageError(
            f"{self.path} was written by a newer finetune: format {state['format']}, known here: {FORMAT}",
            hint="Update: pip install --upgrade finetune",
        )

    def _write_state(self, status: Status, phases: Sequence[Mapping[str, Any]]) -> None:
        write_json(self.state_json, RunState(status=status, phases=[dict(phase) for phase in phases]).model_dump())

    # --- history.csv

    def history(self) -> list[HistoryRow]:
        """The rows of history.csv, numbers as int or float; a cell without a value is left out."""
        if not self.history_csv.exists():
            return []
        with self.history_csv.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            return [{key: _parse_cell(text) for key, text in row.items() if key and text} for row in table]

    def append_history(self, row: HistoryRow) -> None:
        """Add the row of an epoch; it may have new columns. Append first, then save the checkpoint."""
        self._write_history([*self.history(), row])

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Restore history.csv and the finished phases to what they were at `checkpoint` (None: empty)."""
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
        """Save arrays, the JSON `state`, the history and the finished phases (see `CheckpointFolder.save`)."""
        with explain_os_errors(self.checkpoints):  # the run may have disappeared
            self.checkpoints.mkdir(exist_ok=True)
        return self._checkpoint_folder.save(step_name, arrays, state, self.history(), self.phases)

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; None if none was ever saved; WeightsError if all are damaged."""
        return self._checkpoint_folder.load()


class ReadOnlyRun(Run):
    """The run of another process, rank 0 of a distributed training: read here, and written only there."""

    def _write_state(self, status: Status, phases: Sequence[Mapping[str, Any]]) -> None: ...

    def _write_history(self, rows: Sequence[HistoryRow]) -> None: ...

    def save_checkpoint(self, step_name: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        return self.checkpoints / step_name


def create_run(
    output: Path, name: str, *, config: str = "", data_root: Path | None = None, path: Path | None = None
) -> Run:
    """Make a run folder `output/<name>-<n>`, n one more than the highest there, or `path`; never one that exists.

    It appears whole, with `config` as its config.yaml, so that a run that exists can always be resumed. `data_root` is
    a folder whose subfolders are read as classes; a run in it would become one of them. Raises ConfigError for a place
    or name that cannot be meant, UsageError if `path` exists, ResourceError where files cannot be safely written.
    """
    if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise ConfigError(f"{name!r} cannot be the name of a run", hint="Use letters, digits, '-' and '_'.")
    refuse_run_folder(path or output, data_root)
    parent = path.absolute().parent if path else output
    with explain_os_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)

    def write(folder: Path) -> None:
        run = Run(folder)
        # Twice: the second replaces the first, which some network file systems cannot. Better to know it now.
        run._write_state("not started", [])
        run._write_state("not started", [])
        if config:
            write_text(run.config_yaml, config)

    for folder in [path] if path else _numbered_folders(output, name):
        try:
            atomic_write_folder(folder, write)
        except ResourceError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue  # another process was faster
            raise
        return Run(folder)
    raise _taken(path or output)


def refuse_taken(path: Path) -> None:
    """UsageError if `path` cannot become a run folder, because something is there already."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise _taken(path)


def _taken(path: Path) -> UsageError:
    hint = "Give another --run-dir, or resume the run that is there with --resume."
    return UsageError(f"{path} exists already.", hint=hint)


def _numbered_folders(output: Path, name: str) -> Iterator[Path]:
    """`output/<name>-<n>` for every n above those that are there."""
    with explain_os_errors(output):
        matches = map(re.compile(re.escape(name) + r"-(\d+)").fullmatch, subfolder_names(output))
        highest = max((int(match[1]) for match in matches if match), default=0)
    for number in itertools.count(highest + 1):
        yield output / f"{name}-{number}"


def open_run(path: Path) -> Run:
    """The run in the folder `path`; UsageError if it is not one or was written by a newer version."""
    run = Run(path)
    _ = run.status
    return run


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


def _parse_cell(text: str) -> int | float | str:
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text
