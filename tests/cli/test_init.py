"""`finetune init`: a folder of images becomes a config that loads."""

from pathlib import Path

import pytest
from PIL import Image

from finetune import config
from finetune.cli import init
from finetune.data import open_dataset
from finetune.utils import DataError, ResourceError, UsageError


def fill(folder: Path, counts: dict[str, int], size: tuple[int, int] = (120, 100)) -> Path:
    """`counts` maps class folders to their number of images."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size).save(folder / name / f"{number}.jpg")
    return folder


def loaded(folder: Path, target: Path) -> tuple[config.Config, str]:
    return config.load_config(init.write_config(folder, target)), target.read_text(encoding="utf-8")


def test_class_folders(tmp_path: Path):
    folder = fill(tmp_path / "my pets", {"cat": 30, "dog": 3})
    found, text = loaded(folder, tmp_path / "pets.yaml")
    assert found.data.folder == folder
    assert found.name == "pets"
    assert found.data.split.test == 0.1
    assert "my pets: 33 images in 2 classes" in text
    assert "finetune train" in text
    assert "Few images: dog has 3" in text
    assert "typical size 120 x 100" in text


def test_how_to_train_is_left_to_the_recipe(tmp_path: Path):
    found, text = loaded(fill(tmp_path / "p", {"a": 120, "b": 120}), tmp_path / "p.yaml")
    assert found.recipe == "auto"
    assert not {"head", "fine_tune", "augment"} & found.model_fields_set
    assert "Few" not in text
    assert "Uneven" not in text


def test_what_is_commented_out_would_load_too(tmp_path: Path):
    _, text = loaded(fill(tmp_path / "p", {"a": 20, "b": 20}), tmp_path / "p.yaml")
    lines = text.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("# augment:")))
    (tmp_path / "more.yaml").write_text("\n".join([*lines[:start], *(line[2:] for line in lines[start:])]))
    found = config.load_config(tmp_path / "more.yaml")
    assert (found.augment.preset, found.head.epochs, len(found.fine_tune)) == ("light", 10, 1)


@pytest.mark.parametrize("validation", ["val", "valid", "Validation", "dev"])
def test_splits_of_the_folder(tmp_path: Path, validation: str):
    folder = fill(tmp_path / "p", {f"train/{c}": 5 for c in "ab"} | {f"{validation}/{c}": 2 for c in "ab"})
    found, text = loaded(folder, tmp_path / "p.yaml")
    assert "own splits are used: train 10 validation 4" in text
    assert "14 images in 2 classes" in text
    assert found.data == config.DataConfig(folder=folder)


def test_only_train_is_split_further(tmp_path: Path):
    _, text = loaded(fill(tmp_path / "p", {"train/a": 2, "train/b": 2}), tmp_path / "p.yaml")
    assert "split: {train: 0.8" in text


@pytest.mark.parametrize(("size", "key", "value"), [((28, 28), "image_size", 96), ((400, 60), "image_size", 96)])
def test_small_images_get_a_small_input(tmp_path: Path, size: tuple[int, int], key: str, value: object):
    found, _ = loaded(fill(tmp_path / "p", {"a": 2, "b": 2}, size), tmp_path / "p.yaml")
    assert getattr(found.model, key) == value


def test_long_images_are_kept_whole(tmp_path: Path):
    found, _ = loaded(fill(tmp_path / "p", {"a": 2, "b": 2}, (400, 100)), tmp_path / "p.yaml")
    assert found.model.resize == "pad"


def test_uneven_classes_are_named(tmp_path: Path):
    _, text = loaded(fill(tmp_path / "p", {"many": 44, "rare": 4}), tmp_path / "p.yaml")
    assert "Uneven: many has 11 times as many as rare" in text


def test_many_classes_are_not_all_listed(tmp_path: Path):
    text = init.suggest_config(fill(tmp_path / "p", {f"class{n:03}": 1 for n in range(40)}))
    assert "class029" in text
    assert "class030" not in text
    assert "and 10 more classes" in text


@pytest.mark.parametrize("name", ["a: b", "#x", "ü", "yes", "a'b", '"q"', "12"])
def test_odd_folder_names(tmp_path: Path, name: str):
    folder = fill(tmp_path / name, {"no": 1, "n\ne\x1bw": 1})
    found, text = loaded(folder, tmp_path / "p.yaml")
    assert found.data.folder == folder
    assert "\x1b" not in text


def test_a_folder_beside_the_config_is_named_relative_to_it(tmp_path: Path):
    _, text = loaded(fill(tmp_path / "p", {"a": 1, "b": 1}), tmp_path / "p.yaml")
    assert "folder: p\n" in text
    (tmp_path / "sub").mkdir()
    _, text = loaded(tmp_path / "p", tmp_path / "sub" / "p.yaml")
    assert f"folder: {tmp_path / 'p'}\n" in text


def test_damaged_images_do_not_matter_here(tmp_path: Path):
    folder = fill(tmp_path / "p", {"a": 1, "b": 1})
    (folder / "a" / "0.jpg").write_bytes(b"no image")
    (folder / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff")
    assert "typical size 120 x 100" in init.suggest_config(folder)


def test_errors_draw_the_layout(tmp_path: Path):
    def message(folder: Path) -> str:
        with pytest.raises(DataError) as caught:
            init.suggest_config(folder)
        assert "photos/cat/1.jpg" in str(caught.value)
        return caught.value.message

    assert "there is no folder" in message(tmp_path / "absent")
    (tmp_path / "notes").mkdir()
    assert "no images" in message(tmp_path / "notes")
    (tmp_path / "notes" / "x.txt").write_text("x")
    assert "no images: 1 other files" in message(tmp_path / "notes")
    assert "only the class 'a'" in message(fill(tmp_path / "one", {"a": 2}))
    assert "only the class 'a'" in message(fill(tmp_path / "split", {"train/a": 2, "val/a": 2}))
    assert "2 images but no class folders" in message(fill(tmp_path / "loose", {".": 2}))
    assert "splits or classes" in message(fill(tmp_path / "both", {"train/a": 1, "val/a": 1, "cat": 1}))


def test_a_class_may_be_called_train(tmp_path: Path):
    folder = fill(tmp_path / "vehicles", {"train": 3, "bus": 2, "car": 2})
    written, text = loaded(folder, tmp_path / "vehicles.yaml")
    assert "7 images in 3 classes" in text
    assert "split: {train: 0.8" in text
    assert open_dataset(written.data, seed=0).classes == ("bus", "car", "train")


def test_nothing_is_overwritten(tmp_path: Path):
    folder = fill(tmp_path / "p", {"a": 1, "b": 1})
    target = tmp_path / "p.yaml"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        init.write_config(folder, target)
    assert target.read_text() == "mine"
    with pytest.raises(ResourceError, match="does not exist"):
        init.write_config(folder, tmp_path / "nowhere" / "p.yaml")


def test_the_real_flowers(shared: Path):
    text = init.suggest_config(shared / "data" / "flower_photos")
    assert "3,670 images in 5 classes" in text


def test_the_command_writes_a_config_that_loads(typed, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("init", images, "mine.yaml")
    assert (code, out) == (0, "")
    assert "Next: finetune train mine.yaml" in err
    assert config.load_config("mine.yaml").data.folder == images
    assert typed("init", f"{images}/")[0] == 0
    assert config.load_config(f"{images.name}.yaml").data.folder == images
    code, _, err = typed("init", images)
    assert code == 2
    assert f"{images.name}.yaml exists already" in err
