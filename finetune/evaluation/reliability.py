"""Whether what the validation images promised holds on the test images: the accuracy, and all that was fitted on them.

    gap = compare_splits(validation_correct, test_correct)        # (N,) and (M,): how correct each prediction is
    checks = check_decisions(decisions, tested, probabilities, labels)      # of the test images
    for problem in [check for check in checks if not check.holds]: ...

Nothing is chosen here: the test images are looked at once, and what they show is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.data import label_type_of
from finetune.evaluation.calibration import Decisions
from finetune.evaluation.metrics import Proportion, calibration_error, sign_flip_p_value, two_sample_p_value
from finetune.evaluation.multilabel import compare_thresholds
from finetune.evaluation.precision import find_tested, keeps_precision, threshold_for_precision
from finetune.evaluation.tasks import score_logits, task_for
from finetune.models import RiskCoveragePoint
from finetune.utils import format_percent

LEVEL = 0.05  # a difference that chance makes less often is called one
PROMISES = (0.9, 0.95, 0.98, 0.99)  # precisions that are checked
USUAL_REASON = (
    "Usually the validation images then resemble the training images more than new images do (photos of one series, "
    "slices of one patient): believe the test accuracy, and let no series or patient be in both train and validation."
)
OTHER_REASON = "Usually the test images are then easier, or of other kinds, than the validation images."


@dataclass(frozen=True)
class Gap:
    """The accuracy on validation and on test images, and how likely chance alone makes them so different."""

    validation: Proportion
    validation_n: int
    test: Proportion
    test_n: int
    p_value: float

    @property
    def difference(self) -> float:
        """The accuracy on test less that on validation."""
        return self.test.value - self.validation.value

    @property
    def differs(self) -> bool:
        """Whether that is more than chance, at the 5 % level."""
        return self.p_value < LEVEL

    def sentence(self) -> str:
        """The two figures with their n, and what a difference usually means."""
        figures = (
            f"Validation accuracy {format_percent(self.validation.value)} (n = {self.validation_n:,}), test accuracy "
            f"{format_percent(self.test.value)} (n = {self.test_n:,})"
        )
        if not self.differs:
            return f"{figures}: no more than chance apart (p = {self.p_value:.2g})."
        reason = USUAL_REASON if self.difference < 0 else OTHER_REASON
        apart = f"{abs(100 * self.difference):.1f} points apart, more than chance (p = {self.p_value:.2g})"
        return f"{figures}: {apart}. {reason}"

    def to_json(self) -> dict[str, Any]:
        return {
            "difference": self.difference,
            "p_value": self.p_value,
            "differs": self.differs,
            "sentence": self.sentence(),
        }


def compare_splits(
    validation: Proportion, validation_correct: np.ndarray, test: Proportion, test_correct: np.ndarray
) -> Gap:
    """The gap between the accuracies of two splits; the arrays say how correct each prediction is, 0 to 1."""
    p_value = two_sample_p_value(validation_correct, test_correct)
    return Gap(validation, len(validation_correct), test, len(test_correct), p_value)


@dataclass(frozen=True)
class Check:
    """Something that was fitted on validation images, and whether it holds on the test images; `facts` are figures."""

    fitted: str  # "temperature", "thresholds" or "precision"
    holds: bool
    sentence: str
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"holds": self.holds, "sentence": self.sentence, **self.facts}


def check_decisions(
    decisions: Decisions, tested: Sequence[RiskCoveragePoint], probabilities: np.ndarray, labels: np.ndarray
) -> list[Check]:
    """A check of everything that was fitted; `probabilities` (n, classes) are those of the test images, `tested` their
    risk-coverage curve at the thresholds of `decisions`."""
    checks = []
    if decisions.temperature != 1:
        checks.append(check_temperature(decisions.temperature, probabilities, labels))
    if decisions.thresholds:
        checks.append(check_thresholds(decisions.thresholds, probabilities, labels))
    checks += check_precision(decisions.confidences, tested)
    return checks


def check_temperature(temperature: float, probabilities: np.ndarray, labels: np.ndarray) -> Check:
    """Are the probabilities that `temperature` made worse than before: is their loss higher by more than chance?"""
    task = task_for(label_type_of(labels))
    logits = task.logits(probabilities)
    before, after = (score_logits(by * logits, labels).losses for by in (temperature, 1.0))
    changes = after - before
    holds = bool(changes.sum() <= 0 or sign_flip_p_value(changes) >= LEVEL)
    losses = float(before.mean()), float(after.mean())
    errors = tuple(
        calibration_error(task.calibration(rows, labels))
        for rows in (task.probabilities(temperature * logits), probabilities)
    )
    figures = (
        f"on the test images it changes the log loss from {losses[0]:.3f} to {losses[1]:.3f}, the calibration error "
        f"from {errors[0]:.3f} to {errors[1]:.3f}"
    )
    sentence = f"The temperature {temperature:.2f} was fitted on the validation images; {figures}."
    if not holds:
        sentence += " It does not hold there: the probabilities are unreliable (calibrate: false leaves them alone)."
    facts = {
        "value": temperature,
        "log_loss": {"without": losses[0], "with": losses[1]},
        "calibration_error": {"without": errors[0], "with": errors[1]},
    }
    return Check("temperature", holds, sentence, facts)


def check_thresholds(thresholds: Sequence[float], probabilities: np.ndarray, labels: np.ndarray) -> Check:
    """Are the thresholds of the labels worse than 0.5 for all: is their macro F1 lower by more than chance?"""
    compared = compare_thresholds(probabilities, labels, thresholds)
    holds = compared.high >= 0
    sentence = (
        f"The thresholds of the labels were fitted on the validation images; on the test images their macro F1 is "
        f"{format_percent(compared.fitted)}, and {format_percent(compared.half)} with 0.5 for all."
    )
    if not holds:
        sentence += " They do not hold there and are unreliable."
    return Check("thresholds", holds, sentence, {"macro_f1": asdict(compared)})


def check_precision(curve: Sequence[RiskCoveragePoint], tested: Sequence[RiskCoveragePoint]) -> list[Check]:
    """Is each precision that `curve` promises kept at the same threshold on the test images? None without a promise."""
    promises, broken = [], ""
    for precision in PROMISES:
        point = threshold_for_precision(curve, precision)
        test = point and find_tested(tested, point)
        if not point or not test:
            continue
        holds = keeps_precision(test, precision)
        if not holds:
            broken = (
                f"Of the predictions that --precision {precision} leaves, {format_percent(point.precision)} were "
                f"correct on the validation images, and {format_percent(test.precision)} of {test.images:,} on the "
                "test images: it does not hold there, and is unreliable."
            )
        facts = {"precision": precision, "validation": point._asdict(), "test": test._asdict(), "holds": holds}
        promises.append(facts)
    if not promises:
        return []
    named = ", ".join(str(promise["precision"]) for promise in promises)
    sentence = broken or f"What --precision promises holds on the test images ({named})."
    return [Check("precision", not broken, sentence, {"promises": promises})]
