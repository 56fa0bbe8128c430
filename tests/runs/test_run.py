"""A run folder through crashes, damage, races and full disks."""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finetune.runs import run as runs
from finetune.utils import io as files
from finetune.utils.errors import ConfigError, ResourceError, UsageError, WeightsError

# "Trains" for ever: row, checkpoint, row, checkpoint. What the arrays hold follows from the epoch alone.
TRAINING = """
import sys
from pathlib import Path
import numpy as np
from finetune.runs.run import run as runs
run = runs.open_run(Path(sys.argv[1]))
with run.lock():
    checkpoint = run.load_checkpoint()
    run.rewind(checkpoint)
    epoch = checkpoint.state["epoch"] if checkpoint else 0
    print("start", epoch, checkpoint.lost if checkpoint else None, flush=True)
    while True:
        epoch += 1
        run.append_history({"phase": "head", "epoch": epoch, "loss": 1 / epoch})
        if epoch % 10 == 0:
            run.finish_phase({"name": f"phase {epoch // 10}"})
        run.save_checkpoint(f"head-{epoch}", {"w": np.full(100_000, epoch), "best/w": np.float32([epoch])},
                            {"epoch": epoch})
        print("saved", epoch, flush=True)
"""
HOLD = """
import sys
from pathlib import Path
from finetune.utils import errors; from finetune.runs.run import run as runs
run = runs.open_run(Path(sys.argv[1]))
print("ready", flush=True)
input()
try:
    with run.lock():
        print("mine", flush=True)
        input()
except errors.ResourceError as error:
    print(error, flush=True)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def listen(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def nudge(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create_run(tmp_path / "runs", "flowers")


def save(run: runs.Run, epoch: int) -> Path:
    run.append_history({"phase": "head", "epoch": epoch, "loss": 1 / epoch})
    return run.save_checkpoint(f"head-{epoch}", {"w": np.full(3, epoch)}, {"epoch": epoch})


# --- the folder


def test_new_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    made = [runs.create_run(tmp_path / "a" / "b", "x").path.name for _ in range(3)]
    assert made == ["x-1", "x-2", "x-3"]
    shutil.rmtree(tmp_path / "a" / "b" / "x-2")
    (tmp_path / "a" / "b" / "x-7").mkdir()
    (tmp_path / "a" / "b" / "x-7" / "precious").write_text("")
    assert runs.create_run(tmp_path / "a" / "b", "x").path.name == "x-8"
    assert names(tmp_path / "a" / "b" / "x-7") == {"precious"}


def test_new_run_says_not_started(run: runs.Run) -> None:
    assert names(run.path) == {"state.json"}
    assert json.loads(run.state_json.read_text()) == {"format": 1, "status": "not started", "phases": []}
    run.set_status("running")
    run.finish_phase({"name": "head", "seconds": 1.5})
    again = runs.open_run(run.path)
    assert again.status == "running"
    assert again.phases == [{"name": "head", "seconds": 1.5}]


def test_processes_that_start_together_get_different_folders(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from finetune.runs.run import run as runs
print("ready", flush=True)
input()
print(*(runs.create_run(Path(sys.argv[1]), "x").path.name for _ in range(20)))
"""
    both = [start(code, tmp_path / "runs") for _ in range(2)]
    assert [listen(process) for process in both] == ["ready", "ready"]
    for process in both:
        nudge(process)
    made = [name for process in both for name in process.communicate()[0].split()]
    assert sorted(made) == sorted(f"x-{n}" for n in range(1, 41))


@pytest.mark.parametrize("place", ["data", "data/runs", "link"])
def test_run_in_the_data_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(ConfigError, match="inside the data folder"):
        runs.create_run(tmp_path / place, "x", data_root=tmp_path / "data")
    assert names(tmp_path / "data") == set()
    assert runs.create_run(tmp_path / "runs", "x", data_root=tmp_path / "data").path.is_dir()


def test_run_in_home_or_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="home folder"):
        runs.create_run(tmp_path, "x")
    with pytest.raises(ConfigError, match="cannot go directly to /"):
        runs.create_run(Path("/"), "x")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "a\\b"])
def test_impossible_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        runs.create_run(tmp_path, name)


@pytest.mark.parametrize("name", ["b l a n k", "größe 花", "-rf", "[a]*(b)", "x" * 250])
def test_odd_name_works(tmp_path: Path, name: str) -> None:
    first, second = (runs.create_run(tmp_path, name) for _ in range(2))
    assert second.path.name == f"{name}-2"
    save(first, 1)
    assert runs.open_run(first.path).load_checkpoint()


