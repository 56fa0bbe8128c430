"""Predictions as JSON and as CSV, written one by one; a table that was interrupted can be continued.

layout = TableLayout(top=5)
so_far = read_partial(Path("out.csv"), layout)
with open_table(Path("out.csv"), layout, so_far) as table:
    table.write(prediction)
"""

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, TextIO

from finetune.data import SEPARATOR
from finetune.models.predictor import Prediction
from finetune.utils import UsageError, atomic_write, csv_cell, explain_os_errors, printable

SCORE_COLUMNS = ("class", "id", "probability")


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


@dataclass(frozen=True)
class TableLayout:
    """The columns of a table: path, the `top` likeliest classes of the image, what is predicted, error.

    A class is its name, WordNet id and probability: three columns each in one row per image, or, with `long`, three
    columns and a row per image and class, with its rank. `decision` names a column for what is predicted where that
    is not simply the likeliest class: "labels" (any number, with "|" between), or "predicted" (may be "unknown").
    """

    top: int
    long: bool = False
    decision: Literal["", "labels", "predicted"] = ""

    @cached_property
    def header(self) -> list[str]:
        ranks = [f"_{rank}" for rank in range(1, self.top + 1)]
        classes = [f"{name}{rank}" for rank in ranks for name in SCORE_COLUMNS]
        decision = [self.decision] if self.decision else []
        return ["path", *(["rank", *SCORE_COLUMNS] if self.long else classes), *decision, "error"]

    def rows(self, prediction: Prediction) -> list[list[str]]:
        """The rows of an image, as they are written."""
        scores = [[score.name, score.id, f"{score.probability:.6f}"] for score in prediction.predictions]
        if self.long:
            middles = [[str(rank), *score] for rank, score in enumerate(scores, 1)] or [[]]
        else:
            middles = [list(chain.from_iterable(scores))]
        end = [prediction.error]
        if self.decision:
            decided = prediction.shown[:1] if prediction.labels is None else prediction.labels
            end = [SEPARATOR.join(score.name for score in decided), prediction.error]
        rows = []
        for middle in middles:
            missing = len(self.header) - 1 - len(middle) - len(end)
            cells = [printable(prediction.path), *middle, *[""] * missing, *end]
            rows.append([csv_cell(cell) for cell in cells])
        return rows

    def is_complete(self, rows: Sequence[Sequence[str]]) -> bool:
        """Whether these are all rows of an image."""
        return not self.long or len(rows) == self.top or bool(rows[0][-1])


class CsvWriter:
    """A table of predictions. What is written about an image is complete at once, so that `predict` can be resumed."""

    def __init__(self, stream: TextIO, layout: TableLayout, *, has_header: bool = False) -> None:
        self._stream = stream
        self._writer = csv.writer(stream)
        self._layout = layout
        if not has_header:
            self._writer.writerow(layout.header)

    def write(self, prediction: Prediction) -> None:
        self._writer.writerows(self._layout.rows(prediction))
        self._stream.flush()


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


def read_partial(table: Path, layout: TableLayout) -> PartialTable:
    """The rows of `table` so far, none if there is no file. Raises UsageError when they have other columns."""
    file = next((file for file in (partial_path(table), table) if file.exists()), None)
    partial = PartialTable(file)
    if file is None:
        return partial
    columns = layout.header
    header = (",".join(columns) + "\r\n").encode()
    rows: list[list[str]] = []  # of one image
    size, class_column = 0, 2 if layout.long else 1
    with explain_os_errors(file), file.open("rb") as stream:
        first = stream.readline()
        if not header.startswith(first):
            raise UsageError(
                f"{file} has other columns than this command would write.",
                hint="Give the same --model, --top, --long and --precision, or start again with --overwrite.",
            )
        if first != header:
            return partial
        partial.size = size = len(first)
        for line in stream:
            row = next(csv.reader([line.decode("utf-8", "surrogateescape")]))
            if not line.endswith(b"\r\n") or len(row) != len(columns):
                break
            size += len(line)
            rows.append(row)
            if not layout.is_complete(rows):
                continue
            partial.size = size
            partial.paths.add(row[0])
            if row[-1]:
                partial.problems.append(Prediction(row[0], error=row[-1]))
            else:
                partial.classes.add(rows[0][class_column])
            rows = []
    return partial


@contextmanager
def open_table(target: Path, layout: TableLayout, so_far: PartialTable) -> Iterator[CsvWriter]:
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
            yield CsvWriter(stream, layout, has_header=so_far.size > 0)
        atomic_write(target, part.replace)
