"""The examples run as they stand, from a folder of images to a model in plain Keras."""

import importlib.util
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("model.backbone=tiny", "model.weights=none", "head.epochs=1", "head.batch_size=8")


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_every_example_is_tried_here():
    tried = set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text()))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tried


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
def test_train_then_predict_then_plain_keras(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example("train")(str(images), *TINY)
    path, accuracy = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "runs" / "example-1")
    assert re.fullmatch(r"test accuracy [\d.]+%, 95 % interval [\d.]+% to [\d.]+%", accuracy)

    image = str(images / "red" / "00.png")
    example("predict")(image, path)
    said = capsys.readouterr().out
    assert said.startswith(f"{image}: ")
    assert sorted(re.findall("blue|green|red", said.removeprefix(image))) == ["blue", "green", "red"]

    example("plain_keras")(path, image)
    assert capsys.readouterr().out.strip() in {"blue", "green", "red"}
