"""What the splits are called, and when the top folders of a data set are splits and not classes.

    split_of_name("val")                                     VALIDATION, which is 1
    has_split_folders(["train/cat/1.jpg", ...], "photos")     True

Folders, tables, TensorFlow datasets and `finetune init` all ask here.
"""

from collections.abc import Iterable

from finetune.data.problems import join_some
from finetune.utils import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2  # the numbers in `Dataset.splits`
UNASSIGNED = -1  # decided later, by the fractions and the seed of the config
SPLITS = ("train", "validation", "test")
SPELLINGS = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
LAYOUT = """expected one folder per class:      or a folder per split:
  photos/cat/1.jpg                     photos/train/cat/1.jpg
  photos/cat/2.jpg                     photos/val/cat/2.jpg
  photos/dog/3.jpg                     photos/test/dog/3.jpg"""


def split_of_name(name: str) -> int | None:
    """TRAIN, VALIDATION or TEST for a usual spelling of a split in any case, None for any other name."""
    return SPELLINGS.get(name.lower())


def has_split_folders(names: Iterable[str], folder: str) -> bool:
    """Whether the images `names`, relative to `folder` with "/" between, lie in train/, val/ and so on.

    A class may be called `train` or `test`: the top folders are splits when all of them are called so, train among
    them. Raises DataError where train and another split stand beside folders that are no splits.
    """
    tops = {name.split("/", 1)[0].lower() for name in names if "/" in name}
    split_of = {top: SPELLINGS[top] for top in tops if top in SPELLINGS}
    if TRAIN not in split_of.values():
        return False
    if len(split_of) == len(tops):
        return True
    if len(set(split_of.values())) == 1:
        return False
    splits, others = join_some(sorted(split_of)), join_some(sorted(tops - split_of.keys()))
    raise DataError(
        f"{folder} has the folders {splits} beside {others}: are these splits or classes?",
        hint=LAYOUT,
    )
