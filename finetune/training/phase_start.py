"""What has to be known before the first step of a phase: its learning rate, its epochs, the first weights of the head.

    phase = settle_phase(phase, ...)        `learning_rate: auto` and `time_budget`, by a few trial steps
    has_start = start_head(trainer, ...)    the head gets the weights of a linear probe

Where several processes train together, rank 0 decides, for clocks differ; the trial steps are made by all of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluation import LinearProbe, adjust_probe, fit_linear_probe, sample_for_probe
from finetune.training.distributed.group import process_group
from finetune.training.journal import Journal
from finetune.training.lr_finder import find_learning_rate, seconds_per_epoch
from finetune.training.phases import Phase

if TYPE_CHECKING:
    from finetune.training.loop import Trainer

PROBE_BATCH = 512
Timer = Callable[[str], AbstractContextManager[Any]]


def settle_phase(
    phase: Phase,
    phases_left: int,
    make_trainer: "Callable[[Phase], Trainer]",
    journal: Journal,
    timer: Timer,
) -> Phase:
    """`phase` with what only trial steps can tell: the rate for `learning_rate: auto`, the epochs that the time allows.

    What `journal` has settled before is taken from there, so that a resumed run continues with the same. `phases_left`
    phases, this one among them, divide the time.
    """
    group = process_group()
    settled = group.broadcast(journal.settled(phase.name))
    has_budget = journal.seconds_left() is not None and phase.settings.epochs > 0 and phase.index > 0
    if phase.settings.learning_rate == "auto" and "learning_rate" not in settled:
        with timer("trials"):
            curve = find_learning_rate(phase, make_trainer)
        settled["learning_rate"] = group.broadcast(curve.chosen)
        journal.note_learning_rate(phase.name, curve)
    phase = replace(phase, settings=phase.settings.model_copy(update=settled))
    if has_budget and "epochs" not in settled:
        with timer("trials"):
            seconds = seconds_per_epoch(phase, make_trainer)
        planned, seconds_left = phase.settings.epochs, journal.seconds_left() or 0.0
        epochs = group.broadcast(max(0, min(planned, int(seconds_left / phases_left / seconds))))
        journal.note_epochs(phase.name, epochs, planned, seconds)
        phase = replace(phase, settings=phase.settings.model_copy(update={"epochs": epochs}))
    return phase


def start_head(
    trainer: "Trainer", journal: Journal, timer: Timer, fit_probe: "Callable[[Trainer], LinearProbe | None]"
) -> bool:
    """Give the head the weights of a linear probe, where the config and the head allow it; return whether it has them.

    The head must be one dense layer, and there must be enough images of every class.
    """
    if trainer.config.head.start == "random" or not trainer.classifier.spec.linear_head:
        return False
    group, head = process_group(), trainer.classifier.model.get_layer("logits")
    with timer("baseline"):
        probe = fit_probe(trainer) if group.rank == 0 else None
    has_probe = group.broadcast(probe is not None)
    if probe:
        head.set_weights([probe.kernel, probe.bias])
    if has_probe:
        group.broadcast_variables(head.variables)
    journal.note_linear_probe(probe)
    return has_probe


def fit_head_probe(trainer: "Trainer") -> LinearProbe | None:
    """The linear probe on the unaugmented features of the head phase; None if there are too many classes for one."""
    train, validation, labels = trainer.train_indices, trainer.validation_indices, trainer.dataset.labels
    classes, imbalance = len(trainer.classifier.classes), trainer.config.imbalance
    positions = sample_for_probe(labels[train], trainer.phase.cut.shape[-1], classes, seed=trainer.seed)
    if positions is None:
        return None

    def features(indices: np.ndarray) -> np.ndarray:
        return np.concatenate(list(trainer.source.batches(indices, None, PROBE_BATCH)))

    chosen = train[positions]
    probe = fit_linear_probe(
        features(chosen),
        labels[chosen],
        features(validation),
        labels[validation],
        classes=classes,
        balanced=imbalance in ("weights", "oversample"),
    )
    return adjust_probe(probe, trainer.class_frequencies) if imbalance == "logit_adjust" else probe
