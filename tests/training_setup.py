"""Everything a phase needs, built from a mapping of settings, for the tests of the loop and its parts."""

import numpy as np

from finetune.config import load_config
from finetune.data import open_dataset
from finetune.evaluation import ValidationScores
from finetune.models import FeatureRequest, build_classifier, prepare_features
from finetune.training.journal import Journal
from finetune.training.loop import Trainer, fit_phase
from finetune.training.phases import plan_phases
from finetune.utils import sha256_of


class TrainingSetup:
    """A classifier, a data set, phases and their features."""

    def __init__(self, settings, **changes):
        self.config = load_config({**settings, **changes})
        self.dataset = open_dataset(self.config.data, seed=self.config.seed)
        self.classifier = build_classifier(self.config.model, self.dataset.classes, seed=self.config.seed)
        self.phases = plan_phases(self.config, self.classifier)
        cuts = [phase.cut for phase in self.phases]
        self.sources = prepare_features(
            FeatureRequest(self.classifier, self.dataset, cuts, self.config.augment, self.config.seed),
            policy=self.config.cache,
        )

    def trainer(self, number=0, state=None, phase=None):
        return Trainer(
            phase or self.phases[number],
            self.classifier,
            self.sources[number],
            self.dataset,
            config=self.config,
            state=state,
        )

    def run(self, number=0, trainer=None, check_stop=lambda: None):
        """Trains one phase; `journal` then has what it left."""
        self.journal = MemoryJournal()
        return fit_phase(
            trainer or self.trainer(number), has_start=number > 0, journal=self.journal, check_stop=check_stop
        )

    @property
    def rows(self):
        """The history of the last phase, without what depends on the clock."""
        return [{**row, "seconds": 0} for row in self.journal.rows]

    def weights(self):
        return sha256_of(np.ascontiguousarray(value).data for value in self.classifier.model.get_weights())


class MemoryJournal(Journal):
    """Keeps the history and the last checkpoint in memory."""

    def __init__(self):
        self.rows, self.arrays, self.state = [], {}, {}

    def append_history(self, row):
        self.rows.append(row)

    def save_checkpoint(self, name, arrays, state):
        self.arrays, self.state = dict(arrays), dict(state)


def validation(loss, accuracy, n=100):
    return ValidationScores(np.full(n, loss), np.arange(n) < round(accuracy * n))


def weights_by_name(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def changed_layers(before, after):
    return {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}
