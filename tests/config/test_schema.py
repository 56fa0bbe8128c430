"""Configs: what is accepted, what is refused, and how clearly.

C1 to C22 are the usual ways to get a config wrong, as numbered in the project's catalogue of faults.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config import schema as config, yaml_document as document
from finetune.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    FineTuneConfig,
    HeadConfig,
    ModelConfig,
    SplitConfig,
)
from finetune.utils.errors import ConfigError

DIGITS = "data:\n  builtin: digits\n"
SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes, *overrides: str) -> Config:
    Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load_config("my.yaml", overrides)


def complaints(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


# What is accepted


def test_everything_has_a_default_but_the_data():
    loaded = load(DIGITS)
    assert loaded == Config(name="my", data=DataConfig(builtin="digits"))
    assert (loaded.model.backbone, loaded.head.epochs, loaded.fine_tune) == ("efficientnet_lite0", 20, ())
    assert loaded.output == Path("runs")


def test_a_whole_config():
    loaded = load(
        DIGITS + "model: {backbone: EfficientNetLite0, image_size: 96, dropout: .5}\n"
        "augment: light\ncache: off\nhead: {epochs: 3, learning_rate: 1e-3}\n"
        "fine_tune: {unfreeze: 2 blocks, monitor: loss}\n"
    )
    assert loaded.model == ModelConfig(backbone="efficientnet_lite0", image_size=96, dropout=0.5)
    assert loaded.head == HeadConfig(epochs=3, learning_rate=0.001)
    assert loaded.fine_tune == (FineTuneConfig(unfreeze=2, monitor="loss"),)
    assert loaded.cache == "off"  # YAML reads `off` as False


def test_a_mapping_does_as_well_as_a_file():
    given = {
        "data": {"builtin": "digits"},
        "head": {"learning_rate": "1e-2"},
        "fine_tune": [{}, {"epochs": 1}],
    }
    loaded = config.load_config(given, ["head.epochs=2"])
    assert (loaded.head.epochs, loaded.head.learning_rate, len(loaded.fine_tune)) == (2, 0.01, 2)
    assert given["head"] == {"learning_rate": "1e-2"}  # the caller's own mapping is left alone


@pytest.mark.parametrize("text", ["1e-3", "'1e-3'", "1E-3", "0.001", ".001", "+1e-3", "1.0e-3"])
def test_c6_every_way_to_write_a_number(text: str):
    assert load(DIGITS + f"head: {{learning_rate: {text}}}").head.learning_rate == 0.001


@pytest.mark.parametrize("section", ["head:", "augment:", "model:", "fine_tune:", "name:", "fine_tune: []"])
def test_an_empty_section_is_the_default(section: str):
    assert load(DIGITS + section) == load(DIGITS)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("3 blocks", 3),
        ("1 block", 1),
        ("2", 2),
        ("'2'", 2),
        ("0.25", 0.25),
        ("1.0", 1.0),
        ("all", "all"),
        ("conv_5a", "conv_5a"),
    ],
)
def test_unfreeze_is_blocks_a_share_or_a_name(written: str, meant: Any):
    found = load(DIGITS + f"fine_tune: {{unfreeze: {written}}}").fine_tune[0].unfreeze
    assert (found, type(found)) == (meant, type(meant))


def test_augment_numbers_replace_those_of_the_preset():
    light = load(DIGITS + "augment: light").augment
    loaded = load(DIGITS + "augment: {preset: light, rotate: 30, views: live}").augment
    assert light.active
    assert (loaded.flip, loaded.zoom, loaded.rotate, loaded.views) == ("horizontal", light.zoom, 30, "live")
    assert not AugmentConfig().active
    assert not AugmentConfig(views=1).active


def test_presets_grow_in_strength():
    def strengths(preset: str) -> list[float]:
        values = AugmentConfig(preset=preset).model_dump(exclude={"preset", "views", "flip"})
        return list(values.values())

    light, standard, strong = map(strengths, ("light", "standard", "strong"))
    assert all(a <= b <= c for a, b, c in zip(light, standard, strong, strict=True))
    assert light < standard < strong


# What is refused


def test_c1_missing_file_names_the_nearest():
    Path("flowerz.yaml").write_text(DIGITS)
    with pytest.raises(ConfigError, match=r"flowerx.yaml: there is no such file. Did you mean 'flowerz.yaml'"):
        config.load_config("flowerx.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        config.load_config("nowhere/x.yaml")
    with pytest.raises(ConfigError, match=r"(?i)is a directory|permission"):
        config.load_config(Path.cwd())


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("data:\n\tfolder: x\n", ":2:1: a tab", "    →folder: x\n    ^"),
        ("data: 'x\nhead: 2\n", ":1:7: ", "    data: 'x\n          ^"),
        ("data: a: b\n", ":1:8: ", "    data: a: b\n           ^"),
    ],
)
def test_c2_syntax_error_shows_the_line_and_a_caret(text: str, place: str, shown: str):
    message = complaints(text)
    assert message.startswith(f"my.yaml{place}")
    assert message.endswith(shown)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "digits"])
def test_c3_not_a_mapping_points_to_init(text: str):
    message = complaints(text)
    assert "expected a mapping" in message
    assert "finetune init" in message


def test_c4_unknown_keys_have_near_matches_and_lines():
    text = DIGITS + "head:\n  leaning_rate: 1\nepochs: 5\nmodel:\n  qqq: 1\n"
    assert complaints(text).split("\n") == [
        "my.yaml:4: head.leaning_rate: unknown key. Did you mean 'learning_rate'?",
        "my.yaml:5: epochs: unknown key here. Did you mean 'head.epochs' or 'fine_tune.epochs'?",
        "my.yaml:7: model.qqq: unknown key. Known here: "
        "backbone, weights, image_size, resize, pooling, hidden, cosine, dropout, batch_norm.",
    ]


def test_c5_duplicate_keys_name_both_lines():
    text = DIGITS + "head:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n"
    assert complaints(text) == "my.yaml:6: head.epochs: given twice, first on line 4"


@pytest.mark.parametrize(("text", "read_as"), [("010", "8"), ("12:30", "750"), ("-007", "-7"), ("1:30.5", "90.5")])
def test_c7_ambiguous_numbers_show_what_yaml_made_of_them(text: str, read_as: str):
    message = complaints(DIGITS + f"head:\n  epochs: {text}\n")
    assert message.startswith(f"my.yaml:4: head.epochs: ambiguous: YAML reads {text} as {read_as}.")
    assert "ambiguous" in complaints(DIGITS, f"head.epochs={text}")


@pytest.mark.parametrize("text", ["'010'", "'12:30'", "08"])
def test_c7_text_with_a_leading_zero_is_no_number(text: str):
    assert "head.epochs: expected a whole number" in complaints(DIGITS + f"head: {{epochs: {text}}}")


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "NO", "1.10", "2024-01-01", "3", "null"])
def test_c8_class_names_that_yaml_changes_must_be_quoted(word: str):
    message = complaints(DIGITS + f"  classes:\n    - cat\n    - {word}\n")
    assert message.startswith(f"my.yaml:5: data.classes.1: YAML reads {word} as ")
    assert message.endswith(f"quote it: '{word}'")
    assert load(DIGITS + f"  classes: [cat, '{word}']\n").data.classes == ("cat", word)


def test_classes_are_two_or_more_and_distinct():
    assert "2 classes or more" in complaints(DIGITS + "  classes: [cat]")
    assert "given twice: cat" in complaints(DIGITS + "  classes: [cat, dog, cat]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, f"above 0, or auto, not {value}.") for value in ("-1", "0", "true")),
        *((value, f"above 0, or auto, not {value}.") for value in (".nan", ".inf", "-.inf")),
        *(
            ("fast", "above 0, or auto, not 'fast'."),
            ("1e999", "above 0, or auto, not '1e999'."),
            ("[1]", "above 0, or auto, not a list."),
        ),
    ],
)
def test_c9_learning_rate_is_above_0_and_finite(value: str, expected: str):
    message = complaints(DIGITS + f"head:\n  learning_rate: {value}\n")
    assert message == f"my.yaml:4: head.learning_rate: expected a number, {expected}"


@pytest.mark.parametrize("value", ["0", "2.5", "true", "10**12", "1000000000000", "70000", ""])
def test_c10_batch_size_is_a_whole_number_in_range(value: str):
    message = complaints(DIGITS + f"head:\n  batch_size: {value}\n")
    assert "my.yaml:4: head.batch_size: expected a whole number, at least 1 and at most 65536, not " in message


def test_c11_all_problems_at_once_in_the_order_of_the_file():
    text = DIGITS + "head: {epochs: -1}\nmodel:\n  dropout: 1\n  pooling: mean\nseed: 010\n"
    lines = complaints(text, "head.epoch=5", "fine_tune.views=2").split("\n")
    assert [line.split(": ")[0] for line in lines] == [
        *("my.yaml:3", "my.yaml:5", "my.yaml:6", "my.yaml:7"),
        *("override 'head.epoch=5'", "override 'fine_tune.views=2'"),
    ]


def test_a_flood_of_problems_is_cut_short():
    lines = complaints(DIGITS + "".join(f"k{n}: 1\n" for n in range(50))).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more problems"


@pytest.mark.parametrize("text", ["model: resnet50x", "model: {backbone: resnet50x}"])
def test_c12_unknown_backbone_has_near_names(text: str):
    message = complaints(DIGITS + text)
    assert message.startswith("my.yaml:3: model.backbone: ")
    assert "resnet50" in message.replace("resnet50x", "")


def test_c13_too_small_an_image_names_both_numbers():
    message = complaints(DIGITS + "model:\n  image_size: 7\n")
    assert message.startswith("my.yaml:4: model.image_size: 7 is too small for efficientnet_lite0, which needs ")
    assert message.split()[-3].isdigit()


def test_c14_wrong_metric_lists_the_right_ones():
    message = complaints(DIGITS + "head: {monitor: val_acuracy}")
    assert "expected one of accuracy, loss, not 'val_acuracy'. Did you mean 'accuracy'?" in message


def test_c15_validation_images_are_never_absent():
    assert "data.split.validation: expected a number, above 0" in complaints(
        DIGITS + "  split: {train: 0.9, validation: 0, test: 0.1}"
    )


@pytest.mark.parametrize("share", ["0.7", "0.9", "0.80001"])
def test_shares_add_up_to_1(share: str):
    assert "data.split: train + validation + test is" in complaints(DIGITS + f"  split: {{train: {share}}}")
    assert load(DIGITS + "  split: {train: 0.9, test: 0}").data.split == SplitConfig(train=0.9, test=0)


def test_c17_bombs_are_refused_fast():
    aliases = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for text, message in [
        (aliases, "anchors and aliases"),
        ("a: " + "[" * 20_000, "deeper than 20"),
        ("{a: " * 20_000, "deeper than 20"),
        ("a" * 50_000_000, "too big"),
    ]:
        Path("bomb.yaml").write_text(text)
        started = time.process_time()
        with pytest.raises(ConfigError, match=message):
            config.load_config("bomb.yaml")
        assert time.process_time() - started < 0.1


def test_yaml_without_its_c_library_is_read_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document, "_Loader", yaml.SafeLoader)
    assert load(DIGITS + "head: {epochs: 3}\n").head.epochs == 3
    for text in ("a: &a [x]\nb: *a\n", "a: " + "[" * 20_000, "a: !!python/name:os.system\n", "a: 'x\nb: 2\n"):
        assert complaints(text).startswith("my.yaml:1:")


def test_one_document_per_file():
    assert "expected a single document" in complaints(DIGITS + "---\n" + DIGITS)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_an_endless_file_is_too_big():
    with pytest.raises(ConfigError, match="too big"):
        config.load_config("/dev/zero")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [echo]", "!!python/name:os.system", "!x 3"])
def test_c18_tags_are_refused(text: str):
    assert "my.yaml:1:7: tags (!...)" in complaints(f"name: {text}\n")


def test_c19_and_c20_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("IMAGES", "ä b")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "c.yaml"

    def folder(text: str, *overrides: str) -> Path | None:
        file.write_text(f"data:\n  folder: {text}\n", encoding="utf-8")
        return config.load_config("sub/c.yaml", overrides).data.folder

    assert folder("photos/") == tmp_path / "sub" / "photos"
    assert folder("../x y/ü") == tmp_path / "x y" / "ü"
    assert folder("'${IMAGES}/1'") == tmp_path / "sub" / "ä b" / "1"
    assert folder("~/p") == tmp_path / "home" / "p"
    assert folder("|\n    photos\n") == tmp_path / "sub" / "photos"  # with a newline at its end
    assert folder("photos", "data.folder=mine") == tmp_path / "mine"  # typed in the shell: from where one is
    with pytest.raises(ConfigError, match=r"c.yaml:2: data.folder: the environment variable NO_IMAGES is not set"):
        folder("${NO_IMAGES}/x")


def test_weights_are_a_word_or_a_path(tmp_path: Path):
    assert load(DIGITS + "model: {weights: none}").model.weights == "none"
    assert load(DIGITS + "model: {weights: w.h5}").model.weights == tmp_path / "w.h5"
    assert "model.weights: expected imagenet, none or the path" in complaints(DIGITS + "model: {weights: 3}")


def test_c21_a_newer_format_says_how_to_upgrade():
    assert "version: made by a newer finetune" in complaints(f"version: {config.VERSION + 1}\n" + DIGITS)


def test_c22_byte_order_mark_line_ends_and_utf16():
    plain = load(DIGITS + "head:\n  epochs: 3\n")
    assert load(b"\xef\xbb\xbf" + DIGITS.encode() + b"head:\r\n  epochs: 3\r\n") == plain
    assert "UTF-16" in complaints(DIGITS.encode("utf-16"))
    assert "UTF-16" in complaints(DIGITS.encode("utf-16-le"))
    assert complaints(b"a: 1\nb: \xe9\n").startswith("my.yaml:2: not UTF-8")


@pytest.mark.parametrize("given", ["", "  folder: a\n  csv: b.csv\n", "  tfds: null\n"])
def test_data_has_exactly_one_source(given: str):
    message = complaints("data:\n" + (given or "  leaks: warn\n"))
    assert message.startswith("my.yaml:1: data: ")
    assert {"folder", "csv"} <= set(re.findall(r"\w+", message))


def test_a_key_that_would_do_nothing_is_refused():
    assert "data.label_column: is for csv data only" in complaints(DIGITS + "  label_column: kind\n")
    assert load("data: {csv: t.csv, label_column: kind}").data.label_column == "kind"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "'a '", "''", "a\\b"])
def test_a_name_is_fit_for_a_folder(name: str):
    assert "name: " in complaints(DIGITS + f"name: {name}\n")


def test_keys_that_are_no_words_are_refused():
    assert complaints(DIGITS + "? [a]\n: 1\n") == "my.yaml:3: a key must be one word"
    assert "on: unknown key" in complaints(DIGITS + "on: 1\n")  # not `True: unknown key`


def test_escapes_never_reach_the_terminal():
    assert "\x1b" not in complaints(DIGITS + '"\\e[31m": 1\nhead: {monitor: "\\e[31m"}\nname: "\\e"\n')


@pytest.mark.parametrize("section", ["head: 5", "model: [a]", "augment: 3", "fine_tune: 7", "data: photos/"])
def test_a_section_must_be_a_section(section: str):
    text = section if section.startswith("data") else DIGITS + section
    assert f"{section.split(':')[0]}: expected a mapping" in complaints(text)


# Overrides


def test_c16_overrides_win_and_the_last_one_most():
    loaded = load(DIGITS + "head: {epochs: 1, batch_size: 8}", "head.epochs=2", "head.epochs=3", "name=other")
    assert (loaded.head.epochs, loaded.head.batch_size, loaded.name) == (3, 8, "other")


@pytest.mark.parametrize(
    ("text", "override", "epochs"),
    [
        ("", "fine_tune.epochs=3", [3]),
        ("fine_tune: {epochs: 5}", "fine_tune.epochs=3", [3]),
        ("fine_tune: {epochs: 5}", "fine_tune.0.epochs=3", [3]),
        ("fine_tune: [{epochs: 5}, {epochs: 6}]", "fine_tune.1.epochs=3", [5, 3]),
        ("fine_tune: {epochs: 5}", "fine_tune=null", []),
        ("fine_tune: {epochs: 5}", "fine_tune=[{epochs: 1}, {epochs: 2}]", [1, 2]),
    ],
)
def test_overrides_reach_into_fine_tune(text: str, override: str, epochs: list[int]):
    assert [phase.epochs for phase in load(DIGITS + text, override).fine_tune] == epochs


def test_overrides_enter_a_section_written_as_one_word():
    loaded = load(DIGITS + "model: efficientnet_lite0\naugment: light", "model.dropout=0", "augment.flip=both")
    assert (loaded.model.dropout, loaded.augment.preset, loaded.augment.flip) == (0, "light", "both")


def test_an_override_mends_a_mistake_of_the_file():
    assert load(DIGITS + "head: {epochs: 010}", "head.epochs=10").head.epochs == 10
    assert load("data: {tfds: tf_flowers}", "data.tfds=null", "data.builtin=digits").data.builtin == "digits"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.epoch=5", "override 'head.epoch=5': head.epoch: unknown key. Did you mean 'epochs'?"),
        ("head.epochs", "override 'head.epochs': expected key=value, such as head.epochs=5"),
        ("=5", "override '=5': expected key=value, such as head.epochs=5"),
        (
            "head.epochs=[",
            "override 'head.epochs=[': while parsing a flow node, did not find expected node content",
        ),
        (
            "fine_tune.7.epochs=1",
            "override 'fine_tune.7.epochs=1': fine_tune is a list of 2; fine_tune.0 is its first entry",
        ),
        (
            "fine_tune.epochs=1",
            "override 'fine_tune.epochs=1': fine_tune is a list of 2; fine_tune.0 is its first entry",
        ),
        (
            "head.epochs=!!int 3",
            "override 'head.epochs=!!int 3': tags (!...) are not read here; quote text that starts with !",
        ),
        ("data.tfds=\udce4", "override 'data.tfds=\\udce4': has characters that YAML does not allow"),
        ("seed.x.y=1", "override 'seed.x.y=1': seed is a single value, it has no 'x'"),
    ],
)
def test_mistakes_in_overrides_are_cited(override: str, message: str):
    assert complaints(DIGITS + "seed: 1\nfine_tune: [{}, {}]", override) == message


# Shipped configs, dump, schema


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_name_from_anywhere_and_has_its_lab_note(path: Path):
    assert config.load_config(path.stem) == config.load_config(path) == config.load_config(f"configs/{path.name}")
    note = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("#   finetune train") for line in note)
    assert any(line.startswith("# Measured: ") for line in note)


def test_shipped_configs_are_there():
    assert (
        {"digits", "flowers", "folder", "csv", "gradual"}
        <= set(config.shipped_configs())
        == {path.stem for path in SHIPPED}
    )


def test_a_file_of_ones_own_comes_before_a_shipped_one():
    Path("digits").write_text(DIGITS + "seed: 7\n")
    assert config.load_config("digits").seed == 7


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_dump_loads_to_an_equal_config_from_another_folder(path: Path):
    loaded = config.load_config(path, ["augment=strong", "data.classes=['yes', '1e5', '010', 2024-01-0x]", "name=é x"])
    Path("elsewhere").mkdir()
    copy = Path("elsewhere/copy.yaml")
    copy.write_text(config.dump_config(loaded), encoding="utf-8")
    assert config.load_config(copy) == loaded


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load(DIGITS).head.epochs = 3  # type: ignore[misc]


def test_every_key_is_described():
    for model in (SplitConfig, DataConfig, ModelConfig, AugmentConfig, HeadConfig, FineTuneConfig, Config):
        assert model.__doc__
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_schema_knows_the_short_forms():
    schema = json.loads(json.dumps(config.json_schema()))
    assert set(schema["properties"]) == set(Config.model_fields)
    assert {"type": "string"} in schema["properties"]["augment"]["anyOf"]
    assert {"$ref": "#/$defs/FineTune"} in schema["properties"]["fine_tune"]["anyOf"]
    assert schema["$defs"]["Head"]["properties"]["batch_size"]["maximum"] == 65536


def test_dump_is_plain_yaml():
    assert yaml.safe_load(config.dump_config(load(DIGITS)))["data"]["builtin"] == "digits"


def test_config_is_light():
    """`--help` and config errors come at once: no numpy, no TensorFlow, and little time."""
    code = "import sys, finetune.config; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "keras", "numpy", "PIL", "sklearn", "matplotlib", "rich"}
    assert not heavy & set(yaml.safe_load(done.stdout))
