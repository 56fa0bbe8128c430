"""How good a classifier is: a run on its own test images, or any classifier on labelled ones.

    metrics = evaluate_classifier("runs/flowers-1")                    # on the test images of the run
    metrics = evaluate_classifier("resnet50", "photos/")               # on a folder of class folders

Images take the same way as in `finetune predict`, through the saved classifier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import Config, DataConfig, dump_config, load_config
from finetune.data import Dataset, Transform, list_source, open_labelled_dataset, read_square, reopen_dataset
from finetune.evaluation.calibration import Decisions, fit_decisions
from finetune.evaluation.explain import explain_image, overlay_heatmap
from finetune.evaluation.metrics import PairedTest, Proportion, paired_test
from finetune.evaluation.precision import risk_coverage
from finetune.evaluation.reliability import Check, Gap, check_decisions, compare_splits
from finetune.evaluation.report import ReportData
from finetune.evaluation.tasks import Metrics, task_for
from finetune.models import Classifier, ClassifierSpec, RiskCoveragePoint, load_classifier, read_spec
from finetune.runs import Run, open_run
from finetune.utils import CheckFailed, DataError, ProgressCallback, Terminal, UsageError, did_you_mean, shell_command


@dataclass(frozen=True)
class TestResult:
    """What the test images say, and whether it fits the validation images; without a test split, much is None.

    `probabilities` (test images, classes) are those of all files. Everything else counts different images: of copies
    and near-copies only the first. `tested` is the risk-coverage curve at the thresholds that validation gave.
    """

    probabilities: np.ndarray
    validation: Metrics
    metrics: Metrics | None = None
    gap: Gap | None = None
    checks: Sequence[Check] = ()
    tested: tuple[RiskCoveragePoint, ...] = ()
    head_metrics: Metrics | None = None
    paired: PairedTest | None = None


def evaluate_on_test(
    classifier: Classifier,
    dataset: Dataset,
    decisions: Decisions,
    validation_probabilities: np.ndarray,
    head_logits: Mapping[str, np.ndarray] | None = None,
    *,
    calibrate: bool = True,
    progress: ProgressCallback | None = None,
) -> TestResult:
    """Predict the test images, once, and check on them what was fitted on the validation images (`decisions`).

    `head_logits` ("validation" and "test") are those of the head alone, which gets decisions of its own.
    """
    task, label_type, classes = task_for(dataset.label_type), dataset.label_type, dataset.classes
    validation_rows, rows = different_rows(dataset, "validation"), different_rows(dataset, "test")
    validation_labels = dataset.labels[dataset.distinct("validation")]
    of_validation = validation_probabilities[validation_rows]
    validation = task.metrics(of_validation, validation_labels, classes, classifier.thresholds)
    if len(rows) == 0:
        return TestResult(np.empty((0, len(classes))), validation)
    probabilities = _probabilities(classifier, dataset, dataset.indices("test"), progress)
    of_test, labels = probabilities[rows], dataset.labels[dataset.distinct("test")]
    metrics = task.metrics(of_test, labels, classes, classifier.thresholds)
    correct = task.agreement(label_type.decide(of_test, classifier.thresholds), labels)
    validation_correct = task.agreement(label_type.decide(of_validation, classifier.thresholds), validation_labels)
    tested: tuple[RiskCoveragePoint, ...] = ()
    if decisions.confidences:
        tested = risk_coverage(of_test, labels, [point.threshold for point in decisions.confidences])
    head_metrics = paired = None
    if head_logits:
        of_head = fit_decisions(head_logits["validation"][validation_rows], validation_labels, calibrate=calibrate)
        head = task.probabilities(head_logits["test"][rows] / of_head.temperature)
        head_metrics = task.metrics(head, labels, classes, of_head.thresholds)
        paired = paired_test(task.agreement(label_type.decide(head, of_head.thresholds), labels), correct)
    return TestResult(
        probabilities,
        validation,
        metrics,
        compare_splits(validation.accuracy, validation_correct, metrics.accuracy, correct),
        check_decisions(decisions, tested, of_test, labels),
        tested,
        head_metrics,
        paired,
    )


def different_rows(dataset: Dataset, split: str) -> np.ndarray:
    """Which rows of an array with a row for each image of `split` are kept if of copies only the first counts."""
    return np.flatnonzero(np.isin(dataset.indices(split), dataset.distinct(split)))


def describe_copies(dataset: Dataset, split: str) -> str:
    """A sentence if the split has copies or near-copies, which do not count in n and in no figure; else nothing."""
    files, different = len(dataset.indices(split)), len(dataset.distinct(split))
    if files == different:
        return ""
    return (
        f"The {split} split has {files:,} files, but only {different:,} different images: of copies and near-copies "
        "only the first counts."
    )


def _probabilities(
    classifier: Classifier, dataset: Dataset, indices: np.ndarray, progress: ProgressCallback | None
) -> np.ndarray:
    batches = classifier.probabilities(dataset.paths(indices), progress=progress)
    return np.concatenate([rows for _, rows, _ in batches])


def require_accuracy(accuracy: Proportion | None, least: float | None) -> None:
    """Raise CheckFailed unless `accuracy` is at least the fraction `least`; None requires nothing."""
    if least is None:
        return
    if accuracy is None:
        raise CheckFailed(f"an accuracy of {least:.1%} is required, and there are no test images to measure it on.")
    if accuracy.value < least:
        raise CheckFailed(
            f"the accuracy is {accuracy.value:.2%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}), "
            f"and {least:.2%} is required."
        )


def report_evidence(
    run: Run, config: Config, dataset: Dataset, classifier: Classifier, result: TestResult, facts: Mapping[str, Any]
) -> ReportData:
    """The data of the report of this run; `facts` are those of run.json."""
    history, where = run.history(), display_path(run.path)
    phases = [
        {**phase, "seconds": sum(float(row["seconds"]) for row in history if row["phase"] == phase["name"])}
        for phase in run.phases
    ]

    def read_overlay(path: str, class_name: str) -> np.ndarray:
        explanation = explain_image(classifier, path, target=dataset.classes.index(class_name))
        return overlay_heatmap(explanation.image, explanation.heat)

    test = dataset.distinct("test")
    mistakes = task_for(dataset.label_type).mistakes(
        result.probabilities[different_rows(dataset, "test")],
        dataset.labels[test],
        dataset.classes,
        [Path(path) for path in dataset.paths(test)],
        classifier.thresholds,
    )
    return ReportData(
        name=run.path.name,
        phases=phases,
        history=history,
        test=result.metrics,
        head=result.head_metrics,
        paired=result.paired,
        validation=result.validation,
        gap=result.gap,
        checks=result.checks,
        copies=list(filter(None, (describe_copies(dataset, split) for split in ("validation", "test")))),
        mistakes=mistakes,
        examples=example_images(dataset),
        counts={name: len(dataset.indices(name)) for name in ("train", "validation", "test")},
        skipped=dataset.skipped,
        warnings=dataset.warnings,
        facts={
            **facts,
            "backbone": classifier.row.title,
            "image_size": classifier.spec.image_size,
            "classes": len(dataset.classes),
            "classes_are": dataset.label_type.noun,
            "different_images": {split: len(dataset.distinct(split)) for split in ("validation", "test")},
        },
        config_yaml=dump_config(config),
        commands=[
            shell_command("finetune", "predict", "IMAGES", "--model", where),
            shell_command("finetune", "evaluate", where, "--data", "NEW_IMAGES"),
            shell_command("finetune", "train", where / "config.yaml", config.longer())
            + "   # or any other value changed",
            shell_command("finetune", "tensorboard", where.parent),
        ],
        read_thumbnail=lambda path: read_square(path, Transform(160, resize="crop", crop=1.0)),
        read_overlay=read_overlay,
        confidences=classifier.spec.confidences,
        tested=result.tested,
    )


def example_images(dataset: Dataset) -> dict[str, str]:
    """The path of the first image of each class that has one."""
    examples = {}
    for number, name in enumerate(dataset.classes):
        members = dataset.label_type.indices_with(dataset.labels, number)
        if len(members):
            examples[name] = dataset.path(int(members[0]))
    return examples


def display_path(path: Path) -> Path:
    """`path` relative to the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ------------------------------------------------------------------------------------------------ finetune evaluate


