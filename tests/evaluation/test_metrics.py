"""The numbers of the report, held against scikit-learn, published values and cases computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact, permutation_test, ttest_ind
from sklearn import metrics as sk

from finetune.evaluation import wilson_interval
from finetune.evaluation.metrics import (
    calibration_bins,
    calibration_error,
    expected_ece_if_calibrated,
    multiclass_metrics,
    multiclass_mistakes,
    paired_test,
    two_sample_p_value,
)
from finetune.utils import DataError

CLASSES = ("a", "b", "c")
# four images: right, right, wrong (b called a), right
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.3, 0.4, 0.3]])
LABELS = np.array([0, 1, 1, 1])


def random_case(n: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    logits = rng.normal(size=(n, c)) + 2.0 * np.eye(c)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels, tuple(f"class{i}" for i in range(c))


def test_by_hand() -> None:
    result = multiclass_metrics(PROBABILITIES, LABELS, CLASSES)
    assert result.n == 4
    assert result.correct == 3
    assert result.accuracy.value == 0.75
    assert result.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert result.log_loss == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.4]).mean())
    assert result.balanced_accuracy == pytest.approx((1 + 2 / 3) / 2)
    # confidences 0.7, 0.8, 0.6, 0.4 fall into four bins
    assert result.calibration_error == pytest.approx((0.3 + 0.2 + 0.6 + 0.6) / 4)
    assert result.mean_confidence == pytest.approx(0.625)
    assert result.confused_pairs() == [("b", "a", 1)]


@pytest.mark.parametrize(("n", "c"), [(300, 3), (500, 40)])
def test_equals_scikit_learn(n: int, c: int) -> None:
    probabilities, labels, classes = random_case(n, c)
    result = multiclass_metrics(probabilities, labels, classes)
    predicted = probabilities.argmax(axis=1)
    assert result.accuracy.value == pytest.approx(sk.accuracy_score(labels, predicted))
    assert result.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert result.log_loss == pytest.approx(sk.log_loss(labels, probabilities, labels=range(c)))
    assert result.confusion.tolist() == sk.confusion_matrix(labels, predicted, labels=range(c)).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(c), zero_division=0
    )
    assert [item.precision or 0 for item in result.per_class] == pytest.approx(precision)
    assert [item.recall.value if item.recall else 0 for item in result.per_class] == pytest.approx(recall)
    assert [item.f1 or 0 for item in result.per_class] == pytest.approx(f1)
    assert [item.n for item in result.per_class] == support.tolist()
    if c > 5:
        assert result.top5 is not None
        expected = sk.top_k_accuracy_score(labels, probabilities, k=5, labels=range(c))
        assert result.top5.value == pytest.approx(expected)


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), (low, high) in published.items():
        result = wilson_interval(successes, n)
        assert (result.low, result.high) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(7, 7).high == 1


def test_a_class_without_images_has_no_numbers() -> None:
    result = multiclass_metrics(PROBABILITIES, LABELS, CLASSES).to_json()["per_class"][2]
    assert (result.pop("class"), result.pop("n")) == ("c", 0)
    assert set(result) == {"precision", "recall", "recall_low", "recall_high", "f1"}
    assert set(result.values()) == {None}


def test_a_class_never_predicted_has_no_precision() -> None:
    result = multiclass_metrics(np.array([[1.0, 0.0], [0.9, 0.1]]), np.array([0, 1]), ("a", "b")).per_class[1]
    assert result.precision is None
    assert result.recall is not None
    assert (result.recall.value, result.f1) == (0, 0)


def test_top5_only_where_it_says_something() -> None:
    assert multiclass_metrics(*random_case(50, 5)).top5 is None
    assert multiclass_metrics(*random_case(50, 6)).top5 is not None


def test_equal_probabilities_count_as_argmax_counts() -> None:
    result = multiclass_metrics(np.full((10, 10), 0.1), np.arange(10), tuple("abcdefghij"))
    assert result.accuracy.value == 0.1
    assert result.top5 is not None
    assert result.top5.value == 0.5


def test_calibration_of_an_honest_and_of_a_boasting_model() -> None:
    rng = np.random.default_rng(1)
    claim = rng.uniform(0.5, 1, 20_000)
    labels = (rng.uniform(size=20_000) > claim).astype(int)  # class 0 comes true as often as claimed
    honest = multiclass_metrics(np.stack([claim, 1 - claim], axis=1), labels, ("a", "b"))
    assert honest.calibration_error < 0.02
    certain = np.tile([1.0, 0.0], (20_000, 1))
    boasting = multiclass_metrics(certain, labels, ("a", "b"))
    assert boasting.calibration_error == pytest.approx(1 - boasting.accuracy.value)
    assert boasting.log_loss < 36.1  # clipped, not infinite


def test_error_of_true_probabilities_is_chance() -> None:
    """What many draws of calibrated predictions come to on average is what the report says to expect."""
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, (400, 300))
    draws = [calibration_bins(confidence, rng.uniform(size=300) <= confidence) for confidence in confidences]
    errors = [calibration_error(bins) for bins in draws]
    expected = [expected_ece_if_calibrated(bins) for bins in draws]
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.03)
    assert multiclass_metrics(np.array([[1.0, 0.0]]), np.array([0]), ("a", "b")).expected_ece_if_calibrated == 0


def test_bins_hold_every_image_once() -> None:
    result = multiclass_metrics(*random_case(777, 4))
    assert sum(item.n for item in result.calibration) == 777
    assert all(item.low <= item.confidence <= item.high for item in result.calibration)


def test_float32_gives_the_same_numbers() -> None:
    probabilities, labels, classes = random_case(400, 7)
    wide = multiclass_metrics(probabilities, labels, classes)
    narrow = multiclass_metrics(probabilities.astype(np.float32), labels.astype(np.int32), classes)
    assert narrow.accuracy == wide.accuracy
    assert narrow.log_loss == pytest.approx(wide.log_loss, rel=1e-6)
    assert narrow.calibration_error == pytest.approx(wide.calibration_error, rel=1e-5)


def test_json_holds_the_contract() -> None:
    result = json.loads(json.dumps(multiclass_metrics(PROBABILITIES, LABELS, CLASSES).to_json(), allow_nan=False))
    assert result["n"] == 4
    assert set(result["accuracy"]) == {"value", "low", "high"}
    assert {"top5", "log_loss", "calibration_error", "per_class", "confusion"} <= set(result)
    assert result["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]


def test_not_numbers_are_refused() -> None:
    probabilities = PROBABILITIES.copy()
    probabilities[2] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 predictions are not numbers .*image 3"):
        multiclass_metrics(probabilities, LABELS, CLASSES)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        multiclass_metrics(np.zeros((0, 3)), np.zeros(0, int), CLASSES)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (PROBABILITIES[:3], LABELS),
        (PROBABILITIES[:, :2], LABELS),
        (PROBABILITIES, np.array([0, 1, 3, 1])),
        (PROBABILITIES, np.array([0, -1, 1, 1])),
        (PROBABILITIES * 5, LABELS),
    ],
)
def test_what_cannot_be_is_refused(probabilities: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"labels|logits"):
        multiclass_metrics(probabilities, labels, CLASSES)


def test_paired_test_by_hand() -> None:
    """Nine disagreements, eight for the second: 2 * (C(9,0) + C(9,1)) / 2**9 = 0.039."""
    first = np.array([True] * 20 + [True] + [False] * 8 + [False] * 5)
    second = np.array([True] * 20 + [False] + [True] * 8 + [False] * 5)
    result = paired_test(first, second)
    assert (result.n, result.only_first, result.only_second) == (34, 1, 8)
    assert result.p_value == pytest.approx(20 / 512)
    assert result.better == "second"
    assert paired_test(second, first).better == "first"
    assert result.difference == pytest.approx(second.mean() - first.mean())


def test_paired_test_without_difference() -> None:
    same = np.array([True, False, True])
    assert paired_test(same, same).p_value == 1
    assert paired_test(same, same).better is None
    with pytest.raises(ValueError, match="shapes"):
        paired_test(same, same[:2])


def test_the_paired_test_of_fractions_is_about_their_mean() -> None:
    """Several labels: 30 images a little worse, 10 much better. A sign test would call the better mean worse."""
    first = np.array([0.6] * 30 + [0.0] * 10)
    second = np.array([0.5] * 30 + [1.0] * 10)
    result = paired_test(first, second)
    assert (result.only_first, result.only_second) == (30, 10)
    assert result.difference == pytest.approx(7 / 40)
    assert result.better == "second"
    assert paired_test(second, first).better == "first"


def test_the_paired_test_of_few_fractions_is_exact() -> None:
    changes = np.array([0.5, 0.25, -0.25, 0.5, 0.75])
    expected = permutation_test(
        (changes,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True
    ).pvalue
    first = np.full(5, 0.25)
    assert paired_test(first, first + changes).p_value == pytest.approx(expected)


def test_chance_alone_is_rarely_called_a_difference() -> None:
    """Both tests hold their level of 5 % for fractions whose means are equal: by simulation."""
    rng = np.random.default_rng(0)
    paired, unpaired = 0, 0
    for _ in range(1000):
        first, second = (rng.choice([0.0, 0.25, 0.5, 1.0], n) for n in (60, 90))
        paired += paired_test(first, second[:60]).p_value < 0.05
        unpaired += two_sample_p_value(first, second) < 0.05
    assert 35 <= paired <= 65
    assert 35 <= unpaired <= 65


def test_two_groups_of_images_are_compared_as_scipy_does() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(314) < 0.742, rng.random(400) < 0.96
    table = [[first.sum(), (~first).sum()], [second.sum(), (~second).sum()]]
    assert two_sample_p_value(first, second) == pytest.approx(fisher_exact(table).pvalue)
    first, second = rng.beta(2, 2, 80), rng.beta(2.5, 2, 120)
    expected = ttest_ind(first, second).pvalue  # nearly the same for so many
    assert two_sample_p_value(first, second) == pytest.approx(expected, rel=0.1)
    assert two_sample_p_value(np.full(5, 0.5), np.full(7, 0.5)) == 1


def test_mistakes_come_surest_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    result = multiclass_mistakes(probabilities, np.array([1, 1, 1]), ("a", "b"), [Path("x"), Path("y"), Path("z")])
    assert [item.path.name for item in result] == ["y", "x"]
    assert (result[0].true, result[0].predicted, result[0].probability) == ("b", "a", 0.9)
    assert result[0].true_probability == 0.1
