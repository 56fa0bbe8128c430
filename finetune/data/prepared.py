"""Data sets that are not image files yet, written once as image files in the cache folder.

    folder = prepare_digits()                    scikit-learn's 1,797 handwritten digits
    folder, warnings = prepare_tfds("cifar10")   a data set of TensorFlow Datasets, one image and one label per example

The folder holds the images as they were encoded, `labels.csv` (path,label,split) and `classes.txt`; it is read like any
other table, and can be looked at like any other folder. It appears under its name when it is complete and not before,
even if several programs write it at once.
"""

import csv
import hashlib
import io
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.image_formats import FORMAT_SUFFIXES, identify_format
from finetune.data.splits import UNASSIGNED, split_of_name
from finetune.utils import (
    DataError,
    ImageError,
    ProgressCallback,
    ResourceError,
    cache_folder,
    did_you_mean,
    explain_os_errors,
    format_bytes,
    is_offline,
    printable,
    remove_leftovers,
    temporary_name,
)

TABLE, CLASSES = "labels.csv", "classes.txt"
Example = tuple[str, int, bytes]  # split or "", class number, the encoded image


def prepare_digits() -> Path:
    """The folder of the built-in data: handwritten digits of 8 x 8 pixels, UCI's test set."""
    folder = cache_folder() / "datasets" / "digits"
    if folder.is_dir():
        return folder
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)  # 17 shades of gray, 0..16
    examples: list[Example] = []
    for image, label in zip(images, data.target, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        examples.append(("", int(label), buffer.getvalue()))
    write_prepared(folder, [str(digit) for digit in range(10)], examples)
    return folder


def write_prepared(folder: Path, classes: Sequence[str], examples: Iterable[Example]) -> None:
    """Write `folder` with these images in one step, unless another program has written it meanwhile."""
    temporary = temporary_name(folder)
    try:
        with explain_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder.parent)
            temporary.mkdir()
            _write_images(temporary, classes, examples)
            (temporary / CLASSES).write_text("".join(f"{name}\n" for name in classes), "utf-8")
            with suppress(OSError):  # another program was faster
                os.rename(temporary, folder)
    except ResourceError as error:
        raise ResourceError(error.message, hint="FINETUNE_CACHE names another folder for what is cached.") from error
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


def prepare_tfds(name: str, progress: ProgressCallback | None = None) -> tuple[Path, list[str]]:
    """The folder of a TensorFlow dataset, and warnings. Downloaded if it is neither prepared nor cached.

    TFDS looks in $TFDS_DATA_DIR or ~/tensorflow_datasets. Only train, validation and test splits are used. Raises
    DataError when there is no such data set, when it cannot be fetched, or when it is not one image with one label.
    """
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folders = cache_folder() / "datasets"
    slug = re.sub(r"[^\w.-]+", "-", name)
    builder = _load_builder(name, data_dir)
    if builder is None or not builder.is_prepared():
        if earlier := sorted(folders.glob(f"{slug}-" + "[0-9a-f]" * 8), key=os.path.getmtime):
            return earlier[-1], []
        if builder is None:
            import tensorflow_datasets as tfds

            suggestion = did_you_mean(re.split("[/:]", name)[0], tfds.list_builders(with_community_datasets=False))
            raise DataError(f"data.tfds: TensorFlow Datasets has no {name!r}, and none is in {data_dir}.{suggestion}")
        _image_and_label(builder, name)  # before a long download
        _download(builder, name, data_dir)
    image, label = _image_and_label(builder, name)
    dataset_info = Path(builder.data_dir, "dataset_info.json").read_bytes()
    folder = folders / f"{slug}-{hashlib.sha256(dataset_info).hexdigest()[:8]}"
    used = [split for split in builder.info.splits if split_of_name(split) != UNASSIGNED]
    others = [split for split in builder.info.splits if split not in used]
    if not used:
        raise DataError(f"data.tfds: {builder.name} has no train split; it has: {', '.join(others)}")
    warnings = [f"splits left out: {', '.join(others)}"] if others else []
    if not folder.is_dir():
        feature = builder.info.features[label]
        classes = [printable(feature.int2str(index)) for index in range(feature.num_classes)]
        write_prepared(folder, classes, _read_examples(builder, name, image, label, used, progress))
    return folder, warnings + _broken_preparations(data_dir / builder.name)


