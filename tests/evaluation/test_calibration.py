"""Temperature, and when to say nothing."""

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


def test_the_table_of_confidences_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 1])
    table = calibration.risk_coverage(probabilities, labels)
    assert table == ((0.9, 1.0, 0.25), (0.8, pytest.approx(2 / 3), 0.75), (0.6, 0.75, 1.0))
    assert calibration.threshold_for_precision(table, 0.7) == table[2]
    assert calibration.threshold_for_precision(table, 0.9) == table[0]
    assert calibration.threshold_for_precision(table[1:], 0.9) is None


def test_the_table_is_short_however_many_images_there_are(honest):
    logits, labels = honest
    table = calibration.risk_coverage(softmax(logits), labels)
    assert len(table) <= calibration.MAX_POINTS
    assert table[-1][2] == 1
    assert table[-1][1] == pytest.approx((logits.argmax(1) == labels).mean())
