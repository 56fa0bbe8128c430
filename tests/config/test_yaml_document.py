"""YAML and overrides: what is read, what is refused, and with which line."""

from pathlib import Path

import pytest
from config_files import DIGITS, load, problems_of

from finetune.config import load_config
from finetune.utils import ConfigError


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("data:\n\tfolder: x\n", ":2:1: a tab", "    →folder: x\n    ^"),
        ("data: 'x\nhead: 2\n", ":1:7: ", "    data: 'x\n          ^"),
        ("data: a: b\n", ":1:8: ", "    data: a: b\n           ^"),
    ],
)
def test_c2_syntax_error_shows_the_line_and_a_caret(text: str, place: str, shown: str):
    message = problems_of(text)
    assert message.startswith(f"my.yaml{place}")
    assert message.endswith(shown)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "digits"])
def test_c3_not_a_mapping_points_to_init(text: str):
    message = problems_of(text)
    assert "expected a mapping" in message
    assert "finetune init" in message


def test_c5_duplicate_keys_name_both_lines():
    text = DIGITS + "head:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n"
    assert problems_of(text) == "my.yaml:6: head.epochs: given twice, first on line 4"


@pytest.mark.parametrize(("text", "read_as"), [("010", "8"), ("12:30", "750"), ("-007", "-7"), ("1:30.5", "90.5")])
def test_c7_ambiguous_numbers_show_what_yaml_made_of_them(text: str, read_as: str):
    message = problems_of(DIGITS + f"head:\n  epochs: {text}\n")
    assert message.startswith(f"my.yaml:4: head.epochs: ambiguous: YAML reads {text} as {read_as}.")
    assert "ambiguous" in problems_of(DIGITS, f"head.epochs={text}")


@pytest.mark.parametrize("text", ["'010'", "'12:30'", "08"])
def test_c7_text_with_a_leading_zero_is_no_number(text: str):
    assert "head.epochs: expected a whole number" in problems_of(DIGITS + f"head: {{epochs: {text}}}")


def test_one_document_per_file():
    assert "expected a single document" in problems_of(DIGITS + "---\n" + DIGITS)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [echo]", "!!python/name:os.system", "!x 3"])
def test_c18_tags_are_refused(text: str):
    assert "my.yaml:1: name: tags (!...)" in problems_of(f"name: {text}\n")


def test_c19_and_c20_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("IMAGES", "ä b")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "c.yaml"

    def folder(text: str, *overrides: str) -> Path | None:
        file.write_text(f"data:\n  folder: {text}\n", encoding="utf-8")
        return load_config("sub/c.yaml", overrides).data.folder

    assert folder("photos/") == tmp_path / "sub" / "photos"
    assert folder("../x y/ü") == tmp_path / "x y" / "ü"
    assert folder("'${IMAGES}/1'") == tmp_path / "sub" / "ä b" / "1"
    assert folder("~/p") == tmp_path / "home" / "p"
    assert folder("|\n    photos\n") == tmp_path / "sub" / "photos"  # with a newline at its end
    assert folder("photos", "data.folder=mine") == tmp_path / "mine"  # typed in the shell: from where one is
    with pytest.raises(ConfigError, match=r"c.yaml:2: data.folder: the environment variable NO_IMAGES is not set"):
        folder("${NO_IMAGES}/x")


def test_c22_byte_order_mark_line_ends_and_other_encodings():
    plain = load(DIGITS + "head:\n  epochs: 3\n")
    assert load(b"\xef\xbb\xbf" + DIGITS.encode() + b"head:\r\n  epochs: 3\r\n") == plain
    assert problems_of(DIGITS.encode("utf-16")) == "my.yaml:1: not UTF-8 text; save it as UTF-8"
    assert problems_of(b"a: 1\nb: \xe9\n").startswith("my.yaml:2: not UTF-8")


def test_keys_that_are_no_words_are_refused():
    assert problems_of(DIGITS + "? [a]\n: 1\n") == "my.yaml:3: a key must be one word"
    assert "on: unknown key" in problems_of(DIGITS + "on: 1\n")  # not `True: unknown key`


def test_escapes_never_reach_the_terminal():
    assert "\x1b" not in problems_of(DIGITS + '"\\e[31m": 1\nhead: {monitor: "\\e[31m"}\nname: "\\e"\n')


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


def test_an_override_corrects_a_mistake_of_the_file():
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
            "override 'head.epochs=[': while parsing a flow node, expected the node content, but found '<stream end>'",
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
            "head.epochs=!x 3",
            "override 'head.epochs=!x 3': head.epochs: tags (!...) are not read here; quote text that starts with !",
        ),
        ("data.tfds=\udce4", "override 'data.tfds=\\udce4': has characters that YAML does not allow"),
        ("seed.x.y=1", "override 'seed.x.y=1': seed is a single value, it has no 'x'"),
    ],
)
def test_mistakes_in_overrides_are_cited(override: str, message: str):
    assert problems_of(DIGITS + "seed: 1\nfine_tune: [{}, {}]", override) == message


def test_anchors_are_read():
    loaded = load(DIGITS + "fine_tune:\n  - &first {epochs: 2}\n  - *first\n")
    assert [phase.epochs for phase in loaded.fine_tune] == [2, 2]


def test_what_only_looks_like_a_date_is_text():
    assert load(DIGITS + "  classes: [2024-13-45, cat]").data.classes == ("2024-13-45", "cat")
