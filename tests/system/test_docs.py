"""What the documents tell people to type works: every `finetune ...` in them is run as it stands, in a folder that has
the images and runs that they speak of. Trainings are made short; nothing else is changed."""

import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image
from processes import Forge

from finetune import config
from finetune.cli import main as cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("*.yaml"))]
PAGES.remove(ROOT / "docs" / "extending.md")  # it adds a command; test_extending runs it
COMMAND = re.compile(r"(?:^|`|&& |^#\s+)(finetune(?: [^`\n]*)?)", re.MULTILINE)
SHORT = [
    "recipe=none",
    "model.backbone=tiny",
    "model.weights=none",
    "head.epochs=1",
    "head.batch_size=8",
    "fine_tune=none",
]
TFDS = ["data.tfds=null", "data.folder=flower_photos/"]  # that data set cannot be had without a network
ELSEWHERE = {  # run by another test (with fewer processes), and too long to be run twice
    ("train", "photos.yaml", "--nproc", "8"): "training/test_distributed.py",
    ("backbones", "--compare", "photos/"): "evaluation/test_ranking.py",
    ("export", "efficientnet_lite0", "--format", "onnx"): "export/test_exporter.py",
    ("train", "digits"): "system/test_trust.py",
    ("zeroshot", "photos/"): "system/test_trust.py",
}
TAGS = ("beach", "dog", "sunset")
RUN = """
data: {folder: photos, split: {train: 0.6, validation: 0.2, test: 0.2}}
model: {backbone: tiny, weights: none}
head: {epochs: 2, batch_size: 8}
recipe: none
"""


def commands():
    for page in PAGES:
        text = re.sub(r"^[ ]{4}", "", page.read_text("utf-8"), flags=re.MULTILINE)
        for command in COMMAND.findall(text):
            command = re.split(r"\s+(?:#|>|\||\(|  )", command)[0]  # a remark, a pipe, another column
            yield f"{page.name}: {command.strip()}"


def documented_commands():
    """Every command once, without the word finetune."""
    return sorted({tuple(shlex.split(command.split(": ", 1)[1])[1:]) for command in commands()})


