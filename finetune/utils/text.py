"""Text for people: numbers in one form everywhere, and names that cannot disturb a terminal or a spreadsheet.

format_bytes(3_200_000)                          '3.2 MB'
format_percent(0.943)                            '94.3%'
format_interval(metrics.accuracy, n=240)         '94.3% (95 % interval 91.4% to 96.2%, n = 240)'
format_duration(5400)                            '1.5 h'
format_count(1200, "image")                      '1,200 images'
shell_command("finetune", "train", "my photos")  "finetune train 'my photos'"
"""

import math
import os
import shlex
from pathlib import Path
from typing import Protocol

MISSING = "-"  # shown where there is no number
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins with one of these


def shell_command(*words: object) -> str:
    """A command to be copied into a shell: words with spaces and the like are quoted."""
    return shlex.join(printable(str(word)) for word in words)


def format_bytes(size: float) -> str:
    """A number of bytes, as `512 bytes`, `3.2 KB`, `3.2 MB` or `3.2 GB` (powers of 1000)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


def format_percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction from 0 to 1 in percent, as `94.3%`; `-` for None and NaN."""
    if fraction is None or math.isnan(fraction):
        return MISSING
    return f"{fraction:.{digits}%}"


class Estimate(Protocol):
    """A fraction from 0 to 1 and the ends of its 95 % interval, such as `finetune.evaluation.Proportion`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def format_interval(estimate: Estimate, *, n: int | None = None) -> str:
    """A fraction with its 95 % interval and, if given, the number `n` of images that it was measured on."""
    measured_on = "" if n is None else f", n = {n:,}"
    return f"{estimate.value:.1%} (95 % interval {estimate.low:.1%} to {estimate.high:.1%}{measured_on})"


def format_duration(seconds: float) -> str:
    """A time span, as `3.2 s`, `75 s`, `12 min` or `1.5 h`: two or three digits are enough for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_count(count: int, singular: str, plural: str = "") -> str:
    """A number of things, as `1 image` or `1,200 images`; `plural` where an `s` at the end would be wrong."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def printable(name: str | Path) -> str:
    """`name` fit for a terminal: control characters, newlines and bytes that are no text become `\\x1b`."""
    text = os.fspath(name)
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def csv_cell(text: str) -> str:
    """`text` for a CSV table: one that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
