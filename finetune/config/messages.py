"""What pydantic finds wrong with a value, said in the words of a config file.

    head.learning_rate: expected a number, above 0, not -1.
    head.epoch: unknown key. Did you mean 'epochs'?
    data.classes.0: YAML reads no as false; quote it: 'no'

The legal range comes from the model's own field, so that it is written down once.
"""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from finetune.config.values import EXPECTED
from finetune.utils import did_you_mean

NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def explain_error(problem: ErrorDetails, root: type[BaseModel], text: str) -> str:
    """One sentence for one of pydantic's problems with a `root` model.

    `text` is the value as it stands in the file, if YAML made something else than text of it.
    """
    *section, key = problem["loc"] or ("",)
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden":
        return _unknown(str(key), _field(root, section)[0], root)
    annotation, limits = _field(root, problem["loc"])
    value = problem["input"]
    if problem["type"] == EXPECTED:
        return f"expected {problem['msg']}, not {text or _shown(value)}."
    if problem["type"] == "missing":
        return f"is missing; expected {_expected(annotation, limits)}"
    if annotation in (str, Path) and text:
        return f"YAML reads {text} as {_shown(value)}; quote it: '{text}'"
    choices = map(str, get_args(annotation)) if get_origin(annotation) is Literal else ()
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    expected = _expected(annotation, limits) + " and finite" * (problem["type"] == "finite_number")
    return f"expected {expected}, not {text or _shown(value)}.{hint}"


def _field(root: type[BaseModel], path: Any) -> tuple[Any, Any]:
    """The type and the limits of the field at a key path."""
    annotation: Any = root
    limits: Any = ()
    for step in path:
        if isinstance(step, int):
            annotation, limits = get_args(annotation)[0], ()
        else:
            field = annotation.model_fields[step]
            annotation, limits = field.annotation, field.metadata
        while get_origin(annotation) in (Annotated, Union, UnionType):  # `int | None` is about an int
            annotation = get_args(annotation)[0]
    return annotation, limits


def _unknown(key: str, section: type[BaseModel], root: type[BaseModel]) -> str:
    """Near names in the section, or the sections that do have such a key, or all that is known."""
    if near := did_you_mean(key, section.model_fields):
        return f"unknown key.{near}"
    homes = [name for name in root.model_fields if _has(_field(root, [name])[0], key)]
    if homes:
        return f"unknown key here. Did you mean {' or '.join(repr(f'{home}.{key}') for home in homes)}?"
    return f"unknown key. Known here: {', '.join(section.model_fields)}."


def _has(annotation: Any, key: str) -> bool:
    model = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return key in getattr(model, "model_fields", ())


def _expected(annotation: Any, limits: Any) -> str:
    """`a number, at least 0 and below 1`, `one of avg, max`, ..."""
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        return "a list" if get_args(annotation)[0] in NOUNS else "a mapping or a list of mappings"
    if annotation not in NOUNS:
        return f"a mapping with keys such as {', '.join(list(annotation.model_fields)[:4])}"
    if annotation not in (int, float):
        return NOUNS[annotation]
    found = [(word, getattr(limit, name, None)) for limit in limits for name, word in BOUNDS.items()]
    bounds = " and ".join(f"{word} {bound}" for word, bound in found if bound is not None)
    return f"{NOUNS[annotation]}, {bounds}" if bounds else NOUNS[annotation]


def _shown(value: Any) -> str:
    """A value as a config would write it, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return "a date"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
