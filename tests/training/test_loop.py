"""The loop: the best weights are kept, and a resumed phase ends as an unbroken one."""

import numpy as np
import pytest
from training_setup import TrainingSetup, validation, weights_by_name

from finetune.evaluation import ValidationScores
from finetune.training.callbacks import Callback
from finetune.training.journal import TrainingState
from finetune.training.loop import fit_phases
from finetune.training.model_state import assign_values, restore_model
from finetune.utils import Stopped

pytestmark = pytest.mark.usefixtures("warm_cache")


@pytest.mark.slow
def test_cached_and_uncached_training_end_with_the_same_bits(settings):
    reference, *others = (TrainingSetup(settings, cache=policy) for policy in ("memory", "disk", "off"))
    for number in (0, 1):
        reference.run(number)
        for other in others:
            other.run(number)
            assert other.weights() == reference.weights()
            assert other.rows == reference.rows


EVERYTHING = {
    "schedule": "plateau",
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "ema": 0.9,
    "clip": 1.0,
    "accumulate": 2,
    "warmup": 0.3,
    "epochs": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "steps", "extra"),
    [(0, 7, {}), (1, 1, {}), (1, 7, {"batch_norm": "recalibrate"}), (1, 22, EVERYTHING)],
)
def test_a_resumed_phase_ends_as_an_unbroken_one(settings, number, steps, extra):
    settings = {**settings, "imbalance": "oversample", "augment": {"mixup": 0.3, "cutmix": 1}} if extra else settings
    batch_norm = {"batch_norm": extra["batch_norm"]} if "batch_norm" in extra else {}
    settings["model"] |= batch_norm
    settings["fine_tune"] |= {} if batch_norm else extra
    unbroken, killed = TrainingSetup(settings), TrainingSetup(settings)
    for phase in range(number):
        unbroken.run(phase)
    assign_values(killed.classifier.model.variables, unbroken.classifier.model.variables)
    unbroken.run(number)
    left = iter(range(steps))

    def stop():
        if next(left, None) is None:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        killed.run(number, check_stop=stop)

    resumed = TrainingSetup(settings)
    restore_model(resumed.classifier, killed.journal.arrays)
    trainer = resumed.trainer(number, TrainingState(**killed.journal.state))
    trainer.restore(killed.journal.arrays)
    resumed.run(number, trainer)
    assert resumed.weights() == unbroken.weights()
    assert killed.rows + resumed.rows == unbroken.rows


def test_the_best_epoch_is_kept_even_if_later_ones_are_worse(settings):
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    answers = iter([(0.5, 0.6), (0.3, 0.9), (0.9, 0.4)])
    kept = []

    def validate():
        kept.append(weights_by_name(trainer.above))
        return validation(*next(answers))

    trainer.validate = validate
    result = setup.run(0, trainer)
    assert result.best_epoch == 2
    assert result.validation == pytest.approx({"loss": 0.3, "accuracy": 0.9})
    np.testing.assert_array_equal(weights_by_name(trainer.above)["logits/kernel"], kept[1]["logits/kernel"])


def test_fine_tuning_that_does_not_help_is_undone(settings):
    setup = TrainingSetup(settings)
    before = setup.weights()
    trainer = setup.trainer(1)
    accuracies = iter([0.9, 0.8, 0.8])  # before the phase, and after each of its two epochs
    trainer.validate = lambda: validation(1.0, next(accuracies))
    result = setup.run(1, trainer)
    assert result.best_epoch == 0
    assert setup.weights() == before


def test_patience_ends_a_phase_early(settings):
    settings["head"] |= {"epochs": 50, "patience": 2}
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    trainer.validate = lambda: validation(1.0, 0.5)
    assert setup.run(0, trainer).epochs == 3


@pytest.mark.parametrize(("gained", "lost", "kept"), [(5, 4, False), (9, 4, True)])
def test_a_phase_must_beat_the_one_before_by_more_than_noise(settings, gained, lost, kept):
    setup = TrainingSetup(settings)
    before = setup.weights()
    trainer = setup.trainer(1)
    right = np.arange(200) < 150
    after = right.copy()
    after[:lost] = False
    after[150 : 150 + gained] = True
    answers = iter([right, after, after])
    trainer.validate = lambda: ValidationScores(np.ones(200), next(answers))
    result = setup.run(1, trainer)
    assert (result.best_epoch > 0) is kept
    assert (setup.weights() != before) is kept


def test_augmented_views_differ_by_epoch_and_come_back(settings):
    setup = TrainingSetup(settings, augment={"preset": "standard", "views": 2})
    source, train = setup.sources[0], setup.dataset.indices("train")

    def look(epoch):
        return np.concatenate(list(source.batches(train, epoch, 8)))

    plain = np.concatenate(list(source.batches(train, None, 8)))
    assert not np.array_equal(look(0), plain)
    assert not np.array_equal(look(0), look(1))
    np.testing.assert_array_equal(look(0), look(2))


def test_the_moving_average_is_measured_and_kept(settings):
    settings["head"] |= {"ema": 0.999, "epochs": 1, "schedule": "constant", "learning_rate": 0.05}
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    start = weights_by_name(trainer.above)["logits/kernel"]
    setup.run(0, trainer)
    plain = TrainingSetup({**settings, "head": {**settings["head"], "ema": None}})
    plain.run(0)
    average, last = (
        weights_by_name(trainer.above)["logits/kernel"],
        weights_by_name(plain.classifier.model)["logits/kernel"],
    )
    assert 0 < np.linalg.norm(average - start) < 0.5 * np.linalg.norm(last - start)


def test_plateau_lowers_the_rate_when_progress_ends(settings):
    settings["head"] |= {"schedule": "plateau", "epochs": 5, "learning_rate": 0.01}
    setup = TrainingSetup(settings)
    trainer = setup.trainer(0)
    trainer.validate = lambda: validation(1.0, 0.5)
    setup.run(0, trainer)
    rates = [row["learning_rate"] for row in setup.rows]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.002, 0.002])


def test_oversampling_shows_every_class_equally_often(settings):
    setup = TrainingSetup(settings, imbalance="oversample")
    trainer = setup.trainer(0)
    labels, train = setup.dataset.labels, trainer.train_indices
    rare = (labels == 0) & (np.cumsum(labels == 0) % 5 > 0)
    trainer.train_indices = np.setdiff1d(train, np.flatnonzero(rare))  # a fifth of class 0
    labels = np.concatenate([labels for _, labels in trainer.epoch_batches()])
    counts = np.bincount(labels)
    assert counts.min() == counts.max() == np.bincount(trainer.dataset.labels[trainer.train_indices]).max()


def test_all_phases_in_one_call_are_the_phases_one_by_one(settings):
    settings["head"]["start"] = "random"
    one_by_one, together = TrainingSetup(settings), TrainingSetup(settings)
    results = [one_by_one.run(0), one_by_one.run(1)]
    heard = []

    class Listener(Callback):
        def on_phase_begin(self):
            heard.append(self.trainer.phase.name)

        def on_train_end(self):
            heard.append("end")

    everything = fit_phases(
        together.phases,
        together.classifier,
        together.sources,
        together.dataset,
        config=together.config,
        callbacks=[Listener()],
    )
    assert list(everything) == results
    assert together.weights() == one_by_one.weights()
    assert heard == ["head", "fine_tune", "end"]
