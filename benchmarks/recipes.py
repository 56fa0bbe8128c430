"""What `finetune train` reaches with nothing in the config but `data:`, beside the Keras guide, on several data sets.

    python benchmarks/recipes.py FLOWERS [--samples IMAGENET_SAMPLES] [--sets digits patches ...] [--seeds 0 1 2]
                                 [--guide-seeds 0] [--set key=value ...]

FLOWERS is a folder of photos with a subfolder per class. The sets are made from it and from what is installed:

    digits    scikit-learn's 1,797 digits of 8 x 8 pixels
    patches   the middle 64 x 64 pixels of each photo
    groups    the photos of IMAGENET_SAMPLES, by what they show (the backbone has probably been trained on them)
    few       10 photos of each class for training and as many for validation, all others for testing
    flowers   the photos themselves

Per run: test accuracy with its 95 % interval, the baseline, the calibration error, which phases were kept, seconds of
wall clock and of CPU. The guide (`keras_guide.py`) gets the same weights, splits and input size.
"""

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
GROUPS = ("dog", "bird", "reptile", "insect", "fish", "instrumentality", "food", "structure", "clothing")
SIZES = {"digits": 96, "patches": 96}


def make_digits(target: Path, arguments: argparse.Namespace) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        save(Image.fromarray((pixels * 255 / 16).astype(np.uint8)), target / str(label) / f"{number}.png")


def make_patches(target: Path, arguments: argparse.Namespace) -> None:
    for path in photos(arguments.flowers):
        with Image.open(path) as image:
            left, top = (image.width - 64) // 2, (image.height - 64) // 2
            middle = image.convert("RGB").crop((left, top, left + 64, top + 64))
            save(middle, target / path.parent.name / f"{path.stem}.png")


def make_groups(target: Path, arguments: argparse.Namespace) -> None:
    from finetune.backbones import wordnet

    for path in sorted(arguments.samples.glob("*.JPEG")):
        names = {wordnet.load_synsets()[above].name for above in wordnet.ancestors(path.name.partition("_")[0])}
        if group := next((name for name in GROUPS if name in names), None):
            link(path, target / group / path.name)


def make_few(target: Path, arguments: argparse.Namespace) -> None:
    for folder in sorted({path.parent for path in photos(arguments.flowers)}):
        paths = sorted(folder.iterdir())
        random.Random(arguments.seed).shuffle(paths)
        for number, path in enumerate(paths):
            split = "train" if number < 10 else "validation" if number < 20 else "test"
            link(path, target / split / folder.name / path.name)


def photos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.jpg"))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.symlink_to(path.resolve())


MAKERS = {"digits": make_digits, "patches": make_patches, "groups": make_groups, "few": make_few, "flowers": None}


def timed(command: list[str], **more: object) -> tuple[float, float, str]:
    """Seconds of wall clock and of CPU that `command` took, and what it printed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, spent, printed


def ours(images: Path, seed: int, folder: Path, arguments: argparse.Namespace) -> tuple[Path, dict]:
    """One `finetune train` in a process of its own, nothing cached."""
    config = folder / "recipe.yaml"
    config.write_text(json.dumps({"data": {"folder": str(images)}, "seed": seed, "output": str(folder / "runs")}))
    words = [sys.executable, "-m", "finetune.cli", "train", str(config), *arguments.set, "--quiet"]
    wall, spent, _ = timed(words, env={**os.environ, "FINETUNE_CACHE": str(folder / "cache")})
    run = max((folder / "runs").iterdir(), key=lambda entry: entry.stat().st_mtime)
    report, facts = (json.loads((run / name).read_text()) for name in ("report.json", "run.json"))
    test = report["test"]
    return run, {
        "accuracy": test["accuracy"],
        "n": test["n"],
        "calibration_error": test["calibration_error"],
        "baseline": facts.get("baseline", {}).get("accuracy"),
        "kept": {phase["name"]: phase["best_epoch"] for phase in report["phases"]},
        "wall": wall,
        "cpu": spent,
    }


def guide(images: Path, run: Path, seed: int, size: int, folder: Path) -> dict:
    splits = folder / f"splits{seed}"
    with (run / "splits.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            link(images / row["path"], splits / row["split"] / row["label"] / row["path"].replace("/", "_"))
    words = [sys.executable, str(HERE / "keras_guide.py"), str(splits), "--backbone", "efficientnet_lite0"]
    wall, spent, printed = timed([*words, "--size", str(size), "--seed", str(seed)])
    return {"accuracy": json.loads(printed.splitlines()[-1])["test_accuracy"], "wall": wall, "cpu": spent}


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    accuracies = []
    for seed in arguments.seeds:
        arguments.seed = seed
        images = arguments.flowers
        if make := MAKERS[name]:
            images = folder / (f"few{seed}" if name == "few" else name)
            if not images.exists():
                make(images, arguments)
        run, found = ours(images, seed, folder, arguments)
        accuracies.append(found["accuracy"]["value"])
        low, high = found["accuracy"]["low"], found["accuracy"]["high"]
        print(
            f"{name:8} seed {seed}: {accuracies[-1]:.4f} ({low:.4f} to {high:.4f}, n {found['n']})  baseline on "
            f"validation {found['baseline']:.4f}  calibration error {found['calibration_error']:.4f}  best epochs "
            f"{found['kept']}  {found['wall']:.0f} s wall, {found['cpu']:.0f} s CPU",
            flush=True,
        )
        if seed in arguments.guide_seeds:
            peer = guide(images, run, seed, SIZES.get(name, 224), folder)
            print(f"{name:8} seed {seed}: guide {peer['accuracy']:.4f}  {peer['wall']:.0f} s wall, {peer['cpu']:.0f} s "
                  f"CPU: {peer['cpu'] / found['cpu']:.1f} times ours", flush=True)  # fmt: skip
    print(f"{name:8} mean of {len(accuracies)}: {statistics.mean(accuracies):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flowers", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--sets", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--guide-seeds", type=int, nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[], help="overrides for our config")
    arguments = parser.parse_args()
    arguments.flowers = arguments.flowers.resolve()
    for name in arguments.sets:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), arguments)


if __name__ == "__main__":
    main()
