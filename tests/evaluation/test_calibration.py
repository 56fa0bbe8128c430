"""The temperature: what it undoes, and that it stays 1 where it helps nobody."""

import numpy as np
import pytest

from finetune.evaluation import calibration
from finetune.evaluation.metrics import multiclass_metrics


@pytest.fixture
def honest():
    """Logits (4000, 5) whose softmax is the very distribution that the labels were drawn from."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 5))
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    return logits, np.array([random.choice(5, p=row) for row in probabilities])


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_logits_too_sure_or_too_shy(honest, factor):
    logits, labels = honest
    result = calibration.fit_temperature(logits * factor, labels)
    assert result == pytest.approx(factor, rel=0.1)
    assert multiclass_metrics(softmax(logits * factor / result), labels, "abcde").calibration_error < 0.03


def test_the_temperature_stays_finite_where_all_is_right():
    logits = np.eye(3)[np.arange(30) % 3] * 5
    assert 0.05 < calibration.fit_temperature(logits, np.arange(30) % 3) < 1


@pytest.mark.parametrize("n", [40, 300])
def test_the_temperature_mostly_stays_1_where_the_probabilities_are_true(n):
    random = np.random.default_rng(0)
    left = 0
    for _ in range(40):
        logits = random.normal(0, 2, (n, 3))
        labels = np.array([random.choice(3, p=row) for row in softmax(logits)])
        left += calibration.choose_temperature(logits, labels) == 1
    assert left >= 28  # a fit that ignores cross-validation leaves none


def test_cross_validation_keeps_a_temperature_that_helps(honest):
    logits, labels = honest
    assert calibration.choose_temperature(3 * logits[:500], labels[:500]) == pytest.approx(3, rel=0.15)
    assert calibration.choose_temperature(logits[:1], labels[:1]) == 1


def test_decisions_are_fitted_as_far_as_they_are_wanted(honest):
    logits, labels = honest[0][:300] * 3, honest[1][:300]
    decisions = calibration.fit_decisions(logits, labels)
    assert decisions.temperature == calibration.choose_temperature(logits, labels)
    assert (decisions.confidences[-1].images, decisions.thresholds) == (300, ())
    assert calibration.fit_decisions(logits, labels, calibrate=False) == calibration.Decisions()
