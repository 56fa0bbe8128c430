from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test of a config has a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
