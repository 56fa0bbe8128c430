"""One image in two splits or with two labels is named, refused or dropped."""

import shutil
from pathlib import Path

import pytest
from dataset_tools import Paint, opened, refusal, sizes, written_and_read


@pytest.fixture
def leaking(tmp_path: Path, paint: Paint) -> Path:
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for index in range(4):
                paint(f"p/{split}/{name}/{index}.png")
    root = tmp_path / "p"
    shutil.copy(root / "test/cat/0.png", root / "train/cat/copy.png")
    shutil.copy(root / "train/cat/1.png", root / "train/cat/twin.png")  # within one split: fine
    shutil.copy(root / "train/dog/2.png", root / "train/cat/wrong.png")
    return root


def test_leaks_are_told(leaking: Path) -> None:
    dataset = opened(folder=leaking)
    assert len(dataset) == 27
    warning = next(warning for warning in dataset.warnings if "two splits" in warning)
    assert "2 images" in warning
    assert "test/cat/0.png (test, cat) = train/cat/copy.png (train, cat)" in warning
    message = refusal(folder=leaking, leaks="error")
    assert "train/cat/wrong.png (train, cat) = train/dog/2.png (train, dog)" in message
    assert "twin" not in message


def test_leaks_are_dropped_from_train(leaking: Path, tmp_path: Path) -> None:
    dataset = opened(folder=leaking, leaks="drop")
    assert {name for name, _ in dataset.skipped} == {
        "train/cat/copy.png",
        "train/cat/wrong.png",
        "train/dog/2.png",
    }
    assert "test/cat/0.png" in dataset.names
    assert sizes(dataset) == [8, 8, 8]
    assert len(written_and_read(dataset, tmp_path)) == 24
