"""How good a classifier is: a run on its own test images, or any classifier on labelled ones.

Images go the very way that `finetune predict` takes, through the classifier that was saved: what is measured is what
will answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import Config, DataConfig, dump_config, load_config
from finetune.data import Dataset, Transform, list_source, open_labelled_dataset, read_square, reopen_dataset
from finetune.evaluation.explain import explain_image, overlay_heatmap
from finetune.evaluation.metrics import PairedTest, Proportion, paired_test
from finetune.evaluation.report import ReportData
from finetune.evaluation.tasks import Metrics, task_for
from finetune.models import Classifier, load_classifier
from finetune.runs import Run, open_run
from finetune.utils import CheckFailed, DataError, ProgressCallback, Terminal, UsageError

HALF = 0.5  # the threshold of a label where none was chosen


@dataclass(frozen=True)
class TestResult:
    """What the test images say; all None, and no answers, without a test split."""

    answers: np.ndarray  # (test images, classes), probabilities
    metrics: Metrics | None = None
    head_metrics: Metrics | None = None
    paired: PairedTest | None = None


def evaluate_on_test(
    classifier: Classifier,
    dataset: Dataset,
    head_answers: np.ndarray | None,
    *,
    progress: ProgressCallback | None = None,
) -> TestResult:
    """Looks at the test images, once; `head_answers` are the probabilities that the head alone had given them."""
    test = dataset.indices("test")
    if len(test) == 0:
        return TestResult(np.empty((0, len(dataset.classes))))
    answers, labels = _answers(classifier, dataset, test, progress), dataset.labels[test]
    task, thresholds = task_for(dataset.label_type), classifier.thresholds
    metrics = task.metrics(answers, labels, dataset.classes, thresholds)
    if head_answers is None:
        return TestResult(answers, metrics)
    # The head had no thresholds of its own; a comparison at 0.5 for both favours neither.
    head_metrics = task.metrics(head_answers, labels, dataset.classes, HALF)
    before, after = (task.agreement(dataset.label_type.decide(each, HALF), labels) for each in (head_answers, answers))
    return TestResult(answers, metrics, head_metrics, paired_test(before, after))


def _answers(
    classifier: Classifier, dataset: Dataset, indices: np.ndarray, progress: ProgressCallback | None
) -> np.ndarray:
    paths = dataset.paths(indices)
    return np.concatenate([rows for _, rows, _ in classifier.probabilities(paths, progress=progress)])


def require_accuracy(accuracy: Proportion | None, least: float | None) -> None:
    """Raises CheckFailed unless `accuracy` is at least the share `least`; None asks for nothing."""
    if least is None:
        return
    if accuracy is None:
        raise CheckFailed(f"an accuracy of {least:.1%} was demanded, and there are no test images to measure it on.")
    if accuracy.value < least:
        raise CheckFailed(
            f"the accuracy is {accuracy.value:.2%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}), "
            f"and {least:.2%} was demanded."
        )


def report_evidence(
    run: Run, config: Config, dataset: Dataset, classifier: Classifier, found: TestResult, facts: Mapping[str, Any]
) -> ReportData:
    """What the report tells of this run."""
    test, history, where = dataset.indices("test"), run.history(), display_path(run.path)
    paths = [Path(path) for path in dataset.paths(test)]
    phases = [
        {**phase, "seconds": sum(float(row["seconds"]) for row in history if row["phase"] == phase["name"])}
        for phase in run.phases
    ]
    examples = {
        name: dataset.path(int(members[0]))
        for number, name in enumerate(dataset.classes)
        if len(members := dataset.label_type.indices_with(dataset.labels, number))
    }
    mistakes = task_for(dataset.label_type).mistakes(
        found.answers, dataset.labels[test], dataset.classes, paths, classifier.thresholds
    )
    return ReportData(
        name=run.path.name,
        phases=phases,
        history=history,
        test=found.metrics,
        head=found.head_metrics,
        paired=found.paired,
        mistakes=mistakes,
        examples=examples,
        counts={name: len(dataset.indices(name)) for name in ("train", "validation", "test")},
        skipped=dataset.skipped,
        warnings=dataset.warnings,
        facts={
            **facts,
            "backbone": classifier.row.title,
            "image_size": classifier.spec.image_size,
            "classes": len(dataset.classes),
            "classes_are": dataset.label_type.noun,
        },
        config_yaml=dump_config(config),
        commands=[
            f"finetune predict IMAGES --model {where}",
            f"finetune evaluate {where} --data NEW_IMAGES",
            f"finetune train {where / 'config.yaml'} head.epochs={config.head.epochs}   # again, any value changed",
            f"finetune tensorboard {where.parent}",
        ],
        thumbnail=lambda path: read_square(path, Transform(160, resize="crop", crop=1.0)),
        confidences=classifier.spec.confidences,
        overlay=lambda path, name: _looked_at(classifier, path, dataset.classes.index(name)),
    )


def _looked_at(classifier: Classifier, path: str, number: int) -> np.ndarray:
    """The image as the network saw it, under the Grad-CAM of class `number`."""
    found = explain_image(classifier, path, target=number)
    return overlay_heatmap(found.image, found.heat)


def display_path(path: Path) -> Path:
    """`path` as it is typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ------------------------------------------------------------------------------------------------ finetune evaluate


