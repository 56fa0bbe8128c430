"""Fixtures for commands as they are typed."""

from collections.abc import Callable

import pytest

from finetune.cli.main import main
from finetune.config import ModelConfig
from finetune.models import build_classifier

CLASSES = ("=evil()", "[bold]", "plain")  # a spreadsheet and rich would take two of them for something else
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """A function that runs a command and returns its exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder as far as `predict` and `evaluate` read it; every image is `=evil()`."""
    folder = tmp_path_factory.mktemp("model")
    classifier = build_classifier(ModelConfig(backbone="tiny", weights="none"), CLASSES)
    classifier.model.get_layer("logits").bias.assign([3.0, 1.0, 0.0])  # so that the predictions are in a known order
    classifier.save(folder / "model.keras")
    return str(folder)
