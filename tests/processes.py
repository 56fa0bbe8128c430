"""Real processes for the tests of trust: started, killed, signalled, and compared by what they leave behind.

Importing TensorFlow takes seconds, so one process does it once and forks a child for every command. A child can be
given a `patch`, Python that runs in it before the command: this is how it kills itself at a chosen place. The
product knows nothing of it.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from finetune.training.distributed.launch import local_process_environments

PARENT = """
import json, os, sys
import keras, tensorflow
import finetune.cli.main as cli, finetune.training.experiment, finetune.training.run_training
import finetune.evaluation.report as report

# As in `drawing.leave_out_drawing`.
report.draw_figures, report.render_page = (lambda data: {}), (lambda data, figures: "")
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if (pid := os.fork()) == 0:
        os.setsid()
        os.chdir(job["folder"])
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(handle, number)
        os.environ.update(job["environment"])
        sys.argv = ["finetune", *job["command"]]
        code = 70
        try:
            exec(job["patch"], {})
            code = cli.main()
            sys.stdout.flush()
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
# For patches: `die` at the nth call of something, before or after it.
DIE = """
import os, signal, time
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def at(owner, name, nth=1, when=lambda *args, **more: True, after=False, act=die):
    real, left = getattr(owner, name), [nth]
    def fake(*args, **more):
        left[0] -= bool(when(*args, **more))
        if left[0] == 0 and not after: act()
        result = real(*args, **more)
        if left[0] == 0: act()
        return result
    setattr(owner, name, fake)
def slow(owner, name, seconds=0.05):
    real = getattr(owner, name)
    def fake(*args, **more):
        time.sleep(seconds)
        return real(*args, **more)
    setattr(owner, name, fake)
import finetune.data.dataset as dataset, finetune.data.images as images, finetune.data.scan as scan
import finetune.models.feature_cache as feature_cache
import finetune.training.experiment as experiment
import finetune.training.loop as loop, finetune.training.tensorboard as tensorboard
import finetune.runs.run as run, finetune.utils.device as device
from finetune.runs.run import Run
from finetune.training.loop import Trainer
"""

EAGER = "loop.CHECKPOINT_SECONDS = 0.0\n"  # a checkpoint after each batch
SLOW = EAGER + "slow(Trainer, 'train_batch', 0.1)\n"


def furnish(folder: Path, images: Path, config: str) -> Path:
    """`folder` with what a training needs: the images, and the config in cfg.yaml."""
    shutil.copytree(images, folder / "images")
    (folder / "cfg.yaml").write_text(config)
    return folder


class Forge:
    """The process that has TensorFlow and forks; one child at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "FINETUNE_OFFLINE": "1", "FINETUNE_CACHE": str(folder / "cache")},
        )
        assert self._answer() == "ready"
        self.pid = 0

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def start(self, *command: object, patch: str = "", **environment: str) -> None:
        assert self.process.stdin
        self.log.write_text("")
        job = {
            "command": [str(word) for word in command],
            "patch": DIE + patch,
            "folder": str(self.folder),
            "log": str(self.log),
            "environment": environment,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self.pid = int(self._answer())

    def wait(self, seconds: float = 120.0) -> int:
        """The child's exit code; one that hangs is killed, so that the test fails instead of waiting for ever."""
        timer = threading.Timer(seconds, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        try:
            return int(self._answer())
        finally:
            timer.cancel()

    def run(self, *command: object, patch: str = "", **environment: str) -> int:
        self.start(*command, patch=patch, **environment)
        return self.wait()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended already; its exit code will tell
            os.kill(self.pid, number)

    def said(self, text: str = "", seconds: float = 60.0) -> str:
        """What the child has said, once `text` is in it."""
        end = time.monotonic() + seconds
        while text not in (log := self.log.read_text("utf-8", "replace") if self.log.exists() else ""):
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                self.wait()
                raise AssertionError(f"{text!r} was never said in:\n{log}")
            time.sleep(0.01)
        return log

    def close(self) -> None:
        self.process.communicate()


class Crowd:
    """Forges in one folder, with one cache, whose children train together."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        with ThreadPoolExecutor() as pool:
            self.forges = list(pool.map(lambda _: Forge(folder), range(count)))
        for rank, forge in enumerate(self.forges):
            forge.log = folder / f"log-{rank}"

    def start(self, *command: object, patches: Sequence[str] = (), **environment: str) -> None:
        """`patches[rank]` is for one of them, where there is one."""
        for rank, (forge, place) in enumerate(
            zip(self.forges, local_process_environments(len(self.forges)), strict=True)
        ):
            patch = patches[rank] if rank < len(patches) else ""
            forge.start(*command, patch=patch, **place, **environment)

    def wait(self) -> list[int]:
        """The exit codes, by rank."""
        return [forge.wait() for forge in self.forges]

    def run(self, *command: object, patches: Sequence[str] = (), **environment: str) -> list[int]:
        self.start(*command, patches=patches, **environment)
        return self.wait()

    def said(self) -> str:
        return "\n".join(f"--- {rank}:\n{forge.said()}" for rank, forge in enumerate(self.forges))

    def close(self) -> None:
        for forge in self.forges:
            forge.close()


def finetune(*command: object, folder: Path, **more: Any) -> "subprocess.CompletedProcess[str]":
    """One command in a process of its own, from nothing."""
    words = [sys.executable, "-m", "finetune.cli", *map(str, command)]
    return subprocess.run(words, cwd=folder, text=True, capture_output=True, timeout=120, check=False, **more)


# ------------------------------------------------------------------------------------------ what a run leaves


def outcome(run: Path) -> dict[str, Any]:
    """All that must not depend on how often a run was interrupted: weights, history, choices, points, test figures."""
    with zipfile.ZipFile(run / "model.keras") as archive:
        weights = hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    rows = [line.rpartition(",")[0] for line in (run / "history.csv").read_text().splitlines()]  # the last: seconds
    return {
        "weights": weights,
        "checkpoint": _checkpoint(run),
        "history": rows,
        "phases": json.loads((run / "state.json").read_text())["phases"],
        "test": json.loads((run / "report.json").read_text())["test"],
        "splits": (run / "splits.csv").read_text(),
        "points": points(run / "tensorboard"),
    }


def _checkpoint(run: Path) -> dict[str, str]:
    folder = run / "checkpoints" / (run / "checkpoints" / "LAST").read_text().strip()
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return {key: hashlib.sha256(arrays[key].tobytes()).hexdigest() for key in arrays}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by curve, and (step, 0) for images; equal points count once."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    for tag in accumulator.Tags()["tensors"]:
        arrays = [(event.step, make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]
        if tag != "config":
            curve = (
                (step, float(array) if array.ndim == 0 and array.dtype != object else 0.0) for step, array in arrays
            )
            found[tag] = list(dict.fromkeys(curve))
    return found


def tree(folder: Path) -> str:
    """Everything about a folder that a program could change: names, contents, modes, times."""
    whole = hashlib.sha256()
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        facts = (str(path), status.st_mode, status.st_mtime_ns, status.st_size)
        whole.update(repr(facts).encode() + hashlib.sha256(content).digest())
    return whole.hexdigest()
