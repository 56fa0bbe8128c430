"""The class that a user means, however the name is written."""

import pytest

from finetune.backbones import imagenet_classes
from finetune.evaluation import find_class
from finetune.utils import UsageError


@pytest.mark.parametrize("target", ["African elephant", "african_elephant", "AFRICAN-ELEPHANT", "n02504458", 386])
def test_a_class_is_found_by_name_id_and_number(target):
    entries = imagenet_classes()
    result = find_class(target, [entry.name for entry in entries], [entry.id for entry in entries])
    assert entries[result].id == "n02504458"


def test_one_word_of_a_name_is_enough_if_no_other_class_has_it():
    assert find_class("poodle", ["toy poodle", "cat"]) == 0
    assert find_class("dog", ["hot dog", "dog"]) == 1
    with pytest.raises(UsageError, match="'poodle' may be any of 2 classes: toy poodle, miniature poodle"):
        find_class("poodle", ["toy poodle", "miniature poodle"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("daisey", r"no class 'daisey'. Did you mean 'daisy'"),
        (7, "no class number 7"),
        ("", "no class ''"),
        ("--", "no class"),
    ],
)
def test_an_unknown_class_is_refused_with_the_nearest_name(target, message):
    with pytest.raises(UsageError, match=message):
        find_class(target, ["daisy", "rose"], ["", ""])
