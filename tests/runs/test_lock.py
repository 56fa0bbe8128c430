"""One training at a time: processes that live, die, race, and notes of other computers."""

import errno
import fcntl
import json
import os
import signal
import socket
import time

import pytest
from run_processes import HOLD, TRAINING, listen, names, nudge, start

from finetune.runs import Run, open_run
from finetune.utils import ResourceError, temporary_name


def test_second_training_is_refused_at_once(run: Run) -> None:
    owner = start(HOLD, run.path)
    assert listen(owner) == "ready"
    nudge(owner)
    assert listen(owner) == "mine"
    begin = time.monotonic()
    for break_lock in (False, True):  # which is not for an owner known to be alive
        with pytest.raises(ResourceError) as caught, run.lock(break_lock=break_lock):
            pytest.fail("two owners")
        assert f"in use by process {owner.pid} on {socket.gethostname()} since 20" in str(caught.value)
        assert f"kill {owner.pid}" in caught.value.hint
    assert time.monotonic() - begin < 1
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert run.run_lock.exists()
    with run.lock():  # the dead owner's is taken over
        pass
    assert not run.run_lock.exists()


def test_lock_excludes_within_one_process_and_ends_with_the_block(run: Run) -> None:
    def crash() -> None:
        with run.lock():
            with pytest.raises(ResourceError, match="in use"), open_run(run.path).lock():
                pytest.fail("two owners")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    with run.lock():
        pass


def test_of_many_that_start_together_one_wins(run: Run) -> None:
    run.run_lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))  # left by a dead one
    racers = [start(HOLD, run.path) for _ in range(5)]
    assert {listen(racer) for racer in racers} == {"ready"}
    for racer in racers:
        nudge(racer)
    answers = [listen(racer) for racer in racers]
    assert answers.count("mine") == 1
    assert sum("is in use by" in answer for answer in answers) == 4
    for racer in racers:
        racer.communicate("\n")


def test_note_from_another_computer_asks_a_person(run: Run) -> None:
    note = '{"pid": 4711, "host": "elsewhere", "since": "2024-01-01T00:00:00+00:00"}'
    run.run_lock.write_text(note)
    message = r"process 4711 on elsewhere since 2024.*\n.*--break-lock"
    with pytest.raises(ResourceError, match=message), run.lock():
        pytest.fail("took it")
    assert run.run_lock.read_text() == note
    with run.lock(break_lock=True):
        assert json.loads(run.run_lock.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"pid": 1, "host": '])
def test_half_written_note_is_nobodys(run: Run, note: str) -> None:
    run.run_lock.write_text(note)
    with run.lock():
        pass


def test_where_locks_do_not_work_the_note_decides(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run.lock():
        with pytest.raises(ResourceError, match="--break-lock"), open_run(run.path).lock():
            pytest.fail("two owners")
        assert run.run_lock.exists()
    with run.lock():
        pass


def test_lock_holder_removes_leftovers(run: Run) -> None:
    training = start(TRAINING, run.path)
    listen(training)
    training.kill()
    training.communicate()
    for folder in (run.path, run.checkpoints):
        folder.mkdir(exist_ok=True)
        own = temporary_name(folder / "x")
        own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{training.pid}-")).write_text("")
    open_run(run.path).load_checkpoint()  # a reader touches nothing
    assert list(run.path.glob(".tmp-*"))
    with run.lock():
        assert not [name for name in names(run.path) | names(run.checkpoints) if name.startswith(".tmp-")]
