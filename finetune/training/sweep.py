"""Many trainings of one config, to find the settings that suit the data: `finetune sweep`, on Optuna.

    finetune sweep flowers --set head.learning_rate=1e-4..1e-2 --set head.optimizer=adam,sgd --trials 20

The same command again goes on with the sweep, and beside one that runs it helps: each trial is one place in a database
(sqlite in the sweep's folder, or a server with `--storage`), and whoever is free takes the next. A process that dies
stops its heartbeat; then its trial is marked failed and run again. Optuna's sampler (TPE, Bergstra et al. 2011) is
seeded by the config's seed and the number of the trial.

The validation images choose, accuracy first, the loss between equals. The test images are looked at once, for the
winner, which is trained again as a whole run.

    sweeps/flowers/
      trials.sqlite     the trials                      best.yaml     the config of the best trial so far
      trials.csv        the same, to read               sweep.png     the trials, and what each setting did
      tensorboard/      HPARAMS                         winner.lock   held by who trains the winner
"""

import csv
import dataclasses
import io
import json
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from finetune.config import Config, dump_config, fill_open_keys, load_config
from finetune.data import Dataset, data_facts, open_dataset
from finetune.evaluation import display_path, draw_sweep, wilson_interval
from finetune.runs import refuse_run_folder
from finetune.training.callbacks import write_hparams
from finetune.training.experiment import train_config
from finetune.training.resume import flatten
from finetune.training.search_space import Choice, Range, SearchSpace, grid_points, present_point
from finetune.training.tryout import Bench
from finetune.utils import (
    ConfigError,
    ProgressCallback,
    ResourceError,
    Stop,
    Stopped,
    Terminal,
    TrainingDiverged,
    UsageError,
    csv_cell,
    deterministic_ops,
    explain_os_errors,
    sha256_of,
    stop_on_signals,
    tf,
    write_bytes,
    write_text,
)

if TYPE_CHECKING:
    import optuna

OUTPUT = Path("sweeps")
HEARTBEAT = 5  # seconds between signs of life of a trial
GRACE = 60  # seconds without one until it counts as dead; a busy machine may hold a living one up for a while
PATIENCE = 60  # seconds to wait for the database while others write
GO_ON = "The finished trials are kept. Go on with the same command."
FEWEST = 8  # different scores, before anything is said about what made the difference
SHOWN = 10  # trials in the table of the terminal
TRIES = 4  # before what the database says is believed
WORST = 0.0  # score of a trial that came to nothing
FAILURES = (TrainingDiverged, ConfigError, MemoryError, tf.errors.ResourceExhaustedError)  # of a trial, not of all


