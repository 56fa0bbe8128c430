"""Many files inspected at once, in worker processes, with the results kept for the next time.

    for inspection in scan_images(paths): ...

A damaged file can end the process that decodes it, so the decoding is done by processes that may end. A
worker is a plain `python -c` fed with paths on its standard input, not one of `multiprocessing`: those import
the program that started them once more, which fails in a notebook or without a `__main__` guard, and takes
ten seconds where it imports TensorFlow. A worker reports file by file, so when it crashes the guilty file is known.
"""

import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice

from finetune.data.inspection import Inspection, inspect_image
from finetune.data.scan_cache import ScanCache
from finetune.utils import ResourceError, available_cores, cache_folder

GROUP = 512  # files looked up in the cache at once
CHUNK = 32  # files given to a worker at once
MAX_GROUPS = 4  # waiting for workers
MAX_WORKERS = 32
MAX_CRASHES = 20  # with more, the images are not the cause
WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from finetune.data.scan import serve; serve()"

_Group = tuple[list[str], dict[str, Inspection], list[Future[list[Inspection]]]]  # paths, known, to come


def scan_images(paths: Iterable[str], *, workers: int | None = None, use_cache: bool = True) -> Iterator[Inspection]:
    """An `Inspection` for each of `paths` (absolute), in their order, as they become known.

    Results are kept in the cache folder by path and state of the file, so a file is decoded again only after a change.
    A million paths may be passed lazily: no more than a few thousand are held. Raises ResourceError when no
    worker can be started.
    """
    workers = workers or min(MAX_WORKERS, available_cores())
    cache_path = cache_folder() / "scan.sqlite" if use_cache else None
    waiting: deque[_Group] = deque()
    iterator = iter(paths)
    with (
        closing(_Workers(workers)) as pool,
        closing(ScanCache(cache_path)) as cache,
    ):
        while group := list(islice(iterator, GROUP)):
            known = cache.find(group)
            missing = [path for path in group if path not in known]
            chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
            waiting.append((group, known, [pool.submit(chunk) for chunk in chunks]))
            while waiting and (len(waiting) > MAX_GROUPS or not waiting[0][2]):
                yield from _finish(waiting.popleft(), cache)
        while waiting:
            yield from _finish(waiting.popleft(), cache)


def _finish(group: _Group, cache: ScanCache) -> Iterator[Inspection]:
    """Wait for what is to come of a group, keep it, and yield the whole group in order."""
    paths, known, futures = group
    new = [inspection for future in futures for inspection in future.result()]
    cache.keep(new)
    known.update((inspection.path, inspection) for inspection in new)
    for path in paths:
        yield known[path]


def serve() -> None:
    """The worker's side: reads lines with a list of paths each, writes a line for every path."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    print("ready", flush=True)
    for line in sys.stdin:
        for path in json.loads(line):
            print(json.dumps(inspect_image(path)), flush=True)


class _Workers:
    """Threads that each talk to one worker process, started when first needed."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="scan")
        self._local = threading.local()  # .process: the worker of a thread
        self._lock = threading.Lock()  # of what follows
        self._processes: set[subprocess.Popen[str]] = set()
        self._crashes = 0
        self._closed = False

    def submit(self, paths: list[str]) -> Future[list[Inspection]]:
        return self._threads.submit(self._inspect, paths)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            _end(process)

    def _inspect(self, paths: Sequence[str]) -> list[Inspection]:
        inspections: list[Inspection] = []
        while len(inspections) < len(paths) and not self._closed:
            process = getattr(self._local, "process", None) or self._start()
            inspections += _receive(process, paths[len(inspections) :])
            if len(inspections) < len(paths) and not self._closed:
                ending = _end(process)
                with self._lock:
                    self._processes.discard(process)
                    self._local.process = None
                    self._crashes += 1
                if self._crashes > MAX_CRASHES:
                    what = f"{self._crashes} processes that check the images crashed"
                    raise ResourceError(f"{what}, the last with {ending}")
                inspections.append(Inspection(paths[len(inspections)], f"its decoder crashed ({ending})"))
        return inspections

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, json.dumps(sys.path)]
        with self._lock:
            if self._closed:
                raise ResourceError("the scan was stopped")
            try:
                process = subprocess.Popen(
                    command, text=True, encoding="ascii", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise ResourceError(f"cannot start a process that checks the images: {error}") from None
            self._processes.add(process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n" and not self._closed:
            raise ResourceError(f"a process that checks the images ended at once ({_end(process)})")
        self._local.process = process
        return process


def _receive(process: subprocess.Popen[str], paths: Sequence[str]) -> list[Inspection]:
    """The worker's inspections of `paths`; fewer when it ended on the way."""
    assert process.stdin is not None
    assert process.stdout is not None
    inspections = []
    with suppress(OSError, ValueError):  # a broken pipe, or half a line
        process.stdin.write(json.dumps(paths) + "\n")
        process.stdin.flush()
        for _ in paths:
            path, reason, warnings, *facts = json.loads(process.stdout.readline())
            inspections.append(Inspection(path, reason, tuple(warnings), *facts))
    return inspections


def _end(process: subprocess.Popen[str]) -> str:
    """Close an ended or killed process; how it ended, in words."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it lives, but has written something else than an inspection
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # unsent paths
            if pipe is not None:
                pipe.close()
    code = process.returncode
    return f"signal {-code}: {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
