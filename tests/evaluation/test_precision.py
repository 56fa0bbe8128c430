"""A promised precision is kept, by simulation; and what cannot be promised is said with the number that is needed."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from finetune.evaluation import precision as kept
from finetune.models import ClassifierSpec, RiskCoveragePoint
from finetune.utils import UsageError


class Known:
    """As much of a classifier as a promise needs."""

    name = "flowers-1"

    def __init__(self, curve=(), tested=(), **options):
        self.spec = ClassifierSpec(
            backbone="efficientnet_lite0",
            image_size=224,
            classes=("a", "b"),
            confidences=curve,
            tested=tested,
            **options,
        )


def point(threshold, correct, images, of):
    return RiskCoveragePoint(threshold, correct / images, images / of, images)


def test_the_curve_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 1])
    curve = kept.risk_coverage(probabilities, labels)
    assert curve == (
        (0.9, 1.0, 0.25, 1),
        (0.8, pytest.approx(2 / 3), 0.75, 3),
        (0.6, 0.75, 1.0, 4),
    )
    assert kept.risk_coverage(probabilities, labels, [0.95, 0.85, 0.5]) == ((0.85, 1.0, 0.25, 1), (0.5, 0.75, 1.0, 4))


def test_the_curve_is_short_however_many_images_there_are():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(5), 4000)
    labels = random.integers(0, 5, 4000)
    curve = kept.risk_coverage(probabilities, labels)
    assert len(curve) <= kept.MAX_POINTS
    assert curve[-1][1:] == ((probabilities.argmax(1) == labels).mean(), 1, 4000)


@pytest.mark.parametrize(("correct", "n"), [(98, 100), (114, 114), (5, 10), (0, 10), (1, 1)])
def test_the_bound_is_that_of_scipy(correct, n):
    expected = binomtest(correct, n, alternative="greater").proportion_ci(0.9, method="exact").low
    assert kept.precision_bounds([point(0.5, correct, n, n)])[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("precision", "n", "spread"), [(0.95, 100, 1), (0.98, 1000, 1), (0.9, 300, 0.6)])
def test_a_promise_is_kept_in_nine_of_ten_cases(precision, n, spread):
    """The true precision above each threshold is known here. With the plain estimate half of them are too low."""
    random = np.random.default_rng(0)

    def draw(count):
        logits = random.normal(2.5, 2, count)
        confidence = 0.5 + 0.5 / (1 + np.exp(-logits))
        return confidence, 0.5 + 0.5 / (1 + np.exp(-spread * logits))  # less often correct than it says, if below 1

    confidence, chance = draw(200_000)
    order = np.argsort(-confidence)
    confidence, truth = confidence[order], np.cumsum(chance[order]) / np.arange(1, len(order) + 1)
    broken = {"bound": 0, "estimate": 0}
    for _ in range(200):
        sure, right = draw(n)
        predicted = (random.random(n) >= right).astype(int)  # the label is class 0
        probabilities = np.stack([np.where(predicted, 1 - sure, sure), np.where(predicted, sure, 1 - sure)], axis=1)
        curve = kept.risk_coverage(probabilities, np.zeros(n, int))
        naive = max((one for one in curve if one.precision >= precision), key=lambda one: one.coverage, default=None)
        for name, chosen in (("bound", kept.threshold_for_precision(curve, precision)), ("estimate", naive)):
            if chosen:
                above = np.searchsorted(-confidence, -chosen.threshold, side="right")
                broken[name] += truth[above - 1] < precision
    assert broken["bound"] <= 29  # 10 % of 200 and two standard errors
    assert broken["estimate"] >= 60


def test_of_several_thresholds_that_hold_the_one_with_most_coverage_is_taken():
    curve = [point(0.9, 300, 300, 1000), point(0.7, 595, 600, 1000), point(0.5, 955, 1000, 1000)]
    assert kept.threshold_for_precision(curve, 0.98) == curve[1]
    assert kept.threshold_for_precision(curve, 0.94) == curve[2]
    assert kept.threshold_for_precision(curve, 0.995) is None


def test_how_many_images_are_needed():
    perfect = [point(0.5, 50, 50, 50)]
    least = next(n for n in range(1, 1000) if binomtest(n, n, 0.98, alternative="greater").pvalue <= 0.1)
    assert least == 114
    assert least <= kept.images_needed(perfect, 0.98) <= 1.1 * least
    assert kept.images_needed([point(0.5, 20, 20, 50)], 0.98) >= least * 50 / 20
    better = [point(0.5, 99, 100, 100)]
    needed = kept.images_needed(better, 0.98)
    assert kept.precision_bounds([point(0.5, round(0.99 * needed), needed, needed)])[0] >= 0.98
    assert kept.images_needed([point(0.5, 97, 100, 100)], 0.98) is None


def test_a_promise_says_what_it_rests_on_and_what_the_test_images_say():
    curve = [point(0.9, 99, 100, 200), point(0.5, 180, 200, 200)]
    promise = kept.promise_precision(Known(curve, [point(0.9, 97, 100, 150)]), 0.95)
    assert promise.threshold == 0.9
    assert "Predictions below 0.900 are unknown: on validation, 50.0% of the images were above it, 99.0%" in (
        promise.sentence()
    )
    assert "with 90 % confidence at least 96.2%" in promise.sentence()
    assert promise.warning() == ""
    broken = kept.promise_precision(Known(curve, [point(0.9, 79, 100, 150)]), 0.95)
    assert broken.warning() == ("on the test images 79.0% of 100 such predictions were correct: do not rely on 95.0%")
    assert kept.promise_precision(Known(curve), 0.95).warning() == ""


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (
            Known([point(0.9, 40, 40, 60), point(0.2, 57, 60, 60)]),
            "cannot be promised with 60 validation images; about",
        ),
        (Known([point(0.2, 57, 60, 60)]), "it was never reached on them"),
        (Known([(0.2, 0.99, 1.0)]), "finetune 0.1"),
        (Known(), "does not know how often"),
        (Known(multi_label=True), "any number of labels"),
    ],
)
def test_what_cannot_be_promised_is_one_message(known, words):
    with pytest.raises(UsageError, match=words):
        kept.promise_precision(known, 0.98)


def test_the_images_of_a_curve_are_kept_in_a_model_file_and_absent_in_an_older_one():
    spec = Known([point(0.9, 99, 100, 200)], [point(0.9, 9, 10, 20)]).spec
    again = ClassifierSpec.from_json(spec.to_json().encode())
    assert (again.confidences[0].images, again.tested[0].images) == (100, 10)
    older = json.loads(spec.to_json())
    older["confidences"] = [row[:3] for row in older["confidences"]]
    del older["tested"]
    assert ClassifierSpec.from_json(json.dumps(older).encode()).confidences[0] == (0.9, 0.99, 0.5, 0)
