"""`finetune init`: write a config for a folder of images.

    print(suggest_config(Path("photos")))

Only names, counts and the headers of a few images are looked at, so this takes a moment even for a million
files; whether every image can be read is checked when training starts.
"""

import argparse
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import yaml

from finetune.config import DataConfig
from finetune.data import LAYOUT, SPLITS, Listing, list_source, require_two_classes, typical_size
from finetune.utils import DataError, Terminal, UsageError, explain_os_errors, printable

LISTED = 30  # classes named in the comment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune init photos/"
    parser.add_argument("folder", type=Path, help="a folder with one folder per class")
    parser.add_argument("target", type=Path, nargs="?", help="the new config (default: the folder's name with .yaml)")


def run(arguments: argparse.Namespace) -> None:
    target = write_config(arguments.folder, arguments.target)
    Terminal(quiet=arguments.quiet).say(f"Wrote {target}\nNext: finetune train {target}")


def suggest_config(folder: Path, target: Path | None = None) -> str:
    """A commented config for the images in `folder`, as YAML that `load_config` accepts.

    With `target`, the file it is meant for, a folder below that file is named relative to it, so that both
    can move together. Raises DataError with the expected layout when the folder has no class folders.
    """
    listing = list_source(DataConfig(folder=folder))
    require_two_classes(listing, hint=LAYOUT)
    lines = [*_header(folder, target, listing), *_data(folder, target, listing)]
    lines += ["model:", "  backbone: efficientnet_lite0        # `finetune backbones` lists all"]
    lines += _size(listing)
    return "\n".join([*lines, PHASES]) + "\n"


def write_config(folder: Path, target: Path | None = None) -> Path:
    """Write `suggest(folder)` to `target` (by default the folder's name with .yaml, here) and return it.

    UsageError if there is a file already.
    """
    target = target or Path(f"{folder.resolve().name}.yaml")
    text = suggest_config(folder, target)
    with explain_os_errors(target):
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UsageError(f"{target} exists already", hint="Remove it or name another file.") from None
    return target


def _header(folder: Path, target: Path | None, listing: Listing) -> list[str]:
    """What the folder holds, as a comment, and what is worth a second look."""
    name = printable(folder.resolve().name)
    counts = np.bincount(listing.labels, minlength=len(listing.classes))
    lines = [f"{name}: {len(listing.names):,} images in {len(counts):,} classes."]
    lines += [f"  finetune train {shlex.quote(printable(target or f'{name}.yaml'))}"]
    lines += ["Measured: not measured yet", ""]
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
    return [f"# {line}".rstrip() for line in lines]


def _data(folder: Path, target: Path | None, listing: Listing) -> list[str]:
    lines = ["data:", f"  folder: {_quoted(_path(folder, target))}"]
    counts = {split: int((listing.splits == number).sum()) for number, split in enumerate(SPLITS)}
    if counts["validation"]:
        parts = " ".join(f"{split} {count:,}" for split, count in counts.items() if count)
        return [*lines, f"  # the folder's own splits are used: {parts}"]
    return [*lines, "  split: {train: 0.8, validation: 0.1, test: 0.1}     # fractions of each class"]


def _size(listing: Listing) -> list[str]:
    """The usual size of the images, and a smaller input where they are small."""
    size = typical_size([listing.root / name for name in listing.names])
    if size is None:
        return []
    width, height = size
    note = f"typical size {width} x {height}"
    if min(width, height) <= 64:
        return [f"  image_size: 96                      # {note}: a small input is faster"]
    if max(width, height) > 2 * min(width, height):
        return [f"  resize: pad                         # {note}: long images, kept whole"]
    return [f"  # {note}"]


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


def _path(folder: Path, target: Path | None) -> str:
    """The folder relative to the config file if it is below it, else absolute."""
    absolute = Path(os.path.abspath(folder))
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
