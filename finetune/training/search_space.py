"""What a sweep varies: the `--set` options, read, and every value checked against the config before the first trial.

    space = read(["head.learning_rate=1e-4..1e-2", "head.optimizer=adam,sgd"])
    config = check("flowers", (), space)

| written      | tried                                                                                     |
|--------------|-------------------------------------------------------------------------------------------|
| `1e-4..1e-2` | numbers in between; on a log scale where the upper end is ten times the lower one or more |
| `0..0.5`     | numbers in between, evenly                                                                |
| `16..128`    | whole numbers, because both ends are; again on a log scale over a factor of ten           |
| `adam,sgd`   | one of these; values in YAML, so `[64],[128, 64]` are two lists                           |
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.config import Config, load_config
from finetune.utils import ConfigError, UsageError

SECTIONS = ("model", "augment", "head", "fine_tune", "imbalance")  # what a trial may differ in
LOG_RATIO = 10  # between the ends of a range, from which on the scale is logarithmic
DIGITS = 3  # of a number that is tried; more would only be harder to read
MOST = 1000  # values that one option may list

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
        """Those that must be right for all to be right: limits in a config are simple bounds."""
        return tuple(self.text.replace(" ", "").split("..", 1))

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def suggest(self, trial: Any) -> str:
        """What an Optuna trial is to use, as it is written in a config."""
        if self.whole:
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
        return self.spell(trial.suggest_float(self.key, self.low, self.high, log=self.log))

    def spell(self, value: Any) -> str:
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


@dataclass(frozen=True)
class Choice:
    """One of several values, each as the user wrote it."""

    key: str
    text: str
    values: tuple[str, ...]

    def __contains__(self, value: Any) -> bool:
        return str(value) in self.values

    def suggest(self, trial: Any) -> str:
        return str(trial.suggest_categorical(self.key, self.values))

    def spell(self, value: Any) -> str:
        return str(value)


SearchSpace = tuple[Range | Choice, ...]


def grid_points(space: SearchSpace, most: int) -> list[dict[str, Any]]:
    """Every point of a space of up to `most` points, as Optuna's parameters; none of a larger one."""
    axes: list[Sequence[Any]] = []
    for one in space:
        if isinstance(one, Range) and not one.whole:
            return []
        axes.append(range(int(one.low), int(one.high) + 1) if isinstance(one, Range) else one.values)
    if math.prod(map(len, axes)) > most:
        return []
    return [dict(zip((one.key for one in space), point, strict=True)) for point in itertools.product(*axes)]


def read_search_space(options: Sequence[str]) -> SearchSpace:
    """The space that `--set` options span. Raises UsageError with the first that cannot be understood."""
    space = tuple(map(_read, options))
    keys = [one.key for one in space]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"--set {twice[0]} is given twice.")
    if not space:
        raise UsageError("A sweep needs something to vary.", hint="For example: --set head.learning_rate=1e-4..1e-2")
    return space


def _read(option: str) -> Range | Choice:
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals or not key or not text:
        raise UsageError(
            f"--set {option}: expected key=values.",
            hint="A range such as head.learning_rate=1e-4..1e-2, or a list such as head.optimizer=adam,sgd",
        )
    if ends := _RANGE.fullmatch(text):
        return _range(option, key, text, *ends.groups())
    values = tuple(_split(option, text))
    if len(values) < 2:
        dots = ".." in text
        raise UsageError(
            f"--set {option}: " + ("the ends of a range must be numbers." if dots else "only one value."),
            hint="A range is written 1e-4..1e-2." if dots else f"What all trials share is given as {key}={text}",
        )
    if twice := [value for value in values if values.count(value) > 1]:
        raise UsageError(f"--set {option}: {twice[0]} is listed twice.")
    return Choice(key, text, values)


def _range(option: str, key: str, text: str, first: str, last: str) -> Range:
    if not first or float(first) >= float(last):
        raise UsageError(f"--set {option}: a range goes from a number to a larger one, such as 1e-4..1e-2")
    low, high = float(first), float(last)
    whole = bool(_WHOLE.fullmatch(first) and _WHOLE.fullmatch(last))
    return Range(key, text, low, high, whole, log=low > 0 and high / low >= LOG_RATIO)


def _split(option: str, text: str) -> Iterator[str]:
    """The values of a list, each as it is written; commas inside brackets and quotes divide nothing."""
    listed = f"[{text}]"
    try:
        node = yaml.compose(listed, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or len(node.value) > MOST:
        raise UsageError(f"--set {option}: the values cannot be read.", hint="List them with commas: adam,sgd")
    for value in node.value:
        yield listed[value.start_mark.index : value.end_mark.index].strip()


def check_search_space(source: str | Path, overrides: Sequence[str], space: SearchSpace) -> Config:
    """The config in `source`, which everything that is not varied comes from.

    Raises ConfigError unless every value of `space` is one that the config takes, with all that are not.
    """
    config = load_config(source, overrides)
    problems = [problem for one in space for problem in _problems(source, overrides, one)]
    if config.time_budget is not None:
        problems.append("time_budget: trials would depend on how busy the machine is; add time_budget=null")
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _problems(source: str | Path, overrides: Sequence[str], one: Range | Choice) -> Iterator[str]:
    section = one.key.partition(".")[0]
    if section in Config.model_fields and section not in SECTIONS:
        yield f"{one.key}: trials that differ in {section} could not be compared; vary {', '.join(SECTIONS)}"
        return
    if one.key in (override.partition("=")[0].strip() for override in overrides):
        yield f"{one.key}: is both varied with --set and given as {one.key}=..."
        return
    for value in one.values:
        try:
            load_config(source, [*overrides, f"{one.key}={value}"])
        except ConfigError as error:
            yield str(error)
            if "unknown key" in str(error):  # the others would only say it again
                return


def current_point(config: Config, space: SearchSpace) -> dict[str, Any] | None:
    """What the config says now about each key, if all of it lies in the space."""
    found = {}
    for one in space:
        value: Any = config
        for step in one.key.split("."):
            if isinstance(value, tuple):
                at = int(step) if step.isdecimal() else 0
                value = value[at] if at < len(value) else None
                if step.isdecimal():
                    continue
            value = getattr(value, step, None)
        if value not in one:
            return None
        found[one.key] = value if isinstance(one, Range) else str(value)
    return found
