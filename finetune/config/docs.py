"""Every key of a config file in one Markdown table, from the models that check the files: docs/config.md.

finetune schema --markdown > docs/config.md
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.config.load import json_schema

HEADER = """# Every key of a config

Made by `finetune schema --markdown`; do not edit. Keys are written as in overrides: `head.epochs=5` on the command
line is `epochs: 5` below `head:` in the file. Only `data` is required. `model` and `augment` may be one word: the
backbone, the preset. `fine_tune` may be one mapping, a list of them for gradual unfreezing, or none. With
`recipe: auto` a key that is left out has the value of the recipe (docs/guide.md), or else the default below.
In paths (`data.folder`, `data.csv`, `model.weights`, `output`, `extends`) `~` and environment variables (`${NAME}`)
are expanded; an absent variable is an error.

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
    return HEADER + "".join(f"| {' | '.join(row)} |\n" for row in _rows("", schema, schema["$defs"]))


def _rows(prefix: str, section: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Key, value, default and meaning of every key of `section`, and of the sections inside it."""
    for key, facts in section["properties"].items():
        forms = facts.get("anyOf", [facts])  # a key may have several, such as a single mapping or a list of them
        references = [form.get("$ref") or form.get("items", {}).get("$ref") for form in (facts, *forms)]
        inner = next((reference.rpartition("/")[2] for reference in references if reference), None)
        if inner:
            yield f"**`{prefix}{key}`**", "", "", f"**{facts['description']}**"
            yield from _rows(f"{prefix}{key}.", sections[inner], sections)
            continue
        default = facts.get("default")
        written = default if isinstance(default, str) else json.dumps(default)
        values = dict.fromkeys(_describe_form(form) for form in forms if form.get("type") != "null")
        yield f"`{prefix}{key}`", " or ".join(values), "" if default is None else f"`{written}`", facts["description"]


def _describe_form(form: Mapping[str, Any]) -> str:
    """`whole number from 1`, `path`, or the legal words."""
    words = form.get("enum") or ([form["const"]] if "const" in form else [])
    if words:
        return ", ".join(f"`{word}`" for word in words)
    kind = "path" if form.get("format") == "path" else _TYPES[form["type"]]
    return " ".join([kind, *(text.format(form[bound]) for bound, text in _BOUNDS.items() if bound in form)])
