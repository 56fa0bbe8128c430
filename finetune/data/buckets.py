"""Images elsewhere: `https://...`, buckets (`s3://bucket/photos`, `gs://...`) and whatever else fsspec knows.

    list_bucket("s3://bucket/photos")                             ["s3://bucket/photos/a.jpg", ...]
    read_bucket_file("s3://bucket/photos/a.jpg", max_bytes=2**30) its bytes

Only the bytes come from elsewhere; what they mean is decided in `images`, as for any file.
"""

import errno
import os
import re
from functools import lru_cache
from typing import Any
from urllib.request import Request, urlopen

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

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
WEB_TIMEOUT = 30  # seconds without an answer
LOCAL = ("file", "local", "memory")  # protocols that open no connection


def is_bucket_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` begins with a protocol such as `s3://`."""
    return re.match(r"[a-z][a-z0-9+.-]*://", os.fspath(path), re.IGNORECASE) is not None


def list_bucket(url: str) -> list[str]:
    """The images that `url` means, sorted: a single file, all below a folder, or all that match a pattern with `*`.
    On a web server (`https://`) it is always a single file.

    Raises DataError when there is none, UsageError without the package that reads this kind of store, ResourceError
    when the store does not answer.
    """
    if _is_web(url):
        _refuse_offline(url)
        return [url]
    store, path = _locate(url)
    try:
        if "*" in path:
            names = sorted(store.glob(path))
        else:
            every_name = sorted(store.find(path))
            if every_name == [path]:  # a single file, whatever its ending
                return [url]
            names = [name for name in every_name if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    except FileNotFoundError:
        names = []
    except Exception as error:  # every store has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(f"{printable(url)}: cannot be listed: {type(error).__name__}: {reason}") from error
    if not names:
        raise DataError(f"{printable(url)}: there is no image.")
    return [str(store.unstrip_protocol(name)) for name in names]


def read_bucket_file(url: str, *, max_bytes: int) -> bytes:
    """The content of one file. Raises ImageError if it is larger than `max_bytes`, OSError if it cannot be read."""
    try:
        with _open_file(url) as file:
            content: bytes = file.read(max_bytes + 1)
    except (OSError, FinetuneError):
        raise
    except Exception as error:  # every store has errors of its own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
    if len(content) > max_bytes:
        raise ImageError(f"too large: more than {format_bytes(max_bytes)}")
    return content


def _open_file(url: str) -> Any:
    if _is_web(url):
        return urlopen(Request(url, headers={"User-Agent": "finetune"}), timeout=WEB_TIMEOUT)  # many refuse Python's
    store, path = _locate(url)
    return store.open(path, "rb", block_size=2**20)


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _refuse_offline(url: str) -> None:
    if is_offline():
        raise ResourceError(f"{printable(url)} is on another machine, and FINETUNE_OFFLINE forbids connections.")


def _locate(url: str) -> tuple[Any, str]:
    """The store of a URL and the path in it."""
    protocol = url.partition("://")[0].lower()
    if protocol not in LOCAL:
        _refuse_offline(url)
    store = open_store(protocol)
    return store, str(store._strip_protocol(url))


@lru_cache
def open_store(protocol: str) -> Any:
    """fsspec's file system of a protocol; credentials come from the environment, as for the store's own tools."""
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        package = PACKAGES.get(protocol, "fsspec")
        hint = f"pip install {package}"
        raise UsageError(f"{protocol}:// needs {package}, not installed here.", hint=hint) from error
    except ValueError as error:
        known = "gs, s3, abfs and what else fsspec knows"
        raise UsageError(f"{protocol}:// is no kind of store that is known: {known}.") from error
