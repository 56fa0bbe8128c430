"""The report of a training: report.json for programs, report.html and figures for people.

    write_report(run.path, report_evidence(run, config, dataset, classifier, test_result, facts))

The HTML page, drawn by `report_page`, is one file that needs nothing else: it opens from a disk, on a phone, in an
e-mail. Images are kept small so that it stays below 5 MB with any data set.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation.figures.calibration import draw_calibration, draw_risk_coverage
from finetune.evaluation.figures.classes import draw_confusion, draw_labels
from finetune.evaluation.figures.curves import draw_curves
from finetune.evaluation.figures.images import draw_sheet
from finetune.evaluation.figures.style import Image
from finetune.evaluation.metrics import Mistake, PairedTest
from finetune.evaluation.multilabel import MultilabelMetrics
from finetune.evaluation.tasks import Metrics
from finetune.models import RiskCoveragePoint
from finetune.utils import FinetuneError, write_bytes, write_text

FIGURES = {"curves", "confusion", "labels", "calibration", "coverage", "mistakes"}
FIGURE_MISTAKES = 18


@dataclass(frozen=True)
class ReportData:
    """Everything in a report. Sections without data are left out; `test` is None without a test split.

    `history` has a row per epoch (phase, epoch, loss, accuracy, validation_loss, validation_accuracy, ...);
    `phases` one mapping per phase (name, epochs, best_epoch, validation, seconds); `examples` an image per class;
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

    @property
    def multi_label(self) -> bool:
        return isinstance(self.test, MultilabelMetrics)

    def thumbnail(self, path: str) -> Image:
        """The image, or plain grey where the file is gone: a training must not lose its report to that."""
        return image_or_grey(lambda: self.read_thumbnail(path))

    def overlay(self, path: str, class_name: str) -> Image | None:
        """The image under the heatmap of the class; grey where the file is gone, None without heatmaps."""
        read = self.read_overlay
        return None if read is None else image_or_grey(lambda: read(path, class_name))


def image_or_grey(read: Callable[[], Image]) -> Image:
    """What `read` returns, or a grey square where it cannot read."""
    try:
        return read()
    except (FinetuneError, OSError):
        return np.full((160, 160, 3), 200, np.uint8)


def write_report(folder: Path, data: ReportData) -> None:
    """Write report.json, report.html and figures/*.png into the run folder `folder`."""
    from finetune.evaluation.report_page import render_page

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
        "head": data.head.to_json() if data.head else None,
        "fine_tuning": data.paired.to_json() if data.paired else None,
        "phases": [dict(phase) for phase in data.phases],
        "pictures": dict(data.counts),
        "skipped": [{"path": path, "reason": reason} for path, reason in data.skipped],
        "warnings": list(data.warnings),
        "mistakes": [{**asdict(mistake), "path": str(mistake.path)} for mistake in data.mistakes],
        **data.facts,
    }


def draw_figures(data: ReportData) -> dict[str, bytes]:
    """Name -> PNG of every figure that there is data for."""
    figures = {}
    if data.history:
        best = {(phase["name"], phase["best_epoch"]) for phase in data.phases}
        kept = [at for at, row in enumerate(data.history) if (row["phase"], row["epoch"]) in best]
        figures["curves"] = draw_curves(data.history, kept)
    if data.test:
        figures |= class_figure(data.test)
        figures["calibration"] = draw_calibration(data.test.calibration, of_labels=data.multi_label)
    if len(data.confidences) > 1:
        figures["coverage"] = draw_risk_coverage(data.confidences)
    worst = data.mistakes[:FIGURE_MISTAKES]
    if worst:
        captions = [f"{mistake.predicted} {mistake.probability:.0%}\n(is {mistake.true})" for mistake in worst]
        figures["mistakes"] = draw_sheet([data.thumbnail(str(mistake.path)) for mistake in worst], captions)
    return figures


def class_figure(metrics: Metrics) -> dict[str, bytes]:
    """{name: PNG} of how well classes are told apart: a confusion matrix, or the average precision of each label."""
    if isinstance(metrics, MultilabelMetrics):
        return {"labels": draw_labels([(row.name, row.n, row.average_precision) for row in metrics.per_class])}
    return {"confusion": draw_confusion(metrics.confusion, metrics.classes)}
