"""Finished runs side by side: how good each is, whether a difference is more than chance, and what was set differently.

    found = compare([Path("runs/flowers-1"), Path("runs/flowers-2")])
    found.tests[1].better                  # None: no evidence against the first

Everything is read from the run directories; neither the images nor TensorFlow are needed. Images are known by
their SHA-256, so runs on two machines compare too. Every run is held against the first one named, on the test
images that both have, with McNemar's exact test; with several runs the p-values are Holm's (1979), which do not
grow more significant by asking more often.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.evaluation.metrics import PairedTest, Proportion, paired_test
from finetune.runs import HistoryRow, Run, open_run
from finetune.utils import DataError, UsageError

IGNORED = frozenset(("name", "output", "version"))  # they differ without making a difference
MISSING = "-"


@dataclass(frozen=True)
class RunSummary:
    """What one run directory says of its run. `report` is empty until the run is finished.

    `right` has a test image's SHA-256 and label -> whether the run named it rightly; `config` has dotted keys.
    """

    name: str
    status: str
    report: Mapping[str, Any]
    history: Sequence[HistoryRow]
    config: Mapping[str, str]
    right: Mapping[tuple[str, str], bool]

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
        """Of the epoch that was kept: the last phase's best."""
        phases = self.report.get("phases")
        return phases[-1]["validation"].get("accuracy") if phases else None

    @property
    def seconds(self) -> float | None:
        spent = self.report.get("seconds")
        return sum(spent.values()) if spent else None

    def to_json(self) -> dict[str, Any]:
        test = self.report.get("test") or {}
        return {
            "name": self.name,
            "status": self.status,
            "backbone": self.report.get("backbone"),
            "test": {key: test.get(key) for key in ("n", "accuracy", "log_loss", "calibration_error")}
            if test
            else None,
            "head_accuracy": self.head_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Comparison:
    """`tests[i]` holds run i against run 0 (None for run 0, and where they share no test image)."""

    runs: Sequence[RunSummary]
    tests: Sequence[PairedTest | None]

    @cached_property
    def differences(self) -> dict[str, list[str]]:
        """Config keys that are not the same in all runs, with the value of each run."""
        keys = dict.fromkeys(key for run in self.runs for key in run.config)
        table = {key: [run.config.get(key, MISSING) for run in self.runs] for key in keys}
        return {key: values for key, values in table.items() if len(set(values)) > 1}

    def sentences(self) -> list[str]:
        """A line for each run after the first: whether it is better or worse, and on what evidence."""
        pairs = zip(self.runs[1:], self.tests[1:], strict=True)
        return [_sentence(self.runs[0], run, test) for run, test in pairs]

    def to_json(self) -> dict[str, Any]:
        """Names, numbers and lists only, for `json.dump`."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "tests": [test.to_json() if test else None for test in self.tests],
            "differences": self.differences,
        }


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Reads and compares runs. UsageError for what is no run, DataError for a run whose files contradict each other."""
    if len({path.resolve() for path in paths}) < 2:
        raise UsageError("compare needs two runs at least.", hint="finetune compare runs/flowers-1 runs/flowers-2")
    found = [read_run_summary(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    tests = [None, *(_test(found[0], other) for other in found[1:])]
    return Comparison(found, _holm(tests))


def read_run_summary(path: Path, name: str | None = None) -> RunSummary:
    """What `path`, a run directory, says."""
    run = open_run(path)
    report: dict[str, Any] = _json(run.report_json) if run.report_json.exists() else {}
    return RunSummary(
        name=name or run.path.name,
        status=run.status,
        report=report,
        history=run.history(),
        config=_flat(yaml.safe_load(run.config_yaml.read_text("utf-8")) if run.config_yaml.exists() else {}),
        right=_right(run, report) if report.get("test") else {},
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="Bring it back from a copy, or train again.") from None
    return content


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"head": {"epochs": 5}} -> {"head.epochs": "5"}"""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            found |= _flat({str(number): item for number, item in enumerate(value, 1)}, f"{prefix}{key}.")
        elif prefix or key not in IGNORED:
            found[f"{prefix}{key}"] = str(value)
    return found


def _right(run: Run, report: Mapping[str, Any]) -> dict[tuple[str, str], bool]:
    """Which test images the run named rightly: those of splits.csv that are not among the report's mistakes."""
    with run.splits_csv.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    wrong = {str(mistake["path"]) for mistake in report["mistakes"]}
    root = _root(wrong, [row["path"] for row in rows])
    right = {(row["sha256"], row["label"]): os.path.join(root, row["path"]) not in wrong for row in rows}
    test = report["test"]
    n, right_share = test["n"], test.get("exact", test["accuracy"])["value"]  # of several labels, none may be wrong
    if len(rows) != n or len(rows) - len(wrong) != round(n * right_share):
        raise DataError(
            f"{run.path}: report.json and splits.csv do not belong together ({n} test images there, {len(rows)} here).",
            hint="One of them was replaced; train again for a whole run.",
        )
    return right


def _root(wrong: set[str], names: Sequence[str]) -> str:
    """The folder that the report's paths begin with; the run itself does not say where its images were."""
    first = next(iter(wrong), "")
    known = set(names)
    for name in names:
        if first.endswith(f"/{name}") or first == name:
            root = first[: len(first) - len(name)]
            if all(path.startswith(root) and path[len(root) :] in known for path in wrong):
                return root
    return ""


# ---------------------------------------------------------------------------------------------------- testing


def _test(first: RunSummary, second: RunSummary) -> PairedTest | None:
    common = sorted(first.right.keys() & second.right.keys())
    if not common:
        return None
    return paired_test(
        np.array([first.right[image] for image in common]), np.array([second.right[image] for image in common])
    )


def _holm(tests: Sequence[PairedTest | None]) -> list[PairedTest | None]:
    """Each p-value times the number of those not smaller than it, never below one that was smaller."""
    order = sorted((test.p_value, at) for at, test in enumerate(tests) if test)
    adjusted, floor = list(tests), 0.0
    for rank, (p_value, at) in enumerate(order):
        floor = max(floor, min(1.0, p_value * (len(order) - rank)))
        test = tests[at]
        adjusted[at] = replace(test, p_value=floor) if test else None
    return adjusted


def _sentence(first: RunSummary, second: RunSummary, test: PairedTest | None) -> str:
    if test is None:
        missing = [run.name for run in (first, second) if not run.right]
        why = f"{' and '.join(missing)} has no test results" if missing else "they share no test image"
        return f"{second.name} and {first.name} cannot be compared: {why}."
    apart = f"{test.difference * 100:+.1f} points on {test.n:,} common test images"
    counts = f"{test.only_second} right there alone, {test.only_first} right in {first.name} alone"
    if test.better is None:
        return f"No evidence that {second.name} differs from {first.name}: {apart}, p = {test.p_value:.2g} ({counts})."
    word = "better" if test.better == "second" else "worse"
    return f"{second.name} is {word} than {first.name}: {apart}, p = {test.p_value:.2g} ({counts})."
