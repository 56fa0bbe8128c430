"""What people do wrong at the command line: one message that helps, the right exit code, at once, no traceback.

All commands run in one process that never needed TensorFlow, which proves that none of them waits for it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHILD = """
import contextlib, io, json, sys, time
from finetune.cli import main as cli
for line in sys.stdin:
    out, err, begin = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(json.loads(line))
        except SystemExit as leaving:  # argparse
            code = leaving.code
    seconds = time.monotonic() - begin
    facts = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds}
    print(json.dumps({**facts, "tensorflow": "tensorflow" in sys.modules}), flush=True)
"""
GOOD = "data: {folder: images}\nmodel: {backbone: tiny, weights: none}\n"
# command, exit code, words of the message
CASES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "no command": ("", 2, ()),
    "an unknown command": ("trian", 2, ("invalid choice: 'trian'",)),
    "no config": ("train", 2, ("train needs a config", "finetune train digits")),
    "a config that is not there": ("train good.yml", 2, ("there is no such file", "Did you mean 'good.yaml'")),
    "a folder for a config": ("train images", 2, ("images",)),
    "an image for a config": ("train images/red/0.png", 2, ("0.png",)),
    "broken YAML": ("train broken.yaml", 2, ("broken.yaml:2:1",)),
    "an empty config": ("train empty.yaml", 2, ("empty.yaml",)),
    "an unknown key": ("train key.yaml", 2, ("key.yaml:3: leaning_rate: unknown key", "Known here")),
    "an unknown key as override": ("train good.yaml head.epoch=3", 2, ("head.epoch", "Did you mean", "epochs")),
    "a wrong type": ("train good.yaml head.epochs=many", 2, ("head.epochs", "many")),
    "a value out of range": ("train good.yaml head.learning_rate=-1", 2, ("head.learning_rate", "-1")),
    "an unknown backbone": ("train good.yaml model.backbone=resnet51", 2, ("resnet51", "Did you mean", "resnet50")),
    "two sources": ("train good.yaml data.builtin=digits", 2, ("keep one of them",)),
    "two mistakes": ("train good.yaml head.epochs=-1 fine_tun=x", 2, ("head.epochs", "fine_tun")),
    "nothing to resume": ("train --resume", 2, ("no run in", "finetune train CONFIG")),
    "resuming what is not there": ("train --resume runs/x-1", 2, ("x-1 is not a run",)),
    "resuming a folder of images": ("train --resume images", 2, ("is not a run",)),
    "resuming a run that never began": ("train --resume unbegun", 2, ("stopped before it began",)),
    "resuming a newer run": ("train --resume newer", 2, ("newer finetune", "pip install")),
    "resuming a damaged run": ("train --resume damaged", 5, ("state.json cannot be used",)),
    "an image that is not there": ("predict images/red/9.pgn", 3, ("no such file", "Did you mean '9.png'")),
    "a pattern without a match": ("predict images/*.gif", 3, ("matches no file",)),
    "a folder without images": ("predict nothing", 3, ("no images in this folder", ".png")),
    "no input": ("predict", 2, ("IMAGE|FOLDER", "is required")),
    "top 0": ("predict images --top 0", 2, ("not a whole number above 0",)),
    "an unknown network": ("backbones resnet51", 2, ("resnet51", "Did you mean")),
    "a folder to init that is not there": ("init photos", 3, ("photos",)),
    "no runs for TensorBoard": ("tensorboard", 2, ("no such folder",)),
    "an unknown cache": ("cache clear everything", 2, ("invalid choice",)),
    "weights of an unknown network": ("weights path resnet51", 2, ("resnet51", "Did you mean")),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("errors")
    for name in ("red", "blue"):
        (root / "images" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, len(name), 9)).save(root / "images" / name / f"{number}.png")
    (root / "nothing").mkdir()
    (root / "good.yaml").write_text(GOOD)
    (root / "broken.yaml").write_text("data: {folder: [\n")
    (root / "empty.yaml").write_text("")
    (root / "key.yaml").write_text(f"{GOOD}leaning_rate: 3\n")
    for name, state in (
        ("unbegun", {"format": 1, "status": "not started", "phases": []}),
        ("newer", {"format": 99, "status": "done", "phases": []}),
        ("damaged", {"format": 1}),
    ):
        (root / name).mkdir()
        (root / name / "state.json").write_text(json.dumps(state))
    return root


@pytest.fixture(scope="module")
def answers(workplace: Path) -> dict[str, dict[str, Any]]:
    lines = "".join(json.dumps(command.split()) + "\n" for command, _, _ in CASES.values())
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=workplace,
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("what", CASES)
def test_a_mistake_is_explained_at_once(what: str, answers: dict[str, dict[str, Any]]) -> None:
    _, code, words = CASES[what]
    found = answers[what]
    assert found["code"] == code, found["err"]
    assert [word for word in words if word not in found["err"]] == [], found["err"]
    assert "Traceback" not in found["err"]
    assert found["out"] == "" or what == "no command"
    assert not found["tensorflow"]
    assert found["seconds"] < 20  # measured below 1 s: nothing long has begun


def test_no_mistake_leaves_anything_behind(workplace: Path, answers: dict[str, dict[str, Any]]) -> None:
    assert not (workplace / "runs").exists()
    assert len(list(workplace.iterdir())) == 9


@pytest.mark.parametrize("command", ["backbones", "--help", "schema", "weights list", "backbones --json"])
def test_a_closed_pipe_is_quiet(command: str) -> None:
    words = [sys.executable, "-m", "finetune.cli", *command.split()]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


def test_without_a_terminal_or_any_output() -> None:
    words = f"{sys.executable} -m finetune.cli predict nowhere.png >&- 2>&- <&-"
    assert subprocess.run(words, shell=True, timeout=60, check=False).returncode == 3