@dataclass(frozen=True)
class SweepTrial:
    """One finished trial. `settings` are as a config would have them; without `problem` it has its two figures."""

    number: int
    settings: Mapping[str, str]
    seconds: float
    accuracy: float | None = None  # on the validation images, with the weights that were kept
    loss: float | None = None
    best_epoch: int | None = None  # of the last phase; 0: what the phase began with was kept
    problem: str = ""

    @property
    def rank(self) -> tuple[float, float, int]:
        """The smallest is the best: accuracy, then loss, then the earlier one."""
        if self.accuracy is None or self.loss is None:
            return 1.0, 0.0, self.number
        return -self.accuracy, self.loss, self.number


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: its trials by number, the best of them, and the run that was trained with its settings."""

    folder: Path
    n: int  # validation images
    trials: tuple[SweepTrial, ...]
    best: SweepTrial
    importance: Mapping[str, float]  # key -> share of the differences between trials that it explains, 0..1
    winner: Mapping[str, Any] | None  # {"trial", "run", "test": {...} or None}; None: another process trains it

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "validation_pictures": self.n,
            "best": self.best.number,
            "winner": self.winner,
            "importance": dict(self.importance),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }


def run_sweep(
    source: str | Path,
    overrides: Sequence[str],
    config: Config,
    space: SearchSpace,
    *,
    trials: int,
    folder: Path | None = None,
    storage: str | None = None,
    terminal: Terminal | None = None,
) -> SweepResult:
    """Runs what is left of a sweep of so many trials, together with whoever else is at it, and trains the winner.

    `config` is what `space.check` made of `source` and `overrides`. The sweep is known by its folder (default:
    sweeps/NAME); `storage` is the URL of a database on a server, which keeps it under the folder's name. Raises
    UsageError when there is another sweep, Stopped when asked to stop, and what a training raises that is not the
    fault of one trial's settings.
    """
    terminal = terminal or Terminal(quiet=True)
    folder = (folder or OUTPUT / config.name).absolute()
    refuse_run_folder(folder, config.data.folder)
    with stop_on_signals() as stop, _quiet_optuna():
        with terminal.stage("Checking the images") as update:
            dataset = open_dataset(config.data, seed=config.seed, progress=partial(_tell, update, stop))
        facts = data_facts(dataset, config.device)

        def load(settings: Mapping[str, str]) -> Config:
            varied = [f"{key}={value}" for key, value in settings.items()]
            return fill_open_keys(load_config(source, [*overrides, *varied]), facts)[0]

        with _explained_storage(storage):
            every = grid_points(space, trials)
            now = [point] if (point := present_point(config, space)) else []  # first of all: it is what must be beaten
            study = _open(folder, storage, _identity(config, space, dataset), [*now, *every])
            trials = len(every) or trials
            bench = Bench(dataset, say=terminal.say)
            work = _Work(study, space, trials, config.seed, folder, bench, terminal, stop, load)
            terminal.head(f"Sweep {display_path(folder)}: {len(work.finished())} of {trials} trials are done")
            with deterministic_ops(config.deterministic), terminal.stage("Trials") as work.update:
                work.run()
            work.publish()
            found = work.finished()
            best, importance = _best(found), _importance(study, space)
            write_bytes(folder / "sweep.png", _draw(found, best, space, importance))
            winner = _train_winner(study, folder, best, load, terminal)
    return SweepResult(folder, len(dataset.indices("validation")), tuple(found), best, importance, winner)


def _tell(update: ProgressCallback, stop: Stop, done: int, total: int) -> None:
    update(done, total)
    stop.check()


# ------------------------------------------------------------------------------------------------- the database


def _open(
    folder: Path, url: str | None, identity: Mapping[str, Any], first: Sequence[dict[str, Any]]
) -> "optuna.Study":
    """The study in the database, new or begun, with the trials that come before any the sampler thinks of.

    UsageError if it is about something else.
    """
    import optuna
    from filelock import FileLock

    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "open.lock"):  # two that begin at once would both make the tables
        study = optuna.create_study(
            study_name=folder.name, storage=_patiently(folder, url), direction="maximize", load_if_exists=True
        )
        if "sweep" not in study.user_attrs:
            study.set_user_attr("sweep", identity)
        _refuse_other_sweep(folder, study.user_attrs["sweep"], identity)
        for point in first:
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def _patiently(folder: Path, url: str | None) -> "optuna.storages.RDBStorage":
    """The database; another machine may be making the tables at this very moment, where no lock of ours holds it."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for _ in range(TRIES):
        try:
            return _storage(folder, url)
        except (IntegrityError, OperationalError, ProgrammingError):
            time.sleep(1)
    return _storage(folder, url)


def _storage(folder: Path, url: str | None) -> "optuna.storages.RDBStorage":
    import optuna
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import ArgumentError

    here = URL.create("sqlite", database=str(folder / "trials.sqlite")).render_as_string()
    options = {"connect_args": {"timeout": PATIENCE}} if (url or here).startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(
            url or here,
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=_again,
        )
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "the driver"
        raise UsageError(
            f"--storage: {missing}, which speaks to this database, is not installed here.",
            hint="pip install 'psycopg[binary]' for postgresql://, pymysql for mysql+pymysql://",
        ) from error
    except ArgumentError as error:
        raise UsageError(
            "--storage: not the URL of a database.",
            hint="For example postgresql://user:password@host/database; without it a file in the sweep's folder.",
        ) from error


