"""What the process was given: switches, cores, memory."""

import os

import pytest

from finetune.utils import available_cores, is_offline, peak_memory_mb


@pytest.mark.parametrize("name", ["FINETUNE_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("word", "offline"),
    [("1", True), ("true", True), ("YES", True), (" on ", True), ("0", False), ("false", False), ("", False)],
)
def test_offline_by_either_switch(monkeypatch: pytest.MonkeyPatch, name: str, word: str, offline: bool) -> None:
    monkeypatch.delenv("FINETUNE_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not is_offline()
    monkeypatch.setenv(name, word)
    assert is_offline() is offline


def test_cores_are_those_of_this_process() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_peak_memory_is_in_mib() -> None:
    assert 5 < peak_memory_mb() < 100_000
