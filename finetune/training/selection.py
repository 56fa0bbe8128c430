"""Which weights a phase ends with: those of its best epoch, or those that it began with.

    selection.set_baseline(scores)      the weights of now are worth something, and must be beaten
    selection.consider(scores)          after each epoch: the best one is kept
    selection.finished                  nothing more is to be expected
    selection.decide()                  the best epoch, if it beats the beginning by more than chance

The best of many epochs looks better than a single one by luck alone, so chance is given as many looks as training had.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.config import PhaseConfig
from finetune.evaluation import ValidationScores
from finetune.training.journal import TrainingState
from finetune.training.model_state import assign_values
from finetune.utils import UsageError

SIGNIFICANCE = 0.16  # of a gain of one standard error, as in the one-standard-error rule (Breiman et al. 1984)
DRAWS, DRAWS_AT_ONCE = 1000, 100
STANDSTILL = 0.25  # fraction of the epochs after which a phase without progress, and without success so far, ends;
# those of the warm-up do not count, whose steps are too small for progress and large enough to disturb
LEAST_STANDSTILL = 3  # epochs


class Selection:
    """Keeps the weights `variables` (of the model above the cut) of the best epoch and of the beginning of a phase.

    What it counts is in `state`, so that a checkpoint has it.
    """

    def __init__(self, variables: Sequence[Any], settings: PhaseConfig, state: TrainingState) -> None:
        self._variables, self._settings, self._state = variables, settings, state
        self._best_weights: list[np.ndarray] = []
        self._baseline_weights: list[np.ndarray] = []
        self._baseline_scores = np.empty(0)  # (n,) of the validation images when the phase began
        self._gains: list[np.ndarray] = []  # (n,) for each epoch: by how much its scores are higher

    def set_baseline(self, scores: ValidationScores) -> None:
        """The phase has to beat the weights of now, which have these scores."""
        self._state.baseline = dict(scores.means)
        self._baseline_scores = scores.scores(self._settings.monitor)
        self._baseline_weights = self._weights()

    def consider(self, scores: ValidationScores) -> None:
        """Keep the weights of now, which have these scores, if no epoch of the phase was better."""
        state, monitor = self._state, self._settings.monitor
        if state.baseline:
            self._gains.append(scores.scores(monitor) - self._baseline_scores)
        if state.best and not is_better(scores, state.best, monitor):
            state.waited += 1
        else:
            state.best, state.waited = {"epoch": state.epoch, **scores.means}, 0
            self._best_weights = self._weights()
        warming_up = state.epoch <= self._settings.warmup * self._settings.epochs
        if warming_up or state.waited == 0 or scores.loss < state.lowest_loss:
            state.standstill = 0
        else:
            state.standstill += 1
        state.lowest_loss = scores.loss if state.epoch == 1 else min(scores.loss, state.lowest_loss)

    @property
    def finished(self) -> bool:
        """All epochs are done, the user's `patience` is spent, or the phase would be undone and gets no better."""
        settings, state = self._settings, self._state
        if state.epoch >= settings.epochs or (settings.patience is not None and state.waited >= settings.patience):
            return True
        if not state.baseline:
            return False
        if not self._gains:  # even if all images were right, it might be chance
            perfect = 1.0 if settings.monitor == "accuracy" else 0.0
            return not is_significant([perfect - self._baseline_scores])
        enough = max(LEAST_STANDSTILL, STANDSTILL * settings.epochs)
        return state.standstill >= enough and not is_significant(self._gains)

    def decide(self) -> None:
        """Put the weights that the phase ends with into the model; their scores are in `state.best`."""
        if self._state.baseline and not is_significant(self._gains):
            assign_values(self._variables, self._baseline_weights)
            self._state.best = {"epoch": 0, **self._state.baseline}
        elif self._best_weights:
            assign_values(self._variables, self._best_weights)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold besides the state."""
        weights = {"best": self._best_weights, "baseline": self._baseline_weights, "gains": self._gains}
        arrays = {f"{name}/{at}": value for name, values in weights.items() for at, value in enumerate(values)}
        return {**arrays, "baseline_scores": self._baseline_scores}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from the `arrays` of a checkpoint; UsageError for one of finetune 0.1 in the middle of a phase."""
        if "baseline_scores" not in arrays:
            raise UsageError(
                "This run was interrupted in the middle of a phase that an older finetune had begun.",
                hint="Resume it with that version, or start a new run.",
            )

        def read(name: str) -> list[np.ndarray]:
            return [arrays[f"{name}/{at}"] for at in range(sum(key.startswith(f"{name}/") for key in arrays))]

        self._best_weights, self._baseline_weights, self._gains = read("best"), read("baseline"), read("gains")
        self._baseline_scores = arrays["baseline_scores"]

    def _weights(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._variables]


def is_better(new: ValidationScores, best: Mapping[str, float], monitor: str) -> bool:
    """By accuracy, the loss deciding between equals; or by loss alone."""
    if monitor == "accuracy" and new.accuracy != best["accuracy"]:
        return new.accuracy > best["accuracy"]
    return new.loss < best["loss"]


def is_significant(gains: Sequence[np.ndarray]) -> bool:
    """Whether the best epoch gained more than chance would let the best of as many gain (see `chance_of_gain`).

    If it is in the second half, the looks are those of the second half: the first epochs, at high rates, are steps on
    the way. (So the chance is a little more than `SIGNIFICANCE`: a test measures it.)
    """
    half = len(gains) // 2
    is_late = half > 0 and int(np.argmax([gain.sum() for gain in gains])) >= half
    return chance_of_gain(gains[half:] if is_late else gains) < SIGNIFICANCE


def chance_of_gain(gains: Sequence[np.ndarray]) -> float:
    """How likely chance alone makes the best of some epochs gain as much as the best of these.

    `gains` has for each epoch by how much the score of each image rose, (n,). Without a true change every image would
    as well have lost what it has gained, in every epoch; so signs are drawn for the images, and the gain of the
    best epoch, in its standard errors, is compared with the largest one then (the permutation of the largest
    statistic; Westfall & Young 1993). Epochs that resemble each other thus count as little more than one, and one that
    was much worse does not drown the others. Equal gains count half (mid-p; Lancaster 1961).
    """
    table = np.array([gain for gain in gains if gain.any()])  # (epochs, n)
    if not len(table):
        return 1.0
    table = table[:, table.any(axis=0)]
    best = int(table.sum(axis=1).argmax())
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    reached = table[best].sum()
    random = np.random.default_rng(0)
    chance = 0.0
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        signs = 2.0 * random.integers(0, 2, (DRAWS_AT_ONCE, table.shape[1]), np.int8) - 1
        drawn = (signs @ table.T).max(axis=1)
        chance += np.sum(drawn > reached + 1e-9) + np.sum(np.abs(drawn - reached) <= 1e-9) / 2
    return float(chance / DRAWS)
