"""`finetune sweep`: train one config many times to find the settings that suit the data, with Optuna.

    finetune sweep flowers --set head.learning_rate=1e-4..1e-2 --set head.optimizer=adam,sgd --trials 20

The same command again resumes the sweep, and beside a running one it helps: the trials are in a database (see
`sweep_study`), and whoever is free takes the next one. Optuna's sampler (TPE, Bergstra et al. 2011) is seeded by the
config's seed and the number of the trial.

The validation images choose: accuracy first, between equals the loss. The test images are used once, for the
winner, which is trained again as a whole run.

    sweeps/flowers/
      trials.sqlite     the trials                      best.yaml     the config of the best trial so far
      trials.csv        the same as a table             sweep.png     the trials, and the effect of each setting
      tensorboard/      HPARAMS                         winner.lock   held by the process that trains the winner
"""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.backbones import find_backbone, resolve_weights
from finetune.config import Config, dump_config, fill_open_keys, load_config
from finetune.data import SPLITS, Dataset, data_facts, describe_changes, open_dataset, read_image_names
from finetune.evaluation import display_path
from finetune.runs import refuse_run_folder
from finetune.training.experiment import train_config
from finetune.training.run_context import stoppable
from finetune.training.search_space import SearchSpace, current_point, grid_points
from finetune.training.sweep_results import (
    SweepResult,
    SweepTrial,
    draw_trials,
    parameter_importance,
    write_trials,
)
from finetune.training.sweep_study import (
    GRACE_SECONDS,
    explain_database_errors,
    note_start,
    open_study,
    quiet_optuna,
    retry_dead_trials,
    retry_trial,
)
from finetune.training.tensorboard import write_hparams
from finetune.training.trial_cache import TrialTrainer
from finetune.utils import (
    ConfigError,
    ProgressCallback,
    Stop,
    Stopped,
    Terminal,
    TrainingDiverged,
    deterministic_ops,
    sha256_of,
    stop_on_signals,
    tf,
    write_bytes,
    write_text,
)

if TYPE_CHECKING:
    import optuna

OUTPUT = Path("sweeps")
HOW_TO_RESUME = "The finished trials are kept. Resume with the same command."
FAILED_SCORE = 0.0  # what the sampler is told about a trial that failed
SEED_STEP = 7919  # between the seeds of two trials; a prime, so that sweeps with other seeds have other ones
SettingsToConfig = Callable[[Mapping[str, str]], Config]


def run_sweep(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    config: Config,
    space: SearchSpace,
    *,
    trials: int,
    folder: Path | None = None,
    storage: str | None = None,
    terminal: Terminal | None = None,
) -> SweepResult:
    """Run the trials that are left of a sweep, together with other processes that do the same, and train the winner.

    `config` is what `check_search_space` made of `source` and `overrides`; `trials` counts those of all processes and
    restarts. The sweep is known by its folder (default: sweeps/NAME); `storage` is the URL of a database on a server,
    where the sweep has the folder's name. Raises UsageError when the folder holds another sweep, Stopped when asked
    to stop, and what a training raises unless the settings of one trial are the reason.
    """
    terminal = terminal or Terminal(quiet=True)
    folder = (folder or OUTPUT / config.name).absolute()
    refuse_run_folder(folder, config.data.folder)
    if {"model.backbone", "model.weights"}.isdisjoint(dimension.key for dimension in space):
        resolve_weights(find_backbone(config.model.backbone), config.model.weights, top=False, download=False)
    with stop_on_signals() as stop, quiet_optuna(), explain_database_errors(storage):
        with terminal.stage("Checking the images") as update:
            dataset = open_dataset(config.data, seed=config.seed, progress=stoppable(update, stop))
        facts = data_facts(dataset, config.device)

        def config_of(settings: Mapping[str, str]) -> Config:
            varied = [f"{key}={value}" for key, value in settings.items()]
            return fill_open_keys(load_config(source, [*overrides, *varied]), facts)[0]

        grid = grid_points(space, trials)
        current = current_point(config_of({}), space)  # first of all: it is what the others must beat
        first_trials = [current, *grid] if current else grid
        images = folder / "splits.csv"  # by which a later process tells which images have changed
        known = read_image_names(images)
        now = zip(dataset.hashes, (SPLITS[split] for split in dataset.splits), dataset.names, strict=True)
        changes = describe_changes(known, {key: key[-1] for key in now}) if known else ""
        identity = _identity(config, space, dataset)
        study = open_study(folder, storage, identity, first_trials, image_changes=changes)
        if not known:
            dataset.write_splits(images)
        trainer = TrialTrainer(dataset, say=terminal.say)
        places = len(grid) or trials
        worker = _Worker(study, space, places, config.seed, folder, trainer, terminal, stop, config_of)
        terminal.head(f"Sweep {display_path(folder)}: {len(worker.finished())} of {places} trials are done")
        with deterministic_ops(config.deterministic), terminal.stage("Trials") as update:
            worker.run(update)
        finished = worker.finished()
        best = min(finished, key=lambda trial: trial.rank)
        if best.accuracy is None:
            raise TrainingDiverged(
                f"All {len(finished)} trials failed. The first one: {finished[0].problem}",
                hint="Vary something else: trials.csv has the reason of each.",
            )
        write_bytes(folder / "sweep.png", draw_trials(study))
        winner = train_winner(study, folder, best, config_of, terminal)
    n = len(dataset.indices("validation"))
    return SweepResult(folder, n, tuple(finished), best, parameter_importance(study, space), winner)


