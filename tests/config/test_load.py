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
    with pytest.raises(ConfigError, match=r"(?i)is a directory|permission"):
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
