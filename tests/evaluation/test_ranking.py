"""Networks ranked by speed and by a probe on one's own images."""

import json

import numpy as np
import pytest
from PIL import Image

from finetune.backbones import find_backbone
from finetune.cli import main as cli
from finetune.evaluation import ranking
from finetune.utils import DataError, Terminal


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """Only the network of the tests and what pip has installed is at hand, and nothing is timed for long."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(ranking, "TIMED_SECONDS", 0.01)
    monkeypatch.setattr(ranking, "IMAGES", 30)


@pytest.fixture
def only_tiny(monkeypatch):
    monkeypatch.setattr(ranking, "available_backbones", lambda: [find_backbone("tiny")])


def test_the_default_network_is_at_hand():
    names = [row.name for row in ranking.available_backbones()]
    assert "efficientnet_lite0" in names
    assert "resnet50" not in names


def test_networks_are_ranked_on_a_folder(only_tiny, images, capsys):
    assert cli.main(["backbones", "--compare", str(images), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (first,) = rows
    assert first["name"] == "tiny"
    assert first["n"] == 30
    assert first["rate"] > 0
    assert first["accuracy"]["low"] < first["accuracy"]["value"] <= first["accuracy"]["high"]
    assert first["accuracy"]["value"] > 0.6  # three colours; chance is a third


def test_without_a_folder_speed_decides(only_tiny, capsys):
    assert cli.main(["backbones", "--compare"]) == 0
    printed = capsys.readouterr().out
    assert "per s" in printed
    assert "tiny" in printed
    assert "accuracy" not in printed


def test_a_network_that_is_too_slow_gets_fewer_images_or_none(only_tiny, images, monkeypatch):
    monkeypatch.setattr(ranking, "images_per_second", lambda _: 24 / ranking.PROBE_SECONDS)
    assert ranking.rank_backbones(images)[0].n == 24
    monkeypatch.setattr(ranking, "images_per_second", lambda _: 12 / ranking.PROBE_SECONDS)
    assert ranking.rank_backbones(images)[0].accuracy is None


def test_the_sample_is_even_from_its_beginning(images):
    dataset = ranking.sample_folder(images, 0, Terminal(quiet=True))
    assert np.bincount(dataset.labels).tolist() == [10, 10, 10]
    assert np.bincount(dataset.labels[:6]).tolist() == [2, 2, 2]


def test_bad_folders_are_one_clear_message(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        ranking.rank_backbones(tmp_path / "nowhere")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 30)).save(tmp_path / name / "one.png")
    with pytest.raises(DataError, match="1 readable images of cat"):
        ranking.rank_backbones(tmp_path)
