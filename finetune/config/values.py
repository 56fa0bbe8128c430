"""The types of values that can be written in more than one way: `1e-3`, `10 min`, `3 blocks`, `auto`, `live`.

    class Example(BaseModel):
        epochs: Whole                # 5 or "5", never true
        learning_rate: Rate          # 1e-3 (which YAML takes for text), 0.001 or auto

A value that cannot be meant raises an error of the type `EXPECTED`, whose message is what would be correct.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

EXPECTED = "expected"
TIME_UNITS = {  # without the s of a plural
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600, "day": 86400
}  # fmt: skip

_TIME_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]+)")
_TIME = re.compile(rf"({_TIME_PART.pattern}\s*)+")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def parse_number(value: Any) -> Any:
    """Text such as `1e-3`, which YAML takes for text, as a number; everything else unchanged."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if re.search("[.eE]", value) else int(value)
    return value


def is_number(value: Any) -> bool:
    """Whether `value` is a number; to Python, True is one as well."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse_plain_number(value: Any) -> Any:
    number = parse_number(value)
    if isinstance(number, bool | str):
        raise PydanticCustomError("number", "expected a number")
    return number


def _parse_rate(value: Any) -> Any:
    number = parse_number(value)
    if number == "auto" or (is_number(number) and 0 < number < math.inf):
        return number
    raise PydanticCustomError(EXPECTED, "a number, above 0, or auto")


def _parse_momentum(value: Any) -> Any:
    number = parse_number(value)
    if number == "auto" or (is_number(number) and 0 < number < 1):
        return number
    raise PydanticCustomError(EXPECTED, "a number above 0 and below 1, or auto")


def _parse_level(value: Any) -> Any:
    number = parse_number(value)
    if number == "last" or (type(number) is int and number >= 1):
        return number
    raise PydanticCustomError(EXPECTED, "a whole number, at least 1, or last")


def _parse_views(value: Any) -> Any:
    number = parse_number(value)
    if number == "live" or (type(number) is int and number >= 1):
        return number
    raise PydanticCustomError(EXPECTED, "a whole number, at least 1, or live")


def _parse_unfreeze(value: Any) -> Any:
    """`3 blocks` -> 3; a whole number counts blocks, 0.3 is a fraction of the blocks, other text names a layer."""
    blocks = re.fullmatch(r"([0-9]+) +blocks?", value.strip()) if isinstance(value, str) else None
    number = int(blocks[1]) if blocks else parse_number(value)
    if isinstance(number, str) and re.fullmatch(r"\S+", number):  # no layer has a space in its name
        return number
    if type(number) is int and number >= 1:
        return number
    if isinstance(number, float) and 0 < number <= 1:
        return number
    raise PydanticCustomError(EXPECTED, "3 blocks (at least 1), a fraction (0.3), a layer name or all")


def _parse_time(value: Any) -> Any:
    """`10 min` -> 600.0, `1 hour 30 minutes` -> 5400.0; a plain number counts seconds."""
    seconds = parse_number(value)
    if isinstance(seconds, str) and _TIME.fullmatch(seconds.strip().lower()):
        seconds = 0.0
        for number, unit in _TIME_PART.findall(value.lower()):
            seconds += float(number) * TIME_UNITS.get(unit.removesuffix("s") or "s", math.nan)
    if is_number(seconds) and 0 < seconds < math.inf:
        return float(seconds)
    raise PydanticCustomError(EXPECTED, "a time such as 90 s, 10 min, 2 hours or 1 h 30 min")


def _parse_weights(value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise PydanticCustomError(EXPECTED, "imagenet, none or the path of a weight file")
    return value


Whole = Annotated[int, BeforeValidator(_parse_plain_number)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_parse_plain_number)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Rate = Annotated[float | Literal["auto"], BeforeValidator(_parse_rate)]
Momentum = Annotated[float | Literal["auto"], BeforeValidator(_parse_momentum)]
Level = Annotated[int | Literal["last"], BeforeValidator(_parse_level)]
Views = Annotated[int | Literal["live"], BeforeValidator(_parse_views)]
Unfreeze = Annotated[int | float | str, BeforeValidator(_parse_unfreeze)]
Seconds = Annotated[float, BeforeValidator(_parse_time, json_schema_input_type=float | str)]
WeightsChoice = Annotated[Literal["imagenet", "none"] | Path, BeforeValidator(_parse_weights)]
