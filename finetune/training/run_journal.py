"""What a training keeps in its run folder, so that a killed run continues where it was."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.config import Config
from finetune.data import Dataset
from finetune.evaluation import LinearProbe, draw_lr_curve, task_for
from finetune.runs import Checkpoint, Run
from finetune.training.journal import Journal, PhaseResult
from finetune.training.lr_finder import LearningRateCurve
from finetune.training.run_facts import Stopwatch, read_run_facts, write_run_facts
from finetune.utils import Terminal, sha256_of, write_bytes

if TYPE_CHECKING:
    from finetune.training.loop import Trainer

RESERVE = 0.05  # of a time budget, for steps that turn out slower than they were
FINAL_SECONDS = 15.0  # of a time budget, for test, report and saving


class RunJournal(Journal):
    """Checkpoints, history and decisions of a training in the folder of its run.

    Where several processes train together, only rank 0 has a run that it writes; the `ReadOnlyRun` of the others
    ignores what it is given.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        dataset: Dataset,
        checkpoint: Checkpoint | None,
        *,
        watch: Stopwatch,
        terminal: Terminal,
        writes: bool,
    ) -> None:
        self.run, self.config, self.dataset = run, config, dataset
        self.checkpoint = checkpoint
        self.watch, self.terminal, self.writes = watch, terminal, writes
        self._head_key = _head_predictions_key(dataset)
        arrays = checkpoint.arrays if checkpoint else {}
        self._kept = {key: array for key, array in arrays.items() if key == self._head_key}

    @property
    def head_predictions(self) -> np.ndarray | None:
        """Probabilities of the test images (n, classes) by the head alone, if phases came after it."""
        return self._kept.get(self._head_key)

    def save_checkpoint(self, name: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        if self.writes:
            self.run.save_checkpoint(name, {**arrays, **self._kept}, state)

    def append_history(self, row: Mapping[str, Any]) -> None:
        self.run.append_history(row)

    def finish_phase(self, trainer: "Trainer", result: PhaseResult) -> None:
        if trainer.phase.index == 0 and self.config.fine_tune and self.writes:
            logits = trainer.logits(self.dataset.indices("test"))
            self._kept = {self._head_key: task_for(self.dataset.label_type).probabilities(logits)}
        self.run.finish_phase(dataclasses.asdict(result))

    # --- what trial steps and the linear probe have told

    def settled(self, phase: str) -> dict[str, Any]:
        settings: dict[str, Any] = read_run_facts(self.run).get("settled", {}).get(phase, {})
        return settings

    def note_learning_rate(self, phase: str, curve: LearningRateCurve) -> None:
        if self.writes:
            self.run.figures.mkdir(exist_ok=True)
            figure = draw_lr_curve(curve.rates, curve.losses, curve.chosen)
            write_bytes(self.run.figures / f"learning_rate_{phase}.png", figure)
        self.terminal.say(f"{phase}: learning rate {curve.chosen:g}, found by trial")
        self._settle(phase, learning_rate=curve.chosen)

    def note_epochs(self, phase: str, epochs: int, planned: int, seconds_per_epoch: float) -> None:
        if epochs < planned:
            self.terminal.warn(
                f"{phase}: {epochs} epochs instead of {planned}, to keep to time_budget "
                f"({seconds_per_epoch:.0f} s each, {self.config.time_budget:.0f} s for everything)"
            )
        self._settle(phase, epochs=epochs)

    def _settle(self, phase: str, **settings: Any) -> None:
        settled = read_run_facts(self.run).get("settled", {})
        write_run_facts(self.run, settled={**settled, phase: {**settled.get(phase, {}), **settings}})

    def note_linear_probe(self, probe: LinearProbe | None) -> None:
        if not self.writes:
            return
        if probe is None:
            self.terminal.say("Too many classes for a logistic regression: the head starts from random numbers.")
            return
        self.terminal.say(f"Baseline, logistic regression on the features: validation accuracy {probe.accuracy:.1%}")
        facts = {"accuracy": probe.accuracy, "loss": probe.loss, "penalty": probe.penalty}
        write_run_facts(self.run, baseline=facts)

    def seconds_left(self) -> float | None:
        if not self.config.time_budget:
            return None
        return self.config.time_budget * (1 - RESERVE) - self.watch.total - FINAL_SECONDS


def _head_predictions_key(dataset: Dataset) -> str:
    """Name, in a checkpoint, of what the head alone predicted for these very test images."""
    return f"head_answers/{sha256_of(dataset.hashes[at].encode() for at in dataset.indices('test'))[:16]}"
