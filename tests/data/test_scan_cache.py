"""A file is decoded once; what is kept of it is not used after a change, and never a reason to fail."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from finetune.data import inspect_image, scan_images
from finetune.data.scan_cache import TABLE
from finetune.utils import ResourceError


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for index in range(40):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.new("RGB", (20 + index, 20), (index, 0, 0)).save(paths[-1])
    return paths


def test_the_second_time_nothing_is_decoded(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path(images[3]).write_bytes(b"not an image")
    first = list(scan_images(images))
    monkeypatch.setattr("finetune.data.scan.WORKER", "raise SystemExit")
    assert list(scan_images(images)) == first
    monkeypatch.undo()
    Image.new("RGB", (5, 5), (1, 2, 3)).save(images[0])
    os.utime(images[1], ns=(1, 1))
    Path(images[2]).unlink()
    again = list(scan_images(images))
    assert again == [inspect_image(path) for path in images]
    assert again[3:] == first[3:]
    assert (again[0].width, again[1].ok, again[2].ok) == (5, True, False)
    assert again[1].state != first[1].state


def test_a_file_replaced_with_its_size_and_time_kept_is_noticed(images: list[str], tmp_path: Path) -> None:
    """As `rsync -t` and `cp -p` do it."""
    path, new = Path(images[0]).with_suffix(".bmp"), tmp_path / "new.bmp"
    for file, colour in ((path, "red"), (new, "blue")):
        Image.new("RGB", (20, 20), colour).save(file)
        os.utime(file, ns=(10**18, 10**18))
    assert new.stat().st_size == path.stat().st_size
    (first,) = scan_images([str(path)])
    new.replace(path)
    (again,) = scan_images([str(path)])
    assert again.sha256 != first.sha256


TROUBLED = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import finetune.data.images as images
def fail(*_):
    raise {error}
{what} = fail
from finetune.data.scan import serve
serve()
"""


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("images.open", "PermissionError", "no permission"),
        ("images.open", "OSError(5, 'Input/output error')", "Input/output error"),
        ("images.FORMATS['PNG']", "MemoryError", "not enough memory"),
    ],
)
def test_trouble_that_may_pass_is_not_kept(
    images: list[str], monkeypatch: pytest.MonkeyPatch, what: str, error: str, says: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("finetune.data.scan.WORKER", TROUBLED.format(what=what, error=error))
        (before,) = scan_images(images[:1])
    assert says in (before.reason or "")
    assert [inspection.ok for inspection in scan_images(images[:1])] == [True]


def test_other_rules_make_the_cache_stale(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    list(scan_images(images[:2]))
    monkeypatch.setattr("finetune.data.scan_cache.RULES", "others")
    monkeypatch.setattr("finetune.data.scan.WORKER", "raise SystemExit")
    with pytest.raises(ResourceError):
        list(scan_images(images[:2]))


@pytest.mark.parametrize("trouble", ["garbage", "folder", "in a file"])
def test_a_cache_that_cannot_be_used_is_no_error(
    images: list[str], private_cache: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "garbage":
        (private_cache / "scan.sqlite").write_bytes(b"no database " * 1000)
    elif trouble == "folder":
        (private_cache / "scan.sqlite").mkdir()
    else:
        monkeypatch.setenv("FINETUNE_CACHE", images[0])
    assert all(inspection.ok for inspection in scan_images(images[:3]))


def test_two_scans_may_share_a_cache(images: list[str], private_cache: Path) -> None:
    program = (
        "import sys; from finetune.data import scan_images; "
        "print(sum(inspection.ok for inspection in scan_images(sys.argv[1:])))"
    )
    words = [sys.executable, "-c", program, *images]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["40\n", "40\n"]
    with closing(sqlite3.connect(private_cache / "scan.sqlite")) as database:
        assert database.execute(f"SELECT count(*) FROM {TABLE}").fetchone() == (40,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = os.path.join(tmp_path, os.fsdecode(b"\xe9\n.png"))
    with open(path, "wb") as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
    first = list(scan_images([path]))
    assert first == list(scan_images([path])) == [inspect_image(path)]
