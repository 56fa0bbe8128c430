"""A config for images that have none: a folder or a table is looked at, and what is worth deciding is written down.

    text = suggest_config(Path("photos"))                                  commented YAML: `finetune init photos/`
    config = load_config(config_source("photos/", overrides), overrides)   the same in memory: `finetune train photos/`

Only names, counts and the headers of a few images are looked at, so this takes a moment even for a million files;
whether every image can be read is checked when training starts. What training would refuse is refused here.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.config import DataConfig, default_name, load_config, shipped_configs
from finetune.data.inspection import typical_size
from finetune.data.labels import label_type_of
from finetune.data.listing import Listing
from finetune.data.opening import check_listing
from finetune.data.problems import join_some
from finetune.data.sources import list_source
from finetune.data.splits import SPLITS, TRAIN, UNASSIGNED
from finetune.data.tables import guess_columns
from finetune.utils import DataError, UsageError, printable

LISTED = 30  # classes named in the comment
TABLE_SUFFIXES = (".csv", ".tsv")

PHASES = """\
# The rest is chosen from your images when training begins, and printed with its reasons (recipe: auto).
# To decide yourself, remove the # signs; a key that is written is not changed:
# augment: light                       # none, light, standard, strong
# head:
#   epochs: 10
#   learning_rate: 1e-3
# fine_tune:                           # or  fine_tune: none  to train the head only
#   unfreeze: 3 blocks
#   epochs: 10
#   learning_rate: 1e-4"""


