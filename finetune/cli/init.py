"""`finetune init`: write a config for a folder or a table of images."""

import argparse
import shlex
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from finetune.utils import Terminal, UsageError, explain_os_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune init photos/"
    parser.add_argument(
        "source", type=Path, metavar="FOLDER|CSV", help="a folder with one folder per class, or a table"
    )
    text = "the new config (default: the name of the source with .yaml)"
    parser.add_argument("target", nargs="?", help=text)
    text = "values of the section data, such as data.class_level=last"
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help=text)


def run(arguments: argparse.Namespace) -> None:
    target, overrides = arguments.target, arguments.overrides
    if target and "=" in target:
        target, overrides = None, [target, *overrides]
    if others := [text for text in overrides if not text.startswith("data.")]:
        raise UsageError(f"init takes values of data only, not {others[0]}.", hint="Write others into the new config.")
    written = write_config(arguments.source, Path(target) if target else None, overrides)
    note = takewhile(lambda line: line.startswith("#"), written.read_text("utf-8").splitlines())
    terminal = Terminal(quiet=arguments.quiet)
    terminal.say("\n".join(line.removeprefix("#").removeprefix(" ") for line in note))
    terminal.say(f"Wrote {written}\nNext: finetune train {shlex.quote(str(written))}")


def write_config(source: Path, target: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Write `suggest_config(source)` to `target` (by default the name of the source with .yaml, here) and return it.

    UsageError if there is a file already.
    """
    from finetune.data import suggest_config

    name = source.resolve()
    target = target or Path(f"{name.name if name.is_dir() else name.stem}.yaml")
    text = suggest_config(source, target, overrides)
    with explain_os_errors(target):
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UsageError(f"{target} exists already", hint="Remove it or name another file.") from None
    return target
