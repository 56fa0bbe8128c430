"""A sweep: its trials, what it leaves behind, and that it survives all that can happen to a process."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytest.importorskip("optuna")
from finetune.cli import main as cli
from finetune.config import load_config
from finetune.runs import open_run
from finetune.training import check_search_space, read_search_space, run_sweep, sweep, sweep_study
from finetune.training.journal import PhaseResult
from finetune.training.trial_cache import TrialTrainer
from finetune.utils import ResourceError, Stopped, TrainingDiverged, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras saving
    pytest.mark.usefixtures("warm_cache", "report_not_drawn"),
]
VARIED = ("head.learning_rate=1e-3..1e-1", "head.optimizer=adam,sgd")
# A process that takes a trial and never finishes it.
HANGING = """
import sys, time
from finetune.cli import main as cli
from finetune.training import sweep_study, trial_cache
sweep_study.HEARTBEAT_SECONDS = 1
def hang(self, config, **options):
    print("at work", flush=True)
    time.sleep(300)
trial_cache.TrialTrainer.fit = hang
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

    def run(self, *varied, trials=3, overrides=(), **options):
        space = read_search_space(varied or VARIED)
        config = check_search_space(self.config, overrides, space)
        return run_sweep(self.config, overrides, config, space, trials=trials, folder=self.output, **options)

    def study(self):
        import optuna

        return optuna.load_study(study_name="colours", storage=f"sqlite:///{self.output / 'trials.sqlite'}")

    def states(self):
        return [trial.state.name for trial in self.study().trials]


@pytest.fixture
def no_winner(monkeypatch):
    """The trials alone: training the winner takes longer than all of them."""
    monkeypatch.setattr(sweep, "train_winner", lambda *_: None)


@pytest.fixture
def colours(tmp_path, settings):
    return Sweep(tmp_path, settings)


@pytest.mark.slow
def test_it_finds_the_best_trains_it_and_can_be_resumed(colours, monkeypatch):
    first = colours.run(trials=3)
    assert [trial.number for trial in first.trials] == [0, 1, 2]
    assert first.trials[0].settings == {"head.learning_rate": "0.01", "head.optimizer": "adam"}  # those of the config
    assert len({str(trial.settings) for trial in first.trials}) == 3
    best = min(first.trials, key=lambda trial: (-trial.accuracy, trial.loss))
    assert first.best == best

    # The winner is trained as everybody would train best.yaml, and ends with the figures of the trial to the bit.
    assert [path.name for path in (colours.folder / "runs").iterdir()] == ["colours-1"]
    run = open_run(colours.folder / "runs" / "colours-1")
    assert run.phases[-1]["validation"] == {"accuracy": best.accuracy, "loss": best.loss}
    assert run.phases[-1]["best_epoch"] == best.best_epoch
    assert load_config(run.config_yaml) == load_config(colours.output / "best.yaml")
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
    assert names == {"trials.sqlite", "trials.csv", "best.yaml", "sweep.png", "tensorboard", "open.lock", "winner.lock",
                     "splits.csv"}  # fmt: skip
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
    with pytest.raises(UsageError, match=r"  images: .*removed \(red/00\.png, red/01\.png"):
        colours.run(overrides=["data.classes=[blue, green]"])


@pytest.mark.slow
def test_the_command_prints_json_or_a_table(colours, capsys, monkeypatch):
    monkeypatch.chdir(colours.folder)
    command = ["sweep", "colours.yaml", "--set", VARIED[0], "--trials", "2", "--quiet"]
    assert cli.main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [trial["number"] for trial in facts["trials"]] == [0, 1]
    assert facts["winner"]["trial"] == facts["best"]
    assert facts["validation_pictures"] == 15
    assert cli.main(command) == 0
    table = capsys.readouterr().out
    assert "head.learning_rate" in table
    assert "chance may have chosen" in table
    assert "which had no part in the choice" in table


@pytest.mark.slow
def test_a_trial_that_diverges_is_the_worst_and_not_the_end(colours, no_winner):
    result = colours.run("head.learning_rate=1e30,1e-2", trials=2)
    failed = next(trial for trial in result.trials if trial.settings["head.learning_rate"] == "1e30")
    assert "no longer a finite number" in failed.problem
    assert failed.accuracy is None
    assert result.best.settings == {"head.learning_rate": "1e-2"}
    assert failed.problem in (colours.output / "trials.csv").read_text()


