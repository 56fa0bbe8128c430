"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache folder of its own and no network, so that none can lean on the machine's state."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    monkeypatch.setenv("FINETUNE_OFFLINE", "1")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights beside the project, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the real photos and weights in ../shared, absent on this machine")
    return SHARED
