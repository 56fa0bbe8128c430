"""Which images a command is given: files, folders, globs, buckets and lists of paths."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.data import IMAGE_SUFFIXES, find_images, is_bucket_url, list_bucket
from finetune.models.predictor import PREDICT_BATCH
from finetune.utils import DataError, did_you_mean, printable

KNOWN = f"Known: {', '.join(sorted(IMAGE_SUFFIXES))}"


def find_inputs(inputs: Sequence[str | Path], warn: Callable[[str], object] | None = None) -> list[str]:
    """Files as they are, folders and buckets with every image below them, globs expanded; in order, each once.

    `warn` is told which files of a folder are passed over, such as SVG. Raises DataError, naming the input, when there
    is no such file, or no image in a folder or glob.
    """
    paths: list[str] = []
    for given in map(str, inputs):
        if is_bucket_url(given):
            images = list_bucket(given)
        elif os.path.isdir(given):
            found, left_out = find_images(given)
            images = [str(path) for path in found]
            if left_out and not images:
                raise DataError(f"{printable(given)}: no images in this folder; left out: {left_out}", hint=KNOWN)
            if left_out and warn is not None:
                warn(f"{printable(given)}: left out: {left_out}")
        elif os.path.lexists(given):
            images = [given]
        else:
            images = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
        if not images:
            raise _no_input(given)
        paths.extend(images)
    return list(dict.fromkeys(paths))


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
