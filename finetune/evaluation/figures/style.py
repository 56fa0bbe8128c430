"""What all figures have in common: colours, axes, text as it is, and a figure as bytes.

Only `matplotlib.figure.Figure` is used: no pyplot, no window, no global state; it works without a display.
Blue is correct, orange is wrong: two colours that every kind of colour vision tells apart (Okabe & Ito 2008).
"""

import io
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.utils import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]  # (H, W, 3)
BLUE, ORANGE = "#0072B2", "#D55E00"
SERIES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito
INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
DASHES = (0, (4, 3))
DPI = 160
CHART_WIDTH, CHART_DPI = 4.0, 240  # inches: so narrow that its text can be read on a phone; sharp on every screen
FALLBACK_FONTS = (  # DejaVu Sans comes with matplotlib; these are tried for letters that it lacks
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Hiragino Sans",
    "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained", dpi: float = DPI
) -> "Figure":
    """An empty white figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout=layout)


def to_png(figure: "Figure", **options: Any) -> bytes:
    """The figure as a PNG, without a date or version in it."""
    return render(figure, format="png", metadata={"Software": None}, **options)


def render(figure: "Figure", **options: Any) -> bytes:
    """The figure as a file; `options` are those of `Figure.savefig`.

    Text is drawn as it is: `$` starts no formula, and a letter that no font has is a box.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    installed = set(fontManager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(fonts)
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, **options)
    return target.getvalue()


def shorten(text: str, width: int) -> str:
    """`text` on one line of at most `width` letters."""
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def percent_tick(value: float, _position: object = None) -> str:
    """A fraction on an axis, in percent."""
    return f"{value * 100:.3g} %"


def style_axes(axes: "Axes") -> None:
    """A light grid, no frame at the top and right, muted labels."""
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
