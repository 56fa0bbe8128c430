"""The images of a report and of a prediction, each a function from plain data to the bytes of a PNG.

    png = curves(history_rows)

Only `matplotlib.figure.Figure` is used: no pyplot, no window, no global state; it works without a display.
Blue is right, orange is wrong: two colours that every kind of colour vision tells apart (Okabe & Ito 2008).
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.evaluation.metrics import CalibrationBin, Proportion, wilson_interval
from finetune.utils import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]  # (H, W, 3)
BLUE, ORANGE = "#0072B2", "#D55E00"
SERIES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito
INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
DPI = 160
FALLBACK_FONTS = (  # DejaVu Sans comes with matplotlib; these are asked for what it lacks
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Hiragino Sans",
    "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip


def draw_curves(history: Sequence[Mapping[str, Any]], best: Sequence[int] = ()) -> bytes:
    """Accuracy above loss, training against validation, all phases on one axis with their boundaries marked.

    `history` has a row per epoch, in order: phase, loss, accuracy, validation_loss, validation_accuracy
    (numbers, text of numbers, or nothing). `best` are the rows (from 0) whose weights were kept.
    """
    figure = _figure(5.6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name in ((upper, "accuracy"), (lower, "loss")):
        _curve_pair(axes, history, name, best)
        _mark_phases(axes, [str(row["phase"]) for row in history], named=axes is upper)
    upper.yaxis.set_major_formatter(_percent)
    lower.set_ylim(bottom=0)
    lower.set_xlabel("epoch")
    lower.set_xlim(0.5, max(len(history), 2) + 0.5)
    lower.xaxis.get_major_locator().set_params(integer=True)
    upper.legend(loc="lower right", frameon=False, fontsize=9)
    return _png(figure)


def draw_confusion(matrix: npt.NDArray[np.integer[Any]], classes: Sequence[str]) -> bytes:
    """Rows are the true classes, columns the answers; blue is what is right, orange what is not.

    Up to 30 classes the counts stand in the cells; up to 250 every class is named, and the image grows.
    """
    count = len(classes)
    if count > 30:
        return _large_confusion(matrix, classes if count <= 250 else [])
    cell = 0.9 if count <= 6 else 0.42
    font = 10 if count <= 6 else 8
    names = [_label(name, 24) for name in classes]
    flat = count <= 6 and max(map(len, names)) <= 10
    side, title = cell * count, max(10, cell * count)  # inches, points
    left = 0.25 + title / 45 + max(map(_columns, names)) * font * 0.0095
    bottom = 0.25 + title / 45 + font / 60 if flat else left
    width, height = left + side + 0.1, bottom + side + 0.1
    figure = _figure(width, height, layout=None)  # placed by hand: an automatic layout draws everything twice
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    pixels = (255 * _confusion_colours(matrix)).round().astype(np.uint8)
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    edges = np.arange(1, count) - 0.5
    axes.hlines(edges, -0.5, count - 0.5, color=GRID, linewidth=1)
    axes.vlines(edges, -0.5, count - 0.5, color=GRID, linewidth=1)
    axes.set_xticks(range(count), names, fontsize=font, rotation=0 if flat else 90)
    axes.set_yticks(range(count), names, fontsize=font)
    _write_counts(axes, matrix, font)
    middle = ((left + side / 2) / width, (bottom + side / 2) / height)
    figure.text(middle[0], 0.06 / height, "answer", color=MUTED, fontsize=title, ha="center")
    figure.text(0.06 / width, middle[1], "true class", color=MUTED, fontsize=title, va="center", rotation=90)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return _png(figure)


def _large_confusion(matrix: npt.NDArray[np.integer[Any]], classes: Sequence[str]) -> bytes:
    """Pixel by pixel: with matplotlib's axes and ticks, 200 classes take seconds. `classes` is empty: no names."""
    from PIL import Image as Pillow

    count = len(matrix)
    cell = 14 if classes else max(1, 1920 // count)  # pixels
    side = cell * count
    colours = (255 * _confusion_colours(matrix)).round().astype(np.uint8)
    cells = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    if classes:
        cells[::cell] = cells[:, ::cell] = (255 * _rgb(GRID)).astype(np.uint8)
    names = _lines([_label(name, 24) for name in classes], cell, 4.5, INK) if classes else cells[:, :0]
    font = max(8, side / 160)  # points, 2.2 pixels each
    titles = [_lines([text], round(3 * font), font, MUTED) for text in ("answer", "true class")]
    left, top = len(titles[0]) + names.shape[1], 16
    whole = np.full((top + side + left, left + side + top, 3), 255, np.uint8)
    for pixels, y, x in (
        (cells, top, left),
        (names, top, len(titles[0])),
        (np.rot90(names), top + side, left),  # the first name comes first, and all end at the cells
        (titles[0], len(whole) - len(titles[0]), left + (side - titles[0].shape[1]) // 2),
        (np.rot90(titles[1]), top + (side - titles[1].shape[1]) // 2, 0),
    ):
        whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    target = io.BytesIO()
    Pillow.fromarray(whole).save(target, "PNG")
    return target.getvalue()


def _lines(texts: Sequence[str], height: int, font: float, colour: str) -> Image:
    """(len(texts) * height, width, 3): one text below the other, flush right, `font` in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    tall, wide = len(texts) * height, round(2 * font * max(map(_columns, texts))) + 20
    figure = _figure(wide / DPI, tall / DPI, layout=None)
    canvas = FigureCanvasAgg(figure)
    for at, text in enumerate(texts):
        place = 1 - 6 / wide, 1 - (at + 0.5) * height / tall
        figure.text(*place, text, fontsize=font, color=colour, ha="right", va="center_baseline")
    _set_plain_text(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    pixels: Image = np.asarray(canvas.buffer_rgba())[..., :3]
    inked = np.flatnonzero((pixels < 255).any(axis=(0, 2)))
    return pixels[:, max(0, inked[0] - 6) if len(inked) else 0 :]


def draw_labels(rows: Sequence[tuple[str, int, Proportion | None]]) -> bytes:
    """(label, images that have it, average precision) as bars with their 95 % intervals, the best found on top."""
    known = sorted((row for row in rows if row[2]), key=lambda row: -row[2].value if row[2] else 0)
    shown = known if len(known) <= 40 else [*known[:20], *known[-20:]]
    figure = _figure(6.4, 1.0 + 0.28 * max(3, len(shown)))
    axes = figure.subplots()
    for place, (_, _, share) in enumerate(shown):
        if share:
            axes.barh(place, share.value, height=0.62, color=BLUE, alpha=0.75)
            axes.plot([share.low, share.high], [place, place], color=INK, linewidth=1.2)
    axes.set_yticks(range(len(shown)), [f"{_label(name, 28)}  {count:,}" for name, count, _ in shown])
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
    _plain(axes)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.xaxis.set_major_formatter(_percent)
    axes.set_xlabel("average precision; beside the name, how many images have the label")
    if len(shown) < len(known):
        axes.axhline(19.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_title(f"the 20 best and the 20 worst of {len(known)}", loc="left", fontsize=9, color=MUTED)
    return _png(figure)


def draw_calibration(bins: Sequence[CalibrationBin], *, of_labels: bool = False) -> bytes:
    """What the model claims against what comes true, with 95 % intervals; below, how many images claim it.

    With `of_labels`, every label of every image has a claim of its own.
    """
    figure = _figure(5.6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    middle = [(item.low + item.high) / 2 for item in bins]
    claimed, right = [item.confidence for item in bins], [item.accuracy for item in bins]
    intervals = [wilson_interval(round(item.accuracy * item.n), item.n) for item in bins]
    spread = [
        [max(0, item.accuracy - found.low) for item, found in zip(bins, intervals, strict=True)],
        [max(0, found.high - item.accuracy) for item, found in zip(bins, intervals, strict=True)],
    ]
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    upper.errorbar(claimed, right, yerr=spread, fmt="o-", color=BLUE, markersize=5, linewidth=1.8, elinewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that has the label" if of_labels else "share that is right")
    upper.text(0.97, 0.04, "claims too much", ha="right", color=MUTED, fontsize=9)
    upper.text(0.03, 0.95, "claims too little", color=MUTED, fontsize=9)
    upper.text(
        0.13, 0.16, "claims come true", color=MUTED, fontsize=9, rotation=45, rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip
    lower.bar(middle, [item.n for item in bins], width=0.055, color=BLUE, alpha=0.75)
    if of_labels:  # most labels are absent from most images
        lower.set(yscale="log", ylabel="labels", xlabel="probability of the label")
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        lower.yaxis.set_minor_formatter(lambda value, _: "")
    else:
        lower.set(ylabel="images", xlabel="probability of the answer")
    for axes in (upper, lower):
        _plain(axes)
    upper.yaxis.set_major_formatter(_percent)
    lower.xaxis.set_major_formatter(_percent)
    return _png(figure)


def draw_lr_curve(rates: Sequence[float], losses: Sequence[float], chosen: float) -> bytes:
    """What the test of `learning_rate: auto` saw: the smoothed loss at each rate, and the rate that was chosen."""
    figure = _figure(5.6, 3.2)
    axes = figure.subplots()
    axes.semilogx(rates, losses, color=BLUE)
    axes.axvline(chosen, color=ORANGE)
    axes.annotate(f"chosen: {chosen:g}", (chosen, 1), (4, -10), xycoords=("data", "axes fraction"),
                  textcoords="offset points", color=ORANGE, fontsize=9)  # fmt: skip
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, smoothed")
    _plain(axes)
    return _png(figure)


def draw_risk_coverage(
    table: Sequence[tuple[float, float, float]], chosen: tuple[float, float, float] | None = None
) -> bytes:
    """How right the answers are if the less sure ones are withheld: precision over coverage, rows of `calibration`.

    `chosen` is a row to mark.
    """
    figure = _figure(5.6, 3.2)
    axes = figure.subplots()
    axes.plot([row[2] for row in table], [row[1] for row in table], color=BLUE)
    if chosen:
        axes.plot([chosen[2]], [chosen[1]], "o", color=ORANGE)
        axes.annotate(f"threshold {chosen[0]:.2f}", (chosen[2], chosen[1]), (6, 6), textcoords="offset points",
                      color=ORANGE, fontsize=9)  # fmt: skip
    axes.set_xlabel("share of the images that are answered")
    axes.set_ylabel("answers that are right")
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    _plain(axes)
    return _png(figure)


def draw_comparison(
    runs: Sequence[tuple[str, Sequence[Mapping[str, Any]], Proportion | None]],
) -> bytes:
    """Validation curves of several runs over each other, and beside them their test accuracies with intervals.

    `runs` are (name, history as in `curves`, accuracy or None). A dot on a curve is where a new phase begins.
    """
    names = [_label(name, 24) for name, _, _ in runs]
    figure = _figure(10.5, max(5.0, 1.2 + 0.5 * len(runs)))
    panels: dict[str, Any] = figure.subplot_mosaic([["accuracy", "test"], ["loss", "test"]], width_ratios=[3, 2])
    for number, (_, history, _) in enumerate(runs):
        for what in ("accuracy", "loss"):
            _validation_curve(panels[what], history, what, SERIES[number % len(SERIES)])
    places = range(len(runs))
    for place, (_, _, share) in zip(places, runs, strict=True):
        _interval_bar(panels["test"], place, share, SERIES[place % len(SERIES)])
    panels["test"].set_yticks(places, names)
    panels["test"].set_ylim(len(runs) - 0.4, -0.6)
    panels["test"].xaxis.set_major_formatter(_percent)
    panels["test"].locator_params(axis="x", nbins=5)
    panels["test"].set_xlabel("test accuracy with its 95 % interval")
    for axes in panels.values():
        _plain(axes)
    panels["test"].tick_params(axis="y", labelcolor=INK, labelsize=10)
    panels["accuracy"].yaxis.set_major_formatter(_percent)
    panels["accuracy"].sharex(panels["loss"])
    panels["accuracy"].tick_params(labelbottom=False)
    panels["accuracy"].set_ylabel("validation accuracy")
    if any(_phase_starts(history) for _, history, _ in runs):
        text = "dots: the next phase begins"
        panels["accuracy"].set_title(text, loc="left", fontsize=9, color=MUTED)
    panels["loss"].set(ylabel="validation loss", xlabel="epoch")
    panels["loss"].xaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def _validation_curve(axes: "Axes", history: Sequence[Mapping[str, Any]], what: str, colour: str) -> None:
    epochs = np.arange(1, len(history) + 1)
    values = np.array([_number(row.get(f"validation_{what}")) for row in history])
    axes.plot(epochs, values, color=colour, linewidth=2, marker="o", markevery=_phase_starts(history), markersize=6)


def _phase_starts(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Rows at which a phase other than the first begins."""
    return [at for at in range(1, len(history)) if history[at]["phase"] != history[at - 1]["phase"]]


def _interval_bar(axes: "Axes", place: int, share: Proportion | None, colour: str) -> None:
    if share is None:
        where = axes.get_yaxis_transform()
        axes.text(0.5, place, "no test result", transform=where, ha="center", va="center", color=MUTED)
        return
    axes.plot([share.low, share.high], [place, place], color=colour, linewidth=3, solid_capstyle="round")
    axes.plot(share.value, place, "o", color=colour, markersize=8)
    axes.annotate(
        f"{share.value:.1%}", (share.value, place), xytext=(0, 9), textcoords="offset points",
        ha="center", fontsize=9, color=INK,
    )  # fmt: skip


def draw_sheet(images: Sequence[Image], captions: Sequence[str], *, columns: int = 6, title: str = "") -> bytes:
    """A contact sheet: each image with its caption of one or more lines below."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    side, gap, line = 234, 14, 21  # pixels
    wide = side + gap
    tall = wide + line * max(caption.count("\n") + 1 for caption in captions)
    head = 50 if title else gap
    width, height = wide * columns + gap, tall * rows + head
    figure = _figure(width / DPI, height / DPI, layout=None)
    for at, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = gap + at % columns * wide, height - head - at // columns * tall
        pixels = _fitted(image, side)
        figure.figimage(pixels, left, top - len(pixels), origin="upper")
        text = "\n".join(_label(part, 24) for part in caption.split("\n"))
        place = left / width, (top - len(pixels) - 5) / height
        figure.text(*place, text, va="top", fontsize=7, color=INK, linespacing=1.3)
    if title:
        place = gap / width, 1 - 12 / height
        figure.text(*place, _label(title, 80), fontsize=10, color=INK, va="top")
    return _png(figure)


def _fitted(image: Image, side: int) -> Image:
    """`image` as large as it can be in a square of that side."""
    from PIL import Image as Pillow

    scale = side / max(image.shape[:2])
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    resized: Image = np.asarray(Pillow.fromarray(image).resize((width, height)))
    return resized


def draw_pairs(
    images: Sequence[Image], looks: Sequence[Image], captions: Sequence[str], right: Sequence[bool], columns: int = 4
) -> bytes:
    """Images, below each its second look, and below that its caption of two lines: orange if it is not `right`.

    The quick sister of `sheet`, a JPEG: pixels are placed as they are, so that it can be drawn and kept often.
    """
    side, gap, text = 128, 6, 40  # pixels
    tall, wide = 2 * side + gap // 2 + text, side + gap
    columns, rows = min(columns, len(images)), math.ceil(len(images) / columns)
    figure = _figure(wide * columns / DPI, tall * rows / DPI, layout=None)
    for at, (pixels, look, caption, good) in enumerate(zip(images, looks, captions, right, strict=True)):
        left, bottom = at % columns * wide, (rows - 1 - at // columns) * tall
        white = np.full((gap // 2, side, 3), 255, np.uint8)
        both = np.concatenate([_fitted(pixels, side), white, _fitted(look, side)])
        figure.figimage(both, left, bottom + text, origin="upper")
        lines = "\n".join(_label(line, 20) for line in caption.split("\n"))
        place = left / (wide * columns), (bottom + text - 4) / (tall * rows)
        figure.text(*place, lines, va="top", fontsize=5, color=INK if good else ORANGE, linespacing=1.3)
    return _render(figure, format="jpeg", pil_kwargs={"quality": 85})


def draw_preview(
    rows: Sequence[tuple[Image, tuple[float, float, float, float] | None, Image, Sequence[Image]]], title: str
) -> bytes:
    """A row per image: the original with the box (left, top, width, height) that is kept, what the network sees,
    and augmented versions of it."""
    from matplotlib.patches import Rectangle

    columns = 2 + max(len(augmented) for _, _, _, augmented in rows)
    figure = _figure(1.5 * columns, 1.5 * len(rows) + 0.75)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (original, box, seen, augmented) in zip(grid, rows, strict=True):
        for axes, pixels in zip(line, (original, seen, *augmented), strict=False):
            axes.imshow(pixels)
            axes.set_anchor("N")  # so that the heads stand on one line, whatever the shape of the original
        if box is not None:
            line[0].imshow(_outside_box(original, box))
            line[0].add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor="white", linewidth=3))
            line[0].add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=ORANGE, linewidth=1.5))
    heads = ["original", "the network sees", *(f"augmented {number}" for number in range(1, columns - 1))]
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=8, color=MUTED)
    figure.suptitle(_label(title, 80), fontsize=10, color=INK, x=0.01, ha="left")
    return _png(figure)


def draw_schedule(phases: Sequence[tuple[str, int, Sequence[float]]]) -> bytes:
    """The learning rate over all phases: (name, epochs, rates at moments spread evenly over them) each."""
    figure = _figure(7.0, 2.8)
    axes = figure.subplots()
    start = 0.0
    for number, (name, epochs, rates) in enumerate(phases):
        places = start + np.linspace(0, epochs, len(rates))
        axes.plot(places, rates, color=SERIES[number % len(SERIES)], linewidth=2)
        if number:
            axes.axvline(start, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            _label(name, 16), (start, 1.01), xycoords=("data", "axes fraction"), xytext=(3, 2),
            textcoords="offset points", fontsize=9, color=INK, annotation_clip=False,
        )  # fmt: skip
        start += epochs
    _plain(axes)
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, max(start, 1)))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    return _png(figure)


def draw_similar_pairs(rows: Sequence[tuple[str, tuple[Image, str], tuple[Image, str]]], *, columns: int = 3) -> bytes:
    """Two images beside each other, each with a caption, under a title; several such pairs on one sheet."""
    columns = max(1, min(columns, len(rows)))
    count = math.ceil(len(rows) / columns)
    figure = _figure(3.4 * columns, 2.35 * count)
    panels = figure.subfigures(count, columns, squeeze=False, wspace=0.06, hspace=0.04).flat
    for panel, (title, *images) in zip(panels, rows, strict=False):
        panel.set_facecolor("#f4f6f8")
        panel.suptitle(_label(title, 60), fontsize=8, color=INK)
        for axes, (pixels, caption) in zip(panel.subplots(1, 2), images, strict=True):
            axes.imshow(pixels)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            text = "\n".join(_label(line, 28) for line in caption.split("\n"))
            axes.set_xlabel(text, fontsize=6.5, color=MUTED, linespacing=1.3)
    return _png(figure)


def draw_blocks(title: str, rows: Sequence[tuple[str, int, int, int, int]]) -> bytes:
    """A network from image to feature map, block by block: (name, parameters, height, width, channels) each.

    Above, what comes out of each block, as tall as the root of its side and as wide as that of its channels; below, how
    many parameters are in it. The numbers say what `unfreeze: N blocks` counts.
    """
    from matplotlib.patches import Rectangle

    count = len(rows)
    font = 8 if count <= 30 else 6
    figure = _figure(max(7.0, 0.42 * count + 1.4) if count <= 30 else 0.2 * count + 1.4, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    sides = np.array([max(height, width) for _, _, height, width, _ in rows])
    depths = np.array([channels for *_, channels in rows])
    tall = np.sqrt(sides)
    wide = 0.1 + 0.8 * np.sqrt(depths / depths.max())
    places = np.arange(count)
    for place, height, width in zip(places, tall, wide, strict=True):
        upper.add_patch(
            Rectangle((place - width / 2, -height / 2), width, height, facecolor=BLUE, edgecolor=INK, linewidth=0.6,
                      alpha=0.35)
        )  # fmt: skip
    gap, turned = 0.02 * tall.max(), 0 if count <= 30 else 90
    for place, side, depth, height in zip(places, sides, depths, tall, strict=True):
        if place == 0 or side != sides[place - 1]:
            upper.text(place, height / 2 + gap, f"{side}²", ha="center", fontsize=font, color=INK)
        where: Mapping[str, Any] = {"ha": "center", "va": "top", "rotation": turned}
        upper.text(place, -height / 2 - gap, str(depth), fontsize=font, color=MUTED, **where)
    upper.set(ylim=(-0.72 * tall.max(), 0.6 * tall.max()), xlim=(-0.8, count - 0.2))
    upper.set_axis_off()
    upper.set_title(_label(title, 110), loc="left", fontsize=11, color=INK)
    upper.text(0, 0, "side in pixels above, channels below", transform=upper.transAxes, fontsize=8, color=MUTED)
    lower.bar(places, [parameters / 1e6 for _, parameters, *_ in rows], width=0.7, color=BLUE, alpha=0.75)
    _plain(lower)
    lower.grid(False, axis="x")
    lower.set_ylabel("million parameters")
    names = [f"{_label(name, 26)}  {count - place}" for place, (name, *_) in enumerate(rows)]
    lower.set_xticks(places, names, rotation=90, fontsize=font, color=INK)
    lower.set_xlabel("each block by its first layer, and which one it is from the end: unfreeze: 3 blocks = 3, 2, 1")
    return _png(figure)


def _outside_box(pixels: Image, box: tuple[float, float, float, float]) -> Image:
    """`image` with everything outside `box` faded."""
    left, top, right, bottom = (round(value) for value in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    faded: Image = (255 - (255 - pixels.astype(np.float32)) * 0.45).astype(np.uint8)
    faded[top:bottom, left:right] = pixels[top:bottom, left:right]
    return faded


def draw_prediction(image: Image, rows: Sequence[tuple[str, float]], title: str = "") -> bytes:
    """An image and its most probable classes, [(class, probability), ...] from the top, as bars."""
    height, width = image.shape[:2]
    tall = 3.2
    wide = tall * min(max(width / height, 0.6), 1.8)
    figure = _figure(wide + 3.9, tall + (0.4 if title else 0.1))
    left, right = figure.subplots(1, 2, width_ratios=[wide, 3.6], gridspec_kw={"wspace": 0.06})
    left.imshow(image)
    left.set_axis_off()
    _answer_bars(right, rows)
    if title:
        figure.suptitle(_label(title, 70), fontsize=11, color=MUTED, x=0.015, ha="left")
    return _png(figure)


def draw_explanation(
    image: Image,
    overlay: Image,
    rows: Sequence[tuple[str, float]],
    *,
    marked: int,
    title: str = "",
    note: str = "",
) -> bytes:
    """What the network saw, the same under its heat map, and its answers; the map is that of row `marked`."""
    tall = 3.2
    figure = _figure(2 * tall + 3.9, tall + (0.4 if title else 0.1))
    left, middle, right = figure.subplots(1, 3, width_ratios=[tall, tall, 3.6])
    for axes, pixels in ((left, image), (middle, overlay)):
        axes.imshow(pixels)
        axes.set_axis_off()
    if note:
        middle.text(
            0.5, 0.5, note, transform=middle.transAxes, ha="center", va="center", fontsize=10, color="white",
            bbox={"facecolor": INK, "edgecolor": "none", "boxstyle": "round,pad=0.5"},
        )  # fmt: skip
    _answer_bars(right, rows, marked)
    if title:
        figure.suptitle(_label(title, 90), fontsize=11, color=MUTED, x=0.015, ha="left")
    return _png(figure)


def _answer_bars(axes: "Axes", rows: Sequence[tuple[str, float]], marked: int = 0) -> None:
    """Classes with their probabilities, the one in row `marked` in bold."""
    places = np.arange(len(rows))
    colours = [BLUE if place == marked else "#7fb2d4" for place in places]
    axes.barh(places, [1] * len(rows), height=0.26, color=GRID)
    axes.barh(places, [p for _, p in rows], height=0.26, color=colours)
    for place, (name, probability) in zip(places, rows, strict=True):
        weight = "bold" if place == marked else "normal"
        axes.text(0, place - 0.22, _label(name, 30), va="bottom", fontsize=10, color=INK, fontweight=weight)
        share = f"{100 * probability:.1f} %" if probability >= 0.001 else "< 0.1 %"
        axes.text(1, place - 0.22, share, va="bottom", ha="right", fontsize=10, color=INK, fontweight=weight)
    axes.set(xlim=(0, 1), ylim=(max(len(rows), 3) - 0.6, -0.75))
    axes.set_axis_off()


def _label(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)


def _columns(text: str) -> int:
    """How wide a label is, in Latin letters; those of East Asia take two."""
    return sum(1 + (ord(letter) > 0x1100) for letter in text)


def _png(figure: "Figure") -> bytes:
    return _render(figure, format="png", metadata={"Software": None})


def _render(figure: "Figure", **options: Any) -> bytes:
    _set_plain_text(figure)
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, **options)
    return target.getvalue()


def _set_plain_text(figure: "Figure") -> None:
    """Text is taken as it is: `$` starts no formula, missing letters are boxes."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(_fonts())


@lru_cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


def _percent(value: float, _position: object = None) -> str:
    return f"{value * 100:.3g} %"


def _plain(axes: "Axes") -> None:
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def _number(value: object) -> float:
    return math.nan if value is None or value == "" else float(str(value))


def _curve_pair(axes: "Axes", history: Sequence[Mapping[str, Any]], name: str, best: Sequence[int]) -> None:
    epochs = np.arange(1, len(history) + 1)
    training = np.array([_number(row.get(name)) for row in history])
    validation = np.array([_number(row.get(f"validation_{name}")) for row in history])
    style: Mapping[str, Any] = {"marker": "o", "markersize": 4 if len(history) <= 30 else 0}
    axes.plot(epochs, training, color=ORANGE, linewidth=1.4, label="training", **style)
    axes.plot(epochs, validation, color=BLUE, linewidth=2.2, label="validation", **style)
    if best:
        kept = list(best)
        axes.plot(
            epochs[kept], validation[kept], "o", markersize=10, markerfacecolor="none", markeredgecolor=BLUE,
            label="kept",
        )  # fmt: skip
    axes.set_ylabel(name)
    _plain(axes)


def _mark_phases(axes: "Axes", phases: Sequence[str], *, named: bool) -> None:
    starts = [i for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]
    for start in starts:
        if start:
            axes.axvline(start + 0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if named:
            axes.annotate(
                _label(phases[start], 16), (start + 0.5, 1.01), xycoords=("data", "axes fraction"),
                xytext=(3, 2), textcoords="offset points", fontsize=9, color=INK, annotation_clip=False,
            )  # fmt: skip


def _confusion_colours(matrix: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """(C, C) counts -> (C, C, 3) colours in 0..1; a root lifts small shares of mistakes into sight."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(matrix), dtype=bool)
    strength = np.where(right, share, np.where(share > 0, 0.15 + 0.85 * np.sqrt(share), 0))[..., None]
    colour = np.where(right[..., None], _rgb(BLUE), _rgb(ORANGE))
    return np.asarray(1 - strength * (1 - colour), np.float64)


def _rgb(colour: str) -> npt.NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _write_counts(axes: "Axes", matrix: npt.NDArray[np.integer[Any]], font: float) -> None:
    colours = _confusion_colours(matrix)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            dark = colours[row, column].mean() < 0.6
            axes.text(
                column, row, str(count), ha="center", va="center", fontsize=font,
                color="white" if dark else INK, fontweight="bold" if row == column else "normal",
            )  # fmt: skip
