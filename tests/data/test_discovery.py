"""Image files below a folder are found, and what is left out is counted."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from finetune import data
from finetune.utils import DataError


def test_finding_ends_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in (
        "b/2.JPG",
        "b/1.png",
        "a.tif",
        "b/._x.jpg",
        "b/Thumbs.db",
        "notes.txt",
        "b/c.svg",
        "b/d.svg",
        "e.HEIC",
    ):
        (tmp_path / name).touch()
    for name in ("__MACOSX", ".git", "x.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.jpg").touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "linked.jpg").symlink_to("b/2.JPG")
    os.mkfifo(tmp_path / "pipe.jpg")
    names, left_out = data.list_images(tmp_path)
    assert names == ["a.tif", "b/1.png", "b/2.JPG", "e.HEIC", "linked.jpg"]
    assert left_out.counts == {
        "hidden and system files": 2,
        "hidden and system folders": 2,
        "folders named like an image": 1,
        "links to a folder already seen": 1,
        "broken links": 2,
        "pipes, sockets and devices": 1,
        "other files": 1,
        ".svg files": 2,
    }
    assert ".svg files (2, such as b/c.svg; convert them to JPEG or PNG)" in str(left_out)
    assert "other files (1: notes.txt)" in str(left_out)
    assert data.find_images(tmp_path)[0] == [tmp_path / name for name in names]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="absent"):
        data.list_images(tmp_path / "absent")

    def scandir(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("finetune.data.discovery.os.scandir", scandir)
    with pytest.raises(DataError, match=r"(?s)no permission.*chmod u\+rx"):
        data.list_images(tmp_path)


def test_odd_names_are_read_and_shown_escaped(tmp_path: Path) -> None:
    raw = os.fsdecode(b"caf\xe9\n\x1b[31m=cmd|.png")
    with open(os.path.join(tmp_path, raw), "wb") as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
    names, _ = data.list_images(tmp_path)
    assert names == [raw]
    assert data.inspect_image(os.path.join(tmp_path, raw)).ok
