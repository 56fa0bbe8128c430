"""The names of splits are recognised, and never taken for classes or the other way round."""

import pytest

from finetune.data import SPLITS
from finetune.data.splits import UNASSIGNED, has_split_folders, split_of_name
from finetune.utils import DataError


def test_usual_spellings() -> None:
    spellings = {
        "train": ("train", "Training"),
        "validation": ("val", "VALID", "validation", "dev"),
        "test": ("test", "testing"),
    }
    for split, names in spellings.items():
        assert {split_of_name(name) for name in names} == {SPLITS.index(split)}
    assert split_of_name("trains") == UNASSIGNED


@pytest.mark.parametrize(
    ("folders", "are_splits"),
    [
        (["train", "val"], True),
        (["Training", "dev", "testing"], True),
        (["train"], True),
        (["train", "bus", "car"], False),
        (["test", "bus"], False),
        (["val", "test"], False),
        ([], False),
    ],
)
def test_top_folders_are_splits_or_classes(folders: list[str], are_splits: bool) -> None:
    assert has_split_folders([f"{folder}/cat/1.jpg" for folder in folders], "photos") == are_splits


def test_splits_beside_classes_are_refused() -> None:
    with pytest.raises(DataError, match="photos has the folders train, val beside cat: are these splits or classes"):
        has_split_folders(["train/a/1.jpg", "val/a/1.jpg", "cat/1.jpg"], "photos")
