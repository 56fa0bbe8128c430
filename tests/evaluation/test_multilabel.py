"""The figures where an image has any number of labels, held against scikit-learn and cases computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, f1_score

from finetune.evaluation import calibration, metrics as evaluation, multilabel, report as reporting, score_logits


def some_answers(n=200, classes=4, seed=0):
    random = np.random.default_rng(seed)
    labels = (random.random((n, classes)) < 0.3).astype(np.uint8)
    scores = 1 / (1 + np.exp(-(2 * labels - 1 + random.normal(0, 1.2, labels.shape))))
    return scores.round(2), labels  # rounded: some are equal


def test_the_figures_are_those_of_scikit_learn():
    scores, labels = some_answers()
    thresholds = np.array([0.4, 0.5, 0.6, 0.7])
    result = multilabel.multilabel_metrics(scores, labels, "abcd", thresholds)
    said = scores >= thresholds
    assert result.mean_average_precision.value == pytest.approx(average_precision_score(labels, scores))
    assert result.micro_f1.value == pytest.approx(f1_score(labels, said, average="micro"))
    assert result.macro_f1.value == pytest.approx(f1_score(labels, said, average="macro"))
    assert result.exact.value == (said == labels).all(axis=1).mean()
    for share in (result.mean_average_precision, result.micro_f1, result.accuracy):
        assert share.low < share.value < share.high
        assert share.high - share.low < 0.2
    json.dumps(result.to_json(), allow_nan=False)


def test_accuracy_is_what_two_sets_have_in_common():
    said = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
    true = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    assert multilabel.jaccard(said, true).tolist() == [0.5, 1, 0, 0]


def test_a_label_without_images_says_nothing_and_spoils_nothing():
    scores, labels = some_answers()
    labels[:, 1] = 0
    result = multilabel.multilabel_metrics(scores, labels, "abcd", 0.5)
    assert result.per_class[1].average_precision is None
    rest = [0, 2, 3]
    expected = average_precision_score(labels[:, rest], scores[:, rest])
    assert result.mean_average_precision.value == pytest.approx(expected)


def test_thresholds_have_the_highest_f1():
    scores, labels = some_answers()
    for at, threshold in enumerate(multilabel.best_thresholds(scores, labels)):
        best = max(f1_score(labels[:, at], scores[:, at] >= cut) for cut in np.arange(0.005, 1, 0.01))
        assert f1_score(labels[:, at], scores[:, at] >= threshold) == pytest.approx(best)
    logits = logit(scores.clip(0.01, 0.99))
    fitted = calibration.fit_decisions(logits, labels, calibrate=False)
    assert fitted == calibration.Decisions(thresholds=multilabel.best_thresholds(expit(logits), labels))


def test_mistakes_are_labels_wrongly_predicted_or_missed_the_surest_first():
    scores = np.array([[0.9, 0.2], [0.05, 0.1]])
    result = multilabel.multilabel_mistakes(
        scores, np.array([[0, 0], [1, 1]]), ["sun", "sea"], [Path("x"), Path("y")], 0.5
    )
    assert [(one.predicted, one.about, one.true) for one in result] == [
        ("not sun", "sun", "sun|sea"),
        ("sun", "sun", "none"),
        ("not sea", "sea", "sun|sea"),
    ]
    assert result[0].probability == pytest.approx(0.95)


def test_losses_and_temperature_are_those_of_the_sigmoid():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (3000, 3))
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    expected = -np.log(np.where(labels, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))).mean(axis=1)
    np.testing.assert_allclose(score_logits(logits, labels).losses, expected)
    assert calibration.fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.1)


def test_a_test_without_mistakes_has_a_report():
    labels = np.array([[1, 0], [0, 1], [0, 0]])
    result = multilabel.multilabel_metrics(labels * 0.9, labels, ("sun", "sea"), 0.5)
    assert result.exact.value == result.mean_average_precision.value == result.mean_average_precision.high == 1
    assert result.mean_average_precision.low == evaluation.wilson_interval(3, 3).low
    assert set(reporting.class_figure(result)) == {"labels"}
    assert evaluation.paired_test(np.array([0.5, 1.0]), np.array([1.0, 1.0])).difference == 0.25
