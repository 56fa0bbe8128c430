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
from collections import Counter
from pathlib import Path

import yaml

from finetune.data import list_images, typical_size
from finetune.utils import DataError, Terminal, UsageError, explain_os_errors, printable

LAYOUT = """One folder per class is expected:
    {folder}/
      cat/  1.jpg  2.jpg ...
      dog/  1.jpg  2.jpg ...
  or the same inside train/, val/ and, if you like, test/:
    {folder}/
      train/  cat/ ...  dog/ ...
      val/    cat/ ...  dog/ ..."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LISTED = 30  # classes named in the comment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune init photos/"
    parser.add_argument("folder", type=Path, help="a folder with one folder per class")
    parser.add_argument("target", type=Path, nargs="?", help="the new config (default: the folder's name with .yaml)")


def run(arguments: argparse.Namespace) -> None:
    target = write_config(arguments.folder, arguments.target)
    Terminal(quiet=arguments.quiet).say(f"Wrote {target}\nNext: finetune train {target}")


def suggest_config(folder: Path, target: Path | None = None) -> str:
    """A commented config for the images in `folder`, as YAML that `config.load` accepts.

    With `target`, the file it is meant for, a folder below that file is named relative to it, so that both
    can move together. DataError draws the expected layout when the folder has no class folders.
    """
    counts, names = _count(folder)
    lines = [*_header(folder, target, counts), *_data(folder, target, counts)]
    lines += ["model:", "  backbone: efficientnet_lite0        # `finetune backbones` lists all"]
    lines += _size(folder, names)
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


def _count(folder: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Images by (split, class), the split "" where the folder has none; and the names of those images."""
    shown = printable(folder)
    layout = LAYOUT.format(folder=printable(folder.name or "photos"))
    if not folder.is_dir():
        raise DataError(f"{shown}: there is no such folder", hint=layout)
    found, left_out = list_images(folder)
    if not found:
        reasons = "".join(f"; left out: {count} {why}" for why, count in left_out.most_common())
        raise DataError(f"{shown}: no images in it{reasons}", hint=layout)
    split_by_folder = any(SPLITS.get(name.split("/")[0].lower()) == "train" for name in found)
    depth = 3 if split_by_folder else 2
    names = [name for name in found if name.count("/") >= depth - 1]
    counts = Counter(_place(name, split_by_folder) for name in names)
    classes = sorted({label for _, label in counts})
    if len(classes) < 2:
        alone = [f"only one class folder, {printable(label)}" for label in classes]
        what = alone[0] if alone else f"{len(found)} images but no class folders"
        raise DataError(f"{shown}: {what}; a classifier needs 2 classes or more", hint=layout)
    return counts, names


def _place(name: str, split_by_folder: bool) -> tuple[str, str]:
    first, second = name.split("/")[:2]
    return (SPLITS.get(first.lower(), first), second) if split_by_folder else ("", first)


def _of_split(counts: Counter[tuple[str, str]], split: str) -> Counter[str]:
    """Images by class in one split; all of them where there are no splits."""
    return Counter({label: count for (part, label), count in counts.items() if part in (split, "")})


def _header(folder: Path, target: Path | None, counts: Counter[tuple[str, str]]) -> list[str]:
    """What was found, as a comment, and what is worth a second look."""
    by_class: Counter[str] = Counter()
    for (_, label), count in counts.items():
        by_class[label] += count
    name = printable(folder.resolve().name)
    lines = [f"{name}: {counts.total():,} images in {len(by_class):,} classes."]
    lines += [f"  finetune train {shlex.quote(printable(target or f'{name}.yaml'))}"]
    lines += ["Measured: not measured yet", ""]
    lines += [f"  {count:8,}  {printable(label)}" for label, count in sorted(by_class.items())[:LISTED]]
    if len(by_class) > LISTED:
        lines.append(f"            ... and {len(by_class) - LISTED:,} more classes")
    (most, high), (least, low) = by_class.most_common(1)[0], by_class.most_common()[-1]
    if low < 20:
        lines.append(f"Few images: {printable(least)} has {low}. Twenty or more per class is a good start.")
    if high > 10 * low:
        lines.append(f"Uneven: {printable(most)} has {high / low:.0f} times as many as {printable(least)}.")
    return [f"# {line}".rstrip() for line in lines]


def _data(folder: Path, target: Path | None, counts: Counter[tuple[str, str]]) -> list[str]:
    lines = ["data:", f"  folder: {_quoted(_path(folder, target))}"]
    splits = {split for split, _ in counts}
    if "validation" in splits:
        parts = " ".join(f"{split} {sum(_of_split(counts, split).values()):,}" for split in sorted(splits))
        return [*lines, f"  # the folder's own splits are used: {parts}"]
    return [*lines, "  split: {train: 0.8, validation: 0.1, test: 0.1}     # shares of each class"]


def _size(folder: Path, names: list[str]) -> list[str]:
    """The usual size of the images, and a smaller input where they are small."""
    size = typical_size([folder / name for name in names])
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
# To decide yourself, take the marks away; a section that is written is yours:
# augment: light                       # none, light, standard, strong
# head:
#   epochs: 10
#   learning_rate: 1e-3
# fine_tune:                           # leave out to train the head only
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
