"""Data sets of every kind are read whole, split the same way every time, and refused with all faults."""

import csv
import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune import data
from finetune.config import DataConfig
from finetune.config.schema import DATA_SOURCES
from finetune.data import Dataset
from finetune.data.sources import SOURCES
from finetune.utils import DataError

Paint = Callable[[str], Path]


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """`paint("photos/cat/1.png")` makes an image unlike all others."""
    count = iter(range(1, 100_000))

    def make(name: str) -> Path:
        path = Path(os.path.join(tmp_path, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(next(count)).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def photos(tmp_path: Path, paint: Paint) -> Path:
    """20 cats and 10 dogs."""
    for index in range(20):
        paint(f"photos/cat/{index}.png")
    for index in range(10):
        paint(f"photos/dog/{index}.png")
    return tmp_path / "photos"


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


# ----------------------------------------------------------------------------------------------------- folder


def test_class_folders(photos: Path) -> None:
    before = tree(photos)
    dataset = opened(folder=photos)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset), dataset.root, dataset.name) == (30, photos, "photos")
    assert sizes(dataset) == [24, 3, 3]
    assert np.bincount(dataset.labels[dataset.indices("validation")]).tolist() == [2, 1]
    for index, name in enumerate(dataset.names):
        assert name.startswith(dataset.classes[dataset.labels[index]] + "/")
    assert dataset.paths([0, 1]) == [str(photos / "cat/0.png"), str(photos / "cat/1.png")]
    assert all(os.path.isfile(path) for path in dataset.paths(range(30)))
    assert not dataset.warnings
    assert tree(photos) == before


def test_splits_depend_on_seed_and_names_only(photos: Path, tmp_path: Path, paint: Paint) -> None:
    first = opened(folder=photos)
    shutil.copytree(photos, tmp_path / "elsewhere")
    again = opened(folder=tmp_path / "elsewhere")
    assert (again.splits == first.splits).all()
    assert (opened(folder=photos, seed=1).splits != first.splits).any()
    paint("photos/cat/new.png")
    more = opened(folder=photos)
    moved = [name for name, split in zip(first.names, first.splits, strict=True)
             if more.splits[more.names.index(name)] != split]  # fmt: skip
    assert len(moved) <= 2


def test_shares(photos: Path) -> None:
    assert sizes(opened(folder=photos, split={"train": 0.5, "validation": 0.5, "test": 0})) == [15, 15, 0]
    dataset = opened(folder=photos, split={"train": 0.6, "validation": 0.2, "test": 0.2})
    assert sizes(dataset) == [18, 6, 6]


def test_small_classes_are_in_train_and_validation_first(tmp_path: Path, paint: Paint) -> None:
    for name in ("cat/1", "cat/2", "dog/1", "dog/2", "dog/3"):
        paint(f"p/{name}.png")
    dataset = opened(folder=tmp_path / "p")
    counts = np.zeros((2, 3), int)
    np.add.at(counts, (dataset.labels, dataset.splits), 1)
    assert counts.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert any("no test images of cat" in warning for warning in dataset.warnings)


def test_a_class_with_one_image_is_named(photos: Path, paint: Paint) -> None:
    paint("photos/fish/1.png")
    paint("photos/bird/1.png")
    message = refusal(folder=photos)
    assert "fish: 1 in all" in message
    assert "bird: 1 in all" in message
    assert opened(folder=photos, classes=("cat", "dog")).classes == ("cat", "dog")


@pytest.mark.parametrize("words", [("train", "val", "test"), ("Training", "valid", "testing"), ("train", "dev")])
def test_split_folders(tmp_path: Path, paint: Paint, words: tuple[str, ...]) -> None:
    for word, count in zip(words, (20, 5, 7), strict=False):
        for name in ("cat", "dog"):
            for index in range(count):
                paint(f"p/{word}/{name}/{index}.png")
    dataset = opened(folder=tmp_path / "p")
    assert dataset.classes == ("cat", "dog")
    if len(words) == 3:
        assert sizes(dataset) == [40, 10, 14]
    else:  # test is cut from train: 0.1 of 0.8 + 0.1
        assert sizes(dataset) == [36, 10, 4]
        assert all(name.startswith("dev/") for name in np.array(dataset.names)[dataset.indices("validation")])


