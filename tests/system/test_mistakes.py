"""Mistakes of the command line are answered before TensorFlow starts: with what, where and a near match."""

import csv
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.models import ClassifierSpec
from finetune.utils import device

RUN = "runs/photos-1"
TUNED = "photos.yaml"
ABSENT = "mobilenet_v3_small"  # its weights are on no machine without a network
MISTAKES: list[tuple[Any, ...]] = [  # the command, its exit code, and what the answer says
    ("trian", 2, "invalid choice: 'trian'", "Did you mean 'train'"),
    ("train", 2, "train needs a config", "finetune train digits"),
    ("train photos.yml", 2, "there is no such file", "Did you mean 'photos.yaml'"),
    ("train photos/cat/00.png", 2, "00.png"),
    ("train broken.yaml", 2, "broken.yaml:2:1"),
    ("train empty.yaml", 2, "empty.yaml"),
    ("train key.yaml", 2, "key.yaml:3: leaning_rate: unknown key", "Known here"),
    ("train photos.yaml head.learning_rate=-1", 2, "head.learning_rate", "-1"),
    ("train photos.yaml data.builtin=digits", 2, "keep one of them"),
    ("train photos.yaml head.epochs=-1 fine_tun=x", 2, "head.epochs", "fine_tun"),
    ("train --resume photos", 2, "is not a run"),
    ("train --resume unbegun", 2, "stopped before it began"),
    ("train --resume newer", 2, "newer finetune", "pip install"),
    ("train --resume damaged", 5, "state.json cannot be used"),
    ("predict", 2, "IMAGE|FOLDER", "is required"),
    ("predict photos/*.gif", 3, "matches no file"),
    ("predict nothing", 3, "no images in this folder", ".png"),
    ("predict photos --top 0", 2, "not a whole number above 0"),
    ("tensorboard nowhere", 2, "no such folder"),
    ("cache clear everything", 2, "invalid choice"),
    ("weights path resnet51", 2, "resnet51", "Did you mean"),
    ("train photso.yaml", 2, "photso.yaml: there is no such file. Did you mean 'photos.yaml'"),
    ("train photos.yaml --ouput runs", 2, "unrecognized arguments: --ouput runs. Did you mean '--output'"),
    ("train photos.yaml head.lr=1e-3", 2, "head.lr: unknown key. Did you mean 'learning_rate'?"),
    ("train photos.yaml head.epoch=5", 2, "head.epoch: unknown key. Did you mean 'epochs'?"),
    ("train photos.yaml hed.epochs=5", 2, "hed: unknown key. Did you mean 'head'"),
    ("train photos.yaml head.epochs", 2, "override 'head.epochs': expected key=value"),
    ("train photos.yaml head.epochs=many", 2, "head.epochs: expected a whole number, at least 0, not 'many'"),
    ("train photos.yaml model=resnet5", 2, "there is no backbone 'resnet5'. Did you mean 'resnet50'"),
    ("train photos.yaml model.image_size=4096", 2, "model.image_size: expected a whole number, at most 2048"),
    (
        "train photos.yaml model.hidden=[9,9,9,9,9,9,9,9,9]",
        2,
        "model.hidden: expected a list of at most 8, not of 9",
    ),
    ("train photos.yaml time_budget=soon", 2, "time_budget: expected a time such as 90 s, 10 min"),
    ("train photos.yaml output=photos/runs", 2, "inside the data folder"),
    ("train photos.yaml data.folder=phots", 3, "there is no folder {here}/phots. Did you mean 'photos'"),
    ("train photos.yaml data.classes=[cat,dgo]", 3, "data.classes: photos has no class 'dgo'. Did you mean 'dog'?"),
    (
        "train table.yaml data.csv=tabel.csv",
        3,
        "{here}/tabel.csv cannot be read: No such file or directory. Did you mean 'table.csv'",
    ),
    ("train table.yaml data.label_column=lable", 3, "table.csv: there is no column 'lable'. Did you mean 'label'?"),
    ("train table.yaml data.path_column=file", 3, "table.csv: there is no column 'file'. It has: path, label, split"),
    ("train bad_split.yaml", 3, "'vaildation'"),
    (
        "train table.yaml data.label_column=long",
        2,
        "cannot be saved with this classes.0: String should have at most 1000",
    ),
    ("train photos.yaml model.weights=w.h5", 4, "{here}/w.h5: there is no such weight file"),
    (f"train photos.yaml model={ABSENT}", 4, f"the ImageNet weights of {ABSENT} are not on this machine"),
    (f"train photos.yaml --run-dir {RUN}", 2, "runs/photos-1 exists already"),
    ("train photos.yaml --run-dir photos/run", 2, "inside the data folder"),
    (f"train photos.yaml --run-dir new --resume {RUN}", 2, "both name a run"),
    ("train --resume runs/photo-1", 2, "runs/photo-1 is not a run: it has no state.json. Did you mean 'photos-1'"),
    ("check photos.yaml data.folder=phots", 3, "there is no folder {here}/phots. Did you mean 'photos'"),
    (f"check photos.yaml model={ABSENT}", 4, f"the ImageNet weights of {ABSENT} are not on this machine"),
    ("check photos.yaml --figures figures", 2, "figures/alike.png exists already"),
    ("sweep photos.yaml", 2, "A sweep needs something to vary"),
    ("sweep photos.yaml --set head.lr=1e-4..1e-2", 2, "head.lr: unknown key. Did you mean 'learning_rate'?"),
    ("sweep photos.yaml data.folder=phots --set head.epochs=1,2", 3, "there is no folder {here}/phots"),
    (f"sweep photos.yaml model={ABSENT} --set head.epochs=1,2", 4, f"weights of {ABSENT} are not on this machine"),
    ("evaluate runs/photo-1", 4, "runs/photo-1: no such run or model. Did you mean 'runs/photos-1'"),
    (f"evaluate {RUN} --split tset", 2, "--split: invalid choice: 'tset'"),
    (f"evaluate {RUN} --data phots", 3, "{here}/phots: no such folder or table. Did you mean 'photos'"),
    (f"evaluate {RUN} --data table.cvs", 3, "Did you mean 'table.csv'"),
    (f"evaluate {ABSENT} --data photos", 4, f"the ImageNet weights of {ABSENT} are not on this machine"),
    ("evaluate mobilenet_v33 --data photos", 2, "there is no backbone 'mobilenet_v33'. Did you mean 'mobilenet_v2'"),
    ("export runs/photo-1 --format keras", 4, "runs/photo-1: no such run or model. Did you mean 'runs/photos-1'"),
    (f"export {RUN} --format onxx", 2, "Did you mean 'onnx'"),
    (f"export {RUN} --format keras --images phots", 3, "phots: no such file or folder. Did you mean 'photos'"),
    (f"export {RUN} --format keras --output figures", 2, "figures exists already"),
    ("predict photos/cat/10.png", 3, "photos/cat/10.png: no such file or folder. Did you mean '09.png'"),
    ("predict phots/", 3, "phots/: no such file or folder. Did you mean 'photos'"),
    ("predict photos --model runs/photo-1", 4, "runs/photo-1: no such run or model. Did you mean 'runs/photos-1'"),
    (f"predict photos --model {ABSENT}", 4, f"the ImageNet weights of {ABSENT} are not on this machine"),
    ("predict photos --topk 3", 2, "unrecognized arguments: --topk 3. Did you mean '--top'"),
    ("predict photos --figure figures/alike.png", 2, "figures/alike.png exists already"),
    ("predict photos --csv table.csv", 2, "table.csv exists already"),
    ("explain photos/cat/10.png", 3, "photos/cat/10.png: no such file or folder. Did you mean '09.png'"),
    (f"explain photos/cat/00.png --model {RUN} --class cta", 2, "the model has no class 'cta'. Did you mean 'cat'?"),
    ("explain photos/cat/00.png --method gradcam", 2, "Did you mean 'grad-cam'"),
    ("explain photos/cat/00.png --figure figures/alike.png", 2, "figures/alike.png exists already"),
    (f"explain photos/cat/00.png --model {RUN} --output figures", 2, "figures/00.png exists already"),
    ("preview photso.yaml", 2, "photso.yaml: there is no such file. Did you mean 'photos.yaml'"),
    ("preview photos.yaml data.folder=phots", 3, "there is no folder {here}/phots. Did you mean 'photos'"),
    ("zeroshot phots", 3, "there is no folder {here}/phots. Did you mean 'photos'"),
    (
        "compare runs/photos-1 runs/photo-2",
        2,
        "runs/photo-2 is not a run: it has no state.json. Did you mean 'photos-1'",
    ),
    ("backbones resnet5", 2, "there is no backbone 'resnet5'. Did you mean 'resnet50'"),
    ("init phots", 3, "there is no folder {here}/phots. Did you mean 'photos'"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    """Photos, tables, configs, figures, and a run as far as these commands look at it."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, source in (("cat", "blue"), ("dog", "green"), ("owl", "red")):
        shutil.copytree(images / source, folder / "photos" / name, ignore=lambda _, files: sorted(files)[10:])
    for table, split in (("table.csv", ""), ("bad_split.csv", "vaildation")):
        rows = [["path", "label", "split", "long"]]
        for path in sorted((folder / "photos").glob("*/*")):
            name = path.parent.name
            rows.append([path, name, split, name * 400])
        with (folder / table).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    model = "model: {backbone: tiny, weights: none}\n"
    (folder / "photos.yaml").write_text(f"data: {{folder: photos}}\n{model}")
    (folder / "table.yaml").write_text(f"data: {{csv: table.csv}}\n{model}")
    (folder / "bad_split.yaml").write_text(f"data: {{csv: bad_split.csv}}\n{model}")
    (folder / "figures").mkdir()
    for name in ("alike.png", "00.png"):
        (folder / "figures" / name).write_bytes(b"")
    (folder / "broken.yaml").write_text("data: {folder: [\n")
    (folder / "empty.yaml").write_text("")
    (folder / "key.yaml").write_text((folder / "photos.yaml").read_text() + "leaning_rate: 3\n")
    (folder / "nothing").mkdir()
    for name, state in (
        ("unbegun", {"format": 1, "status": "not started", "phases": []}),
        ("newer", {"format": 99, "status": "done", "phases": []}),
        ("damaged", {"format": 1}),
    ):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text(json.dumps(state))
    run = folder / RUN
    run.mkdir(parents=True)
    (run / "state.json").write_text(json.dumps({"format": 1, "status": "done", "phases": []}))
    spec = ClassifierSpec(backbone="tiny", image_size=32, classes=("cat", "dog", "owl"))
    with zipfile.ZipFile(run / "model.keras", "w") as archive:
        archive.writestr("finetune.json", spec.to_json())
        archive.writestr("model.weights.h5", b"")
    return folder


@pytest.fixture
def typed(folder, monkeypatch, capsys):
    """Runs a command in this process, in which TensorFlow cannot start; its exit code and what it said."""

    def refuse():
        raise AssertionError("TensorFlow was started")

    monkeypatch.setattr(device, "initialize", refuse)
    monkeypatch.chdir(folder)

    def run(*words):
        try:
            code = main(words)
        except SystemExit as leaving:  # argparse
            code = leaving.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("mistake", MISTAKES, ids=[command for command, *_ in MISTAKES])
def test_a_mistake_is_answered_before_tensorflow(mistake, typed, folder):
    command, expected, *answers = mistake
    before = sorted(folder.rglob("*"))
    code, out, err = typed(*command.split())
    assert [answer for answer in answers if answer.format(here=folder) not in err] == [], err
    assert code == expected
    assert out == "" or command.startswith("check")  # which tells what it found besides
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before  # no half run or figure is left


def test_a_command_to_copy_is_quoted(typed, folder):
    shutil.copytree(folder / "photos", folder / "my photos", dirs_exist_ok=True)
    assert "Next: finetune train 'my photos.yaml'" in typed("init", "my photos")[2]
    assert os.path.isfile("my photos.yaml")
    Path("my photos.yaml").unlink()
    shutil.rmtree("my photos")
