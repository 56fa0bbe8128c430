"""What is left to look at after a training: report.json for programs, report.html and figures for people.

The page is one file without anything from outside: it opens from a disk, on a phone, in an e-mail. Images are kept
small so that it stays below 5 MB with any data set.
"""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.figures.calibration import draw_calibration, draw_risk_coverage
from finetune.evaluation.figures.classes import draw_confusion, draw_labels
from finetune.evaluation.figures.curves import draw_curves
from finetune.evaluation.figures.images import draw_sheet
from finetune.evaluation.metrics import ClassMetrics, Mistake, PairedTest
from finetune.evaluation.multilabel import MultilabelMetrics
from finetune.evaluation.tasks import Metrics
from finetune.models import RiskCoveragePoint
from finetune.utils import FinetuneError, printable, write_bytes, write_text

if TYPE_CHECKING:
    from jinja2 import Template

Image = npt.NDArray[np.uint8]
FIGURES = {"curves", "confusion", "labels", "calibration", "coverage", "mistakes"}
MISTAKES = 24
PAIRS = 6
CLASS_IMAGES = 60  # with more classes the table goes without
SURE = 0.9  # so sure against its label that a person should look at the label


@dataclass(frozen=True)
class ReportData:
    """All that a report tells. Sections without evidence are left out; `test` is None without a test split.

    `history` has a row per epoch (phase, epoch, loss, accuracy, validation_loss, validation_accuracy, ...);
    `phases` one mapping per phase (name, epochs, best_epoch, validation, seconds); `examples` an image per class;
    `thumbnail` turns a path into a square (S, S, 3) image, and `overlay`, where given, into what the model looked at.
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
    thumbnail: Callable[[str], Image]
    overlay: Callable[[str, str], Image] | None = field(default=None)
    confidences: Sequence[RiskCoveragePoint] = ()


def report_json(evidence: ReportData) -> dict[str, Any]:
    """The content of report.json (DESIGN, contracts)."""
    return {
        "name": evidence.name,
        "test": evidence.test.to_json() if evidence.test else None,
        "head": evidence.head.to_json() if evidence.head else None,
        "fine_tuning": evidence.paired.to_json() if evidence.paired else None,
        "phases": [dict(phase) for phase in evidence.phases],
        "pictures": dict(evidence.counts),
        "skipped": [{"path": path, "reason": reason} for path, reason in evidence.skipped],
        "warnings": list(evidence.warnings),
        "mistakes": [{**asdict(one), "path": str(one.path)} for one in evidence.mistakes],
        **evidence.facts,
    }


def write_report(folder: Path, evidence: ReportData) -> None:
    """Writes report.json, report.html and figures/*.png into the run directory `folder`."""
    figures = draw_figures(evidence)
    (folder / "figures").mkdir(exist_ok=True)
    for name, png in figures.items():
        write_bytes(folder / "figures" / f"{name}.png", png)
    for name in FIGURES - figures.keys():  # of an earlier report, no longer true
        (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
    write_text(folder / "report.json", _rows_on_lines(json.dumps(report_json(evidence), indent=2)) + "\n")
    write_text(folder / "report.html", render_page(evidence, figures))


def draw_figures(evidence: ReportData) -> dict[str, bytes]:
    """Name -> PNG of every figure there is evidence for."""
    figures = {}
    if evidence.history:
        figures["curves"] = draw_curves(evidence.history, _best_rows(evidence))
    if evidence.test:
        figures |= class_figure(evidence.test)
        figures["calibration"] = draw_calibration(evidence.test.calibration, of_labels=_has_labels(evidence.test))
    if len(evidence.confidences) > 1:
        figures["coverage"] = draw_risk_coverage(evidence.confidences)
    worst = evidence.mistakes[:18]
    if worst:
        captions = [f"{one.predicted} {one.probability:.0%}\n(is {one.true})" for one in worst]
        figures["mistakes"] = draw_sheet([_look(evidence, str(one.path)) for one in worst], captions)
    return figures


def class_figure(found: Metrics) -> dict[str, bytes]:
    """{name: PNG} of how the classes fare: which is called what; or, where there may be several, how each is found."""
    if isinstance(found, MultilabelMetrics):
        rows = [(one.name, one.n, one.average_precision) for one in found.per_class]
        return {"labels": draw_labels(rows)}
    return {"confusion": draw_confusion(found.confusion, found.classes)}


def _has_labels(found: Metrics | None) -> bool:
    return isinstance(found, MultilabelMetrics)


def _rows_on_lines(text: str) -> str:
    """Indented JSON with each list of whole numbers on one line: a confusion matrix stays a square."""
    return re.sub(r"\[\n +(\d+(?:,\n +\d+)*)\n +\]", lambda row: f"[{' '.join(row[1].split())}]", text)


def _best_rows(evidence: ReportData) -> list[int]:
    """Positions in the history of the epochs whose weights were kept."""
    kept = {(phase["name"], phase["best_epoch"]) for phase in evidence.phases}
    return [at for at, row in enumerate(evidence.history) if (row["phase"], row["epoch"]) in kept]


def render_page(evidence: ReportData, figures: Mapping[str, bytes]) -> str:
    """report.html, complete in itself."""
    filters = {"percent": _percent, "shown": printable, "number": lambda value: f"{value:,}"}
    return load_template("finetune.evaluation", "report.html.j2", filters, autoescape=True).render(
        e=evidence,
        several=_has_labels(evidence.test),
        figures={name: _data_uri(png, "png") for name, png in figures.items()},
        mistakes=[_card(evidence, one) for one in evidence.mistakes[:MISTAKES]],
        doubtful=[one for one in evidence.mistakes if one.probability >= SURE and one.true_probability <= 0.05],
        pairs=_pairs(evidence),
        examples=_examples(evidence),
        classes=_worst_first(evidence),
        **_ranges(evidence),
        seconds=evidence.facts.get("seconds", {}),
    )


def load_template(package: str, name: str, filters: Mapping[str, Any], **options: bool) -> "Template":
    """A Jinja template of the package; what it does not know is an error. `options` are those of jinja2.Environment."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(package)
    made = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)  # type: ignore[arg-type]
    made.filters |= filters
    return made.get_template(name)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}".replace("%", "\u00a0%")


def _ranges(evidence: ReportData) -> dict[str, Any]:
    """The headlines as (label, low, value, high) in percent of an axis from `floor`, a round number, to 1."""
    found = [(f"test {evidence.test.headline[0]}", evidence.test.headline[1])] if evidence.test else []
    if evidence.head:
        found = [("head alone", evidence.head.headline[1]), *(("fine-tuned", share) for _, share in found)]
    floor = math.floor(10 * min((share.low for _, share in found), default=0)) / 10
    floor = min(floor, 0.9)
    rows = [
        (label, *(100 * (part - floor) / (1 - floor) for part in (share.low, share.value, share.high)))
        for label, share in found
    ]
    return {"ranges": rows, "floor": floor}


def _worst_first(evidence: ReportData) -> list[ClassMetrics]:
    """By average precision if there is one, else by recall, then by name; classes without test images last."""

    def badness(row: ClassMetrics) -> tuple[float, str]:
        share = row.average_precision or row.recall
        return (share.value if share else 2, row.name)

    return sorted(evidence.test.per_class if evidence.test else (), key=badness)


def _card(evidence: ReportData, mistake: Mistake) -> dict[str, Any]:
    path, overlay = str(mistake.path), evidence.overlay
    seen = None if overlay is None else _jpeg(_or_grey(lambda: overlay(path, mistake.about or mistake.predicted)))
    return {"mistake": mistake, "image": _jpeg(_look(evidence, path)), "seen": seen}


def _pairs(evidence: ReportData) -> list[dict[str, Any]]:
    """The most confused pairs of classes, each with one image that was confused."""
    found = []
    for true, predicted, count in evidence.test.confused_pairs(PAIRS) if evidence.test else ():
        example = next((one for one in evidence.mistakes if (one.true, one.predicted) == (true, predicted)), None)
        pixels = _jpeg(_look(evidence, str(example.path))) if example else None
        found.append({"true": true, "predicted": predicted, "count": count, "image": pixels})
    return found


def _examples(evidence: ReportData) -> dict[str, str]:
    if len(evidence.examples) > CLASS_IMAGES:
        return {}
    return {name: _jpeg(_look(evidence, path)) for name, path in evidence.examples.items()}


def _look(evidence: ReportData, path: str) -> Image:
    return _or_grey(lambda: evidence.thumbnail(path))


def _or_grey(read: Callable[[], Image]) -> Image:
    """What `read` gives, or plain grey where the file has gone since: a training must not lose its report to that."""
    try:
        return read()
    except (FinetuneError, OSError):
        return np.full((160, 160, 3), 200, np.uint8)


def _jpeg(pixels: Image, side: int = 160) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=82)
    return _data_uri(target.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
