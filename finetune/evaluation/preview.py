"""What goes into a training, to be looked at before it begins: a sheet of images for every class.

    for name, png in sheets(config, dataset): ...
    crop_sentence(config, dataset)      # the center crop removes 31 % of the pixels on median

Everything comes from where the training gets it: the split, the evaluation transform, the augmentation.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from finetune.backbones import find_backbone
from finetune.config import Config
from finetune.data import Augmenter, Dataset, Transform, inspect_image, read_image, read_square
from finetune.evaluation.figures.images import draw_preview
from finetune.models import transform_of

MEASURED = 300  # images whose shape is looked at
SHOWN = 512  # short side of an original on a sheet, in pixels at least

Box = tuple[float, float, float, float]  # left, top, width, height


def transform(config: Config) -> Transform:
    """How images of this config become the squares that its network sees."""
    row = find_backbone(config.model.backbone)
    return transform_of(row, config.model.image_size or row.size, config.model.resize)


def preview_sheets(
    config: Config, dataset: Dataset, *, images: int = 4, augmented: int = 4
) -> Iterator[tuple[str, bytes]]:
    """(class name, PNG) for every class: up to `images` training images, each with `augmented` versions.

    Without augmentation in the config there are none. ImageProblem for an image that has become unreadable.
    """
    how = transform(config)
    augmenter = Augmenter(config.augment)
    train = dataset.indices("train")
    for label, name in enumerate(dataset.classes):
        own = train[dataset.label_type.indices_with(dataset.labels[train], label)]
        chosen = np.sort(np.random.default_rng([config.seed, label]).permutation(own)[:images])
        paths = dataset.paths(chosen)
        seen = np.stack([read_square(path, how) for path in paths])
        versions = _augment(augmenter, seen, augmented if augmenter else 0, config.seed)
        rows = []
        for at, path in enumerate(paths):
            original = read_image(path, near=SHOWN // 2)
            rows.append((original, kept(original.shape[1], original.shape[0], how), seen[at], versions[at]))
        yield name, draw_preview(rows, f"{name}: {len(own):,} training images, {how.size} x {how.size} pixels")


def _augment(
    augmenter: Augmenter, seen: npt.NDArray[np.uint8], count: int, seed: int
) -> list[list[npt.NDArray[np.uint8]]]:
    """`count` versions of each image in `seen`, (n, S, S, 3)."""
    views = [np.asarray(augmenter(seen, (seed, number, 0))).round().astype(np.uint8) for number in range(1, count + 1)]
    return [[view[at] for view in views] for at in range(len(seen))]


def kept(width: int, height: int, how: Transform) -> Box | None:
    """The part of an image that survives the evaluation transform; None where all of it does."""
    if how.resize != "crop":
        return None
    side = max(1, round(how.crop * min(width, height)))
    return ((width - side) // 2, (height - side) // 2, side, side)


def crop_sentence(config: Config, dataset: Dataset) -> str:
    """What the transform does to the images of `dataset`, in figures from up to `MEASURED` of them."""
    how = transform(config)
    chosen = np.random.default_rng(config.seed).permutation(len(dataset))[:MEASURED]
    found = [inspect_image(path) for path in dataset.paths(chosen)]
    sizes = np.array([(one.width, one.height) for one in found if one.ok])
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    if how.resize == "crop":
        boxes = [kept(int(width), int(height), how) for width, height in sizes]
        sides = np.array([box[2] for box in boxes if box])
        left = sides**2 / (shorter * longer)
        what = f"The center crop removes {1 - np.median(left):.0%} of the pixels on median"
        hint = "; model.resize=squash or pad would keep them" if np.median(left) < 0.6 else ""
        enlarged = float(np.mean(sides < how.size))
    elif how.resize == "squash":
        what = f"Whole images are squeezed to a square, {np.median(longer / shorter):.2g} to 1 on median"
        hint, enlarged = "", float(np.mean(shorter < how.size))
    else:
        what = f"Whole images are fitted on black, which makes up {1 - np.median(shorter / longer):.0%} on median"
        hint, enlarged = "", float(np.mean(longer < how.size))
    small = f" {enlarged:.0%} of the images are smaller than that and are enlarged." if enlarged >= 0.01 else ""
    return f"{what}{hint}. The network sees {how.size} x {how.size} pixels.{small}"
