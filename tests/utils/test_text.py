"""Numbers and names as people see them."""

import math
import os

import pytest

from finetune.evaluation import Proportion
from finetune.utils import (
    csv_cell,
    format_bytes,
    format_count,
    format_duration,
    format_interval,
    format_percent,
    printable,
    shell_command,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (3_210_000, "3.2 MB"), (4_560_000_000, "4.6 GB")],
)
def test_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.9432, "94.3%"), (0, "0.0%"), (1, "100.0%"), (None, "-"), (math.nan, "-")]
)
def test_percent(fraction: float | None, text: str) -> None:
    assert format_percent(fraction) == text


def test_percent_with_other_digits() -> None:
    assert (format_percent(0.9432, 0), format_percent(0.9432, 2)) == ("94%", "94.32%")


def test_interval() -> None:
    accuracy = Proportion(0.943, 0.914, 0.962)
    assert format_interval(accuracy) == "94.3% (95 % interval 91.4% to 96.2%)"
    assert format_interval(accuracy, n=2400) == "94.3% (95 % interval 91.4% to 96.2%, n = 2,400)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (12.3, "12 s"),
        (89, "89 s"),
        (720, "12 min"),
        (5400, "1.5 h"),
        (90_000, "25.0 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_count() -> None:
    assert [format_count(count, "image") for count in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert format_count(2, "class", "classes") == "2 classes"


def test_a_name_cannot_disturb_the_terminal() -> None:
    assert printable(os.fsdecode(b"caf\xe9\n\x1b[31m.png")) == "caf\\xe9\\x0a\\x1b[31m.png"
    assert printable("\u2028\U000e0001") == "\\u2028\\U000e0001"
    assert printable("Füße.jpg") == "Füße.jpg"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@sum", "\tx", "\rx"])
def test_a_spreadsheet_runs_no_cell(text: str) -> None:
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(f"a{text}") == f"a{text}"


def test_commands_can_be_copied_into_a_shell() -> None:
    command = shell_command("finetune", "train", "my runs/a-1", "head.epochs=5", "data.classes=[a, b]")
    assert command == "finetune train 'my runs/a-1' head.epochs=5 'data.classes=[a, b]'"
