"""docs/faults.md says the truth: every case of the catalogue once, and every test that it names exists."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
CASES = {"C": 22, "D": 26, "I": 25, "W": 13, "R": 17, "X": 14, "S": 12, "P": 12, "M": 11, "N": 6, "E": 10}


def rows() -> list[tuple[str, str]]:
    """(code, what shows it)"""
    return re.findall(r"^\| ([A-Z]\d+) \|.*\| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)


def test_every_case_is_there_once() -> None:
    assert [code for code, _ in rows()] == [
        f"{group}{number}" for group, count in CASES.items() for number in range(1, count + 1)
    ]


def test_every_case_has_a_test_or_a_reason() -> None:
    for code, shown in rows():
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", shown)
        assert named or shown.startswith("left out"), code
        for file, test in named:
            assert f"def {test}(" in (TESTS / file).read_text("utf-8"), f"{code}: {file}::{test}"
