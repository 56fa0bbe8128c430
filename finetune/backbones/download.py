"""Downloading one large file: whole and as published under its final name, or not at all.

    download_file("https://.../resnet50.h5", folder / "resnet50.h5", "md5:2cb95161c43110f7111970584f804107")

`pooch` downloads into a temporary folder beside the target and tries again after a cut connection; here are the checks
of what came, one message for each cause of failure, and how to do it by hand. A lock lets one process download while
the others wait; on a file system without locks each downloads for itself, and no harm is done.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import filelock
import pooch  # type: ignore[import-untyped]
import requests
import urllib3

from finetune.utils import (
    ProgressCallback,
    ResourceError,
    WeightsError,
    explain_os_errors,
    is_offline,
    remove_leftovers,
    temporary_name,
)

ATTEMPTS = 5  # pooch waits 1, 2, 3 and 4 seconds between them
CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0  # without a single byte
CHUNK_BYTES = 1 << 18


def download_file(url: str, target: Path, hash: str | None, *, progress: ProgressCallback | None = None) -> None:
    """Put the file at `url` under the name `target`, unless a file with that hash is there already.

    `hash` is "sha256:..." or "md5:..." (the first digits are enough), or None. WeightsError says what went wrong and
    how to do it by hand, ResourceError that `target` cannot be written.
    """
    if is_offline():
        what = f"{target.name} would have to be downloaded, and FINETUNE_OFFLINE=1 forbids that"
        raise WeightsError(what, hint=manual_download(url, target, hash))
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    try:
        with explain_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError, NotImplementedError):  # a file system without locks
                lock.acquire()
            if not (target.is_file() and (hash is None or has_hash(target, hash))):  # no other process was faster
                _download(url, target, hash, progress)
    except ResourceError as error:
        hint = f"{error.hint} FINETUNE_CACHE=/other/folder chooses another one.".strip()
        raise ResourceError(error.message, hint=hint) from error
    finally:
        lock.release()


def has_hash(path: Path, hash: str) -> bool:
    """Whether the file has `hash`: "sha256:..." or "md5:...", possibly only its first digits."""
    algorithm, _, digits = hash.partition(":")
    return str(pooch.file_hash(path, algorithm)).startswith(digits)


def manual_download(url: str, target: Path, hash: str | None) -> str:
    """How the user can put the file in its place by hand."""
    published = hash or "not published"
    return f"file {target.name}, hash {published}\n    from {public_url(url)}\n    belongs into {target.parent}"


def public_url(url: str) -> str:
    """`url` for messages: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _download(url: str, target: Path, hash: str | None, progress: ProgressCallback | None) -> None:
    pooch.get_logger().setLevel("WARNING")  # it would report every download on standard error
    remove_leftovers(target.parent)
    folder = temporary_name(target)
    attempt = _Attempt(target, hash, progress)
    name = target.name
    files = pooch.create(folder, "", registry={name: None}, urls={name: url}, retry_if_failed=ATTEMPTS - 1)
    try:
        folder.mkdir()
        part = Path(files.fetch(name, downloader=attempt))
        part.chmod(folder.stat().st_mode & 0o666)  # as the umask says; pooch's temporary files are private
        with part.open("rb") as file:
            os.fsync(file.fileno())  # or a power loss might leave the name without the content
        part.replace(target)
    except (requests.RequestException, ValueError) as error:
        raise attempt.failure(url, f"{_explain(error)}, {ATTEMPTS} times") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Attempt:
    """Called by pooch for every attempt; what it raises, pooch tries again if it is passing trouble."""

    def __init__(self, target: Path, hash: str | None, progress: ProgressCallback | None) -> None:
        self.target, self.hash, self.progress = target, hash, progress
        self.wrong: list[str] = []  # the hashes of files that were not the published one

    def __call__(self, url: str, output_file: str, _pooch: Any) -> None:
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
        download = pooch.HTTPDownloader(
            progressbar=_ProgressBar(self.progress) if self.progress else False,
            chunk_size=CHUNK_BYTES,
            timeout=(CONNECT_SECONDS, STALL_SECONDS),
            verify=bundle,
        )
        try:
            download(url, output_file, None)
        except requests.RequestException as error:
            # What would fail again is not tried again: without a network, the message should come at once.
            lasting = isinstance(error, requests.exceptions.SSLError) or _is_unresolved(error)
            if isinstance(error, requests.HTTPError) and error.response is not None:
                status = error.response.status_code
                lasting = status < 500 and status not in (408, 425, 429)
            if lasting:
                raise self.failure(url, _explain(error)) from None
            raise
        self._check(url, Path(output_file))

    def _check(self, url: str, part: Path) -> None:
        """WeightsError unless `part` is the file that was published; the first wrong hash gets a second chance."""
        with part.open("rb") as file:
            start = file.read(1000).lstrip()[:15].lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise self.failure(url, "the server sent a web page, not the file (a login page, or a proxy?)")
        if self.hash is None or has_hash(part, self.hash):
            return
        self.wrong.append(pooch.file_hash(part, self.hash.partition(":")[0]))
        bad = self.target.with_name(f"{self.target.name}.bad")
        shutil.copyfile(part, bad)
        reason = f"the file that came has the hash {' and then '.join(self.wrong)} (kept as {bad.name})"
        raise self.failure(url, reason) if len(self.wrong) == 2 else ValueError(reason)

    def failure(self, url: str, reason: str) -> WeightsError:
        hint = manual_download(url, self.target, self.hash)
        return WeightsError(f"could not download {public_url(url)}: {reason}", hint=hint)


class _ProgressBar:
    """What pooch expects of a progress bar, for a `ProgressCallback`."""

    total = 0  # bytes, set by pooch; 0 where the server does not say

    def __init__(self, progress: ProgressCallback) -> None:
        self.progress, self.done = progress, 0

    def update(self, size: int) -> None:
        self.done = min(self.done + size, self.total) if self.total else self.done + size
        self.progress(self.done, self.total or None)

    def reset(self) -> None:
        """Called at the end, before an `update` by the whole size, which changes nothing."""

    def close(self) -> None:
        """There is nothing to close."""


# --------------------------------------------------------------------------------------------- what can go wrong


def _is_unresolved(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), urllib3.exceptions.NameResolutionError)


def _explain(error: Exception) -> str:
    """The cause of a failed attempt, in one sentence."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.SSLError):
        hint = "SSL_CERT_FILE can name the certificate of your network's proxy"
        return f"no secure connection, or the server's certificate cannot be trusted ({error}); {hint}"
    if _is_unresolved(error):
        return "the name of the server cannot be resolved (no network, or DNS)"
    if isinstance(error, requests.ConnectTimeout):
        return "the server does not answer"
    cause = error.args[0] if error.args else None
    if isinstance(error, requests.ReadTimeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return f"the server sent nothing for {STALL_SECONDS:g} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection was cut ({error})"
    return f"no connection ({error})" if isinstance(error, requests.ConnectionError) else str(error)
