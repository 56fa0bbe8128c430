"""Figures of metrics: confusion matrix, average precision of each label, calibration, precision over coverage."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.figures.style import (
    BLUE,
    CHART_DPI,
    CHART_WIDTH,
    DASHES,
    GRID,
    INK,
    MUTED,
    ORANGE,
    new_figure,
    percent_tick,
    shorten,
    style_axes,
    to_png,
)
from finetune.evaluation.metrics import CalibrationBin, Proportion, wilson_interval
from finetune.models import RiskCoveragePoint

NAMED_CLASSES = 100  # with more, names and counts could not be read
MANY_CLASSES = 30  # more have smaller cells, to be read at full size
FEW_CLASSES = 6  # these have room for large cells


def draw_confusion(matrix: npt.NDArray[np.integer[Any]], classes: Sequence[str], *, normalize: bool = False) -> bytes:
    """Rows are the true classes, columns the predicted ones; blue is correct, orange is wrong.

    `matrix` (C, C) counts images; with `normalize`, percentages of each true class are written. Of more than 100
    classes only colours show.
    """
    count = len(classes)
    named, few = count <= NAMED_CLASSES, count <= FEW_CLASSES
    cell = 0.9 if few else 0.42 if count <= MANY_CLASSES else 0.19
    side = count * cell if named else float(np.clip(count / 80, 7.5, 12))  # inches
    title = max(10.0, min(side, 12.0))
    figure = new_figure(side, side, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))  # the labels lie outside; the file is as large as all of it
    colours = confusion_colours(matrix)
    axes.imshow(colours, interpolation="nearest", aspect="auto")
    axes.set_xlabel("predicted class", color=MUTED, fontsize=title)
    axes.set_ylabel("true class", color=MUTED, fontsize=title)
    axes.spines[:].set_color(GRID)
    axes.set(xticks=[], yticks=[])
    if named:
        font = 10 if few else 8 if count <= MANY_CLASSES else 5.5
        names = [shorten(name, 24) for name in classes]
        upright = few and max(map(len, names)) <= 10
        axes.set_xticks(range(count), names, fontsize=font, rotation=0 if upright else 90)
        axes.set_yticks(range(count), names, fontsize=font)
        axes.tick_params(length=0, colors=INK)
        edges = np.arange(1, count) - 0.5
        axes.hlines(edges, -0.5, count - 0.5, color=GRID, linewidth=1)
        axes.vlines(edges, -0.5, count - 0.5, color=GRID, linewidth=1)
        for row, column in np.argwhere(matrix).tolist():
            ink = "white" if colours[row, column].mean() < 0.6 else INK
            weight = "bold" if row == column else "normal"
            text = f"{100 * matrix[row, column] / matrix[row].sum():.0f}" if normalize else str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=font, color=ink, fontweight=weight)
    return to_png(figure, bbox_inches="tight", pad_inches=0.1)


def confusion_colours(matrix: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """(C, C) counts -> (C, C, 3) colours in 0..1."""
    from matplotlib.colors import to_rgb

    diagonal = np.eye(len(matrix), dtype=bool)[..., None]
    colour = np.where(diagonal, to_rgb(BLUE), to_rgb(ORANGE))
    return np.asarray(1 - confusion_strength(matrix)[..., None] * (1 - colour), np.float64)


def confusion_strength(matrix: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """(C, C) counts -> (C, C) in 0..1, how strong the colour of a cell is; a root makes few mistakes visible."""
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # of the images of the true class
    diagonal = np.eye(len(matrix), dtype=bool)
    mistakes = np.where(fraction > 0, 0.15 + 0.85 * np.sqrt(fraction), 0)
    return np.where(diagonal, fraction, mistakes)


def draw_labels(rows: Sequence[tuple[str, int, Proportion | None]]) -> bytes:
    """(label, images that have it, average precision) as bars with their 95 % intervals, the best on top.

    Of more than 40 labels, the 20 best and the 20 worst.
    """
    known = [(name, count, precision) for name, count, precision in rows if precision]
    known.sort(key=lambda row: -row[2].value)
    shown = known if len(known) <= 40 else [*known[:20], *known[-20:]]
    figure = new_figure(4.6, 1.0 + 0.28 * max(3, len(shown)), dpi=CHART_DPI)
    axes = figure.subplots()
    for place, (_, _, precision) in enumerate(shown):
        axes.barh(place, precision.value, height=0.62, color=BLUE, alpha=0.75)
        axes.plot([precision.low, precision.high], [place, place], color=INK, linewidth=1.2)
    axes.set_yticks(range(len(shown)), [f"{shorten(name, 22)}  n={count:,}" for name, count, _ in shown])
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
    style_axes(axes)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set_xlabel("average precision\nn: images with the label")
    if len(shown) < len(known):
        axes.axhline(19.5, color=MUTED, linewidth=1, linestyle=DASHES)
        title = f"the 20 best and the 20 worst of {len(known)}"
        axes.set_title(title, loc="left", fontsize=9, color=MUTED)
    return to_png(figure)


def draw_calibration(bins: Sequence[CalibrationBin], *, of_labels: bool = False) -> bytes:
    """Predicted probability against the fraction that is correct, with 95 % intervals; below, how many images have it.

    With `of_labels`, every label of every image has a probability of its own.
    """
    figure = new_figure(CHART_WIDTH, 4.4, dpi=CHART_DPI)
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


def draw_risk_coverage(points: Sequence[RiskCoveragePoint], tested: Sequence[RiskCoveragePoint] = ()) -> bytes:
    """Precision over coverage: how many predictions are correct if the less certain ones are withheld.

    `points` are measured on the validation images, `tested` on the test images.
    """
    figure = new_figure(CHART_WIDTH, 2.8, dpi=CHART_DPI)
    axes = figure.subplots()
    for curve, label, colour in ((points, "validation", BLUE), (tested, "test", ORANGE)):
        if curve:
            coverage, precision = [point.coverage for point in curve], [point.precision for point in curve]
            axes.plot(coverage, precision, color=colour, label=label)
    if tested:
        axes.legend(frameon=False)
    axes.set_xlabel("images with a prediction (coverage)")
    axes.set_ylabel("correct predictions")
    axes.xaxis.set_major_formatter(percent_tick)
    axes.yaxis.set_major_formatter(percent_tick)
    style_axes(axes)
    return to_png(figure)
