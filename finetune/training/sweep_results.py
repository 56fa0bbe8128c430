"""What comes of a sweep: its trials, the best first, as objects, as trials.csv, and as sweep.png."""

import csv
import dataclasses
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.training.search_space import SearchSpace
from finetune.utils import csv_cell, write_text

if TYPE_CHECKING:
    import optuna

LEAST_SCORES = 8  # different ones that it takes to say which setting made the difference


@dataclass(frozen=True)
class SweepTrial:
    """One finished trial. `settings` are as a config has them. One that failed has a `problem` and no accuracy."""

    number: int
    settings: Mapping[str, str]
    seconds: float
    accuracy: float | None = None  # on the validation images, with the weights that were kept
    loss: float | None = None
    best_epoch: int | None = None  # of the last phase; 0: the weights that the phase began with were kept
    problem: str = ""

    @property
    def rank(self) -> tuple[float, float, int]:
        """For sorting, the best trial first: by accuracy, then by loss, then the earlier one."""
        if self.accuracy is None or self.loss is None:
            return 1.0, 0.0, self.number
        return -self.accuracy, self.loss, self.number

    def __str__(self) -> str:
        settings = "  ".join(f"{key}={value}" for key, value in self.settings.items())
        if self.accuracy is None or self.loss is None:
            return f"trial {self.number:>3}  {settings}  failed: {self.problem}"
        scores = f"accuracy {self.accuracy:.2%}, loss {self.loss:.4f}"
        return f"trial {self.number:>3}  {settings}  {scores}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: its trials by number, the best of them, and the run that was trained with its settings."""

    folder: Path
    n: int  # validation images
    trials: tuple[SweepTrial, ...]
    best: SweepTrial
    importance: Mapping[str, float]  # key -> fraction of the differences between trials that it explains
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


def write_trials(path: Path, trials: Sequence[SweepTrial], space: SearchSpace) -> None:
    """A row per trial, the best first."""
    keys = [dimension.key for dimension in space]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *keys, "validation_accuracy", "validation_loss", "best_epoch", "seconds", "problem"])
    for trial in sorted(trials, key=lambda trial: trial.rank):
        scores = [trial.accuracy, trial.loss, trial.best_epoch, trial.seconds, trial.problem]
        row = [trial.number, *(trial.settings[key] for key in keys), *scores]
        writer.writerow("" if value is None else csv_cell(str(value)) for value in row)
    write_text(path, text.getvalue())


def parameter_importance(study: "optuna.Study", space: SearchSpace) -> dict[str, float]:
    """The fraction of the differences between trials that each key explains (PED-ANOVA, Watanabe et al. 2023).

    Empty if there are too few trials, or if all have the same score.
    """
    import optuna

    scores = {trial.value for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))}
    if len(scores) < LEAST_SCORES or len(space) < 2:
        return {}
    importances = optuna.importance.get_param_importances(study)
    return {key: round(float(value), 4) for key, value in importances.items() if math.isfinite(value)}


def draw_trials(study: "optuna.Study") -> bytes:
    """A PNG: validation accuracy against each setting, colour by number of the trial; without those that failed."""
    import matplotlib as mpl
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_slice

    def accuracy(trial: "optuna.trial.FrozenTrial") -> float:
        value = trial.user_attrs["outcome"]["accuracy"]
        return math.nan if value is None else float(value)

    target = io.BytesIO()
    # Optuna changes the style of all later figures, too; a `$` in a value begins no formula.
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to set identical", UserWarning)
        plot_slice(study, target=accuracy, target_name="validation accuracy")
        figure = pyplot.gcf()
        for axes in figure.axes:
            if axes.get_xscale() == "log":
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter("")
        figure.savefig(target, format="png", bbox_inches="tight", metadata={"Software": None})
        pyplot.close(figure)
    return target.getvalue()