def evaluate_classifier(
    source: str | Path, data_source: str | Path | None = None, *, split: str = "test", terminal: Terminal | None = None
) -> Metrics:
    """Measure a run on its own images, or any classifier on `data_source`: a folder, a CSV, or `tfds:NAME`.

    Class folders are named by class or, for ImageNet networks, by WordNet id. Raises DataError for classes that the
    classifier does not know, and when the images of the run have changed.
    """
    terminal = terminal or Terminal(quiet=True)
    spec = read_spec(source)  # a mistake is answered before TensorFlow starts
    with terminal.stage("Checking the images") as update:
        if data_source is None:
            dataset = open_run_images(source, split, update)
        else:
            config, classes = labelled_source(spec, source, data_source)
            dataset = open_labelled_dataset(config, classes, split=split, progress=update)
            split = "test"
    classifier = load_classifier(source)
    for warning in filter(None, [*dataset.warnings, classifier.warning]):
        terminal.warn(warning)
    if copies := describe_copies(dataset, split):
        terminal.say(copies)
    indices = dataset.distinct(split)
    with terminal.stage("Measuring") as update:
        probabilities = _probabilities(classifier, dataset, indices, update)
    task, labels = task_for(classifier.label_type), dataset.labels[indices]
    return task.metrics(probabilities, labels, classifier.classes, classifier.thresholds)


