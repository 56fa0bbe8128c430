"""What the documents tell people to type is understood: every `finetune ...` in them parses, and its config exists."""

import re
import shlex
from pathlib import Path

import pytest

from finetune import cli, config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("*.yaml"))]
COMMAND = re.compile(r"(?:^|`|&& |^#\s+)(finetune(?: [^`\n]*)?)", re.MULTILINE)


def commands():
    for page in PAGES:
        text = re.sub(r"^[ ]{4}", "", page.read_text("utf-8"), flags=re.MULTILINE)
        for command in COMMAND.findall(text):
            command = re.split(r"\s+(?:#|>|\||\(|  )", command)[0]  # a remark, a pipe, another column
            yield f"{page.name}: {command.strip()}"


@pytest.mark.parametrize("told", sorted(set(commands())))
def test_a_command_that_is_told_is_understood(told, capsys):
    words = shlex.split(told.split(": ", 1)[1])[1:]
    if len(words) < 2:  # only its name: it must exist
        with pytest.raises(SystemExit) as leaving:
            cli.main([*words, "--help"])
        assert leaving.value.code == 0
        return
    arguments = cli._parser().parse_args(words)
    if words[0] == "train" and arguments.config in config.shipped():
        assert config.find(arguments.config).is_file()


def test_there_are_commands_in_every_guide():
    pages = {told.split(": ")[0] for told in commands()}
    assert {"README.md", "guide.md", "deploy.md", "config.md", "digits.yaml"} <= pages
