"""Writing so that no reader, crash or full disk ever leaves half a file under its final name.

    atomic_write(folder / "model.keras", model.save)
    write_json(folder / "run.json", {"seed": 0})

Everything is first written under a temporary name *in the same folder* (a rename to another file system would
be a copy, and a copy can be torn), forced to the disk, and then renamed, which is one indivisible step.
Whatever the operating system refuses becomes a `ResourceError` that names the file, the reason and the hint.

A temporary name is `.tmp-<computer>-<process id>-<process>-<random>-<final name>`: unique, never read as data, and with
the final suffix, because `model.save` and `numpy.savez` look at it. `remove_leftovers` removes those of killed
processes, and never what another computer, container or thread is writing.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.utils.environment import is_running, process_space
from finetune.utils.errors import ResourceError, UsageError
from finetune.utils.text import format_bytes

ABANDONED = 24 * 3600  # seconds without a change after which nobody can still be writing
_PROCESS = secrets.token_hex(4)  # tells this process from an earlier one with its id: in a container all have 1
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}-")

_MORE_SPACE = "Free some space, or use a folder on another disk."
_OTHER_FOLDER = "Repair the folder, or use another one."
_REASONS = {
    errno.ENOSPC: ("the disk is full", _MORE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _MORE_SPACE),
    errno.EFBIG: ("files may not be that large here (see `ulimit -f`)", _MORE_SPACE),
    errno.EACCES: ("no permission", _OTHER_FOLDER),
    errno.EPERM: ("no permission", _OTHER_FOLDER),
    errno.EROFS: ("the disk is read-only", "Use a folder on another disk."),
    errno.EIO: ("the disk reported an error", "Check the disk and its cable or network; save what is on it."),
    errno.ENOTDIR: ("part of the path is a file, not a folder", "Use another folder."),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "Use a shorter name."),
}


def atomic_write(path: Path, write: Callable[[Path], object], *, needed: int | None = None) -> None:
    """Let `write(temporary)` make a file, then rename it to `path` in one step, replacing an old one.

    `needed` is its size in bytes, if known, for the message when it does not fit. Raises ResourceError. After an
    exception before the rename the old `path` is untouched and nothing else is left.
    """
    with explain_os_errors(path, needed), _temporary(path) as temporary:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


def atomic_write_folder(path: Path, write: Callable[[Path], object], *, needed: int | None = None) -> None:
    """The same for a new folder, which `write(temporary)` fills; a folder that has files is never replaced."""
    with explain_os_errors(path, needed), _temporary(path) as temporary:
        temporary.mkdir()
        write(temporary)
        for entry in temporary.rglob("*"):
            _sync(entry)
        _sync(temporary)
        os.rename(temporary, path)
        _sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    atomic_write(path, lambda temporary: temporary.write_bytes(content), needed=len(content))


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8, atomically; a file name in it that is not UTF-8 keeps its bytes (surrogateescape)."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; in ASCII, so that any text survives."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(parts: Iterable[Any]) -> str:
    """The SHA-256 of `parts` (bytes, or buffers of numbers) one after another, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def temporary_name(path: Path) -> Path:
    """A new name beside `path` for a file that is being written; `remove_leftovers` knows it."""
    suffix = path.name[-50:]  # file systems allow 255 bytes, and a character takes up to 4
    return path.with_name(f".tmp-{process_space()}-{os.getpid()}-{_PROCESS}-{secrets.token_hex(4)}-{suffix}")


def refuse_existing(target: Path | None, overwrite: bool) -> None:
    """UsageError if `target`, a file that the user names (or None), is a folder, or a file that may not be replaced."""
    if target and target.is_dir():
        raise UsageError(f"{target} is a folder.", hint="Give the name of a file.")
    if target and target.exists() and not overwrite:
        raise UsageError(f"{target} exists already.", hint="Give another name, or add --overwrite.")


def require_space(folder: Path, needed: int) -> None:
    """ResourceError unless the disk of the existing `folder` has `needed` bytes free."""
    with explain_os_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: the disk has too little space (needed {format_bytes(needed)}, free {format_bytes(free)})",
            hint=_MORE_SPACE,
        )


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`.

    These are temporary names of processes that no longer run. Whether a process of another computer or container
    runs cannot be known: what it left goes when it is a day old.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = _TEMPORARY.match(entry.name)
        if match and (_writer_is_gone(*match.groups()) or _seconds_unchanged(entry) > ABANDONED):
            _remove(entry)


def _writer_is_gone(space: str, pid: str, process: str) -> bool:
    if space != process_space():
        return False
    return process != _PROCESS if int(pid) == os.getpid() else not is_running(int(pid))


def _seconds_unchanged(path: Path) -> float:
    """How long ago `path`, or a file in that folder, was written."""
    with suppress(OSError):  # it has just been renamed or removed
        return time.time() - max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    return 0.0


@contextmanager
def explain_os_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of the operating system about `path` into a ResourceError that says what to do.

    `needed` is the size in bytes that was to be written, if known.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by a library about a file's content, not by the operating system
            raise
        reason, hint = _REASONS.get(error.errno, (str(error), ""))
        if error.errno == errno.ENOENT and not path.parent.is_dir():
            reason, hint = f"the folder {path.parent} does not exist (any more)", _OTHER_FOLDER
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            sizes = [] if needed is None else [f"needed {format_bytes(needed)}"]
            with suppress(OSError):
                sizes.append(f"free {format_bytes(shutil.disk_usage(path.parent).free)}")
            reason += f" ({', '.join(sizes)})" if sizes else ""
        raise ResourceError(f"cannot write {path}: {reason}", hint=hint) from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = temporary_name(path)
    try:
        yield temporary
    finally:
        _remove(temporary)  # after a success it has been renamed: nothing to remove


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the file or folder is on the disk; otherwise a power loss may leave a name without content."""
    is_folder, on_windows = path.is_dir(), os.name == "nt"
    if is_folder and on_windows:
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot (FAT)
            raise
    finally:
        os.close(handle)
