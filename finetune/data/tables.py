"""A CSV table with a row per image: its path, its label or labels, and perhaps its split.

Every row is checked before one error names all that is wrong, with line numbers.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from finetune.config import DataConfig
from finetune.data.labels import SEPARATOR
from finetune.data.listing import Listing, list_multiclass, list_multilabel
from finetune.data.problems import Problem, join_some, problems_error
from finetune.data.splits import SPLITS, UNASSIGNED, split_of_name
from finetune.utils import DataError, did_you_mean, printable

SAMPLE = 20  # rows that `guess_columns` looks at
LABEL_NAMES = ("label", "class", "category", "target", "class_name", "label_name", "species", "labels")
TICKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class Row(NamedTuple):
    """One image of a table; `label` has any number of names with `|` between where images have several labels."""

    line: int
    name: str
    label: str
    split: str


def read_table(table: Path, config: DataConfig) -> Listing:
    """The images of `table`, with the columns that `config` names; paths are relative to the table.

    With `config.multi_label` the cell of a label holds any number of names with `|` between, or each of
    `config.label_columns` holds 0 or 1. Raises DataError that names every bad row.
    """
    root = table.absolute().parent
    rows, problems = _read_rows(table, root, config)
    if any(row.split for row in rows):
        where = config.split_column
        problems += [(f"line {row.line}", f"no {where}, though other rows have one") for row in rows if not row.split]
    if problems:
        several = not config.multi_label and any(SEPARATOR in row.label for row in rows)
        hint = "if an image may have several labels or none: data.multi_label=true" if several else ""
        raise problems_error(f"{printable(table)}: {len(problems)} rows cannot be used", problems, hint)
    if not rows:
        header = ",".join([config.path_column, *(config.label_columns or [config.label_column])])
        raise DataError(f"{printable(table)} has no rows", hint=f"expected a line {header} and then a row per image")
    names = [row.name for row in rows]
    labels = [row.label for row in rows]
    splits = [split_of_name(row.split) for row in rows]
    if config.multi_label:
        return list_multilabel(table.stem, root, names, labels, splits, config.label_columns)
    return list_multiclass(table.stem, root, names, labels, splits)


def guess_columns(table: Path) -> dict[str, str]:
    """The `path_column`, `label_column` and `split_column` that a table seems to have, where not the usual ones.

    Goes by the first rows: paths are of files that are there, splits have the names of splits, and the label is what is
    left, or what is called like one. A column that cannot be guessed is absent.
    """
    rows = [cells for _, cells in islice(_read_csv(table, ()), SAMPLE)]
    columns = list(rows[0]) if rows else []

    def hits(column: str, is_one: Callable[[str], bool]) -> int:
        return sum(is_one(cells.get(column, "").strip()) for cells in rows)

    guessed = {}
    path, split = "path", "split"
    if "path" not in columns:
        files = {
            column: hits(column, lambda text: bool(text) and (table.parent / text).is_file()) for column in columns
        }
        path = max(files, key=files.__getitem__, default="path")
        if files.get(path):
            guessed["path_column"] = path
    if "split" not in columns:
        splits = [
            column for column in columns if hits(column, lambda text: split_of_name(text) != UNASSIGNED) == len(rows)
        ]
        if len(splits) == 1:
            split = guessed["split_column"] = splits[0]
    if "label" not in columns:
        left = [column for column in columns if column not in (path, split)]
        named = [column for column in left if column.lower() in LABEL_NAMES]
        if len(left) == 1 or named:
            guessed["label_column"] = (named or left)[0]
    return guessed


def _read_rows(table: Path, root: Path, config: DataConfig) -> tuple[list[Row], list[Problem]]:
    """Every row, and what is wrong with those that cannot be used."""
    rows: list[Row] = []
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for line, cells in _read_csv(table, (config.path_column, *(config.label_columns or (config.label_column,)))):
        path = cells.get(config.path_column, "")
        label = cells.get(config.label_column, "").strip()
        if config.label_columns:
            label, bad_cell = _join_ticked(cells, config.label_columns)
            if bad_cell:
                problems.append((f"line {line}", bad_cell))
        # Relative to the table if below it, so that both can be moved; else absolute.
        whole = os.path.normpath(os.path.join(root, path))
        name = whole.removeprefix(os.path.join(root, "")).replace(os.sep, "/")
        row = Row(line, name, label, cells.get(config.split_column, "").strip().lower())
        problem = ""
        if not path:
            problem = "no path"
        elif name in line_of:
            problem = f"{printable(path)} was in line {line_of[name]} already"
        elif not os.path.isfile(whole):
            problem = f"no such file: {printable(path)}"
        elif not label and not config.multi_label:
            problem = f"no label for {printable(path)}"
        elif row.split and split_of_name(row.split) == UNASSIGNED:
            problem = f"unknown split {printable(row.split)!r}, expected {', '.join(SPLITS)}"
        if problem:
            problems.append((f"line {line}", problem))
        line_of.setdefault(name, line)
        rows.append(row)
    return rows, problems


def _join_ticked(cells: dict[str, str], columns: Sequence[str]) -> tuple[str, str]:
    """The names of the columns that hold a 1 with `|` between, and what is wrong with another cell, or ""."""
    ticked = []
    problem = ""
    for column in columns:
        text = cells.get(column, "").strip().lower()
        if text not in TICKS:
            problem = problem or f"{printable(text)!r} in column {printable(column)}, expected 0 or 1"
        elif TICKS[text]:
            ticked.append(column)
    return SEPARATOR.join(ticked), problem


def _read_csv(table: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row; comma, semicolon or tab. Bytes that are not UTF-8 are kept."""
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
            if header.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                raise DataError(f"{printable(table)} is UTF-16 text", hint="save it as UTF-8")
            delimiter = max(",;\t", key=header.count)
            columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
            for column in required:
                if column not in columns:
                    hint = did_you_mean(column, columns) or f" It has: {join_some(columns)}."
                    what = f"{printable(table)}: there is no column {column!r}.{hint}"
                    raise DataError(what, hint="data.path_column, data.label_column and data.label_columns name them")
            reader = csv.reader(file, delimiter=delimiter)
            last = 1  # a row may have line breaks in it: its first line is the one after the last of the row before
            for row in reader:
                if row:
                    yield last + 1, dict(zip(columns, row, strict=False))
                last = 1 + reader.line_num
    except OSError as error:
        near = ""
        if isinstance(error, FileNotFoundError) and table.parent.is_dir():
            near = did_you_mean(table.name, [entry.name for entry in table.parent.iterdir()])
        raise DataError(f"{printable(table)} cannot be read: {error.strerror or error}.{near}") from None
    except csv.Error as error:
        raise DataError(f"{printable(table)} is not a CSV table: {error}") from None
