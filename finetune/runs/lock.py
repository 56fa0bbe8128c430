"""One training at a time in a run folder.

The kernel keeps the lock (`flock`) and drops it when its owner dies, however it dies: nothing can be stale on
one computer, and no reused process id can fool it. The note in the file says who the owner is. Another
computer, or a file system without locks, has only the note to go by, and then a person must decide.

A courtesy between trainings: that no file is ever torn rests on `files.commit` alone.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.utils import ResourceError, explain_os_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def hold_lock(path: Path, busy: str, *, break_lock: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, gone afterwards; ResourceError "`busy` by process ..." if another has it.

    `break_lock` overrides a note whose owner cannot be examined from here, never an owner known to be alive.
    """
    with explain_os_errors(path):
        handle, held = _open(path)
    try:
        _refuse(busy, held, _read_note(handle), break_lock)
    except ResourceError:
        os.close(handle)
        raise
    try:
        with explain_os_errors(path):
            _write_note(handle)
        yield
    finally:
        with suppress(OSError):  # the folder may be gone; closing is what frees the lock
            os.ftruncate(handle, 0)
            path.unlink()
        os.close(handle)


def _open(path: Path) -> tuple[int, bool | None]:
    """Open and try to lock `path`: (handle, True: it is ours, False: another's, None: no locks here)."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        held = _try_lock(handle)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle, held
        os.close(handle)  # its owner removed the file between our two steps: what we locked has no name now


def _try_lock(handle: int) -> bool | None:
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _refuse(busy: str, held: bool | None, note: Mapping[str, Any], break_lock: bool) -> None:
    pid, host, since = (note.get(key) for key in ("pid", "host", "since"))
    owner = f"process {pid} on {host} since {since}" if note else "a process that has just begun"
    here = host == socket.gethostname()
    if held is False:
        hint = f"Wait for it, or stop it: kill {pid}" if here else "Wait for it, or stop it there."
        raise ResourceError(f"{busy} by {owner}", hint=hint)
    if note and not (held and here) and not break_lock:
        raise ResourceError(
            f"{busy} by {owner}, and from here nobody can tell whether that still runs",
            hint="If it does not, say so with --break-lock.",
        )


def _read_note(handle: int) -> dict[str, Any]:
    """Who has the lock; empty if it is new, or if its owner is just writing, or was killed while writing."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        note = json.loads(os.read(handle, 4096))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(handle: int) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(note).encode())
