"""The baseline of a training: a linear probe on the features of the frozen backbone, and the head's first weights."""

import numpy as np

from finetune.evaluation import LinearProbe, adjust_probe, fit_linear_probe, sample_for_probe
from finetune.models import Classifier
from finetune.training.trainer import Trainer, class_frequencies


def probe_head_features(phase: Trainer) -> LinearProbe | None:
    """The probe on the unaugmented features of a head phase; None if there are too many classes for one."""
    train, validation, labels = phase.train_indices, phase.validation_indices, phase.dataset.labels
    classes, imbalance = len(phase.classifier.classes), phase.config.imbalance
    positions = sample_for_probe(labels[train], phase.phase.cut.shape[-1], classes, seed=phase.seed)
    if positions is None:
        return None
    chosen = train[positions]
    probe = fit_linear_probe(
        _features(phase, chosen),
        labels[chosen],
        _features(phase, validation),
        labels[validation],
        classes=classes,
        balanced=imbalance in ("weights", "oversample"),
    )
    return adjust_probe(probe, class_frequencies(phase)) if imbalance == "logit_adjust" else probe


def _features(phase: Trainer, indices: np.ndarray) -> np.ndarray:
    return np.concatenate(list(phase.source.batches(indices, None, 512)))


def set_head_weights(probe: LinearProbe, classifier: Classifier) -> None:
    """Makes the head, which must be one dense layer, give the scores of `probe`."""
    classifier.model.get_layer("logits").set_weights([probe.kernel, probe.bias])
