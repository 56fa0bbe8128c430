"""A step counts loss and accuracy as validation does."""

import numpy as np
import pytest

from finetune.data import MULTICLASS, MULTILABEL
from finetune.evaluation import score_logits
from finetune.training.losses import loss_for


@pytest.mark.parametrize("label_type", [MULTICLASS, MULTILABEL])
def test_steps_count_loss_and_accuracy_as_validation_does(label_type):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (40, 4)).astype(np.float32)
    one_class = label_type is MULTICLASS
    labels = random.integers(0, 4, 40, np.int32) if one_class else random.integers(0, 2, (40, 4), np.uint8)
    scores, loss = score_logits(logits, labels), loss_for(label_type)
    total = loss.total(smoothing=0.0)(loss.encode(labels, 4), logits, np.ones(4, np.float32))
    assert float(total) == pytest.approx(40 * scores.loss, rel=1e-5)
    assert float(loss.correct(logits, labels)) == pytest.approx(40 * scores.accuracy, rel=1e-5)


def test_weights_make_a_rare_label_count_as_much_as_its_absence():
    frequencies = np.array([0.5, 0.1])
    weights = loss_for(MULTILABEL).class_weights(frequencies)
    np.testing.assert_allclose(weights * frequencies, 1 - frequencies)
