"""kill -9 at random moments, half of them inside a save; every run must end as one that was never killed.

    python benchmarks/soak_kill.py --kills 200 --steps 20

First, runs are killed one to eight times and then left to finish; then, one by one, runs are killed at a random step
and resumed. Each is compared with an unbroken run: weights, the last checkpoint with optimizer state and seeds,
history, phases, TensorBoard points, test figures. All have to be equal to the bit (`deterministic: true`, CPU).
Needs nobody: a child that hangs is killed and counts as a failure; the exit code is the number of failures.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import Forge, outcome

CONFIG = """
name: colours
recipe: none
deterministic: true
data: {folder: images, split: {train: 0.6, validation: 0.2, test: 0.2}}
model: {backbone: tiny, weights: none}
head: {start: random, epochs: 3, batch_size: 8, learning_rate: 0.01}
fine_tune: {unfreeze: 2, epochs: 2, batch_size: 8, learning_rate: 0.003}
"""
# A checkpoint after each batch; then one of the following dies at its nth call: a rename, or the writing of arrays.
IN_A_SAVE = """
training.CHECKPOINT_SECONDS = 0.0
import numpy
real = numpy.savez
def savez(path, **arrays):
    real(path, **arrays)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    die()
kind, number = {kind!r}, {number}
if kind == "savez":
    at(numpy, "savez", number, act=lambda: setattr(numpy, "savez", savez))
else:
    at(os, kind, number, after={after})
"""


def make_images(root: Path) -> None:
    noise = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for index in range(24):
            pixels = noise.integers(0, 160, (36, 40, 3))
            pixels[..., 2 - number] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:02}.png")


def workplace() -> Path:
    """A new folder with the images and the config of a soak."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    make_images(folder / "pictures")
    (folder / "cfg.yaml").write_text(CONFIG)
    return folder


def conclude(folder: Path, failures: list[str]) -> int:
    """Tells the failures; the folder stays only if there are any. The exit code."""
    print(*failures, sep="\n\n")
    if not failures:
        shutil.rmtree(folder)
    return len(failures)


def kill(forge: Forge, command: list[str], seconds: float, in_a_save: bool) -> int:
    """Starts `command` and kills it at a random moment; its exit code."""
    if in_a_save:
        kind = random.choice(("replace", "rename", "savez"))
        number = random.randint(1, 40 if kind == "replace" else 8)
        patch = IN_A_SAVE.format(kind=kind, number=number, after=random.random() < 0.5)
        return forge.run(*command, patch=patch)
    forge.start(*command, patch=random.choice(("", "training.CHECKPOINT_SECONDS = 0.0")))
    time.sleep(random.uniform(0, seconds))
    with suppress(ProcessLookupError):
        forge.send(signal.SIGKILL)
    return forge.wait()


class Tally:
    """Counts, and compares what runs leave with what the unbroken one left."""

    def __init__(self, unbroken: Path) -> None:
        self.unbroken = outcome(unbroken / "colours-1")
        self.kills = self.runs = self.equal = 0
        self.failures: list[str] = []

    def compare(self, output: Path, said: Callable[[], str], code: int = 0) -> None:
        try:
            found = outcome(output / "colours-1") if code == 0 else {}
        except Exception as error:  # a file that is not there, or not whole
            found = {"error": repr(error)}
        if different := [key for key in self.unbroken if found.get(key) != self.unbroken[key]]:
            what = f"run {self.runs}, exit code {code}: {', '.join(different)} differ {found.get('error', '')}"
            self.failures.append(f"{what}; it is in {output}\n{said()}")
        else:
            self.equal += 1
            shutil.rmtree(output)


class Soak(Tally):
    """Runs of one process at a time."""

    def __init__(self, forge: Forge) -> None:
        self.forge = forge
        self.began = time.monotonic()
        if forge.run("train", "cfg.yaml", "--output", "unbroken"):
            raise SystemExit(forge.said())
        self.seconds = time.monotonic() - self.began
        super().__init__(forge.folder / "unbroken")
        self.saves = 0

    def command(self) -> list[str]:
        """That of a new run, which may be given again and again."""
        self.runs += 1
        if self.runs % 2:
            shutil.rmtree(self.forge.folder / "cache", ignore_errors=True)  # killed with features half made, too
        return ["train", "cfg.yaml", "--output", str(self.forge.folder / f"runs{self.runs}"), "--resume"]

    def killed(self, code: int, in_a_save: bool = False) -> bool:
        """Counts a kill; whether the run can be gone on with. One killed after its last act is done, and says so."""
        self.kills += code == -signal.SIGKILL
        self.saves += code == -signal.SIGKILL and in_a_save
        if code not in (0, -signal.SIGKILL):
            self.failures.append(f"run {self.runs}: exit code {code}\n{self.forge.said()}")
            print(self.failures[-1], flush=True)
        return code == -signal.SIGKILL

    def done(self, output: Path) -> bool:
        with suppress(OSError):
            return '"done"' in (output / "colours-1" / "state.json").read_text()
        return False

    def end(self, command: list[str], code: int) -> None:
        """Lets a killed run finish, if it has not, and compares it."""
        output = Path(command[3])
        if code == -signal.SIGKILL:
            code = 0 if self.done(output) else self.forge.run(*command)
        self.compare(output, self.forge.said, code)

    def report(self) -> None:
        print(f"{time.monotonic() - self.began:5.0f} s: {self.kills} kills ({self.saves} in a save), {self.runs} runs, "
              f"{self.equal} equal, {len(self.failures)} failures", flush=True)  # fmt: skip


def at_random_moments(soak: Soak) -> None:
    command = soak.command()
    for _ in range(random.randint(1, 8)):
        in_a_save = 2 * soak.saves <= soak.kills  # half of all: of these more come too late
        code = kill(soak.forge, command, soak.seconds, in_a_save)
        if not soak.killed(code, in_a_save) or soak.done(Path(command[3])):
            break
    soak.end(command, code)


def at_a_step(soak: Soak, step: int) -> None:
    """Killed right before or after one optimizer step, with a checkpoint after each batch or few of them."""
    command = soak.command()
    patch = random.choice(("", "training.CHECKPOINT_SECONDS = 0.0\n"))
    after = random.random() < 0.5
    code = soak.forge.run(*command, patch=f"{patch}at(PhaseTraining, 'train_batch', {step}, after={after})")
    soak.killed(code)
    soak.end(command, code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    folder = workplace()
    forge = Forge(folder)
    soak = Soak(forge)
    while soak.kills < arguments.kills:
        at_random_moments(soak)
        soak.report()
    runs, equal, kills = soak.runs, soak.equal, soak.kills
    print(f"{kills} kills, {soak.saves} in a save: {equal} of {runs} runs ended equal to the unbroken one", flush=True)
    steps = len(soak.unbroken["points"]["train/step/loss"])
    for step in random.sample(range(1, steps + 1), min(arguments.steps, steps)):
        at_a_step(soak, step)
        soak.report()
    forge.close()
    print(f"Killed at a random step: {soak.equal - equal} of {soak.runs - runs} equal to the bit")
    return conclude(folder, soak.failures)


if __name__ == "__main__":
    sys.exit(main())