NAMES = [words for words in documented_commands() if len(words) < 2]
# on other machines
ABROAD = [words for words in documented_commands() if "ray" in words or any("://" in word for word in words)]
SERVERS = [words for words in documented_commands() if words and words[0] in ("demo", "serve", "tensorboard")]
OTHERS = [words for words in documented_commands() if words not in [*NAMES, *SERVERS, *ABROAD, *ELSEWHERE]]


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_a_command_that_is_named_has_a_help(words, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main([*words, "--help"])
    assert leaving.value.code == 0


@pytest.mark.parametrize("words", ELSEWHERE, ids=" ".join)
def test_a_command_that_runs_elsewhere_is_documented_and_understood(words):
    assert words in documented_commands()
    assert cli.parse(words).command
    assert f'"{words[0]}"' in (Path(__file__).parents[1] / ELSEWHERE[words]).read_text("utf-8")


@pytest.fixture(scope="module")
def forge(tmp_path_factory, images):
    """A folder with all that the documents speak of: images, tables, configs, finished runs and a broken one."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("photos", "images", "new_photos", "flower_photos"):
        shutil.copytree(images, folder / name)
    for name in ("dog.jpg", "image.jpg"):
        Image.open(images / "red" / "00.png").save(folder / name)
    rows = [f"{path},{path.parent.name}" for path in sorted(images.glob("*/*.png"))]
    for name in ("labels.csv", "studies.csv"):
        (folder / name).write_text("\n".join(["path,label", *rows]))
    (folder / "list.txt").write_text("photos/red/00.png\nphotos/blue/01.png\n")
    ticks = [[at >> bit & 1 for bit in range(3)] for at in range(len(rows))]
    names = ["|".join(name for name, tick in zip(TAGS, row, strict=True) if tick) for row in ticks]
    tagged = zip(sorted(images.glob("*/*.png")), names, ticks, strict=True)
    lines = [",".join(map(str, (path, name, *row))) for path, name, row in tagged]
    (folder / "tags.csv").write_text("\n".join([",".join(("path", "label", *TAGS)), *lines]))
    (folder / "photos.yaml").write_text(RUN)
    forge = Forge(folder)
    assert forge.run("train", "photos.yaml") == 0, forge.said()
    for name in ("flowers-1", "a-1", "b-1"):
        shutil.copytree(folder / "runs" / "photos-1", folder / "runs" / name)
    broken = ("train", "photos.yaml", "--output", "broken", "head.start=random")  # else there is nothing to improve
    assert forge.run(*broken, patch="at(Trainer, 'validate', 2)") == -signal.SIGKILL
    yield forge
    forge.close()


@pytest.fixture
def workspace(forge, tmp_path, monkeypatch):
    """A copy, so that no command leans on what another one left."""
    folder = shutil.copytree(forge.folder, tmp_path / "w", ignore=shutil.ignore_patterns("log", "cache"))
    monkeypatch.setattr(forge, "folder", folder)
    monkeypatch.setattr(forge, "log", folder / "log")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_a_documented_command_does_what_it_says(words, forge, workspace):
    more, code = [], 0
    if words[0] == "train":
        more = [
            *SHORT,
            *(TFDS if words[1] in config.shipped_configs() and words[1:] in (("flowers",), ("gradual",)) else []),
        ]
    if words[:2] == ("train", "--resume"):
        more = []
        shutil.rmtree(workspace / words[2])
        shutil.move(workspace / "broken" / "photos-1", workspace / words[2])
    if words[0] == "sweep":
        pytest.importorskip("optuna", reason="needs optuna: pip install 'finetune[sweep]'")
        more = [*SHORT, "--trials", "2"]
    if words == ("train", "photos.yaml", "--resume"):
        shutil.rmtree(workspace / "runs")  # with a config it begins what has not begun
    if words[0] == "init":
        (workspace / "photos.yaml").unlink()  # it overwrites nothing
    if words[:2] == ("weights", "fetch"):
        code = 4  # no network here: it says so
    if "--precision" in words:
        code = 2  # so few validation images can promise nothing: it says how many are needed
    assert forge.run(*words, *more) == code, forge.said()
    assert ("FINETUNE_OFFLINE" in forge.said()) == (code == 4)
    assert ("cannot be promised" in forge.said()) == (code == 2)


@pytest.mark.parametrize("words", ABROAD, ids=" ".join)
def test_a_command_for_several_machines_is_understood(words):
    assert cli.parse(words).command


@pytest.mark.slow
@pytest.mark.parametrize("words", SERVERS, ids=" ".join)
def test_a_documented_page_opens_until_it_is_stopped(words, forge, workspace):
    if words[0] in ("demo", "serve"):
        pytest.importorskip("fastapi_offline", reason="needs pip install 'finetune[serve]'")
    forge.start(*words)
    forge.said("http://")
    forge.send(signal.SIGINT)
    assert forge.wait() in (0, 130), forge.said()


@pytest.mark.slow
def test_the_notebook_of_the_readme_runs(images, tmp_path, monkeypatch):
    lines = re.search(r"```python\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL)
    assert lines
    (tmp_path / "photos").mkdir()
    Image.open(images / "red" / "00.png").save(tmp_path / "photos" / "a.jpg")
    Image.open(images / "red" / "00.png").save(tmp_path / "seven.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").write_text(RUN.replace("photos", str(images)))
    program = lines[1].replace('"digits"', '"quick.yaml"')
    exec(compile(program, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "quick-1" / "report.html").exists()


def test_there_are_commands_in_every_guide():
    pages = {command.split(": ")[0] for command in commands()}
    assert {"README.md", "guide.md", "deploy.md", "config.md", "digits.yaml"} <= pages
