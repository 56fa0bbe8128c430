"""A folder shows its classes and splits, and is refused with the expected layout."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from dataset_tools import Paint, opened, refusal, sizes
from PIL import Image


@pytest.mark.parametrize("words", [("train", "val", "test"), ("Training", "valid", "testing")])
def test_split_folders(tmp_path: Path, paint: Paint, words: tuple[str, ...]) -> None:
    for word, count in zip(words, (20, 5, 7), strict=True):
        for name in ("cat", "dog"):
            for index in range(count):
                paint(f"p/{word}/{name}/{index}.png")
    dataset = opened(folder=tmp_path / "p")
    assert dataset.classes == ("cat", "dog")
    assert sizes(dataset) == [40, 10, 14]


def test_a_class_may_be_called_train(tmp_path: Path, paint: Paint) -> None:
    for name in ("train", "bus", "car"):
        for index in range(3):
            paint(f"p/{name}/{index}.png")
    assert opened(folder=tmp_path / "p").classes == ("bus", "car", "train")
    paint("p/test/1.png")
    assert "splits or classes" in refusal(folder=tmp_path / "p")


def test_folders_that_are_no_data_set(tmp_path: Path, paint: Paint, photos: Path) -> None:
    assert "Did you mean 'photos'?" in refusal(folder=tmp_path / "foto")
    assert "a file, not a folder" in refusal(folder=photos / "cat/0.png")
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal(folder=tmp_path / "empty")
    flat = refusal(folder=photos / "cat")
    assert "20 images but no class folders" in flat
    assert "photos/cat/1.jpg" in flat
    paint("single/cat/1.png")
    assert "only the class 'cat'" in refusal(folder=tmp_path / "single")


def test_remarks_on_a_folder(photos: Path, paint: Paint) -> None:
    paint("photos/loose.png")
    (photos / "dog" / "Thumbs.db").touch()
    (photos / "ferret").mkdir()
    for index in range(3):
        paint(f"photos/Cat /{index}.png")
    for index in range(3):
        paint(f"photos/{unicodedata.normalize('NFC', 'é')}/{index}.png")
        paint(f"photos/{unicodedata.normalize('NFD', 'é')}/{index}.png")
    Image.new("RGB", (9, 9)).save(photos / "cat" / "dull.png")
    warnings = "\n".join(opened(folder=photos).warnings)
    assert "hidden and system files (1: dog/Thumbs.db)" in warnings
    assert "1 image that is in no class folder" in warnings
    assert "no images in the class folders: ferret" in warnings
    assert "'Cat ', 'cat'" in warnings
    assert warnings.count("are these one class?") == 2
    assert "1 image: a single colour (cat/dull.png)" in warnings


def test_classes_choose_and_order(photos: Path, paint: Paint) -> None:
    for index in range(5):
        paint(f"photos/fish/{index}.png")
    dataset = opened(folder=photos, classes=("fish", "cat"))
    assert dataset.classes == ("fish", "cat")
    assert np.bincount(dataset.labels).tolist() == [5, 20]
    assert dataset.names[np.flatnonzero(dataset.labels == 0)[0]].startswith("fish/")
    assert "Did you mean 'fish'?" in refusal(folder=photos, classes=("fisch", "cat"))
