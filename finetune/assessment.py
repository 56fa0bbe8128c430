"""How good a classifier is: a run on its own test pictures, or any classifier on labelled ones.

Pictures go the very way that `finetune predict` takes, through the classifier that was saved: what is measured is what
will answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune import classifier as classifiers
from finetune import config as configs
from finetune import data, evaluation, explanation, images, reporting, runs, sources
from finetune.classifier import Classifier
from finetune.config import Config
from finetune.data import Dataset
from finetune.errors import CheckFailed, DataError, UsageError
from finetune.runs import Run
from finetune.terminal import Terminal

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Assessment:
    """What the test pictures say; all None, and no answers, without a test split."""

    answers: np.ndarray  # (test pictures, classes), probabilities
    metrics: evaluation.Metrics | None = None
    head_metrics: evaluation.Metrics | None = None
    paired: evaluation.PairedTest | None = None


def assess(
    classifier: Classifier, dataset: Dataset, head_answers: np.ndarray | None, *, progress: Progress | None = None
) -> Assessment:
    """Looks at the test pictures, once; `head_answers` are the probabilities that the head alone had given them."""
    test = dataset.indices("test")
    if len(test) == 0:
        return Assessment(np.empty((0, len(dataset.classes))))
    answers, labels = _answers(classifier, dataset, test, progress), dataset.labels[test]
    metrics = evaluation.measure(answers, labels, dataset.classes)
    if head_answers is None:
        return Assessment(answers, metrics)
    head_metrics = evaluation.measure(head_answers, labels, dataset.classes)
    paired = evaluation.paired_test(head_answers.argmax(1) == labels, answers.argmax(1) == labels)
    return Assessment(answers, metrics, head_metrics, paired)


def _answers(classifier: Classifier, dataset: Dataset, indices: np.ndarray, progress: Progress | None) -> np.ndarray:
    paths = dataset.paths(indices)
    return np.concatenate([rows for _, rows, _ in classifier.probabilities(paths, progress=progress)])


def demand(accuracy: evaluation.Proportion | None, least: float | None) -> None:
    """Raises CheckFailed unless `accuracy` is at least the share `least`; None asks for nothing."""
    if least is None:
        return
    if accuracy is None:
        raise CheckFailed(f"an accuracy of {least:.1%} was demanded, and there are no test pictures to measure it on.")
    if accuracy.value < least:
        raise CheckFailed(
            f"the accuracy is {accuracy.value:.2%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}), "
            f"and {least:.2%} was demanded."
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) of class scores."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    whole: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return whole


def evidence(
    run: Run, config: Config, dataset: Dataset, classifier: Classifier, found: Assessment, facts: Mapping[str, Any]
) -> reporting.Evidence:
    """What the report tells of this run."""
    test, history, where = dataset.indices("test"), run.history(), shown(run.path)
    paths = [Path(path) for path in dataset.paths(test)]
    phases = [
        {**phase, "seconds": sum(float(row["seconds"]) for row in history if row["phase"] == phase["name"])}
        for phase in run.phases
    ]
    examples = {
        name: dataset.path(int(members[0]))
        for number, name in enumerate(dataset.classes)
        if len(members := np.flatnonzero(dataset.labels == number))
    }
    mistakes = evaluation.mistakes(found.answers, dataset.labels[test], dataset.classes, paths) if len(test) else []
    return reporting.Evidence(
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
        },
        config_yaml=configs.dump(config),
        commands=[
            f"finetune predict PICTURES --model {where}",
            f"finetune evaluate {where} --data NEW_PICTURES",
            f"finetune train {where / 'config.yaml'} head.epochs={config.head.epochs}   # again, any value changed",
            f"finetune tensorboard {where.parent}",
        ],
        thumbnail=lambda path: images.read_square(path, images.Transform(160, resize="crop", crop=1.0)),
        confidences=classifier.spec.confidences,
        overlay=lambda path, name: _looked_at(classifier, path, dataset.classes.index(name)),
    )


def _looked_at(classifier: Classifier, path: str, number: int) -> np.ndarray:
    """The picture as the network saw it, under the Grad-CAM of class `number`."""
    found = explanation.explain(classifier, path, target=number)
    return explanation.overlay(found.picture, found.heat)


def shown(path: Path) -> Path:
    """`path` as it is typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ------------------------------------------------------------------------------------------------ finetune evaluate


def evaluate(
    source: str | Path, data_source: str | Path | None = None, *, split: str = "test", terminal: Terminal | None = None
) -> evaluation.Metrics:
    """Measures a run on its own pictures, or any classifier on `data_source`: a folder, a CSV, or `tfds:NAME`.

    Folders of classes may be called by class name or, for ImageNet networks, by WordNet id. Raises DataError for
    classes that the classifier does not know, and when a run's own pictures have changed.
    """
    terminal = terminal or Terminal(quiet=True)
    classifier = classifiers.load(source)
    with terminal.stage("Checking the pictures") as update:
        if data_source is None:
            dataset = _own_pictures(source, split, update)
        else:
            dataset, split = _labelled(classifier, data_source, split, update), "test"
    for warning in filter(None, [*dataset.warnings, classifier.warning]):
        terminal.warn(warning)
    indices = dataset.indices(split)
    with terminal.stage("Measuring") as update:
        answers = _answers(classifier, dataset, indices, update)
    return evaluation.measure(answers, dataset.labels[indices], classifier.classes)


def _own_pictures(source: str | Path, split: str, update: Any) -> Dataset:
    if not (Path(source) / "splits.csv").exists():
        raise UsageError(
            f"{source} has no pictures of its own to be measured on.",
            remedy=f"Give labelled ones: finetune evaluate {source} --data FOLDER",
        )
    run = runs.open(Path(source))
    dataset = data.reopen(configs.load(run.config_yaml).data, run.splits_csv, run.classes_txt, progress=update)
    if not len(dataset.indices(split)):
        raise DataError(f"{source} has no {split} pictures.", remedy="Choose another --split, or give --data.")
    return dataset


def _labelled(classifier: Classifier, source: str | Path, split: str, update: Any) -> Dataset:
    text = str(source)
    if text.startswith("tfds:"):
        described = configs.Data(tfds=text.removeprefix("tfds:"))
    else:
        path = Path(text).absolute()
        if not path.exists():
            raise DataError(
                f"{path}: no such folder or table.", remedy="--data takes a folder of class folders, or a CSV."
            )
        described = configs.Data(folder=path) if path.is_dir() else configs.Data(csv=path)
    used = sources.find(described).classes
    names = classifier.ids if set(used) <= set(classifier.ids) else classifier.classes
    return data.open_labelled(described, names, split=split, progress=update)
