"""Helpers of the tests of data sets: short names for opening, refusing, writing and counting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import data
from finetune.config import DataConfig
from finetune.data import Dataset
from finetune.utils import DataError

Paint = Callable[[str], Path]


def opened(seed: int = 0, **options: Any) -> Dataset:
    return data.open_dataset(DataConfig(**options), seed=seed)


def refusal(**options: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(**options)
    return str(error.value)


def sizes(dataset: Dataset) -> list[int]:
    return [len(dataset.indices(split)) for split in ("train", "validation", "test")]


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def write(dataset: Dataset, folder: Path) -> tuple[Path, Path]:
    splits, classes = folder / "splits.csv", folder / "classes.txt"
    dataset.write_splits(splits)
    classes.write_text("".join(f"{name}\n" for name in dataset.classes), "utf-8")
    return splits, classes


def written_and_read(dataset: Dataset, folder: Path) -> Dataset:
    return data.read_splits(*write(dataset, folder), dataset.root)
