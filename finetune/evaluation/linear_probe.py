"""Linear probes: logistic regressions on features. They say what a head can reach, and give the head its first weights.

    probe = fit_linear_probe(features, labels, validation_features, validation_labels, classes=5)
    probe.accuracy                                            # on validation
    correct = cross_validate_probe(features, labels, seed=0)  # without validation images: one truth value per image

A linear head has one best solution, and L-BFGS finds it in seconds; gradient steps only come near it (Kornblith,
Shlens & Le 2019, Do Better ImageNet Models Transfer Better?, evaluate features in this way). Arrays only: no model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from finetune.data import label_type_of
from finetune.evaluation.tasks import score_logits

PENALTIES = (1.0, 0.1, 0.03, 0.01, 0.003)  # on the mean loss; the strongest first, each starts from the one before
MAX_WORK = 1_000_000_000  # images x features x classes: about a minute on two cores, and more images would add little
MAX_IMAGES = 50_000
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LinearProbe:
    """`features (n, F) @ kernel + bias` are class scores; kernel (F, C), bias (C,), both float32."""

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float
    accuracy: float  # on validation, 0..1
    loss: float  # on validation, mean cross-entropy in nats


def sample_for_probe(labels: np.ndarray, width: int, classes: int, *, seed: int) -> np.ndarray | None:
    """Positions of the examples to fit a probe on features of `width` numbers: all, or as many as `MAX_WORK` allows.

    None if these would be too few of some class.
    """
    size = min(MAX_IMAGES, MAX_WORK // (width * classes))
    if size < 2 * classes:
        return None
    chosen = np.random.default_rng(seed).permutation(len(labels))[:size]
    return np.sort(chosen) if label_type_of(labels).covers_all(labels[chosen], classes) else None


def fit_linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    *,
    classes: int,
    balanced: bool = False,
) -> LinearProbe:
    """Fit features (n, F) float32 to labels of `classes`, all of which occur; the validation loss picks the penalty.

    Labels (n, C) of 0 and 1 get a regression each. `balanced` gives every class the same weight, however rare it is.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = (features - mean) / deviation
    targets = label_type_of(labels).binary_columns(labels)
    weight = "balanced" if balanced else None
    models = [LogisticRegression(max_iter=100, tol=1e-3, warm_start=True, class_weight=weight) for _ in targets]
    best: LinearProbe | None = None
    for penalty in PENALTIES:
        for model, target in zip(models, targets, strict=True):
            model.C = 1 / (penalty * len(features))  # scikit-learn penalises against the sum of the losses
            model.fit(scaled, target)
        coefficients = np.concatenate([model.coef_ for model in models])
        intercept = np.concatenate([model.intercept_ for model in models])
        if len(coefficients) < classes:  # two classes have one column, which becomes a column each
            coefficients, intercept = np.vstack([-coefficients, coefficients]) / 2, np.array([-1, 1]) * intercept / 2
        unscaled = coefficients.T / deviation[:, None]  # for features that are not standardised
        bias = (intercept - mean @ unscaled).astype(np.float32)
        kernel = unscaled.astype(np.float32)
        scores = score_logits(validation_features @ kernel + bias, validation_labels)
        if best is not None and scores.loss > best.loss:
            break  # a weaker penalty would only overfit more
        best = LinearProbe(kernel, bias, penalty, scores.accuracy, scores.loss)
    assert best is not None
    return best


def adjust_probe(probe: LinearProbe, frequencies: np.ndarray) -> LinearProbe:
    """The probe for a training with logit adjustment, which adds the log frequency of every class to its score."""
    return replace(probe, bias=(probe.bias - np.log(frequencies)).astype(np.float32))


# ------------------------------------------------------------------------------------------- without validation


def sample_per_class(labels: npt.NDArray[np.int32], limit: int, seed: int) -> Ints:
    """Up to `limit` positions of each label, drawn with `seed`."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.flatnonzero(labels == label))[:limit] for label in np.unique(labels)])


def cross_validate(labels: Ints, predict: Callable[[Ints, Ints], Ints], *, seed: int) -> npt.NDArray[np.bool_]:
    """Which images (n,) are predicted correctly from the other folds by `predict(train, test)` -> labels of `test`.

    `train` and `test` are positions. There are 5 folds, or as many as the rarest class has images, at least 2.
    """
    from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]

    folds = StratifiedKFold(min(5, int(np.bincount(labels).min())), shuffle=True, random_state=seed)
    correct = np.zeros(len(labels), bool)
    for train, test in folds.split(labels, labels):
        correct[test] = predict(train, test) == labels[test]
    return correct


def cross_validate_probe(features: Floats, labels: Ints, *, seed: int) -> npt.NDArray[np.bool_]:
    """Which images a logistic regression on the other folds predicts correctly (n,).

    That is what a dense head on a frozen backbone converges to.
    """
    from sklearn.linear_model import LogisticRegression

    def predict(train: Ints, test: Ints) -> Ints:
        # One number brings the features of all backbones to one size; each for itself (StandardScaler) was 2 points
        # worse. From C=0.01 to 10 the accuracy on flower_photos stays within a point.
        scale = features[train].std() + 1e-9
        model = LogisticRegression(C=0.1, max_iter=500).fit(features[train] / scale, labels[train])
        return np.asarray(model.predict(features[test] / scale), np.int64)

    return cross_validate(labels, predict, seed=seed)
