"""The model card of an export: README.md as Hugging Face and people read it.

A YAML front matter with the measured numbers (`model-index`), then what it was trained on, how good it is and how sure
that is, what it cannot do, and a program that uses it without finetune.
https://huggingface.co/docs/hub/model-cards
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from finetune.evaluation import load_template
from finetune.export.formats import ExportFormat

if TYPE_CHECKING:
    from finetune.models import Classifier

LISTED = 50  # classes named in the card; all are in classes.txt


def write_model_card(
    facts: Mapping[str, Any], format: ExportFormat, classifier: "Classifier", report: Mapping[str, Any] | None
) -> str:
    """The card for an export of these `facts` (export.json); `report` is the run's report.json, if it has one."""
    filters = {"percent": lambda fraction: f"{fraction:.1%}".replace("%", " %"), "md": escape_markdown}
    report = report or {}
    test = report.get("test")
    with_recall = [row for row in (test or {}).get("per_class", ()) if row["recall"] is not None]
    imports, _, program = format.program.partition("\n\n")
    return load_template("finetune.export", "card.md.j2", filters, keep_trailing_newline=True).render(
        front=front_matter(facts, format, test),
        f=facts,
        row=classifier.row,
        pretrained=classifier.spec.pretrained,
        classes=classifier.classes[:LISTED],
        more=max(0, len(classifier.classes) - LISTED),
        images=report.get("pictures"),
        test=test,
        weakest=sorted(with_recall, key=lambda row: row["recall"])[:3],
        format=format,
        imports=imports,
        program=program,
    )


def front_matter(facts: Mapping[str, Any], format: ExportFormat, test: Mapping[str, Any] | None) -> str:
    """The YAML between the two lines of dashes."""
    tags = ["finetune", "transfer-learning", facts["backbone"]]
    if facts["label_thresholds"]:
        tags.append("multi-label")
    if facts["quantize"]:
        tags.append(facts["quantize"])
    task = "image-classification"
    header: dict[str, Any] = {"library_name": format.library, "pipeline_tag": task, "tags": tags}
    if facts["accuracy"]:
        after = facts["accuracy"]["after"]
        name = f"accuracy (n = {facts['accuracy']['n']}, 95 % interval {after['low']:.3f} to {after['high']:.3f})"
        metrics = [{"type": "accuracy", "value": round(after["value"], 4), "name": name}]
        if test and not facts["quantize"]:  # quantising changes these a little, and nobody measured how
            metrics += [{"type": key, "value": round(test[key], 4)} for key in ("log_loss", "calibration_error")]
            if average := test.get("mean_average_precision"):
                metrics.append({"type": "mean_average_precision", "value": round(average["value"], 4)})
        dataset = {"type": "imagefolder", "name": facts["pictures"]}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
        header["metrics"] = ["accuracy"]
        header["model-index"] = [{"name": facts["name"], "results": [result]}]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)
