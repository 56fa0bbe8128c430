"""Which weights a phase ends with, and when it ends: theory and simulation, without a network."""

from types import SimpleNamespace

import numpy as np
import pytest
from training_setup import validation

from finetune.config import FineTuneConfig
from finetune.evaluation import ValidationScores
from finetune.training.journal import TrainingState
from finetune.training.selection import SIGNIFICANCE, Selection, chance_of_gain, is_significant
from finetune.utils import UsageError

RUNS = 150


class Weight:
    """A variable of one number."""

    def __init__(self):
        self.value = -1.0

    def numpy(self):
        return np.float32(self.value)

    def assign(self, value):
        self.value = float(value)


def run_phase(answers, baseline=None, **settings):
    """A phase whose epochs score as `answers` say; the weight of an epoch is its number, and 0 before the first."""
    weight, state = Weight(), TrainingState()
    selection = Selection([weight], FineTuneConfig(**{"epochs": len(answers), **settings}), state)
    weight.value = 0
    if baseline:
        selection.set_baseline(baseline)
    answers = iter(answers)
    while not selection.finished:
        state.epoch += 1
        weight.value = state.epoch
        selection.consider(next(answers))
    selection.decide()
    return SimpleNamespace(epochs=state.epoch, kept=int(weight.value), best=state.best)


def random_epochs(rng, epochs, drift=0.0, images=200, classes=5):
    """Whether each image is predicted correctly (epochs, images): scores that wander, labels that mean nothing.

    `drift` is by how much the score of the true class rises in each epoch.
    """
    steps = rng.normal(size=(epochs, images, classes)) * 0.3
    steps[0] = rng.normal(size=(images, classes))
    steps[1:, :, 0] += drift
    return steps.cumsum(axis=0).argmax(axis=2) == 0


def kept(rng, looks, drift=0.0):
    """How often a phase is kept, by our test; and by a test of every epoch as if it were the only one."""
    ours = alone = 0
    for _ in range(RUNS):
        correct = random_epochs(rng, looks + 1, drift).astype(float)
        gains = correct[1:] - correct[0]
        ours += is_significant(gains)
        alone += any(is_significant([gain]) for gain in gains)
    return ours / RUNS, alone / RUNS


@pytest.mark.slow
def test_ten_looks_at_chance_succeed_no_more_often_than_one():
    one, _ = kept(np.random.default_rng(1), looks=1)
    ten, each_alone = kept(np.random.default_rng(2), looks=10)
    assert one == pytest.approx(SIGNIFICANCE, abs=0.06)
    assert ten == pytest.approx(SIGNIFICANCE, abs=0.06)
    assert each_alone > 0.28


@pytest.mark.slow
def test_a_true_gain_is_found_nearly_as_often_as_before():
    """Accuracy rises from 20 to 29 % in ten epochs, three standard errors."""
    ours, each_alone = kept(np.random.default_rng(3), looks=10, drift=0.04)
    assert ours > 0.8
    assert ours > each_alone - 0.1


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (1, 0), (0, 1), (2, 0), (3, 1), (5, 4), (5, 2), (9, 4), (20, 10), (6, 20)]
)
def test_one_look_is_the_one_standard_error_rule(gained, lost):
    gain = np.repeat([1.0, -1.0, 0.0], [gained, lost, 50])
    assert is_significant([gain]) == (gained - lost > np.sqrt(gained + lost))


def test_looks_at_the_same_epoch_are_one_look():
    gain = np.repeat([1.0, -1.0, 0.0], [9, 4, 50])
    assert chance_of_gain([gain] * 10) == pytest.approx(chance_of_gain([gain]))


def test_the_first_epochs_do_not_drown_what_the_last_have_reached():
    """As on digits, where 179 of 183 images were right and 182 are, on the test images 99.4 % instead of 95.3."""
    wandering = [np.repeat([1.0, -1.0, 0.0], [won, lost, 183 - won - lost]) for won, lost in ((3, 8), (2, 13), (3, 7))]
    reached = np.repeat([1.0, 0.0, -1.0], [4, 178, 1])
    assert is_significant([*wandering, *wandering, *[reached] * 6])
    assert chance_of_gain([wandering[1], reached]) < 2 * chance_of_gain([reached])


def test_noise_is_that_of_pairs():
    """Losses that all fall a little are clearly better; one large change among many equal ones is not."""
    assert is_significant([np.full(50, 0.01)])
    assert not is_significant([np.eye(50)[0] * 5])


def test_the_best_epoch_is_kept_if_it_beats_the_beginning():
    result = run_phase([validation(1, accuracy) for accuracy in (0.4, 0.7, 0.65)], validation(1, 0.5))
    assert (result.kept, result.best["accuracy"]) == (2, 0.7)


def test_what_does_not_is_undone():
    result = run_phase([validation(1, accuracy) for accuracy in (0.4, 0.51, 0.3)], validation(0.9, 0.5))
    assert (result.kept, result.best) == (0, {"epoch": 0, "loss": pytest.approx(0.9), "accuracy": 0.5})


def test_without_a_beginning_that_is_worth_something_the_best_epoch_is_kept():
    assert run_phase([validation(1, accuracy) for accuracy in (0.4, 0.41, 0.3)]).kept == 2


def test_patience_counts_from_the_best_epoch_of_the_phase():
    """It falls at first and rises then, below the beginning for long: progress all the time."""
    rising = [validation(1, accuracy / 100) for accuracy in range(50, 70, 2)]
    result = run_phase(rising, validation(1, 0.6), patience=2)
    assert (result.epochs, result.kept) == (10, 10)
    assert run_phase([*rising[:3], *rising[:7]], validation(1, 0.6), patience=2).epochs == 5


def test_a_phase_at_a_standstill_that_would_be_undone_ends_early():
    flat = [validation(0.5 + at % 2 / 100, 0.9) for at in range(20)]
    result = run_phase(flat, validation(0.6, 0.9))
    assert (result.epochs, result.kept) == (6, 0)
    assert run_phase(flat).epochs == 20  # nothing to be beaten
    assert run_phase(flat, validation(0.6, 0.8)).epochs == 20  # it has beaten it
    falling = [validation(0.5 - at / 100, 0.9) for at in range(20)]
    assert run_phase(falling, validation(0.6, 0.9)).epochs == 20  # the loss says that more is to come


def test_a_standstill_during_the_warm_up_ends_nothing():
    """Its rate is still to come: what few images are trained for is half warm-up."""
    flat = [validation(0.5, 0.9)] * 20
    assert run_phase(flat, validation(0.6, 0.9), warmup=0.5).epochs == 10 + 5


@pytest.mark.parametrize(("correct", "epochs"), [(30, 0), (29, 0), (28, 6)])
def test_a_phase_that_cannot_win_does_not_begin(correct, epochs):
    """One image among 30 could be chance, whatever the phase does."""

    def scores(count):
        return ValidationScores(np.ones(30), np.arange(30) < count)

    assert run_phase([scores(correct)] * 20, scores(correct)).epochs == epochs


def test_a_phase_that_an_older_finetune_has_begun_is_not_continued_in_another_way():
    selection = Selection([Weight()], FineTuneConfig(), TrainingState())
    with pytest.raises(UsageError, match="an older finetune had begun"):
        selection.restore({"best/0": np.zeros(1), "mark": np.zeros(3)})
