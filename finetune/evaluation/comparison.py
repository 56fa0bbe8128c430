"""Finished runs side by side: how good each is, whether a difference is more than chance, and which settings differ.

    comparison = compare_runs([Path("runs/flowers-1"), Path("runs/flowers-2")])
    comparison.tests[1].better             # None: no evidence of a difference from the first

Everything is read from the run folders; neither the images nor TensorFlow are needed. Images are known by their
SHA-256, so runs of two machines compare too. Every run is compared with the first one, on the test images that both
have, with McNemar's exact test (a test of the mean accuracy where an image has several labels); with several runs the
p-values are corrected by Holm's method (1979), so that more comparisons make none more significant.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.config import flatten_config
from finetune.data import describe_changes, read_image_names
from finetune.evaluation.metrics import PairedTest, Proportion, paired_test
from finetune.evaluation.predictions import read_predictions
from finetune.runs import HistoryRow, open_run
from finetune.utils import DataError, UsageError

IGNORED = frozenset(("name", "output", "version"))  # they differ without making a difference


@dataclass(frozen=True)
class RunSummary:
    """What a run folder says of its run. `report` is empty until the run is finished.

    `correct` has (SHA-256, label) of each test image -> how correct the prediction is, 0 or 1, or with several
    labels in between; it is empty for a run without test images, and for one of an earlier version, which kept no
    predictions. `config` has dotted keys.
    """

    name: str
    status: str
    report: Mapping[str, Any]
    history: Sequence[HistoryRow]
    config: Mapping[str, str]
    correct: Mapping[tuple[str, str], float]
    images: Mapping[str, str] = field(default_factory=dict)  # SHA-256 -> name, of all splits

    @property
    def accuracy(self) -> Proportion | None:
        test = self.report.get("test")
        return Proportion(**test["accuracy"]) if test else None

    @property
    def head_accuracy(self) -> float | None:
        head = self.report.get("head")
        return head["accuracy"]["value"] if head else None

    @property
    def validation_accuracy(self) -> float | None:
        """Of the epoch that was kept in the last phase."""
        phases = self.report.get("phases")
        return phases[-1]["validation"].get("accuracy") if phases else None

    @property
    def seconds(self) -> float | None:
        seconds = self.report.get("seconds")
        return sum(seconds.values()) if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Names and numbers only, for `json.dump`."""
        test = self.report.get("test")
        if test:
            test = {key: test.get(key) for key in ("n", "accuracy", "log_loss", "calibration_error")}
        return {
            "name": self.name,
            "status": self.status,
            "backbone": self.report.get("backbone"),
            "test": test or None,
            "head_accuracy": self.head_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Comparison:
    """`tests[i]` compares run i with run 0 (None for run 0, and where they have no test image in common)."""

    runs: Sequence[RunSummary]
    tests: Sequence[PairedTest | None]

    @cached_property
    def differences(self) -> dict[str, list[str]]:
        """Config keys that are not the same in all runs, with the value of each run."""
        keys = dict.fromkeys(key for run in self.runs for key in run.config)
        table = {key: [run.config.get(key, "-") for run in self.runs] for key in keys}
        return {key: values for key, values in table.items() if len(set(values)) > 1}

    def sentences(self) -> list[str]:
        """For each run after the first: images that only one of them has; whether it is better, on what evidence."""
        first, lines = self.runs[0], []
        several = (first.report.get("test") or {}).get("multi_label")
        how = "better" if several else "correct only"
        for run, test in zip(self.runs[1:], self.tests[1:], strict=True):
            if first.images and run.images and (changes := describe_changes(first.images, run.images)):
                lines.append(f"Images of {run.name}, against {first.name}: {changes}.")
            if test is None:
                reason = _reason_without_test(first, run)
                lines.append(f"{run.name} and {first.name} cannot be compared image by image: {reason}.")
                continue
            evidence = (
                f"{test.difference * 100:+.1f} points on {test.n:,} common test images, p = {test.p_value:.2g} "
                f"({test.only_second} {how} there, {test.only_first} {how} in {first.name})"
            )
            if test.better is None:
                lines.append(f"No evidence that {run.name} differs from {first.name}: {evidence}.")
            else:
                word = "better" if test.better == "second" else "worse"
                lines.append(f"{run.name} is {word} than {first.name}: {evidence}.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Names, numbers and lists only, for `json.dump`."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "tests": [test.to_json() if test else None for test in self.tests],
            "differences": self.differences,
        }


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Read and compare the runs in these folders.

    Raises UsageError for a folder that is no run, DataError for a run with a damaged file.
    """
    if len({path.resolve() for path in paths}) < 2:
        raise UsageError("compare needs at least two runs.", hint="finetune compare runs/flowers-1 runs/flowers-2")
    return compare_summaries([read_run_summary(path, name) for path, name in zip(paths, _names(paths), strict=True)])


def compare_summaries(runs: Sequence[RunSummary]) -> Comparison:
    """Compare every run with the first, with p-values corrected for the number of comparisons (Holm 1979)."""
    tested: dict[int, PairedTest] = {}
    for position, run in enumerate(runs[1:], 1):
        images = sorted(runs[0].correct.keys() & run.correct.keys())
        if images:
            first, second = (np.array([summary.correct[image] for image in images]) for summary in (runs[0], run))
            tested[position] = paired_test(first, second)
    smallest = 0.0
    for rank, position in enumerate(sorted(tested, key=lambda position: (tested[position].p_value, position))):
        corrected = min(1.0, tested[position].p_value * (len(tested) - rank))
        smallest = max(smallest, corrected)  # never below that of a smaller p-value
        tested[position] = replace(tested[position], p_value=smallest)
    return Comparison(runs, [tested.get(position) for position in range(len(runs))])


def read_run_summary(path: Path, name: str) -> RunSummary:
    """What the run folder `path` says of the run, which is called `name` in the comparison."""
    run = open_run(path)
    report: dict[str, Any] = {}
    if run.report_json.exists():
        try:
            report = json.loads(run.report_json.read_text("utf-8"))
        except (OSError, ValueError) as error:
            hint = "Restore it from a copy, or train again."
            raise DataError(f"{run.report_json} cannot be read: {error}", hint=hint) from None
    correct: dict[tuple[str, str], float] = {}
    if report.get("test") and run.predictions_csv.exists():
        table = read_predictions(run.predictions_csv)
        values = table.overlap if report["test"].get("multi_label") else table.correct
        rows = zip(table.hashes, table.labels, values, table.splits, strict=True)
        correct = {(digest, label): float(value) for digest, label, value, split in rows if split == "test"}
    config = yaml.safe_load(run.config_yaml.read_text("utf-8")) if run.config_yaml.exists() else {}
    return RunSummary(
        name=name,
        status=run.status,
        report=report,
        history=run.history(),
        config={key: str(value) for key, value in flatten_config(config) if key not in IGNORED},
        correct=correct,
        images={key[0]: name for key, name in read_image_names(run.splits_csv).items()},
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that distinguish them."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def _reason_without_test(first: RunSummary, second: RunSummary) -> str:
    """Why no image of the two runs can be compared."""
    untested = " and ".join(run.name for run in (first, second) if not run.report.get("test"))
    if untested:
        return f"{untested} has no test results"
    unknown = " and ".join(run.name for run in (first, second) if not run.correct)
    if unknown:
        return f"{unknown} has no predictions.csv, which earlier versions did not write"
    return "they have no test image in common"
