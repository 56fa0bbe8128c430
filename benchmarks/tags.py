"""Images with several labels, built from flower_photos, and how well they are learnt with no setting changed.

    python benchmarks/tags.py FLOWER_PHOTOS [--folder tags] [--images 1500] [key=value ...]

Each built image is a sheet of four tiles: none to three different flowers, the rest grey noise, so that an image has
any number of labels and some have none. Every photo is used in one sheet at most: no flower of the test was seen in
training. Writes FOLDER/tags.csv and trains on it with `data.multi_label`.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

import finetune
from finetune.utils import format_interval

SIDE = 160  # of a tile, in pixels
SHARES = (0.1, 0.3, 0.35, 0.25)  # of the sheets, by how many flowers they have


def build(photos: Path, folder: Path, count: int) -> Path:
    """Up to `count` sheets in `folder`, as many as there are photos for; the table that names their labels."""
    random = np.random.default_rng(0)
    left = {kind.name: list(random.permutation(sorted(kind.glob("*.jpg")))) for kind in sorted(photos.iterdir())}
    (folder / "images").mkdir(parents=True)
    with (folder / "tags.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label"))
        for number in range(count):
            kinds = random.choice(sorted(left), random.choice(4, p=SHARES), replace=False)
            if any(not left[kind] for kind in kinds):
                break
            name = f"images/{number:04}.jpg"
            _sheet([left[kind].pop() for kind in kinds], random).save(folder / name, quality=90)
            table.writerow((name, "|".join(sorted(kinds))))
    return folder / "tags.csv"


def _sheet(photos: list[Path], random: np.random.Generator) -> Image.Image:
    sheet = Image.fromarray(random.integers(90, 160, (2 * SIDE, 2 * SIDE, 3)).astype(np.uint8))
    for place, photo in zip(random.permutation(4), photos, strict=False):
        with Image.open(photo) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            tile = image.convert("RGB").crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        sheet.paste(tile, (int(place % 2) * SIDE, int(place // 2) * SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path("tags"))
    parser.add_argument("--images", type=int, default=1500)
    arguments = parser.parse_intermixed_args()
    table = arguments.folder / "tags.csv"
    if not table.exists():
        build(arguments.photos, arguments.folder, arguments.images)
    result = finetune.train({"name": "tags", "data": {"csv": str(table), "multi_label": True}}, *arguments.overrides)
    for name, value in result.metrics.summary().items():
        print(f"{name}: {value if isinstance(value, float) else format_interval(value)}")


if __name__ == "__main__":
    main()
