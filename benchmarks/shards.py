"""`finetune predict` in one piece, in shards and on Ray: the same rows, at what cost in time and memory.

    python benchmarks/shards.py IMAGES [--shards 2] [--repeat 1] [--skip-ray]

Every way is a command of its own, start included. Memory is that of the command and of all that it has started (of Ray:
its workers; the cluster is started by the command), summed up every half second: the median of the second and of the
last quarter of the time tell whether it grows. `--repeat` names every image several times, by links.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from finetune import data


def tree(root: int) -> list[int]:
    """The process `root` and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, []))
    return found


def memory_mb(root: int) -> float:
    """Memory of its own (not shared with others) of a process and all below it."""
    total = 0
    for pid in tree(root):
        try:
            pages = Path(f"/proc/{pid}/statm").read_text().split()
            total += int(pages[1]) - int(pages[2])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(*words: object) -> tuple[float, list[float]]:
    """Seconds of one command, and its memory over the time."""
    command = [sys.executable, "-m", "finetune.cli", "predict", *map(str, words), "--quiet"]
    started, memory = time.monotonic(), []
    process = subprocess.Popen(command)
    while process.poll() is None:
        memory.append(memory_mb(process.pid))
        time.sleep(0.5)
    if process.returncode not in (0, 6):
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.monotonic() - started, memory


def rows(*files: Path) -> list[list[str]]:
    """The rows of tables with the same head, one after the other."""
    joined: list[list[str]] = []
    for file in files:
        with file.open(newline="") as stream:
            table = list(csv.reader(stream))
        joined += table if not joined else table[1:]
    return joined


def report(name: str, count: int, seconds: float, memory: list[float], plain: float, same: bool) -> None:
    quarter = max(1, len(memory) // 4)
    growth = f"{median(memory[quarter : 2 * quarter]):.0f} MB then {median(memory[-quarter - 1 : -1]):.0f} MB"
    print(
        f"{name:<16} {seconds:7.1f} s, {count / seconds:6.1f} images/s, {seconds / plain:5.2f} times plain; "
        f"{growth}, peak {max(memory):.0f} MB; rows {'identical' if same else 'DIFFER'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--skip-ray", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [path.absolute() for path in data.find_images(arguments.images)[0]]
        count = len(paths)
        for again in range(1, arguments.repeat):
            for at, path in enumerate(paths[:count]):
                link = folder / f"{again}-{at}{path.suffix}"
                link.symlink_to(path)
                paths.append(link)
        listed = folder / "list.txt"
        listed.write_text("".join(f"{path}\n" for path in paths))
        common = ("--list", listed, "--model", arguments.model)

        plain, memory = run(*common, "--csv", folder / "plain.csv")
        whole = rows(folder / "plain.csv")
        report("plain", len(paths), plain, memory, plain, len(whole) == len(paths) + 1)

        parts = [folder / f"part-{number}.csv" for number in range(1, arguments.shards + 1)]
        taken = [
            run(*common, "--csv", part, "--shard", f"{number}/{arguments.shards}")
            for number, part in enumerate(parts, start=1)
        ]
        seconds, longest = sum(one for one, _ in taken), max((memory for _, memory in taken), key=len)
        report(f"{arguments.shards} shards in turn", len(paths), seconds, longest, plain, rows(*parts) == whole)

        if not arguments.skip_ray:
            seconds, memory = run(*common, "--csv", folder / "ray.csv", "--engine", "ray")
            report("ray", len(paths), seconds, memory, plain, rows(folder / "ray.csv") == whole)


if __name__ == "__main__":
    main()
