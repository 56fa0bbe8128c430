"""What it costs to train with several processes on one machine instead of one that uses all cores.

    python benchmarks/distributed.py flowers data.tfds=null data.folder=../shared/data/flower_photos

Trains the config twice, each from a cold cache: with one process, then with `--processes`. Prints seconds by stage of
both, the largest difference of the weights, and a profile of the steps: how long one takes and how much of that is
the sum over the processes (measured after each phase with as many numbers as the phase trains).
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from processes import Crowd

PROFILE = """
import numpy, statistics
real, seconds = PhaseTraining.try_step, []
def timed(self, *args):
    began = time.monotonic()
    found = real(self, *args)
    seconds.append(time.monotonic() - began)
    return found
def tell(training, **more):
    seconds.clear()
    result = run_phase(training, **more)
    size = sum(int(numpy.prod(variable.shape)) for variable in training.above.trainable_variables)
    sums = []
    for _ in range(21):
        began = time.monotonic()
        training.group.sum(numpy.zeros(size, "float32"))
        sums.append(time.monotonic() - began)
    text = f"profile {training.phase.name}: {len(seconds)} steps, {1e3 * statistics.median(seconds):.1f} ms each"
    if training.group.size > 1:
        text += f", {1e3 * statistics.median(sums):.1f} ms of it for the sum of {size:,} numbers"
    os.write(2, f"{text}\\n".encode())
    return result
run_phase, training.run_phase, PhaseTraining.try_step = training.run_phase, tell, timed
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="distributed-"))
    crowd = Crowd(folder, arguments.processes)
    config = Path(arguments.config)
    words = ["train", str(config.resolve()) if config.exists() else arguments.config]
    words += [_absolute(word) for word in arguments.overrides]
    crowd.forges[0].start(*words, "--output", folder / "one", patch=PROFILE)
    runs = {"one": _finished(folder / "one", [crowd.forges[0].wait(86_400)], crowd)}
    shutil.rmtree(folder / "cache")
    crowd.start(*words, "--output", folder / "many", patches=[PROFILE] * arguments.processes)
    runs["many"] = _finished(folder / "many", [forge.wait(86_400) for forge in crowd.forges], crowd)
    crowd.close()
    seconds = {name: json.loads((run / "run.json").read_text())["seconds"] for name, run in runs.items()}
    print(f"\n{'stage':<12} {'1 process':>10} {f'{arguments.processes} processes':>12}")
    for stage in seconds["one"]:
        one, many = seconds["one"][stage], seconds["many"][stage]
        print(f"{stage:<12} {one:>8.1f} s {many:>10.1f} s   {many / one - 1:+.0%}")
    print(f"largest difference of a weight: {_difference(*runs.values()):.1e}")
    shutil.rmtree(folder)
    return 0


def _absolute(word: str) -> str:
    """The runs happen in another folder."""
    key, _, value = word.partition("=")
    return f"{key}={Path(value).resolve()}" if Path(value).exists() else word


def _finished(output: Path, codes: list[int], crowd: Crowd) -> Path:
    if any(codes):
        raise SystemExit(crowd.said())
    print(*[line for line in crowd.forges[0].said().splitlines() if line.startswith("profile")], sep="\n", flush=True)
    (run,) = output.iterdir()
    return run


def _difference(*runs: Path) -> float:
    one, other = (_weights(run) for run in runs)
    return max(float(np.abs(one[key].astype(float) - other[key]).max()) for key in one)


def _weights(run: Path) -> dict[str, np.ndarray]:
    folder = run / "checkpoints" / (run / "checkpoints" / "LAST").read_text().strip()
    with np.load(folder / "arrays.npz") as arrays:
        return {key: arrays[key] for key in arrays if key.startswith("model/")}


if __name__ == "__main__":
    sys.exit(main())
