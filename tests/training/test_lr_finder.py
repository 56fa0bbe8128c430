"""The test that finds a learning rate."""

import numpy as np
import pytest
from training_setup import TrainingSetup, weights_by_name

from finetune.training.lr_finder import choose_learning_rate, find_learning_rate

pytestmark = pytest.mark.usefixtures("warm_cache")


def test_a_tenth_of_the_lowest_point_is_chosen():
    tried = np.geomspace(1e-6, 1, 61).tolist()
    losses = [1.0 - 0.1 * k if k < 10 else 0.0 for k in range(61)]
    losses[:6] = [0.0] * 6  # still settling: not believed
    losses[30] = -1.0
    losses[31:] = [2.0] * 30
    assert choose_learning_rate(tried, losses) == pytest.approx(tried[30] / 10, rel=0.05)
    assert choose_learning_rate([], []) == 1e-6


def test_the_test_leaves_the_weights_as_they_were_and_finds_a_rate_that_learns(settings):
    setup = TrainingSetup(settings)
    before = weights_by_name(setup.classifier.model)

    curve = find_learning_rate(setup.phases[0], lambda phase: setup.trainer(phase=phase))
    after = weights_by_name(setup.classifier.model)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert len(curve.rates) == len(curve.losses) > 20
    assert 1e-5 < curve.chosen < 1


def test_each_rate_is_tried_with_a_step_however_many_batches_make_one(settings):
    """Two batches with half the images each are one batch: the curves are equal."""
    settings["model"]["dropout"] = 0
    settings["data"]["split"] = {"train": 0.66, "validation": 0.2, "test": 0.14}
    settings["head"] |= {"optimizer": "sgd", "schedule": "constant", "batch_size": 22}
    whole = TrainingSetup(settings)
    halves = TrainingSetup({**settings, "head": {**settings["head"], "batch_size": 11, "accumulate": 2}})
    assert len(whole.dataset.indices("train")) == 44
    expected, found = (
        find_learning_rate(setup.phases[0], lambda phase, setup=setup: setup.trainer(phase=phase))
        for setup in (whole, halves)
    )
    assert found.rates == pytest.approx(expected.rates)
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    assert found.chosen == expected.chosen
