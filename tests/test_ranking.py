"""Networks ranked by speed and by a probe on one's own pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from finetune import cli, ranking
from finetune.errors import DataError


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """Only what pip has installed is at hand, and nothing is timed for long."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(ranking, "TIMED_SECONDS", 0.01)
    monkeypatch.setattr(ranking, "PICTURES", 30)


def test_networks_are_ranked_on_a_folder(pictures, capsys):
    assert cli.main(["backbones", "--compare", str(pictures), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "efficientnet_lite0" in [one["name"] for one in found]
    first = found[0]
    assert first["n"] == 30
    assert first["rate"] > 0
    assert first["accuracy"]["low"] < first["accuracy"]["value"] <= first["accuracy"]["high"]
    assert first["accuracy"]["value"] > 0.6  # three colours; chance is a third
    assert [one["accuracy"]["value"] for one in found] == sorted(one["accuracy"]["value"] for one in found)[::-1]


def test_without_a_folder_speed_decides(capsys):
    assert cli.main(["backbones", "--compare"]) == 0
    said = capsys.readouterr().out
    assert "pictures a second" in said
    assert "efficientnet_lite0" in said
    assert "accuracy here" not in said


def test_a_network_that_is_too_slow_gets_fewer_pictures_or_none(pictures, monkeypatch):
    monkeypatch.setattr(ranking, "_rate", lambda _: 24 / ranking.PROBE_SECONDS)
    monkeypatch.setattr(ranking, "at_hand", lambda: [ranking.catalog.find("efficientnet_lite0")])
    assert ranking.rank(pictures)[0].n == 24
    monkeypatch.setattr(ranking, "_rate", lambda _: 12 / ranking.PROBE_SECONDS)
    assert ranking.rank(pictures)[0].accuracy is None


def test_the_sample_is_even_from_its_beginning(pictures):
    from finetune.terminal import Terminal

    dataset = ranking._sample(pictures, 0, Terminal(quiet=True))
    assert np.bincount(dataset.labels).tolist() == [10, 10, 10]
    assert np.bincount(dataset.labels[:6]).tolist() == [2, 2, 2]


def test_bad_folders_are_one_clear_message(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        ranking.rank(tmp_path / "nowhere")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 30)).save(tmp_path / name / "one.png")
    with pytest.raises(DataError, match="1 readable pictures of cat"):
        ranking.rank(tmp_path)
