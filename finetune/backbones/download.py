"""Fetching one large file over a bad network: whole and as published under its final name, or not at all.

    fetch("https://.../resnet50.h5", folder / "resnet50.h5", "md5:2cb95161c43110f7111970584f804107")

A download goes to a temporary name in the same folder, `.<name>.<validator>.<process id>-<random>.part`, and
is renamed when its size and hash are right. If it is cut, or its process killed, the next attempt goes on
(HTTP Range) as long as the server still has the same file, which the validator, a digest of its ETag, tells.
A lock makes processes take turns; should locks not work, each downloads for itself, and no harm is done.
"""

import hashlib
import http.client
import os
import re
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from finetune.utils import (
    ProgressCallback,
    ResourceError,
    WeightsError,
    explain_os_errors,
    is_offline,
    is_other_process,
)

RETRIES = 5
BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each further one
LONGEST_WAIT_SECONDS = 60.0  # when a server asks for patience (Retry-After)
CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0  # without a single byte
BLOCK = 1 << 18


def download_file(
    url: str, target: Path, hash: str | None, size: int | None = None, *, progress: ProgressCallback | None = None
) -> None:
    """Put the file at `url` under the name `target`, unless a file with that hash is there already.

    `hash` is "sha256:..." or "md5:..." (the first digits will do), or None; `size` in bytes.
    WeightsError says what went wrong and how to do it by hand, ResourceError that `target` cannot be written.
    """
    if is_offline():
        what = f"{target.name} would have to be downloaded, and FINETUNE_OFFLINE=1 forbids that"
        raise WeightsError(what, hint=manual_download(url, target, hash))
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _turn(target) as alone:
        if not (target.is_file() and (hash is None or matches(target, hash))):  # no other process was faster
            _download(url, target, hash, size, progress, resume=alone)


def matches(path: Path, hash: str) -> bool:
    """Whether the file has `hash`: "sha256:..." or "md5:...", possibly only its first digits."""
    algorithm, _, digits = hash.partition(":")
    return _digest(path, algorithm).startswith(digits)


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def manual_download(url: str, target: Path, hash: str | None) -> str:
    """How the user can put the file in its place without us."""
    return (
        f"file {target.name}, hash {hash or 'not published'}\n    from {shown(url)}\n    belongs into {target.parent}"
    )


def shown(url: str) -> str:
    """`url` for messages: without user, password and query, where secrets are."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# ------------------------------------------------------------------------------------------- several attempts


class _Refused(Exception):
    """Why an attempt failed, when another would fail too."""


class _Cut(Exception):
    """Why an attempt failed, when another may do better; `wait` is the patience the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _download(
    url: str, target: Path, hash: str | None, size: int | None, progress: ProgressCallback | None, *, resume: bool
) -> None:
    """Attempt after attempt until the file is there; a wrong hash gets one second chance."""
    wrong: list[str] = []
    for attempt in range(RETRIES):
        try:
            part = _attempt(url, target, _adopt(target) if resume else None, size, progress)
        except _Refused as problem:
            raise _failed(url, target, hash, str(problem)) from None
        except _Cut as problem:
            if attempt == RETRIES - 1:
                raise _failed(url, target, hash, f"{problem}, {RETRIES} times") from None
            time.sleep(max(BACKOFF_SECONDS * 2**attempt, min(problem.wait, LONGEST_WAIT_SECONDS)))
            continue
        with _writing(target):
            if hash is None or matches(part, hash):
                part.replace(target)
                return
            wrong.append(_digest(part, hash.partition(":")[0]))
            part.replace(target.with_name(f"{target.name}.bad"))
        if len(wrong) == 2:
            break
    reason = f"what came has the hash {' and then '.join(wrong)} (kept as {target.name}.bad)"
    raise _failed(url, target, hash, reason)


def _failed(url: str, target: Path, hash: str | None, reason: str) -> WeightsError:
    return WeightsError(f"could not download {shown(url)}: {reason}", hint=manual_download(url, target, hash))


@contextmanager
def _turn(target: Path) -> Iterator[bool]:
    """Wait until no other process downloads `target`. False: locks do not work here, others may be at it."""
    from filelock import FileLock

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """As `files.explained`, for the cache folder."""
    try:
        with explain_os_errors(target):
            yield
    except ResourceError as error:
        hint = f"{error.hint} FINETUNE_CACHE=/other/folder says which one.".strip()
        raise ResourceError(error.message, hint=hint) from error


# ------------------------------------------------------------------------------------------------ one attempt


