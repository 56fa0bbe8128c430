"""Options of several commands, and the types of their values: each stands here once.

def add_arguments(parser):
    add_config(parser)
    add_json(parser)
    parser.add_argument("--top", type=positive_int, default=5)
"""

import argparse
from pathlib import Path

DEFAULT_BACKBONE = "efficientnet_lite0"
IMAGE_INPUTS = "IMAGE|FOLDER|GLOB"


def add_common(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--debug`, which every command has."""
    parser.add_argument("--debug", action="store_true", help="show TensorFlow's messages and Python tracebacks")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def add_config(
    parser: argparse.ArgumentParser, *, overrides: str = "values that replace those of the file", required: bool = True
) -> None:
    """`CONFIG [key=value ...]`; the overrides may also stand behind other options (see `cli.main.parse`)."""
    text = "a YAML file, the name of a shipped config (digits, flowers), or a folder or CSV of images"
    parser.add_argument("config", nargs=None if required else "?", help=text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)


def add_classifier(parser: argparse.ArgumentParser) -> None:
    """The classifier as a positional argument."""
    parser.add_argument("model", metavar="RUN|BACKBONE", help="a run folder, a model file, or the name of a backbone")


def add_model(parser: argparse.ArgumentParser, metavar: str = "RUN|BACKBONE") -> None:
    """`--model`: the classifier as an option, by default the ImageNet classifier of the default backbone."""
    parser.add_argument(
        "--model", default=DEFAULT_BACKBONE, metavar=metavar, help="the classifier (default: %(default)s)"
    )


def add_json(parser: argparse.ArgumentParser, text: str = "print everything as JSON on standard output") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def add_figure(parser: argparse._ActionsContainer, text: str) -> None:
    parser.add_argument("--figure", type=Path, metavar="PNG", help=text)


def add_output(parser: argparse._ActionsContainer, text: str, default: Path | None = None) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", default=default, help=text)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_images_per_class(parser: argparse.ArgumentParser, default: int) -> None:
    """`--images`: how many images of each class. `--pictures` is its name in earlier versions."""
    text = "images of each class (default: %(default)s)"
    hidden = argparse.SUPPRESS
    parser.add_argument("--images", type=positive_int, default=default, metavar="N", help=text)
    parser.add_argument("--pictures", dest="images", type=positive_int, default=hidden, metavar="N", help=hidden)


def add_assert_accuracy(parser: argparse.ArgumentParser) -> None:
    text = "exit with code 7 if the test accuracy is below this, such as 0.93"
    parser.add_argument("--assert-accuracy", type=fraction, metavar="FRACTION", help=text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1, such as 0.93")
    return value


def positive_int(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
