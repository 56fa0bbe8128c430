"""`finetune check` as it is typed: a list for people, JSON for programs, figures, one error for all problems."""

import json

import numpy as np
import pytest
from PIL import Image

from finetune.cli.check import combine_problems
from finetune.cli.check_output import sparkline
from finetune.config import dump_config, load_config
from finetune.utils import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


@pytest.fixture
def config_file(own_images, settings, tmp_path):
    path = tmp_path / "colours.yaml"
    path.write_text(dump_config(load_config(settings)))
    return str(path)


@pytest.mark.slow
def test_it_lists_and_draws(typed, config_file, own_images, tmp_path):
    shapes = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    photo = Image.fromarray(shapes).resize((320, 240), Image.Resampling.BICUBIC)
    photo.save(own_images / "red" / "photo.png")
    photo.resize((240, 180)).save(own_images / "blue" / "copy.jpg", quality=60)  # nearly the same, in another class
    figures = tmp_path / "figures"
    code, out, err = typed("check", config_file, "--figures", figures)
    assert code == 0
    for words in ("74 images, 3 classes (", "40 x 36 pixels", "fine_tune: 8 images in", "█", "of features"):
        assert words in out
    assert f"finetune train {config_file}" in out.replace("\n", "")
    assert (figures / "learning_rate.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(figures / "alike.png") as drawn:
        assert drawn.width > drawn.height
    assert "Wrote" in err
    assert typed("check", config_file, "--figures", figures)[0] == 2
    code, out, _ = typed(
        "check", config_file, "fine_tune=null", "data.classes=[blue, red]", "--figures", figures, "--overwrite"
    )
    assert code == 0
    assert out.endswith(f"finetune train {config_file} fine_tune=null 'data.classes=[blue, red]'\n")  # what was checked


@pytest.mark.slow
def test_json_is_for_programs(typed, config_file, own_images):
    code, out, _ = typed("check", config_file, "fine_tune=null", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["problems"] == []
    assert facts["data"]["classes"][0] == {"name": "blue", "train": 14, "validation": 5, "test": 5}
    assert facts["trial"]["phases"][0]["name"] == "head"
    assert facts["trial"]["feature_pictures"] == [72]
    (own_images / "red" / "bad.png").write_bytes(b"no image")
    code, out, err = typed("check", config_file, "fine_tune=null", "--json")
    assert code == 3
    assert json.loads(out)["problems"][0]["kind"] == "DataError"
    assert "bad.png" in err


def test_a_wrong_config_is_reported_as_in_training(typed, config_file):
    code, _, err = typed("check", config_file, "head.epochs=-1", "model.bakbone=x")
    assert code == 2
    assert "head.epochs" in err
    assert "bakbone" in err


def test_problems_are_one_error_of_the_kind_of_the_first():
    problems = [DataError("bad.png is damaged"), ConfigError("no such layer")]
    error = combine_problems(problems)
    assert isinstance(error, DataError)
    assert str(error) == "2 problems prevent this training\n1. bad.png is damaged\n2. no such layer"
    assert combine_problems(problems[1:]) is problems[1]


def test_a_schedule_in_a_line_of_text():
    assert sparkline([1.0, 0.5, 0.0], 3) == "█▅▁"
    assert sparkline([0.0, 0.0], 2) == "▁▁"


def test_what_the_recipe_will_choose_is_told(typed, images, tmp_path):
    config_file = tmp_path / "open.yaml"
    config_file.write_text(
        f"data: {{folder: {images}}}\nmodel: {{backbone: tiny, weights: {tmp_path / 'absent.h5'}}}\n"
    )
    code, out, _ = typed("check", config_file)
    assert code == 4
    assert "recipe     model.resize=squash: the images are 40 x 36" in out
    assert "fine_tune=none: " in out
    assert "fine_tune" not in typed("check", config_file, "recipe=none")[1]
    assert "fine_tune=none: " in "\n".join(json.loads(typed("check", config_file, "--json")[1])["recipe"])
