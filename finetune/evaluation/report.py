"""The report of a training: report.json for programs, report.html and figures for people.

    write_report(run.path, report_evidence(run, config, dataset, classifier, test_result, facts))

The HTML page is one file that needs nothing else: it opens from a disk, on a phone, in an
e-mail. Images are kept small so that it stays below 5 MB with any data set.
"""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluation.figures.curves import draw_curves
from finetune.evaluation.figures.images import draw_sheet
from finetune.evaluation.figures.scores import (
    confusion_strength,
    draw_calibration,
    draw_confusion,
    draw_labels,
    draw_risk_coverage,
)
from finetune.evaluation.figures.style import Image
from finetune.evaluation.metrics import ClassMetrics, Mistake, MulticlassMetrics, PairedTest
from finetune.evaluation.multilabel import MultilabelMetrics
from finetune.evaluation.reliability import Check, Gap
from finetune.evaluation.tasks import Metrics
from finetune.models import RiskCoveragePoint
from finetune.utils import FinetuneError, printable, write_bytes, write_text

if TYPE_CHECKING:
    from jinja2 import Template

FIGURES = {"curves", "confusion", "confusion_normalized", "labels", "calibration", "coverage", "mistakes"}
CLASS_IMAGES = 60  # with more classes, the table has no images
MATRIX_CLASSES = 120  # with more, the confusion matrix is an image
CONFIDENT = 0.9  # so confident against its label that a person should look at the label


@dataclass(frozen=True)
class ReportData:
    """Everything in a report. Sections without data are left out; `test` is None without a test split.

    `history` has a row per epoch (phase, epoch, loss, accuracy, validation_loss, validation_accuracy, ...);
    `phases` one mapping per phase (name, epochs, best_epoch, validation, seconds); `examples` an image per class;
    `confidences` and `tested` are one risk-coverage curve, on validation and on test images; `validation`, `gap` and
    `checks` say whether validation and test fit together; `copies` are sentences on copies that do not count.
    `read_thumbnail` turns a path into a square (S, S, 3) image, and `read_overlay`, where given, a path and a class
    into the image under the heatmap of that class.
    """

    name: str
    phases: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    test: Metrics | None
    head: Metrics | None
    paired: PairedTest | None
    mistakes: Sequence[Mistake]
    examples: Mapping[str, str]
    counts: Mapping[str, int]
    skipped: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    facts: Mapping[str, Any]
    config_yaml: str
    commands: Sequence[str]
    read_thumbnail: Callable[[str], Image]
    read_overlay: Callable[[str, str], Image] | None = None
    confidences: Sequence[RiskCoveragePoint] = ()
    tested: Sequence[RiskCoveragePoint] = ()
    validation: Metrics | None = None
    gap: Gap | None = None
    checks: Sequence[Check] = ()
    copies: Sequence[str] = ()

    @property
    def multi_label(self) -> bool:
        return isinstance(self.test, MultilabelMetrics)


