"""What finetune keeps between runs, and how to delete it: `finetune cache [list|clear]`."""

import os
import shutil
from pathlib import Path

CACHE_KINDS = {
    "features": "outputs of frozen networks, computed again when needed",
    "datasets": "images of TFDS and built-in data sets",
    "weights": "downloaded ImageNet weights",
    "scan": "which images are readable",
    "hashes": "which weight files were verified",
}


def cache_folder() -> Path:
    """Where finetune keeps what it can compute or download again: `FINETUNE_CACHE`, or the platform's cache folder."""
    folder = os.environ.get("FINETUNE_CACHE")
    if folder:
        return Path(folder).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("finetune", appauthor=False)


def cache_sizes() -> dict[str, tuple[int, int]]:
    """Kind -> (number of files, bytes)."""
    sizes = {}
    for kind in CACHE_KINDS:
        files = [file for entry in _entries(kind) for file in (entry, *entry.rglob("*")) if file.is_file()]
        sizes[kind] = len(files), sum(file.stat().st_size for file in files)
    return sizes


def clear_cache(kind: str) -> int:
    """Delete what is kept of `kind`; returns how many bytes that frees. Links are removed, never followed."""
    freed = cache_sizes()[kind][1]
    for entry in _entries(kind):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    return freed


def _entries(kind: str) -> list[Path]:
    """The folder of that name, and files that begin with it (`scan.sqlite`)."""
    return sorted(cache_folder().glob(f"{kind}*"))
