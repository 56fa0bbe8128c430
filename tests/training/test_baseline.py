"""The regression that the head begins with."""

import numpy as np

from finetune import config
from finetune.config import ModelConfig
from finetune.evaluation import LinearProbe
from finetune.models import build_classifier
from finetune.training import baseline


def test_the_head_answers_as_the_regression_does(settings):
    made = build_classifier(ModelConfig(**settings["model"]), ["a", "b", "c"])
    width = made.head_input.shape[-1]
    random = np.random.default_rng(0)
    found = LinearProbe(random.normal(size=(width, 3)), random.normal(size=3), 0.1, 0.9, 0.3)
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
        assert build_classifier(made.model, ["a", "b"]).spec.linear_head is linear