@pytest.mark.slow
def test_a_small_space_is_tried_completely_and_nothing_twice(colours, no_winner):
    result = colours.run("head.learning_rate=1e-3,1e-2", "head.optimizer=adam,sgd", trials=20)
    assert len({str(trial.settings) for trial in result.trials}) == len(result.trials) == 4


def test_a_larger_space_is_not_tried_twice_either(colours, no_winner, monkeypatch):
    def fit(self, config, **options):
        return (PhaseResult("head", 1, 1, {"accuracy": config.head.epochs / 15, "loss": 1.0}),)

    monkeypatch.setattr(TrialTrainer, "fit", fit)
    result = colours.run("head.epochs=1..9", trials=8)
    assert len({str(trial.settings) for trial in result.trials}) == len(result.trials) == 8
    assert int(result.best.settings["head.epochs"]) >= 8


def test_where_nothing_is_trained_there_is_no_accuracy(colours, no_winner, monkeypatch):
    monkeypatch.setattr(TrialTrainer, "fit", lambda self, config, **options: (PhaseResult("head", 0, 0, {}),))
    with pytest.raises(TrainingDiverged, match=r"All 2 trials failed.*nothing was trained"):
        colours.run("head.batch_size=8,16", trials=2)


@pytest.mark.slow
def test_if_all_trials_fail_the_message_says_why(colours, no_winner):
    with pytest.raises(TrainingDiverged, match="All 2 trials failed"):
        colours.run("head.learning_rate=1e30,1e31", trials=2)
    assert not (colours.output / "best.yaml").exists()


@pytest.mark.slow
def test_a_stopped_trial_is_run_again_by_the_same_command(colours, no_winner, monkeypatch):
    fit, rates = TrialTrainer.fit, []

    def stopped(self, config, **options):
        rates.append(config.head.learning_rate)
        if len(rates) == 2:
            raise Stopped("stopped by SIGINT", hint=sweep.HOW_TO_RESUME)
        return fit(self, config, **options)

    monkeypatch.setattr(TrialTrainer, "fit", stopped)
    with pytest.raises(Stopped, match="Resume with the same command"):
        colours.run()
    assert (colours.output / "best.yaml").exists()
    assert len(colours.run().trials) == 3
    assert rates[2] == rates[1]
    assert sorted(colours.states()) == ["COMPLETE"] * 3 + ["FAIL"]


@pytest.mark.slow
def test_a_killed_process_is_noticed_and_its_trial_run_again(colours, no_winner, monkeypatch):
    monkeypatch.setattr(sweep_study, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(sweep_study, "GRACE_SECONDS", 3)
    command = ["sweep", str(colours.config), "--trials", "3", "--output", str(colours.output)]
    command += [word for varied in VARIED for word in ("--set", varied)]
    child = subprocess.Popen([sys.executable, "-c", HANGING, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "at work\n"
        fit, done = TrialTrainer.fit, []

        def kill_at_last(self, config, **options):
            done.append(config)
            if len(done) == 2:  # the third trial is the child's, which is alive until now
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            return fit(self, config, **options)

        monkeypatch.setattr(TrialTrainer, "fit", kill_at_last)
        result = colours.run()
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
    assert colours.states() == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert len(done) == 3
    stored = colours.study().trials
    assert stored[0].params == stored[3].params  # its settings are not lost
    assert stored[0].user_attrs["worker"] != stored[1].user_attrs["worker"]
    assert [trial.number for trial in result.trials] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("retried", [False, True])
def test_a_trial_that_was_taken_and_never_started_is_given_back(colours, no_winner, monkeypatch, retried):
    monkeypatch.setattr(sweep_study, "GRACE_SECONDS", 1)
    monkeypatch.setattr(sweep_study, "HEARTBEAT_SECONDS", 1)
    colours.run(trials=1)
    study = colours.study()
    if retried:  # it has the attributes of the trial before
        with sweep_study.quiet_optuna():
            sweep_study.retry_trial(study, 0)
    study.ask()  # killed right after this
    time.sleep(1.1)
    assert len(colours.run(trials=2).trials) == 2
    assert colours.states() == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("nonsense", UsageError, "not the URL of a database"),
        ("nosuch://host/base", UsageError, "not the URL of a database"),
        ("sqlite:////nowhere/at/all.sqlite", ResourceError, "does not answer"),
    ],
)
def test_a_database_that_cannot_be_used_is_reported(colours, url, error, message, monkeypatch):
    monkeypatch.setattr(sweep_study, "CONNECT_ATTEMPTS", 1)
    with pytest.raises(error, match=message):
        colours.run(storage=url)
