"""How time and memory of the head phase grow with the number of images.

    python benchmarks/growth.py 1000 2000 4000 8000 [--backbone tiny] [--epochs 3]

Makes that many different 224 px JPEGs (10 classes), trains the head in a process of its own each, and prints seconds
and peak memory. `tiny` at 224 px keeps reading, hashing, caching and training real and leaves out the network's time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def make(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (64, 28, 28, 3)).astype(np.uint8)
    for index in range(count):
        target = folder / f"class{index % 10}" / f"{index:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = small[index % 64].copy()
        pixels[0, 0] = (index % 256, index // 256 % 256, index // 65536)  # no two files alike
        Image.fromarray(pixels).resize((224, 224)).save(target, quality=85, comment=str(index).encode())


def train(folder: Path, arguments: argparse.Namespace) -> dict:
    config = {
        "name": "growth",
        "recipe": "none",
        "output": str(folder / "runs"),
        "data": {"folder": str(folder / "pictures")},
        "model": {"backbone": arguments.backbone, "image_size": 224, "weights": "none"},
        "head": {"epochs": arguments.epochs},
    }
    (folder / "growth.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "finetune.cli", "train", str(folder / "growth.json"), "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, "FINETUNE_CACHE": str(folder / "cache")})
    return json.loads(next((folder / "runs").glob("*/report.json")).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name) / "pictures", count)
            report = train(Path(name), arguments)
        seconds = report["seconds"]
        spent = seconds["reading"] + seconds["features"] + seconds["head"]
        print(f"{count:>8,} images  reading {seconds['reading']:6.1f} s  features {seconds['features']:6.1f} s  "
              f"head {seconds['head']:6.1f} s  {1000 * spent / count:6.2f} ms an image  "
              f"peak {report['peak_memory_mb']:,} MB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
