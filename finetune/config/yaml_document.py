"""A config file as plain data that remembers where each value was written.

    document = YamlDocument.from_file(Path("flowers.yaml"))
    document.override("head.epochs=5")
    document.data                                  {"data": {...}, "head": {"epochs": 5}}
    document.report(("head", "epoch"), "unknown key.")
    document.check()                               ConfigError: flowers.yaml:12: head.epoch: unknown key.

`schema` says which keys exist and what they mean; this module knows YAML and nothing else. The file is read with
PyYAML's SafeLoader, which runs no code. Beyond what YAML says it refuses two traps: a key that is given twice (YAML
keeps the last), and numbers such as `010` and `12:30`, which YAML 1.1 reads as 8 and 750.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from finetune.utils import ConfigError, printable

KeyPath = tuple[str | int, ...]

MAX_PROBLEMS = 20  # listed in full; the rest is counted

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # those of YAML
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_OCTAL_OR_CLOCK = re.compile(r"[-+]?0[0-7_]+|.*:.*")


@dataclass(frozen=True)
class Place:
    """Where a value was written."""

    where: str  # the file or override as the user typed it; empty for a Python mapping
    folder: Path  # relative paths written here start from this folder
    line: int = 0  # 1-based; 0 where lines mean nothing
    text: str = ""  # an unquoted scalar as it was written, if YAML made something other than text of it

    def __str__(self) -> str:
        return f"{self.where}:{self.line}" if self.line else self.where

    def at(self, node: yaml.Node) -> "Place":
        """The place of `node`, in the same file (lines) or override (none)."""
        text = node.value if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") else ""
        return Place(self.where, self.folder, self.line and node.start_mark.line + 1, text)


class YamlDocument:
    """The values of a config (`data`) and where they were written; `report` collects problems, `check` raises them."""

    def __init__(self, name: str, root: Place) -> None:
        self.name = name
        self.data: dict[str, Any] = {}
        self.places: dict[KeyPath, Place] = {(): root}
        self.problems: list[tuple[Place, KeyPath, str]] = []

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a YAML file. Raises ConfigError at once if it cannot be read as a mapping."""
        document = cls(path.stem, Place(str(path), path.absolute().parent, line=1))
        try:
            content = path.read_bytes()
            text = content.decode("utf-8-sig")  # with or without a byte order mark
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{path}:{line}: not UTF-8 text; save it as UTF-8") from error
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}{_show_syntax_error(error, text)}") from None
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "one word" if node else "nothing"
            raise ConfigError(
                f"{path}: expected a mapping (lines of `key: value`), got {kind}",
                hint="`finetune init FOLDER` writes a config for your images.",
            )
        document.data = document._build(node, (), document.places[()])
        return document

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Take a Python mapping; it is copied, never changed."""
        document = cls("run", Place("", Path.cwd()))
        document.data = document._copy(mapping, ())
        return document

    def override(self, text: str) -> None:
        """Set a value from `key.path=value`, the value in YAML. Mistakes are collected, not raised."""
        place = Place(f"override {text!r}", Path.cwd())
        key, equals, value = text.partition("=")
        keys = key.strip().split(".")
        try:
            if not equals or not all(keys):
                raise ConfigError("expected key=value, such as head.epochs=5")
            self._assign(keys, yaml.compose(value, Loader=yaml.SafeLoader), place)
        except ConfigError as error:
            self.problems.append((place, (), error.message))
        except yaml.YAMLError as error:
            self.problems.append((place, (), _explain_syntax_error(error)))

    def extend(self, base: "YamlDocument") -> None:
        """Add the values of `base` that this document does not have. Mappings are joined, anything else is whole."""
        self._add(self.data, base.data, (), base.places)
        self.problems += base.problems

    def expand_path(self, path: KeyPath, *, absolute: bool = True, keep: Sequence[str] = ()) -> None:
        """Expand `~` and `${NAME}` in the file name at `path` and make it absolute, unless it is one of `keep`."""
        *sections, key = path
        section: Any = self.data
        for step in sections:
            section = section.get(step) if isinstance(section, dict) else None
        value = section.get(key) if isinstance(section, dict) else None
        if not isinstance(value, str | Path) or value in keep:
            return
        text = str(value).strip("\r\n")
        unset = [name for name in _VARIABLE.findall(text) if name not in os.environ]
        if unset:
            self.report(path, f"the environment variable {unset[0]} is not set")
        elif not text or "\0" in text:
            self.report(path, f"expected a path, not {text!r}")
        else:
            text = os.path.expanduser(_VARIABLE.sub(lambda match: os.environ[match[1]], text))
            _, place = self.locate(path)
            section[key] = os.path.abspath(place.folder / text) if absolute else text

    def locate(self, path: KeyPath) -> tuple[KeyPath, Place]:
        """The written form of a key path, and its place or that of the nearest section around it.

        A list may be written as its only entry (`fine_tune: {epochs: 5}`), so indices may be absent there.
        """
        written: KeyPath = ()
        place = self.places[()]
        for step in path:
            inside = (*written, step)
            if inside in self.places:
                place = self.places[inside]
            elif isinstance(step, int):
                continue
            written = inside
        return written, place

    def report(self, path: KeyPath, message: str) -> None:
        """Note a problem with the value at `path`; of several with the same value the first counts."""
        written, place = self.locate(path)
        if all(reported != written for _, reported, _ in self.problems):
            self.problems.append((place, written, message))

    def check(self) -> None:
        """Raise a ConfigError with every problem so far: of this file by line, of those it extends, of overrides."""
        if not self.problems:
            return
        lines = []
        for place, path, message in sorted(self.problems, key=lambda problem: self._order(problem[0])):
            parts = str(place), printable(".".join(map(str, path))), message
            lines.append(": ".join(part for part in parts if part))
        if len(lines) > MAX_PROBLEMS:
            lines[MAX_PROBLEMS:] = [f"... and {len(lines) - MAX_PROBLEMS} more problems"]
        raise ConfigError("\n".join(lines))

    def _order(self, place: Place) -> tuple[bool, bool, str, int]:
        return (not place.line, place.where != self.places[()].where, place.where if place.line else "", place.line)

    def _add(
        self, own: dict[str, Any], others: Mapping[str, Any], path: KeyPath, places: Mapping[KeyPath, Place]
    ) -> None:
        for key, value in others.items():
            inside = (*path, key)
            if key not in own:
                own[key] = value
                self.places |= {known: at for known, at in places.items() if known[: len(inside)] == inside}
            elif isinstance(own[key], dict) and isinstance(value, dict):
                self._add(own[key], value, inside, places)

    def _build(self, node: yaml.Node, path: KeyPath, place: Place) -> Any:
        """The Python value of a node; the place of every value inside it is noted."""
        if node.tag not in yaml.SafeLoader.yaml_constructors:
            self.report(path, "tags (!...) are not read here; quote text that starts with !")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, place)
        if isinstance(node, yaml.SequenceNode):
            values = []
            for index, item in enumerate(node.value):
                self.places[(*path, index)] = place.at(item)
                values.append(self._build(item, (*path, index), place))
            return values
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except ValueError:  # it only looks like a date, such as 2024-13-45
            return node.value
        if isinstance(value, int | float) and _OCTAL_OR_CLOCK.fullmatch(node.value):
            text = node.value
            self.report(path, f"ambiguous: YAML reads {text} as {value}. Write {value}, or '{text}' as text.")
        return value

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in node.value:
            here = place.at(key)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append((here, path, "a key must be one word"))
                continue
            inside = (*path, key.value)  # the text as written: a key `on` is not True
            if key.value in values:
                first = self.places[inside].line
                self.problems.append((here, inside, f"given twice, first on line {first}"))
                continue
            self.places[inside] = Place(here.where, here.folder, here.line, place.at(item).text)
            values[key.value] = self._build(item, inside, place)
        return values

    def _copy(self, value: Any, path: KeyPath) -> Any:
        """The same for a Python value, whose parts have no lines."""
        self.places[path] = self.places[()]
        if isinstance(value, Mapping):
            return {str(key): self._copy(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._copy(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def _assign(self, keys: list[str], node: yaml.Node | None, place: Place) -> None:
        """Set the value at `keys` to that of `node`, creating sections on the way; forget what was there before."""
        target: Any = self.data
        path: KeyPath = ()
        for key in keys[:-1]:
            if key == "0" and isinstance(target, dict):
                continue  # a section that may be a list: a single mapping is its own entry 0
            step = _key_or_index(target, path, key)
            if isinstance(target, dict) and target.get(key) is None:
                target[key] = {}
            target, path = target[step], (*path, step)
            self.places.setdefault(path, place)
        last = _key_or_index(target, path, keys[-1])
        path = (*path, last)
        self.places = {known: at for known, at in self.places.items() if known[: len(path)] != path}
        self.problems = [problem for problem in self.problems if problem[1][: len(path)] != path]
        self.places[path] = place.at(node) if node else place
        target[last] = self._build(node, path, place) if node else None


def _key_or_index(target: Any, path: KeyPath, key: str) -> str | int:
    """`key` as a key of the mapping `target`, or as an index of the list `target`."""
    if isinstance(target, dict):
        return key
    section = ".".join(map(str, path))
    if not isinstance(target, list):
        raise ConfigError(f"{section} is a single value, it has no {key!r}")
    if not key.isdecimal() or int(key) >= len(target):
        raise ConfigError(f"{section} is a list of {len(target)}; {section}.0 is its first entry")
    return int(key)


def _explain_syntax_error(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return "has characters that YAML does not allow"
    return ", ".join(part for part in (error.context, error.problem) if part)


def _show_syntax_error(error: yaml.YAMLError, text: str) -> str:
    """`:line:column: what is wrong`, then the line itself and a caret under the column."""
    problem = _explain_syntax_error(error)
    if not isinstance(error, yaml.MarkedYAMLError):
        return f": {problem}"
    mark = error.problem_mark
    if error.context_mark and "end of stream" in problem:
        mark = error.context_mark  # the quote or bracket that was never closed, not the last line of the file
    assert mark is not None  # the loader marks every error
    line = [*_LINE_BREAK.split(text), ""][mark.line]
    if line[mark.column :].startswith("\t"):
        problem = "a tab; YAML wants spaces"
    first = max(0, mark.column - 60)  # of a long line, the part around the caret
    excerpt = "".join(character if character.isprintable() else "→" for character in line[first : first + 100])
    caret = " " * (mark.column - first) + "^"
    return f":{mark.line + 1}:{mark.column + 1}: {problem}\n    {excerpt}\n    {caret}"
