"""What validation promised, checked on test: the gap of the accuracies, the temperature, thresholds and precisions."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import fisher_exact

from finetune.evaluation import Decisions, metrics, reliability
from finetune.models import RiskCoveragePoint


def gap(validation, of_validation, test, of_test):
    """From numbers of correct predictions."""
    splits = []
    for correct, n in ((validation, of_validation), (test, of_test)):
        splits += [metrics.wilson_interval(correct, n), np.arange(n) < correct]
    return reliability.compare_splits(*splits)


def logits_of(n=600, classes=3, seed=0):
    """Logits (n, classes) and labels drawn from their very softmax."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes))
    return logits, np.array([random.choice(classes, p=row) for row in softmax(logits, axis=1)])


def test_a_gap_that_people_met_is_said_with_what_it_means():
    found = gap(384, 400, 233, 314)  # consecutive photos of one shelf
    assert found.differs
    assert found.p_value == pytest.approx(fisher_exact([[384, 16], [233, 81]]).pvalue)
    assert found.difference == pytest.approx(233 / 314 - 384 / 400)
    for words in ("96.0% (n = 400)", "74.2% (n = 314)", "21.8 points apart, more than chance", "photos of one series"):
        assert words in found.sentence()
    assert found.to_json()["differs"] is True


def test_a_gap_of_chance_is_called_so_and_one_the_other_way_means_something_else():
    assert "no more than chance apart (p = " in gap(46, 50, 43, 50).sentence()
    assert not gap(46, 50, 43, 50).differs
    assert "easier" in gap(300, 400, 390, 400).sentence()


def test_a_temperature_that_spoils_the_test_probabilities_is_unreliable():
    logits, labels = logits_of()
    sharp = reliability.check_temperature(0.4, softmax(logits / 0.4, axis=1), labels)  # they were right as they were
    assert not sharp.holds
    assert "unreliable" in sharp.sentence
    for key, scores in (("without", logits), ("with", logits / 0.4)):
        expected = metrics.multiclass_metrics(softmax(scores, axis=1), labels, ("a", "b", "c"))
        assert sharp.facts["log_loss"][key] == pytest.approx(expected.log_loss)
        assert sharp.facts["calibration_error"][key] == pytest.approx(expected.calibration_error)
    useful = reliability.check_temperature(3.0, softmax(logits, axis=1), labels)  # they were three times too sure
    assert useful.holds
    assert useful.facts["log_loss"]["with"] < useful.facts["log_loss"]["without"]
    assert useful.to_json()["value"] == 3.0


def test_a_temperature_a_little_off_is_not_called_unreliable():
    unreliable = 0
    for seed in range(40):
        logits, labels = logits_of(200, seed=seed)
        unreliable += not reliability.check_temperature(1.05, softmax(logits / 1.05, axis=1), labels).holds
    assert unreliable <= 4


def test_thresholds_of_labels_that_are_worse_than_a_half_are_unreliable():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (300, 4))
    labels = (random.random(logits.shape) < expit(logits)).astype(np.uint8)
    wrong = reliability.check_thresholds((0.95, 0.97, 0.96, 0.98), expit(logits), labels)
    right = reliability.check_thresholds((0.45, 0.5, 0.4, 0.5), expit(logits), labels)
    assert (wrong.holds, right.holds) == (False, True)
    assert "do not hold" in wrong.sentence
    assert wrong.facts["macro_f1"]["half"] == right.facts["macro_f1"]["half"]


def point(threshold, correct, images, of):
    return RiskCoveragePoint(threshold, correct / images, images / of, images)


def test_a_precision_that_the_test_images_do_not_keep_is_unreliable():
    curve = (point(0.9, 500, 503, 600), point(0.3, 540, 600, 600))
    (broken,) = reliability.check_precision(curve, (point(0.9, 246, 310, 314),))
    assert not broken.holds
    assert "79.4% of 310 on the test images" in broken.sentence
    assert [promise["precision"] for promise in broken.facts["promises"]] == [0.9, 0.95, 0.98]
    assert not any(promise["holds"] for promise in broken.facts["promises"])
    (held,) = reliability.check_precision(curve, (point(0.9, 307, 310, 314),))
    assert held.holds
    assert reliability.check_precision((point(0.3, 30, 60, 60),), ()) == []


def test_all_that_was_fitted_is_checked_and_nothing_else():
    logits, labels = logits_of(300)
    rows = softmax(logits, axis=1)
    assert reliability.check_decisions(Decisions(), (), rows, labels) == []
    fitted = Decisions(1.3, (), (point(0.5, 300, 300, 300),))
    checks = reliability.check_decisions(fitted, (point(0.5, 280, 300, 300),), rows, labels)
    assert [check.fitted for check in checks] == ["temperature", "precision"]
    several = (np.random.default_rng(0).random((300, 3)) < rows).astype(np.uint8)
    checks = reliability.check_decisions(Decisions(1.0, (0.4, 0.5, 0.6)), (), rows, several)
    assert [check.fitted for check in checks] == ["thresholds"]