def _attempt(url: str, target: Path, part: Path | None, size: int | None, progress: ProgressCallback | None) -> Path:
    """Download `url`, or what is missing behind `part`; returns the complete temporary file."""
    begin = part.stat().st_size if part else 0
    with _response(url, part, begin) as response:
        validator = _validator(response.headers)
        if part and response.status != 206:  # the server sends all of it again
            part.unlink(missing_ok=True)
            part, begin = None, 0
        if part and (validator not in part.name or _first_byte(response.headers) != begin):
            part.unlink(missing_ok=True)
            raise _Cut("the file on the server has changed")
        length = response.headers["Content-Length"]
        total = begin + int(length) if length else None
        if size and total and size != total:
            raise _Refused(f"the server has {total} bytes, expected are {size}")
        block, received = _read(response), begin
        if begin == 0:
            _refuse_web_page(block)
        part = part or _part(target, validator)
        with _writing(target), part.open("ab") as file:
            while block:
                received += file.write(block)
                if progress:
                    progress(received, total)
                block = _read(response)
            os.fsync(file.fileno())
    if total is not None and received < total:
        raise _Cut(f"the connection was cut after {received} of {total} bytes")
    return part


def _part(target: Path, validator: str) -> Path:
    return target.with_name(f".{target.name}.{validator}.{os.getpid()}-{secrets.token_hex(4)}.part")


def _adopt(target: Path) -> Path | None:
    """The longest unfinished download of `target` that nobody is working at, now ours; others are removed."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"([0-9a-f]{16})\.(\d+)-[0-9a-f]{8}\.part")
    found = [(entry, match) for entry in target.parent.iterdir() if (match := pattern.fullmatch(entry.name))]
    free = [(entry, match) for entry, match in found if not is_other_process(int(match[2]))]
    free.sort(key=lambda pair: pair[0].stat().st_size)
    for entry, _ in free[:-1]:
        entry.unlink(missing_ok=True)
    if not free:
        return None
    entry, match = free[-1]
    return entry.rename(_part(target, match[1]))


def _validator(headers: Message) -> str:
    """Sixteen digits that change when the file on the server does; random if the server does not say."""
    mark = headers["ETag"] or headers["Last-Modified"]
    return hashlib.sha256(mark.encode()).hexdigest()[:16] if mark else secrets.token_hex(8)


def _first_byte(headers: Message) -> int | None:
    """Where the part of the file begins that a 206 answer brings: `Content-Range: bytes 100-199/200`."""
    match = re.match(r"bytes (\d+)-", headers["Content-Range"] or "")
    return int(match[1]) if match else None


def _refuse_web_page(block: bytes) -> None:
    if block.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _Refused("the server sent a web page, not the file (a login page, or a proxy?)")


# ------------------------------------------------------------------------------------------------ the network


@contextmanager
def _response(url: str, part: Path | None, begin: int) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for `url` from byte `begin` on; failures as _Cut or _Refused."""
    request = urllib.request.Request(url, headers={"User-Agent": "finetune"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    try:
        response = _opener().open(request)
    except urllib.error.HTTPError as error:
        error.close()
        if part and error.code == 416:  # our part is longer than the file on the server
            part.unlink(missing_ok=True)
            raise _Cut("the file on the server has changed") from None
        raise _http_problem(error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _network_problem(error) from None
    with response:
        yield response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except TimeoutError:
        raise _Cut(f"the server sent nothing for {STALL_SECONDS:g} seconds") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was cut ({error})") from None


def _http_problem(error: urllib.error.HTTPError) -> _Cut | _Refused:
    answer = f"the server answers {error.code} {error.reason}"
    if error.code in (408, 425, 429) or error.code >= 500:
        wait = error.headers["Retry-After"] or ""
        return _Cut(answer, float(wait) if wait.isdecimal() else 0.0)
    return _Refused(answer)


def _network_problem(error: Exception) -> _Cut | _Refused:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = "SSL_CERT_FILE can name the certificate of your network's proxy"
        return _Refused(f"the server's certificate cannot be trusted ({reason.verify_message}); {hint}")
    if isinstance(reason, socket.gaierror):
        # Not tried again: without a network, which is a normal place to be, the answer should come at once.
        return _Refused("the name of the server cannot be resolved (no network, or DNS)")
    if isinstance(reason, TimeoutError):
        return _Cut("the server does not answer")
    return _Cut(f"no connection ({reason})")


def _opener() -> urllib.request.OpenerDirector:
    """urllib with our timeouts; proxies and certificates as the environment says, TLS always checked."""
    context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)
    return urllib.request.build_opener(_Http(), _Https(context=context))


class _Patient:
    """A connection that has CONNECT_SECONDS to come about and then may be silent for STALL_SECONDS."""

    def connect(self: Any) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(STALL_SECONDS)


class _HttpConnection(_Patient, http.client.HTTPConnection):  # type: ignore[misc]
    pass


class _HttpsConnection(_Patient, http.client.HTTPSConnection):  # type: ignore[misc]
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self.context = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req, context=self.context)
