"""A folder or a table of images becomes a config that loads and that training does not refuse."""

from pathlib import Path

import pytest
from PIL import Image

from finetune import config
from finetune.data import config_source, open_dataset, suggest_config
from finetune.utils import ConfigError, DataError, UsageError


def fill(folder: Path, counts: dict[str, int], size: tuple[int, int] = (120, 100)) -> Path:
    """`counts` maps class folders to their number of images."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size).save(folder / name / f"{number}.jpg")
    return folder


def loaded(source: Path, target: Path, *overrides: str) -> tuple[config.Config, str]:
    text = suggest_config(source, target, overrides)
    target.write_text(text, encoding="utf-8")
    return config.load_config(target), text


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
    assert "divided already: train 10, test 4" in text
    assert "held_out: test " in text
    assert "by these fractions validation is cut from train" in text
    assert "validation is the only split beside train: its 4 images are the test split" in text
    assert "14 images in 2 classes" in text
    assert found.data == config.DataConfig(folder=folder)


def test_all_three_splits_of_the_folder_need_no_fractions(tmp_path: Path):
    folder = fill(tmp_path / "p", {f"{split}/{c}": 3 for c in "ab" for split in ("train", "val", "test")})
    _, text = loaded(folder, tmp_path / "p.yaml")
    assert "divided already: train 6, validation 6, test 6" in text
    assert "held_out" not in text
    assert "split:" not in text


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
    text = suggest_config(fill(tmp_path / "p", {f"class{n:03}": 2 for n in range(40)}))
    assert "class029" in text
    assert "class030" not in text
    assert "and 10 more classes" in text


@pytest.mark.parametrize("name", ["a: b", "#x", "ü", "yes", "a'b", '"q"', "12"])
def test_odd_folder_names(tmp_path: Path, name: str):
    folder = fill(tmp_path / name, {"no": 2, "n\ne\x1bw": 2})
    found, text = loaded(folder, tmp_path / "p.yaml")
    assert found.data.folder == folder
    assert "\x1b" not in text


def test_a_folder_beside_the_config_is_named_relative_to_it(tmp_path: Path):
    _, text = loaded(fill(tmp_path / "p", {"a": 2, "b": 2}), tmp_path / "p.yaml")
    assert "folder: p\n" in text
    (tmp_path / "sub").mkdir()
    _, text = loaded(tmp_path / "p", tmp_path / "sub" / "p.yaml")
    assert f"folder: {tmp_path / 'p'}\n" in text


def test_damaged_images_do_not_matter_here(tmp_path: Path):
    folder = fill(tmp_path / "p", {"a": 2, "b": 2})
    (folder / "a" / "0.jpg").write_bytes(b"no image")
    (folder / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff")
    assert "typical size 120 x 100" in suggest_config(folder)


def test_errors_draw_the_layout(tmp_path: Path):
    def message(folder: Path) -> str:
        with pytest.raises(DataError) as caught:
            suggest_config(folder)
        assert "photos/cat/1.jpg" in str(caught.value)
        return caught.value.message

    assert "there is no folder" in message(tmp_path / "absent")
    (tmp_path / "notes").mkdir()
    assert "no images" in message(tmp_path / "notes")
    (tmp_path / "notes" / "x.txt").write_text("x")
    assert "no images; left out: other files (1: x.txt)" in message(tmp_path / "notes")
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


def test_the_real_flowers(shared: Path):
    text = suggest_config(shared / "data" / "flower_photos")
    assert "3,670 images in 5 classes" in text


# ------------------------------------------------------------------------------------------- as training reads it


def test_a_wrapper_is_opened_and_said(tmp_path: Path):
    folder = fill(tmp_path / "download", {"set/inner/cat": 3, "set/inner/dog": 3})
    (folder / "README.txt").touch()
    found, text = loaded(folder, tmp_path / "p.yaml")
    assert "folder: download/set/inner\n" in text
    assert f"the class folders are those in {folder / 'set/inner'}" in text
    assert open_dataset(found.data, seed=0).classes == ("cat", "dog")
    assert open_dataset(config.DataConfig(folder=folder), seed=0).root == folder / "set" / "inner"
    in_memory = config.load_config(config_source(folder))
    assert any("the class folders are those in" in text for text in open_dataset(in_memory.data, seed=0).warnings)
    split = fill(tmp_path / "again", {f"set/{split}/{c}": 3 for c in ("cat", "dog") for split in ("train", "test")})
    assert open_dataset(loaded(split, tmp_path / "q.yaml")[0].data, seed=0).classes == ("cat", "dog")


NESTED = {"Fruit/Apple": 4, "Fruit/Pear": 3, "Vegetable/Leek": 4, "Vegetable/Onion/Red": 5}


@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_of_nested_folders_it_is_asked_which_are_the_classes(tmp_path: Path, splits: tuple[str, ...]):
    folder = fill(tmp_path / "p", {f"{split}{name}": count for name, count in NESTED.items() for split in splits})
    with pytest.raises(DataError) as caught:
        suggest_config(folder)
    assert "which folders are the classes? 2 are uppermost (Fruit, Vegetable), and 4 hold the images" in str(
        caught.value
    )
    assert "data.class_level=last for the 4" in str(caught.value)
    classes = {
        "1": ("Fruit", "Vegetable"),
        "2": ("Apple", "Leek", "Onion", "Pear"),
        "last": ("Apple", "Leek", "Pear", "Red"),
    }
    for level, expected in classes.items():
        found, _ = loaded(folder, tmp_path / f"{level}.yaml", f"data.class_level={level}")
        assert open_dataset(found.data, seed=0).classes == expected


def test_folders_below_the_class_folders_are_counted(tmp_path: Path):
    folder = fill(tmp_path / "p", {"cat": 3, "cat/2020": 3, "cat/2021": 3, "dog": 3})
    found, text = loaded(folder, tmp_path / "p.yaml")
    assert "2 folders lie deeper, such as cat/2020" in text
    assert "data.class_level=last" in text
    assert open_dataset(found.data, seed=0).classes == ("cat", "dog")


def test_folders_of_one_name_are_two_classes(tmp_path: Path):
    folder = fill(tmp_path / "p", {"cat/left": 3, "dog/left": 3, "dog/right": 3})
    found, _ = loaded(folder, tmp_path / "p.yaml", "data.class_level=last")
    assert open_dataset(found.data, seed=0).classes == ("cat/left", "dog/left", "right")


@pytest.mark.parametrize("folders", [{"cat": 1, "dog": 9}, {"train/cat": 9, "train/dog": 9, "val/fish": 2}])
def test_what_training_refuses_is_not_written(tmp_path: Path, folders: dict[str, int]):
    folder = fill(tmp_path / "p", folders)
    with pytest.raises(DataError) as trained:
        open_dataset(config.DataConfig(folder=folder), seed=0)
    with pytest.raises(DataError) as suggested:
        suggest_config(folder)
    assert str(suggested.value) == str(trained.value)


def test_a_table(tmp_path: Path):
    fill(tmp_path / "images", {"cat": 5, "dog": 5})
    rows = [f"images/{c}/{n}.jpg,{c},{'val' if n > 3 else 'train'},{n}" for c in ("cat", "dog") for n in range(5)]
    (tmp_path / "pets.csv").write_text("\n".join(["file,species,set,weight", *rows]))
    found, text = loaded(tmp_path / "pets.csv", tmp_path / "p.yaml")
    assert "csv: pets.csv\n" in text
    assert "pets: 10 images in 2 classes" in text
    columns = found.data.path_column, found.data.label_column, found.data.split_column
    assert columns == ("file", "species", "set")
    assert open_dataset(found.data, seed=0).classes == ("cat", "dog")
    (tmp_path / "usual.csv").write_text("\n".join(["path,label,set,weight", *rows]))
    found, _ = loaded(tmp_path / "usual.csv", tmp_path / "q.yaml")
    assert (found.data.path_column, found.data.label_column) == ("path", "label")
    (tmp_path / "unclear.csv").write_text("\n".join(["file,a,b,c", *rows]))
    with pytest.raises(DataError, match="there is no column 'label'"):
        suggest_config(tmp_path / "unclear.csv")
    found, _ = loaded(tmp_path / "unclear.csv", tmp_path / "r.yaml", "data.label_column=a")
    assert open_dataset(found.data, seed=0).classes == ("cat", "dog")


def test_a_folder_or_a_table_stands_for_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = fill(tmp_path / "my pets!", {"cat": 3, "dog": 3}, (28, 28))
    found = config.load_config(config_source("my pets!/", ["head.epochs=5"]), ["head.epochs=5"])
    assert (found.name, found.data.folder, found.head.epochs, found.model.image_size) == ("my-pets", folder, 5, 96)
    nested = fill(tmp_path / "nested", NESTED)
    overrides = ["data.class_level=2", "name=x"]
    found = config.load_config(config_source(nested, overrides), overrides)
    assert (found.name, found.data.class_level) == ("x", 2)
    rows = [f"my pets!/{c}/{n}.jpg,{c}" for c in ("cat", "dog") for n in range(3)]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows]))
    assert config.load_config(config_source("pets.csv")).data.csv == tmp_path / "pets.csv"


def test_what_is_no_folder_of_images_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "digits", {"one": 2, "two": 2})
    mapping = {"data": {"builtin": "digits"}}
    assert config_source(mapping) is mapping
    assert config_source("digits") == "digits"  # the shipped one
    assert config.load_config("digits").data.builtin == "digits"
    assert config.load_config(config_source("./digits")).data.folder == tmp_path / "digits"
    assert config_source("photos.yaml") == "photos.yaml"
    with pytest.raises(ConfigError, match=r"digts: there is no such file\. Did you mean 'digits'"):
        config.load_config(config_source("digts"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(UsageError, match=r"(?s)is a run.*train --resume run"):
        config_source("run")
