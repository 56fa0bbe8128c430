"""The trials of a sweep in a database, which several processes use: an Optuna study and all that can happen to it.

    with quiet_optuna(), explain_database_errors(url):
        study = open_study(folder, url, identity, first_trials)

Without a URL the database is a file in the sweep's folder. A running trial gives a sign of life every few seconds
(Optuna's heartbeat); the trial of a process that was killed does not, and is put back into the queue.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import flatten_config
from finetune.evaluation import display_path
from finetune.utils import ResourceError, UsageError, explain_os_errors

if TYPE_CHECKING:
    import optuna

HEARTBEAT_SECONDS = 5  # between two signs of life of a trial
GRACE_SECONDS = 60  # without a sign of life until a trial counts as dead; a busy machine may delay a living one
LOCK_SECONDS = 60  # to wait for sqlite while other processes write
CONNECT_ATTEMPTS = 5


def open_study(
    folder: Path,
    url: str | None,
    identity: Mapping[str, Any],
    first_trials: Sequence[dict[str, Any]],
    image_changes: str = "",
) -> "optuna.Study":
    """The study of `folder`, created if it is new, with `first_trials` in its queue.

    `identity` is what all trials of the sweep have in common. UsageError, with the differences, if the study in the
    database has another one; `image_changes` names the images that are not the same.
    """
    import optuna
    from filelock import FileLock

    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "open.lock"):  # two processes that start together would both create the tables
        study = optuna.create_study(
            study_name=folder.name,
            storage=_connect(folder, url),
            sampler=optuna.samplers.TPESampler(multivariate=False),  # which each trial replaces by a seeded one
            direction="maximize",
            load_if_exists=True,
        )
        if "sweep" not in study.user_attrs:
            study.set_user_attr("sweep", identity)
        before, now = dict(flatten_config(study.user_attrs["sweep"])), dict(flatten_config(identity))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            lines = [f"\n  {key.removeprefix('config.')}: {before.get(key)}, now {now.get(key)}" for key in changed]
            if image_changes:
                lines.append(f"\n  images: {image_changes}")
            raise UsageError(
                f"{display_path(folder)} holds another sweep, and its trials could not be compared with new ones:"
                f"{''.join(lines)}",
                hint="Give the same command as before, or another folder with --output.",
            )
        for params in first_trials:
            study.enqueue_trial(params, skip_if_exists=True)
    return study


def _connect(folder: Path, url: str | None) -> "optuna.storages.RDBStorage":
    """The database; tried again, because another machine may be creating the tables, which our lock cannot prevent."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for _ in range(CONNECT_ATTEMPTS - 1):
        try:
            return _storage(folder, url)
        except (IntegrityError, OperationalError, ProgrammingError):
            time.sleep(1)
    return _storage(folder, url)


def _storage(folder: Path, url: str | None) -> "optuna.storages.RDBStorage":
    import optuna
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import ArgumentError

    url = url or URL.create("sqlite", database=str(folder / "trials.sqlite")).render_as_string()
    sqlite = url.startswith("sqlite")
    try:
        return optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}} if sqlite else {"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "the driver"
        raise UsageError(
            f"--storage: {missing}, the driver for this database, is not installed here.",
            hint="pip install 'psycopg[binary]' for postgresql://, pymysql for mysql+pymysql://",
        ) from error
    except ArgumentError as error:
        raise UsageError(
            "--storage: not the URL of a database.",
            hint="For example postgresql://user:password@host/database; without it a file in the sweep's folder.",
        ) from error


def retry_trial(study: "optuna.Study", number: int) -> None:
    """Put the settings of a trial that was interrupted back into the queue."""
    import optuna

    optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[number])


def retry_dead_trials(study: "optuna.Study") -> None:
    """Mark the trials of killed processes as failed, and put their settings back into the queue."""
    import optuna
    from optuna.trial import TrialState

    optuna.storages.fail_stale_trials(study)
    # A process that was killed between taking a trial and its first sign of life has left no heartbeat to miss.
    late = datetime.now() - timedelta(seconds=GRACE_SECONDS)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not has_started(trial) and trial.datetime_start and trial.datetime_start < late:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def note_start(trial: "optuna.Trial", worker: str) -> None:
    """Write into the database that `worker` has started `trial`."""
    trial.set_user_attr("worker", worker)
    trial.set_user_attr("started", trial.number)


def has_started(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a process has begun to work on `trial`. A retried trial has the attributes of the dead one, too."""
    return bool(trial.user_attrs.get("started") == trial.number)


@contextmanager
def explain_database_errors(url: str | None) -> Iterator[None]:
    """Turn errors of the database into a ResourceError. Its URL may hold a password, and is in no message."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip().split("\n")[0]
        where = "--storage" if url else "trials.sqlite"
        raise ResourceError(f"{where}: the database does not answer: {reason}") from error


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log of every trial, and its repeated warning that the heartbeat is experimental."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
