"""The test of a run, on made predictions: copies count once, and what validation promised is checked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from finetune.data import Dataset
from finetune.evaluation import describe_copies, evaluate_on_test, fit_decisions, task_for, wilson_interval
from finetune.evaluation.metrics import multiclass_metrics

CLASSES = ("cat", "dog", "owl")


class Known:
    """A classifier whose probabilities are known; `path` is the number of the image."""

    thresholds = np.full(3, 0.5)

    def __init__(self, probabilities):
        self.rows = probabilities

    def probabilities(self, paths, *, progress=None):
        yield 0, self.rows[[int(Path(path).name) for path in paths]], {}


def made(validation, test, copies=0, seed=0):
    """A data set with so many different images, the first test image `copies` times more, and logits for all of them.

    The labels are drawn from the softmax of the logits.
    """
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (validation + test, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(logits, axis=1)])
    of = np.append(np.arange(validation + test), np.full(copies, validation))
    dataset = Dataset(
        name="x",
        root=Path("/x"),
        classes=CLASSES,
        names=tuple(map(str, range(len(of)))),
        labels=labels[of],
        splits=np.append(np.ones(validation, np.int8), np.full(test + copies, 2, np.int8)),
        hashes=tuple(str(number) * 16 for number in of),
    )
    return dataset, logits[of], slice(validation), slice(validation, None)


def measured(dataset, logits, validation, head=None):
    decisions = fit_decisions(logits[validation], dataset.labels[validation])
    rows = softmax(logits / decisions.temperature, axis=1)
    return evaluate_on_test(Known(rows), dataset, decisions, rows[validation], head)


def test_copies_count_once_in_every_figure():
    dataset, logits, validation, test = made(60, 50, copies=30)
    result = measured(dataset, logits, validation)
    correct = logits[test].argmax(axis=1) == dataset.labels[test]
    assert result.metrics.accuracy == wilson_interval(int(correct[:50].sum()), 50)
    assert result.metrics.confusion.sum() == result.gap.test_n == 50
    assert (result.validation.n, result.gap.validation_n) == (60, 60)
    assert len(result.probabilities) == 80  # predictions.csv has all files
    assert describe_copies(dataset, "test").startswith("The test split has 80 files, but only 50 different images")
    assert describe_copies(dataset, "validation") == ""


def test_the_head_is_calibrated_as_the_whole_is():
    dataset, logits, validation, test = made(400, 400)
    head = {"validation": 3 * logits[validation], "test": 3 * logits[test]}  # as good, and three times too sure
    result = measured(dataset, logits, validation, head)
    assert result.head_metrics.log_loss == pytest.approx(result.metrics.log_loss, abs=0.01)
    raw = multiclass_metrics(softmax(3 * logits[test], axis=1), dataset.labels[test], CLASSES)
    assert raw.log_loss > result.head_metrics.log_loss + 0.2  # what stood there before
    assert (result.paired.p_value, result.paired.difference) == (1, 0)


def test_labels_of_the_head_have_thresholds_of_their_own():
    random = np.random.default_rng(0)
    labels = (random.random((300, 3)) < 0.3).astype(np.uint8)
    logits = 4.0 * labels - 2 + random.normal(0, 1, labels.shape)
    splits = np.repeat([1, 2], 150).astype(np.int8)
    names = tuple(map(str, range(300)))
    dataset = Dataset("x", Path("/x"), CLASSES, names, labels, splits, tuple(name * 16 for name in names))
    shifted = logits - 3  # as good, but nearly all below 0.5
    decisions = fit_decisions(logits[:150], labels[:150])
    rows = task_for(dataset.label_type).probabilities(logits / decisions.temperature)
    known = Known(rows)
    known.thresholds = np.array(decisions.thresholds)
    head = {"validation": shifted[:150], "test": shifted[150:]}
    result = evaluate_on_test(known, dataset, decisions, rows[:150], head)
    assert abs(result.paired.difference) < 0.05
    assert "thresholds" in [check.fitted for check in result.checks]


def test_a_run_without_test_images_still_knows_its_validation_accuracy():
    dataset, logits, validation, _ = made(60, 0)
    result = measured(dataset, logits, validation)
    assert (result.metrics, result.gap, list(result.checks), result.probabilities.shape) == (None, None, [], (0, 3))
    assert result.validation.n == 60


def test_what_was_fitted_on_validation_images_unlike_the_others_is_called_unreliable():
    """Validation is nearly all correct, as with photos of one shelf; three of four test images are."""
    random = np.random.default_rng(0)
    dataset, _, validation, _ = made(400, 314)
    chosen = random.integers(0, 3, 714)
    wrong = np.append(random.random(400) < 0.02, random.random(314) < 0.26)
    labels = np.where(wrong, (chosen + 1) % 3, chosen)
    logits = np.eye(3)[chosen] * random.uniform(1, 4, (714, 1))
    dataset = replace(dataset, labels=labels)
    decisions = fit_decisions(logits[validation], labels[validation])
    rows = softmax(logits / decisions.temperature, axis=1)
    result = evaluate_on_test(Known(rows), dataset, decisions, rows[validation])
    assert result.gap.differs
    assert {check.fitted: check.holds for check in result.checks} == {"temperature": False, "precision": False}
