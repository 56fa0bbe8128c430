"""The model card of an export: README.md as Hugging Face and people read it.

A YAML front matter with the measured numbers (`model-index`), then what it was trained on, how good it is and how sure
that is, what it cannot do, and a program that uses it without finetune.
https://huggingface.co/docs/hub/model-cards
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from finetune.evaluation import load_template
from finetune.export.formats import EXPORT_FORMATS

if TYPE_CHECKING:
    from finetune.models import Classifier

LIBRARIES = {"keras": "keras", "saved_model": "tensorflow", "litert": "litert", "onnx": "onnx", "openvino": "openvino"}
PROGRAM = {  # what the program in the card needs, and how it imports that
    "keras": ("keras tensorflow", "import keras"),
    "saved_model": ("tensorflow", "import tensorflow as tf"),
    "litert": ("ai-edge-litert", "from ai_edge_litert.interpreter import Interpreter"),
    "onnx": ("onnxruntime", "import onnxruntime"),
    "openvino": ("openvino", "import openvino"),
}
LISTED = 50  # classes in the card; all are in classes.txt


def write_model_card(facts: Mapping[str, Any], classifier: "Classifier", report: Mapping[str, Any] | None) -> str:
    """The card for an export of these `facts` (export.json); `report` is the run's report.json, if it has one."""
    filters = {"percent": lambda share: f"{share:.1%}".replace("%", " %"), "md": escape_markdown}
    test = (report or {}).get("test")
    return load_template("finetune.export", "card.md.j2", filters, keep_trailing_newline=True).render(
        front=front_matter(facts, classifier, test),
        f=facts,
        row=classifier.row,
        pretrained=classifier.spec.pretrained,
        classes=classifier.classes[:LISTED],
        more=max(0, len(classifier.classes) - LISTED),
        images=(report or {}).get("pictures"),
        test=test,
        weakest=_weakest(test),
        title=EXPORT_FORMATS[facts["format"]].title,
        packages=PROGRAM[facts["format"]][0],
        imports=PROGRAM[facts["format"]][1],
    )


def read_report(path: Path) -> dict[str, Any] | None:
    """A run's report.json; None where it cannot be read, for a card can do without."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def front_matter(facts: Mapping[str, Any], classifier: "Classifier", test: Mapping[str, Any] | None) -> str:
    """The YAML between the two lines of dashes."""
    header: dict[str, Any] = {
        "library_name": LIBRARIES[facts["format"]],
        "pipeline_tag": "image-classification",
        "tags": ["finetune", "transfer-learning", facts["backbone"], *_more_tags(facts)],
    }
    metrics = _metrics(facts, test)
    if metrics:
        dataset = {"type": "imagefolder", "name": facts["pictures"]}
        task = {"type": "image-classification"}
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        header["metrics"] = ["accuracy"]
        header["model-index"] = [{"name": facts["name"], "results": [result]}]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)


def _more_tags(facts: Mapping[str, Any]) -> list[str]:
    return [*(["multi-label"] if facts["label_thresholds"] else []), *filter(None, [facts["quantize"]])]


def _metrics(facts: Mapping[str, Any], test: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if facts["accuracy"] is None:
        return []
    share = facts["accuracy"]["after"]
    name = f"accuracy (n = {facts['accuracy']['n']}, 95 % interval {share['low']:.3f} to {share['high']:.3f})"
    found = [{"type": "accuracy", "value": round(share["value"], 4), "name": name}]
    if test and not facts["quantize"]:  # quantising changes these a little, and nobody measured how
        found += [{"type": key, "value": round(test[key], 4)} for key in ("log_loss", "calibration_error")]
        if average := test.get("mean_average_precision"):
            found.append({"type": "mean_average_precision", "value": round(average["value"], 4)})
    return found


def _weakest(test: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The classes that are found least, at most three."""
    rows = [row for row in (test or {}).get("per_class", ()) if row["recall"] is not None]
    return sorted(rows, key=lambda row: row["recall"])[:3]


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)
