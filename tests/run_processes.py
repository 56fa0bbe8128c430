"""For the tests of runs: trainings in other processes, which are killed, and what they leave behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from finetune.runs import Run

# "Trains" for ever: row, checkpoint, row, checkpoint. What the arrays hold follows from the epoch alone.
TRAINING = """
import sys
from pathlib import Path
import numpy as np
from finetune.runs import create_run, open_run
run = open_run(Path(sys.argv[1]))
with run.lock():
    checkpoint = run.load_checkpoint()
    run.rewind(checkpoint)
    epoch = checkpoint.state["epoch"] if checkpoint else 0
    print("start", epoch, checkpoint.lost if checkpoint else None, flush=True)
    while True:
        epoch += 1
        run.append_history({"phase": "head", "epoch": epoch, "loss": 1 / epoch})
        if epoch % 10 == 0:
            run.finish_phase({"name": f"phase {epoch // 10}"})
        run.save_checkpoint(f"head-{epoch}", {"w": np.full(100_000, epoch), "best/w": np.float32([epoch])},
                            {"epoch": epoch})
        print("saved", epoch, flush=True)
"""
HOLD = """
import sys
from pathlib import Path
from finetune.runs import open_run
from finetune.utils import ResourceError
run = open_run(Path(sys.argv[1]))
print("ready", flush=True)
input()
try:
    with run.lock():
        print("mine", flush=True)
        input()
except ResourceError as error:
    print(error, flush=True)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def listen(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def nudge(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def save(run: Run, epoch: int) -> Path:
    run.append_history({"phase": "head", "epoch": epoch, "loss": 1 / epoch})
    return run.save_checkpoint(f"head-{epoch}", {"w": np.full(3, epoch)}, {"epoch": epoch})
