"""A config file as plain data that remembers where each value was written.

    document = Document.from_file(Path("flowers.yaml"))
    document.override("head.epochs=5")
    document.data                                  {"data": {...}, "head": {"epochs": 5}}
    document.report(("head", "epoch"), "unknown key.")
    document.check()                               ConfigError: flowers.yaml:12: head.epoch: unknown key.

`config` says which keys exist and what they mean; this module knows YAML and nothing else. It reads the safe
part of YAML that a config needs: mappings, lists and scalars. Tags (`!!python/...`), anchors and aliases are
refused, so that no file can run code or grow without end.
"""

import codecs
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from finetune.utils import ConfigError

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
SHOWN = 20  # problems listed in full; the rest is counted

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster, but not everywhere
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # those of YAML
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_OCTAL_OR_CLOCK = re.compile(r"[-+]?0[0-7_]+|.*:.*")


@dataclass(frozen=True)
class Place:
    """Where a value was written."""

    where: str  # the file or override as the user typed it; empty for a Python mapping
    folder: Path  # relative paths written here start from this folder
    line: int = 0  # 1-based; 0 where lines mean nothing
    text: str = ""  # an unquoted scalar as it stands there, if YAML made something else than text of it

    def __str__(self) -> str:
        return f"{self.where}:{self.line}" if self.line else self.where

    def at(self, node: yaml.Node) -> "Place":
        """The place of `node`, in the same file (lines) or override (none)."""
        text = node.value if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") else ""
        return Place(self.where, self.folder, self.line and node.start_mark.line + 1, text)


class YamlDocument:
    """What YAML said (`data`) and where (`places`); `report` collects what is wrong, `check` raises it."""

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
            node = _compose(_read_text(path))
        except _Refused as refused:
            raise ConfigError(f"{path}{refused.position}: {refused}") from None
        if not isinstance(node, yaml.MappingNode):
            found = "a list" if isinstance(node, yaml.SequenceNode) else "one word" if node else "nothing"
            raise ConfigError(
                f"{path}: expected a mapping (lines of `key: value`), found {found}",
                hint="`finetune init FOLDER` writes a config for your images.",
            )
        document.data = document._plain(node, (), document.places[()])
        return document

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Take a Python mapping; it is copied, never changed."""
        document = cls("run", Place("", Path.cwd()))
        document.data = document._copy(mapping, ())
        return document

    def override(self, text: str) -> None:
        """Set one value from `key.path=value`, the value in YAML. Mistakes are collected, not raised."""
        place = Place(f"override {text!r}", Path.cwd())
        key, equals, value = text.partition("=")
        steps = key.strip().split(".")
        try:
            if not equals or not all(steps):
                raise _Refused("expected key=value, such as head.epochs=5")
            self._assign(steps, _compose(value), place)
        except _Refused as refused:
            self.problems.append((place, (), str(refused).split("\n")[0]))  # the text is in the place

    def expand(self, path: KeyPath, *, absolute: bool = True, words: Sequence[str] = ()) -> None:
        """Expand `~` and `${NAME}` in the file name at `path` and make it absolute, unless in `words`."""
        *sections, key = path
        holder: Any = self.data
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        value = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(value, str | Path) or value in words:
            return
        text = str(value).strip("\r\n")
        if unset := [name for name in _VARIABLE.findall(text) if name not in os.environ]:
            self.report(path, f"the environment variable {unset[0]} is not set")
        elif not text or "\0" in text:
            self.report(path, f"expected a path, not {text!r}")
        else:
            text = os.path.expanduser(_VARIABLE.sub(lambda match: os.environ[match[1]], text))
            holder[key] = os.path.abspath(self.locate(path)[1].folder / text) if absolute else text

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
        """Note a problem with the value at `path`; only the first one for each value counts."""
        written, place = self.locate(path)
        if all(known != written for _, known, _ in self.problems):
            self.problems.append((place, written, message))

    def check(self) -> None:
        """Raise one ConfigError with every problem reported so far, in the order of the file."""
        if not self.problems:
            return
        # Overrides come last: they have no lines.
        problems = sorted(self.problems, key=lambda problem: (not problem[0].line, problem[0].line))
        lines = [
            ": ".join(filter(None, (str(place), _printable(".".join(map(str, path))), message)))
            for place, path, message in problems
        ]
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"... and {len(lines) - SHOWN} more problems"]
        raise ConfigError("\n".join(lines))

    def _plain(self, node: yaml.Node, path: KeyPath, place: Place) -> Any:
        """The Python value of a node, noting the place of every value inside it."""
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, place)
        if isinstance(node, yaml.SequenceNode):
            values = []
            for index, item in enumerate(node.value):
                self.places[(*path, index)] = place.at(item)
                values.append(self._plain(item, (*path, index), place))
            return values
        value, text = _scalar(node), str(node.value)
        if isinstance(value, int | float) and _OCTAL_OR_CLOCK.fullmatch(text):
            self.report(path, f"ambiguous: YAML reads {text} as {value}. Write {value}, or '{text}' as text.")
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, place: Place) -> dict[str, Any]:
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
            values[key.value] = self._plain(item, inside, place)
        return values

    def _copy(self, value: Any, path: KeyPath) -> Any:
        self.places[path] = self.places[()]
        if isinstance(value, Mapping):
            return {str(key): self._copy(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._copy(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def _assign(self, steps: list[str], node: yaml.Node | None, place: Place) -> None:
        """Put the value of `node` at `steps`, making the sections on the way, and forget what was there."""
        target: Any = self.data
        path: KeyPath = ()
        for step in steps[:-1]:
            target, path = _enter(target, path, step)
            self.places.setdefault(path, place)
        last = _index(target, path, steps[-1])
        path = (*path, last)
        self.places = {known: at for known, at in self.places.items() if known[: len(path)] != path}
        self.problems = [known for known in self.problems if known[1][: len(path)] != path]
        self.places[path] = place.at(node) if node else place
        target[last] = self._plain(node, path, place) if node else None


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


class _Refused(Exception):
    """A text that is not a config; the caller knows where it came from."""

    def __init__(self, what: str, position: str = "") -> None:
        super().__init__(what)
        self.position = position  # ":line:column" in the text


def _enter(target: Any, path: KeyPath, step: str) -> tuple[Any, KeyPath]:
    """The section inside `target` that `step` names; an absent one is made."""
    if isinstance(target, dict) and step == "0":
        return target, path  # a section that may be a list: one mapping is its own entry 0
    key = _index(target, path, step)
    if isinstance(target, dict) and target.get(key) is None:
        target[key] = {}
    return target[key], (*path, key)


def _index(target: Any, path: KeyPath, step: str) -> str | int:
    """`step` as a key of the mapping or an index of the list `target`."""
    if isinstance(target, dict):
        return step
    section = ".".join(map(str, path))
    if not isinstance(target, list):
        raise _Refused(f"{section} is a single value, it has no {step!r}")
    if not step.isdecimal() or int(step) >= len(target):
        raise _Refused(f"{section} is a list of {len(target)}; {section}.0 is its first entry")
    return int(step)


def _read_text(path: Path) -> str:
    """The text of a small UTF-8 file, with or without a byte order mark."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _Refused(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise _Refused(f"too big for a config, the limit is {MAX_BYTES:,} bytes")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise _Refused("UTF-16, or not text at all; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Refused("not UTF-8 text; save it as UTF-8", f":{line}") from error


