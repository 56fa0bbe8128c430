"""Many files inspected at once, in worker processes, with what was found kept for the next time.

    for inspection in scan(paths, cache=cache_folder() / "scan.sqlite"): ...

A damaged file can end the process that decodes it, so the decoding is done by processes that may end. A
worker is a plain `python -c` fed with paths on its standard input, not one of `multiprocessing`: those import
the program that started them once more, which fails in a notebook or without a `__main__` guard, and takes
ten seconds where it imports TensorFlow. A worker answers file by file, so when it ends without a word the
guilty file is known.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import PIL

from finetune.data.images import Inspection, inspect_image
from finetune.utils import ResourceError, available_cores

RULES = f"2 / Pillow {PIL.__version__}"  # what an answer rests on; count up when `images` judges differently
GROUP = 512  # files looked up in the cache at once
SHARE = 32  # files given to a worker at once
MAX_CRASHES = 20  # then it is not the images
TABLE = "inspections_2"  # another name when the columns change
WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from finetune.data.scan import serve; serve()"


def scan_images(paths: Iterable[str], *, workers: int | None = None, cache: Path | None = None) -> Iterator[Inspection]:
    """An `Inspection` for each of `paths` (absolute), in their order, as they become known.

    `cache` is an sqlite file, made if needed, where answers are kept by path, size and time of change. A
    million paths may be passed lazily: no more than a few thousand are held. ResourceError when no worker can
    be started.
    """
    waiting: deque[_Group] = deque()
    iterator = iter(paths)
    with closing(_Workers(workers or min(32, available_cores()))) as pool, closing(_Cache(cache)) as known:
        while names := list(islice(iterator, GROUP)):
            found = known.find(names)
            missing = [name for name in names if name not in found]
            shares = [missing[start : start + SHARE] for start in range(0, len(missing), SHARE)]
            waiting.append((names, found, [pool.submit(share) for share in shares]))
            while len(waiting) > 4 or (waiting and not waiting[0][2]):
                yield from _finish(waiting.popleft(), known)
        while waiting:
            yield from _finish(waiting.popleft(), known)


_Group = tuple[list[str], dict[str, Inspection], list[Future[list[Inspection]]]]


def _finish(group: _Group, cache: "_Cache") -> Iterator[Inspection]:
    names, found, futures = group
    new = [inspection for future in futures for inspection in future.result()]
    cache.keep(new)
    found.update((inspection.path, inspection) for inspection in new)
    yield from map(found.__getitem__, names)


# ---------------------------------------------------------------------------------------------------- workers


def serve() -> None:
    """The worker's side: a line with a list of paths comes in, a line for each of them goes out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    print("ready", flush=True)
    for line in sys.stdin:
        for path in json.loads(line):
            print(json.dumps(inspect_image(path)), flush=True)


class _Workers:
    """Threads that each talk to one worker process, started when first needed."""

    def __init__(self, count: int) -> None:
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="scan")
        self.local = threading.local()
        self.lock = threading.Lock()
        self.processes: set[subprocess.Popen[str]] = set()
        self.crashes = 0
        self.closed = False

    def submit(self, paths: list[str]) -> Future[list[Inspection]]:
        return self.threads.submit(self._inspect, paths)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            for process in self.processes:
                process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            _end(process)

    def _inspect(self, paths: Sequence[str]) -> list[Inspection]:
        found: list[Inspection] = []
        while len(found) < len(paths) and not self.closed:
            process = getattr(self.local, "process", None) or self._start()
            found += _ask(process, paths[len(found) :])
            if len(found) < len(paths) and not self.closed:
                found.append(Inspection(paths[len(found)], f"its decoder crashed ({self._bury(process)})"))
        return found

    def _bury(self, process: subprocess.Popen[str]) -> str:
        how = _end(process)
        with self.lock:
            self.processes.discard(process)
            self.local.process = None
            self.crashes += 1
        if self.crashes > MAX_CRASHES:
            raise ResourceError(f"{self.crashes} processes that check the images crashed, the last with {how}")
        return how

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, json.dumps(sys.path)]
        with self.lock:
            if self.closed:
                raise ResourceError("the scan was stopped")
            try:
                process = subprocess.Popen(
                    command, text=True, encoding="ascii", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise ResourceError(f"cannot start a process that checks the images: {error}") from None
            self.processes.add(process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n" and not self.closed:
            raise ResourceError(f"a process that checks the images ended at once ({_end(process)})")
        self.local.process = process
        return process


def _ask(process: subprocess.Popen[str], paths: Sequence[str]) -> list[Inspection]:
    """The worker's answers; fewer than `paths` when it ended on the way."""
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    with suppress(OSError, ValueError):  # a broken pipe, or half a line
        process.stdin.write(json.dumps(paths) + "\n")
        process.stdin.flush()
        for _ in paths:
            path, reason, warnings, *facts = json.loads(process.stdout.readline())
            answers.append(Inspection(path, reason, tuple(warnings), *facts))
    return answers


def _end(process: subprocess.Popen[str]) -> str:
    """Close an ended or killed process; how it ended, in words."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it lives, but has said something else than an answer
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # unsent paths
            if pipe is not None:
                pipe.close()
    code = process.returncode
    return f"signal {-code}: {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


# ------------------------------------------------------------------------------------------------------ cache


class _Cache:
    """Answers by path, good while size, time of change and `RULES` are the same. Never a reason to fail."""

    def __init__(self, path: Path | None) -> None:
        self.database: sqlite3.Connection | None = None
        if path is not None:
            with suppress(OSError, sqlite3.OperationalError):  # read-only or full: go on without
                path.parent.mkdir(parents=True, exist_ok=True)
                self.database = self._open(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return self._connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            path.unlink()  # damaged, and only a cache
            return self._connect(path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=30, check_same_thread=False)
        try:
            database.execute("PRAGMA synchronous = OFF")  # losing answers with the power is no harm
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {TABLE} (path BLOB PRIMARY KEY, reason, warnings, format, "
                "width, height, sha256, fingerprint, size, mtime_ns, rules) WITHOUT ROWID"
            )
        except sqlite3.Error:
            database.close()
            raise
        return database

    def find(self, paths: list[str]) -> dict[str, Inspection]:
        if self.database is None:
            return {}
        names = {os.fsencode(path): path for path in paths}  # as bytes: not every name is text
        query = f"SELECT * FROM {TABLE} WHERE path IN ({','.join('?' * len(names))})"
        found = {}
        with suppress(sqlite3.Error):
            for path, reason, warnings, *facts, rules in self.database.execute(query, [*names]):
                name = names[path]
                if rules == RULES and _unchanged(name, *facts[-2:]):
                    remarks = tuple(warnings.splitlines()) if warnings else ()
                    found[name] = Inspection(name, reason, remarks, *facts)
        return found

    def keep(self, inspections: list[Inspection]) -> None:
        if self.database is None:
            return
        rows = [
            (os.fsencode(path), reason, "\n".join(warnings), *facts, RULES)
            for path, reason, warnings, *facts in inspections
            if facts[-1]  # a time of change: without one the file could not even be looked at
        ]
        with suppress(sqlite3.Error), self.database:
            self.database.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)

    def close(self) -> None:
        if self.database is not None:
            self.database.close()


def _unchanged(path: str, size: int, mtime_ns: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == size and status.st_mtime_ns == mtime_ns
