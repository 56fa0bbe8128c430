"""How far a training has come, and what it leaves behind so that it can be resumed.

`Journal` keeps nothing, as a trial of a sweep wants it; `experiment.RunJournal` keeps all of it in the run folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from finetune.evaluation import LinearProbe
    from finetune.runs import Checkpoint
    from finetune.training.loop import Trainer
    from finetune.training.lr_finder import LearningRateCurve


@dataclass
class TrainingState:
    """Where a phase stands; together with the variables this is all that a resumed run needs."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # over all phases, the axis of TensorBoard
    loss_sum: float = 0.0
    correct: float = 0  # predictions of this epoch, so far
    seen: int = 0
    seconds: float = 0.0  # of this epoch
    baseline: dict[str, float] = field(default_factory=dict)  # {"loss", "accuracy"} on validation, to be beaten
    best: dict[str, float] = field(default_factory=dict)  # the same and "epoch", of the best epoch
    waited: int = 0  # epochs since the best one
    lowest_loss: float = 0.0  # on validation
    standstill: int = 0  # epochs since the best one, or since that with the lowest loss

    @property
    def has_begun(self) -> bool:
        return self.epoch > 0 or self.batch > 0


@dataclass(frozen=True)
class PhaseResult:
    """What a phase came to; `validation` is measured with the weights that were kept."""

    name: str
    epochs: int
    best_epoch: int  # 0: no epoch beat the weights that the phase began with, and those were kept
    validation: dict[str, float]


class Journal:
    """What a training leaves behind, and continues from. This one keeps nothing, as a trial of a sweep wants it."""

    checkpoint: "Checkpoint | None" = None  # where to continue

    def save_checkpoint(self, name: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None: ...

    def append_history(self, row: Mapping[str, Any]) -> None: ...

    def finish_phase(self, trainer: "Trainer", result: PhaseResult) -> None: ...

    def settled(self, phase: str) -> dict[str, Any]:
        """The settings of `phase` that trial steps chose before an interruption."""
        return {}

    def note_learning_rate(self, phase: str, curve: "LearningRateCurve") -> None: ...

    def note_epochs(self, phase: str, epochs: int, planned: int, seconds_per_epoch: float) -> None: ...

    def note_linear_probe(self, probe: "LinearProbe | None") -> None: ...

    def seconds_left(self) -> float | None:
        """What is left of a time budget; None without one."""
        return None
