"""One training at a time in a run folder.

    with hold_lock(run.run_lock, "runs/flowers-1 is in use"):
        train()

The kernel keeps the lock (`filelock`) and drops it when its owner dies, however it dies, so nothing can be stale on
one computer. The note in `run.lock` says who the owner is. On another computer, or on a file system without locks,
the note is all there is, and then a person must decide (`--break-lock`).

The lock keeps trainings out of each other's way; that no file is ever torn rests on `atomic_write` alone.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune.utils import ResourceError, explain_os_errors, write_json

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # of some network drives


@contextmanager
def hold_lock(path: Path, busy: str, *, break_lock: bool = False) -> Iterator[None]:
    """Hold the lock whose note is the file `path`; ResourceError "`busy` by process ..." if another process has it.

    The note is removed afterwards; the lock itself is on the hidden file beside it, which stays (to remove a locked
    file is a race). `break_lock` overrides a note whose owner cannot be examined from here, never an owner that is
    known to be alive.
    """
    lock = FileLock(path.with_name(f".{path.name}"), blocking=False, fallback_to_soft=False)
    with explain_os_errors(path):
        held = _try_lock(lock)
    try:
        _refuse_owner(busy, held, _read_note(path), break_lock)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(path, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        try:
            yield
        finally:
            with suppress(OSError):  # the folder may be gone
                path.unlink()
    finally:
        lock.release()


def _try_lock(lock: FileLock) -> bool | None:
    """True: the lock is ours; False: another process has it; None: this file system has no locks."""
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _refuse_owner(busy: str, held: bool | None, note: dict[str, Any], break_lock: bool) -> None:
    """ResourceError if the owner in `note` is alive, or may be alive and `break_lock` does not say otherwise."""
    pid, host, since = (note.get(key) for key in ("pid", "host", "since"))
    owner = f"process {pid} on {host} since {since}" if note else "a process that has just started"
    here = host == socket.gethostname()
    if held is False:
        hint = f"Wait for it, or stop it: kill {pid}" if here else "Wait for it, or stop it there."
        raise ResourceError(f"{busy} by {owner}", hint=hint)
    if note and not (held and here) and not break_lock:
        raise ResourceError(
            f"{busy} by {owner}, and from here nobody can tell whether that still runs",
            hint="If it does not, say so with --break-lock.",
        )


def _read_note(path: Path) -> dict[str, Any]:
    """The owner of the lock; empty if there is none, or if the note is damaged."""
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
