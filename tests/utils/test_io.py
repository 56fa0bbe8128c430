"""Half a file under a final name, whatever happens: real kills, real full disks, readers in parallel."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.utils import (
    ResourceError,
    UsageError,
    atomic_write,
    atomic_write_folder,
    file_sha256,
    refuse_existing,
    remove_leftovers,
    require_space,
    sha256_of,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)

ENDLESS_WRITER = """
import sys
from pathlib import Path
from finetune.utils import write_bytes
path, size = Path(sys.argv[1]), 300_000
for n in range(10**9):
    write_bytes(path, str(n % 10).encode() * size)
    print(n, flush=True)
"""


def child(code: str, *args: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "größe.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "ä\udcff"})
    assert json.loads(path.read_bytes()) == {"a": "ä\udcff"}
    assert names(tmp_path) == {path.name}


def test_text_keeps_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "list", os.fsdecode(b"\xff.jpg\n"))
    assert (tmp_path / "list").read_bytes() == b"\xff.jpg\n"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.keras"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        assert temporary.suffix == ".keras"
        assert temporary.parent == tmp_path
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == {"model.keras"}


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        atomic_write_folder(tmp_path / "new", write)
    assert names(tmp_path) == set()


def test_folder_with_files_is_never_replaced(tmp_path: Path) -> None:
    atomic_write_folder(tmp_path / "a", lambda folder: (folder / "x").write_text("first"))
    with pytest.raises(ResourceError, match="cannot write"):
        atomic_write_folder(tmp_path / "a", lambda folder: (folder / "x").write_text("second"))
    assert (tmp_path / "a" / "x").read_text() == "first"
    assert names(tmp_path) == {"a"}


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        events.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        real_sync(handle)

    def replace(old: Path, new: Path) -> None:
        events.append("rename")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a", "x")
    assert events == ["file", "rename", "folder"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        write_text(tmp_path / "private", "x")
        os.umask(0o002)
        write_text(tmp_path / "group", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "group").stat().st_mode & 0o777 == 0o664


def test_folder_that_disappeared_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"gone.*does not exist \(any more\)"):
        write_text(tmp_path / "gone" / "a", "x")


def test_long_name_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="name is too long"):
        write_text(tmp_path / ("x" * 300), "x")


def test_errors_about_content_are_not_disguised(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        raise OSError("not an image")

    with pytest.raises(OSError, match="not an image"):
        atomic_write(tmp_path / "a", write)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EDQUOT, r"quota is used up \(free .*\)\n.*space"),
        (errno.EIO, r"disk reported an error\n.*Check the disk"),
        (errno.EROFS, r"read-only\n.*another disk"),
        (errno.EACCES, r"no permission\n.*another"),
        (errno.ESTALE, "Stale file handle"),
    ],
)
def test_trouble_of_the_disk_is_explained(tmp_path: Path, number: int, message: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number), str(temporary))

    with pytest.raises(ResourceError, match=f"cannot write .*model.*: .*{message}"):
        atomic_write(tmp_path / "model", write)
    assert names(tmp_path) == set()


def test_missing_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write everywhere")
        with pytest.raises(ResourceError, match="no permission"):
            write_text(tmp_path / "a", "x")
    finally:
        tmp_path.chmod(0o700)


def test_too_large_file_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"a: files may not be that large.*needed 200\.0 KB, free "):
            write_bytes(path, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


def test_full_disk_keeps_the_old_file_and_gives_figures(small_disk: Path) -> None:
    path = small_disk / "a"
    write_bytes(path, b"o" * 600_000)
    with pytest.raises(ResourceError, match=r"disk is full \(needed 700\.0 KB, free 4\d\d\.\d KB\)\n.*space"):
        write_bytes(path, b"n" * 700_000)
    assert path.read_bytes() == b"o" * 600_000
    assert names(small_disk) == {"a"}


def test_space_is_required_in_advance(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(ResourceError, match=r"needed 1000000000\.0 GB, free "):
        require_space(tmp_path, 10**18)


def test_remove_leftovers_takes_only_what_the_dead_left(tmp_path: Path) -> None:
    leave = """
import sys
from pathlib import Path
from finetune.utils import temporary_name
folder = Path(sys.argv[1])
temporary_name(folder / "a.npy").write_text("")
temporary_name(folder / "folder").mkdir()
(folder / "link").rename(temporary_name(folder / "link"))
"""
    (tmp_path / "x").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    dead = child(leave, tmp_path)
    dead.communicate()
    assert dead.returncode == 0
    (folder,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    (folder / "file").write_text("")
    living = temporary_name(tmp_path / "x")
    living = living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
    kept = {"x", "mine.tmp-1", ".tmp-my-notes", living.name}
    for name in kept:
        (tmp_path / name).write_text("")
    assert len(names(tmp_path)) == len(kept) + 3
    remove_leftovers(tmp_path)
    assert names(tmp_path) == kept
    remove_leftovers(tmp_path / "absent")


def test_what_this_process_is_writing_is_kept_and_that_of_its_forerunner_is_not(tmp_path: Path) -> None:
    """Two trainings in two threads; a container that restarts with the same process id."""
    own = temporary_name(tmp_path / "own")
    own.write_text("half")
    space, pid, process, *rest = own.name.removeprefix(".tmp-").split("-")
    earlier = "0" * len(process)
    (tmp_path / "-".join([f".tmp-{space}", pid, earlier, *rest])).write_text("half")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {own.name}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_another_computer_or_container_is_writing_is_kept_for_a_day(tmp_path: Path, kind: str) -> None:
    """All containers are process 1, and a process id of another computer says nothing here."""
    name = temporary_name(tmp_path / "x").name
    space, pid, *rest = name.removeprefix(".tmp-").split("-")
    foreign = tmp_path / "-".join([".tmp-00000000" if space != "0" * 8 else ".tmp-11111111", pid, *rest])
    content = foreign
    if kind == "folder":
        foreign.mkdir()
        content = foreign / "file"
    content.write_text("half")
    remove_leftovers(tmp_path)
    assert foreign.exists()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(foreign, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert foreign.exists() == (kind == "folder")  # its file is new
    if kind == "folder":
        os.utime(content, (long_ago, long_ago))
        remove_leftovers(tmp_path)
    assert not foreign.exists()


def test_digests_of_files_and_of_parts(tmp_path: Path) -> None:
    write_bytes(tmp_path / "abc", b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == sha256_of([b"a", b"bc"]) == digest


def test_a_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    refuse_existing(None, overwrite=False)
    refuse_existing(tmp_path / "new", overwrite=False)
    refuse_existing(tmp_path / "a", overwrite=True)
    with pytest.raises(UsageError, match="exists already"):
        refuse_existing(tmp_path / "a", overwrite=False)
    with pytest.raises(UsageError, match="is a folder"):
        refuse_existing(tmp_path, overwrite=True)


@pytest.mark.slow
def test_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    """20 kill -9 in the middle of endless writing, with a reader that looks all the time."""
    path = tmp_path / "data"
    torn, reads, done = [], 0, threading.Event()

    def read() -> None:
        nonlocal reads
        while not done.is_set():
            content = path.read_bytes() if path.exists() else b""
            reads += 1
            if content and content != content[:1] * 300_000:
                torn.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    chance = random.Random(7)
    for _ in range(20):
        writer = child(ENDLESS_WRITER, path)
        assert writer.stdout
        writer.stdout.readline()  # it has begun
        time.sleep(chance.random() * 0.03)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    done.set()
    reader.join()
    assert not torn
    assert reads > 100
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"data"}
