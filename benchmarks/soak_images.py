"""Image files with random damage: no dead process, no unexpected exception, no time lost.

    python benchmarks/soak_images.py --images 100000 --from ../shared/data/odd_images

Every file goes through the scan, as in training; what the scan accepts is then read as in training and prediction,
and must come out in the right shape.
"""

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from finetune import data
from finetune.data import scan_images
from finetune.utils.errors import ImageError

GROUP = 500
SIDE = 64


def seeds(folder: Path | None) -> list[tuple[str, bytes]]:
    """(suffix, content) of sound files to damage: one of each kind, and those of `folder`."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    made = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        for mode in ("RGB", "L", "P"):
            if (kind, mode) not in (("JPEG", "P"), ("WEBP", "P")):
                target = io.BytesIO()
                Image.fromarray(noise).convert(mode).save(target, kind)
                made.append((f".{kind.lower()}", target.getvalue()))
    paths = folder.rglob("*") if folder else ()
    found = [path for path in paths if path.suffix.lower() in data.IMAGE_SUFFIXES and path.is_file()]
    return made + [(path.suffix, path.read_bytes()) for path in found if path.stat().st_size < 300_000]


def damaged(content: bytes) -> bytes:
    """A few bytes changed, most often near the beginning, where the headers are; a part cut, doubled or zeroed."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        if changed:
            limit = len(changed) if random.random() < 0.4 else min(len(changed), 200)
            changed[random.randrange(limit)] = random.choice((0, 255, random.randrange(256)))
    at, length = random.randrange(len(changed) + 1), random.randrange(1, 200)
    match random.randrange(6):
        case 0:
            del changed[at:]
        case 1:
            changed[at:at] = changed[at : at + length]
        case 2:
            changed[at : at + length] = bytes(length)
    return bytes(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--from", dest="folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    sound = seeds(arguments.folder)
    transform = data.Transform(size=SIDE)
    counts: Counter[str] = Counter()
    trouble: list[str] = []
    begin, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        while counts["files"] < arguments.images:
            paths = []
            for number in range(min(GROUP, arguments.images - counts["files"])):
                suffix, content = random.choice(sound)
                paths.append(folder / f"{number:03}{suffix}")
                paths[-1].write_bytes(damaged(content))
            for path, inspection in zip(paths, scan_images(map(str, paths), use_cache=False), strict=True):
                counts["files"] += 1
                counts["refused" if inspection.reason else "accepted"] += 1
                if "crashed" in (inspection.reason or ""):
                    trouble.append(keep(path, inspection.reason or ""))
                if inspection.reason is None:
                    started = time.monotonic()
                    try:
                        shape = data.read_square(str(path), transform).shape
                        if shape != (SIDE, SIDE, 3):
                            trouble.append(keep(path, f"shape {shape}"))
                    except ImageError as problem:
                        trouble.append(keep(path, f"accepted by the scan, then refused: {problem.message}"))
                    except Exception as error:
                        trouble.append(keep(path, repr(error)))
                    slowest = max(slowest, time.monotonic() - started)
            for path in paths:
                path.unlink()
            if counts["files"] % (20 * GROUP) == 0:
                print(
                    f"{time.monotonic() - begin:5.0f} s: {counts['files']:,} files, {len(trouble)} in trouble",
                    flush=True,
                )
    seconds = time.monotonic() - begin
    print(
        f"{counts['files']:,} files: {counts['accepted']:,} accepted, {counts['refused']:,} refused, {len(trouble)} in "
        f"trouble; {counts['files'] / seconds:.0f} a second, slowest read {slowest:.2f} s"
    )
    print(*trouble[:50], sep="\n")
    return len(trouble)


def keep(path: Path, what: str) -> str:
    copy = Path(tempfile.gettempdir()) / f"trouble-{time.monotonic_ns()}{path.suffix}"
    copy.write_bytes(path.read_bytes())
    return f"{copy}: {what}"


if __name__ == "__main__":
    sys.exit(main())
