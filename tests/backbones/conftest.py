"""A server for the tests of downloads and weights."""

import gc
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from file_server import Server, running_server

from finetune.backbones import download


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    proxies = [name for one in ("http_proxy", "https_proxy", "all_proxy") for name in (one, one.upper())]
    for name in ("FINETUNE_OFFLINE", "HF_HUB_OFFLINE", *proxies):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.3)
    with running_server() as server:
        yield server
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # requests leaves the sockets of failed attempts to the garbage collector
