"""Whether probabilities can be believed: the calibration curve, and precision over coverage."""

from collections.abc import Sequence

from finetune.evaluation.figures.style import BLUE, DASHES, MUTED, ORANGE, new_figure, percent_tick, style_axes, to_png
from finetune.evaluation.metrics import CalibrationBin, wilson_interval


def draw_calibration(bins: Sequence[CalibrationBin], *, of_labels: bool = False) -> bytes:
    """Predicted probability against the fraction that is correct, with 95 % intervals; below, how many images have it.

    With `of_labels`, every label of every image has a probability of its own.
    """
    figure = new_figure(5.6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    intervals = [wilson_interval(round(row.accuracy * row.n), row.n) for row in bins]
    below = [max(0, row.accuracy - interval.low) for row, interval in zip(bins, intervals, strict=True)]
    above = [max(0, interval.high - row.accuracy) for row, interval in zip(bins, intervals, strict=True)]
    confidence, accuracy = [row.confidence for row in bins], [row.accuracy for row in bins]
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHES)
    upper.errorbar(
        confidence, accuracy, yerr=[below, above], fmt="o-", color=BLUE, markersize=5, linewidth=1.8, elinewidth=1
    )
    ylabel = "fraction that has the label" if of_labels else "fraction that is correct"
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=ylabel)
    upper.text(0.97, 0.04, "overconfident", ha="right", color=MUTED, fontsize=9)
    upper.text(0.03, 0.95, "underconfident", color=MUTED, fontsize=9)
    along = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
    upper.text(0.13, 0.16, "well calibrated", color=MUTED, fontsize=9, **along)
    middle = [(row.low + row.high) / 2 for row in bins]
    lower.bar(middle, [row.n for row in bins], width=0.055, color=BLUE, alpha=0.75)
    if of_labels:  # most labels are absent from most images
        lower.set(yscale="log", ylabel="labels", xlabel="probability of the label")
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        lower.yaxis.set_minor_formatter(lambda value, _: "")
    else:
        lower.set(ylabel="images", xlabel="probability of the predicted class")
    for axes in (upper, lower):
        style_axes(axes)
    upper.yaxis.set_major_formatter(percent_tick)
    lower.xaxis.set_major_formatter(percent_tick)
    return to_png(figure)


def draw_risk_coverage(
    points: Sequence[tuple[float, float, float]], chosen: tuple[float, float, float] | None = None
) -> bytes:
    """Precision over coverage: how many predictions are correct if the less certain ones are withheld.

    `points` are (threshold, precision, coverage), `chosen` one of them to highlight.
    """
    figure = new_figure(5.6, 3.2)
    axes = figure.subplots()
    axes.plot([coverage for _, _, coverage in points], [precision for _, precision, _ in points], color=BLUE)
    if chosen:
        threshold, precision, coverage = chosen
        axes.plot([coverage], [precision], "o", color=ORANGE)
        text = f"threshold {threshold:.2f}"
        axes.annotate(text, (coverage, precision), (6, 6), textcoords="offset points", color=ORANGE, fontsize=9)
    axes.set_xlabel("fraction of the images with a prediction (coverage)")
    axes.set_ylabel("correct predictions")
    axes.xaxis.set_major_formatter(percent_tick)
    axes.yaxis.set_major_formatter(percent_tick)
    style_axes(axes)
    return to_png(figure)
