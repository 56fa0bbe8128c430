"""The ten-second baseline: logistic regression on the features of the frozen backbone, and the head's first weights.

    found = of(head_phase)
    found.accuracy                      # on validation, before any training
    put(found, classifier)              # the head starts there

A linear head has one best solution, and L-BFGS finds it in seconds; gradient steps only come near it (Kornblith,
Shlens & Le 2019, Do Better ImageNet Models Transfer Better?, evaluate features in this way).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.data import label_type_of
from finetune.evaluation import score_logits
from finetune.models import Classifier
from finetune.training.trainer import Trainer, class_frequencies

PENALTIES = (1.0, 0.1, 0.03, 0.01, 0.003)  # on the mean loss; the strongest first, each starts from the one before
WORK = 1_000_000_000  # images x features x classes: about a minute on two cores, and more images would add little
MOST = 50_000  # images
FEWEST = 2  # images per class that a regression needs


@dataclass(frozen=True)
class LinearProbe:
    """`features (n, F) @ kernel + bias` are class scores; kernel (F, C), bias (C,), both float32."""

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float
    accuracy: float  # on validation, 0..1
    loss: float  # on validation, mean cross-entropy in nats


def probe_head_features(phase: Trainer) -> LinearProbe | None:
    """The regression on the features of a head phase, undisturbed ones; None if there are too many classes for one.

    Where an image has any number of labels, it is a regression for each of them.
    """
    train, validation = phase.train_indices, phase.validation_indices
    classes, labels = len(phase.classifier.classes), phase.dataset.labels
    places = probe_sample(labels[train], phase.phase.cut.shape[-1], classes, seed=phase.seed)
    if places is None:
        return None
    chosen, imbalance = train[places], phase.config.imbalance
    found = fit_head_probe(
        _features(phase, chosen),
        labels[chosen],
        _features(phase, validation),
        labels[validation],
        classes=classes,
        balanced=imbalance in ("weights", "oversample"),
    )
    if imbalance == "logit_adjust":  # training will add the logarithm of how common a class is
        return replace(found, bias=(found.bias - np.log(class_frequencies(phase))).astype(np.float32))
    return found


def _features(phase: Trainer, indices: np.ndarray) -> np.ndarray:
    return np.concatenate(list(phase.source.batches(indices, None, 512)))


def probe_sample(labels: np.ndarray, width: int, classes: int, *, seed: int) -> np.ndarray | None:
    """Places of the examples to fit on: all, or as many as `WORK` allows; None if that would be too few of each."""
    enough = min(MOST, WORK // (width * classes))
    if enough < FEWEST * classes:
        return None
    chosen = np.random.default_rng(seed).permutation(len(labels))[:enough]
    return np.sort(chosen) if label_type_of(labels).covers_all(labels[chosen], classes) else None


def fit_head_probe(
    train: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    *,
    classes: int,
    balanced: bool = False,
) -> LinearProbe:
    """Fits features (n, F) float32 to labels of `classes`, all of which occur; validation picks the penalty.

    `balanced` gives every class the same weight, however rare it is.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    scaled, found = (train - mean) / deviation, None
    weight = "balanced" if balanced else None
    columns = label_type_of(labels).binary_columns(labels)
    models = [LogisticRegression(max_iter=100, tol=1e-3, warm_start=True, class_weight=weight) for _ in columns]
    for penalty in PENALTIES:
        for model, column in zip(models, columns, strict=True):
            model.C = 1 / (penalty * len(train))  # scikit-learn penalises against the sum of the losses
            model.fit(scaled, column)
        new = _spread(models, mean, deviation, penalty, classes)
        new = _measured(new, validation, validation_labels)
        if found is not None and new.loss > found.loss:
            break  # weaker still would only overfit more
        found = new
    assert found is not None
    return found


def _spread(models: list[Any], mean: np.ndarray, deviation: np.ndarray, penalty: float, classes: int) -> LinearProbe:
    """The regressions for features as they come, not standardised; two classes get a column each."""
    coefficients = np.concatenate([model.coef_ for model in models])
    intercept = np.concatenate([model.intercept_ for model in models])
    if len(coefficients) < classes:
        coefficients, intercept = np.vstack([-coefficients, coefficients]) / 2, np.array([-1, 1]) * intercept / 2
    kernel = coefficients.T / deviation[:, None]
    bias = intercept - mean @ kernel
    return LinearProbe(kernel.astype(np.float32), bias.astype(np.float32), penalty, 0.0, 0.0)


def _measured(found: LinearProbe, features: np.ndarray, labels: np.ndarray) -> LinearProbe:
    result = score_logits(features @ found.kernel + found.bias, labels)
    return replace(found, accuracy=result.accuracy, loss=result.loss)


def set_head_weights(found: LinearProbe, classifier: Classifier) -> None:
    """Makes the head answer as `found` does. The head must be one dense layer."""
    classifier.model.get_layer("logits").set_weights([found.kernel, found.bias])
