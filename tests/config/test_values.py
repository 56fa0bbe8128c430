"""Values that can be written in more than one way."""

from pathlib import Path
from typing import Any

import pytest
from config_files import DIGITS, load, problems_of


@pytest.mark.parametrize("text", ["1e-3", "'1e-3'", "1E-3", "0.001", ".001", "+1e-3", "1.0e-3"])
def test_c6_every_way_to_write_a_number(text: str):
    assert load(DIGITS + f"head: {{learning_rate: {text}}}").head.learning_rate == 0.001


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
def test_unfreeze_is_blocks_a_fraction_or_a_name(written: str, meant: Any):
    found = load(DIGITS + f"fine_tune: {{unfreeze: {written}}}").fine_tune[0].unfreeze
    assert (found, type(found)) == (meant, type(meant))


def test_weights_are_a_word_or_a_path(tmp_path: Path):
    assert load(DIGITS + "model: {weights: none}").model.weights == "none"
    assert load(DIGITS + "model: {weights: w.h5}").model.weights == tmp_path / "w.h5"
    assert "model.weights: expected imagenet, none or the path" in problems_of(DIGITS + "model: {weights: 3}")


@pytest.mark.parametrize("written", ["0 blocks", "0", "-1", "1.5", "true", "a b", "[1]"])
def test_unfreeze_refuses_what_cannot_be_meant(written: str):
    assert "fine_tune.0.unfreeze: expected 3 blocks (at least 1)" in problems_of(
        DIGITS + f"fine_tune: [{{unfreeze: {written}}}]"
    )


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90), ("0.5", 0.5), ("1e2", 100), ("90 s", 90), ("90 secs", 90), ("1 second", 1), ("10 min", 600),
        ("10 Minutes", 600), ("1 minute", 60), ("5m", 300), ("1.5h", 5400), (".5 h", 1800), ("1 hour", 3600),
        ("2 hours", 7200), ("3hrs", 10800), ("1h30m", 5400), ("1 h 30 min", 5400), ("1 day", 86400),
    ],
)  # fmt: skip
def test_time_has_units(written: str, seconds: float):
    assert load(DIGITS + f"time_budget: {written}").time_budget == seconds


@pytest.mark.parametrize(
    "written", ["0", "-5 min", "0 h", "soon", "3 weeks", "min", "1 h 30", "1..5 h", "inf", "true", "[1]"]
)
def test_a_time_that_cannot_be_meant_is_refused(written: str):
    assert "time_budget: expected a time such as 90 s, 10 min" in problems_of(DIGITS + f"time_budget: {written}")


@pytest.mark.parametrize(("written", "views"), [("2", 2), ("'2'", 2), ("live", "live")])
def test_views_are_a_number_or_live(written: str, views: Any):
    assert load(DIGITS + f"augment: {{views: {written}}}").augment.views == views
    assert "augment.views: expected a whole number" in problems_of(DIGITS + "augment: {views: 0}")


def test_a_momentum_is_between_0_and_1_or_auto():
    assert load(DIGITS + "head: {ema: auto}").head.ema == "auto"
    assert load(DIGITS + "head: {ema: 0.99}").head.ema == 0.99
    assert load(DIGITS + "head: {ema: null}").head.ema is None
    for written in ("0", "1", "2", "some", "true"):
        assert "head.ema: expected a number above 0 and below 1, or auto" in problems_of(
            DIGITS + f"head: {{ema: {written}}}"
        )