def evaluate_classifier(
    source: str | Path, data_source: str | Path | None = None, *, split: str = "test", terminal: Terminal | None = None
) -> Metrics:
    """Measures a run on its own images, or any classifier on `data_source`: a folder, a CSV, or `tfds:NAME`.

    Folders of classes may be called by class name or, for ImageNet networks, by WordNet id. Raises DataError for
    classes that the classifier does not know, and when a run's own images have changed.
    """
    terminal = terminal or Terminal(quiet=True)
    classifier = load_classifier(source)
    with terminal.stage("Checking the images") as update:
        if data_source is None:
            dataset = _own_images(source, split, update)
        else:
            dataset, split = _labelled(classifier, source, data_source, split, update), "test"
    for warning in filter(None, [*dataset.warnings, classifier.warning]):
        terminal.warn(warning)
    indices = dataset.indices(split)
    with terminal.stage("Measuring") as update:
        answers = _answers(classifier, dataset, indices, update)
    labels, thresholds = dataset.labels[indices], classifier.thresholds
    found: Metrics = task_for(classifier.label_type).metrics(answers, labels, classifier.classes, thresholds)
    return found


def _own_images(source: str | Path, split: str, update: Any) -> Dataset:
    if not (Path(source) / "splits.csv").exists():
        raise UsageError(
            f"{source} has no images of its own to be measured on.",
            hint=f"Give labelled ones: finetune evaluate {source} --data FOLDER",
        )
    run = open_run(Path(source))
    dataset = reopen_dataset(load_config(run.config_yaml).data, run.splits_csv, run.classes_txt, progress=update)
    if not len(dataset.indices(split)):
        raise DataError(f"{source} has no {split} images.", hint="Choose another --split, or give --data.")
    return dataset


def _labelled(classifier: Classifier, model: str | Path, source: str | Path, split: str, update: Any) -> Dataset:
    text = str(source)
    if classifier.spec.multi_label:
        described = _table_of_labels(model, Path(text).absolute())
    elif text.startswith("tfds:"):
        described = DataConfig(tfds=text.removeprefix("tfds:"))
    else:
        path = Path(text).absolute()
        if not path.exists():
            raise DataError(
                f"{path}: no such folder or table.", hint="--data takes a folder of class folders, or a CSV."
            )
        described = DataConfig(folder=path) if path.is_dir() else DataConfig(csv=path)
    if classifier.spec.multi_label:
        return open_labelled_dataset(described, classifier.classes, split=split, progress=update)
    used = list_source(described).classes
    names = classifier.ids if set(used) <= set(classifier.ids) else classifier.classes
    return open_labelled_dataset(described, names, split=split, progress=update)


def _table_of_labels(model: str | Path, table: Path) -> DataConfig:
    """`table` with the columns of the one that the run `model` was trained on."""
    if not table.is_file():
        raise DataError(
            f"{model} gives an image any number of labels, and {table} is no CSV that says which are right.",
            hint="--data takes a table like that of the training: path,label with a|b in a cell, or label columns.",
        )
    config_yaml = Path(model) / "config.yaml"
    if not config_yaml.is_file():
        return DataConfig(csv=table, multi_label=True)
    return load_config(config_yaml).data.model_copy(update={"csv": table, "classes": None})
