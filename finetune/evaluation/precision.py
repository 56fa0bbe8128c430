"""A precision that is kept: below which confidence "unknown" is the better prediction, and can that be promised?

    curve = risk_coverage(probabilities, labels)          # of validation images; a classifier keeps it
    promise = promise_precision(classifier, 0.98)
    promise.threshold, promise.sentence(), promise.warning()

Of future predictions above the threshold 98 % shall be correct. That 98 % were on the validation images is not enough,
for half of all such thresholds are too low: a lower bound of the precision has to be 98 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.models import UNKNOWN, Classifier, RiskCoveragePoint
from finetune.utils import UsageError

CONFIDENCE = 0.9  # that a promised precision is kept
MAX_POINTS = 200  # of a risk-coverage curve


@dataclass(frozen=True)
class Promise:
    """From `point.threshold` on, predictions are correct in a fraction `precision` of cases, with 90 % confidence;
    `tested` is what the test images showed there, if any reached it."""

    precision: float
    point: RiskCoveragePoint
    tested: RiskCoveragePoint | None

    @property
    def threshold(self) -> float:
        return self.point.threshold

    def sentence(self) -> str:
        """What the threshold does, and what it rests on."""
        return (
            f"Predictions below {self.threshold:.3f} are {UNKNOWN}: on validation, {self.point.coverage:.1%} of the "
            f"images were above it, {self.point.precision:.1%} of them correct "
            f"(with 90 % confidence at least {precision_bounds([self.point])[0]:.1%})"
        )

    def warning(self) -> str:
        """Why the promise is unreliable: the test images did not keep it. Empty if they did, or if there are none."""
        if self.tested is None or keeps_precision(self.tested, self.precision):
            return ""
        return (
            f"on the test images {self.tested.precision:.1%} of {self.tested.images:,} such predictions were correct: "
            f"do not rely on {self.precision:.1%}"
        )


def promise_precision(classifier: Classifier, precision: float) -> Promise:
    """From which threshold on predictions of `classifier` have this precision; UsageError if none can be promised."""
    curve = classifier.spec.confidences
    if classifier.spec.multi_label:
        raise UsageError(
            f"{classifier.name} predicts any number of labels per image, each by a threshold of its own.",
            hint="--precision is for one class per image. --json has the probabilities, to set other thresholds.",
        )
    if not curve:
        raise UsageError(
            f"{classifier.name} does not know how often its predictions are correct.",
            hint="--precision needs a run that was trained with calibrate: true (the default).",
        )
    if not curve[-1].images:
        raise UsageError(
            f"{classifier.name} is of finetune 0.1, which did not note on how many images a precision was measured.",
            hint="--precision needs a run of this version: train again.",
        )
    point = threshold_for_precision(curve, precision)
    if point is None:
        needed = images_needed(curve, precision)
        more = f"about {needed:,} are needed" if needed else "it was never reached on them"
        raise UsageError(
            f"{classifier.name}: a precision of {precision:.1%} cannot be promised with {curve[-1].images:,} "
            f"validation images; {more}.",
            hint=f"Up to {max(precision_bounds(curve)):.1%} can be promised; or train with more validation images.",
        )
    return Promise(precision, point, find_tested(classifier.spec.tested, point))


def risk_coverage(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None = None
) -> tuple[RiskCoveragePoint, ...]:
    """For falling thresholds on the highest probability: the precision and the coverage of predictions above it.

    At `thresholds`, or else at `MAX_POINTS` that divide these images. Thresholds that no image reaches are left out.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    confidence, hits = confidence[order], np.cumsum(correct[order])
    if thresholds is None:
        last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))  # equal ones have one threshold
        last = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), MAX_POINTS)).astype(int))]
        thresholds = confidence[last].tolist()
    points = []
    for threshold in thresholds:
        images = int(np.searchsorted(-confidence, -threshold, side="right"))
        if images:
            point = RiskCoveragePoint(threshold, float(hits[images - 1]) / images, images / len(labels), images)
            points.append(point)
    return tuple(points)


def threshold_for_precision(curve: Sequence[RiskCoveragePoint], precision: float) -> RiskCoveragePoint | None:
    """The point with the most coverage whose precision is at least `precision` with 90 % confidence; None if none is.

    One bound is enough for the choice among many thresholds where less confident predictions are less often correct
    (Bates et al. 2021, Distribution-Free, Risk-Controlling Prediction Sets): a threshold that is too low is chosen only
    if the bound fails at the one where the true precision crosses `precision`.
    """
    bounds = precision_bounds(curve)
    good_enough = [point for point, bound in zip(curve, bounds, strict=True) if bound >= precision]
    return max(good_enough, key=lambda point: point.coverage, default=None)


def precision_bounds(curve: Sequence[RiskCoveragePoint]) -> list[float]:
    """What the true precision at each point exceeds with 90 % confidence; 0 if the number of images is not known."""
    images = np.array([point.images for point in curve])
    correct = images * np.array([point.precision for point in curve])
    return [float(bound) for bound in np.where(images > 0, _lower_bound(correct, images), 0.0)]


def _lower_bound(correct: npt.ArrayLike, images: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The one-sided exact bound (Clopper & Pearson 1934) of the fraction `correct` of `images`."""
    from scipy.stats import beta  # type: ignore[import-untyped]

    correct = np.asarray(correct, np.float64)
    bound = beta.ppf(1 - CONFIDENCE, np.maximum(correct, 1e-9), np.asarray(images) - correct + 1)
    return np.asarray(bound, np.float64)


def images_needed(curve: Sequence[RiskCoveragePoint], precision: float) -> int | None:
    """About how many validation images could promise `precision` if `curve` were the true one; None if none could."""
    above = np.geomspace(10, 1e7, 500)  # images above a threshold
    needed = []
    for point in curve:
        enough = above[_lower_bound(above * point.precision, above) >= precision]
        if len(enough):
            needed.append(float(enough[0] / point.coverage))
    if not needed:
        return None
    digit = 10 ** max(0, len(str(int(min(needed)))) - 2)  # two digits are as many as it knows, rounded up
    return int(math.ceil(min(needed) / digit) * digit)


def find_tested(tested: Sequence[RiskCoveragePoint], point: RiskCoveragePoint) -> RiskCoveragePoint | None:
    """What the test images showed at the threshold of `point`; None if none of them reached it."""
    return next((other for other in tested if other.threshold == point.threshold), None)


def keeps_precision(tested: RiskCoveragePoint, precision: float) -> bool:
    """Whether chance may have made the test images' precision as low as it is, if the true one is `precision`."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    correct = round(tested.precision * tested.images)
    return bool(binomtest(correct, tested.images, precision, alternative="less").pvalue >= 0.05)
