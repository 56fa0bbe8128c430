"""Many problems in one message: the first of them, and a table with all."""

import csv
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress

from finetune.utils import DataError, csv_cell, printable

Problem = tuple[str, str]  # where, and what is wrong there; both printable
SHOWN = 20


def join_some(items: Iterable[str], most: int = SHOWN) -> str:
    """`a, b, c and 7 more`."""
    names = list(items)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def problems_error(what: str, problems: Sequence[Problem], hint: str = "") -> DataError:
    """An error with the `problems` below it."""
    return DataError(f"{what}:{format_problems(problems)}", hint=hint)


def format_problems(problems: Sequence[Problem], most: int = SHOWN) -> str:
    """The first of `problems`, a line each; if there are more, also the path of a temporary table with all of them."""
    shown = "".join(f"\n  {where}: {what}" if what else f"\n  {where}" for where, what in problems[:most])
    if len(problems) > most:
        shown += f"\n  ... and {len(problems) - most:,} more"
        with suppress(OSError):  # the message matters more than the table, say on a full disk
            with tempfile.NamedTemporaryFile(
                "w", prefix="finetune-problems-", suffix=".csv", encoding="utf-8", newline="", delete=False
            ) as file:
                table = csv.writer(file)
                table.writerow(("where", "problem"))
                table.writerows((csv_cell(where), csv_cell(what)) for where, what in problems)
            shown += f"; all are in {file.name}"
    return shown
