"""Images on a sheet: mistakes, near-duplicates, what a training sees, predictions and explanations."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluation.figures.style import (
    BLUE,
    DPI,
    GRID,
    INK,
    MUTED,
    ORANGE,
    Image,
    new_figure,
    render,
    shorten,
    to_png,
)
from finetune.utils import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]  # left, top, width, height in pixels


def draw_sheet(images: Sequence[Image], captions: Sequence[str]) -> bytes:
    """A contact sheet of at least one image: up to six in a row, each with its caption of one or more lines below."""
    columns = min(6, len(images))
    side, gap, line = 234, 14, 21  # pixels
    cell_width = side + gap
    cell_height = cell_width + line * max(caption.count("\n") + 1 for caption in captions)
    width, height = cell_width * columns + gap, cell_height * math.ceil(len(images) / columns) + gap
    figure = new_figure(width / DPI, height / DPI, layout=None)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = gap + column * cell_width, height - gap - row * cell_height
        pixels = _fit(image, side)
        figure.figimage(pixels, left, top - len(pixels), origin="upper")
        text = "\n".join(shorten(part, 24) for part in caption.split("\n"))
        below = (top - len(pixels) - 5) / height
        figure.text(left / width, below, text, va="top", fontsize=7, color=INK, linespacing=1.3)
    return to_png(figure)


def draw_pairs(
    images: Sequence[Image], overlays: Sequence[Image], captions: Sequence[str], correct: Sequence[bool]
) -> bytes:
    """Four images in a row, below each its overlay, and below that its caption of two lines: orange if it is wrong.

    A JPEG whose pixels are placed as they are, so that it can be drawn and kept often.
    """
    side, gap, caption_height = 128, 6, 40  # pixels
    cell_height, cell_width = 2 * side + gap // 2 + caption_height, side + gap
    columns, rows = min(4, len(images)), math.ceil(len(images) / 4)
    width, height = cell_width * columns, cell_height * rows
    figure = new_figure(width / DPI, height / DPI, layout=None)
    white = np.full((gap // 2, side, 3), 255, np.uint8)
    for number, (image, overlay, caption) in enumerate(zip(images, overlays, captions, strict=True)):
        row, column = divmod(number, columns)
        left, bottom = column * cell_width, (rows - 1 - row) * cell_height + caption_height
        pixels = np.concatenate([_fit(image, side), white, _fit(overlay, side)])
        figure.figimage(pixels, left, bottom, origin="upper")
        text = "\n".join(shorten(line, 20) for line in caption.split("\n"))
        colour = INK if correct[number] else ORANGE
        below = (bottom - 4) / height
        figure.text(left / width, below, text, va="top", fontsize=5, color=colour, linespacing=1.3)
    return render(figure, format="jpeg", pil_kwargs={"quality": 85})


def _fit(image: Image, side: int) -> Image:
    """`image` as large as it can be in a square of that side."""
    from PIL import Image as Pillow

    scale = side / max(image.shape[:2])
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    resized: Image = np.asarray(Pillow.fromarray(image).resize((width, height)))
    return resized


def draw_similar_pairs(rows: Sequence[tuple[str, tuple[Image, str], tuple[Image, str]]]) -> bytes:
    """Two images beside each other, each with a caption, under a title; three such pairs in a row of the sheet."""
    columns = max(1, min(3, len(rows)))
    count = math.ceil(len(rows) / columns)
    figure = new_figure(3.4 * columns, 2.35 * count)
    panels = figure.subfigures(count, columns, squeeze=False, wspace=0.06, hspace=0.04).flat
    for panel, (title, *images) in zip(panels, rows, strict=False):
        panel.set_facecolor("#f4f6f8")
        panel.suptitle(shorten(title, 60), fontsize=8, color=INK)
        for axes, (pixels, caption) in zip(panel.subplots(1, 2), images, strict=True):
            axes.imshow(pixels)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            text = "\n".join(shorten(line, 28) for line in caption.split("\n"))
            axes.set_xlabel(text, fontsize=6.5, color=MUTED, linespacing=1.3)
    return to_png(figure)


def draw_preview(rows: Sequence[tuple[Image, Box | None, Image, Sequence[Image]]], title: str) -> bytes:
    """A row per image: the original with the box that is kept, what the network sees, and augmented versions."""
    from matplotlib.patches import Rectangle

    columns = 2 + max(len(augmented) for _, _, _, augmented in rows)
    figure = new_figure(1.5 * columns, 1.5 * len(rows) + 0.75)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (original, box, seen, augmented) in zip(grid, rows, strict=True):
        shown = original
        if box is not None:
            left, top, right, bottom = (round(edge) for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            shown = (255 - (255 - original.astype(np.float32)) * 0.45).astype(np.uint8)  # faded outside the box
            shown[top:bottom, left:right] = original[top:bottom, left:right]
        for axes, pixels in zip(line, (shown, seen, *augmented), strict=False):
            axes.imshow(pixels)
            axes.set_anchor("N")  # so that the titles stand on one line, whatever the shape of the original
        if box is not None:
            for colour, width in (("white", 3), (ORANGE, 1.5)):
                line[0].add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=colour, linewidth=width))
    titles = ["original", "the network sees", *(f"augmented {number}" for number in range(1, columns - 1))]
    for axes, text in zip(grid[0], titles, strict=True):
        axes.set_title(text, fontsize=8, color=MUTED)
    figure.suptitle(_wrap(title, 1.5 * columns), fontsize=10, color=INK, x=0.01, ha="left")
    return to_png(figure)


def draw_overview(tiles: Sequence[tuple[Sequence[Image], str]], title: str) -> bytes:
    """A tile per class, side by side and one below the other: its images, and a caption above them."""
    columns, images = min(len(tiles), 5), max(len(images) for images, _ in tiles)
    wide = 1.1 * images + 0.2  # inches
    rows = math.ceil(len(tiles) / columns)
    figure = new_figure(wide * columns, 1.45 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (images_of_class, caption) in zip(grid.flat, tiles, strict=False):
        axes.imshow(np.concatenate(images_of_class, axis=1))
        axes.set_anchor("NW")
        axes.set_title(shorten(caption, int(13 * wide)), fontsize=8, color=MUTED, loc="left")
    figure.suptitle(_wrap(title, wide * columns), fontsize=10, color=INK, x=0.01, ha="left")
    return to_png(figure)


def _wrap(title: str, width: float) -> str:
    """A title of 10 points over as many lines as a figure of that width in inches needs."""
    return textwrap.fill(printable(title), int(12 * width))


def draw_prediction(image: Image, rows: Sequence[tuple[str, float]], title: str = "") -> bytes:
    """An image and its most probable classes, [(class, probability), ...] from the top, as bars."""
    height, width = image.shape[:2]
    side = 3.2  # inches
    wide = side * min(max(width / height, 0.6), 1.8)
    figure = new_figure(wide + 3.9, side + (0.4 if title else 0.1))
    left, right = figure.subplots(1, 2, width_ratios=[wide, 3.6], gridspec_kw={"wspace": 0.06})
    left.imshow(image)
    left.set_axis_off()
    _draw_bars(right, rows)
    if title:
        figure.suptitle(shorten(title, 70), fontsize=11, color=MUTED, x=0.015, ha="left")
    return to_png(figure)


def draw_explanation(
    image: Image,
    overlay: Image,
    rows: Sequence[tuple[str, float]],
    *,
    marked: int,
    title: str = "",
    note: str = "",
) -> bytes:
    """An image, the same under its heatmap, and the predictions; the heatmap explains row `marked`.

    The figure has as many pixels as the image needs to be seen at its own resolution, up to 1,280 a side.
    """
    height, width = image.shape[:2]
    side = 3.2  # inches
    wide = side * min(max(width / height, 0.6), 1.8)
    figure = new_figure(2 * wide + 3.9, side + (0.4 if title else 0.1))
    figure.set_dpi(min(max(DPI, width / wide, height / side), 2.5 * DPI))
    left, middle, right = figure.subplots(1, 3, width_ratios=[wide, wide, 3.6])
    for axes, pixels in ((left, image), (middle, overlay)):
        axes.imshow(pixels)
        axes.set_axis_off()
    if note:
        style: Mapping[str, Any] = {"ha": "center", "va": "center", "fontsize": 10, "color": "white"}
        box = {"facecolor": INK, "edgecolor": "none", "boxstyle": "round,pad=0.5"}
        middle.text(0.5, 0.5, note, transform=middle.transAxes, bbox=box, **style)
    _draw_bars(right, rows, marked)
    if title:
        figure.suptitle(shorten(title, 90), fontsize=11, color=MUTED, x=0.015, ha="left")
    return to_png(figure)


def _draw_bars(axes: "Axes", rows: Sequence[tuple[str, float]], marked: int = 0) -> None:
    """Classes with their probabilities, row `marked` in bold."""
    axes.barh(range(len(rows)), [1] * len(rows), height=0.26, color=GRID)
    for place, (name, probability) in enumerate(rows):
        colour, weight = (BLUE, "bold") if place == marked else ("#7fb2d4", "normal")
        axes.barh(place, probability, height=0.26, color=colour)
        style: Mapping[str, Any] = {"va": "bottom", "fontsize": 10, "color": INK, "fontweight": weight}
        percent = f"{100 * probability:.1f} %" if probability >= 0.001 else "< 0.1 %"
        axes.text(0, place - 0.22, shorten(name, 30), **style)
        axes.text(1, place - 0.22, percent, ha="right", **style)
    axes.set(xlim=(0, 1), ylim=(max(len(rows), 3) - 0.6, -0.75))
    axes.set_axis_off()
