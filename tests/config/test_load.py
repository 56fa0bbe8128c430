"""Configs from files, shipped names and mappings, and back to YAML."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config_files import DIGITS, load, problems_of

from finetune.config import Config, dump_config, json_schema, load_config, shipped_configs
from finetune.utils import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_c1_missing_file_names_the_nearest():
    Path("flowerz.yaml").write_text(DIGITS)
    with pytest.raises(ConfigError, match=r"flowerx.yaml: there is no such file. Did you mean 'flowerz.yaml'"):
        load_config("flowerx.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_config("nowhere/x.yaml")
    with pytest.raises(ConfigError, match="is a folder, not a config"):
        load_config(Path.cwd())


def test_a_mapping_does_as_well_as_a_file():
    given = {
        "data": {"builtin": "digits"},
        "head": {"learning_rate": "1e-2"},
        "fine_tune": [{}, {"epochs": 1}],
    }
    loaded = load_config(given, ["head.epochs=2"])
    assert (loaded.head.epochs, loaded.head.learning_rate, len(loaded.fine_tune)) == (2, 0.01, 2)
    assert given["head"] == {"learning_rate": "1e-2"}  # the caller's own mapping is left alone


def test_overrides_may_be_mappings():
    words = load_config("digits", ["head.epochs=3", "fine_tune=none", "output=elsewhere", "data.classes=[a, b]"])
    nested = {"head": {"epochs": 3}, "fine_tune": "none", "output": Path("elsewhere"), "data": {"classes": ("a", "b")}}
    dotted = {"head.epochs": 3, "fine_tune": None, "output": "elsewhere", "data.classes": ["a", "b"]}
    assert load_config("digits", [nested]) == load_config("digits", [dotted]) == words
    with pytest.raises(ConfigError, match=r"override 'head.epochs=-1': head.epochs"):
        load_config("digits", [{"head": {"epochs": -1}}])
    with pytest.raises(ConfigError, match=r"override head.epochs: object is no value of a config"):
        load_config("digits", [{"head": {"epochs": object()}}])


def test_c11_all_problems_at_once_in_the_order_of_the_file():
    text = DIGITS + "head: {epochs: -1}\nmodel:\n  dropout: 1\n  pooling: mean\nseed: 010\n"
    lines = problems_of(text, "head.epoch=5", "fine_tune.views=2").split("\n")
    assert [line.split(": ")[0] for line in lines] == [
        *("my.yaml:3", "my.yaml:5", "my.yaml:6", "my.yaml:7"),
        *("override 'head.epoch=5'", "override 'fine_tune.views=2'"),
    ]


def test_a_flood_of_problems_is_cut_short():
    lines = problems_of(DIGITS + "".join(f"k{n}: 1\n" for n in range(50))).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more problems"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_name_from_anywhere_and_has_its_lab_note(path: Path):
    assert load_config(path.stem) == load_config(path) == load_config(f"configs/{path.name}")
    note = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("#   finetune train") for line in note)
    assert any(line.startswith("# Measured: ") for line in note)


def test_shipped_configs_are_there():
    assert (
        {"digits", "flowers", "folder", "csv", "gradual"} <= set(shipped_configs()) == {path.stem for path in SHIPPED}
    )


def test_a_file_of_ones_own_comes_before_a_shipped_one():
    Path("digits").write_text(DIGITS + "seed: 7\n")
    assert load_config("digits").seed == 7


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_dump_loads_to_an_equal_config_from_another_folder(path: Path):
    loaded = load_config(path, ["augment=strong", "data.classes=['yes', '1e5', '010', 2024-01-0x]", "name=é x"])
    Path("elsewhere").mkdir()
    copy = Path("elsewhere/copy.yaml")
    copy.write_text(dump_config(loaded), encoding="utf-8")
    assert load_config(copy) == loaded


def test_dump_is_plain_yaml():
    assert yaml.safe_load(dump_config(load(DIGITS)))["data"]["builtin"] == "digits"


def test_the_schema_knows_the_short_forms():
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == set(Config.model_fields)
    assert {"type": "string"} in schema["properties"]["augment"]["anyOf"]
    assert {"$ref": "#/$defs/FineTuneConfig"} in schema["properties"]["fine_tune"]["anyOf"]
    assert schema["$defs"]["HeadConfig"]["properties"]["batch_size"]["maximum"] == 65536


def test_config_is_light():
    """`--help` and config errors come at once: no numpy, no TensorFlow, and little time."""
    code = "import sys, finetune.config; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "keras", "numpy", "PIL", "sklearn", "matplotlib", "rich"}
    assert not heavy & set(yaml.safe_load(done.stdout))


# ---------------------------------------------------------------------------------------------- extends


def write(name, text):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def test_a_config_extends_another_key_by_key():
    write("team/base.yaml", "data: {folder: photos}\nmodel: resnet50\nhead: {epochs: 3, batch_size: 8}\nseed: 7\n")
    write("mine.yaml", "extends: team/base.yaml\nhead: {epochs: 5}\nmodel: {dropout: 0.5}\n")
    loaded = load_config("mine.yaml", ["head.learning_rate=1e-2", "seed=8"])
    assert (loaded.head.epochs, loaded.head.batch_size, loaded.head.learning_rate) == (5, 8, 0.01)
    assert (loaded.model.backbone, loaded.model.dropout, loaded.seed) == ("resnet50", 0.5, 8)
    assert loaded.data.folder == Path.cwd() / "team" / "photos"  # relative to the file in which it is written
    assert loaded.name == "mine"


def test_what_is_no_mapping_replaces_that_of_the_base_whole():
    write("base.yaml", DIGITS + "fine_tune: [{epochs: 1}, {epochs: 2}]\naugment: {preset: light, rotate: 90}\n")
    write("mine.yaml", "extends: base.yaml\nfine_tune: {unfreeze: 2}\naugment: strong\n")
    loaded = load_config("mine.yaml")
    assert [(phase.unfreeze, phase.epochs) for phase in loaded.fine_tune] == [(2, 10)]
    assert loaded.augment == Config(data=loaded.data, augment="strong").augment
    write("mine.yaml", "extends: base.yaml\nfine_tune: none\n")
    assert load_config("mine.yaml").fine_tune == ()


def test_what_a_run_keeps_of_extended_configs_is_whole(monkeypatch):
    monkeypatch.setenv("TEAM", "team")
    write("team/a.yaml", "extends: b.yaml\nhead: {epochs: 3}\n")
    write("team/b.yaml", DIGITS + "head: {epochs: 4, warmup: 0.5}\n")
    loaded = load_config({"extends": "${TEAM}/a.yaml"})
    text = dump_config(loaded)
    assert "extends" not in text
    write("elsewhere/kept.yaml", text)
    assert load_config("elsewhere/kept.yaml") == loaded
    assert (loaded.head.epochs, loaded.head.warmup) == (3, 0.5)


def test_problems_name_the_file_and_the_line_in_which_they_are():
    write("team/base.yaml", "data: {builtin: digits}\nhead:\n  epochs: -1\n  epoch: 3\nseed: 1\nseed: 2\n")
    write("mine.yaml", "extends: team/base.yaml\n\n\n\nhead: {warmup: 7}\n")
    with pytest.raises(ConfigError) as caught:
        load_config("mine.yaml", ["name=/"])
    places = [line.split(": ")[0] for line in str(caught.value).split("\n")]
    base = [f"team/base.yaml:{line}" for line in (3, 4, 6)]
    assert places == ["mine.yaml:5", *base, "override 'name=/'"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("bse.yaml", "my.yaml:1: extends: bse.yaml is no config file. Did you mean 'base.yaml'"),
        ("my.yaml", "my.yaml:1: extends: goes in a circle: my.yaml -> my.yaml"),
        ("loop.yaml", "loop.yaml:2: extends: goes in a circle: my.yaml -> loop.yaml -> my.yaml"),
        ("[base.yaml]", "my.yaml:1: extends: ['base.yaml'] is no config file."),
        ("${NO_TEAM}/base.yaml", "my.yaml:1: extends: the environment variable NO_TEAM is not set"),
        ("broken.yaml", "broken.yaml:1:5: while parsing"),
    ],
)
def test_a_base_that_cannot_be_used(written, message):
    write("base.yaml", DIGITS)
    write("loop.yaml", "\nextends: ./my.yaml\n")
    write("broken.yaml", "a: [")
    assert problems_of(f"extends: {written}\n").startswith(message)


def test_extends_stands_in_files_only():
    write("base.yaml", DIGITS)
    assert (
        problems_of(DIGITS, "extends=base.yaml")
        == "override 'extends=base.yaml': extends: can stand in a config file only"
    )
