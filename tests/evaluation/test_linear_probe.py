"""The quick probe: drawn evenly, and never measured on what it has learnt from."""

import numpy as np

from finetune.evaluation import linear_probe as probe


def test_the_images_are_drawn_evenly_and_the_same_each_time():
    labels = np.repeat([0, 1, 2], [50, 3, 20]).astype(np.int32)
    chosen = probe.sample_per_class(labels, 10, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [10, 3, 10]
    assert len(set(chosen.tolist())) == 23
    np.testing.assert_array_equal(chosen, probe.sample_per_class(labels, 10, seed=0))


def test_no_image_is_measured_by_what_was_learnt_from_it():
    """Random features and labels: whoever tests on what he has fitted gets 100 %, whoever does not gets chance."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(120, 300)).astype("float32"), np.arange(120) % 3
    folds = probe.stratified_folds(labels, seed=0)
    right = probe.cross_validate(
        labels, folds, lambda train, test: probe.fit_linear_probe(features, labels, train, test)
    )
    assert 0.15 < right.mean() < 0.5
    assert [np.bincount(labels[folds == fold]).tolist() for fold in range(5)] == [[8, 8, 8]] * 5
