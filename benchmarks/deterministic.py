"""What `deterministic: true` costs on this machine: the same training with it and without it, turn about.

    python benchmarks/deterministic.py [--config digits] [--rounds 3] [key=value ...]

Every training is a process of its own; features are computed once, before. Prints the median seconds of each phase.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STAGES = ("head", "fine_tune", "evaluation")


def train(arguments: argparse.Namespace, folder: Path, deterministic: bool) -> dict[str, float]:
    words = [arguments.config, *arguments.overrides, f"deterministic={str(deterministic).lower()}"]
    command = [sys.executable, "-m", "finetune.cli", "train", *words, "--quiet", "--output", str(folder / "runs")]
    subprocess.run(command, check=True, env={**os.environ, "FINETUNE_CACHE": str(folder / "cache")})
    newest = max((folder / "runs").iterdir(), key=lambda run: int(run.name.rpartition("-")[2]))
    seconds = json.loads((newest / "report.json").read_text())["seconds"]
    return {stage: seconds[stage] for stage in STAGES if stage in seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config", default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="deterministic-") as name:
        train(arguments, Path(name), False)
        for number in range(arguments.rounds):
            for way in (False, True) if number % 2 else (True, False):
                found[way].append(train(arguments, Path(name), way))
                print(f"round {number + 1}, deterministic {way}: {found[way][-1]}", flush=True)
    for stage in found[True][0]:
        without, with_it = (statistics.median(one[stage] for one in found[way]) for way in (False, True))
        print(f"{stage:<12} {without:7.2f} s without, {with_it:7.2f} s with: {with_it / without:.2f} times")


if __name__ == "__main__":
    main()
