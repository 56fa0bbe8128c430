"""One image in two splits or with two labels is named, refused or dropped; so are images that only look the same."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_tools import Paint, opened, refusal, sizes, written_and_read
from PIL import Image


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


def test_leaks_are_reported(leaking: Path) -> None:
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
    assert dict(dataset.skipped) == {
        "train/cat/copy.png": "the same image as test/cat/0.png",
        "train/cat/wrong.png": "the same image has another label: train/dog/2.png",
        "train/dog/2.png": "the same image has another label: train/cat/wrong.png",
    }
    assert "test/cat/0.png" in dataset.names
    assert sizes(dataset) == [8, 8, 8]
    assert len(written_and_read(dataset, tmp_path)) == 24


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Two images of train look like one of validation and one of test, one of validation like one of test."""
    random = np.random.default_rng(0)

    def photo() -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (160, 120), Image.Resampling.BICUBIC
        )

    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "p" / split / name).mkdir(parents=True)
            for index in range(4):
                photo().save(tmp_path / "p" / split / name / f"{index}.png")
    root = tmp_path / "p"
    for original, copy in (("val/cat/0", "train/cat/v"), ("test/cat/0", "train/cat/t"), ("test/dog/1", "val/dog/t")):
        with Image.open(root / f"{original}.png") as image:
            image.resize((120, 90)).save(root / f"{copy}.jpg", quality=90)
    with Image.open(root / "train/dog/0.png") as image:
        image.resize((120, 90)).save(root / "train/cat/two.jpg")
    return root


def test_images_that_look_the_same_are_told_with_what_helps(alike: Path) -> None:
    for leaks in ("warn", "error", "drop"):
        (warning,) = opened(folder=alike, leaks=leaks).warnings
        assert "4 pairs of near-duplicate images: 3 in two splits" in warning
        assert "data.leaks=drop_near_duplicates" in warning
        assert "1 of two classes, so a label may be wrong" in warning
        assert " (train, cat) ~ " in warning


def test_images_that_look_the_same_are_dropped_from_the_earlier_split(alike: Path, tmp_path: Path) -> None:
    shutil.copy(alike / "test/dog/0.png", alike / "train/dog/copy.png")
    dataset = opened(folder=alike, leaks="drop_near_duplicates")
    reasons = dict(dataset.skipped)
    assert reasons.keys() == {"train/cat/v.jpg", "train/cat/t.jpg", "val/dog/t.jpg", "train/dog/copy.png"}
    assert reasons["train/cat/t.jpg"] == "looks like test/cat/0.png (test)"
    assert reasons["train/dog/copy.png"] == "the same image as test/dog/0.png"
    assert sizes(dataset) == [9, 8, 8]  # one of two classes stays: which label is wrong, a person must say


def test_small_images_are_no_near_duplicates_of_each_other() -> None:
    assert not opened(builtin="digits").warnings
