"""What is known before the first step: the weights of the linear probe, and what fits into the time."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from training_setup import MemoryJournal, TrainingSetup

from finetune.config import load_config
from finetune.models import build_classifier
from finetune.training.loop import fit_phases
from finetune.training.phase_start import fit_head_probe, settle_phase, start_head
from finetune.utils import keras

pytestmark = pytest.mark.usefixtures("warm_cache")


@pytest.fixture
def setup(settings):
    del settings["head"]["start"]
    return TrainingSetup(settings)


class Notes(MemoryJournal):
    """Notes what was decided; `left` seconds are left."""

    def __init__(self, left=None):
        super().__init__()
        self.left, self.notes = left, {}

    def seconds_left(self):
        return self.left

    def settled(self, phase):
        return dict(self.notes)

    def note_learning_rate(self, phase, curve):
        self.notes["learning_rate"] = curve.chosen

    def note_epochs(self, phase, epochs, planned, seconds_per_epoch):
        self.notes["epochs"] = epochs

    def note_linear_probe(self, probe):
        self.notes["probe"] = probe


def timer(stage):
    return nullcontext()


def parts(setup):
    return setup.classifier, setup.sources[0], setup.dataset, setup.config


def test_the_head_gives_the_scores_of_the_probe(setup):
    journal = Notes()
    assert start_head(*parts(setup), journal, timer, fit_head_probe)
    probe = journal.notes["probe"]
    assert probe.accuracy == pytest.approx(setup.trainer(0).validate().accuracy)
    features = np.random.default_rng(0).normal(size=(4, len(probe.kernel))).astype("float32")
    head = keras.Model(setup.classifier.head_input, setup.classifier.model.output)
    np.testing.assert_allclose(head(features), features @ probe.kernel + probe.bias, rtol=1e-4, atol=1e-4)


def test_without_a_probe_the_head_starts_from_random_numbers(setup):
    journal, before = Notes(), setup.weights()
    assert not start_head(*parts(setup), journal, timer, lambda *_: None)
    assert journal.notes["probe"] is None
    assert setup.weights() == before


def test_only_a_head_of_one_dense_layer_can_start_from_a_probe():
    for extra, linear in (({}, True), ({"hidden": [4]}, False), ({"cosine": True}, False)):
        config = load_config({"data": {"builtin": "digits"}, "model": {"backbone": "tiny", "weights": "none", **extra}})
        assert build_classifier(config.model, ["a", "b"]).spec.linear_head is linear


def test_a_learning_rate_is_found_once(settings):
    settings["head"]["learning_rate"] = "auto"
    setup, journal = TrainingSetup(settings), Notes()

    def make_trainer(phase):
        return setup.trainer(phase=phase)

    phase = settle_phase(setup.phases[0], 2, True, make_trainer, journal, timer)
    assert phase.settings.learning_rate == journal.notes["learning_rate"]
    again = settle_phase(setup.phases[0], 2, True, lambda phase: pytest.fail("tried again"), journal, timer)
    assert again.settings == phase.settings


def test_a_learning_rate_is_found_on_the_head_that_is_trained(setup):
    """That is the regression, for which the rate is another than for random numbers."""
    seen = []

    class Listener(Notes):
        def note_learning_rate(self, phase, curve):
            seen.append(curve)
            super().note_learning_rate(phase, curve)

    head = setup.config.head.model_copy(update={"learning_rate": "auto", "epochs": 1})
    config = setup.config.model_copy(update={"head": head})
    phase = replace(setup.phases[0], settings=head)
    journal = Listener()
    fit_phases([phase], setup.classifier, setup.sources, setup.dataset, config=config, journal=journal)
    assert seen[0].losses[0] < 0.5 * np.log(3)  # that of random numbers


@pytest.mark.parametrize(
    ("number", "has_start", "left", "epochs"),
    [(1, True, 0.0, 0), (1, True, 1e6, 2), (0, True, -5.0, 0), (0, False, -5.0, 1), (0, False, 1e6, 3)],
)
def test_epochs_are_what_fits_into_the_time_that_is_left(settings, number, has_start, left, epochs):
    """The head is no exception, but does not stay random numbers."""
    setup, journal = TrainingSetup(settings), Notes(left)

    def make_trainer(phase):
        return setup.trainer(number, phase=phase)

    phase = settle_phase(setup.phases[number], 1, has_start, make_trainer, journal, timer)
    assert phase.settings.epochs == journal.notes["epochs"] == epochs
