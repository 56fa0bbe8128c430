"""Images in a bucket: `s3://bucket/photos`, `gs://...` and whatever else fsspec knows, listed and read.

    find("s3://bucket/photos")          ["s3://bucket/photos/a.jpg", ...]
    read("s3://bucket/photos/a.jpg")    its bytes

Only the bytes come from elsewhere; what they mean is decided in `images`, as for any file.
"""

import errno
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from finetune.data.image_formats import IMAGE_SUFFIXES
from finetune.utils import (
    DataError,
    FinetuneError,
    ImageError,
    ResourceError,
    UsageError,
    format_bytes,
    is_offline,
    printable,
)

PROTOCOL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
HERE = ("file", "local", "memory")  # that open no socket


def is_bucket_url(path: str | os.PathLike[str]) -> bool:
    return bool(PROTOCOL.match(os.fspath(path)))


def list_bucket(given: str) -> list[str]:
    """The images that `given` means, sorted: one of that name, all below a folder of that name, or a pattern's.

    Raises DataError when there is none, UsageError without the package for it, ResourceError when it does not answer.
    """
    return _explained(given, lambda: _find(given))


def _find(given: str) -> list[str]:
    files, place = _files(given)
    if "*" in place:
        return sorted(map(files.unstrip_protocol, files.glob(place)))
    found = sorted(files.find(place))
    if found == [place]:
        return [given]
    images = [path for path in found if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES]
    return [str(files.unstrip_protocol(path)) for path in images]


def read_bucket_file(path: str, *, most: int) -> bytes:
    """The content of one file. ImageProblem if it has more than `most` bytes; OSError if it cannot be read."""
    files, place = _files(path)
    try:
        with files.open(place, "rb", block_size=2**20) as file:
            content: bytes = file.read(most + 1)
    except (OSError, FinetuneError):
        raise
    except Exception as error:  # every store has errors of its own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
    if len(content) > most:
        raise ImageError(f"too large: more than {format_bytes(most)}")
    return content


def _files(path: str) -> tuple[Any, str]:
    protocol = path.partition("://")[0].lower()
    if is_offline() and protocol not in HERE:
        raise ResourceError(f"{printable(path)} is on another machine, and FINETUNE_OFFLINE=1 forbids to go there.")
    place: str = _store(protocol)._strip_protocol(path)
    return _store(protocol), place


@lru_cache
def _store(protocol: str) -> Any:
    """What talks to a store; it takes who we are from the environment, as the store's own tools do."""
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        package = PACKAGES.get(protocol, "fsspec")
        raise UsageError(
            f"{protocol}:// needs {package}, not installed here.", hint=f"pip install {package}"
        ) from error
    except ValueError as error:
        known = "gs, s3, abfs and what else fsspec knows"
        raise UsageError(f"{protocol}:// is no kind of store that is known: {known}.") from error


def _explained(given: str, work: Callable[[], list[str]]) -> list[str]:
    try:
        found = work()
    except FileNotFoundError:
        found = []
    except FinetuneError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(f"{printable(given)}: cannot be listed: {type(error).__name__}: {reason}") from error
    if not found:
        raise DataError(f"{printable(given)}: there is no image.")
    return found
