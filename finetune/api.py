"""The public names of the package, for notebooks and scripts: `check`, `train`, `load`, `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.config import load_config
from finetune.evaluation import Metrics, evaluate_classifier
from finetune.models import Classifier, load_classifier
from finetune.training import CheckResult, Result, check_config, train_config
from finetune.utils import Terminal


def load(source: str | Path) -> Classifier:
    """A run directory, a `.keras` file of finetune, or the name of a backbone for its 1000 ImageNet classes."""
    return load_classifier(source)


def check(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = True) -> CheckResult:
    """Everything that could go wrong with a training, found without training; problems are collected, not raised."""
    return check_config(load_config(source, overrides), terminal=Terminal(quiet=quiet))


def train(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = False) -> Result:
    """Trains what a config file, a shipped config's name or a mapping describes; overrides as on the command line."""
    return train_config(load_config(source, overrides), terminal=Terminal(quiet=quiet))


def evaluate(source: str | Path, data: str | Path | None = None, *, split: str = "test") -> Metrics:
    """Measures a run (on its own test images, or on `data`) or a backbone (on `data`)."""
    return evaluate_classifier(source, data, split=split, terminal=Terminal(quiet=True))
