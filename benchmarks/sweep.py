"""Twenty head trials on a warm feature cache: how long, and whether memory grows.

    python benchmarks/sweep.py IMAGES [--trials 20] [--processes 1]

EfficientNet-Lite0, ten epochs a trial, learning rate and optimizer varied; each process is a command `finetune sweep`
on the same sweep. Beside the seconds of all, those that the trials alone took, and those of the winner's whole run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SETTINGS = ("recipe=none", "fine_tune=null", "head.epochs=10", "head.start=random")
VARIED = ("head.learning_rate=1e-4..1e-2", "head.optimizer=adam,sgd,adamw", "model.dropout=0.2,0.4")


def resident_mb(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    except OSError:  # it has just ended
        return 0


def start(arguments: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    words = ["flowers", "data.tfds=null", f"data.folder={arguments.images.absolute()}", *SETTINGS]
    words += [word for one in VARIED for word in ("--set", one)]
    words += ["--trials", str(arguments.trials), "--output", str(folder / "sweep"), "--json"]
    command = [sys.executable, "-m", "finetune.cli", "sweep", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def follow(process: subprocess.Popen[str], memory: list[int]) -> None:
    """Notes the memory of `process` at the end of every trial."""
    for line in process.stderr or ():
        if line.startswith("trial "):
            memory.append(resident_mb(process.pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        workers = [start(arguments, Path(name)) for _ in range(arguments.processes)]
        memory: list[list[int]] = [[] for _ in workers]
        threads = [threading.Thread(target=follow, args=pair) for pair in zip(workers, memory, strict=True)]
        for thread in threads:
            thread.start()
        said = [json.loads(worker.stdout.read()) for worker in workers if worker.stdout]
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.wait()  # or its processor time is not counted
        seconds = time.monotonic() - started
        (run,) = Path(name, "runs").iterdir()
        winner = sum(json.loads((run / "run.json").read_text())["seconds"].values())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    trials = said[0]["trials"]
    print(f"{len(trials)} trials, {len(workers)} processes: {seconds:.1f} s in all, start-up and winner included")
    print(f"processor: {used.ru_utime + used.ru_stime:.1f} s of all cores together")
    print(f"the trials {sum(trial['seconds'] for trial in trials):.1f} s, the winner's whole run {winner:.1f} s")
    for number, one in enumerate(memory):
        print(f"process {number}: {len(one)} trials, resident MB after each: {one}")
    best = trials[said[0]["best"]] if len(workers) == 1 else min(trials, key=lambda trial: -(trial["accuracy"] or 0))
    print(f"best: {best}")
    print("test:", next(one["winner"]["test"] for one in said if one["winner"]))


if __name__ == "__main__":
    main()
