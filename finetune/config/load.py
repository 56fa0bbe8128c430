"""From a file, a shipped name or a mapping to a checked `Config`, and back to YAML.

    config = load_config("configs/flowers.yaml", ["head.epochs=5"])     a file, or just "flowers" for a shipped one
    config = load_config({"data": {"folder": "photos"}})                the same from Python
    print(dump_config(config))

All mistakes of a file are reported at once, each with its line. Overrides win over the file, later ones over
earlier ones; a file wins over the one that it `extends`. Paths in a file are relative to that file; paths in an
override or from Python to the working directory. `~` and `${NAME}` (an environment variable) are expanded.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune.config.messages import explain_error
from finetune.config.schema import ONE_WORD, Config
from finetune.config.yaml_document import YamlDocument
from finetune.utils import ConfigError, did_you_mean

EXAMPLE = '{"head.epochs": 5}'


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str | Mapping[str, Any]] = ()) -> Config:
    """The config in a file, under a shipped name or in a mapping, with `key.path=value` or mappings as overrides.

    Raises ConfigError that lists every problem as `file.yaml:LINE: key.path: message`.
    """
    if isinstance(source, Mapping):
        document = YamlDocument.from_mapping(source)
    elif isinstance(source, str | Path):
        document = YamlDocument.from_file(find_config(source))
    else:
        raise ConfigError(f"a config is a YAML file, the name of a shipped one or a mapping, not {source!r:.100}")
    _extend(document)
    for text in override_texts(overrides):
        for section, key in ONE_WORD.items():  # so that an override may enter the section
            word = document.data.get(section)
            if isinstance(word, str):
                document.data[section] = {key: word}
        if document.data.get("fine_tune") in ("none", []):
            document.data["fine_tune"] = None
        document.override(text)
    document.expand_path(("data", "folder"))
    document.expand_path(("data", "csv"))
    document.expand_path(("model", "weights"), keep=("imagenet", "none"))
    document.expand_path(("output",), absolute=False)
    if document.data.get("name") is None:
        document.data["name"] = default_name(document.name)
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        for problem in error.errors():
            _, place = document.locate(problem["loc"])
            document.report(problem["loc"], explain_error(problem, Config, place.text))
        document.check()
        raise  # not reached: there was a problem
    document.check()
    return config


def _extend(document: YamlDocument, chain: Sequence[str] = ()) -> None:
    """Put what the file says that `document` extends below what it says itself; `chain` are the files on the way."""
    if document.data.get("extends") is not None:
        document.expand_path(("extends",), absolute=False)
        document.check()
    name = document.data.pop("extends", None)
    if name is None:
        return
    _, place = document.locate(("extends",))
    path = Path(place.where).parent / str(name)
    chain = [*chain, place.where]
    if os.path.abspath(path) in map(os.path.abspath, chain):
        document.report(("extends",), f"goes in a circle: {' -> '.join(filter(None, [*chain, str(path)]))}")
    elif not path.is_file():
        neighbours = [file.name for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)]
        document.report(("extends",), f"{path} is no config file.{did_you_mean(path.name, neighbours)}")
    document.check()
    base = YamlDocument.from_file(path)
    _extend(base, chain)
    for section, key in ONE_WORD.items():
        if isinstance(base.data.get(section), str):
            base.data[section] = {key: base.data[section]}
    document.extend(base)


def default_name(text: str) -> str:
    """`text`, the name of a file or folder, as the name of runs."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.+")[:100] or "run"


def override_texts(overrides: Iterable[str | Mapping[str, Any]], prefix: str = "") -> Iterator[str]:
    """All overrides as `key.path=value`: `{"head": {"epochs": 5}}` and `{"head.epochs": 5}` are `head.epochs=5`."""
    for override in overrides:
        if isinstance(override, str):
            yield override
        elif not isinstance(override, Mapping):
            raise ConfigError(f"an override is 'key=value' or a mapping such as {EXAMPLE}, not {override!r:.100}")
        else:
            for key, value in override.items():
                if isinstance(value, Mapping) and value:
                    yield from override_texts([value], f"{prefix}{key}.")
                    continue
                try:
                    yield f"{prefix}{key}={json.dumps(value, default=os.fspath, ensure_ascii=False)}"  # JSON is YAML
                except TypeError:
                    kind = type(value).__name__
                    raise ConfigError(f"override {prefix}{key}: {kind} is no value of a config") from None


def find_config(name: str | Path) -> Path:
    """The config file of that path, or the shipped one of that name. Raises ConfigError with near names."""
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        return path
    shipped = shipped_configs()
    if str(path.parent) in (".", "configs") and path.stem in shipped and path.suffix in ("", ".yaml"):
        return shipped[path.stem]
    neighbours = [entry.name for entry in path.parent.glob("*") if entry.suffix in (".yaml", ".yml") or entry.is_dir()]
    what = "is a folder, not a config" if path.is_dir() else "there is no such file"
    raise ConfigError(
        f"{path}: {what}.{did_you_mean(path.name, [*neighbours, *shipped])}",
        hint=f"Shipped: {', '.join(shipped)}. `finetune init FOLDER` writes one for your own images.",
    )


def shipped_configs() -> dict[str, Path]:
    """The configs that come with finetune, by name."""
    package = Path(__file__).parents[1]
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def dump_config(config: Config) -> str:
    """YAML with every value spelled out, null too: from any folder it loads to an equal config with no key open."""
    values = config.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = Config.model_json_schema()
    properties = schema["properties"]
    for section in ONE_WORD:
        properties[section]["anyOf"] = [{"type": "string"}, {"$ref": properties[section].pop("$ref")}]
    phases = properties["fine_tune"]
    phase = phases.pop("items")
    phases["anyOf"] = [phase, {"type": phases.pop("type"), "items": phase}, {"const": "none"}, {"type": "null"}]
    return schema


def flatten_config(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """("head.epochs", 20) for every value inside; a single `fine_tune` phase has no number in its key."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = {str(number): entry for number, entry in enumerate(value, start=1)}
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, entry in value.items():
        yield from flatten_config(entry, f"{key}.{name}" if key else name)
