"""Data sets are split the same way every time, refused with all faults, and opened again as they were."""

import csv
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from dataset_tools import Paint, opened, refusal, sizes, tree, write, written_and_read

from finetune import data
from finetune.config import DataConfig, SplitConfig
from finetune.data import SPLITS
from finetune.data.splits import UNASSIGNED, assign_splits
from finetune.utils import DataError


def test_class_folders(photos: Path) -> None:
    before = tree(photos)
    dataset = opened(folder=photos)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset), dataset.root, dataset.name) == (30, photos, "photos")
    assert np.stack([dataset.counts(split) for split in SPLITS]).all()  # each split has both
    for index, name in enumerate(dataset.names):
        assert name.startswith(dataset.classes[dataset.labels[index]] + "/")
    assert dataset.paths([0, 1]) == [str(photos / "cat/0.png"), str(photos / "cat/1.png")]
    assert all(os.path.isfile(path) for path in dataset.paths(range(30)))
    assert not dataset.warnings
    assert tree(photos) == before


def test_splits_depend_on_seed_and_content_only(photos: Path, tmp_path: Path) -> None:
    first = opened(folder=photos)
    shutil.copytree(photos, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/cat/0.png").rename(tmp_path / "elsewhere/cat/renamed.png")
    again = opened(folder=tmp_path / "elsewhere")
    assert dict(zip(again.hashes, again.splits, strict=True)) == dict(zip(first.hashes, first.splits, strict=True))
    assert (opened(folder=photos, seed=1).splits != first.splits).any()


def test_new_images_move_no_known_ones_and_copies_share_a_split(photos: Path, paint: Paint) -> None:
    for index in range(60):
        paint(f"photos/cat/{index}.png")
        paint(f"photos/dog/{index}.png")
    first = opened(folder=photos)
    for index in range(40):
        paint(f"photos/cat/new{index}.png")
        shutil.copy(photos / f"dog/{index}.png", photos / f"dog/copy{index}.png")
    (photos / "dog/59.png").unlink()
    more = opened(folder=photos)
    split_of = dict(zip(more.names, more.splits.tolist(), strict=True))
    assert sum(split_of.get(name, split) != split for name, split in zip(first.names, first.splits, strict=True)) == 0
    assert all(split_of[f"dog/{index}.png"] == split_of[f"dog/copy{index}.png"] for index in range(40))
    assert not more.warnings  # a copy is no leak


def test_fractions() -> None:
    hashes = [hashlib.sha256(bytes([first, second])).hexdigest() for first in range(100) for second in range(100)]
    labels = np.arange(10_000, dtype=np.int32) % 10
    unassigned = np.full(10_000, UNASSIGNED, np.int8)
    for train, validation, test in ((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.5, 0.5, 0)):
        fractions = SplitConfig(train=train, validation=validation, test=test)
        counts = np.bincount(assign_splits(hashes, labels, unassigned, fractions, classes=10, seed=0), minlength=3)
        expected = np.array([train, validation, test])
        deviation = np.sqrt(10_000 * expected * (1 - expected))  # of a binomial distribution
        assert (np.abs(counts - 10_000 * expected) <= 3 * deviation).all()


def test_small_classes_are_in_train_and_validation_first(tmp_path: Path, paint: Paint) -> None:
    for name in ("cat/1", "cat/2", "dog/1", "dog/2", "dog/3"):
        paint(f"p/{name}.png")
    dataset = opened(folder=tmp_path / "p")
    counts = np.zeros((2, 3), int)
    np.add.at(counts, (dataset.labels, dataset.splits), 1)
    assert counts.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert any("no test images of 1 of the 2 classes (cat)" in warning for warning in dataset.warnings)


def test_a_class_with_one_image_is_named(photos: Path, paint: Paint) -> None:
    paint("photos/fish/1.png")
    paint("photos/bird/1.png")
    message = refusal(folder=photos)
    assert "fish: 1 in all" in message
    assert "bird: 1 in all" in message
    assert opened(folder=photos, classes=("cat", "dog")).classes == ("cat", "dog")


def test_split_folders_with_other_classes(tmp_path: Path, paint: Paint) -> None:
    for name in ("train/cat", "train/dog", "val/cat", "val/fish"):
        paint(f"p/{name}/1.png")
    assert "the test split has classes that train lacks: fish" in refusal(folder=tmp_path / "p")


def test_imbalance_is_pointed_out(tmp_path: Path, paint: Paint) -> None:
    for index in range(30):
        paint(f"p/cat/{index}.png")
    for index in range(3):
        paint(f"p/dog/{index}.png")
    assert any("cat has 30 images and dog only 3" in warning for warning in opened(folder=tmp_path / "p").warnings)


def test_bad_images_are_listed_together_or_skipped(photos: Path, tmp_path: Path, paint: Paint) -> None:
    for index in range(40):
        paint(f"photos/cat/more{index}.png")
    (photos / "cat/0.png").write_bytes(b"")
    (photos / "dog/3.png").write_text("<html>")
    message = refusal(folder=photos)
    assert "2 of 70 files" in message
    assert "cat/0.png: the file is empty" in message
    assert "dog/3.png: an HTML page" in message
    assert "data.bad_images=skip" in message
    dataset = opened(folder=photos, bad_images="skip")
    assert len(dataset) == 68
    assert dict(dataset.skipped).keys() == {"cat/0.png", "dog/3.png"}
    assert not {"cat/0.png", "dog/3.png"} & set(dataset.names)
    for index in range(68):
        assert dataset.names[index].startswith(dataset.classes[dataset.labels[index]])
    assert any("2 files are left out" in warning for warning in dataset.warnings)
    again = written_and_read(dataset, tmp_path)
    assert (again.names, [name for name, _ in again.skipped]) == (dataset.names, ["cat/0.png", "dog/3.png"])


def test_too_many_bad_images_stop_even_with_skip(photos: Path, paint: Paint) -> None:
    for index in range(2):
        (photos / f"cat/{index}.png").write_bytes(b"")
    assert "more than 5%" in refusal(folder=photos, bad_images="skip")
    for index in range(30):
        paint(f"photos/dog/more{index}.png")
    assert len(opened(folder=photos, bad_images="skip")) == 58
    paint("photos/fish/1.png").write_bytes(b"")
    assert "nothing is left of fish" in refusal(folder=photos, bad_images="skip")


def test_long_lists_are_cut_and_a_table_has_them_all(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for path in sorted(photos.rglob("*.png"))[:25]:
        path.write_bytes(b"")
    message = refusal(folder=photos)
    assert message.count("the file is empty") == 20
    table = re.search(r"and 5 more; all are in (.+\.csv)", message)
    assert table
    with Path(table[1]).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["where", "problem"]
    assert len(rows) == 25
    assert all(name in {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")} for name, _ in rows)
    assert {why for _, why in rows} == {"the file is empty (0 bytes)"}


def test_reopening_gives_the_same_data(photos: Path, tmp_path: Path, paint: Paint) -> None:
    config = DataConfig(folder=photos)
    dataset = data.open_dataset(config, seed=3)
    written = write(dataset, tmp_path)
    again = data.reopen_dataset(config, *written)
    assert (again.names, again.hashes, again.classes) == (dataset.names, dataset.hashes, dataset.classes)
    assert (again.splits == dataset.splits).all()
    assert (again.labels == dataset.labels).all()
    paint("photos/cat/new.png")
    assert any("cat/new.png" in warning for warning in data.reopen_dataset(config, *written).warnings)
    assert len(data.reopen_dataset(config, *written)) == 30


def test_a_run_keeps_the_splits_that_it_began_with(photos: Path, tmp_path: Path) -> None:
    """Also those that were drawn by another rule, as in 0.1."""
    splits_csv, classes_txt = write(opened(folder=photos), tmp_path)
    with splits_csv.open(newline="") as file:
        header, *rows = csv.reader(file)
    for number, row in enumerate(rows):
        row[2] = SPLITS[number % 3]
    with splits_csv.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    again = data.reopen_dataset(DataConfig(folder=photos), splits_csv, classes_txt)
    assert again.splits.tolist() == [number % 3 for number in range(30)]


def test_reopening_names_changed_and_vanished_files(photos: Path, tmp_path: Path, paint: Paint) -> None:
    written = write(opened(folder=photos), tmp_path)
    (photos / "cat/1.png").unlink()
    paint("photos/dog/2.png")
    with pytest.raises(DataError) as error:
        data.reopen_dataset(DataConfig(folder=photos), *written)
    assert "cat/1.png: there is no such file" in str(error.value)
    assert "dog/2.png: its content has changed" in str(error.value)
    assert "2 of 30" in str(error.value)


def test_changes_may_be_accepted(photos: Path, tmp_path: Path, paint: Paint) -> None:
    config = DataConfig(folder=photos)
    before = opened(folder=photos)
    written = write(before, tmp_path)
    gone, cut, other = before.names[0], before.names[1], before.names[2]
    (photos / gone).unlink()
    (photos / cut).write_bytes((photos / cut).read_bytes()[:50])
    paint(f"photos/{other}")
    after = data.reopen_dataset(config, *written, accept_changes=True)
    assert set(before.names) - set(after.names) == {gone, cut}
    assert {name for name, _ in after.skipped} == {gone, cut}
    assert after.hashes[0] == hashlib.sha256((photos / other).read_bytes()).hexdigest() != before.hashes[2]
    assert (after.splits == before.splits[2:]).all()
    assert (after.labels == before.labels[2:]).all()
    assert "3 of 30 images are not what they were, and that is accepted" in after.warnings[0]
    again = data.reopen_dataset(config, *write(after, tmp_path))  # noted, it is no change any more
    assert (again.names, again.hashes, again.warnings) == (after.names, after.hashes, ())


def test_changes_that_leave_a_class_without_images_are_not_accepted(photos: Path, tmp_path: Path) -> None:
    written = write(opened(folder=photos), tmp_path)
    for path in photos.glob("cat/*"):
        path.unlink()
    with pytest.raises(DataError, match="too few images"):
        data.reopen_dataset(DataConfig(folder=photos), *written, accept_changes=True)


def test_images_to_measure_a_classifier_on(photos: Path, paint: Paint, tmp_path: Path) -> None:
    dataset = data.open_labelled_dataset(DataConfig(folder=photos), ("fish", "dog", "cat"))
    assert dataset.classes == ("fish", "dog", "cat")
    assert (sizes(dataset), np.bincount(dataset.labels).tolist()) == ([0, 0, 30], [0, 10, 20])
    assert any("no images of 1 of the 3 classes: fish" in warning for warning in dataset.warnings)
    with pytest.raises(DataError, match="does not know: cat"):
        data.open_labelled_dataset(DataConfig(folder=photos), ("fish", "dog"))
    for split, count in (("train", 3), ("test", 2)):
        for index in range(count):
            paint(f"p/{split}/dog/{index}.png")
    assert len(data.open_labelled_dataset(DataConfig(folder=tmp_path / "p"), ("dog", "cat"))) == 2
    assert len(data.open_labelled_dataset(DataConfig(folder=tmp_path / "p"), ("dog", "cat"), split="train")) == 3


@pytest.mark.slow
def test_real_photos(shared: Path) -> None:
    dataset = opened(folder=shared / "data" / "flower_photos")
    assert len(dataset) == 3670
    assert abs(np.array(sizes(dataset)) - [2936, 367, 367]).max() < 60
    assert any("15922772266_1167a06620.jpg" in warning for warning in dataset.warnings)
