"""What goes into a training, to be checked before it starts: a sheet of images for every class, or one for many.

    for name, png in preview_sheets(config, dataset): ...
    for name, png in preview_overviews(config, dataset): ...
    crop_sentence(config, dataset)      # "The center crop removes 31% of the pixels on median. ..."

Everything comes from where the training gets it: the split, the evaluation transform, the augmentation.
"""

from collections.abc import Iterator

import numpy as np

from finetune.backbones import find_backbone
from finetune.config import Config
from finetune.data import Augmenter, Dataset, Transform, inspect_image, read_image, read_square
from finetune.evaluation.figures.images import Box, draw_overview, draw_preview
from finetune.models import transform_of

MEASURED_IMAGES = 300  # images whose shape is measured
OVERVIEW_CLASSES = 100  # on one sheet


def transform_for(config: Config) -> Transform:
    """How images of this config become the squares that its network sees."""
    row = find_backbone(config.model.backbone)
    return transform_of(row, config.model.image_size or row.size, config.model.resize)


def preview_sheets(
    config: Config, dataset: Dataset, *, images: int = 4, augmented: int = 4
) -> Iterator[tuple[str, bytes]]:
    """(class name, PNG) for every class: up to `images` training images, each with `augmented` versions.

    Without augmentation in the config there are none. ImageError for an image that has become unreadable.
    """
    transform = transform_for(config)
    for label, name in enumerate(dataset.classes):
        members = _training_images(dataset, label)
        paths, squares, views = _views(config, dataset, label, images, augmented)
        rows = []
        for number, path in enumerate(paths):
            original = read_image(path, near=256)  # 512 pixels or more at the short side
            box = crop_box(original.shape[1], original.shape[0], transform)
            rows.append((original, box, squares[number], [view[number] for view in views]))
        size = f"{transform.size} x {transform.size} pixels"
        yield name, draw_preview(rows, f"{name}: {len(members):,} training images, {size}")


def preview_overviews(config: Config, dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of sheets with `OVERVIEW_CLASSES` classes each: an image of every class as the network sees it.

    Beside it one augmented version, if there is augmentation. ImageError for an image that has become unreadable.
    """
    count = len(dataset.classes)
    for number, start in enumerate(range(0, count, OVERVIEW_CLASSES), 1):
        labels = range(start, min(start + OVERVIEW_CLASSES, count))
        tiles = []
        for label in labels:
            _, squares, views = _views(config, dataset, label, 1, 1)
            images = [squares[0], *(view[0] for view in views)]
            tiles.append((images, f"{dataset.classes[label]}: {len(_training_images(dataset, label)):,}"))
        name = "overview" if count <= OVERVIEW_CLASSES else f"overview-{number}"
        beside = ", beside it an augmented version" if len(tiles[0][0]) > 1 else ""
        part = "" if count <= OVERVIEW_CLASSES else f"{start + 1:,} to {labels[-1] + 1:,} of "
        yield (
            name,
            draw_overview(
                tiles,
                f"{part}{count:,} classes with their numbers of training images: one as the network sees it{beside}",
            ),
        )


def _training_images(dataset: Dataset, label: int) -> np.ndarray:
    train = dataset.indices("train")
    return train[dataset.label_type.indices_with(dataset.labels[train], label)]


def _views(
    config: Config, dataset: Dataset, label: int, images: int, augmented: int
) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Paths of up to `images` training images of a class, what the network sees of them, and augmented versions.

    (paths, (n, S, S, 3), `augmented` times (n, S, S, 3), all uint8); the last is empty without augmentation.
    """
    augmenter, transform = Augmenter(config.augment), transform_for(config)
    shuffled = np.random.default_rng([config.seed, label]).permutation(_training_images(dataset, label))
    paths = dataset.paths(np.sort(shuffled[:images]))
    squares = np.stack([read_square(path, transform) for path in paths])
    versions = range(1, augmented + 1 if augmenter else 1)
    views = [np.asarray(augmenter(squares, (config.seed, number, 0))) for number in versions]
    return paths, squares, [view.round().astype(np.uint8) for view in views]


def crop_box(width: int, height: int, transform: Transform) -> Box | None:
    """The part of an image that the evaluation transform keeps; None where it keeps all."""
    if transform.resize != "crop":
        return None
    left, top, right, bottom = transform.seen_box(width, height)
    return (left, top, right - left, bottom - top)


def crop_sentence(config: Config, dataset: Dataset) -> str:
    """What the transform does to the images of `dataset`, measured on up to `MEASURED_IMAGES` of them."""
    transform = transform_for(config)
    chosen = np.random.default_rng(config.seed).permutation(len(dataset))[:MEASURED_IMAGES]
    inspections = [inspect_image(path) for path in dataset.paths(chosen)]
    sizes = np.array([(inspection.width, inspection.height) for inspection in inspections if inspection.ok])
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    if transform.resize == "crop":
        boxes = [crop_box(int(width), int(height), transform) for width, height in sizes]
        sides = np.array([box[2] for box in boxes if box])
        kept = np.median(sides**2 / (shorter * longer))
        effect = f"The center crop removes {1 - kept:.0%} of the pixels on median"
        if kept < 0.6:
            effect += "; model.resize=squash or pad would keep them"
    elif transform.resize == "squash":
        sides = shorter
        effect = f"Whole images are squeezed to a square, {np.median(longer / shorter):.2g} to 1 on median"
    else:
        sides = longer
        effect = f"Whole images are fitted on black, which makes up {1 - np.median(shorter / longer):.0%} on median"
    sentence = f"{effect}. The network sees {transform.size} x {transform.size} pixels."
    smaller = float(np.mean(sides < transform.size))
    if smaller >= 0.01:
        sentence += f" {smaller:.0%} of the images are smaller than that and are enlarged."
    return sentence
