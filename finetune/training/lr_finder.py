"""What a few trial steps tell before a phase begins: a good learning rate, and how long an epoch takes.

`learning_rate: auto` is chosen by a short test (Smith 2017, Cyclical Learning Rates, section 3.3): the rate grows from
step to step while the loss is watched; where the loss is lowest it is still falling at a tenth of that rate, which is
taken (the rule of fastai's `lr_find`). The weights are put back after every trial.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from finetune.training.model_state import weights_restored
from finetune.training.phases import Phase

if TYPE_CHECKING:
    from finetune.training.loop import Trainer

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9  # of the moving average of the losses
TOO_HIGH = 4.0  # times the lowest loss: the test ends
MARGIN = 10.0
TIMED_STEPS = 4


@dataclass(frozen=True)
class LearningRateCurve:
    """Smoothed loss at each rate that was tried, and the rate that was chosen."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: float


def find_learning_rate(phase: Phase, make_trainer: "Callable[[Phase], Trainer]") -> LearningRateCurve:
    """Try growing learning rates on `phase`; `make_trainer` gives a Trainer that begins with the weights of now."""
    trainer = make_trainer(_at_constant_rate(phase))
    with weights_restored(trainer.above.variables):
        rates, losses = _try_rates(trainer)
    return LearningRateCurve(tuple(rates), tuple(losses), choose_learning_rate(rates, losses))


def seconds_per_epoch(phase: Phase, make_trainer: "Callable[[Phase], Trainer]") -> float:
    """How long an epoch of `phase` will take here, validation included: a few steps are timed and undone."""
    trainer = make_trainer(_at_constant_rate(phase))
    steps: list[float] = []
    with weights_restored(trainer.above.variables):
        for inputs, labels in islice(trainer.epoch_batches(), TIMED_STEPS + 1):
            started = time.monotonic()
            trainer.try_step(inputs, labels)
            steps.append(time.monotonic() - started)
        started = time.monotonic()
        trainer.validate()
        validation = time.monotonic() - started
    without_compiling = steps[1:] or steps
    return float(statistics.median(without_compiling)) * trainer.steps_per_epoch + validation


def _at_constant_rate(phase: Phase) -> Phase:
    changes = {"learning_rate": LOWEST, "schedule": "constant", "warmup": 0.0}
    return replace(phase, settings=phase.settings.model_copy(update=changes))


def _try_rates(trainer: "Trainer") -> tuple[list[float], list[float]]:
    """Rates that were tried, an optimizer step with each (of `accumulate` batches), and the smoothed losses."""
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    batches = _endless_batches(trainer)
    for rate in np.geomspace(LOWEST, HIGHEST, STEPS):
        trainer.optimizer.learning_rate.assign(rate)
        results = [trainer.try_step(*batch) for batch in islice(batches, trainer.settings.accumulate)]
        average = SMOOTHING * average + (1 - SMOOTHING) * statistics.mean(result.loss for result in results)
        smooth = average / (1 - SMOOTHING ** (len(losses) + 1))
        if not all(result.finite for result in results) or (losses and smooth > TOO_HIGH * min(losses)):
            break
        rates.append(float(rate))
        losses.append(float(smooth))
    return rates, losses


def _endless_batches(trainer: "Trainer") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of the current epoch, again and again."""
    while True:
        yield from trainer.epoch_batches()


def choose_learning_rate(rates: list[float], losses: list[float]) -> float:
    """A tenth of the rate with the lowest loss, the first tenth of the curve (still settling) aside; 2 digits."""
    settled = len(losses) // 10
    lowest = settled + int(np.argmin(losses[settled:])) if losses else 0
    rate = (rates[lowest] if rates else LOWEST * MARGIN) / MARGIN
    return float(f"{rate:.1e}")