def config_source(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> str | Path | Mapping[str, Any]:
    """`source` as `load_config` takes it: for a folder of images or a table, the config that `init` would write.

    The name of a shipped config means that config, also beside a folder of that name. Raises what `suggest_config`
    raises, and UsageError for the folder of a run.
    """
    if not isinstance(source, str | Path) or str(source) in shipped_configs():  # others are for `load_config` to judge
        return source
    path = Path(source).expanduser()
    if (path / "config.yaml").is_file():
        shown = printable(path)
        hint = f"To continue it: finetune train --resume {shown}\n  To train again: finetune train {shown}/config.yaml"
        raise UsageError(f"{shown} is a run, not a config or a folder of images.", hint=hint)
    if not path.is_dir() and path.suffix.lower() not in TABLE_SUFFIXES:
        return source
    return {"name": default_name(_name(path)), **yaml.safe_load(suggest_config(path, overrides=overrides))}


def suggest_config(source: Path, target: Path | None = None, overrides: Sequence[str] = ()) -> str:
    """A commented config for the images in a folder or a table, as YAML that `load_config` accepts.

    With `target`, the file it is meant for, a source below that file is named relative to it, so that both can move
    together. Of `overrides` those of `data` count. Raises DataError for what training would refuse, with the expected
    layout, and where it cannot be known which folders are the classes.
    """
    kind = "folder" if source.is_dir() or source.suffix.lower() not in TABLE_SUFFIXES else "csv"
    data = {kind: str(source.absolute()), **(guess_columns(source) if kind == "csv" else {})}
    config = load_config({"data": data}, [text for text in overrides if text.strip().startswith("data.")])
    listing = list_source(config.data)
    if kind == "folder" and "class_level" not in config.data.model_fields_set:
        _ask_which_level(source, listing)
    check_listing(listing, config)
    place = listing.root if kind == "folder" and target else source  # without a file, training says what it has opened
    lines = [*_header(source, target, listing), *_data(kind, place, target, config.data, listing)]
    lines += ["model:", "  backbone: efficientnet_lite0        # `finetune backbones` lists all"]
    lines += _size(listing)
    return "\n".join([*lines, PHASES]) + "\n"


def _ask_which_level(folder: Path, listing: Listing) -> None:
    """DataError if some of the uppermost folders hold only folders: these may be the classes as well."""
    depth = 1 if (listing.splits != UNASSIGNED).any() else 0
    paths = {name.rpartition("/")[0].split("/", depth)[depth] for name in listing.names}
    uppermost = sorted({path.partition("/")[0] for path in paths})
    if paths.issuperset(uppermost):
        return
    raise DataError(
        f"{printable(folder)}: which folders are the classes? {len(uppermost):,} are uppermost "
        f"({join_some(uppermost, 3)}), and {len(paths):,} hold the images ({join_some(sorted(paths), 3)}).",
        hint=f"Add data.class_level=1 for the {len(uppermost):,}, data.class_level=last for the {len(paths):,}, "
        "or 2, 3 ... for a level between.",
    )


def _header(source: Path, target: Path | None, listing: Listing) -> list[str]:
    """What there is, as a comment, and what is worth a second look."""
    name = printable(_name(source))
    counts = label_type_of(listing.labels).counts(listing.labels, len(listing.classes))
    lines = [f"{name}: {len(listing.names):,} images in {len(counts):,} classes."]
    lines += [f"  finetune train {shlex.quote(printable(target or f'{name}.yaml'))}", ""]
    lines += [f"  {count:8,}  {label}" for label, count in zip(listing.classes[:LISTED], counts, strict=False)]
    if len(counts) > LISTED:
        lines.append(f"            ... and {len(counts) - LISTED:,} more classes")
    most, least = counts.argmax(), counts.argmin()
    if counts[least] < 20:
        lines.append(
            f"Few images: {listing.classes[least]} has {counts[least]}. Twenty or more per class is a good start."
        )
    if counts[most] > 10 * counts[least]:
        factor = counts[most] / counts[least]
        lines.append(f"Uneven: {listing.classes[most]} has {factor:.0f} times as many as {listing.classes[least]}.")
    lines += [f"Note: {warning}." for warning in listing.warnings]
    return [f"# {line}".rstrip() for line in lines]


def _data(kind: str, place: Path, target: Path | None, config: DataConfig, listing: Listing) -> list[str]:
    """The section `data`, which says what is what where the images are divided already."""
    lines = ["data:", f"  {kind}: {_quoted(_path(place, target))}"]
    values = config.model_dump(mode="json")
    for key in DataConfig.model_fields:
        if key in config.model_fields_set and key not in (kind, "split", "held_out"):
            lines.append(f"  {key}: {json.dumps(values[key], ensure_ascii=False)}")
    counts = {split: int((listing.splits == number).sum()) for number, split in enumerate(SPLITS)}
    given = [split for split, count in counts.items() if count]
    fractions = json.dumps(values["split"]).replace('"', "")
    if given in ([], [SPLITS[TRAIN]]):
        return [*lines, f"  split: {fractions}     # fractions of the images"]
    parts = ", ".join(f"{split} {counts[split]:,}" for split in given)
    lines.append(f"  # These images are divided already: {parts}.")
    if len(given) == 2:
        missing = next(split for split in SPLITS if split not in given)
        lines.append(f"  held_out: {given[1]}                      # the only split beside train; or: {missing}")
        lines.append(f"  split: {fractions}     # by these fractions {missing} is cut from train")
    return lines


def _size(listing: Listing) -> list[str]:
    """The usual size of the images, and a smaller input where they are small."""
    size = typical_size([os.path.join(listing.root, name) for name in listing.names])
    if size is None:
        return []
    width, height = size
    note = f"typical size {width} x {height}"
    if min(width, height) <= 64:
        return [f"  image_size: 96                      # {note}: a small input is faster"]
    if max(width, height) > 2 * min(width, height):
        return [f"  resize: pad                         # {note}: long images, kept whole"]
    return [f"  # {note}"]


def _name(source: Path) -> str:
    """The name of a folder, or of a table without its ending."""
    path = source.resolve()
    return path.stem if path.suffix.lower() in TABLE_SUFFIXES else path.name


def _path(place: Path, target: Path | None) -> str:
    """The folder or table relative to the config file if it is below it, else absolute."""
    absolute = Path(os.path.abspath(place))
    beside = Path(os.path.abspath(target)).parent if target else None
    if beside and absolute.is_relative_to(beside):
        return absolute.relative_to(beside).as_posix()
    return str(absolute)


def _quoted(text: str) -> str:
    """A path as YAML: plain where that is safe, else quoted (a JSON string is a YAML string)."""
    if not text.isprintable():
        raise DataError(f"{printable(text)}: this name cannot stand in a text file", hint="Rename the folder.")
    safe = re.fullmatch(r"[\w/.-]+", text, re.ASCII) and yaml.safe_load(text) == text
    return text if safe else json.dumps(text, ensure_ascii=False)
