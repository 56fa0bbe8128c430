"""What a training keeps in its run folder, so that a killed run continues where it was.

run.json      where the run comes from, what was decided on the way, the seconds by stage (`read_run_facts`)
RunJournal    checkpoints, history and decisions, as `fit_phases` hands them over
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import finetune
from finetune.config import Config
from finetune.data import Dataset
from finetune.evaluation import LinearProbe, draw_lr_curve
from finetune.runs import Checkpoint, ReadOnlyRun, Run
from finetune.training.journal import Journal, PhaseResult
from finetune.training.lr_finder import LearningRateCurve
from finetune.utils import Terminal, describe_device, library_versions, sha256_of, write_bytes, write_json

if TYPE_CHECKING:
    from finetune.training.loop import Trainer

RESERVE = 0.05  # of a time budget, for steps that turn out slower than they were
FINAL_SECONDS = 15.0  # of a time budget, for calibration, report and saving


def read_run_facts(run: Run) -> dict[str, Any]:
    """run.json: versions, command, seed, device, hash of the weights, seconds by stage. Empty if there is none yet."""
    try:
        facts: dict[str, Any] = json.loads(run.run_json.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def write_run_facts(run: Run, **changed: Any) -> None:
    """Change some of the facts in run.json; versions and device are always those of now."""
    if isinstance(run, ReadOnlyRun):
        return
    environment = {
        "versions": {"finetune": finetune.__version__, **library_versions()},
        "device": describe_device(),
        "machine": platform.platform(),
        "python": sys.version.split()[0],
    }
    write_json(run.run_json, {**read_run_facts(run), **environment, **changed})


class Stopwatch:
    """Seconds by stage, over all restarts of a run."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._before, self._started = sum(self.seconds.values()), time.monotonic()

    @property
    def elapsed(self) -> float:
        """All seconds since the beginning, also those between the stages; of earlier starts those of the stages."""
        return self._before + time.monotonic() - self._started

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of `stage`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started


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
        # The names, in a checkpoint, of the logits of the head alone for these very images.
        self._head_keys = {}
        for split in ("validation", "test"):
            digest = sha256_of(dataset.hashes[at].encode() for at in dataset.indices(split))
            self._head_keys[split] = f"head_logits/{split}/{digest[:16]}"
        arrays = checkpoint.arrays if checkpoint else {}
        self._kept = {key: arrays[key] for key in self._head_keys.values() if key in arrays}

    @property
    def head_logits(self) -> dict[str, np.ndarray] | None:
        """Logits (images of the split, classes) of the head alone, by split, if phases came after it."""
        came_later = any(phase["epochs"] for phase in self.run.phases[1:])
        if len(self._kept) < len(self._head_keys) or not came_later:
            return None
        return {split: self._kept[key] for split, key in self._head_keys.items()}

    def save_checkpoint(self, name: str, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        if self.writes:
            self.run.save_checkpoint(name, {**arrays, **self._kept}, state)

    def append_history(self, row: Mapping[str, Any]) -> None:
        self.run.append_history(row)

    def finish_phase(self, trainer: "Trainer", result: PhaseResult) -> None:
        if trainer.phase.index == 0 and self.config.fine_tune and self.writes:
            for split, key in self._head_keys.items():
                self._kept[key] = trainer.logits(self.dataset.indices(split))
        self.run.finish_phase(dataclasses.asdict(result))

    # --- what trial steps and the linear probe have shown

    def settled(self, phase: str) -> dict[str, Any]:
        settings: dict[str, Any] = read_run_facts(self.run).get("settled", {}).get(phase, {})
        return settings

    def note_learning_rate(self, phase: str, curve: LearningRateCurve) -> None:
        if self.writes:
            self.run.figures.mkdir(exist_ok=True)
            figure = draw_lr_curve(curve.rates, curve.losses, curve.chosen)
            write_bytes(self.run.figures / f"learning_rate_{phase}.png", figure)
        self.terminal.say(f"{phase}: learning rate {curve.chosen:g}, chosen by trial steps")
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
        end_seconds: float = read_run_facts(self.run).get("budget", {}).get("end_seconds", 0.0)
        return seconds_for_training(self.config.time_budget, self.watch.elapsed) - end_seconds


def config_as_trained(config: Config, run: Run) -> Config:
    """`config` with the learning rates and numbers of epochs that were settled before each phase."""
    settled = read_run_facts(run).get("settled", {})
    names = [phase["name"] for phase in run.phases]
    head, *fine_tune = (
        phase.model_copy(update=settled.get(name, {}))
        for name, phase in zip(names, (config.head, *config.fine_tune), strict=True)
    )
    return config.model_copy(update={"head": head, "fine_tune": tuple(fine_tune)})


def seconds_for_training(time_budget: float, elapsed: float) -> float:
    """What is left of a time budget for features, phases and test after `elapsed` seconds."""
    return time_budget * (1 - RESERVE) - elapsed - FINAL_SECONDS