def test_too_long_name_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="name is too long"):
        runs.create_run(tmp_path, "x" * 300)


def test_output_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*runs"):
        runs.create_run(tmp_path / "runs", "x")


def test_file_system_without_replacing_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.replace

    def no_replace(old: Path, new: Path) -> None:
        if new.exists():
            raise PermissionError(1, "Operation not permitted", str(new))
        real(old, new)

    monkeypatch.setattr(os, "replace", no_replace)
    with pytest.raises(ResourceError, match="no permission"):
        runs.create_run(tmp_path, "x")
    assert names(tmp_path) == set()


def test_what_is_not_a_run_is_refused(tmp_path: Path, run: runs.Run) -> None:
    with pytest.raises(UsageError, match="not a run"):
        runs.open_run(tmp_path)
    with pytest.raises(UsageError, match=r"not a run.*Did you mean 'flowers-1'\?"):
        runs.open_run(run.path.parent / "flowers")
    with pytest.raises(UsageError, match="not a run"):
        runs.open_run(run.state_json)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": "x"}', "\x00"])
def test_damaged_state_is_named(run: runs.Run, content: str) -> None:
    run.state_json.write_text(content)
    with pytest.raises(ResourceError, match=r"state\.json cannot be used"):
        runs.open_run(run.path)


def test_newer_run_is_refused(run: runs.Run) -> None:
    files.write_json(run.state_json, {"format": 2, "something": "new"})
    with pytest.raises(UsageError, match=r"newer finetune: format 2, known here: 1\n.*upgrade"):
        runs.open_run(run.path)


def test_space_is_required_in_advance(run: runs.Run) -> None:
    run.require_space(1)
    with pytest.raises(ResourceError, match="too little space"):
        run.require_space(10**18)


# --- checkpoints and history


def test_checkpoint_comes_back_bit_for_bit(run: runs.Run) -> None:
    assert run.load_checkpoint() is None
    arrays: dict[str, np.ndarray] = {
        "conv/kernel:0": np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32),
        "step": np.array(7, np.int64),
        "odd": np.array([np.nan, -0.0, np.inf, 5e-324]),
        "empty": np.zeros((0, 4), np.float16),
        "half": np.arange(6, dtype=np.uint8).reshape(2, 3).T,
        "mask": np.array([True, False]),
    }
    state = {"best": float("-inf"), "rate": 0.1 + 0.2, "seeds": [1, 2**63], "name": "größe"}
    run.save_checkpoint("head-1", arrays, state)
    checkpoint = runs.open_run(run.path).load_checkpoint()
    assert checkpoint
    assert checkpoint.lost is None
    assert checkpoint.state == state
    assert checkpoint.arrays.keys() == arrays.keys()
    for key, array in arrays.items():
        assert checkpoint.arrays[key].dtype == array.dtype
        assert checkpoint.arrays[key].shape == array.shape
        assert checkpoint.arrays[key].tobytes() == array.tobytes()


def test_arrays_that_need_pickle_are_refused(run: runs.Run) -> None:
    with pytest.raises(TypeError, match="'bad' has type object"):
        run.save_checkpoint("x", {"bad": np.array([{}])}, {})
    assert run.load_checkpoint() is None


def test_newest_two_are_kept(run: runs.Run) -> None:
    for epoch in range(1, 5):
        save(run, epoch)
    assert names(run.checkpoints) == {"0003-head-3", "0004-head-4", "LAST"}
    again = runs.open_run(run.path)  # also over restarts, with or without loading
    save(again, 5)
    assert names(run.checkpoints) == {"0004-head-4", "0005-head-5", "LAST"}