def _identity(config: Config, space: SearchSpace, dataset: Dataset) -> dict[str, Any]:
    """What all trials of a sweep have in common; with anything else they could not be compared."""
    values = config.model_dump(mode="json", exclude={"output", "name", "cache", "tensorboard"})
    rows = zip(dataset.hashes, dataset.splits, strict=True)
    images = sha256_of(f"{digest}{split}".encode() for digest, split in rows)
    varied = {dimension.key: dimension.text for dimension in space}
    return {"vary": varied, "images and splits": images[:16], "config": json.loads(json.dumps(values))}


# --------------------------------------------------------------------------------------------------- the trials


class _NotNeeded(Exception):
    """A trial that is one too many, or whose settings another trial has: training it would tell nothing new."""


@dataclass
class _Worker:
    """One process that runs trials of a sweep until all are finished, by itself or by others."""

    study: "optuna.Study"
    space: SearchSpace
    places: int  # number of trials that the sweep is to have
    seed: int
    folder: Path
    trainer: TrialTrainer
    terminal: Terminal
    stop: Stop
    config_of: SettingsToConfig
    repeated: bool = False  # the last settings had been tried before

    def run(self, progress: ProgressCallback) -> None:
        waiting = False
        while True:
            finished = len(self.finished())
            progress(finished, self.places)
            if finished >= self.places:
                break
            self.stop.check(HOW_TO_RESUME)
            # `MaxTrialsCallback` would not do: it counts after a trial and in each process, so together they run more.
            if len(self._taken()) < self.places:
                waiting = False
                self._run_trial()
                continue
            if not waiting:
                self.terminal.say("The last trials are running in other processes: waiting for them")
                waiting = True
            time.sleep(0.5)
            retry_dead_trials(self.study)
        self.publish()

    def finished(self) -> list[SweepTrial]:
        """The finished trials by number; those that were killed or stopped are not among them."""
        from optuna.trial import TrialState

        return [
            SweepTrial(trial.number, trial.user_attrs["settings"], **trial.user_attrs["outcome"])
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ]

    def _taken(self) -> "list[optuna.trial.FrozenTrial]":
        """The trials that are finished or running."""
        from optuna.trial import TrialState

        trials: list[optuna.trial.FrozenTrial]
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        return trials

    def _run_trial(self) -> None:
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(_NotNeeded,))
        except ValueError as error:
            if "Cannot tell" not in str(error):  # what Optuna says if another process has ended the trial
                raise
            self.terminal.warn(
                f"A trial gave no sign of life for {GRACE_SECONDS} s, so another process has started it again."
            )
        self.publish()

    def _objective(self, trial: "optuna.Trial") -> float:
        note_start(trial, f"{socket.gethostname()}:{os.getpid()}")
        earlier = [other for other in self._taken() if other.number < trial.number]
        if len(earlier) >= self.places:
            raise _NotNeeded
        settings = self._sample(trial)
        self.repeated = any(other.user_attrs.get("settings") == settings for other in earlier)
        if self.repeated:
            raise _NotNeeded
        trial.set_user_attr("settings", settings)
        try:
            result = self._train(trial.number, settings)
        except Stopped:
            retry_trial(self.study, trial.number)
            raise
        outcome = dataclasses.asdict(result)
        trial.set_user_attr("outcome", {key: outcome[key] for key in outcome if key not in ("number", "settings")})
        best = min([*self.finished(), result], key=lambda other: other.rank)
        self.terminal.say(f"{result}  best so far" if best is result and not result.problem else str(result))
        if result.accuracy is None or result.loss is None:
            return FAILED_SCORE
        # One image is worth 1 / n of accuracy: the loss decides only between equals.
        return result.accuracy + 1 / (1 + result.loss) / len(self.trainer.dataset.indices("validation"))

    def _sample(self, trial: "optuna.Trial") -> dict[str, str]:
        """New settings; at random if those that TPE chose last time had been tried before."""
        import optuna

        # Seeded by the trial's number and not once for all: two processes would draw the same numbers.
        seed = (self.seed + SEED_STEP * trial.number) % 2**32
        if self.repeated:
            self.study.sampler = optuna.samplers.RandomSampler(seed)
        else:
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False)
        return {dimension.key: dimension.suggest(trial) for dimension in self.space}

    def _train(self, number: int, settings: Mapping[str, str]) -> SweepTrial:
        started = time.monotonic()
        scores: dict[str, Any] = {}
        problem = ""
        try:
            results = self.trainer.fit(self.config_of(settings), check_stop=lambda: self.stop.check(HOW_TO_RESUME))
            if results[-1].validation:
                scores = {**results[-1].validation, "best_epoch": results[-1].best_epoch}
            else:
                problem = "nothing was trained: head.epochs is 0, and the head starts at random"
        except (TrainingDiverged, ConfigError, MemoryError, tf.errors.ResourceExhaustedError) as error:
            problem = " ".join(str(error).split("\n")[0].split())[:300] or "out of memory"
        return SweepTrial(number, settings, round(time.monotonic() - started, 3), problem=problem, **scores)

    def publish(self) -> None:
        """Write what is known so far into the folder: the table, HPARAMS, and the best config."""
        finished = self.finished()
        write_trials(self.folder / "trials.csv", finished, self.space)
        successful = [trial for trial in finished if trial.accuracy is not None]
        for trial in successful:
            logs = self.folder / "tensorboard" / f"trial-{trial.number:04}"
            if not logs.exists():
                accuracies = {"validation": trial.accuracy or 0.0}
                write_hparams(logs, logs.name, self.config_of(trial.settings), accuracies, also=trial.settings)
        if successful:
            best = min(successful, key=lambda trial: trial.rank)
            comment = f"# The best of {len(finished)} trials of a sweep, by its validation images: {best}\n"
            write_text(self.folder / "best.yaml", comment + dump_config(self.config_of(best.settings)))


# --------------------------------------------------------------------------------------------------- the winner


def train_winner(
    study: "optuna.Study", folder: Path, best: SweepTrial, config_of: SettingsToConfig, terminal: Terminal
) -> dict[str, Any] | None:
    """Train the best settings as a whole run, test included, unless that is done; None if another process does it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "winner.lock", timeout=0):
            done: dict[str, Any] = study.user_attrs.get("winner", {})
            if done.get("trial") == best.number:
                return done
            terminal.head(f"\nThe best, trial {best.number}, trained as a whole run")
            command = ["finetune", "train", str(folder / "best.yaml")]
            result = train_config(config_of(best.settings), command=command, terminal=terminal)
            test = result.metrics.to_json() if result.metrics else None
            scores = {key: test[key] for key in ("n", "accuracy", "log_loss")} if test else None
            winner = {"trial": best.number, "run": str(result.run.path), "test": scores}
            study.set_user_attr("winner", winner)
            return winner
    except Timeout:
        return None
