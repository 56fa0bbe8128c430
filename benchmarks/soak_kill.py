"""kill -9 at random moments, half of them inside a save; every run must end as one that was never killed.

    python benchmarks/soak_kill.py --kills 200          about ten minutes on 2 cores

A run is killed one to eight times and then left to finish. Compared with an unbroken run: weights, the last
checkpoint with optimizer state and seeds, history, phases, TensorBoard points, test figures. All have to be equal to
the bit (`deterministic: true`, CPU).
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import Forge, outcome

CONFIG = """
name: colours
deterministic: true
data: {folder: pictures, split: {train: 0.6, validation: 0.2, test: 0.2}}
model: {backbone: tiny, weights: none}
head: {epochs: 3, batch_size: 8, learning_rate: 0.01}
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


def make_pictures(root: Path) -> None:
    noise = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for index in range(24):
            pixels = noise.integers(0, 160, (36, 40, 3))
            pixels[..., 2 - number] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:02}.png")


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    make_pictures(folder / "pictures")
    (folder / "cfg.yaml").write_text(CONFIG)
    forge = Forge(folder)
    begin = time.monotonic()
    if forge.run("train", "cfg.yaml", "--output", "unbroken"):
        raise SystemExit(forge.said())
    seconds, unbroken = time.monotonic() - begin, outcome(folder / "unbroken" / "colours-1")

    kills = saves = runs = equal = 0
    failures: list[str] = []
    while kills < arguments.kills:
        runs += 1
        output = folder / f"runs{runs}"
        command = ["train", "cfg.yaml", "--output", str(output), "--resume"]
        if runs % 2:
            shutil.rmtree(folder / "cache", ignore_errors=True)  # killed with features half made, too
        for _ in range(random.randint(1, 8)):
            in_a_save = random.random() < 0.5
            code = kill(forge, command, seconds, in_a_save)
            kills += code == -signal.SIGKILL
            saves += code == -signal.SIGKILL and in_a_save
            if code not in (0, -signal.SIGKILL):
                failures.append(f"run {runs}: exit code {code}\n{forge.said()}")
            if code == 0:
                break
        else:
            code = forge.run(*command)
        found = outcome(output / "colours-1") if code == 0 else {}
        different = [key for key in unbroken if found.get(key) != unbroken[key]]
        equal += not different
        if different:
            failures.append(f"run {runs}, exit code {code}: {', '.join(different)} differ\n{forge.said()}")
        print(f"{kills} kills ({saves} in a save), {runs} runs, {equal} equal", flush=True)
    forge.close()
    print(f"{kills} kills, {saves} in a save: {equal} of {runs} runs ended equal to the unbroken one, "
          f"{time.monotonic() - begin:.0f} s, in {folder}")  # fmt: skip
    print(*failures, sep="\n\n")
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
