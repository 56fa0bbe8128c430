"""The only split beside train is the test split, under whatever name, unless the config says otherwise."""

from pathlib import Path

import numpy as np
import pytest
from dataset_tools import Paint, opened, refusal, sizes

from finetune import data
from finetune.config import DataConfig


def divided(root: Path, paint: Paint, word: str) -> Path:
    for split, count in (("Train", 20), (word, 6)):
        for name in ("cat", "dog"):
            for index in range(count):
                paint(f"{root.name}/{split}/{name}/{index}.png")
    return root


@pytest.mark.parametrize("word", ["val", "dev", "Testing"])
def test_the_only_split_beside_train_is_the_test_split(tmp_path: Path, paint: Paint, word: str) -> None:
    dataset = opened(folder=divided(tmp_path / "p", paint, word))
    names = np.array(dataset.names)
    assert {name.split("/")[0] for name in names[dataset.indices("test")]} == {word}
    assert {name.split("/")[0] for name in names[dataset.indices("validation")]} == {"Train"}
    assert sizes(dataset)[2] == 12
    said = [warning for warning in dataset.warnings if "its 12 images are the test split" in warning]
    assert len(said) == (word != "Testing")
    assert all("data.held_out=validation" in warning for warning in said)
    measured = data.open_labelled_dataset(DataConfig(folder=tmp_path / "p"), ("cat", "dog"))
    assert len(measured) == 12


@pytest.mark.parametrize("word", ["val", "test"])
def test_it_may_be_kept_for_validation(tmp_path: Path, paint: Paint, word: str) -> None:
    folder = divided(tmp_path / "p", paint, word)
    dataset = opened(folder=folder, held_out="validation")
    assert {dataset.names[index].split("/")[0] for index in dataset.indices("validation")} == {word}
    assert sizes(dataset)[1] == 12
    assert sizes(dataset)[2] > 0  # cut from train
    no_test = opened(folder=folder, held_out="validation", split={"train": 0.9, "validation": 0.1, "test": 0})
    assert sizes(no_test) == [40, 12, 0]


def test_a_setting_that_would_do_nothing_is_refused(photos: Path) -> None:
    assert "data.held_out=validation is for data with one split beside train" in refusal(
        folder=photos, held_out="validation"
    )


def test_a_split_that_lacks_classes_is_a_remark(tmp_path: Path, paint: Paint) -> None:
    for split, classes in (("train", "abcde"), ("val", "ab"), ("test", "abcd")):
        for name in classes:
            for index in range(3):
                paint(f"p/{split}/{name}/{index}.png")
    dataset = opened(folder=tmp_path / "p")
    assert dataset.classes == tuple("abcde")
    assert sizes(dataset) == [15, 6, 12]
    assert (
        "no validation images of 3 of the 5 classes (c, d, e): the best epoch is chosen without them"
        in dataset.warnings
    )
    assert "no test images of 1 of the 5 classes (e): nothing is measured about it" in dataset.warnings
