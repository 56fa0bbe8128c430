"""`finetune init` writes a config, and never over another file."""

from pathlib import Path

import pytest

from finetune import config
from finetune.cli import init
from finetune.utils import ResourceError, UsageError


def test_nothing_is_overwritten(images: Path, tmp_path: Path):
    target = tmp_path / "p.yaml"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        init.write_config(images, target)
    assert target.read_text() == "mine"
    with pytest.raises(ResourceError, match="does not exist"):
        init.write_config(images, tmp_path / "nowhere" / "p.yaml")


def test_the_command_writes_a_config_that_loads(typed, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("init", images, "mine.yaml")
    assert (code, out) == (0, "")
    assert "72 images in 3 classes." in err  # what is at the top of the file is said, too
    assert "Next: finetune train mine.yaml" in err
    assert config.load_config("mine.yaml").data.folder == images
    assert typed("init", f"{images}/")[0] == 0
    assert config.load_config(f"{images.name}.yaml").data.folder == images
    code, _, err = typed("init", images)
    assert code == 2
    assert f"{images.name}.yaml exists already" in err


def test_values_of_data_may_be_given(typed, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert typed("init", images, "data.class_level=last")[0] == 0
    assert config.load_config(f"{images.name}.yaml").data.class_level == "last"
    code, _, err = typed("init", images, "other.yaml", "head.epochs=5")
    assert code == 2
    assert "init takes values of data only, not head.epochs=5" in err
