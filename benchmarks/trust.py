"""The figures of trust: bombs, odd images, hostile model files, and the speed of the scan.

    python benchmarks/trust.py [--shared ../shared] [--images 4000] [--index 1000000]

Time and memory are those of one call in this process, after a first one that loads what every call needs; memory is
how far the peak rose (Linux). The scan decodes photos of 500 x 375 pixels, scaled from those of `--shared` if it is
there, else drawn.
"""

import argparse
import csv
import os
import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from finetune import data
from finetune.config import DataConfig
from finetune.data import scan_images
from finetune.utils.errors import ImageError, WeightsError

SIZE = (500, 375)


def cost(call: Callable[[], object]) -> tuple[float, float, Exception | None]:
    """Seconds, MB by which the peak rose, and the error of `call()`."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, error = _memory("VmRSS"), None
    begin = time.perf_counter()
    try:
        call()
    except (ImageError, WeightsError) as refusal:
        error = refusal
    return time.perf_counter() - begin, _memory("VmHWM") - before, error


def _memory(what: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s*(\d+)", status)[1]) / 1024


def told(what: str, costs: dict[str, tuple[float, float, Exception | None]], seconds: float, megabytes: float) -> None:
    refused = sum(error is not None for _, _, error in costs.values())
    slow, large = max(costs, key=lambda name: costs[name][0]), max(costs, key=lambda name: costs[name][1])
    print(
        f"{what}: {refused} of {len(costs)} refused; the slowest in {1000 * costs[slow][0]:.0f} ms ({slow}), the "
        f"largest {costs[large][1]:.0f} MB ({large}); targets {1000 * seconds:.0f} ms, {megabytes:.0f} MB",
        flush=True,
    )


def bombs(folder: Path, shared: Path) -> None:
    from test_images import bombs as made

    paths = {path.name: path for path in made(folder)}
    odd = shared / "data" / "odd_images"
    if odd.is_dir():
        with (odd / "manifest.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row["group"], row["verdict"]) == ("bomb", "reject")]
        paths |= {row["file"]: odd / row["file"] for row in rows if (odd / row["file"]).exists()}
    data.read_image(_photo(folder / "warm.jpg", 0))
    told("Bombs", {name: cost(lambda path=path: data.read_image(path)) for name, path in paths.items()}, 0.05, 64)


def odd_images(shared: Path) -> None:
    from test_images import _fault

    folder = shared / "data" / "odd_images"
    if not folder.is_dir():
        return
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["file"]).exists()]
    for verdict in sorted({row["verdict"] for row in rows}):
        faults = [_fault(folder / row["file"], row) for row in rows if row["verdict"] == verdict]
        print(f"Odd images to {verdict}: {faults.count('')} of {len(faults)} right", *filter(None, faults), sep="\n  ")


def hostile_models(folder: Path) -> None:
    import test_hostile_models as hostile

    from finetune.models import ClassifierSpec, build_network, load_classifier

    honest = folder / "model.keras"
    spec = ClassifierSpec(**{**hostile.SPEC, "classes": tuple(hostile.CLASSES)})
    build_network(spec, name="tiny").save(honest)
    load_classifier(honest)
    warnings.filterwarnings("ignore", message="Skipping nested container")  # Keras on files of others
    costs = {}
    for name, (spoil, _) in hostile.SPOILED.items():
        path = hostile.pack(folder / "spoiled.keras", spoil(hostile.members(honest)))
        costs[name] = cost(lambda path=path: load_classifier(path))
    for name, (spoil, _) in hostile.WHOLE.items():
        path = folder / "spoiled.keras"
        path.write_bytes(spoil(honest.read_bytes()))
        costs[name] = cost(lambda path=path: load_classifier(path))
    told("Hostile model files", costs, 1.0, 200)


def scanning(folder: Path, shared: Path, count: int) -> None:
    photos = sorted((shared / "data" / "flower_photos").rglob("*.jpg"))[:200]
    seeds = [_photo(folder / f"seed{number}.jpg", number, photos) for number in range(200)]
    (folder / "pictures").mkdir()
    paths = [str(folder / "pictures" / f"{number:06}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        os.link(seeds[number % len(seeds)], path)
    os.environ["FINETUNE_CACHE"] = str(folder / "cache")
    cores = len(os.sched_getaffinity(0))
    for title, target in (("first", "600 per core"), ("second", "50,000")):
        begin, spent = time.perf_counter(), _cpu()
        good = sum(one.ok for one in scan_images(paths))
        wall, cpu = time.perf_counter() - begin, _cpu() - spent
        print(
            f"Scan, the {title} time: {good:,} of {count:,} good; {count / wall:,.0f} a second on {cores} cores, "
            f"{count / cpu:,.0f} per CPU second; target {target}",
            flush=True,
        )


def index(folder: Path, count: int) -> None:
    for number in range(100):
        (folder / f"class{number:02}").mkdir(parents=True)
    for number in range(count):
        (folder / f"class{number % 100:02}" / f"{number:07}.jpg").touch()
    found: list[data.Listing] = []
    seconds, megabytes, _ = cost(lambda: found.append(data.list_source(DataConfig(folder=folder))))
    print(
        f"List of {len(found[0].names):,} files: {seconds:.1f} s, {megabytes:.0f} MB; target 60 s, 500 MB for a million"
    )


def _photo(path: Path, number: int, photos: Sequence[Path] = ()) -> Path:
    if photos:
        image = Image.open(photos[number % len(photos)]).convert("RGB")
    else:
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (47, 63, 3)).astype(np.uint8))
    image.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--index", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trust-") as name:
        folder = Path(name)
        bombs(folder, arguments.shared)
        odd_images(arguments.shared)
        scanning(folder, arguments.shared, arguments.images)
        index(folder / "many", arguments.index)
        hostile_models(folder)


if __name__ == "__main__":
    main()
