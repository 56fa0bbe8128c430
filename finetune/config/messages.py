"""What pydantic finds wrong with a value, in the words of a config file.

    head.learning_rate: expected a number, above 0, not -1.
    head.epoch: unknown key. Did you mean 'epochs'?
    data.classes.0: YAML reads no as false; quote it: 'no'

The legal range comes from the model's own field, so that it is written down only once.
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
    """A sentence for one of pydantic's problems with a `root` model.

    `text` is the value as it was written in the file, if YAML made something other than text of it.
    """
    kind, value = problem["type"], problem["input"]
    *section, key = problem["loc"] or ("",)
    if kind == "value_error":  # raised by a validator of our own, with a whole sentence
        return str(problem["ctx"]["error"])
    if kind == "extra_forbidden":
        return _explain_unknown_key(str(key), _field_at(root, section)[0], root)
    if kind == EXPECTED:
        return f"expected {problem['msg']}, not {text or _shorten(value)}."
    annotation, limits = _field_at(root, problem["loc"])
    expected = _expectation(annotation, limits)
    if kind == "missing":
        return f"is missing; expected {expected}"
    if annotation in (str, Path) and text:
        return f"YAML reads {text} as {_shorten(value)}; quote it: '{text}'"
    if kind == "too_long":
        return f"expected {expected}, not of {len(value)}."
    if kind == "finite_number":
        expected += " and finite"
    choices = map(str, get_args(annotation)) if get_origin(annotation) is Literal else ()
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"expected {expected}, not {text or _shorten(value)}.{hint}"


def _field_at(root: type[BaseModel], path: Any) -> tuple[Any, Any]:
    """The type and the limits of the field at a key path."""
    annotation: Any = root
    limits: Any = ()
    for step in path:
        if isinstance(step, int):
            annotation, limits = get_args(annotation)[0], ()
        else:
            field = annotation.model_fields[step]
            annotation, limits = field.annotation, field.metadata
        while get_origin(annotation) in (Annotated, Union, UnionType):  # of `int | None` the int
            annotation = get_args(annotation)[0]
    return annotation, limits


def _explain_unknown_key(key: str, section: type[BaseModel], root: type[BaseModel]) -> str:
    """Suggest near names in the section, or else the sections that have such a key, or else list the known keys."""
    near = did_you_mean(key, section.model_fields)
    if near:
        return f"unknown key.{near}"
    elsewhere = []
    for name in root.model_fields:
        annotation = _field_at(root, [name])[0]
        model = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
        if key in getattr(model, "model_fields", ()):
            elsewhere.append(repr(f"{name}.{key}"))
    if elsewhere:
        return f"unknown key here. Did you mean {' or '.join(elsewhere)}?"
    return f"unknown key. Known here: {', '.join(section.model_fields)}."


def _expectation(annotation: Any, limits: Any) -> str:
    """`a number, at least 0 and below 1`, `one of avg, max`, ..."""
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        if isinstance(item, type) and issubclass(item, BaseModel):
            return "a mapping, a list of mappings or none"
        most = next((limit.max_length for limit in limits if hasattr(limit, "max_length")), None)
        return "a list" if most is None else f"a list of at most {most}"
    if annotation not in NOUNS:
        return f"a mapping with keys such as {', '.join(list(annotation.model_fields)[:4])}"
    bounds = []
    if annotation in (int, float):
        for limit in limits:
            bounds += [f"{word} {getattr(limit, name)}" for name, word in BOUNDS.items() if hasattr(limit, name)]
    return ", ".join([NOUNS[annotation], " and ".join(bounds)] if bounds else [NOUNS[annotation]])


def _shorten(value: Any) -> str:
    """A value as a config would write it, at most 60 characters."""
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
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