def open_run_images(source: str | Path, split: str, progress: ProgressCallback) -> Dataset:
    """The data set of the run `source`, which must have images of this split."""
    if not (Path(source) / "splits.csv").exists():
        raise UsageError(
            f"{source} has no images of its own to be measured on.",
            hint=f"Give labelled ones: {shell_command('finetune', 'evaluate', source, '--data', 'FOLDER')}",
        )
    run = open_run(Path(source))
    dataset = reopen_dataset(load_config(run.config_yaml).data, run.splits_csv, run.classes_txt, progress=progress)
    if not len(dataset.indices(split)):
        raise DataError(f"{source} has no {split} images.", hint="Choose another --split, or give --data.")
    return dataset


def labelled_source(spec: ClassifierSpec, model: str | Path, source: str | Path) -> tuple[DataConfig, Sequence[str]]:
    """Where the labelled images of `source` are, and how it calls the classes: by their names or their WordNet ids."""
    text, path = str(source), Path(source).absolute()
    config_yaml = Path(model) / "config.yaml"
    trained_on = load_config(config_yaml).data if config_yaml.is_file() else None
    if spec.multi_label:
        if not path.is_file():
            raise DataError(
                f"{model} gives an image any number of labels, and {path} is no CSV with the true ones.",
                hint="--data takes a table like that of the training: path,label with a|b in a cell, or label columns.",
            )
        if trained_on is None:
            return DataConfig(csv=path, multi_label=True), spec.classes
        # The columns are those of the new table too.
        return trained_on.model_copy(update={"csv": path, "classes": None, "held_out": "test"}), spec.classes
    if text.startswith("tfds:"):
        config = DataConfig(tfds=text.removeprefix("tfds:"))
    elif path.exists():
        level = trained_on.class_level if trained_on else 1
        config = DataConfig(folder=path, class_level=level) if path.is_dir() else DataConfig(csv=path)
    else:
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else ())
        hint = "--data takes a folder of class folders, or a CSV."
        raise DataError(f"{path}: no such folder or table.{near}", hint=hint)
    by_id = set(list_source(config).classes) <= set(spec.ids)
    return config, spec.ids if by_id else spec.classes