def test_split_folders_with_other_classes(tmp_path: Path, paint: Paint) -> None:
    for name in ("train/cat", "train/dog", "val/cat", "val/fish"):
        paint(f"p/{name}/1.png")
    message = refusal(folder=tmp_path / "p")
    assert "only there: fish" in message
    assert "missing there: dog" in message


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
    (tmp_path / "test").mkdir()
    paint("held/test/cat/1.png")
    paint("held/test/dog/1.png")
    assert "only the class 'test'" in refusal(folder=tmp_path / "held")


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
    assert "1 hidden and system files" in warnings
    assert "1 images that are in no class folder" in warnings
    assert "no images in the class folders: ferret" in warnings
    assert "'Cat ', 'cat'" in warnings
    assert warnings.count("are these one class?") == 2
    assert "1 image: a single colour (cat/dull.png)" in warnings


def test_imbalance_is_pointed_out(tmp_path: Path, paint: Paint) -> None:
    for index in range(30):
        paint(f"p/cat/{index}.png")
    for index in range(3):
        paint(f"p/dog/{index}.png")
    assert any("cat has 30 images and dog only 3" in warning for warning in opened(folder=tmp_path / "p").warnings)


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


def test_classes_choose_and_order(photos: Path, paint: Paint) -> None:
    for index in range(5):
        paint(f"photos/fish/{index}.png")
    dataset = opened(folder=photos, classes=("fish", "cat"))
    assert dataset.classes == ("fish", "cat")
    assert np.bincount(dataset.labels).tolist() == [5, 20]
    assert dataset.names[np.flatnonzero(dataset.labels == 0)[0]].startswith("fish/")
    assert "Did you mean 'fish'?" in refusal(folder=photos, classes=("fisch", "cat"))


# ------------------------------------------------------------------------------------------------- bad images


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


# ------------------------------------------------------------------------------------------------------ leaks


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


# -------------------------------------------------------------------------------------------------------- csv


def table(folder: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding)
    return path


def test_csv(photos: Path, tmp_path: Path) -> None:
    rows = [f"photos/{kind}/{index}.png,{kind.upper()}" for kind in ("cat", "dog") for index in range(10)]
    dataset = opened(csv=table(tmp_path, "\n".join(["path,label", *rows])))
    assert dataset.classes == ("CAT", "DOG")
    assert dataset.names[0] == "photos/cat/0.png"
    assert sizes(dataset) == [16, 2, 2]
    outside = tmp_path / "tables"
    outside.mkdir()
    swapped = (row.split(",") for row in rows)
    lines = ["label;file", *(f"{label};../{path}" for path, label in swapped)]
    moved = table(outside, "\r\n".join(lines), encoding="utf-8-sig")
    again = opened(csv=moved, path_column="file")
    assert again.hashes == dataset.hashes
    assert all(os.path.isfile(path) for path in again.paths(range(20)))


def test_csv_with_splits(photos: Path, tmp_path: Path) -> None:
    words = ["train"] * 6 + ["val"] * 2 + ["Test"] * 2
    rows = [f"photos/{kind}/{i}.png,{kind},{words[i]}" for kind in ("cat", "dog") for i in range(10)]
    dataset = opened(csv=table(tmp_path, "\n".join(["path,label,fold", *rows])), split_column="fold")
    assert sizes(dataset) == [12, 4, 4]
    assert {dataset.names[index] for index in dataset.indices("test")} == {
        f"photos/{kind}/{index}.png" for kind in ("cat", "dog") for index in (8, 9)
    }


