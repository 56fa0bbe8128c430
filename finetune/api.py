"""The public Python API, for notebooks and scripts: a function per command, in the words of the command line.

Mistakes raise a subclass of `finetune.utils.FinetuneError`, whose text says what is wrong and what to do.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.config import Config, load_config, override_texts
from finetune.data import config_source
from finetune.evaluation import Comparison, Metrics, compare_runs, evaluate_classifier
from finetune.models import Classifier, load_classifier
from finetune.training import CheckResult, Result, check_config, train_config
from finetune.utils import Terminal, UsageError

Source = str | os.PathLike[str]  # a run (also as `train` returned it), a `.keras` file, or the name of a backbone
Override = str | Mapping[str, Any]  # `"head.epochs=5"` or `{"head": {"epochs": 5}}`


def load(source: Source) -> Classifier:
    """Load a classifier: a run folder, a `.keras` file of finetune, or the name of a backbone (1000 ImageNet classes).

    Example:
        for prediction in finetune.load("runs/flowers-1").predict("photos/*.jpg", top=3):
            print(prediction.path, prediction.predictions[0].name)
    """
    return load_classifier(_path_or_name(source))


def check(source: str | Path | Mapping[str, Any], *overrides: Override, quiet: bool = True) -> CheckResult:
    """Find what could go wrong with a training, without training. Problems are collected, not raised.

    Example:
        result = finetune.check("flowers.yaml", "head.epochs=5")
        print(result.problems, sum(result.seconds.values()))
    """
    return check_config(_load(source, overrides), terminal=Terminal(quiet=quiet))


def train(source: str | Path | Mapping[str, Any], *overrides: Override, quiet: bool = False) -> Result:
    """Train in a new run folder, as a config says: a YAML file, the name of a shipped config, or a mapping.

    `source` may also be a folder of images or a CSV: then the config is the one that `finetune init` would write.

    `overrides` are as on the command line, or mappings. Progress is printed on standard error unless `quiet`.

    Example:
        result = finetune.train({"data": {"folder": "photos"}}, "head.epochs=5")
        print(result.run.path, result.metrics.accuracy.value)
    """
    return train_config(_load(source, overrides), terminal=Terminal(quiet=quiet))


def evaluate(source: Source, data: str | Path | None = None, *, split: str = "test") -> Metrics:
    """Measure a run on the images of its `split`, or a run or a backbone on `data`, a folder or CSV file.

    Example:
        accuracy = finetune.evaluate("runs/flowers-1", "new_photos").accuracy
        print(accuracy.value, accuracy.low, accuracy.high)     # with its 95 % interval
    """
    return evaluate_classifier(_path_or_name(source), data, split=split, terminal=Terminal(quiet=True))


def compare(runs: Sequence[Source]) -> Comparison:
    """Compare finished runs with the first of them, on the test images that they have in common.

    Example:
        for sentence in finetune.compare(["runs/flowers-1", "runs/flowers-2"]).sentences():
            print(sentence)
    """
    return compare_runs([Path(_path_or_name(run)) for run in runs])


def _load(source: str | Path | Mapping[str, Any], overrides: Sequence[Override]) -> Config:
    words = list(override_texts(overrides))
    return load_config(config_source(source, words), words)


def _path_or_name(source: Source) -> str:
    try:
        return os.fspath(source)
    except TypeError:
        hint = "Give the path of a run, what finetune.train returned, or the name of a backbone."
        raise UsageError(f"{type(source).__name__} is no run and no model.", hint=hint) from None
