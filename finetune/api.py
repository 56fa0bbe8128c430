"""The public names of the package, for notebooks and scripts: `check`, `train`, `load`, `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import assessment, checking, experiment, targets
from finetune import classifier as classifiers
from finetune import config as configs
from finetune.classifier import Classifier
from finetune.experiment import Result
from finetune.terminal import Terminal


def load(source: str | Path) -> Classifier:
    """A run directory, a `.keras` file of finetune, or the name of a backbone for its 1000 ImageNet classes."""
    return classifiers.load(source)


def check(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = True) -> checking.Check:
    """Everything that could go wrong with a training, found without training; problems are collected, not raised."""
    return checking.check(configs.load(source, overrides), terminal=Terminal(quiet=quiet))


def train(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = False) -> Result:
    """Trains what a config file, a shipped config's name or a mapping describes; overrides as on the command line."""
    return experiment.train(configs.load(source, overrides), terminal=Terminal(quiet=quiet))


def evaluate(source: str | Path, data: str | Path | None = None, *, split: str = "test") -> targets.Metrics:
    """Measures a run (on its own test pictures, or on `data`) or a backbone (on `data`)."""
    return assessment.evaluate(source, data, split=split, terminal=Terminal(quiet=True))