def test_csv_faults_are_all_named_with_their_lines(photos: Path, tmp_path: Path) -> None:
    text = (
        "path,label,split\nphotos/cat/0.png,cat,train\nphotos/cat/99.png,cat,train\nphotos/cat/0.png,dog,val\n\n"
        "photos/dog/1.png,,train\nphotos/dog/2.png,dog,trial\nphotos/dog/3.png,dog,\n,dog,test\n"
    )
    message = refusal(csv=table(tmp_path, text))
    for fault in (
        "line 3: no such file: photos/cat/99.png",
        "line 4: photos/cat/0.png was in line 2 already",
        "line 6: no label",
        "line 7: unknown split 'trial'",
        "line 8: no split",
        "line 9: no path",
    ):
        assert fault in message
    assert "6 rows" in message


def test_csv_headers_and_encodings(photos: Path, tmp_path: Path) -> None:
    row = "photos/cat/0.png,cat\n"
    assert "no column 'label'. Did you mean 'labels'?" in refusal(csv=table(tmp_path, f"path,labels\n{row}"))
    assert "It has: a, b" in refusal(csv=table(tmp_path, f"a,b\n{row}"))
    assert "UTF-16" in refusal(csv=table(tmp_path, f"path,label\n{row}", encoding="utf-16"))
    assert "no rows" in refusal(csv=table(tmp_path, "path,label\n"))
    assert "No such file" in refusal(csv=tmp_path / "absent.csv")


# ---------------------------------------------------------------------------------------------------- builtin


