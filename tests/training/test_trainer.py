"""Phases: what is frozen stays frozen, the best weights are kept, and a resumed phase ends as an unbroken one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from finetune import config, data
from finetune.models import FeatureRequest, build_classifier, prepare_features
from finetune.training import trainer as training
from finetune.utils import ConfigError, FinetuneError, Stopped, TrainingDiverged, keras, sha256_of


class Bench:
    """Everything a phase needs, built anew from a mapping of settings."""

    def __init__(self, settings, **changes):
        self.config = config.load_config({**settings, **changes})
        self.dataset = data.open_dataset(self.config.data, seed=self.config.seed)
        self.classifier = build_classifier(self.config.model, self.dataset.classes, seed=self.config.seed)
        self.phases = training.plan_phases(self.config, self.classifier)
        self.sources = prepare_features(
            FeatureRequest(
                self.classifier,
                self.dataset,
                [phase.cut for phase in self.phases],
                self.config.augment,
                self.config.seed,
            ),
            policy=self.config.cache,
        )

    def trainer(self, number=0, progress=None):
        return training.Trainer(
            self.phases[number],
            self.classifier,
            self.sources[number],
            self.dataset,
            config=self.config,
            progress=progress or training.TrainingState(phase=number),
        )

    def run(self, number=0, trainer=None, check_stop=lambda: None, commit=lambda trainer: None):
        self.rows = []
        return training.run_phase(
            trainer or self.trainer(number),
            has_start=number > 0,
            watcher=training.Callback(),
            commit=commit,
            record=self.rows.append,
            check_stop=check_stop,
        )

    def weights(self):
        return sha256_of(np.ascontiguousarray(v).data for v in self.classifier.model.get_weights())


def validation(loss, accuracy, n=100):
    return training.ValidationScores(np.full(n, loss), np.arange(n) < round(accuracy * n))


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
    batch = np.stack([data.read_square(dataset.path(i), bench.classifier.transform) for i in range(5)])
    below = keras.Model(model.inputs[0], bench.phases[1].cut)
    cached = next(bench.sources[1].batches(np.arange(5), None, 5))
    np.testing.assert_allclose(cached, below(batch.astype("float32"), training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["disk", "off"])
def test_cached_and_uncached_training_end_with_the_same_bits(settings, policy):
    reference = Bench(settings, cache="memory")
    other = Bench(settings, cache=policy)
    for number in (0, 1):
        reference.run(number)
        other.run(number)
        assert other.weights() == reference.weights()
        assert [{**row, "seconds": 0} for row in other.rows] == [{**row, "seconds": 0} for row in reference.rows]


EVERYTHING = {
    "schedule": "plateau",
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "ema": 0.9,
    "clip": 1.0,
    "accumulate": 2,
}


@pytest.mark.parametrize(
    ("number", "steps", "extra"),
    [(0, 7, {}), (1, 1, {}), (1, 7, {"batch_norm": "recalibrate"}), (1, 10, EVERYTHING)],
)
def test_a_resumed_phase_ends_as_an_unbroken_one(settings, number, steps, extra):
    settings = {**settings, "imbalance": "oversample", "augment": {"mixup": 0.3, "cutmix": 1}} if extra else settings
    batch_norm = {"batch_norm": extra["batch_norm"]} if "batch_norm" in extra else {}
    settings["model"] |= batch_norm
    settings["fine_tune"] |= {} if batch_norm else extra
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
    trainer = resumed.trainer(number, training.TrainingState(**saved["progress"]))
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
        kept.append(by_name(trainer.above))
        return validation(*next(answers))

    trainer.validate = validate
    result = bench.run(0, trainer)
    assert result.best_epoch == 2
    assert result.validation == pytest.approx({"loss": 0.3, "accuracy": 0.9})
    np.testing.assert_array_equal(by_name(trainer.above)["logits/kernel"], kept[1]["logits/kernel"])


def test_fine_tuning_that_does_not_help_is_undone(settings):
    bench = Bench(settings)
    bench.run(0)
    before = bench.weights()
    trainer = bench.trainer(1)
    accuracies = iter([0.9, 0.8, 0.8])  # before the phase, and after each of its two epochs
    trainer.validate = lambda: validation(1.0, next(accuracies))
    result = bench.run(1, trainer)
    assert result.best_epoch == 0
    assert bench.weights() == before


def test_patience_ends_a_phase_early(settings):
    settings["head"] |= {"epochs": 50, "patience": 2}
    bench = Bench(settings)
    trainer = bench.trainer(0)
    trainer.validate = lambda: validation(1.0, 0.5)
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


# ------------------------------------------------------------------------------------------------- the phase gate


@pytest.mark.parametrize(
    ("gained", "lost", "kept"), [(0, 0, False), (1, 0, False), (5, 4, False), (9, 4, True), (20, 0, True)]
)
def test_a_phase_must_beat_the_one_before_by_more_than_noise(settings, gained, lost, kept):
    bench = Bench(settings)
    bench.run(0)
    before = bench.weights()
    trainer = bench.trainer(1)
    right = np.arange(200) < 150
    after = right.copy()
    after[:lost] = False
    after[150 : 150 + gained] = True
    answers = iter([right, after, after])
    trainer.validate = lambda: training.ValidationScores(np.ones(200), next(answers))
    result = bench.run(1, trainer)
    assert (result.best_epoch > 0) is kept
    assert (bench.weights() != before) is kept


def test_noise_is_that_of_pairs():
    """Losses that all fall a little are clearly better; one large change among many equal ones is not."""
    old = np.linspace(-3, 0, 50)
    assert training.improves_significantly(old + 0.01, old)
    one = old.copy()
    one[0] += 5
    assert not training.improves_significantly(one, old)
    assert not training.improves_significantly(old, old)


# ------------------------------------------------------------------------------------------- what a config may ask


def first_step(settings, number=1, **changes):
    """How far the first step moves every trainable weight."""
    bench = Bench(settings, **changes)
    trainer = bench.trainer(number)
    before = by_name(trainer.above)
    trainer.train_batch(*next(trainer.epoch_batches()))
    after = by_name(trainer.above)
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
    bench = Bench(settings)
    trainer = bench.trainer(0)
    start = by_name(trainer.above)
    batches = trainer.epoch_batches()
    trainer.train_batch(*next(batches))
    assert not changed_layers(start, by_name(trainer.above))
    trainer.train_batch(*next(batches))
    assert changed_layers(start, by_name(trainer.above)) == {"logits"}


def test_the_moving_average_is_measured_and_kept(settings):
    settings["head"] |= {"ema": 0.999, "epochs": 1, "schedule": "constant", "learning_rate": 0.05}
    bench = Bench(settings)
    trainer = bench.trainer(0)
    start = by_name(trainer.above)["logits/kernel"]
    bench.run(0, trainer)
    plain = Bench({**settings, "head": {**settings["head"], "ema": None}})
    plain.run(0)
    average, last = by_name(trainer.above)["logits/kernel"], by_name(plain.classifier.model)["logits/kernel"]
    assert 0 < np.linalg.norm(average - start) < 0.5 * np.linalg.norm(last - start)


def test_recalibrated_statistics_are_those_of_the_training_images(settings):
    settings["model"]["batch_norm"] = "recalibrate"
    bench = Bench(settings)
    bench.run(0)
    layer = bench.classifier.model.get_layer("block3_bn")
    layer.moving_mean.assign(layer.moving_mean + 100.0)  # so wrong that new statistics must help
    bench.run(1)
    trainer = bench.trainer(1)
    trainer.progress.epoch = 2  # the order of the pass that gathered them
    inside = keras.Model(bench.phases[1].cut, layer.input)
    batches = [keras.ops.mean(inside(x), axis=(0, 1, 2)).numpy() for x, _ in trainer.epoch_batches()]
    np.testing.assert_allclose(layer.moving_mean, np.mean(batches, axis=0), rtol=1e-3, atol=1e-3)


def test_plateau_lowers_the_rate_when_progress_ends(settings):
    settings["head"] |= {"schedule": "plateau", "epochs": 5, "learning_rate": 0.01}
    bench = Bench(settings)
    trainer = bench.trainer(0)
    trainer.validate = lambda: validation(1.0, 0.5)
    bench.run(0, trainer)
    rates = [row["learning_rate"] for row in bench.rows]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.002, 0.002])


def rare(settings, imbalance):
    bench = Bench(settings, imbalance=imbalance)
    labels, train = bench.dataset.labels, bench.dataset.indices("train")
    keep = np.flatnonzero((labels != 0) | (np.cumsum(labels == 0) % 5 == 0))  # a fifth of class 0
    trainer = bench.trainer(0)
    trainer.train_indices = np.intersect1d(train, keep)
    return trainer


def test_oversampling_shows_every_class_equally_often(settings):
    trainer = rare(settings, "oversample")
    labels = np.concatenate([labels for _, labels in trainer.epoch_batches()])
    counts = np.bincount(labels)
    assert counts.min() == counts.max() == np.bincount(trainer.dataset.labels[trainer.train_indices]).max()


@pytest.mark.parametrize("imbalance", ["weights", "logit_adjust"])
def test_weights_and_adjusted_logits_follow_how_common_a_class_is(settings, imbalance):
    trainer = rare(settings, imbalance)
    counts = np.bincount(trainer.dataset.labels[trainer.train_indices])
    weights, offsets = training._against_imbalance(trainer)
    if imbalance == "weights":
        assert (weights.numpy() * counts) == pytest.approx(np.full(len(counts), counts.mean()))
        assert not offsets.numpy().any()
    else:
        assert np.exp(offsets.numpy()) == pytest.approx(counts / counts.sum())
        assert (weights.numpy() == 1).all()
