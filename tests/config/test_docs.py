"""The table of all keys says of each what the models say."""

from finetune.config import config_reference


def row(key):
    (line,) = [line for line in config_reference().splitlines() if line.startswith(f"| `{key}` |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_rows_tell_values_default_and_meaning():
    assert row("seed")[1:3] == ["whole number from 0 below 4294967296", "`0`"]
    assert row("deterministic")[1:3] == ["true, false", "`false`"]
    assert row("augment.views")[1] == "whole number or `live`"
    assert row("data.split.test")[1:3] == ["number from 0 below 1", "`0.1`"]
    assert row("model.weights")[1] == "`imagenet`, `none` or path"
    assert row("data.folder")[2] == ""
    assert row("fine_tune.unfreeze")[3].startswith("the last `3 blocks`")


def test_every_row_has_four_cells():
    rows = [line for line in config_reference().splitlines() if line.startswith("|")]
    assert len(rows) > 60
    assert {line.count(" | ") for line in rows[2:]} == {3}
