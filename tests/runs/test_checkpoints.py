"""Checkpoints through crashes, damage and full disks."""

import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_processes import TRAINING, listen, names, save, start

from finetune.runs import Run, open_run
from finetune.utils import ResourceError, WeightsError


def test_checkpoint_comes_back_bit_for_bit(run: Run) -> None:
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
    checkpoint = open_run(run.path).load_checkpoint()
    assert checkpoint
    assert checkpoint.lost is None
    assert checkpoint.state == state
    assert checkpoint.arrays.keys() == arrays.keys()
    for key, array in arrays.items():
        assert checkpoint.arrays[key].dtype == array.dtype
        assert checkpoint.arrays[key].shape == array.shape
        assert checkpoint.arrays[key].tobytes() == array.tobytes()


def test_arrays_that_need_pickle_are_refused(run: Run) -> None:
    with pytest.raises(TypeError, match="'bad' has type object"):
        run.save_checkpoint("x", {"bad": np.array([{}])}, {})
    assert run.load_checkpoint() is None


def test_newest_two_are_kept(run: Run) -> None:
    for epoch in range(1, 5):
        save(run, epoch)
    assert names(run.checkpoints) == {"0003-head-3", "0004-head-4", "LAST"}
    again = open_run(run.path)  # also over restarts, with or without loading
    save(again, 5)
    assert names(run.checkpoints) == {"0004-head-4", "0005-head-5", "LAST"}


def test_same_step_may_be_saved_again(run: Run) -> None:
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
def test_damaged_newest_falls_back_and_says_so(run: Run, kind: str) -> None:
    damage, message = DAMAGE[kind]
    for epoch in (1, 2, 3):
        newest = save(run, epoch)
    damage(newest)
    again = open_run(run.path)
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
    last = open_run(run.path).load_checkpoint()
    assert last
    assert (last.name, last.lost) == ("0004-head-3", None)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]


def test_the_newest_is_known_by_its_number_for_clocks_jump(run: Run) -> None:
    save(run, 1)
    newest = save(run, 2)
    for path in (*newest.iterdir(), newest):
        os.utime(path, (1, 1))
    checkpoint = open_run(run.path).load_checkpoint()
    assert checkpoint
    assert checkpoint.state == {"epoch": 2}


def test_all_damaged_is_an_error_that_keeps_the_files(run: Run) -> None:
    for epoch in (1, 2):
        flip(save(run, epoch) / "arrays.npz")
    before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    with pytest.raises(WeightsError, match=r"no checkpoint is whole: .*0002-head-2.*0001-head-1.*\n.*Noth"):
        open_run(run.path).load_checkpoint()
    assert {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()} == before


def test_deleted_checkpoints_do_not_pass_for_a_fresh_start(run: Run) -> None:
    shutil.rmtree(save(run, 1))
    with pytest.raises(WeightsError, match="0001-head-1"):
        open_run(run.path).load_checkpoint()


def test_clean_up_spares_what_others_put_there(run: Run) -> None:
    (save(run, 1) / "my notes.txt").write_text("good")
    save(run, 2)
    save(run, 3)
    assert names(run.checkpoints / "0001-head-1") == {"my notes.txt"}


def test_full_disk_keeps_the_old_checkpoints(run: Run) -> None:
    save(run, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"0002-head-2: files may not be that large.*needed 8\.0 MB"):
            run.save_checkpoint("head-2", {"w": np.zeros(1_000_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(run.checkpoints) == {"0001-head-1", "LAST"}
    checkpoint = open_run(run.path).load_checkpoint()
    assert checkpoint
    assert (checkpoint.name, checkpoint.lost) == ("0001-head-1", None)


def test_run_that_disappears_is_named_at_once(run: Run) -> None:
    with run.lock():
        shutil.rmtree(run.path)
        with pytest.raises(ResourceError, match="does not exist"):
            run.save_checkpoint("head-1", {}, {})
        assert not run.path.exists()


@pytest.mark.slow
def test_killed_training_resumes_with_nothing_lost(run: Run) -> None:
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
        checkpoint = open_run(run.path).load_checkpoint()
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
