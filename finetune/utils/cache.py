"""What finetune keeps between runs, and how to be rid of it: `finetune cache [list|clear]`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

CACHE_KINDS = {
    "features": "outputs of frozen networks, made again when needed",
    "datasets": "images of TFDS and built-in data sets",
    "weights": "downloaded ImageNet weights",
    "scan": "which images were found readable",
    "checks": "what trial steps of `finetune check` cost",
    "hashes": "which files of weights were verified",
}


def cache_folder() -> Path:
    """Where finetune keeps what it can make again: `FINETUNE_CACHE`, or the platform's cache folder."""
    if chosen := os.environ.get("FINETUNE_CACHE"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("finetune", appauthor=False)


def cache_sizes() -> dict[str, tuple[int, int]]:
    """Kind -> (files, bytes)."""
    return {kind: (len(found), sum(found)) for kind in CACHE_KINDS for found in [list(_file_sizes(kind))]}


def _file_sizes(kind: str) -> Iterator[int]:
    for place in _places(kind):
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file():
                yield path.stat().st_size


def _places(kind: str) -> list[Path]:
    """A folder of that name, or files that begin with it (`scan.sqlite`)."""
    return sorted(cache_folder().glob(f"{kind}*"))


def clear_cache(kind: str) -> int:
    """Deletes what is kept of `kind`; returns how many bytes that frees."""
    freed = cache_sizes()[kind][1]
    for place in _places(kind):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    return freed
