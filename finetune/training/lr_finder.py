"""What a few trial steps tell before a phase begins: a good learning rate, and how long an epoch takes.

`learning_rate: auto`: a short test before a phase finds the rate (Smith 2017, Cyclical Learning Rates, section 3.3).

The rate grows from step to step while the loss is watched; where the loss is lowest it is still falling at a tenth of
that rate, which is taken (the rule of fastai's `lr_find`). The weights are put back after every trial.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetune.config import PhaseConfig as Settings
from finetune.training.trainer import Phase, Trainer, weights_kept

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9  # of the moving average of the losses
ENOUGH = 4.0  # times the lowest loss: the test ends
MARGIN = 10.0
TIMED = 4  # steps that tell how long an epoch takes
Make = Callable[[Settings], Trainer]


@dataclass(frozen=True)
class LearningRateCurve:
    """Smoothed loss at each rate that was tried, and the rate that was chosen."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: float


def find_learning_rate(phase: Phase, make: Make) -> LearningRateCurve:
    """Tries rates on `phase`; `make(settings)` gives its PhaseTraining with a constant rate, on the same weights."""
    trainer = make(_constant(phase, LOWEST))
    with weights_kept(trainer.above.variables):
        rates, losses = _try(trainer)
    return LearningRateCurve(tuple(rates), tuple(losses), choose_learning_rate(rates, losses))


def seconds_per_epoch(phase: Phase, make: Make) -> float:
    """How long an epoch of `phase` will take here, validation included: a few steps are timed and undone."""
    trainer = make(_constant(phase, LOWEST))
    steps: list[float] = []
    with weights_kept(trainer.above.variables):
        for inputs, labels in itertools.islice(trainer.epoch_batches(), TIMED + 1):
            started = time.monotonic()
            trainer.try_step(inputs, labels)
            steps.append(time.monotonic() - started)
        started = time.monotonic()
        trainer.validate()
        validation = time.monotonic() - started
    return float(statistics.median(steps[1:] or steps)) * trainer.steps_per_epoch + validation


def _constant(phase: Phase, rate: float) -> Settings:
    return phase.settings.model_copy(update={"learning_rate": rate, "schedule": "constant", "warmup": 0.0})


def _try(trainer: Trainer) -> tuple[list[float], list[float]]:
    rates: list[float] = []
    losses: list[float] = []
    average, step = 0.0, 0
    growing = np.geomspace(LOWEST, HIGHEST, STEPS)
    while step < STEPS:
        for inputs, labels in trainer.epoch_batches():
            trainer.optimizer.learning_rate.assign(growing[step])
            loss, _, _, finite = trainer.try_step(inputs, labels)
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smooth = average / (1 - SMOOTHING ** (step + 1))
            if not finite or (losses and smooth > ENOUGH * min(losses)):
                return rates, losses
            rates.append(float(growing[step]))
            losses.append(float(smooth))
            step += 1
            if step == STEPS:
                break
    return rates, losses


def choose_learning_rate(rates: list[float], losses: list[float]) -> float:
    """A tenth of the rate with the lowest loss, the first tenth of the curve (still settling) aside; 2 digits."""
    settled = len(losses) // 10
    lowest = settled + int(np.argmin(losses[settled:])) if losses else 0
    rate = (rates[lowest] if rates else LOWEST * MARGIN) / MARGIN
    return float(f"{rate:.1e}")
