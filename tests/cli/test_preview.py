"""`finetune preview` as it is typed: a sheet per class, and none is overwritten."""

import pytest

from finetune.config import dump_config, load_config


@pytest.fixture
def config_file(settings, tmp_path):
    path = tmp_path / "colours.yaml"
    path.write_text(dump_config(load_config(settings)))
    return path


@pytest.mark.parametrize("option", ["--images", "--pictures"])
def test_existing_sheets_are_left_alone(typed, config_file, tmp_path, option):
    sheets = tmp_path / "sheets"
    command = ["preview", config_file, "--output", sheets, option, 1, "--augmented", 1]
    code, out, err = typed(*command)
    assert code == 0
    assert "center crop removes" in out
    assert "Wrote 3 sheets" in err
    assert sorted(path.name for path in sheets.iterdir()) == ["blue.png", "green.png", "red.png"]
    code, _, err = typed(*command)
    assert code == 2
    assert "blue.png exists already" in err
    assert typed(*command, "--overwrite")[0] == 0


def test_the_augmentation_is_the_one_that_train_would_choose(typed, images, tmp_path):
    rows = [f"{path},class {number % 24:02}" for number, path in enumerate(sorted(images.glob("*/*.png")))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "open.yaml").write_text("data: {csv: table.csv}\nmodel: {backbone: tiny, weights: none}\n")
    code, out, err = typed("preview", tmp_path / "open.yaml", "--output", tmp_path / "sheets")
    assert code == 0
    assert "not augmented" not in out
    assert "An overview of 24 classes; for a sheet each: data.classes='[class 00, class 01]'" in err
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["overview.png"]
    code, out, _ = typed("preview", tmp_path / "open.yaml", "augment=none", "--output", tmp_path / "2")
    assert "not augmented" in out


def test_names_that_no_file_system_takes_are_changed_and_kept_apart(typed, images, tmp_path):
    names = {"blue": "a/b", "green": "a?b", "red": "c d"}
    rows = [f"{path},{names[path.parent.name]}" for path in sorted(images.glob("*/*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "table.yaml").write_text("data: {csv: table.csv}\nmodel: {backbone: tiny, weights: none}\n")
    command = ["preview", tmp_path / "table.yaml", "--output", tmp_path / "sheets", "--images", 1, "--augmented", 1]
    assert typed(*command)[0] == 0
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"a_b-0.png", "a_b-1.png", "c d.png"}
