"""HDF5 weight files: checked before use, and read layer by layer.

    check_h5(path)         refuses what no weight file of Keras has, names what is damaged
    layers_of(path)        the weights in it, layer by layer, as `keras.applications` publishes them
    arrays_of(path)        the weights in it by name, as `model.save_weights` of Keras 3 writes them

HDF5 can point to other files (external and soft links, virtual and external data), claim sizes that it does
not hold and contain loops; h5py follows all that without a warning.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from finetune.backbones.torch_file import Array
from finetune.utils import WeightsError

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 100_000
MAX_DEPTH = 20  # groups within groups; Keras needs about 6
MAX_EXPANSION = 16  # bytes of arrays per byte of file; Keras does not compress, so its files have 1


def shape_counts(shapes: Iterable[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    """How many weights of each shape a network has, for `check_h5`."""
    return Counter(tuple(shape) for shape in shapes)


def check_h5(path: Path, expected_shapes: Counter[tuple[int, ...]] | None = None) -> None:
    """Raise WeightsError unless `path` is an undamaged HDF5 file of plain, finite numbers.

    Links, virtual or external data, sizes beyond what the file can hold and anything but numbers are
    refused before an array is allocated. With `expected_shapes`, each of them must be there, and at most
    three times as much besides (an optimizer keeps up to two copies). Then all values are read: NaN and
    infinity are refused.
    """
    with _opened(path) as file:
        datasets = list(_datasets(file, path))
        size = sum(dataset.size * dataset.dtype.itemsize for dataset in datasets)
        if size > MAX_EXPANSION * path.stat().st_size:
            raise WeightsError(f"{path}: claims {size} bytes of weights, more than such a file can hold")
        if expected_shapes is not None:
            shapes = shape_counts(dataset.shape for dataset in datasets)
            if missing := expected_shapes - shapes:
                listed = ", ".join(f"{count} of shape {shape}" for shape, count in list(missing.items())[:5])
                raise WeightsError(f"{path}: its weights are not those of this network: missing {listed}")
            if _total_size(shapes - expected_shapes) > 3 * _total_size(expected_shapes) + 10_000:
                raise WeightsError(f"{path}: holds far more than the weights of this network")
        for dataset in datasets:
            if dataset.dtype.kind == "f" and not np.isfinite(dataset[()]).all():
                raise WeightsError(f"{path}: NaN or infinity in {dataset.name}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; h5py's many exceptions become a WeightsError that names it."""
    try:
        with path.open("rb") as file:
            start = file.read(60)
        if not start.startswith(MAGIC):
            raise WeightsError(f"{path}: not an HDF5 file: {path.stat().st_size} bytes that start with {start!r}")
        opened = h5py.File(path, "r")
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such weight file") from None
    except OSError as error:
        raise WeightsError(f"{path}: damaged, or cut short ({error})") from None
    try:
        with opened:
            yield opened
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: damaged ({error})") from None


def _datasets(file: Any, path: Path) -> Iterator[Any]:
    """Every dataset of `file`, each checked by its header alone; nothing is followed that leads elsewhere."""
    seen: set[int] = set()
    groups = [(file, 0)]
    while groups:
        group, depth = groups.pop()
        for name in group:
            where = f"{path}: {group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise WeightsError(f"{where} is a link to somewhere else, and weight files have none")
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen or len(seen) >= MAX_OBJECTS:
                raise WeightsError(f"{where} is there twice, or one of too many objects")
            seen.add(address)
            if depth >= MAX_DEPTH:
                raise WeightsError(f"{where} is too deep inside the file")
            if isinstance(entry, h5py.Group):
                groups.append((entry, depth + 1))
            else:
                _check_header(entry, where)
                yield entry


def _check_header(dataset: Any, where: str) -> None:
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise WeightsError(f"{where} is not an array")
    if dataset.is_virtual or dataset.external:
        raise WeightsError(f"{where} has its data in another file, and weight files have none")
    if dataset.dtype.kind not in "fiub":
        raise WeightsError(f"{where} holds {dataset.dtype}, not numbers")
    if dataset.size and not dataset.id.get_storage_size():
        raise WeightsError(f"{where} claims {dataset.size} numbers and holds none")


def _total_size(shapes: Counter[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) * count for shape, count in shapes.items())


# ---------------------------------------------------------------------------------------------------- content


def layers_of(path: Path) -> list[tuple[str, list[Array]]]:
    """The layers that have weights, with their arrays, in the order of the network that was saved.

    For the older of Keras' two formats, in which `keras.applications` publishes; check the file first. A file
    that holds a whole model, not only its weights, is accepted too.
    """
    with _opened(path) as file:
        root = _root(file)
        names = _names(root, "layer_names")
        if not names:
            raise WeightsError(f"{path}: no weights in the layout of keras.applications")
        weights = {name: _names(root[name], "weight_names") for name in names}
        return [(name, [root[name][weight][()] for weight in weights[name]]) for name in names if weights[name]]


def arrays_of(path: Path) -> dict[str, Array]:
    """The arrays of a file in the newer of Keras' two formats: {"conv2d_1/vars/0": ...}; check it first."""
    with _opened(path) as file:
        return {entry.name.removeprefix("/layers/"): entry[()] for entry in _datasets(_root(file), path)}


def elements_of(path: Path) -> int:
    """The number of values in the weights of the model, without those of its optimizer."""
    with _opened(path) as file:
        return sum(int(dataset.size) for dataset in _datasets(_root(file), path))


def is_keras3(path: Path) -> bool:
    """Whether the file is in the newer of Keras' two formats, that of `model.save_weights`."""
    with _opened(path) as file:
        return "layers" in file and "layer_names" not in file.attrs


def _root(file: Any) -> Any:
    """The group with the weights: in a whole model, in the newer format, in the older."""
    return next((file[name] for name in ("model_weights", "layers") if name in file), file)


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names; long lists are kept in pieces: layer_names0, layer_names1, ..."""
    pieces = [attribute]
    if attribute not in group.attrs:
        numbered = (f"{attribute}{number}" for number in itertools.count())
        pieces = list(itertools.takewhile(lambda piece: piece in group.attrs, numbered))
    names = [name for piece in pieces for name in group.attrs[piece]]
    return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names]
