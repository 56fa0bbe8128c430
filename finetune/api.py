"""The public Python API, for notebooks and scripts: a function per command, in the words of the command line.

Mistakes raise a subclass of `finetune.utils.FinetuneError`, whose text says what is wrong and what to do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.config import load_config
from finetune.data import config_source
from finetune.evaluation import Comparison, Metrics, compare_runs, evaluate_classifier
from finetune.models import Classifier, load_classifier
from finetune.training import CheckResult, Result, check_config, train_config
from finetune.utils import Terminal


def load(source: str | Path) -> Classifier:
    """Load a classifier: a run folder, a `.keras` file of finetune, or the name of a backbone (1000 ImageNet classes).

    Example:
        for prediction in finetune.load("runs/flowers-1").predict("photos/*.jpg", top=3):
            print(prediction.path, prediction.predictions[0].name)
    """
    return load_classifier(source)


def check(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = True) -> CheckResult:
    """Find what could go wrong with a training, without training. Problems are collected, not raised.

    Example:
        result = finetune.check("flowers.yaml", "head.epochs=5")
        print(result.problems, sum(result.seconds.values()))
    """
    return check_config(load_config(config_source(source, overrides), overrides), terminal=Terminal(quiet=quiet))


def train(source: str | Path | Mapping[str, Any], *overrides: str, quiet: bool = False) -> Result:
    """Train in a new run folder, as a config says: a YAML file, the name of a shipped config, or a mapping.

    `source` may also be a folder of images or a CSV: then the config is the one that `finetune init` would write.

    `overrides` are as on the command line. Progress is printed on standard error unless `quiet`.

    Example:
        result = finetune.train({"data": {"folder": "photos"}}, "head.epochs=5")
        print(result.run.path, result.metrics.accuracy.value)
    """
    return train_config(load_config(config_source(source, overrides), overrides), terminal=Terminal(quiet=quiet))


def evaluate(source: str | Path, data: str | Path | None = None, *, split: str = "test") -> Metrics:
    """Measure a run on the images of its `split`, or a run or a backbone on `data`, a folder or CSV file.

    Example:
        accuracy = finetune.evaluate("runs/flowers-1", "new_photos").accuracy
        print(accuracy.value, accuracy.low, accuracy.high)     # with its 95 % interval
    """
    return evaluate_classifier(source, data, split=split, terminal=Terminal(quiet=True))


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compare finished runs with the first of them, on the test images that they have in common.

    Example:
        for sentence in finetune.compare(["runs/flowers-1", "runs/flowers-2"]).sentences():
            print(sentence)
    """
    return compare_runs([Path(run) for run in runs])
