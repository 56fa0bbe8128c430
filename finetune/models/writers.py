"""Predictions as JSON and as CSV, written one by one; a table that was interrupted can be continued.

so_far = read_partial(Path("out.csv"), top=5)
with open_table(Path("out.csv"), 5, so_far) as table:
    table.write(prediction)
"""

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from finetune.data import SEPARATOR
from finetune.models.predictor import Prediction
from finetune.utils import UsageError, atomic_write, csv_cell, explain_os_errors, printable


class JsonWriter:
    """One JSON array, a line per image, written as the predictions come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._between = "[\n "

    def write(self, prediction: Prediction) -> None:
        self._stream.write(self._between + json.dumps(prediction.to_json()))
        self._between = ",\n "

    def close(self) -> None:
        self._stream.write("\n]\n" if self._between.startswith(",") else "[]\n")


class CsvWriter:
    """A row per image: path, then class, id and probability of the `top` likeliest classes, then error.

    With `labels` (multi-label tasks) the last column but one holds the classes over their thresholds.
    Every row is one line and is written at once, so that an interrupted `predict` can be resumed.
    """

    def __init__(self, stream: TextIO, top: int, *, has_header: bool = False, labels: bool = False) -> None:
        self._stream = stream
        self._writer = csv.writer(stream)
        self._top, self._labels = top, labels
        if not has_header:
            self._writer.writerow(csv_header(top, labels))

    def write(self, prediction: Prediction) -> None:
        cells: list[str] = []
        for score in prediction.predictions:
            cells += [score.name, score.id, f"{score.probability:.6f}"]
        cells += [""] * (3 * self._top - len(cells))
        if self._labels:
            cells.append(SEPARATOR.join(score.name for score in prediction.labels or ()))
        self._writer.writerow(map(csv_cell, (printable(prediction.path), *cells, prediction.error)))
        self._stream.flush()


def csv_header(top: int, labels: bool = False) -> list[str]:
    """The first row of a table with the `top` likeliest classes of each image."""
    columns = [f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "id", "probability")]
    return ["path", *columns, *(["labels"] if labels else []), "error"]


def partial_path(table: Path) -> Path:
    """The file that holds the rows of `table` until it is complete."""
    return table.with_name(f"{table.name}.part")


@dataclass
class PartialTable:
    """The rows that an interrupted `predict` left: the first `size` bytes of `file`; what follows is incomplete.

    `paths` and `classes` (the likeliest of each image) are the cells as written; `problems` the rows with an error.
    """

    file: Path | None = None
    size: int = 0
    paths: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)
    problems: list[Prediction] = field(default_factory=list)

    def has(self, path: str) -> bool:
        """Whether the image has its row already."""
        return csv_cell(printable(path)) in self.paths


def read_partial(table: Path, top: int, labels: bool = False) -> PartialTable:
    """The rows of `table` so far, none if there is no file. Raises UsageError when they have other columns."""
    file = next((file for file in (partial_path(table), table) if file.exists()), None)
    partial = PartialTable(file)
    if file is None:
        return partial
    columns = csv_header(top, labels)
    header = (",".join(columns) + "\r\n").encode()
    with explain_os_errors(file), file.open("rb") as stream:
        first = stream.readline()
        if not header.startswith(first):
            raise UsageError(
                f"{file} has other columns than this command would write.",
                hint="Give the same --model, --top and --imagenet as then, or start again with --overwrite.",
            )
        if first != header:
            return partial
        partial.size = len(first)
        for line in stream:
            row = next(csv.reader([line.decode("utf-8", "surrogateescape")]))
            if not line.endswith(b"\r\n") or len(row) != len(columns):
                break
            partial.size += len(line)
            partial.paths.add(row[0])
            if row[-1]:
                partial.problems.append(Prediction(row[0], error=row[-1]))
            else:
                partial.classes.add(row[1])
    return partial


@contextmanager
def open_table(target: Path, top: int, so_far: PartialTable, labels: bool = False) -> Iterator[CsvWriter]:
    """A writer that appends to the rows `so_far` of `target`; the rows are in `partial_path(target)` until the end.

    Raises ResourceError when they cannot be written.
    """
    part = partial_path(target)
    with explain_os_errors(target):
        if so_far.file == target:
            shutil.copyfile(target, part)
        with part.open("ab") as binary:
            binary.truncate(so_far.size)
        with part.open("a", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield CsvWriter(stream, top, has_header=so_far.size > 0, labels=labels)
        atomic_write(target, part.replace)
