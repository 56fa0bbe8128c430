"""Inspections kept in an SQLite file, for images that have not changed since."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import PIL

from finetune.data.inspection import Inspection, file_state

RULES = f"4 / Pillow {PIL.__version__}"  # count up when `images` judges differently: older results are then not used
TABLE = "inspections_3"  # another name when the columns change


class ScanCache:
    """Inspections by path, valid while the state of the file and `RULES` are the same.

    A file that cannot be read or written is never a reason to fail: the cache is then empty, or not kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._database: sqlite3.Connection | None = None
        if path is not None:
            with suppress(OSError, sqlite3.OperationalError):  # a read-only or full disk
                path.parent.mkdir(parents=True, exist_ok=True)
                self._database = _open(path)

    def find(self, paths: Sequence[str]) -> dict[str, Inspection]:
        """The inspections known of `paths`, by path."""
        if self._database is None:
            return {}
        path_of = {os.fsencode(path): path for path in paths}  # as bytes: not every name is text
        query = f"SELECT * FROM {TABLE} WHERE path IN ({','.join('?' * len(path_of))})"
        known = {}
        with suppress(sqlite3.Error):
            for encoded, reason, warnings, *facts, rules in self._database.execute(query, [*path_of]):
                path = path_of[encoded]
                if rules == RULES and facts[-1] == file_state(path):
                    known[path] = Inspection(path, reason, tuple(warnings.splitlines()), *facts)
        return known

    def keep(self, inspections: Sequence[Inspection]) -> None:
        """Add results about the content of files; what keeps a file from being read (no `state`) may pass."""
        if self._database is None:
            return
        rows = [
            (os.fsencode(path), reason, "\n".join(warnings), *facts, RULES)
            for path, reason, warnings, *facts in inspections
            if facts[-1]
        ]
        with suppress(sqlite3.Error), self._database:
            self._database.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?,?,?,?,?,?,?,?,?,?)", rows)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        path.unlink()  # damaged, and only a cache
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    try:
        database.execute("PRAGMA synchronous = OFF")  # losing results in a power cut does no harm
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (path BLOB PRIMARY KEY, reason, warnings, format, "
            "width, height, sha256, fingerprint, state, rules) WITHOUT ROWID"
        )
    except sqlite3.Error:
        database.close()
        raise
    return database
