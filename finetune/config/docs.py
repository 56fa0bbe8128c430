"""Every key of a config file in one Markdown table, from the same models that check the files: docs/config.md.

finetune schema --markdown > docs/config.md
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.config.load import json_schema

HEADER = """# Every key of a config

Made by `finetune schema --markdown`; do not edit. Keys are written as in overrides: `head.epochs=5` on the command
line is `epochs: 5` below `head:` in the file. Only `data` is required. `model` and `augment` may be one word: the
backbone, the preset. `fine_tune` may be one mapping, or a list of them for gradual unfreezing.

| key | value | default | meaning |
|---|---|---|---|
"""
_BOUNDS = {
    "minimum": "from {}", "ge": "from {}", "exclusiveMinimum": "above {}",
    "maximum": "to {}", "le": "to {}", "exclusiveMaximum": "below {}",
}  # fmt: skip
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "array": "list"}


def config_reference() -> str:
    """The page: a row for every key, in the order of the models."""
    schema = json_schema()
    rows = _rows("", schema, schema["$defs"])
    return HEADER + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows(prefix: str, section: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, facts in section["properties"].items():
        below = _section(facts)
        if below:
            yield f"**`{prefix}{key}`**", "", "", f"**{facts['description']}**"
            yield from _rows(f"{prefix}{key}.", sections[below], sections)
        else:
            default = facts.get("default")
            shown = "" if default is None else f"`{default if isinstance(default, str) else json.dumps(default)}`"
            yield f"`{prefix}{key}`", _value(facts), shown, facts["description"]


def _section(facts: Mapping[str, Any]) -> str | None:
    """The name of the section that a key holds, if it holds one: by itself, in one of several forms, or in a list."""
    for form in (facts, *facts.get("anyOf", ())):
        if reference := form.get("$ref") or form.get("items", {}).get("$ref"):
            return str(reference).rpartition("/")[2]
    return None


def _value(facts: Mapping[str, Any]) -> str:
    forms = [one for one in facts.get("anyOf", [facts]) if one.get("type") != "null"]
    return " or ".join(dict.fromkeys(map(_form, forms)))


def _form(form: Mapping[str, Any]) -> str:
    words = form.get("enum") or ([form["const"]] if "const" in form else [])
    if words:
        return ", ".join(f"`{word}`" for word in words)
    kind = "path" if form.get("format") == "path" else _TYPES[form["type"]]
    return " ".join([kind, *(text.format(form[bound]) for bound, text in _BOUNDS.items() if bound in form)])