def test_same_step_may_be_saved_again(run: runs.Run) -> None:
    assert save(run, 1).name == "0001-head-1"
    assert save(run, 1).name == "0002-head-1"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit": (lambda folder: flip(folder / "arrays.npz"), r"arrays\.npz was changed"),
    "state edited": (lambda folder: (folder / "state.json").write_text("{}"), r"state\.json was changed"),
    "cut": (lambda folder: (folder / "arrays.npz").write_bytes(b"PK"), r"arrays\.npz was changed"),
    "lost": (lambda folder: (folder / "arrays.npz").unlink(), r"arrays\.npz: No such file"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: No such file"),
    "manifest edited": (lambda folder: (folder / "manifest.json").write_text("[]"), "cannot be used"),
    "renamed": (lambda folder: folder.rename(folder.with_name("old")), r"manifest\.json: No such file"),
    "deleted": (shutil.rmtree, r"manifest\.json: No such file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_falls_back_and_says_so(run: runs.Run, kind: str) -> None:
    damage, message = DAMAGE[kind]
    for epoch in (1, 2, 3):
        newest = save(run, epoch)
    damage(newest)
    again = runs.open_run(run.path)
    checkpoint = again.load_checkpoint()
    assert checkpoint
    assert checkpoint.name == "0002-head-2"
    assert checkpoint.state == {"epoch": 2}
    assert checkpoint.lost
    assert re.fullmatch(rf"checkpoint 0003-head-3 .*{message}.*; going on from 0002-head-2", checkpoint.lost)
    # Going on: the whole one stays until two whole ones are there, and nothing is reported twice.
    again.rewind(checkpoint)
    assert save(again, 3).name == "0004-head-3"
    assert (run.checkpoints / "0002-head-2").is_dir()
    last = runs.open_run(run.path).load_checkpoint()
    assert last
    assert (last.name, last.lost) == ("0004-head-3", None)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]


def test_the_newest_is_told_by_its_number_for_clocks_jump(run: runs.Run) -> None:
    save(run, 1)
    newest = save(run, 2)
    for path in (*newest.iterdir(), newest):
        os.utime(path, (1, 1))
    checkpoint = runs.open_run(run.path).load_checkpoint()
    assert checkpoint
    assert checkpoint.state == {"epoch": 2}


def test_all_damaged_is_an_error_that_keeps_the_files(run: runs.Run) -> None:
    for epoch in (1, 2):
        flip(save(run, epoch) / "arrays.npz")
    before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    with pytest.raises(WeightsError, match=r"no checkpoint is whole: .*0002-head-2.*0001-head-1.*\n.*Noth"):
        runs.open_run(run.path).load_checkpoint()
    assert {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()} == before


def test_deleted_checkpoints_do_not_pass_for_a_fresh_start(run: runs.Run) -> None:
    shutil.rmtree(save(run, 1))
    with pytest.raises(WeightsError, match="0001-head-1"):
        runs.open_run(run.path).load_checkpoint()


def test_clean_up_spares_what_others_put_there(run: runs.Run) -> None:
    (save(run, 1) / "my notes.txt").write_text("good")
    save(run, 2)
    save(run, 3)
    assert names(run.checkpoints / "0001-head-1") == {"my notes.txt"}


def test_history_after_a_crash_has_the_rows_of_an_unbroken_run(run: runs.Run) -> None:
    for epoch in (1, 2):
        save(run, epoch)
    run.finish_phase({"name": "head"})
    save(run, 3)
    run.finish_phase({"name": "fine_tune"})  # killed before the next save: both of these must be forgotten
    run.append_history({"phase": "fine_tune", "epoch": 4, "loss": 9.0, "surplus": "x"})
    again = runs.open_run(run.path)
    again.rewind(again.load_checkpoint())
    assert [(row["phase"], row["epoch"], row["loss"]) for row in again.history()] == [
        ("head", n, 1 / n) for n in (1, 2, 3)
    ]
    assert again.phases == [{"name": "head"}]
    again.rewind(None)
    assert again.history() == []
    assert again.phases == []


def test_history_takes_new_columns_and_keeps_numbers_exact(run: runs.Run) -> None:
    run.append_history({"phase": 'a "b", c\n', "epoch": 1, "loss": 0.1 + 0.2})
    run.append_history({"phase": "head", "epoch": 2, "rate": np.float32(0.1), "accuracy": np.float64(1) / 3})
    assert run.history() == [
        {"phase": 'a "b", c\n', "epoch": 1, "loss": 0.1 + 0.2},
        {"phase": "head", "epoch": 2, "rate": 0.1, "accuracy": 1 / 3},
    ]


def test_moved_run_goes_on(run: runs.Run, tmp_path: Path) -> None:
    save(run, 1)
    for path in filter(Path.is_file, run.path.rglob("*")):
        assert str(tmp_path).encode() not in path.read_bytes()
    moved = run.path.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    checkpoint = runs.open_run(tmp_path / "link").load_checkpoint()
    assert checkpoint
    assert checkpoint.state == {"epoch": 1}


def test_full_disk_keeps_the_old_checkpoints(run: runs.Run) -> None:
    save(run, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"0002-head-2: files may not be that large.*needed 8\.0 MB"):
            run.save_checkpoint("head-2", {"w": np.zeros(1_000_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(run.checkpoints) == {"0001-head-1", "LAST"}
    checkpoint = runs.open_run(run.path).load_checkpoint()
    assert checkpoint
    assert (checkpoint.name, checkpoint.lost) == ("0001-head-1", None)


def test_run_that_disappears_is_named_at_once(run: runs.Run) -> None:
    with run.lock():
        shutil.rmtree(run.path)
        with pytest.raises(ResourceError, match="does not exist"):
            run.save_checkpoint("head-1", {}, {})
        assert not run.path.exists()


def test_killed_training_resumes_with_nothing_lost(run: runs.Run) -> None:
    """20 kill -9 at random moments of a training that does nothing but save."""
    chance, saved = random.Random(3), 0
    for _ in range(20):
        training = start(TRAINING, run.path)
        word, epoch, lost = listen(training).split()
        assert (word, lost) == ("start", "None")
        assert int(epoch) >= saved
        time.sleep(chance.random() * 0.2)
        training.send_signal(signal.SIGKILL)
        lines = training.communicate()[0].split("\n")
        saved = max([int(epoch), *(int(line.split()[1]) for line in lines[:-1])])  # the last may be cut
        checkpoint = runs.open_run(run.path).load_checkpoint()
        if saved == 0 and checkpoint is None:
            continue
        assert checkpoint
        epoch_now = checkpoint.state["epoch"]
        assert saved <= epoch_now <= saved + 1
        assert checkpoint.lost is None
        assert (checkpoint.arrays["w"] == epoch_now).all()
        assert checkpoint.arrays["best/w"] == epoch_now
        assert [row["epoch"] for row in checkpoint.history] == list(range(1, epoch_now + 1))
        assert len(checkpoint.phases) == epoch_now // 10
    assert saved > 5
    with run.lock():
        left = names(run.path) | names(run.checkpoints)
    assert not [name for name in left if name.startswith(".tmp-")]
    assert len(names(run.checkpoints)) <= 4  # LAST, the newest two, and one that a kill saved from removal


# --- the lock


def test_second_training_is_refused_at_once(run: runs.Run) -> None:
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


def test_lock_excludes_within_one_process_and_ends_with_the_block(run: runs.Run) -> None:
    def crash() -> None:
        with run.lock():
            with pytest.raises(ResourceError, match="in use"), runs.open_run(run.path).lock():
                pytest.fail("two owners")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    with run.lock():
        pass


def test_of_many_that_start_together_one_wins(run: runs.Run) -> None:
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


def test_note_from_another_computer_asks_a_person(run: runs.Run) -> None:
    note = '{"pid": 4711, "host": "elsewhere", "since": "2024-01-01T00:00:00+00:00"}'
    run.run_lock.write_text(note)
    message = r"process 4711 on elsewhere since 2024.*\n.*--break-lock"
    with pytest.raises(ResourceError, match=message), run.lock():
        pytest.fail("took it")
    assert run.run_lock.read_text() == note
    with run.lock(break_lock=True):
        assert json.loads(run.run_lock.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"pid": 1, "host": '])
def test_half_written_note_is_nobodys(run: runs.Run, note: str) -> None:
    run.run_lock.write_text(note)
    with run.lock():
        pass


def test_where_locks_do_not_work_the_note_decides(run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.runs.lock.fcntl", None)
    with run.lock():
        with pytest.raises(ResourceError, match="--break-lock"), runs.open_run(run.path).lock():
            pytest.fail("two owners")
        assert run.run_lock.exists()
    with run.lock():
        pass


def test_lock_holder_removes_leftovers(run: runs.Run) -> None:
    training = start(TRAINING, run.path)
    listen(training)
    training.kill()
    training.communicate()
    for folder in (run.path, run.checkpoints):
        folder.mkdir(exist_ok=True)
        (folder / f".tmp-{training.pid}-01234567-x").write_text("")
    runs.open_run(run.path).load_checkpoint()  # a reader touches nothing
    assert (run.path / f".tmp-{training.pid}-01234567-x").exists()
    with run.lock():
        assert not [name for name in names(run.path) | names(run.checkpoints) if name.startswith(".tmp-")]
