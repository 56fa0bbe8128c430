"""What each phase trains, and that what is frozen stays frozen."""

import numpy as np
import pytest
from training_setup import TrainingSetup, changed_layers, weights_by_name

from finetune.data import read_square
from finetune.utils import ConfigError, FinetuneError, keras

pytestmark = pytest.mark.usefixtures("warm_cache")


def test_the_head_phase_changes_the_head_alone(settings):
    setup = TrainingSetup(settings)
    before = weights_by_name(setup.classifier.model)
    setup.run(0)
    assert changed_layers(before, weights_by_name(setup.classifier.model)) == {"logits"}


def test_fine_tuning_changes_whole_blocks_and_no_batch_norm(settings):
    setup = TrainingSetup(settings)
    setup.run(0)
    before = weights_by_name(setup.classifier.model)
    result = setup.run(1)
    assert result.best_epoch > 0
    changed = changed_layers(before, weights_by_name(setup.classifier.model))
    assert changed == {"block3_conv", "block3_depthwise", "logits"}


def test_batch_norm_trains_only_on_request(settings):
    settings["model"]["batch_norm"] = "train"
    setup = TrainingSetup(settings)
    setup.run(0)
    before = weights_by_name(setup.classifier.model)
    setup.run(1)
    after = weights_by_name(setup.classifier.model)
    moved = {path for path in before if "moving_mean" in path and not np.array_equal(before[path], after[path])}
    assert moved == {"block3_bn/moving_mean"}


def test_the_audit_finds_a_single_moved_bit(settings):
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    trainer.frozen.audit("head")
    mean = setup.classifier.model.get_layer("block1_bn").moving_mean
    mean.assign(np.nextafter(mean.numpy(), np.float32(1)))
    with pytest.raises(FinetuneError, match="weights that were frozen have changed"):
        trainer.frozen.audit("head")


def test_features_are_those_of_inference(settings):
    """Dropout and drop-path below the cut are off, and BatchNorm uses its stored statistics."""
    setup = TrainingSetup(settings)
    model, dataset = setup.classifier.model, setup.dataset
    batch = np.stack([read_square(dataset.path(i), setup.classifier.transform) for i in range(5)])
    below = keras.Model(model.inputs[0], setup.phases[1].cut)
    cached = next(setup.sources[1].batches(np.arange(5), None, 5))
    np.testing.assert_allclose(cached, below(batch.astype("float32"), training=False), rtol=1e-5, atol=1e-5)


def test_an_unknown_layer_to_unfreeze_is_a_config_error(settings):
    settings["fine_tune"]["unfreeze"] = "block9_conv"
    with pytest.raises(ConfigError, match="block9_conv"):
        TrainingSetup(settings)


@pytest.mark.slow
def test_gradual_unfreezing_opens_more_each_time(settings):
    settings["fine_tune"] = [{"unfreeze": 1, "epochs": 1}, {"unfreeze": 2, "epochs": 1}]
    setup = TrainingSetup(settings)
    assert [phase.name for phase in setup.phases] == ["head", "fine_tune_1", "fine_tune_2"]
    counts = []
    for number in range(3):
        trainer = setup.trainer(number)
        counts.append(len(trainer.above.trainable_variables))
        setup.run(number, trainer)
    assert counts == [2, 4, 5]


def test_recalibrated_statistics_are_those_of_the_training_images(settings):
    settings["model"]["batch_norm"] = "recalibrate"
    setup = TrainingSetup(settings)
    setup.run(0)
    layer = setup.classifier.model.get_layer("block3_bn")
    layer.moving_mean.assign(layer.moving_mean + 100.0)  # so wrong that new statistics must help
    setup.run(1)
    trainer = setup.trainer(1)
    trainer.state.epoch = 2  # the order of the pass that gathered them
    inside = keras.Model(setup.phases[1].cut, layer.input)
    sizes = [len(labels) for _, labels in trainer.epoch_batches()]
    assert len(set(sizes)) == 2  # the last batch is smaller
    values = np.concatenate([inside(inputs).numpy() for inputs, _ in trainer.epoch_batches()])
    np.testing.assert_allclose(layer.moving_mean, values.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, values.var(axis=(0, 1, 2)), rtol=1e-4, atol=1e-4)
