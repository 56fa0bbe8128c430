"""Which images are meant: files, folders, globs, buckets and lists of paths; in Python also pixels and bytes."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from finetune.data import IMAGE_SUFFIXES, ImageSource, find_images, is_bucket_url, list_bucket
from finetune.models.predictor import PREDICT_BATCH
from finetune.utils import DataError, UsageError, did_you_mean, printable

KNOWN = f"Known: {', '.join(sorted(IMAGE_SUFFIXES))}"


def find_inputs(inputs: Sequence[str | Path], warn: Callable[[str], object] | None = None) -> list[str]:
    """Files as they are, folders and buckets with every image below them, globs expanded; in order, each once.

    `warn` is told which files of a folder are passed over, such as SVG. Raises DataError, naming the input, when there
    is no such file, or no image in a folder or glob.
    """
    return list(dict.fromkeys(path for given in inputs for path in _find(str(given), warn)))


def find_sources(images: ImageSource | Iterable[ImageSource]) -> list[ImageSource]:
    """What `Classifier.predict` takes, one image or many, as single images: folders and globs become their files.

    Raises UsageError for what is no image, naming its place, and DataError as `find_inputs`.
    """
    is_array = isinstance(images, np.ndarray) and images.ndim in (2, 3)  # one image; (N, H, W, 3) has many
    if is_array or isinstance(images, str | os.PathLike | bytes | Image.Image):
        images = [cast(ImageSource, images)]
    elif not isinstance(images, Iterable):
        raise _no_image(images, "images")
    sources: list[ImageSource] = []
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            sources += _find(os.fspath(image))
        elif isinstance(image, bytes):
            sources.append(image)
        elif isinstance(image, Image.Image):
            with suppress(Exception):  # a damaged one has its error later; loaded by two threads, each would have one
                image.load()
            sources.append(image)
        elif hasattr(image, "__array__"):
            sources.append(_pixels(np.asarray(image), f"images[{number}]"))
        else:
            raise _no_image(image, f"images[{number}]")
    return sources


def _find(given: str, warn: Callable[[str], object] | None = None) -> list[str]:
    if is_bucket_url(given):
        return list_bucket(given)
    if os.path.isdir(given):
        paths, left_out = find_images(given)
        images = [str(path) for path in paths]
        if left_out and not images:
            raise DataError(f"{printable(given)}: no images in this folder; left out: {left_out}", hint=KNOWN)
        if left_out and warn is not None:
            warn(f"{printable(given)}: left out: {left_out}")
    elif os.path.lexists(given):
        return [given]
    else:
        images = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
    if not images:
        raise _no_input(given)
    return images


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    """`array` as Pillow takes it: (H, W), (H, W, 3) or (H, W, 4) uint8."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not is_image or array.dtype != np.uint8 or not array.size:
        raise UsageError(
            f"{name}: an array of {array.dtype} with the shape {array.shape} is no image.",
            hint="Give (height, width, 3) of uint8 from 0 to 255. From 0 to 1: (array * 255).round().astype('uint8')",
        )
    return array


def _no_image(value: object, name: str) -> UsageError:
    hint = "Give a file, folder, glob, URL, PIL image, uint8 array, or the bytes of a file; or a list of them."
    return UsageError(f"{name}: {type(value).__name__} is no image.", hint=hint)


def read_path_list(file: Path) -> list[str]:
    """The images that `file` names, one a line, as they stand there. DataError when it cannot be read or is empty.

    Missing files are reported when it is their turn: a list may have a hundred million lines.
    """
    try:
        lines = file.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{printable(str(file))}: cannot be read: {error.strerror}") from None
    paths = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not paths:
        raise DataError(f"{printable(str(file))}: names no image.", hint="One path or URL a line.")
    return paths


def shard(paths: Sequence[str], number: int, count: int) -> list[str]:
    """Part `number` (1 to `count`) of `paths`: all parts, one after the other, are `paths`.

    Parts are whole batches, so that each image has the same place in a batch as without parts: the place may change
    the last bit of a probability. Their sizes differ by one batch at most.
    """
    batches = -(-len(paths) // PREDICT_BATCH)
    first, last = (batches * at // count * PREDICT_BATCH for at in (number - 1, number))
    return list(paths[first:last])


def _no_input(given: str) -> DataError:
    shown = printable(given)
    if os.path.isdir(given):
        return DataError(f"{shown}: no images in this folder.", hint=KNOWN)
    if glob.has_magic(given):
        return DataError(f"{shown}: this pattern matches no file.")
    folder, name = os.path.split(given.rstrip(os.sep))
    near = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return DataError(f"{shown}: no such file or folder.{did_you_mean(name, near)}")
