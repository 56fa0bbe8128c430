"""A sweep: its trials, what it leaves behind, and that it survives all that can happen to a process."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

pytest.importorskip("optuna")
from finetune import config as configs
from finetune.evaluation import ValidationScores
from finetune.runs import run as runs
from finetune.training import search_space as space, sweep, sweep_study, tryout
from finetune.training.journal import PhaseResult
from finetune.training.tryout import Measured
from finetune.utils.errors import ResourceError, Stopped, TrainingDiverged, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
VARIED = ("head.learning_rate=1e-3..1e-1", "head.optimizer=adam,sgd")
# A worker that takes a trial and never ends it.
HANGING = """
import sys, time
from finetune.cli import main as cli; from finetune.training import sweep_study, tryout
sweep_study.HEARTBEAT_SECONDS = 1
def hang(self, config, **more):
    print("at work", flush=True)
    time.sleep(300)
tryout.Bench.measure = hang
cli.main(sys.argv[1:])
"""


class Sweep:
    """A config file in a folder of its own, and sweeps of it in sweeps/colours."""

    def __init__(self, folder, settings):
        self.folder = folder
        self.config = folder / "colours.yaml"
        settings = {**settings, "output": str(folder / "runs")}
        settings.pop("fine_tune")
        self.config.write_text(yaml.safe_dump(settings))
        self.output = folder / "sweeps" / "colours"

    def run(self, *varied, trials=3, overrides=(), **more):
        every = space.read_search_space(varied or VARIED)
        config = space.check_search_space(self.config, overrides, every)
        return sweep.run_sweep(self.config, overrides, config, every, trials=trials, folder=self.output, **more)

    def stored(self):
        import optuna

        storage = f"sqlite:///{self.output / 'trials.sqlite'}"
        return optuna.load_study(study_name="colours", storage=storage).trials


@pytest.fixture
def no_winner(monkeypatch):
    """The trials alone: training the winner takes longer than all of them."""
    monkeypatch.setattr(sweep, "train_winner", lambda *_: None)


@pytest.fixture
def colours(tmp_path, settings):
    return Sweep(tmp_path, settings)


def test_it_finds_writes_and_trains_the_best_and_can_be_gone_on_with(colours, monkeypatch):
    first = colours.run(trials=3)
    assert [trial.number for trial in first.trials] == [0, 1, 2]
    assert first.trials[0].settings == {"head.learning_rate": "0.01", "head.optimizer": "adam"}  # as the config stands
    assert len({str(trial.settings) for trial in first.trials}) == 3
    best = min(first.trials, key=lambda trial: (-trial.accuracy, trial.loss))
    assert first.best == best

    # The winner is trained as everybody would train best.yaml, and ends with the figures of the trial to the bit.
    assert [path.name for path in (colours.folder / "runs").iterdir()] == ["colours-1"]
    run = runs.open_run(colours.folder / "runs" / "colours-1")
    assert run.phases[-1]["validation"] == {"accuracy": best.accuracy, "loss": best.loss}
    assert run.phases[-1]["best_epoch"] == best.best_epoch
    assert configs.load_config(run.config_yaml) == configs.load_config(colours.output / "best.yaml")
    report = json.loads(run.report_json.read_text())
    assert first.winner["test"]["accuracy"] == report["test"]["accuracy"]

    with (colours.output / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [
        trial.number for trial in sorted(first.trials, key=lambda trial: trial.rank)
    ]
    assert rows[0]["head.learning_rate"] == best.settings["head.learning_rate"]
    assert float(rows[0]["validation_accuracy"]) == best.accuracy
    names = {path.name for path in colours.output.iterdir()}
    assert names == {"trials.sqlite", "trials.csv", "best.yaml", "sweep.png", "tensorboard", "open.lock", "winner.lock"}
    assert len(list(colours.output.glob("tensorboard/trial-*/events.out.*"))) == 3
    assert (colours.output / "sweep.png").read_bytes().startswith(b"\x89PNG")

    again = colours.run(trials=3)
    assert again.trials == first.trials
    assert again.winner == first.winner
    assert len(list((colours.folder / "runs").iterdir())) == 1

    monkeypatch.setattr(sweep, "train_winner", lambda *_: None)
    more = colours.run(trials=4)
    assert more.trials[:3] == first.trials
    assert len(more.trials) == 4

    with pytest.raises(UsageError, match=r"(?s)holds another sweep.*vary.head.learning_rate: .*head.epochs: 3, now 2"):
        colours.run("head.learning_rate=1e-3..1e-2", "head.optimizer=adam,sgd", overrides=["head.epochs=2"])


def test_everything_is_told_as_json(colours, capsys, monkeypatch):
    from finetune.cli import main as cli

    monkeypatch.chdir(colours.folder)
    command = ["sweep", "colours.yaml", "--set", VARIED[0], "--trials", "2", "--json", "--quiet"]
    assert cli.main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert [trial["number"] for trial in said["trials"]] == [0, 1]
    assert said["winner"]["trial"] == said["best"]
    assert said["validation_pictures"] == 15
    assert cli.main([*command[:-2], "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "head.learning_rate" in shown
    assert "chance may have chosen" in shown
    assert "which had no part in the choice" in shown


def test_a_trial_that_diverges_is_the_worst_and_not_the_end(colours, no_winner):
    found = colours.run("head.learning_rate=1e30,1e-2", trials=2)
    failed = next(trial for trial in found.trials if trial.settings["head.learning_rate"] == "1e30")
    assert "no longer a finite number" in failed.problem
    assert failed.accuracy is None
    assert found.best.settings == {"head.learning_rate": "1e-2"}
    assert failed.problem in (colours.output / "trials.csv").read_text()


def test_no_settings_are_tried_twice(colours, no_winner):
    few = colours.run("head.learning_rate=1e-3,1e-2", "head.optimizer=adam,sgd", trials=20)
    assert len({str(trial.settings) for trial in few.trials}) == len(few.trials) == 4


def test_a_larger_space_is_not_tried_twice_either(colours, no_winner, monkeypatch):

    def measure(self, config, **more):
        right = np.arange(15) < config.head.epochs
        return Measured(ValidationScores(np.ones(15), right), (PhaseResult("head", 1, 1, {}),))

    monkeypatch.setattr(tryout.Bench, "measure", measure)
    found = colours.run("head.epochs=1..9", trials=8)
    assert len({str(trial.settings) for trial in found.trials}) == len(found.trials) == 8
    assert int(found.best.settings["head.epochs"]) >= 8


def test_if_no_trial_comes_to_an_end_it_is_said_why(colours, no_winner):
    with pytest.raises(TrainingDiverged, match="All 2 trials failed"):
        colours.run("head.learning_rate=1e30,1e31", trials=2)
    assert not (colours.output / "best.yaml").exists()


def test_a_stopped_trial_is_run_again_by_the_same_command(colours, no_winner, monkeypatch):
    measure, calls = tryout.Bench.measure, []

    def stopped(self, config, **more):
        calls.append(config.head.learning_rate)
        if len(calls) == 2:
            raise Stopped("stopped by SIGINT", hint=sweep.HOW_TO_RESUME)
        return measure(self, config, **more)

    monkeypatch.setattr(tryout.Bench, "measure", stopped)
    with pytest.raises(Stopped, match="Resume with the same command"):
        colours.run()
    assert (colours.output / "best.yaml").exists()
    found = colours.run()
    assert len(found.trials) == 3
    assert calls[2] == calls[1]
    assert sorted(trial.state.name for trial in colours.stored()) == ["COMPLETE"] * 3 + ["FAIL"]


def test_a_killed_worker_is_noticed_and_its_trial_run_again(colours, no_winner, monkeypatch):
    monkeypatch.setattr(sweep_study, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(sweep_study, "GRACE_SECONDS", 3)
    command = ["sweep", str(colours.config), "--trials", "3", "--output", str(colours.output)]
    command += [word for one in VARIED for word in ("--set", one)]
    child = subprocess.Popen([sys.executable, "-c", HANGING, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "at work\n"
        measure, done = tryout.Bench.measure, []

        def kill_at_last(self, config, **more):
            done.append(config)
            if len(done) == 2:  # the third place is the child's, which is alive until now
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            return measure(self, config, **more)

        monkeypatch.setattr(tryout.Bench, "measure", kill_at_last)
        found = colours.run()
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
    stored = colours.stored()
    assert [trial.state.name for trial in stored] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert len(done) == 3
    assert stored[0].params == stored[3].params  # its settings are not lost
    assert stored[0].user_attrs["worker"] != stored[1].user_attrs["worker"]
    assert [trial.number for trial in found.trials] == [1, 2, 3]


def test_a_place_that_was_taken_and_never_begun_is_given_back(colours, no_winner, monkeypatch):
    import optuna

    monkeypatch.setattr(sweep_study, "GRACE_SECONDS", 1)
    monkeypatch.setattr(sweep_study, "HEARTBEAT_SECONDS", 1)
    colours.run(trials=1)
    study = optuna.load_study(study_name="colours", storage=f"sqlite:///{colours.output / 'trials.sqlite'}")
    study.ask()  # killed right after this
    time.sleep(1.1)
    assert len(colours.run(trials=2).trials) == 2
    assert [trial.state.name for trial in colours.stored()] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_trials_share_network_and_features_and_leave_no_trace(colours, monkeypatch):
    from finetune import data
    from finetune.config import auto as recipe

    built, prepared = [], []
    build, prepare = tryout.build_classifier, tryout.prepare_features
    monkeypatch.setattr(tryout, "build_classifier", lambda *args, **more: built.append(0) or build(*args, **more))
    monkeypatch.setattr(tryout, "prepare_features", lambda *args, **more: prepared.append(0) or prepare(*args, **more))

    def config(*overrides):
        return recipe.fill_open_keys(configs.load_config(colours.config, overrides), data.data_facts(dataset))[0]

    dataset = data.open_dataset(configs.load_config(colours.config).data, seed=0)
    bench = tryout.Bench(dataset)
    first = bench.measure(config())
    other = bench.measure(config("head.learning_rate=0.5", "head.optimizer=sgd"))
    bench.measure(config("head.start=regression"))
    assert (len(built), len(prepared)) == (1, 1)
    again = bench.measure(config())
    assert again.phases == first.phases
    assert (again.validation.losses == first.validation.losses).all()
    assert (other.validation.losses != first.validation.losses).any()
    bench.measure(config("model.dropout=0.5"))
    assert (len(built), len(prepared)) == (2, 1)  # dropout needs another network, not other features
    bench.measure(config("fine_tune.unfreeze=1", "fine_tune.epochs=1", "head.epochs=1"))
    assert len(prepared) == 2


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("nonsense", UsageError, "not the URL of a database"),
        ("nosuch://host/base", UsageError, "not the URL of a database"),
        ("sqlite:////nowhere/at/all.sqlite", ResourceError, "does not answer"),
    ],
)
def test_a_database_that_cannot_be_used_is_told(colours, url, error, says, monkeypatch):
    monkeypatch.setattr(sweep_study, "CONNECT_ATTEMPTS", 1)
    with pytest.raises(error, match=says):
        colours.run(storage=url)
