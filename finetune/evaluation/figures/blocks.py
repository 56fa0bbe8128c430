"""The blocks of a network: what comes out of each, and how many parameters it has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.evaluation.figures.style import BLUE, INK, MUTED, new_figure, shorten, style_axes, to_png


def draw_blocks(title: str, rows: Sequence[tuple[str, int, int, int, int]]) -> bytes:
    """A network from image to feature map, block by block: (name, parameters, height, width, channels) each.

    Above, what comes out of each block, as tall as the root of its side and as wide as that of its channels; below, how
    many parameters are in it. The numbers say what `unfreeze: N blocks` counts.
    """
    from matplotlib.patches import Rectangle

    count = len(rows)
    few = count <= 30
    font = 8 if few else 6
    figure = new_figure(max(7.0, 0.42 * count + 1.4) if few else 0.2 * count + 1.4, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    sides = [max(height, width) for _, _, height, width, _ in rows]
    depths = np.array([channels for *_, channels in rows])
    heights, widths = np.sqrt(sides), 0.1 + 0.8 * np.sqrt(depths / depths.max())
    tallest = heights.max()
    gap = 0.02 * tallest
    for place, (side, depth, height, width) in enumerate(zip(sides, depths, heights, widths, strict=True)):
        corner = (place - width / 2, -height / 2)
        upper.add_patch(Rectangle(corner, width, height, facecolor=BLUE, edgecolor=INK, linewidth=0.6, alpha=0.35))
        if place == 0 or side != sides[place - 1]:
            upper.text(place, height / 2 + gap, f"{side}²", ha="center", fontsize=font, color=INK)
        below: Mapping[str, Any] = {"ha": "center", "va": "top", "rotation": 0 if few else 90}
        upper.text(place, -height / 2 - gap, str(depth), fontsize=font, color=MUTED, **below)
    upper.set(ylim=(-0.72 * tallest, 0.6 * tallest), xlim=(-0.8, count - 0.2))
    upper.set_axis_off()
    upper.set_title(shorten(title, 110), loc="left", fontsize=11, color=INK)
    upper.text(0, 0, "side in pixels above, channels below", transform=upper.transAxes, fontsize=8, color=MUTED)
    lower.bar(range(count), [parameters / 1e6 for _, parameters, *_ in rows], width=0.7, color=BLUE, alpha=0.75)
    style_axes(lower)
    lower.grid(False, axis="x")
    lower.set_ylabel("million parameters")
    names = [f"{shorten(name, 26)}  {count - place}" for place, (name, *_) in enumerate(rows)]
    lower.set_xticks(range(count), names, rotation=90, fontsize=font, color=INK)
    lower.set_xlabel("each block by its first layer, and its number from the end: unfreeze: 3 blocks = 3, 2, 1")
    return to_png(figure)
