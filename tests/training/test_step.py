"""One step: what it changes, what it refuses, and what it does against class imbalance."""

from pathlib import Path

import numpy as np
import pytest
from training_setup import TrainingSetup, changed_layers, weights_by_name

from finetune.data import MULTICLASS
from finetune.training.losses import against_imbalance, class_frequencies, loss_for
from finetune.training.start_checks import refuse_endless_accumulation
from finetune.utils import ConfigError, TrainingDiverged

pytestmark = pytest.mark.usefixtures("warm_cache")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(settings):
    trainer = TrainingSetup(settings).trainer(1)
    inputs, labels = next(trainer.epoch_batches())
    used = []
    for _ in range(6):
        for _ in range(200):
            trainer.train_batch(inputs, labels)
        used.append(memory())
    assert used[-1] - used[0] < 50  # MB, over 1,000 steps


def memory():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads the memory of this process from /proc")
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def test_a_nan_stops_within_a_step_and_changes_no_weight(settings):
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    inputs, labels = next(trainer.epoch_batches())
    before = weights_by_name(trainer.above)
    inputs[3, 0] = np.nan
    with pytest.raises(TrainingDiverged, match=r"(?s)head, epoch 1, batch 1.*learning_rate=0.001.*\.png"):
        trainer.train_batch(inputs, labels)
    assert not changed_layers(before, weights_by_name(trainer.above))


def test_a_nan_weight_is_found_though_a_relu_hides_it(settings):
    setup = TrainingSetup(settings)
    trainer = setup.trainer(1)
    inputs, labels = next(trainer.epoch_batches())
    kernel = setup.classifier.model.get_layer("block3_conv").kernel
    poisoned = kernel.numpy()
    poisoned[0, 0, 0, 0] = np.nan
    kernel.assign(poisoned)
    with pytest.raises(TrainingDiverged):
        trainer.train_batch(inputs, labels)


def first_step(settings, number=1, **changes):
    """How far the first step moves every trainable weight."""
    setup = TrainingSetup(settings, **changes)
    trainer = setup.trainer(number)
    before = weights_by_name(trainer.above)
    trainer.train_batch(*next(trainer.epoch_batches()))
    after = weights_by_name(trainer.above)
    names = [weight.path for weight in trainer.above.trainable_variables]
    return {name: np.linalg.norm(after[name] - before[name]) for name in names}


def test_layer_decay_shortens_the_steps_of_earlier_blocks(settings):
    settings["model"]["dropout"] = 0
    settings["fine_tune"] |= {"unfreeze": "all", "optimizer": "sgd", "schedule": "constant"}
    plain = first_step(settings)
    settings["fine_tune"]["layer_decay"] = 0.5
    slowed = first_step(settings)
    ratios = {name.split("/")[0]: slowed[name] / plain[name] for name in plain}
    parts = ["logits"] + [f"block{number}_{kind}" for number in (3, 2, 1) for kind in ("depthwise", "conv")]
    for depth, name in enumerate(parts):
        assert ratios[name] == pytest.approx(0.5**depth, rel=1e-3), ratios


def test_clipping_bounds_the_step(settings):
    settings["fine_tune"] |= {"optimizer": "sgd", "schedule": "constant", "learning_rate": 1.0, "clip": 1e-3}
    steps = first_step(settings)
    whole = np.sqrt(sum(step**2 for step in steps.values()))
    assert 0 < whole <= 1.9e-3 + 1e-6  # SGD with Nesterov's momentum goes 1.9 times the gradient at first


def test_accumulation_steps_every_other_batch(settings):
    settings["head"]["accumulate"] = 2
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    start = weights_by_name(trainer.above)
    batches = trainer.epoch_batches()
    trainer.train_batch(*next(batches))
    assert not changed_layers(start, weights_by_name(trainer.above))
    trainer.train_batch(*next(batches))
    assert changed_layers(start, weights_by_name(trainer.above)) == {"logits"}


def test_more_accumulation_than_an_epoch_has_batches_is_refused(settings):
    settings["fine_tune"]["accumulate"] = 7
    setup = TrainingSetup(settings)  # 42 images in batches of 8
    with pytest.raises(ConfigError, match=r"fine_tune: 7 batches make a step \(accumulate\), and an epoch has only 6"):
        refuse_endless_accumulation(setup.phases, setup.dataset, setup.config)
    oversampled = setup.config.model_copy(update={"imbalance": "oversample"})
    few = setup.dataset.labels == 0  # as many of each class as of the largest: 60 images
    setup.dataset.splits[few] = setup.dataset.splits[setup.dataset.indices("train")[0]]
    refuse_endless_accumulation(setup.phases, setup.dataset, oversampled)


LABELS = np.array([0] * 2 + [1] * 10 + [2] * 8)


def test_weights_make_every_class_count_the_same():
    frequencies = class_frequencies(LABELS, MULTICLASS, 3)
    weights, offsets = against_imbalance("weights", loss_for(MULTICLASS), frequencies)
    np.testing.assert_allclose(weights * np.bincount(LABELS), np.full(3, len(LABELS) / 3))
    assert not offsets.any()


def test_adjusted_logits_follow_how_common_a_class_is():
    frequencies = class_frequencies(LABELS, MULTICLASS, 3)
    weights, offsets = against_imbalance("logit_adjust", loss_for(MULTICLASS), frequencies)
    np.testing.assert_allclose(np.exp(offsets), np.bincount(LABELS) / len(LABELS))
    assert (weights == 1).all()


def test_a_class_without_images_has_a_frequency_above_zero():
    assert (class_frequencies(LABELS, MULTICLASS, 4) > 0).all()