def write_report(folder: Path, data: ReportData) -> None:
    """Write report.json, report.html and figures/*.png into the run folder `folder`."""
    figures = draw_figures(data)
    (folder / "figures").mkdir(exist_ok=True)
    for name, png in figures.items():
        write_bytes(folder / "figures" / f"{name}.png", png)
    for name in FIGURES - figures.keys():  # of an earlier report, no longer true
        (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
    text = json.dumps(report_json(data), indent=2)
    # Each list of whole numbers on one line: a confusion matrix stays a square.
    text = re.sub(r"\[\n +(\d+(?:,\n +\d+)*)\n +\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    write_text(folder / "report.json", f"{text}\n")
    write_text(folder / "report.html", render_page(data, figures))


def report_json(data: ReportData) -> dict[str, Any]:
    """The content of report.json (DESIGN, contracts)."""
    return {
        "name": data.name,
        "test": data.test.to_json() if data.test else None,
        "validation": validation_json(data.validation),
        "gap": data.gap.to_json() if data.gap else None,
        "fitted_on_validation": {check.fitted: check.to_json() for check in data.checks},
        "head": data.head.to_json() if data.head else None,
        "fine_tuning": data.paired.to_json() if data.paired else None,
        "phases": [dict(phase) for phase in data.phases],
        "pictures": dict(data.counts),
        "skipped": [{"path": path, "reason": reason} for path, reason in data.skipped],
        "warnings": list(data.warnings),
        "mistakes": [{**asdict(mistake), "path": str(mistake.path)} for mistake in data.mistakes],
        **data.facts,
    }


def validation_json(metrics: Metrics | None) -> dict[str, Any] | None:
    """The figures of the validation images over all classes, with their names in `test`."""
    if metrics is None:
        return None
    short = ("n", "accuracy", "mean_average_precision", "log_loss", "calibration_error", "calibration_noise")
    figures = metrics.to_json()
    return {name: figures[name] for name in short if name in figures}


def draw_figures(data: ReportData) -> dict[str, bytes]:
    """Name -> PNG of every figure that there is data for."""
    figures = {}
    if data.history:
        best = {(phase["name"], phase["best_epoch"]) for phase in data.phases}
        kept = [at for at, row in enumerate(data.history) if (row["phase"], row["epoch"]) in best]
        figures["curves"] = draw_curves(data.history, kept)
    if data.test:
        figures |= class_figure(data.test)
        if isinstance(data.test, MulticlassMetrics):
            normalized = draw_confusion(data.test.confusion, data.test.classes, normalize=True)
            figures["confusion_normalized"] = normalized
        figures["calibration"] = draw_calibration(data.test.calibration, of_labels=data.multi_label)
    if len(data.confidences) > 1:
        figures["coverage"] = draw_risk_coverage(data.confidences, data.tested)
    worst = data.mistakes[:18]
    if worst:
        captions = [f"{mistake.predicted} {mistake.probability:.0%}\n(is {mistake.true})" for mistake in worst]
        figures["mistakes"] = draw_sheet(
            [image_or_grey(data.read_thumbnail, str(mistake.path)) for mistake in worst], captions
        )
    return figures


def class_figure(metrics: Metrics) -> dict[str, bytes]:
    """{name: PNG} of how well classes are told apart: a confusion matrix, or the average precision of each label."""
    if isinstance(metrics, MultilabelMetrics):
        return {"labels": draw_labels([(row.name, row.n, row.average_precision) for row in metrics.per_class])}
    return {"confusion": draw_confusion(metrics.confusion, metrics.classes)}


# ---------------------------------------------------------------------------------------------------- report.html


def render_page(data: ReportData, figures: Mapping[str, bytes]) -> str:
    """report.html, with every image inside the file; `figures` are PNGs by name."""

    def percent(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"

    def thumbnail(path: str | Path) -> str:
        return jpeg_uri(image_or_grey(data.read_thumbnail, str(path)))

    def worst_first(row: ClassMetrics) -> tuple[float, str]:
        estimate = row.average_precision or row.recall
        return (estimate.value if estimate else 2.0, row.name)  # classes without test images come last

    cards = []
    for mistake in data.mistakes[:24]:
        seen = None
        if data.read_overlay:
            shown_class = mistake.about or mistake.predicted
            seen = jpeg_uri(image_or_grey(data.read_overlay, str(mistake.path), shown_class))
        cards.append({"mistake": mistake, "image": thumbnail(mistake.path), "seen": seen})
    pairs = []
    first_mistake = {(mistake.true, mistake.predicted): mistake for mistake in reversed(data.mistakes)}
    for true, predicted, count in data.test.confused_pairs(6) if data.test else ():
        example = first_mistake.get((true, predicted))
        image = thumbnail(example.path) if example else None
        pairs.append({"true": true, "predicted": predicted, "count": count, "image": image})
    doubtful = [
        mistake for mistake in data.mistakes if mistake.probability >= CONFIDENT and mistake.true_probability <= 0.05
    ]
    examples = data.examples if len(data.examples) <= CLASS_IMAGES else {}
    floor, ranges = headline_ranges(data)
    filters = {"percent": percent, "shown": printable, "number": lambda value: f"{value:,}"}
    return load_template("finetune.evaluation", "report.html.j2", filters, autoescape=True).render(
        e=data,
        several=data.multi_label,
        figures={name: data_uri(png, "png") for name, png in figures.items()},
        mistakes=cards,
        doubtful=doubtful,
        pairs=pairs,
        examples={name: thumbnail(path) for name, path in examples.items()},
        classes=sorted(data.test.per_class if data.test else (), key=worst_first),
        cells=confusion_cells(data.test) if isinstance(data.test, MulticlassMetrics) else [],
        longest=max(map(len, data.test.classes)) if data.test else 0,
        ranges=ranges,
        floor=floor,
        seconds=data.facts.get("seconds", {}),
    )


def confusion_cells(metrics: MulticlassMetrics) -> list[dict[str, Any]]:
    """The cells of the confusion matrix that have images, for the page; none where there are too many classes."""
    if len(metrics.classes) > MATRIX_CLASSES:
        return []
    strength, of = confusion_strength(metrics.confusion), metrics.confusion.sum(axis=1)
    return [
        {
            "row": row,
            "column": column,
            "count": int(metrics.confusion[row, column]),
            "of": int(of[row]),
            "strength": float(strength[row, column]),
        }
        for row, column in np.argwhere(metrics.confusion).tolist()
    ]


def load_template(package: str, name: str, filters: Mapping[str, Any], **options: Any) -> "Template":
    """A Jinja template of the package, in which an unknown name is an error; `style.css` is that of all pages.

    `options` are those of jinja2.Environment.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package), PackageLoader("finetune.evaluation")])

    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters |= filters
    return environment.get_template(name)


def headline_ranges(data: ReportData) -> tuple[float, list[tuple[str, float, float, float]]]:
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


def image_or_grey(read: Callable[..., Image], *arguments: str) -> Image:
    """The image that `read(*arguments)` returns, or a grey square: a lost file must not cost a training its report."""
    try:
        return read(*arguments)
    except (FinetuneError, OSError):
        return np.full((160, 160, 3), 200, np.uint8)


def jpeg_uri(pixels: Image, side: int = 160) -> str:
    """The image as a data URI, at most `side` pixels wide and high."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(pixels)
    image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=82)
    return data_uri(target.getvalue(), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
