"""How good a config is by its validation images, with no run directory: what a sweep asks many times over.

    bench = Bench(dataset)
    bench.measure(config).validation.accuracy

The config trains as in `experiment`, step for step, and ends with the same weights: a test compares the figures. What
does not differ from the config before is kept: the network (its variables are put back), the features, and the
regression that the head starts from.
"""

import gc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.config import Config
from finetune.data import Dataset
from finetune.evaluation import LinearProbe, ValidationScores
from finetune.models import (
    CachedFeatures,
    Classifier,
    FeatureRequest,
    FeatureSource,
    build_classifier,
    prepare_features,
)
from finetune.training.callbacks import Callback
from finetune.training.journal import PhaseResult
from finetune.training.loop import Trainer, fit_phases
from finetune.training.phase_start import fit_head_probe
from finetune.training.phases import Phase, plan_phases
from finetune.training.scoring import logits_above, validation_scores
from finetune.utils import ProgressCallback, keras

HEAD_ONLY = {"dropout", "hidden", "cosine", "batch_norm"}  # keys of `model` that change no feature of a frozen network
Say = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """A classifier, and all its variables as they were when it was built."""

    key: Hashable
    classifier: Classifier
    start: tuple[np.ndarray, ...]

    def restart(self) -> Classifier:
        """The classifier as it was built; nothing of an earlier training is left in it."""
        for variable, value in zip(self.classifier.model.variables, self.start, strict=True):
            variable.assign(value)
        self.classifier.changed.clear()
        return self.classifier


@dataclass(frozen=True)
class Measured:
    """What a training came to: the validation images with the weights that were kept, and how each phase went."""

    validation: ValidationScores
    phases: tuple[PhaseResult, ...]


class Bench:
    """Trains configs that differ in anything but the data, one after the other, on one data set."""

    def __init__(self, dataset: Dataset, *, progress: ProgressCallback | None = None, say: Say = lambda _: None):
        self.dataset = dataset
        self.progress = progress
        self.say = say
        self._network: Network | None = None
        self._sources: tuple[Hashable, list[FeatureSource]] | None = None
        self._baselines: dict[Hashable, LinearProbe | None] = {}

    def measure(
        self,
        config: Config,
        *,
        callbacks: Sequence[Callback] = (),
        check_stop: Callable[[], None] = lambda: None,
    ) -> Measured:
        """Trains `config` (its recipe complete).

        Raises what a training raises; `check_stop` is called at every step and may raise too.
        """
        keras.utils.set_random_seed(config.seed)
        classifier = self._classifier(config)
        phases = plan_phases(config, classifier)
        sources = self._features(config, classifier, phases)
        results = fit_phases(
            phases,
            classifier,
            sources,
            self.dataset,
            config=config,
            callbacks=callbacks,
            check_stop=check_stop,
            fit_probe=self._fit_probe,
        )
        scores = validation_scores(
            lambda indices: logits_above(classifier, phases[-1], sources[-1], indices),
            self.dataset.labels,
            self.dataset.indices("validation"),
        )
        gc.collect()  # compiled steps hold cycles, which would otherwise pile up over the trials
        return Measured(scores, results)

    def _fit_probe(self, trainer: Trainer) -> LinearProbe | None:
        key = (*_below(trainer.config), trainer.config.imbalance)
        if key not in self._baselines:
            self._baselines[key] = fit_head_probe(trainer)
        return self._baselines[key]

    def _classifier(self, config: Config) -> Classifier:
        key = (config.model.model_dump_json(), config.seed)
        if self._network is None or self._network.key != key:
            if self._network is not None:
                self._network = None
                keras.backend.clear_session()
            several = config.data.multi_label
            built = build_classifier(config.model, self.dataset.classes, seed=config.seed, multi_label=several)
            self._network = Network(key, built, tuple(variable.numpy() for variable in built.model.variables))
        return self._network.restart()

    def _features(self, config: Config, classifier: Classifier, phases: Sequence[Phase]) -> list[FeatureSource]:
        key = (*_below(config), tuple(phase.blocks for phase in phases))
        if self._sources is None or self._sources[0] != key:
            self._sources = None  # before there are two of them in memory
            found = prepare_features(
                FeatureRequest(classifier, self.dataset, [phase.cut for phase in phases], config.augment, config.seed),
                policy=config.cache,
                progress=self.progress or (lambda done, total: None),
                say=self.say,
            )
            if not all(isinstance(source, CachedFeatures) for source in found):
                return found  # they belong to this network
            self._sources = key, found
        return self._sources[1]


def _below(config: Config) -> tuple[Any, ...]:
    """What decides the numbers that come out of the frozen part."""
    return (
        config.model.model_dump_json(exclude=HEAD_ONLY),
        config.augment.model_dump_json(exclude={"preset", "mixup", "cutmix"}),
        config.seed,
        config.cache,
    )
