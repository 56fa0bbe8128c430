"""Data sets that are not image files yet, written once as image files in the cache folder.

    folder = prepare_digits()          scikit-learn's 1,797 handwritten digits

The folder holds the images as they were encoded, `labels.csv` (path,label,split) and `classes.txt`; it is read like any
other table, and can be looked at like any other folder. It appears under its name when it is complete and not before,
even if several programs write it at once. `tfds` writes such folders too.
"""

import csv
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from finetune.data.image_formats import FORMAT_SUFFIXES, identify_format
from finetune.utils import ImageError, cache_folder, explain_os_errors, remove_leftovers, temporary_name

TABLE, CLASSES = "labels.csv", "classes.txt"
Example = tuple[str, int, bytes]  # split or "", class number, the encoded image


def prepare_digits() -> Path:
    """The folder of the built-in data: handwritten digits of 8 x 8 pixels, UCI's test set."""
    folder = cache_folder() / "datasets" / "digits"
    if not folder.is_dir():
        write_prepared(folder, [str(digit) for digit in range(10)], _digits())
    return folder


def _digits() -> Iterator[Example]:
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)  # 17 shades of gray, 0..16
    for image, label in zip(images, data.target, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield "", int(label), buffer.getvalue()


def write_prepared(folder: Path, classes: Sequence[str], examples: Iterable[Example]) -> None:
    """Write `folder` with these images in one step, unless another program has written it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    temporary = temporary_name(folder)
    try:
        with explain_os_errors(folder):
            temporary.mkdir()
            _write_images(temporary, classes, examples)
            (temporary / CLASSES).write_text("".join(f"{name}\n" for name in classes), "utf-8")
            with suppress(OSError):  # another program was faster
                os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_images(folder: Path, classes: Sequence[str], examples: Iterable[Example]) -> None:
    with open(folder / TABLE, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "split"))
        for number, (split, label, content) in enumerate(examples):
            try:
                suffix = FORMAT_SUFFIXES[identify_format(content[:4096])][0]
            except ImageError:
                suffix = ".bin"  # the scan will name the problem
            class_folder = re.sub(r"[^\w.-]+", "_", classes[label]).strip(".")
            place = "/".join(part for part in (split, class_folder) if part)
            name = f"{place}/{number:06d}{suffix}"
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            table.writerow((name, classes[label], split))
