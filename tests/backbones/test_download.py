"""Downloads from a real server on this machine that stalls, cuts, lies and dies."""

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from file_server import CONTENT, Answer, Server, cut, login_page, stall, status

from finetune.backbones import download
from finetune.backbones.download import download_file
from finetune.utils import ResourceError, WeightsError

# requests leaves the sockets of failed attempts to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


def _visible(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


# --------------------------------------------------------------------------------------------------- it works


@pytest.mark.parametrize("hash", [SHA256, MD5, SHA256[:15], None])
def test_whole_file_under_its_name_and_nothing_else(server: Server, tmp_path: Path, hash: str | None) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "deep" / "folder" / "file.h5"
    download_file(server.url, target, hash, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert _visible(target.parent) == ["file.h5"]
    assert not list(target.parent.glob(".tmp-*"))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    download_file(server.url, target, hash)
    assert len(server.requests) == 1


def test_file_mode_follows_the_umask(server: Server, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        download_file(server.url, tmp_path / "file.h5", SHA256)
    finally:
        os.umask(before)
    assert (tmp_path / "file.h5").stat().st_mode & 0o777 == 0o640


def test_server_without_length_and_etag(server: Server, tmp_path: Path) -> None:
    def answer(server: Server, handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.troubles = [answer]
    download_file(server.url, tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT


def test_redirect(server: Server, tmp_path: Path) -> None:
    server.troubles = [status(302, Location=server.url)]
    download_file(server.url, tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT


# ---------------------------------------------------------------------------------------- trouble that passes


@pytest.mark.parametrize(
    "trouble", [status(503), status(429, Retry_After="0"), status(500), cut(100_000), cut(1), stall]
)
def test_passing_trouble(server: Server, tmp_path: Path, trouble: Answer) -> None:
    server.troubles = [trouble] * 3
    download_file(server.url, tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT
    assert len(server.requests) == 4


def test_one_wrong_copy_is_kept_aside_and_fetched_again(server: Server, tmp_path: Path) -> None:
    def wrong(server: Server, handler: Any) -> None:
        server.content = CONTENT[::-1]
        handler.serve()
        server.content = CONTENT

    server.troubles = [wrong]
    download_file(server.url, tmp_path / "file.h5", MD5)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT
    assert (tmp_path / "file.h5.bad").read_bytes() == CONTENT[::-1]


def test_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.h5").write_bytes(b"damaged")
    download_file(server.url, tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT


# --------------------------------------------------------------------------------------- trouble that remains


@pytest.mark.parametrize(
    ("trouble", "reason", "requests"),
    [
        (status(503), "503 Service Unavailable, 5 times", 5),
        (status(404), "404 Not Found", 1),
        (status(403), "403 Forbidden", 1),
        (cut(0), "the connection was cut", 5),
        (stall, "sent nothing for 0.3 seconds", 5),
        (login_page, "web page", 1),
    ],
)
def test_lasting_trouble(server: Server, tmp_path: Path, trouble: Answer, reason: str, requests: int) -> None:
    server.troubles = [trouble] * 20
    with pytest.raises(WeightsError, match=reason) as caught:
        download_file(server.url, tmp_path / "file.h5", SHA256)
    assert len(server.requests) == requests
    for fact in (server.url, SHA256, str(tmp_path)):
        assert fact in str(caught.value)
    assert not _visible(tmp_path)


def test_wrong_hash_names_both(server: Server, tmp_path: Path) -> None:
    wanted = "sha256:" + "0" * 64
    with pytest.raises(WeightsError) as caught:
        download_file(server.url, tmp_path / "file.h5", wanted)
    assert wanted in str(caught.value)
    assert SHA256.partition(":")[2] in str(caught.value)
    assert _visible(tmp_path) == ["file.h5.bad"]
    assert len(server.requests) == 2


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"no connection .*refused.*5 times"):
        download_file(f"http://127.0.0.1:{port}/file.h5", tmp_path / "file.h5", None)


def test_server_accepts_and_is_silent(server: Server, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(WeightsError, match="sent nothing for"):
            download_file(f"http://127.0.0.1:{silent.getsockname()[1]}/file.h5", tmp_path / "file.h5", None)


def test_unknown_name(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be resolved"):
        download_file("http://no-such-host.invalid/file.h5", tmp_path / "file.h5", None)


def test_server_that_speaks_no_tls(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no secure connection"):
        download_file(server.url.replace("http:", "https:"), tmp_path / "file.h5", None)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificate_of_the_environment_is_trusted_and_no_other(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run(["openssl", *made.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
    with pytest.raises(WeightsError, match=r"(?s)cannot be trusted.*SSL_CERT_FILE"):
        download_file(url, tmp_path / "file.h5", SHA256)
    monkeypatch.setenv(variable, str(tmp_path / "certificate"))
    download_file(url, tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT


def test_proxy_of_the_environment_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    download_file("http://elsewhere.invalid/file.h5", tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT


def test_secrets_in_the_url_stay_secret(server: Server, tmp_path: Path) -> None:
    server.troubles = [status(404)]
    url = server.url.replace("http://", "http://me:geheim@") + "?token=geheim"
    with pytest.raises(WeightsError) as caught:
        download_file(url.replace("me:geheim@", ""), tmp_path / "file.h5", None)
    assert "geheim" not in str(caught.value)
    assert "geheim" not in download.public_url(url)


@pytest.mark.skipif(os.name == "nt", reason="folders of Windows have other permissions")
def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="FINETUNE_CACHE"):
        download_file(server.url, tmp_path / "file" / "file.h5", SHA256)
    with pytest.raises(ResourceError, match="FINETUNE_CACHE"):
        download_file(server.url, Path("/proc/no-such-folder/file.h5"), SHA256)
    assert not server.requests


@pytest.mark.parametrize("name", ["FINETUNE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("FINETUNE_OFFLINE")
    monkeypatch.setenv(name, "1")

    def no_socket(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    begin = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        download_file("https://example.invalid/file.h5", tmp_path / "file.h5", SHA256)
    assert time.perf_counter() - begin < 1
    for fact in ("FINETUNE_OFFLINE=1", "https://example.invalid/file.h5", SHA256, str(tmp_path)):
        assert fact in str(caught.value)
    assert not _visible(tmp_path)


# ------------------------------------------------------------------------------------------ several processes

PROCESS = """
import sys
from pathlib import Path
from finetune.backbones import download
if sys.argv[4] == "broken locks":
    import filelock
    def refuse(self): raise NotImplementedError
    filelock.FileLock.acquire = refuse
download.download_file(sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None)
assert Path(sys.argv[2]).stat().st_size == 1048576
"""


def _process(server: Server, target: Path, locks: str = "locks") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROCESS, server.url, target, SHA256, locks])


@pytest.mark.slow
@pytest.mark.parametrize("locks", ["locks", "broken locks"])
def test_eight_processes_and_a_cold_cache(server: Server, tmp_path: Path, locks: str) -> None:
    server.seconds_per_block = 0.05
    processes = [_process(server, tmp_path / "file.h5", locks) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert (tmp_path / "file.h5").read_bytes() == CONTENT
    assert not list(tmp_path.glob(".tmp-*"))
    assert len(server.requests) == 1 if locks == "locks" else len(server.requests) > 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_download_leaves_no_file_and_the_next_one_cleans_up(server: Server, tmp_path: Path) -> None:
    server.seconds_per_block = 0.1
    process = _process(server, tmp_path / "file.h5")
    deadline = time.monotonic() + 30
    while not any(part.stat().st_size > 200_000 for part in tmp_path.glob(".tmp-*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not _visible(tmp_path)
    server.seconds_per_block = 0
    download_file(server.url, tmp_path / "file.h5", SHA256)
    assert (tmp_path / "file.h5").read_bytes() == CONTENT
    assert not list(tmp_path.glob(".tmp-*"))
