"""Train many configs on one data set, one after the other, and compute nothing twice: the trials of a sweep.

    trials = TrialTrainer(dataset)
    results = trials.fit(config)
    results[-1].validation["accuracy"]

A trial is `fit_phases` without a run folder, and ends with the weights that a run of the same config ends with. What
does not differ from the trial before is used again: the network (its initial weights are put back), the features,
and the linear probe that the head starts from.
"""

import gc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.config import Config
from finetune.data import Dataset
from finetune.evaluation import LinearProbe
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
from finetune.training.loop import fit_phases
from finetune.training.model_state import assign_values
from finetune.training.phase_start import fit_head_probe
from finetune.training.phases import Phase, plan_phases
from finetune.training.start_checks import refuse_endless_accumulation
from finetune.utils import keras

HEAD_ONLY = {"dropout", "hidden", "cosine", "batch_norm"}  # keys of `model` that change no feature of a frozen network
NOT_IN_FEATURES = {"preset", "mixup", "cutmix"}  # keys of `augment` that change no feature


@dataclass(frozen=True)
class _Network:
    key: Hashable
    classifier: Classifier
    initial: tuple[np.ndarray, ...]  # values of all its variables


class TrialTrainer:
    """Trains configs that differ in anything but the data. Keeps the network and the features of the last one."""

    def __init__(self, dataset: Dataset, *, say: Callable[[str], None] = lambda _: None) -> None:
        self.dataset = dataset
        self._say = say
        self._network: _Network | None = None
        self._features: tuple[Hashable, list[FeatureSource]] | None = None
        self._probes: dict[Hashable, LinearProbe | None] = {}

    def fit(
        self,
        config: Config,
        *,
        callbacks: Sequence[Callback] = (),
        check_stop: Callable[[], None] = lambda: None,
    ) -> tuple[PhaseResult, ...]:
        """Train `config`, in which nothing is left open (see `fill_open_keys`); the result of each phase.

        Raises what a training raises; `check_stop` is called at every step and may raise, too.
        """
        classifier = self._build(config)
        phases = plan_phases(config, classifier)
        refuse_endless_accumulation(phases, self.dataset, config)
        results = fit_phases(
            phases,
            classifier,
            self._sources(config, classifier, phases),
            self.dataset,
            config=config,
            callbacks=callbacks,
            check_stop=check_stop,
            fit_probe=self._fit_probe,
        )
        gc.collect()  # compiled steps hold cycles, which would otherwise accumulate over the trials
        return results

    def _build(self, config: Config) -> Classifier:
        """The network of `config` with its initial weights, as if it had just been built."""
        key = (config.model.model_dump_json(), config.seed)
        if self._network is None or self._network.key != key:
            if self._network is not None:
                self._network = None
                keras.backend.clear_session()
            classifier = build_classifier(
                config.model, self.dataset.classes, seed=config.seed, multi_label=config.data.multi_label
            )
            self._network = _Network(key, classifier, tuple(value.numpy() for value in classifier.model.variables))
        classifier = self._network.classifier
        assign_values(classifier.model.variables, self._network.initial)
        classifier.changed.clear()
        return classifier

    def _sources(self, config: Config, classifier: Classifier, phases: Sequence[Phase]) -> list[FeatureSource]:
        key = (*_frozen_part(config), tuple(phase.blocks for phase in phases))
        if self._features is not None and self._features[0] == key:
            return self._features[1]
        self._features = None  # before both are in memory
        cuts = [phase.cut for phase in phases]
        request = FeatureRequest(classifier, self.dataset, cuts, config.augment, config.seed)
        sources = prepare_features(request, policy=config.cache, say=self._say)
        if all(isinstance(source, CachedFeatures) for source in sources):  # others compute with this very network
            self._features = key, sources
        return sources

    def _fit_probe(
        self, classifier: Classifier, source: FeatureSource, dataset: Dataset, config: Config
    ) -> LinearProbe | None:
        key = (*_frozen_part(config), config.imbalance)
        if key not in self._probes:
            self._probes[key] = fit_head_probe(classifier, source, dataset, config)
        return self._probes[key]


def _frozen_part(config: Config) -> tuple[Any, ...]:
    """What decides the features that come out of the frozen part of a network."""
    return (
        config.model.model_dump_json(exclude=HEAD_ONLY),
        config.augment.model_dump_json(exclude=NOT_IN_FEATURES),
        config.seed,
        config.cache,
    )
