"""The recipe's choices, carried out by the training with other networks than the default."""

import numpy as np
import pytest

from finetune.backbones import blocks_of, find_backbone
from finetune.config import DataFacts, fill_open_keys, load_config
from finetune.data import open_dataset
from finetune.models import build_classifier
from finetune.training.loop import Trainer
from finetune.training.optimizers import build_optimizer
from finetune.training.phases import plan_phases
from finetune.utils import keras

pytestmark = pytest.mark.slow
PHOTOS = DataFacts(images=2936, classes=5, size=(320, 240))


@pytest.mark.parametrize("name", ["efficientnet_v2_b0", "convnext_tiny", "resnet50", "mobilenet_v3_small"])
def test_the_recipe_holds_for_other_networks(name, images):
    """Random weights and numbers, a real step: the promised fraction of the blocks learns, and nothing else moves."""
    chosen, _ = fill_open_keys(
        load_config({"data": {"folder": "."}, "model": {"backbone": name, "weights": "none", "image_size": 64}}), PHOTOS
    )
    dataset = open_dataset(load_config({"data": {"folder": str(images)}}).data, seed=0)
    classifier = build_classifier(chosen.model, dataset.classes, seed=0)
    phase = plan_phases(chosen, classifier)[1]
    blocks = [block.name for block in blocks_of(name)]
    assert list(phase.blocks) == blocks[-len(phase.blocks) :]
    assert len(phase.blocks) == pytest.approx(0.4 * len(blocks), abs=1)

    trained = Trainer(phase, classifier, None, dataset, config=chosen)
    trained.optimizer.iterations.assign(2)  # in the warm-up the first step of all has a rate of 0
    learning = {variable.path for variable in trained.above.trainable_variables}
    normalised = [layer for layer in trained.above.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert bool(normalised) == find_backbone(name).batch_norm
    assert learning.isdisjoint(weight.path for layer in normalised for weight in layer.weights)
    before = [weight.numpy() for weight in classifier.model.weights]
    inputs = np.random.default_rng(0).normal(size=(4, *phase.cut.shape[1:])).astype(np.float32)
    trained.train_batch(inputs, np.array([0, 1, 2, 0], np.int32))
    moved = {
        weight.path
        for weight, old in zip(classifier.model.weights, before, strict=True)
        if (weight.numpy() != old).any()
    }
    assert moved <= learning
    assert len(moved) > 0.8 * len(learning)  # some random kernels have gradients too small to move


@pytest.mark.parametrize("images", [120, 300, 1_000, 3_000, 50_000])
def test_the_recipe_holds_for_any_number_of_steps(images):
    """The first steps are small ones, and the first weights are no part of the average in the end."""
    chosen, _ = fill_open_keys(load_config({"data": {"folder": "."}}), DataFacts(images, 5, (32, 32)))
    (settings,) = chosen.fine_tune
    steps = settings.epochs * -(-images // settings.batch_size)
    optimizer = build_optimizer(settings, steps)
    optimizer.build([keras.Variable(0.0)])
    optimizer.iterations.assign(10)
    assert float(optimizer.learning_rate) < 0.3 * settings.learning_rate
    assert optimizer.ema_momentum**steps < 1e-4
