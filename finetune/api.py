"""The public names of the package, for notebooks and scripts: `train`, `load`, `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import assessment, evaluation, experiment
from finetune import classifier as classifiers
from finetune import config as configs
from finetune.classifier import Classifier
from finetune.experiment import Result
from finetune.terminal import Terminal


def load(source: str | Path) -> Classifier:
    """A run directory, a `.keras` file of finetune, or the name of a backbone for its 1000 ImageNet classes."""
    return classifiers.load(source)


def train(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = False) -> Result:
    """Trains what a config file, a shipped config's name or a mapping describes; overrides as on the command line."""
    return experiment.train(configs.load(source, overrides), terminal=Terminal(quiet=quiet))


def evaluate(source: str | Path, data: str | Path | None = None, *, split: str = "test") -> evaluation.Metrics:
    """Measures a run (on its own test pictures, or on `data`) or a backbone (on `data`)."""
    return assessment.evaluate(source, data, split=split, terminal=Terminal(quiet=True))
