"""Every problem in plain words, with the line, the legal values and near names."""

import pytest
from config_files import DIGITS, load, problems_of


def test_c4_unknown_keys_have_near_matches_and_lines():
    text = DIGITS + "head:\n  leaning_rate: 1\nepochs: 5\nmodel:\n  qqq: 1\n"
    assert problems_of(text).split("\n") == [
        "my.yaml:4: head.leaning_rate: unknown key. Did you mean 'learning_rate'?",
        "my.yaml:5: epochs: unknown key here. Did you mean 'head.epochs' or 'fine_tune.epochs'?",
        "my.yaml:7: model.qqq: unknown key. Known here: "
        "backbone, weights, image_size, resize, pooling, hidden, cosine, dropout, batch_norm.",
    ]


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "NO", "1.10", "2024-01-01", "3", "null"])
def test_c8_class_names_that_yaml_changes_must_be_quoted(word: str):
    message = problems_of(DIGITS + f"  classes:\n    - cat\n    - {word}\n")
    assert message.startswith(f"my.yaml:5: data.classes.1: YAML reads {word} as ")
    assert message.endswith(f"quote it: '{word}'")
    assert load(DIGITS + f"  classes: [cat, '{word}']\n").data.classes == ("cat", word)


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
    message = problems_of(DIGITS + f"head:\n  learning_rate: {value}\n")
    assert message == f"my.yaml:4: head.learning_rate: expected a number, {expected}"


@pytest.mark.parametrize("value", ["0", "2.5", "true", "10**12", "1000000000000", "70000", ""])
def test_c10_batch_size_is_a_whole_number_in_range(value: str):
    message = problems_of(DIGITS + f"head:\n  batch_size: {value}\n")
    assert "my.yaml:4: head.batch_size: expected a whole number, at least 1 and at most 65536, not " in message


@pytest.mark.parametrize("text", ["model: resnet50x", "model: {backbone: resnet50x}"])
def test_c12_unknown_backbone_has_near_names(text: str):
    message = problems_of(DIGITS + text)
    assert message.startswith("my.yaml:3: model.backbone: ")
    assert "resnet50" in message.replace("resnet50x", "")


def test_c14_wrong_metric_lists_the_right_ones():
    message = problems_of(DIGITS + "head: {monitor: val_acuracy}")
    assert "expected one of accuracy, loss, not 'val_acuracy'. Did you mean 'accuracy'?" in message


@pytest.mark.parametrize("section", ["head: 5", "model: [a]", "augment: 3", "fine_tune: 7", "data: photos/"])
def test_a_section_must_be_a_section(section: str):
    text = section if section.startswith("data") else DIGITS + section
    assert f"{section.split(':')[0]}: expected a mapping" in problems_of(text)
