"""What a sweep varies: the `--set` options, every value of which is checked before the first trial.

    space = read_search_space(["head.learning_rate=1e-4..1e-2", "head.optimizer=adam,sgd"])
    config = check_search_space("flowers", (), space)

| written      | tried                                                                                     |
|--------------|-------------------------------------------------------------------------------------------|
| `1e-4..1e-2` | numbers in between; on a log scale where the upper end is ten times the lower one or more |
| `0..0.5`     | numbers in between, evenly                                                                |
| `16..128`    | whole numbers, because both ends are; again on a log scale over a factor of ten           |
| `adam,sgd`   | one of these; values in YAML, so `[64],[128, 64]` are two lists                           |

No TensorFlow here: a wrong key is reported at once.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.config import Config, load_config
from finetune.utils import ConfigError, UsageError

SECTIONS = ("model", "augment", "head", "fine_tune", "imbalance")  # what trials may differ in
LOG_RATIO = 10  # between the ends of a range, from which on the scale is logarithmic
DIGITS = 3  # significant ones of a number that is tried; more would only be harder to read
MAX_VALUES = 1000  # that one option may list

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})?\s*\.\.\s*({_NUMBER})")
_WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    key: str
    text: str  # as the user wrote it
    low: float
    high: float
    whole: bool
    log: bool

    @property
    def values(self) -> tuple[str, ...]:
        """Both ends as they were written. If these are valid, all in between are: limits in a config are bounds."""
        return tuple(self.text.replace(" ", "").split("..", 1))

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def suggest(self, trial: Any) -> str:
        """The value for an Optuna trial, as it is written in a config."""
        if self.whole:
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
        value = float(f"{trial.suggest_float(self.key, self.low, self.high, log=self.log):.{DIGITS}g}")
        return repr(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Choice:
    """One of several values, each as the user wrote it."""

    key: str
    text: str
    values: tuple[str, ...]

    def __contains__(self, value: Any) -> bool:
        return str(value) in self.values

    def suggest(self, trial: Any) -> str:
        """The value for an Optuna trial, as it is written in a config."""
        return str(trial.suggest_categorical(self.key, self.values))


SearchSpace = tuple[Range | Choice, ...]


def read_search_space(options: Sequence[str]) -> SearchSpace:
    """Read the `--set` options. Raises UsageError with the first one that cannot be understood."""
    space = tuple(_read_option(option) for option in options)
    keys = [dimension.key for dimension in space]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--set {key} is given twice.")
    if not space:
        raise UsageError("A sweep needs something to vary.", hint="For example: --set head.learning_rate=1e-4..1e-2")
    return space


def _read_option(option: str) -> Range | Choice:
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals or not key or not text:
        raise UsageError(
            f"--set {option}: expected key=values.",
            hint="A range such as head.learning_rate=1e-4..1e-2, or a list such as head.optimizer=adam,sgd",
        )
    ends = _RANGE.fullmatch(text)
    if ends:
        first, last = ends.groups()
        if not first or float(first) >= float(last):
            raise UsageError(f"--set {option}: a range goes from a number to a larger one, such as 1e-4..1e-2")
        low, high = float(first), float(last)
        whole = bool(_WHOLE.fullmatch(first) and _WHOLE.fullmatch(last))
        return Range(key, text, low, high, whole, log=low > 0 and high / low >= LOG_RATIO)
    values = tuple(_split_list(option, text))
    if len(values) < 2 and ".." in text:
        raise UsageError(f"--set {option}: the ends of a range must be numbers.", hint="It is written 1e-4..1e-2.")
    if len(values) < 2:
        hint = f"A value that all trials have in common is given as {key}={text}"
        raise UsageError(f"--set {option}: only one value.", hint=hint)
    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"--set {option}: {value} is listed twice.")
    return Choice(key, text, values)


def _split_list(option: str, text: str) -> Iterator[str]:
    """The values of a list, each as it is written; commas inside brackets and quotes separate nothing."""
    listed = f"[{text}]"
    try:
        node = yaml.compose(listed, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or len(node.value) > MAX_VALUES:
        raise UsageError(f"--set {option}: the values cannot be read.", hint="List them with commas: adam,sgd")
    for value in node.value:
        yield listed[value.start_mark.index : value.end_mark.index].strip()


def check_search_space(source: str | Path | Mapping[str, Any], overrides: Sequence[str], space: SearchSpace) -> Config:
    """The config in `source` with `overrides`, which all trials have in common.

    Raises ConfigError, with all problems, unless the config takes every value of `space`.
    """
    config = load_config(source, overrides)
    problems = [problem for dimension in space for problem in _problems(source, overrides, dimension)]
    if config.time_budget is not None:
        problems.append("time_budget: trials would depend on how busy the machine is; add time_budget=null")
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _problems(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], dimension: Range | Choice
) -> Iterator[str]:
    key = dimension.key
    section = key.partition(".")[0]
    if section in Config.model_fields and section not in SECTIONS:
        yield f"{key}: trials that differ in {section} could not be compared; vary {', '.join(SECTIONS)}"
        return
    if key in [override.partition("=")[0].strip() for override in overrides]:
        yield f"{key}: is both varied with --set and given as {key}=..."
        return
    for value in dimension.values:
        try:
            load_config(source, [*overrides, f"{key}={value}"])
        except ConfigError as error:
            yield str(error)
            if "unknown key" in str(error):  # the other values would only repeat it
                return


def grid_points(space: SearchSpace, most: int) -> list[dict[str, Any]]:
    """Every point of a space of up to `most` points, as Optuna's parameters; none of a larger one.

    They go into the study's queue. Optuna's GridSampler would give two processes the same point now and then, and does
    not go together with a queue.
    """
    axes: list[Sequence[Any]] = []
    for dimension in space:
        if isinstance(dimension, Choice):
            axes.append(dimension.values)
        elif dimension.whole:
            axes.append(range(int(dimension.low), int(dimension.high) + 1))
        else:
            return []
    if math.prod(map(len, axes)) > most:
        return []
    keys = [dimension.key for dimension in space]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*axes)]


def current_point(config: Config, space: SearchSpace) -> dict[str, Any] | None:
    """The values that the config has now, as Optuna's parameters; None if one of them lies outside the space."""
    point = {}
    for dimension in space:
        value: Any = config
        for step in dimension.key.split("."):
            if not isinstance(value, tuple):
                value = getattr(value, step, None)
            elif step.isdecimal():
                value = value[int(step)] if int(step) < len(value) else None
            else:  # `fine_tune.epochs` means the first phase
                value = getattr(value[0], step, None) if value else None
        if value not in dimension:
            return None
        point[dimension.key] = value if isinstance(dimension, Range) else str(value)
    return point
