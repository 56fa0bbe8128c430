"""What is known of a folder before any training."""

import json

import numpy as np
import pytest

from finetune.cli import main as cli
from finetune.config import ModelConfig
from finetune.evaluation import zeroshot
from finetune.models import build_classifier
from finetune.utils import DataError, UsageError


@pytest.fixture(scope="module")
def zoo(shared, tmp_path_factory):
    """Three folders of four real photos each, by the user's own names; one file is broken."""
    root = tmp_path_factory.mktemp("zoo")
    samples = sorted((shared / "data/imagenet_samples").glob("*.JPEG"))
    for name, first in (("fish", 0), ("birds", 10), ("snakes", 60)):
        (root / name).mkdir()
        for path in samples[first : first + 4]:
            (root / name / path.name).write_bytes(path.read_bytes())
    (root / "fish" / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    return root


@pytest.mark.slow
def test_a_survey_names_the_classes_of_each_folder(zoo, capsys):
    assert cli.main(["zeroshot", str(zoo), "--json"]) == 0
    captured = capsys.readouterr()
    survey = json.loads(captured.out)
    assert [(row["name"], row["pictures"]) for row in survey["folders"]] == [("birds", 4), ("fish", 4), ("snakes", 4)]
    fish = dict(survey["folders"][1]["classes"])
    assert set(fish) & {"tench", "goldfish", "great white shark", "tiger shark"}
    assert 0 < survey["without_training"]["low"] < survey["without_training"]["value"] <= 1
    assert survey["paired"]["n"] == 12
    assert "broken.jpg is left out" in captured.err


def test_a_folder_is_voted_for_by_the_classes_seen_in_it():
    probabilities = np.full((6, 4), 0.02, np.float32)
    probabilities[np.arange(6), [0, 0, 0, 3, 3, 3]] = 0.94
    labels = np.array([0, 0, 0, 1, 1, 1])
    train, test = np.array([0, 1, 3, 4]), np.array([2, 5])
    assert zeroshot.vote(probabilities, labels, train, test).tolist() == [0, 1]


@pytest.mark.slow
def test_bad_input_is_one_clear_message(zoo, tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        zeroshot.survey_folders(tmp_path / "nowhere")
    (tmp_path / "cat").mkdir()
    image = next((zoo / "fish").glob("n*"))
    (tmp_path / "cat" / "one.jpg").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match="only one class folder"):
        zeroshot.survey_folders(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "one.jpg").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match="too few readable images of cat, dog"):
        zeroshot.survey_folders(tmp_path)


def test_a_classifier_of_ones_own_has_no_imagenet_classes(zoo, monkeypatch):
    own = build_classifier(ModelConfig(backbone="tiny", weights="none"), ["a", "b"])
    monkeypatch.setattr(zeroshot, "load_classifier", lambda _: own)
    with pytest.raises(UsageError, match="classes of its own, not those of ImageNet"):
        zeroshot.survey_folders(zoo, model="runs/x-1")
