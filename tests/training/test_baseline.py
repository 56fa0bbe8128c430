"""The regression that the head begins with."""

import numpy as np
import pytest

from finetune.config import schema as config
from finetune.config.schema import ModelConfig
from finetune.models import classifier
from finetune.training import baseline


def clouds(classes, n=60, width=8, seed=0):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(0, 1, (classes, width))
    labels = np.arange(n * classes) % classes
    return (centres[labels] + random.normal(0, 0.5, (len(labels), width))).astype(np.float32) * 3 + 1, labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_finds_what_a_linear_head_can_find(classes):
    train, validation = clouds(classes), clouds(classes, seed=2)
    found = baseline.fit_head_probe(*train, *validation, classes=classes)
    assert found.kernel.shape == (8, classes)
    assert found.accuracy > 0.9
    scores = validation[0] @ found.kernel + found.bias
    assert (scores.argmax(1) == validation[1]).mean() == found.accuracy


def test_balance_helps_the_rare_class():
    features, labels = clouds(2, n=200)
    features[labels == 1] = (
        features[labels == 1] * 0.2 + features[labels == 0].mean(0) * 0.8
    )  # nearly on top of class 0
    rare = np.flatnonzero((labels == 0) | (np.arange(len(labels)) % 20 == 1))
    plain = baseline.fit_head_probe(features[rare], labels[rare], features, labels, classes=2)
    fair = baseline.fit_head_probe(features[rare], labels[rare], features, labels, classes=2, balanced=True)

    def recall(found):
        return ((features @ found.kernel + found.bias).argmax(1) == labels)[labels == 1].mean()

    assert recall(fair) > recall(plain)


def test_too_many_classes_are_left_to_the_gradient():
    labels = np.arange(10_000) % 5000
    assert baseline.probe_sample(labels, 1280, 5000, seed=0) is None
    assert len(baseline.probe_sample(labels % 5, 1280, 5, seed=0)) == 10_000


def test_the_head_answers_as_the_regression_does(settings):
    made = classifier.build_classifier(ModelConfig(**settings["model"]), ["a", "b", "c"])
    width = made.head_input.shape[-1]
    random = np.random.default_rng(0)
    found = baseline.LinearProbe(random.normal(size=(width, 3)), random.normal(size=3), 0.1, 0.9, 0.3)
    baseline.set_head_weights(found, made)
    from finetune.utils.device import keras

    features = random.normal(size=(4, width)).astype("float32")
    head = keras.Model(made.head_input, made.model.output)
    np.testing.assert_allclose(head(features), features @ found.kernel + found.bias, rtol=1e-4, atol=1e-4)


def test_only_a_head_of_one_dense_layer_can_begin_so():
    for extra, linear in (({}, True), ({"hidden": [4]}, False), ({"cosine": True}, False)):
        made = config.load_config(
            {"data": {"builtin": "digits"}, "model": {"backbone": "tiny", "weights": "none", **extra}}
        )
        assert classifier.build_classifier(made.model, ["a", "b"]).spec.linear_head is linear
