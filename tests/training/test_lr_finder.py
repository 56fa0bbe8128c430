"""The test that finds a learning rate."""

import numpy as np
import pytest
from bench import Bench, by_name

from finetune.training import lr_finder as rates, trainer as training


def test_a_tenth_of_the_lowest_point_is_chosen():
    tried = np.geomspace(1e-6, 1, 61).tolist()
    losses = [1.0 - 0.1 * k if k < 10 else 0.0 for k in range(61)]
    losses[:6] = [0.0] * 6  # still settling: not believed
    losses[30] = -1.0
    losses[31:] = [2.0] * 30
    assert rates.choose_learning_rate(tried, losses) == pytest.approx(tried[30] / 10, rel=0.05)
    assert rates.choose_learning_rate([], []) == 1e-6


def test_the_test_leaves_the_weights_as_they_were_and_finds_a_rate_that_learns(settings):
    bench = Bench(settings)
    before = by_name(bench.classifier.model)

    def make(phase_settings):
        phase = training.Phase(0, "head", phase_settings, bench.phases[0].cut, ())
        return training.Trainer(
            phase,
            bench.classifier,
            bench.sources[0],
            bench.dataset,
            config=bench.config,
            progress=training.TrainingState(),
        )

    curve = rates.find_learning_rate(bench.phases[0], make)
    after = by_name(bench.classifier.model)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert len(curve.rates) == len(curve.losses) > 20
    assert 1e-5 < curve.chosen < 1
