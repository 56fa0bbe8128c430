"""Phases: what is frozen stays frozen, the best weights are kept, and a resumed phase ends as an unbroken one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from finetune import classifier, config, data, features, training
from finetune.device import keras
from finetune.errors import ConfigError, FinetuneError, Stopped, TrainingDiverged


class Bench:
    """Everything a phase needs, built anew from a mapping of settings."""

    def __init__(self, settings, **changes):
        self.config = config.load({**settings, **changes})
        self.dataset = data.open(self.config.data, seed=self.config.seed)
        self.classifier = classifier.build(self.config.model, self.dataset.classes, seed=self.config.seed)
        self.phases = training.plan(self.config, self.classifier)
        self.sources = features.prepare(
            self.classifier,
            self.dataset,
            [phase.cut for phase in self.phases],
            augment=self.config.augment,
            seed=self.config.seed,
            policy=self.config.cache,
        )

    def trainer(self, number=0, progress=None):
        return training.PhaseTraining(
            self.phases[number],
            self.classifier,
            self.sources[number],
            self.dataset,
            seed=self.config.seed,
            batch_norm=self.config.model.batch_norm,
            progress=progress or training.Progress(phase=number),
        )

    def run(self, number=0, trainer=None, check_stop=lambda: None, commit=lambda trainer: None):
        self.rows = []
        return training.run_phase(
            trainer or self.trainer(number),
            watcher=training.Watcher(),
            commit=commit,
            record=self.rows.append,
            check_stop=check_stop,
        )

    def weights(self):
        return features.digest(np.ascontiguousarray(v).data for v in self.classifier.model.get_weights())


def by_name(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def changed_layers(before, after):
    return {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}


def test_the_head_phase_changes_the_head_alone(settings):
    bench = Bench(settings)
    before = by_name(bench.classifier.model)
    bench.run(0)
    assert changed_layers(before, by_name(bench.classifier.model)) == {"logits"}


def test_fine_tuning_changes_whole_blocks_and_no_batch_norm(settings):
    bench = Bench(settings)
    bench.run(0)
    before = by_name(bench.classifier.model)
    result = bench.run(1)
    assert result.best_epoch > 0
    changed = changed_layers(before, by_name(bench.classifier.model))
    assert changed == {"block3_conv", "block3_depthwise", "logits"}


def test_batch_norm_trains_only_on_request(settings):
    settings["model"]["batch_norm"] = "train"
    bench = Bench(settings)
    bench.run(0)
    before = by_name(bench.classifier.model)
    bench.run(1)
    after = by_name(bench.classifier.model)
    moved = {path for path in before if "moving_mean" in path and not np.array_equal(before[path], after[path])}
    assert moved == {"block3_bn/moving_mean"}


def test_the_audit_finds_a_single_moved_bit(settings):
    bench = Bench(settings)
    trainer = bench.trainer(0)
    before = training.frozen_digest(trainer)
    training.audit(trainer, before)
    mean = bench.classifier.model.get_layer("block1_bn").moving_mean
    mean.assign(np.nextafter(mean.numpy(), np.float32(1)))
    with pytest.raises(FinetuneError, match="weights that were frozen have changed"):
        training.audit(trainer, before)


def test_features_are_those_of_inference(settings):
    """Dropout and drop-path below the cut are off, and BatchNorm uses its stored statistics."""
    bench = Bench(settings)
    model, dataset = bench.classifier.model, bench.dataset
    from finetune import images

    pictures = np.stack([images.read_square(dataset.path(i), bench.classifier.transform) for i in range(5)])
    below = keras.Model(model.inputs[0], bench.phases[1].cut)
    cached = next(bench.sources[1].batches(np.arange(5), None, 5))
    np.testing.assert_allclose(cached, below(pictures.astype("float32"), training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["disk", "off"])
def test_cached_and_uncached_training_end_with_the_same_bits(settings, policy):
    reference = Bench(settings, cache="memory")
    other = Bench(settings, cache=policy)
    for number in (0, 1):
        reference.run(number)
        other.run(number)
        assert other.weights() == reference.weights()
        assert [{**row, "seconds": 0} for row in other.rows] == [{**row, "seconds": 0} for row in reference.rows]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_a_resumed_phase_ends_as_an_unbroken_one(settings, number, steps):
    unbroken = Bench(settings)
    for phase in range(number + 1):
        unbroken.run(phase)

    killed = Bench(settings)
    for phase in range(number):
        killed.run(phase)
    saved = {}
    left = iter(range(steps))

    def stop():
        if next(left, None) is None:
            raise Stopped("enough")

    def commit(trainer):
        saved["arrays"], saved["progress"] = trainer.arrays(), dataclasses.asdict(trainer.progress)

    with pytest.raises(Stopped):
        killed.run(number, check_stop=stop, commit=commit)
    rows = list(killed.rows)

    resumed = Bench(settings)
    training.restore_model(resumed.classifier, saved["arrays"])
    trainer = resumed.trainer(number, training.Progress(**saved["progress"]))
    trainer.restore(saved["arrays"])
    resumed.run(number, trainer)
    assert resumed.weights() == unbroken.weights()
    every = [{**row, "seconds": 0} for row in rows + resumed.rows]
    assert every == [{**row, "seconds": 0} for row in unbroken.rows]


def test_the_best_epoch_is_kept_even_if_later_ones_are_worse(settings):
    bench = Bench(settings)
    trainer = bench.trainer(0)
    answers = iter([(0.5, 0.6), (0.3, 0.9), (0.9, 0.4)])
    kept = []

    def validate():
        loss, accuracy = next(answers)
        kept.append(by_name(trainer.above))
        return {"loss": loss, "accuracy": accuracy}

    trainer.validate = validate
    result = bench.run(0, trainer)
    assert result.best_epoch == 2
    assert result.validation == {"loss": 0.3, "accuracy": 0.9}
    np.testing.assert_array_equal(by_name(trainer.above)["logits/kernel"], kept[1]["logits/kernel"])


def test_fine_tuning_that_does_not_help_is_undone(settings):
    bench = Bench(settings)
    bench.run(0)
    before = bench.weights()
    trainer = bench.trainer(1)
    accuracies = iter([0.9, 0.8, 0.8])  # before the phase, and after each of its two epochs
    trainer.validate = lambda: {"loss": 1.0, "accuracy": next(accuracies)}
    result = bench.run(1, trainer)
    assert result.best_epoch == 0
    assert bench.weights() == before


def test_patience_ends_a_phase_early(settings):
    settings["head"] |= {"epochs": 50, "patience": 2}
    bench = Bench(settings)
    trainer = bench.trainer(0)
    trainer.validate = lambda: {"loss": 1.0, "accuracy": 0.5}
    assert bench.run(0, trainer).epochs == 3


def test_memory_does_not_grow_with_the_steps(settings):
    trainer = Bench(settings).trainer(1)
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
    bench = Bench(settings)
    trainer = bench.trainer(0)
    inputs, labels = next(trainer.epoch_batches())
    before = by_name(trainer.above)
    inputs[3, 0] = np.nan
    with pytest.raises(TrainingDiverged, match=r"(?s)head, epoch 1, batch 1.*learning_rate=0.001.*\.png"):
        trainer.train_batch(inputs, labels)
    assert not changed_layers(before, by_name(trainer.above))


def test_a_nan_weight_is_found_though_a_relu_hides_it(settings):
    bench = Bench(settings)
    trainer = bench.trainer(1)
    inputs, labels = next(trainer.epoch_batches())
    kernel = bench.classifier.model.get_layer("block3_conv").kernel
    poisoned = kernel.numpy()
    poisoned[0, 0, 0, 0] = np.nan
    kernel.assign(poisoned)
    with pytest.raises(TrainingDiverged):
        trainer.train_batch(inputs, labels)


def test_an_unknown_layer_to_unfreeze_is_a_config_error(settings):
    settings["fine_tune"]["unfreeze"] = "block9_conv"
    with pytest.raises(ConfigError, match="block9_conv"):
        Bench(settings)


def test_augmented_views_differ_by_epoch_and_come_back(settings):
    bench = Bench(settings, augment={"preset": "standard", "views": 2})
    source, train = bench.sources[0], bench.dataset.indices("train")

    def look(epoch):
        return np.concatenate(list(source.batches(train, epoch, 8)))

    plain = np.concatenate(list(source.batches(train, None, 8)))
    assert not np.array_equal(look(0), plain)
    assert not np.array_equal(look(0), look(1))
    np.testing.assert_array_equal(look(0), look(2))


def test_gradual_unfreezing_opens_more_each_time(settings):
    settings["fine_tune"] = [{"unfreeze": 1, "epochs": 1}, {"unfreeze": 2, "epochs": 1}]
    bench = Bench(settings)
    assert [phase.name for phase in bench.phases] == ["head", "fine_tune_1", "fine_tune_2"]
    counts = []
    for number in range(3):
        trainer = bench.trainer(number)
        counts.append(len(trainer.above.trainable_variables))
        bench.run(number, trainer)
    assert counts == [2, 4, 5]
