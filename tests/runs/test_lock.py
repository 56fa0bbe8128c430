"""The moment in which a lock file could have two holders; what a run does with its lock is in test_runs."""

import fcntl
from contextlib import ExitStack
from pathlib import Path

import pytest

from finetune.runs import lock as locks
from finetune.utils.errors import ResourceError


def test_file_removed_between_opening_and_locking_is_not_mistaken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, owner, real = tmp_path / "run.lock", ExitStack(), fcntl.flock
    owner.enter_context(locks.hold_lock(path, "in use"))

    def flock(handle: int, operation: int) -> None:
        owner.close()  # the owner ends, and removes the file, just after the second process opened it
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.hold_lock(path, "in use"):
        assert path.exists()
        with pytest.raises(ResourceError, match="in use by process"), locks.hold_lock(path, "in use"):
            pytest.fail("two holders")
    assert not path.exists()