def _compose(text: str) -> yaml.Node | None:
    """The YAML node tree of `text`, or None if it is empty."""
    try:
        _guard(text)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise _Refused("has characters that YAML does not allow") from error


def _guard(text: str) -> None:
    """Refuse what no config needs before anything is built from it: tags, anchors, aliases, deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if getattr(event, "anchor", None):
            problem = "anchors and aliases (& and *) are not read here; write the value out, or quote it"
        elif getattr(event, "tag", None):
            problem = "tags (!...) are not read here; quote text that starts with !"
        elif depth > MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels"
        else:
            continue
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> _Refused:
    """What is wrong, then the line itself and a caret under the column."""
    mark, problem = error.problem_mark, ", ".join(filter(None, (error.context, error.problem)))
    if error.context_mark and "end of stream" in problem:
        mark = error.context_mark  # the quote or bracket that was never closed, not the last line of the file
    assert mark is not None  # both loaders mark every error
    line = [*_LINE_BREAK.split(text), ""][mark.line]
    if line[mark.column :].startswith("\t"):
        problem = "a tab; YAML wants spaces"
    first = max(0, mark.column - 60)  # of a long line, the part around the caret
    shown = "".join(character if character.isprintable() else "→" for character in line[first : first + 100])
    caret = " " * (mark.column - first) + "^"
    return _Refused(f"{problem}\n    {shown}\n    {caret}", f":{mark.line + 1}:{mark.column + 1}")


def _scalar(node: yaml.Node) -> Any:
    """What YAML 1.1 makes of a scalar; what only looks like a number or a date (2024-13-45) stays text."""
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, yaml.YAMLError):
        return node.value
