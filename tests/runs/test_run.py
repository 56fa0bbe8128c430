"""A run folder: created, opened, moved, its state and history through crashes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_processes import listen, names, nudge, save, start

from finetune.runs import Run, create_run, open_run
from finetune.utils import ConfigError, ResourceError, UsageError, write_json


def test_new_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    made = [create_run(tmp_path / "a" / "b", "x").path.name for _ in range(3)]
    assert made == ["x-1", "x-2", "x-3"]
    shutil.rmtree(tmp_path / "a" / "b" / "x-2")
    (tmp_path / "a" / "b" / "x-7").mkdir()
    (tmp_path / "a" / "b" / "x-7" / "precious").write_text("")
    assert create_run(tmp_path / "a" / "b", "x").path.name == "x-8"
    assert names(tmp_path / "a" / "b" / "x-7") == {"precious"}


def test_new_run_says_not_started(run: Run) -> None:
    assert names(run.path) == {"state.json"}
    assert json.loads(run.state_json.read_text()) == {"format": 1, "status": "not started", "phases": []}
    run.set_status("running")
    run.finish_phase({"name": "head", "seconds": 1.5})
    again = open_run(run.path)
    assert again.status == "running"
    assert again.phases == [{"name": "head", "seconds": 1.5}]


def test_a_run_in_a_named_folder(tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs", "flowers", path=tmp_path / "deep" / "nightly")
    assert run.path == tmp_path / "deep" / "nightly"
    assert open_run(run.path).status == "not started"
    assert not (tmp_path / "runs").exists()
    for path in (run.path, tmp_path / "deep"):
        with pytest.raises(UsageError, match="exists already"):
            create_run(tmp_path / "runs", "flowers", path=path)
    (tmp_path / "empty").mkdir()
    assert create_run(tmp_path / "runs", "flowers", path=tmp_path / "empty").status == "not started"


def test_processes_that_start_together_get_different_folders(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from finetune.runs import create_run, open_run
print("ready", flush=True)
input()
print(*(create_run(Path(sys.argv[1]), "x").path.name for _ in range(20)))
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
        create_run(tmp_path / place, "x", data_root=tmp_path / "data")
    assert names(tmp_path / "data") == set()
    assert create_run(tmp_path / "runs", "x", data_root=tmp_path / "data").path.is_dir()


def test_run_in_home_or_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="home folder"):
        create_run(tmp_path, "x")
    with pytest.raises(ConfigError, match="cannot go directly to /"):
        create_run(Path("/"), "x")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "a\\b"])
def test_impossible_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        create_run(tmp_path, name)


@pytest.mark.parametrize("name", ["b l a n k", "größe 花", "-rf", "[a]*(b)", "x" * 250])
def test_odd_name_works(tmp_path: Path, name: str) -> None:
    first, second = (create_run(tmp_path, name) for _ in range(2))
    assert second.path.name == f"{name}-2"
    save(first, 1)
    assert open_run(first.path).load_checkpoint()


def test_too_long_name_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="name is too long"):
        create_run(tmp_path, "x" * 300)


def test_output_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*runs"):
        create_run(tmp_path / "runs", "x")


def test_file_system_without_replacing_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    real = os.replace

    def no_replace(old: Path, new: Path) -> None:
        if new.exists():
            raise PermissionError(1, "Operation not permitted", str(new))
        real(old, new)

    monkeypatch.setattr(os, "replace", no_replace)
    with pytest.raises(ResourceError, match="no permission"):
        create_run(tmp_path, "x")
    assert names(tmp_path) == set()


def test_what_is_not_a_run_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UsageError, match="not a run"):
        open_run(tmp_path)
    with pytest.raises(UsageError, match=r"not a run.*Did you mean 'flowers-1'\?"):
        open_run(run.path.parent / "flowers")
    with pytest.raises(UsageError, match="not a run"):
        open_run(run.state_json)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": "x"}', "\x00"])
def test_damaged_state_is_named(run: Run, content: str) -> None:
    run.state_json.write_text(content)
    with pytest.raises(ResourceError, match=r"state\.json cannot be used"):
        open_run(run.path)


def test_an_unknown_status_is_named(run: Run) -> None:
    write_json(run.state_json, {"format": 1, "status": "asleep", "phases": []})
    with pytest.raises(ResourceError, match=r"state\.json cannot be used: status: Input should be 'not started', 'run"):
        open_run(run.path)


def test_newer_run_is_refused(run: Run) -> None:
    write_json(run.state_json, {"format": 2, "something": "new"})
    with pytest.raises(UsageError, match=r"newer finetune: format 2, known here: 1\n.*upgrade"):
        open_run(run.path)


def test_space_is_required_in_advance(run: Run) -> None:
    run.require_space(1)
    with pytest.raises(ResourceError, match="too little space"):
        run.require_space(10**18)


def test_history_after_a_crash_has_the_rows_of_an_unbroken_run(run: Run) -> None:
    for epoch in (1, 2):
        save(run, epoch)
    run.finish_phase({"name": "head"})
    save(run, 3)
    run.finish_phase({"name": "fine_tune"})  # killed before the next save: both of these must be forgotten
    run.append_history({"phase": "fine_tune", "epoch": 4, "loss": 9.0, "surplus": "x"})
    again = open_run(run.path)
    again.rewind(again.load_checkpoint())
    assert [(row["phase"], row["epoch"], row["loss"]) for row in again.history()] == [
        ("head", n, 1 / n) for n in (1, 2, 3)
    ]
    assert again.phases == [{"name": "head"}]
    again.rewind(None)
    assert again.history() == []
    assert again.phases == []


def test_history_takes_new_columns_and_keeps_numbers_exact(run: Run) -> None:
    run.append_history({"phase": 'a "b", c\n', "epoch": 1, "loss": 0.1 + 0.2})
    run.append_history({"phase": "head", "epoch": 2, "rate": np.float32(0.1), "accuracy": np.float64(1) / 3})
    assert run.history() == [
        {"phase": 'a "b", c\n', "epoch": 1, "loss": 0.1 + 0.2},
        {"phase": "head", "epoch": 2, "rate": 0.1, "accuracy": 1 / 3},
    ]


def test_moved_run_goes_on(run: Run, tmp_path: Path) -> None:
    save(run, 1)
    for path in filter(Path.is_file, run.path.rglob("*")):
        assert str(tmp_path).encode() not in path.read_bytes()
    moved = run.path.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    checkpoint = open_run(tmp_path / "link").load_checkpoint()
    assert checkpoint
    assert checkpoint.state == {"epoch": 1}
