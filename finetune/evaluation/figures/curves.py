"""Training over time: loss and accuracy by epoch, the learning rate, and several runs over each other."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluation.figures.style import (
    BLUE,
    CHART_DPI,
    CHART_WIDTH,
    DASHES,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    new_figure,
    percent_tick,
    shorten,
    style_axes,
    to_png,
)
from finetune.evaluation.metrics import Proportion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[Mapping[str, Any]]


def draw_curves(history: History, best: Sequence[int] = ()) -> bytes:
    """Accuracy above loss, training against validation, all phases on one axis with their boundaries marked.

    `history` has a row per epoch, in order: phase, loss, accuracy, validation_loss, validation_accuracy
    (numbers, text of numbers, or nothing). `best` are the rows (from 0) whose weights were kept.
    """
    figure = new_figure(CHART_WIDTH, 4.8, dpi=CHART_DPI)
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs, kept = np.arange(1, len(history) + 1), list(best)
    starts = [0, *_phase_starts(history)]
    size = 4 if len(history) <= 30 else 0
    for axes, name in ((upper, "accuracy"), (lower, "loss")):
        validation = _column(history, f"validation_{name}")
        axes.plot(epochs, _column(history, name), "o-", color=ORANGE, linewidth=1.4, markersize=size, label="training")
        axes.plot(epochs, validation, "o-", color=BLUE, linewidth=2.2, markersize=size, label="validation")
        if kept:
            ring: Mapping[str, Any] = {"markerfacecolor": "none", "markeredgecolor": BLUE, "markersize": 10}
            axes.plot(epochs[kept], validation[kept], "o", label="kept", **ring)
        for start in starts[1:]:
            axes.axvline(start + 0.5, color=MUTED, linewidth=1, linestyle=DASHES)
        axes.set_ylabel(name)
        style_axes(axes)
    for start in starts:
        _name_phase(upper, str(history[start]["phase"]), start + 0.5)
    upper.yaxis.set_major_formatter(percent_tick)
    lower.set_ylim(bottom=0)
    lower.set_xlabel("epoch")
    lower.set_xlim(0.5, max(len(history), 2) + 0.5)
    lower.xaxis.get_major_locator().set_params(integer=True)
    upper.legend(loc="best", frameon=False, fontsize=9)
    return to_png(figure)


def draw_lr_curve(rates: Sequence[float], losses: Sequence[float], chosen: float) -> bytes:
    """The test of `learning_rate: auto`: the smoothed loss at each rate, and the rate that was chosen."""
    figure = new_figure(5.6, 3.2)
    axes = figure.subplots()
    axes.semilogx(rates, losses, color=BLUE)
    axes.axvline(chosen, color=ORANGE)
    place: Mapping[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(f"chosen: {chosen:g}", (chosen, 1), (4, -10), color=ORANGE, fontsize=9, **place)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, smoothed")
    style_axes(axes)
    return to_png(figure)


def draw_schedule(phases: Sequence[tuple[str, int, Sequence[float]]]) -> bytes:
    """The learning rate over all phases: (name, epochs, rates at evenly spaced moments) of each."""
    figure = new_figure(7.0, 2.8)
    axes = figure.subplots()
    start = 0
    for number, (name, epochs, rates) in enumerate(phases):
        places = start + np.linspace(0, epochs, len(rates))
        axes.plot(places, rates, color=SERIES[number % len(SERIES)], linewidth=2)
        if number:
            axes.axvline(start, color=MUTED, linewidth=1, linestyle=DASHES)
        _name_phase(axes, name, start)
        start += epochs
    style_axes(axes)
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, max(start, 1)))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    return to_png(figure)


def draw_comparison(runs: Sequence[tuple[str, History, Proportion | None]]) -> bytes:
    """Validation curves of several runs over each other, and beside them their test accuracies with intervals.

    `runs` are (name, history as in `draw_curves`, accuracy or None). A dot on a curve is where a new phase begins.
    """
    figure = new_figure(10.5, max(5.0, 1.2 + 0.5 * len(runs)))
    panels: dict[str, Any] = figure.subplot_mosaic([["accuracy", "test"], ["loss", "test"]], width_ratios=[3, 2])
    accuracy, loss, test = panels["accuracy"], panels["loss"], panels["test"]
    for number, (_, history, result) in enumerate(runs):
        colour, epochs, starts = SERIES[number % len(SERIES)], range(1, len(history) + 1), _phase_starts(history)
        for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
            values = _column(history, f"validation_{name}")
            axes.plot(epochs, values, color=colour, linewidth=2, marker="o", markevery=starts, markersize=6)
        if result is None:
            text, place = "no test result", test.get_yaxis_transform()
            test.text(0.5, number, text, transform=place, ha="center", va="center", color=MUTED)
        else:
            test.plot([result.low, result.high], [number, number], color=colour, linewidth=3, solid_capstyle="round")
            test.plot(result.value, number, "o", color=colour, markersize=8)
            text, above = f"{result.value:.1%}", {"xytext": (0, 9), "textcoords": "offset points"}
            test.annotate(text, (result.value, number), ha="center", fontsize=9, color=INK, **above)
    for axes in panels.values():
        style_axes(axes)
    test.set_yticks(range(len(runs)), [shorten(name, 24) for name, _, _ in runs])
    test.set_ylim(len(runs) - 0.4, -0.6)
    test.xaxis.set_major_formatter(percent_tick)
    test.locator_params(axis="x", nbins=5)
    test.set_xlabel("test accuracy with its 95 % interval")
    test.tick_params(axis="y", labelcolor=INK, labelsize=10)
    accuracy.yaxis.set_major_formatter(percent_tick)
    accuracy.sharex(loss)
    accuracy.tick_params(labelbottom=False)
    accuracy.set_ylabel("validation accuracy")
    if any(_phase_starts(history) for _, history, _ in runs):
        accuracy.set_title("dots: the next phase begins", loc="left", fontsize=9, color=MUTED)
    loss.set(ylabel="validation loss", xlabel="epoch")
    loss.xaxis.get_major_locator().set_params(integer=True)
    return to_png(figure)


def _phase_starts(history: History) -> list[int]:
    """Rows at which a phase other than the first begins."""
    return [row for row in range(1, len(history)) if history[row]["phase"] != history[row - 1]["phase"]]


def _name_phase(axes: "Axes", name: str, start: float) -> None:
    """Write the name of the phase that begins at `start` above the axes."""
    place: Mapping[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(
        shorten(name, 16), (start, 1.01), xytext=(3, 2), fontsize=9, color=INK, annotation_clip=False, **place
    )


def _column(history: History, name: str) -> np.ndarray:
    """The numbers of one column (rows,), NaN where there are none."""
    values = [row.get(name) for row in history]
    return np.array([math.nan if value is None or value == "" else float(value) for value in values])
