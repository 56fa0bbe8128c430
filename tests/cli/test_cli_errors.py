"""Commands whose output nobody can read."""

import os
import subprocess
import sys

import pytest


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