def _again(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
    """Puts the settings of a trial that did not come to its end back into the queue."""
    if trial.params:
        study.enqueue_trial(trial.params)


@contextmanager
def _explained_storage(url: str | None) -> Iterator[None]:
    """Errors of the database in words; its URL, which may hold a password, is in none of them."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip().split("\n")[0]
        where = "--storage" if url else "trials.sqlite"
        raise ResourceError(f"{where}: the database does not answer: {reason}") from error


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna calls the heartbeat experimental, each time, and logs every trial; we say what there is to say."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _identity(config: Config, space: SearchSpace, dataset: Dataset) -> dict[str, Any]:
    """What all trials of a sweep have in common; with anything else they could not be compared."""
    values = config.model_dump(mode="json", exclude={"output", "name", "cache", "tensorboard"})
    images = sha256_of(
        part.encode() for at, split in enumerate(dataset.splits) for part in (dataset.hashes[at], str(split))
    )
    varied = {one.key: one.text for one in space}
    return {"vary": varied, "images and splits": images[:16], "config": json.loads(json.dumps(values))}


def _refuse_other_sweep(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    then, asked = (dict(flatten(one)) for one in (before, now))
    if changed := [key for key in {**then, **asked} if then.get(key) != asked.get(key)]:
        lines = "".join(f"\n  {key.removeprefix('config.')}: {then.get(key)}, now {asked.get(key)}" for key in changed)
        raise UsageError(
            f"{display_path(folder)} holds another sweep, and its trials could not be compared with new ones:{lines}",
            hint="Give the command of then, or another folder with --output.",
        )


# --------------------------------------------------------------------------------------------------- the trials


class _Surplus(Exception):
    """All places of the sweep were taken while this trial was being asked for."""


class _Repeated(Exception):
    """The sampler thought of settings that it had thought of before, and a training would only say the same again."""


@dataclass
class _Work:
    """One process at work on a sweep."""

    study: "optuna.Study"
    space: SearchSpace
    places: int
    seed: int
    folder: Path
    bench: Bench
    terminal: Terminal
    stop: Stop
    load: Callable[[Mapping[str, str]], Config]  # the whole config of a trial with these settings
    update: ProgressCallback = lambda done, total: None
    waiting: bool = False
    repeated: bool = False

    def run(self) -> None:
        """Takes place after place until all are done, here or elsewhere."""
        while len(found := self.finished()) < self.places:
            self.update(len(found), self.places)
            self.stop.check(GO_ON)
            if len(self._taken()) < self.places:
                self._run_one()
            else:
                self._wait()
        self.update(len(found), self.places)

    def finished(self) -> list[SweepTrial]:
        """By number; those that were killed or stopped are not among them."""
        from optuna.trial import TrialState

        return [_trial(one) for one in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]

    def _taken(self, before: float = math.inf) -> "list[optuna.trial.FrozenTrial]":
        """The trials that are done or at work; with `before`, those with a smaller number."""
        from optuna.trial import TrialState

        states = (TrialState.RUNNING, TrialState.COMPLETE)
        return [one for one in self.study.get_trials(deepcopy=False, states=states) if one.number < before]

    def _run_one(self) -> None:
        self.waiting = False
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(_Surplus, _Repeated))
        except ValueError as error:
            if "Cannot tell" not in str(error):  # Optuna's way of saying that somebody else has ended the trial
                raise
            self.terminal.warn(f"A trial gave no sign of life for {GRACE} s, so another process has begun it again.")
        if not self.repeated:
            self.publish()

    def _wait(self) -> None:
        """For trials of other processes; what they leave behind when they die comes back into the queue."""
        import optuna
        from optuna.trial import TrialState

        if not self.waiting:
            self.terminal.say("The last trials are at work in other processes: waiting for them")
            self.waiting = True
        time.sleep(0.5)
        optuna.storages.fail_stale_trials(self.study)
        late = datetime.now() - timedelta(seconds=GRACE)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Killed between the two steps of taking a place and giving the first sign of life, it has no heartbeat.
            if "worker" not in trial.user_attrs and trial.datetime_start and trial.datetime_start < late:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _objective(self, trial: "optuna.Trial") -> float:
        import optuna

        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        others = self._taken(before=trial.number)
        if len(others) >= self.places:
            raise _Surplus
        # Seeded by the trial's number and not once: two processes would draw the same numbers.
        seed = (self.seed + 7919 * trial.number) % 2**32
        thoughtful = optuna.samplers.TPESampler(seed=seed, multivariate=False)
        self.study.sampler = optuna.samplers.RandomSampler(seed) if self.repeated else thoughtful
        settings = {one.key: one.suggest(trial) for one in self.space}
        self.repeated = any(other.user_attrs.get("settings") == settings for other in others)
        if self.repeated:
            raise _Repeated
        trial.set_user_attr("settings", settings)
        started = time.monotonic()
        try:
            outcome = self._measure(self.load(settings))
        except FAILURES as error:
            outcome = {"problem": " ".join(str(error).split("\n")[0].split())[:300] or "out of memory"}
        except Stopped:
            _again(self.study, self.study.trials[trial.number])
            raise
        outcome["seconds"] = round(time.monotonic() - started, 3)
        trial.set_user_attr("outcome", outcome)
        done = SweepTrial(trial.number, settings, **outcome)
        best = min([*self.finished(), done], key=lambda one: one.rank)
        self.terminal.say(_line(done) + "  best so far" * (best is done and not done.problem))
        return self._score(done)

    def _measure(self, config: Config) -> dict[str, Any]:
        found = self.bench.measure(config, check_stop=partial(self.stop.check, GO_ON))
        return {**found.validation.means, "best_epoch": found.phases[-1].best_epoch}

    def _score(self, trial: SweepTrial) -> float:
        """What the sampler maximises: accuracy, and between equals, for one image is worth 1 / n, the loss."""
        if trial.accuracy is None or trial.loss is None:
            return WORST
        return trial.accuracy + 1 / (1 + trial.loss) / len(self.bench.dataset.indices("validation"))

    def publish(self) -> None:
        """Leaves in the folder what is known so far: the table, HPARAMS, and the best config."""
        found = self.finished()
        _write_table(self.folder / "trials.csv", found, self.space)
        good = [trial for trial in found if trial.accuracy is not None]
        for trial in good:
            board = self.folder / "tensorboard" / f"trial-{trial.number:04}"
            if not board.exists():
                accuracies = {"validation": trial.accuracy or 0.0}
                write_hparams(board, board.name, self.load(trial.settings), accuracies, also=trial.settings)
        if good:
            best = min(good, key=lambda trial: trial.rank)
            remark = f"# The best of {len(found)} trials of a sweep, by its validation images: {_line(best)}\n"
            write_text(self.folder / "best.yaml", remark + dump_config(self.load(best.settings)))


def _trial(stored: "optuna.trial.FrozenTrial") -> SweepTrial:
    return SweepTrial(stored.number, stored.user_attrs["settings"], **stored.user_attrs["outcome"])


def _best(found: Sequence[SweepTrial]) -> SweepTrial:
    best = min(found, key=lambda trial: trial.rank)
    if best.accuracy is None:
        raise TrainingDiverged(
            f"None of the {len(found)} trials came to an end. The first one: {found[0].problem}",
            hint="Vary something else: trials.csv has the reason of each.",
        )
    return best


def _line(trial: SweepTrial) -> str:
    settings = "  ".join(f"{key}={value}" for key, value in trial.settings.items())
    if trial.accuracy is None or trial.loss is None:
        return f"trial {trial.number:>3}  {settings}  failed: {trial.problem}"
    figures = f"accuracy {trial.accuracy:.2%}, loss {trial.loss:.4f}"
    return f"trial {trial.number:>3}  {settings}  {figures}, {trial.seconds:.1f} s"


# -------------------------------------------------------------------------------------------------- the results


def _write_table(path: Path, found: Sequence[SweepTrial], space: SearchSpace) -> None:
    """A row per trial, the best first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [one.key for one in space]
    figures = ("accuracy", "loss", "best_epoch", "seconds")
    writer.writerow(["trial", *keys, *(f"validation_{name}" if name in figures[:2] else name for name in figures),
                     "problem"])  # fmt: skip
    for trial in sorted(found, key=lambda one: one.rank):
        values = [getattr(trial, name) for name in figures]
        cells = [trial.number, *(trial.settings[key] for key in keys), *values, trial.problem]
        writer.writerow(csv_cell("" if value is None else str(value)) for value in cells)
    write_text(path, text.getvalue())


def _importance(study: "optuna.Study", space: SearchSpace) -> dict[str, float]:
    """How much of the differences between the trials each key explains (PED-ANOVA, Watanabe et al. 2023), in 0..1.

    Empty where nothing can be told: too few trials, or all alike.
    """
    import optuna

    scores = {trial.value for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))}
    if len(scores) < FEWEST or len(space) < 2:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {key: round(float(share), 4) for key, share in found.items() if math.isfinite(share)}


