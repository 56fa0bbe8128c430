"""What a data set writes to splits.csv is read again."""

import os
import shutil
from pathlib import Path

import pytest
from dataset_tools import Paint, opened, write, written_and_read
from PIL import Image

from finetune import data
from finetune.config import DataConfig
from finetune.utils import DataError


def test_odd_names_survive_the_split_file(tmp_path: Path, paint: Paint) -> None:
    odd = [
        "a,b.png",
        '"q".png',
        "=cmd.png",
        "new\nline.png",
        "esc\x1b.png",
        os.fsdecode(b"\xe9.png"),
        "Füße 1.png",
    ]
    for name in odd:
        paint(f"p/cat/{name}")
        paint(f"p/{os.fsdecode(bytes([0xE9]))}/{name}")
    dataset = opened(folder=tmp_path / "p")
    assert dataset.classes == ("cat", "\\xe9")
    assert {name.split("/", 1)[1] for name in dataset.names} == set(odd)
    again = written_and_read(dataset, tmp_path)
    assert again.names == dataset.names
    assert (again.labels == dataset.labels).all()


@pytest.mark.parametrize(
    "text", ["", "path,label\n", "path,label,split,sha256\na,cat,night,00\n", "path,label,split,sha256\na\n"]
)
def test_a_damaged_split_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.csv").write_text(text)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"splits\.csv"):
        data.read_splits(tmp_path / "splits.csv", tmp_path / "classes.txt", tmp_path)


def test_copies_in_a_split_are_counted_once(tmp_path: Path, paint: Paint) -> None:
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for number in range(3):
                paint(f"p/{split}/{name}/{number}.png")
    original = tmp_path / "p/test/cat/0.png"
    Image.open(original).resize((40, 40), Image.Resampling.BICUBIC).save(original)
    shutil.copy(original, original.with_name("copy.png"))
    Image.open(original).resize((64, 64), Image.Resampling.BICUBIC).save(original.with_name("larger.png"))
    config = DataConfig(folder=tmp_path / "p")
    dataset = data.open_dataset(config, seed=0)
    for known in (dataset, data.reopen_dataset(config, *write(dataset, tmp_path)), dataset.without({19: "broken"})):
        assert len(known.indices("test")) == 8
        names = [known.names[index] for index in known.distinct("test")]
        assert names == [f"test/{label}/{number}.png" for label in ("cat", "dog") for number in range(3)]
