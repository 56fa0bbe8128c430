"""What has to be known before the first step of a phase: its learning rate, its epochs, the first weights of the head.

    has_start = start_head(classifier, ...) the head gets the weights of a linear probe
    phase = settle_phase(phase, ...)        `time_budget` and `learning_rate: auto`, by a few trial steps

Where several processes train together, rank 0 decides, for clocks differ; the trial steps are made by all of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.config import Config
from finetune.evaluation import LinearProbe, adjust_probe, fit_linear_probe, sample_for_probe
from finetune.models import FeatureSource
from finetune.training.distributed.group import process_group
from finetune.training.journal import Journal
from finetune.training.losses import class_frequencies
from finetune.training.lr_finder import find_learning_rate, seconds_per_epoch
from finetune.training.phases import Phase

if TYPE_CHECKING:
    from finetune.data import Dataset
    from finetune.models import Classifier
    from finetune.training.loop import Trainer

PROBE_BATCH = 512
AT_REST = 1e-3  # the learning rate of a phase without epochs: any number
Timer = Callable[[str], AbstractContextManager[Any]]
FitProbe = Callable[["Classifier", FeatureSource, "Dataset", Config], LinearProbe | None]


def settle_phase(
    phase: Phase,
    phases_left: int,
    has_start: bool,
    make_trainer: "Callable[[Phase], Trainer]",
    journal: Journal,
    timer: Timer,
) -> Phase:
    """`phase` with what only trial steps can tell: the epochs that the time allows, the rate for `learning_rate: auto`.

    What `journal` has settled before is taken from there, so that a resumed run continues with the same. `phases_left`
    phases, this one among them, divide the time. Without `has_start` the phase begins with random numbers, and gets an
    epoch in any case.
    """
    group, planned = process_group(), phase.settings.epochs
    settled = group.broadcast(journal.settled(phase.name))
    if "epochs" not in settled and planned and group.broadcast(journal.seconds_left()) is not None:
        with timer("trials"):
            seconds = seconds_per_epoch(phase, make_trainer)
        affordable = int((journal.seconds_left() or 0.0) / phases_left / seconds)
        settled["epochs"] = group.broadcast(min(planned, max(0 if has_start else 1, affordable)))
        journal.note_epochs(phase.name, settled["epochs"], planned, seconds)
    phase = replace(phase, settings=phase.settings.model_copy(update=settled))
    if phase.settings.learning_rate == "auto":
        rate = AT_REST
        if phase.settings.epochs:
            with timer("trials"):
                curve = find_learning_rate(phase, make_trainer)
            rate = group.broadcast(curve.chosen)
            journal.note_learning_rate(phase.name, curve)
        phase = replace(phase, settings=phase.settings.model_copy(update={"learning_rate": rate}))
    return phase


def start_head(
    classifier: "Classifier",
    source: FeatureSource,
    dataset: "Dataset",
    config: Config,
    journal: Journal,
    timer: Timer,
    fit_probe: FitProbe,
) -> bool:
    """Give the head the weights of a linear probe, where the config and the head allow it; return whether it has them.

    The head must be one dense layer, and there must be enough images of every class.
    """
    if config.head.start == "random" or not classifier.spec.linear_head:
        return False
    group, head = process_group(), classifier.model.get_layer("logits")
    with timer("baseline"):
        probe = fit_probe(classifier, source, dataset, config) if group.rank == 0 else None
    has_probe = group.broadcast(probe is not None)
    if probe:
        head.set_weights([probe.kernel, probe.bias])
    if has_probe:
        group.broadcast_variables(head.variables)
    journal.note_linear_probe(probe)
    return has_probe


def fit_head_probe(
    classifier: "Classifier", source: FeatureSource, dataset: "Dataset", config: Config
) -> LinearProbe | None:
    """The linear probe on the unaugmented features of the head phase; None if there are too many classes for one."""
    train, validation, labels = dataset.indices("train"), dataset.indices("validation"), dataset.labels
    classes = len(classifier.classes)
    positions = sample_for_probe(labels[train], classifier.head_input.shape[-1], classes, seed=config.seed)
    if positions is None:
        return None

    def features(indices: np.ndarray) -> np.ndarray:
        return np.concatenate(list(source.batches(indices, None, PROBE_BATCH)))

    chosen = train[positions]
    probe = fit_linear_probe(
        features(chosen),
        labels[chosen],
        features(validation),
        labels[validation],
        classes=classes,
        balanced=config.imbalance in ("weights", "oversample"),
    )
    if config.imbalance == "logit_adjust":
        return adjust_probe(probe, class_frequencies(labels[train], dataset.label_type, classes))
    return probe
