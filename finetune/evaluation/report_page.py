"""The HTML page of a report, from its data and its figures, with every image inside the file."""

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.evaluation.figures.style import Image
from finetune.evaluation.metrics import ClassMetrics
from finetune.utils import printable

if TYPE_CHECKING:
    from jinja2 import Template

    from finetune.evaluation.report import ReportData

MISTAKES = 24
PAIRS = 6
CLASS_IMAGES = 60  # with more classes, the table has no images
CONFIDENT = 0.9  # so confident against its label that a person should look at the label
NO_BREAK_SPACE = "\u00a0"


def render_page(data: "ReportData", figures: Mapping[str, bytes]) -> str:
    """report.html; `figures` are PNGs by name."""
    filters = {"percent": _percent, "shown": printable, "number": lambda value: f"{value:,}"}
    examples = data.examples if len(data.examples) <= CLASS_IMAGES else {}
    doubtful = [
        mistake for mistake in data.mistakes if mistake.probability >= CONFIDENT and mistake.true_probability <= 0.05
    ]
    floor, ranges = _ranges(data)
    return load_template("finetune.evaluation", "report.html.j2", filters, autoescape=True).render(
        e=data,
        several=data.multi_label,
        figures={name: _data_uri(png, "png") for name, png in figures.items()},
        mistakes=_mistake_cards(data),
        doubtful=doubtful,
        pairs=_confused_pairs(data),
        examples={name: _jpeg(data.thumbnail(path)) for name, path in examples.items()},
        classes=sorted(data.test.per_class if data.test else (), key=_worst_first),
        ranges=ranges,
        floor=floor,
        seconds=data.facts.get("seconds", {}),
    )


def load_template(package: str, name: str, filters: Mapping[str, Any], **options: bool) -> "Template":
    """A Jinja template of the package, in which an unknown name is an error.

    `options` are those of jinja2.Environment.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(package)
    environment = Environment(
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,  # type: ignore[arg-type]
    )
    environment.filters |= filters
    return environment.get_template(name)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}{NO_BREAK_SPACE}%"


def _ranges(data: "ReportData") -> tuple[float, list[tuple[str, float, float, float]]]:
    """The start of the axis, a round number, and the headline figures on it: (label, low, value, high) in percent of
    the axis, which ends at 1."""
    if data.test is None:
        return 0.0, []
    name, estimate = data.test.headline
    estimates = {f"test {name}": estimate}
    if data.head:
        estimates = {"head alone": data.head.headline[1], "fine-tuned": estimate}
    lowest = min(estimate.low for estimate in estimates.values())
    floor = min(0.9, math.floor(10 * lowest) / 10)
    scale = 100 / (1 - floor)
    rows = []
    for label, estimate in estimates.items():
        low, value, high = (scale * (end - floor) for end in (estimate.low, estimate.value, estimate.high))
        rows.append((label, low, value, high))
    return floor, rows


def _worst_first(row: ClassMetrics) -> tuple[float, str]:
    """A key that sorts by average precision or recall, then by name; classes without test images come last."""
    estimate = row.average_precision or row.recall
    return (estimate.value if estimate else 2.0, row.name)


def _mistake_cards(data: "ReportData") -> list[dict[str, Any]]:
    """The most confident mistakes, each with its image and, where there are heatmaps, the one of the prediction."""
    cards = []
    for mistake in data.mistakes[:MISTAKES]:
        path = str(mistake.path)
        overlay = data.overlay(path, mistake.about or mistake.predicted)
        seen = None if overlay is None else _jpeg(overlay)
        cards.append({"mistake": mistake, "image": _jpeg(data.thumbnail(path)), "seen": seen})
    return cards


def _confused_pairs(data: "ReportData") -> list[dict[str, Any]]:
    """The most confused pairs of classes, each with an image that was confused."""
    pairs = data.test.confused_pairs(PAIRS) if data.test else []
    first_mistake = {(mistake.true, mistake.predicted): mistake for mistake in reversed(data.mistakes)}
    rows = []
    for true, predicted, count in pairs:
        mistake = first_mistake.get((true, predicted))
        image = _jpeg(data.thumbnail(str(mistake.path))) if mistake else None
        rows.append({"true": true, "predicted": predicted, "count": count, "image": image})
    return rows


def _jpeg(pixels: Image, side: int = 160) -> str:
    """The image as a data URI, at most `side` pixels wide and high."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=82)
    return _data_uri(target.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
