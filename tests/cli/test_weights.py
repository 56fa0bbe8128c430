"""`finetune weights`: which weight files are here, where they belong, and whether they are whole."""

import pytest

from finetune.backbones import find_backbone

LITE0 = "efficientnet-lite0-57934424.pth"  # comes in a Python package, so it is always here


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def test_what_is_here_is_listed(typed):
    code, out, _ = typed("weights")
    assert code == 0
    assert any(line.startswith("efficientnet_lite0 ") and line.endswith(LITE0) for line in out.splitlines())


def test_paths_are_where_weights_would_be_looked_for(typed, private_cache):
    _, out, _ = typed("weights", "path", "resnet50")
    row = find_backbone("resnet50")
    assert out.splitlines() == [str(private_cache / "weights" / file.name) for file in (row.top, row.no_top)]


def test_verify_reads_what_is_here(typed):
    _, out, _ = typed("weights", "verify")
    lines = out.splitlines()
    assert any(line.startswith("ok ") and line.endswith(LITE0) for line in lines)
    assert not any(line.startswith("BAD") for line in lines)


def test_fetch_of_what_is_here_says_where(typed):
    _, out, _ = typed("weights", "fetch", "efficientnet_lite0")
    assert out.strip().endswith(LITE0)


@pytest.mark.parametrize("action", ["fetch", "path"])
def test_a_name_is_needed_and_an_unknown_one_has_near_ones(typed, action):
    code, _, err = typed("weights", action)
    assert code == 2
    assert "which network" in err
    code, _, err = typed("weights", action, "resnet51")
    assert code == 2
    assert "resnet50" in err