def _broken_preparations(folder: Path) -> list[str]:
    """A warning about what broken preparations left; TFDS does not note whose it is, so only a person can delete it."""
    leftovers = [*folder.glob("incomplete.*"), *folder.glob("*/incomplete.*")]  # with and without a config
    if not leftovers:
        return []
    size = sum(path.stat().st_size for leftover in leftovers for path in leftover.rglob("*") if path.is_file())
    names = ", ".join(printable(path) for path in leftovers[:3])
    return [f"{format_bytes(size)} are left of a broken preparation; if no `tfds build` runs, delete {names}"]


def _load_builder(name: str, data_dir: Path) -> Any:
    """TFDS' description of the data set: from its code or, for a user's own, from the prepared files.

    None when it has neither.
    """
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # it remarks on folders that are not there
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # unknown config or version, a missing import of that data set, ...
        raise DataError(f"data.tfds: {name!r}: {_first_line(error)}") from None


def _download(builder: Any, name: str, data_dir: Path) -> None:
    """Prepare the data set with TFDS, if its server responds; TFDS itself would try for three minutes."""
    hint = (
        f"on a machine with a network: tfds build {name} --data_dir=tensorflow_datasets\n"
        f"  then copy that folder to {data_dir} (or set TFDS_DATA_DIR)\n"
        "  without any network this works: finetune train digits"
    )
    where = f"data.tfds: {name} is not in {data_dir}"
    if is_offline():
        raise DataError(f"{where}, and downloads are forbidden (FINETUNE_OFFLINE)", hint=hint)
    url = next((url for url in builder.url_infos if url.startswith("http")), None)
    if url is not None and (problem := connection_problem(url)):
        raise DataError(f"{where} and cannot be fetched: {problem}", hint=hint)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise DataError(f"{where} and could not be prepared: {_first_line(error)}", hint=hint) from error


def connection_problem(url: str) -> str:
    """Why the server of `url` cannot be reached, "" if it can; proxies and certificates as in the environment."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            return ""
    except urllib.error.HTTPError:
        return ""  # the server is there; TFDS names the problem
    except OSError as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def _image_and_label(builder: Any, name: str) -> tuple[str, str]:
    """The names of the one image and the one label of each example."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    keys = builder.info.supervised_keys
    if keys and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        return keys[0], keys[1]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items()) or "none by name"
    raise DataError(f"data.tfds: {name} has not one image and one class label per example; its features: {listed}")


def _read_examples(
    builder: Any, name: str, image: str, label: str, splits: Sequence[str], progress: ProgressCallback | None
) -> Iterator[Example]:
    """Every example in the order of the files, its image still encoded: no TensorFlow decoder sees it."""
    import tensorflow_datasets as tfds

    total = sum(builder.info.splits[split].num_examples for split in splits)
    decoders = tfds.decode.PartialDecoding({image: True, label: True}, {image: tfds.decode.SkipDecoding()})
    config = tfds.ReadConfig(interleave_cycle_length=1)
    done = 0
    for split in splits:
        try:
            examples = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=config)
            for example in tfds.as_numpy(examples):
                done += 1
                if progress is not None:
                    progress(done, total)
                if example[label] >= 0:  # -1: this split was published without its labels
                    yield split, int(example[label]), bytes(example[image])
        except Exception as error:
            expected = isinstance(error, (OSError, ValueError, RuntimeError))
            if not expected and not type(error).__module__.startswith("tensorflow"):
                raise
            raise DataError(
                f"data.tfds: {name} in {builder.data_dir} is damaged: {_first_line(error)}",
                hint=f"delete that folder and prepare it again: tfds build {name}",
            ) from error


def _first_line(error: Exception) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
