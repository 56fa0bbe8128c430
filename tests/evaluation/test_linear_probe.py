"""Linear probes: they find what a linear head can find, and are never measured on what they were fitted to."""

import numpy as np
import pytest

from finetune.evaluation import fit_linear_probe, sample_for_probe
from finetune.evaluation.linear_probe import cross_validate, cross_validate_probe, sample_per_class


def clouds(classes, n=60, width=8, seed=0):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(0, 1, (classes, width))
    labels = np.arange(n * classes) % classes
    return (centres[labels] + random.normal(0, 0.5, (len(labels), width))).astype(np.float32) * 3 + 1, labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_finds_what_a_linear_head_can_find(classes):
    train, validation = clouds(classes), clouds(classes, seed=2)
    probe = fit_linear_probe(*train, *validation, classes=classes)
    assert probe.kernel.shape == (8, classes)
    assert probe.accuracy > 0.9
    scores = validation[0] @ probe.kernel + probe.bias
    assert (scores.argmax(1) == validation[1]).mean() == probe.accuracy


def test_there_is_a_regression_for_each_of_several_labels():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (300, 3)).astype(np.uint8)
    rows = (labels @ random.normal(0, 2, (3, 8)) + random.normal(0, 0.5, (300, 8))).astype(np.float32)
    probe = fit_linear_probe(rows[:200], labels[:200], rows[200:], labels[200:], classes=3)
    assert probe.kernel.shape == (8, 3)
    assert probe.accuracy > 0.9


def test_balance_helps_the_rare_class():
    features, labels = clouds(2, n=200)
    near = features[labels == 0].mean(0)  # class 1 lies nearly on top of class 0
    features[labels == 1] = features[labels == 1] * 0.2 + near * 0.8
    rare = np.flatnonzero((labels == 0) | (np.arange(len(labels)) % 20 == 1))
    plain = fit_linear_probe(features[rare], labels[rare], features, labels, classes=2)
    balanced = fit_linear_probe(features[rare], labels[rare], features, labels, classes=2, balanced=True)

    def recall(probe):
        return ((features @ probe.kernel + probe.bias).argmax(1) == labels)[labels == 1].mean()

    assert recall(balanced) > recall(plain)


def test_too_many_classes_are_left_to_the_gradient():
    labels = np.arange(10_000) % 5000
    assert sample_for_probe(labels, 1280, 5000, seed=0) is None
    assert len(sample_for_probe(labels % 5, 1280, 5, seed=0)) == 10_000


def test_images_are_drawn_evenly_and_the_same_each_time():
    labels = np.repeat([0, 1, 2], [50, 3, 20]).astype(np.int32)
    chosen = sample_per_class(labels, 10, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [10, 3, 10]
    assert len(set(chosen.tolist())) == 23
    np.testing.assert_array_equal(chosen, sample_per_class(labels, 10, seed=0))


def test_no_image_is_measured_by_what_was_learnt_from_it():
    """Random features and labels: whoever tests on what he has fitted gets 100 %, whoever does not gets chance."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(120, 300)).astype("float32"), np.arange(120) % 3
    assert 0.15 < cross_validate_probe(features, labels, seed=0).mean() < 0.5


def test_folds_have_the_same_number_of_each_class():
    labels, sizes = np.arange(120) % 3, []

    def predict(train, test):
        assert not set(train) & set(test)
        sizes.append(np.bincount(labels[test]).tolist())
        return labels[test]

    assert cross_validate(labels, predict, seed=0).all()
    assert sizes == [[8, 8, 8]] * 5
