"""The worked examples of docs/extending.md, applied to a copy of the package and run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
pytestmark = pytest.mark.slow


def blocks(section: str) -> list[tuple[str, str]]:
    """(language, code) of the code blocks of a section."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```(python|diff)\n(.*?)```", text, re.DOTALL)


def apply(section: str, folder: Path) -> Path:
    """A copy of the package in `folder` with the example of a section in it."""
    shutil.copytree(ROOT / "finetune", folder / "finetune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    for language, code in blocks(section):
        first, _, rest = code.partition("\n")
        target = folder / first.split(maxsplit=1)[1]
        if language == "python":
            target.write_text(rest)
        else:
            target.write_text(patched(target.read_text("utf-8"), rest.splitlines()))
    return folder


def patched(text: str, diff: Sequence[str]) -> str:
    """`text` with the added lines of `diff` behind the line before them, which must stand there once."""
    lines = text.splitlines()
    at = 0
    for line in diff:
        sign, content = line[:1], line[1:]
        if sign == "+":
            lines.insert(at, content)
            at += 1
            continue
        found = [number for number, known in enumerate(lines) if known == content and (number >= at or not at)]
        assert found, f"docs/extending.md shows a line that is not there: {content!r}"
        at = found[0] + 1
        if sign == "-":
            at -= 1
            del lines[at]
    return "\n".join(lines) + "\n"


def run(folder: Path, *words: object) -> str:
    """What a command prints, run with the package in `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests")])}
    command = [sys.executable, *map(str, words)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_backbone(tmp_path: Path) -> None:
    (_, code), *_ = blocks("A backbone")
    (tmp_path / "mynet.py").write_text(code)
    run(tmp_path, "mynet.py")
    assert list(tmp_path.glob("runs/*/model.keras"))


def test_a_data_source(tmp_path: Path, images: Path) -> None:
    folder = apply("A data source", tmp_path)
    rows = [f"{path.parent.name} {path}" for path in sorted(images.glob("*/*.png"))]
    (folder / "birds.txt").write_text("\n".join(rows))
    program = (
        "from finetune.config import load_config; from finetune.data import open_dataset\n"
        "print(open_dataset(load_config({'data': {'text': 'birds.txt'}}).data, seed=0).counts().tolist())"
    )
    assert run(folder, "-c", program).strip() == "[24, 24, 24]"


def test_an_export_format(tmp_path: Path, images: Path) -> None:
    ((_, code),) = blocks("An export format")
    (tmp_path / "h5_format.py").write_text(code)
    shutil.copytree(images / "red", tmp_path / "photos")
    run(tmp_path, "h5_format.py")
    assert (tmp_path / "exports" / "efficientnet_lite0-h5" / "model.h5").exists()


def test_a_command(tmp_path: Path, images: Path) -> None:
    folder = apply("A command", tmp_path)
    assert run(folder, "-m", "finetune.cli", "count", images).splitlines()[0] == "      24  blue"
    assert "count the images of each class" in run(folder, "-m", "finetune.cli", "--help")