def test_digits(private_cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    dataset = data.open_dataset(
        DataConfig(builtin="digits"), seed=0, progress=lambda done, total: seen.append((done, total))
    )
    assert (dataset.name, len(dataset), dataset.classes) == ("digits", 1797, tuple("0123456789"))
    assert sizes(dataset) == [1439, 179, 179]
    assert seen[-1] == (1797, 1797)
    assert dataset.root.is_relative_to(private_cache)
    from sklearn.datasets import load_digits

    expected = load_digits()
    index = dataset.names.index("5/000015.png")
    pixels = np.asarray(Image.open(dataset.path(index)))
    assert expected.target[15] == 5
    np.testing.assert_array_equal(pixels, np.round(expected.images[15] * 255 / 16))
    before = tree(dataset.root)
    assert opened(builtin="digits").hashes == dataset.hashes
    assert tree(dataset.root) == before


# ------------------------------------------------------------------------------------------------------- TFDS

tfds_noise = pytest.mark.filterwarnings("ignore")  # TensorFlow Datasets and what it imports


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shapes` and `sounds`, written by TFDS itself, and known to it by their files only."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def images(seed: int, count: int) -> Any:
        for index in range(count):
            pixels = np.random.default_rng([seed, index]).integers(0, 256, (12, 10, 3), np.uint8)
            yield f"{seed}-{index}", {"image": pixels, "kind": ("disc", "box")[index % 2], "size": index}

    with tfds.core.registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.3")

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "kind": tfds.features.ClassLabel(names=["disc", "box"]),
                    "size": tfds.features.Scalar(np.int64),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": images(0, 30), "test": images(1, 8), "extra": images(2, 3)}

            def _generate_examples(self) -> Any: ...

        class Sounds(Shapes):
            def _info(self) -> Any:
                features = {"loudness": tfds.features.Scalar(np.float32)}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": [("a", {"loudness": 1.0})]}

    for builder in (Shapes(data_dir=folder), Sounds(data_dir=folder)):
        builder.download_and_prepare()
    return folder


@tfds_noise
def test_tfds(tfds_dir: Path, monkeypatch: pytest.MonkeyPatch, private_cache: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    before = tree(tfds_dir)
    dataset = opened(tfds="shapes")
    assert (dataset.name, dataset.classes) == ("shapes", ("disc", "box"))
    assert sizes(dataset) == [26, 4, 8]
    assert any("splits left out: extra" in warning for warning in dataset.warnings)
    wanted = {np.random.default_rng([s, i]).integers(0, 256, (12, 10, 3), np.uint8).tobytes(): (s, i % 2)
              for s, n in ((0, 30), (1, 8)) for i in range(n)}  # fmt: skip
    for index in range(len(dataset)):
        pixels = np.asarray(Image.open(dataset.path(index)))
        assert wanted.pop(pixels.tobytes()) == (int(dataset.splits[index] == 2), dataset.labels[index])
    assert not wanted
    assert tree(tfds_dir) == before
    monkeypatch.setenv("TFDS_DATA_DIR", str(private_cache))  # the prepared files gone, ours remain
    assert opened(tfds="shapes").hashes == dataset.hashes


@tfds_noise
def test_tfds_leftovers_are_reported_and_left_alone(
    tfds_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    left = folder / "shapes" / "incomplete.ABC123_1.2.3"  # as TFDS calls it
    left.mkdir()
    (left / "shapes-train.tfrecord-00000-of-00001").write_bytes(bytes(1_500_000))
    warning = next(warning for warning in opened(tfds="shapes").warnings if "broken preparation" in warning)
    assert "1.5 MB" in warning
    assert str(left) in warning
    assert left.is_dir()


@tfds_noise
def test_tfds_without_image_and_label(tfds_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert "its features: loudness (Scalar)" in refusal(tfds="sounds")


@tfds_noise
def test_tfds_damaged(tfds_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    shard = next(folder.glob("shapes/*/shapes-train.*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    message = refusal(tfds="shapes")
    assert "damaged" in message
    assert "tfds build shapes" in message


@tfds_noise
def test_tfds_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert "Did you mean 'tf_flowers'" in refusal(tfds="tf_flower")
    for offline in ("1", "0"):
        monkeypatch.setenv("FINETUNE_OFFLINE", offline)
        monkeypatch.setattr("finetune.data.tfds.urllib.request.urlopen", no_network)
        message = refusal(tfds="tf_flowers")
        assert str(tmp_path) in message
        assert "tfds build tf_flowers" in message
        assert "finetune train digits" in message
        assert ("No route to host" in message) == (offline == "0")


@tfds_noise
def test_tfds_download_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def breaks(*args: object, **options: object) -> None:
        raise tfds.download.download_manager.NonMatchingChecksumError("https://x.org/f.tgz: got 1234, expected 5678")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FINETUNE_OFFLINE", "0")
    monkeypatch.setattr("finetune.data.tfds.connection_problem", lambda url: "")
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", breaks)
    message = refusal(tfds="tf_flowers")
    assert "could not be prepared: https://x.org/f.tgz: got 1234, expected 5678" in message
    assert "tfds build tf_flowers" in message


def no_network(*args: object, **options: object) -> None:
    raise OSError("No route to host")


# ---------------------------------------------------------------------------------------- runs and evaluation


def write(dataset: Dataset, folder: Path) -> tuple[Path, Path]:
    splits, classes = folder / "splits.csv", folder / "classes.txt"
    dataset.write_splits(splits)
    classes.write_text("".join(f"{name}\n" for name in dataset.classes), "utf-8")
    return splits, classes


def written_and_read(dataset: Dataset, folder: Path) -> Dataset:
    return data.read_splits(*write(dataset, folder), dataset.root)


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


@pytest.mark.parametrize(
    "text", ["", "path,label\n", "path,label,split,sha256\na,cat,night,00\n", "path,label,split,sha256\na\n"]
)
def test_a_damaged_split_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.csv").write_text(text)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"splits\.csv"):
        data.read_splits(tmp_path / "splits.csv", tmp_path / "classes.txt", tmp_path)


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


def test_real_photos(shared: Path) -> None:
    dataset = opened(folder=shared / "data" / "flower_photos")
    assert len(dataset) == 3670
    assert sizes(dataset) == [2936, 367, 367]
    assert any("14889392928_9742aed45b_m.jpg" in warning for warning in dataset.warnings)


def test_every_source_of_the_config_is_known() -> None:
    assert set(SOURCES) == set(DATA_SOURCES)
