"""What a config may say: defaults, short forms, ranges, keys that belong together.

Tests named c1 to c22 are the usual ways to get a config wrong, as numbered in docs/faults.md, here and in the
files beside.
"""

import re
from pathlib import Path

import pytest
from config_files import DIGITS, load, problems_of

from finetune.config import AugmentConfig, Config, DataConfig, FineTuneConfig, HeadConfig, ModelConfig, SplitConfig


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


@pytest.mark.parametrize("section", ["head:", "augment:", "model:", "fine_tune:", "name:", "fine_tune: []"])
def test_an_empty_section_is_the_default(section: str):
    assert load(DIGITS + section) == load(DIGITS)


def test_augment_numbers_replace_those_of_the_preset():
    light = load(DIGITS + "augment: light").augment
    loaded = load(DIGITS + "augment: {preset: light, rotate: 30, views: live}").augment
    assert light.active
    assert (loaded.flip, loaded.zoom, loaded.rotate, loaded.views) == ("horizontal", light.zoom, 30, "live")
    assert not AugmentConfig().active
    assert not AugmentConfig(views=1).active


def test_a_zoom_leaves_something_to_see():
    assert "augment.zoom" in problems_of(DIGITS + "augment: {zoom: 1}\n")


def test_presets_grow_in_strength():
    def strengths(preset: str) -> list[float]:
        values = AugmentConfig(preset=preset).model_dump(exclude={"preset", "views", "flip"})
        return list(values.values())

    light, standard, strong = map(strengths, ("light", "standard", "strong"))
    assert all(a <= b <= c for a, b, c in zip(light, standard, strong, strict=True))
    assert light < standard < strong


def test_classes_are_two_or_more_and_distinct():
    assert "2 classes or more" in problems_of(DIGITS + "  classes: [cat]")
    assert "given twice: cat" in problems_of(DIGITS + "  classes: [cat, dog, cat]")


def test_c13_too_small_an_image_names_both_numbers():
    message = problems_of(DIGITS + "model:\n  image_size: 7\n")
    assert message.startswith("my.yaml:4: model.image_size: 7 is too small for efficientnet_lite0, which needs ")
    assert message.split()[-3].isdigit()


def test_c15_validation_images_are_never_absent():
    assert "data.split.validation: expected a number, above 0" in problems_of(
        DIGITS + "  split: {train: 0.9, validation: 0, test: 0.1}"
    )


@pytest.mark.parametrize("train", ["0.7", "0.9", "0.80001"])
def test_fractions_add_up_to_1(train: str):
    assert "data.split: train + validation + test is" in problems_of(DIGITS + f"  split: {{train: {train}}}")
    assert load(DIGITS + "  split: {train: 0.9, test: 0}").data.split == SplitConfig(train=0.9, test=0)


def test_c21_a_newer_format_says_how_to_upgrade():
    assert "version: made by a newer finetune" in problems_of(
        f"version: {Config.model_fields['version'].default + 1}\n" + DIGITS
    )


@pytest.mark.parametrize("given", ["", "  folder: a\n  csv: b.csv\n", "  tfds: null\n"])
def test_data_has_exactly_one_source(given: str):
    message = problems_of("data:\n" + (given or "  leaks: warn\n"))
    assert message.startswith("my.yaml:1: data: ")
    assert {"folder", "csv"} <= set(re.findall(r"\w+", message))


def test_a_key_that_would_do_nothing_is_refused():
    assert "data.label_column: is for csv data only" in problems_of(DIGITS + "  label_column: kind\n")
    assert load("data: {csv: t.csv, label_column: kind}").data.label_column == "kind"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "'a '", "''", "a\\b"])
def test_a_name_is_fit_for_a_folder(name: str):
    assert "name: " in problems_of(DIGITS + f"name: {name}\n")


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load(DIGITS).head.epochs = 3  # type: ignore[misc]


def test_every_key_is_described():
    for model in (SplitConfig, DataConfig, ModelConfig, AugmentConfig, HeadConfig, FineTuneConfig, Config):
        assert model.__doc__
        assert [name for name, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("head: {epochs: 10}", "head.epochs=20"),
        ("head: {epochs: 0}", "head.epochs=10"),
        ("head: {epochs: 0}\nfine_tune: {epochs: 12}", "fine_tune.epochs=24"),
        ("fine_tune: [{epochs: 3}, {epochs: 4}]", "fine_tune.1.epochs=8"),
        ("head: {epochs: 5}\nfine_tune: {epochs: 0}", "head.epochs=10"),
    ],
)
def test_the_override_to_train_longer(text: str, override: str):
    config = load(DIGITS + text)
    assert config.longer() == override
    assert load(DIGITS + text, override) != config