def _draw(found: Sequence[SweepTrial], best: SweepTrial, space: SearchSpace, importance: Mapping[str, float]) -> bytes:
    def value(trial: SweepTrial, one: Range | Choice) -> float | str:
        return float(trial.settings[one.key]) if isinstance(one, Range) else trial.settings[one.key]

    settings = {one.key: [value(trial, one) for trial in found] for one in space}
    scales = [one.key for one in space if isinstance(one, Range) and one.log]
    accuracies = [trial.accuracy for trial in found]
    return draw_sweep(accuracies, settings, best=found.index(best), logarithmic=scales, importance=importance)


def _train_winner(
    study: "optuna.Study",
    folder: Path,
    best: SweepTrial,
    load: Callable[[Mapping[str, str]], Config],
    terminal: Terminal,
) -> dict[str, Any] | None:
    """Trains the best settings as a whole run, test included, unless that is done; None if another process does it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "winner.lock", timeout=0)
    try:
        with lock:
            before: dict[str, Any] = study.user_attrs.get("winner", {})
            if before.get("trial") == best.number:
                return before
            terminal.head(f"\nThe best, trial {best.number}, trained as a whole run")
            command = ["finetune", "train", str(folder / "best.yaml")]
            result = train_config(load(best.settings), command=command, terminal=terminal)
            test = result.metrics.to_json() if result.metrics else None
            known = {key: test[key] for key in ("n", "accuracy", "log_loss")} if test else None
            winner = {"trial": best.number, "run": str(result.run.path), "test": known}
            study.set_user_attr("winner", winner)
            return winner
    except Timeout:
        return None


# ------------------------------------------------------------------------------------------------------ showing


def show_sweep(result: SweepResult, *, as_json: bool = False, terminal: Terminal) -> None:
    """Prints the trials, the best first, and what came of the winner; or everything as JSON."""
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        _print(result)
    folder = display_path(result.folder)
    terminal.say(f"All trials: {folder / 'trials.csv'}   figure: {folder / 'sweep.png'}")
    terminal.say(f"Best config: {display_path(result.folder / 'best.yaml')}")
    if result.winner is None:
        terminal.say("Another process is training the winner.")


def _print(result: SweepResult) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="dim")
    for title in ("trial", "validation", "loss", *result.best.settings, "seconds"):
        table.add_column(title, justify="right", overflow="fold")
    ranked = sorted(result.trials, key=lambda trial: trial.rank)
    for trial in ranked[:SHOWN]:
        right = "failed" if trial.accuracy is None else f"{trial.accuracy:.2%}"
        loss = "" if trial.loss is None else f"{trial.loss:.4f}"
        table.add_row(str(trial.number), right, loss, *trial.settings.values(), f"{trial.seconds:.1f}")
    console.print(table)
    if len(ranked) > SHOWN:
        console.print(f"[dim]and {len(ranked) - SHOWN} more[/]")
    for remark in _remarks(result):
        console.print(f"\n{remark}")


def _remarks(result: SweepResult) -> Iterator[str]:
    """What must be known to read the table rightly."""
    right = round((result.best.accuracy or 0) * result.n)
    interval = wilson_interval(right, result.n)
    near = sum(trial.accuracy is not None and trial.accuracy >= interval.low for trial in result.trials)
    yield (
        f"{near} of {len(result.trials)} trials lie within the 95 % interval of the best one ({interval.low:.1%} to "
        f"{interval.high:.1%}, n = {result.n:,}): between these, chance may have chosen."
    )
    unmoved = sum(trial.best_epoch == 0 for trial in result.trials)
    if unmoved:
        yield f"{unmoved} kept what they began with: no epoch beat it by more than noise."
    if result.importance:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in result.importance.items())
        yield f"What made the difference: {shares}"
    if result.winner and result.winner["test"]:
        test = result.winner["test"]["accuracy"]
        yield (
            f"The winner on the test images, which had no part in the choice: {test['value']:.1%} "
            f"({test['low']:.1%} to {test['high']:.1%}, n = {result.winner['test']['n']:,})"
        )
