"""`finetune evaluate` as it is typed."""

import json
import shutil

import numpy as np
import pytest

from finetune import config
from finetune.cli.evaluate import print_metrics
from finetune.evaluation.metrics import multiclass_metrics

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


def test_evaluate_prints_numbers_with_their_intervals(typed, model, images, tmp_path):
    for name, color in (("plain", "red"), ("=evil()", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in sorted((images / color).iterdir())[:4]:
            (tmp_path / "data" / name / path.name).write_bytes(path.read_bytes())
    code, out, err = typed("evaluate", model, "--data", tmp_path / "data")
    assert code == 0
    assert "50.0% (95 % interval 21.5% to 78.5%)" in out  # all are called =evil()
    assert "4 x plain called =evil()" in out
    assert "no images of 1 of the 3 classes: [bold]" in err.replace("\n", " ")
    code, out, _ = typed("evaluate", model, "--data", tmp_path / "data", "--json")
    assert code == 0
    assert json.loads(out)["n"] == 8
    assert json.loads(out)["confusion"] == [[4, 0, 0], [0, 0, 0], [4, 0, 0]]


def test_the_level_of_the_class_folders_is_that_of_the_training(typed, model, images, tmp_path):
    shutil.copytree(model, tmp_path / "run")
    settings = config.load_config({"data": {"folder": "photos", "class_level": "last"}})
    (tmp_path / "run" / "config.yaml").write_text(config.dump_config(settings))
    for name in ("one/plain", "two/=evil()"):
        shutil.copytree(images / "red", tmp_path / "data" / name)
    code, out, _ = typed("evaluate", tmp_path / "run", "--data", tmp_path / "data", "--json")
    assert code == 0
    assert json.loads(out)["confusion"] == [[24, 0, 0], [0, 0, 0], [24, 0, 0]]


def test_a_run_without_its_images_needs_data(typed, model):
    code, _, err = typed("evaluate", model)
    assert code == 2
    assert "--data" in err


def test_a_thousand_classes_are_shown_where_there_is_something_to_show(capsys):
    classes = [f"class {number}" for number in range(1000)]
    measured = multiclass_metrics(np.full((3, 1000), 0.001), np.array([5, 7, 7]), classes)
    print_metrics(measured)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.lstrip().startswith("class ") for line in lines) <= 5
    assert any("class 7" in line for line in lines)


@pytest.mark.parametrize("accuracy", ["93", "-0.1", "nan", "high"])
def test_an_accuracy_is_a_fraction(typed, capsys, accuracy):
    with pytest.raises(SystemExit) as leaving:
        typed("evaluate", "x", "--assert-accuracy", accuracy)
    assert leaving.value.code == 2
    assert "is not a fraction from 0 to 1" in capsys.readouterr().err
