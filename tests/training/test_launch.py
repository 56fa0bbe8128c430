"""Several processes of this machine, started and ended together."""

import signal
import sys

import pytest

from finetune.training.distributed import launch
from finetune.utils import ResourceError

PYTHON = sys.executable
WORKER = """
import json, os, signal, sys, time
place = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
{0}
"""


def group(tmp_path, monkeypatch, script: str) -> int:
    """A local group of two whose `finetune` is `script`."""
    program = tmp_path / "program"
    program.write_text(f"#!{PYTHON}\n{WORKER.format(script)}")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return launch.run_local_processes(2, ["train"])


def test_a_local_group_ends_with_one_code(tmp_path, monkeypatch):
    assert group(tmp_path, monkeypatch, "") == 0
    assert group(tmp_path, monkeypatch, "sys.exit(3)") == 3


def test_a_killed_process_is_named_and_the_others_end(tmp_path, monkeypatch):
    script = "os.kill(os.getpid(), signal.SIGKILL) if place else time.sleep(60)"
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    with pytest.raises(ResourceError, match=r"process 1 of 2 \(id \d+\) was ended by SIGKILL"):
        group(tmp_path, monkeypatch, script)


def test_what_only_a_silent_one_said_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    with pytest.raises(ResourceError, match="segmentation"):
        group(tmp_path, monkeypatch, "place and sys.exit('segmentation'); time.sleep(60)")


def test_a_signal_reaches_all(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    script = "os.kill(os.getppid(), signal.SIGTERM) if place else None; time.sleep(60)"
    assert group(tmp_path, monkeypatch, script) == 143
    assert signal.getsignal(signal.SIGTERM) is before
