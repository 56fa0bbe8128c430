"""The command `finetune`: parses the command line, runs one command, and turns errors into messages and exit codes.

Every command is one file beside this one, with two functions:

    add_arguments(parser)          its options, and `parser.epilog`, an example
    run(arguments) -> int | None   its call and what it prints; None is exit code 0, an error is raised

A new command is such a file and a line in `COMMANDS`. Only the file of the command that is called is imported.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import finetune
from finetune.cli.options import add_common
from finetune.utils import (
    FinetuneError,
    PartlyDone,
    ResourceError,
    did_you_mean,
    exits_at_once,
    separate_stderr,
    show_start,
)

COMMANDS = {
    "train": "train a classifier",
    "sweep": "try many settings and train the best",
    "predict": "predict the classes of images",
    "explain": "show where in an image a class was seen",
    "evaluate": "measure a classifier on labelled images",
    "export": "write a classifier for other programs",
    "demo": "open a page in the browser to try a classifier",
    "serve": "serve a classifier to programs, over HTTP",
    "compare": "compare finished runs",
    "check": "find what could go wrong, without training",
    "preview": "draw what goes into a training, a sheet per class",
    "zeroshot": "see what an ImageNet network knows of your folders",
    "backbones": "list the pretrained networks, or describe one",
    "init": "write a config for a folder of images",
    "tensorboard": "show the progress of runs in the browser",
    "cache": "list or clear what is cached",
    "weights": "list, fetch and verify the weights of networks",
    "schema": "print the JSON schema of config files",
}
EXAMPLES = """examples:
  finetune train digits                       a first run, without a download
  finetune init photos/                       a config for a folder of images
  finetune check photos.yaml                  problems, and how long it will take
  finetune train photos.yaml head.epochs=5    any value can be overridden
  finetune train --resume runs/photos-1       continue after an interruption
  finetune sweep photos.yaml --set head.learning_rate=1e-4..1e-2 --trials 20
  finetune predict dog.jpg                    1000 ImageNet classes, no training
  finetune predict photos/ --model runs/photos-1 --json
  finetune explain dog.jpg --class beagle     where in the image it was seen
  finetune evaluate runs/photos-1
  finetune export runs/photos-1 --format litert --quantize int8
  finetune demo runs/photos-1                 a page in the browser
  finetune serve runs/photos-1                the same for programs
  finetune backbones resnet50
  finetune tensorboard
"""
INTERRUPTED = 130, 143  # Ctrl-C, SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. The `finetune` script calls it without `argv`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError):  # there may be no stream, or nobody to read it
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # not every terminal has an ü
        separate_stderr()
        os.environ["MPLBACKEND"] = "agg"  # `!finetune` inherits that of the notebook, which may not be installed here
    arguments = parse(words)
    code = _run(arguments)
    if argv is None and (code in INTERRUPTED or exits_at_once()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, AttributeError):  # closed, or no stream at all
                stream.flush()
        os._exit(code)  # whatever the threads do: one may hang in a dead disk
    return code


class Parser(argparse.ArgumentParser):
    """Names the nearest of the right words beside a wrong one."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"[^', ]+", wrong[2]))
        super().error(message)


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with all commands; only those named in `words` have their options."""
    parser = Parser(
        prog="finetune",
        description="Transfer learning for image classification, from one YAML file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(debug=False, words=list(words), parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in words:
            import_module(f"finetune.cli.{name}").add_arguments(command)
            add_common(command)
            command.set_defaults(parser=command)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments. A `key=value` may also stand behind an option, where argparse alone does not accept it."""
    parser = build_parser(words)
    arguments, rest = parser.parse_known_args(words)
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word or "overrides" not in arguments]:
        options = re.findall(r"--[\w-]+", arguments.parser.format_usage())
        near = did_you_mean(unknown[0].partition("=")[0], options)
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}.{near}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    """Run the command; every exception becomes a message on standard error and an exit code."""
    if arguments.version:
        print(f"finetune {finetune.__version__}")
        return 0
    if not arguments.command:
        build_parser([]).print_help()
        return 2
    if arguments.debug:
        os.environ["FINETUNE_DEBUG"] = "1"
    try:
        with show_start(quiet=arguments.quiet):
            code = import_module(f"finetune.cli.{arguments.command}").run(arguments) or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # here a closed pipe is quiet; at the end of the interpreter it is not
    except FinetuneError as error:
        if arguments.debug:
            raise
        _print_error(str(error) if isinstance(error, PartlyDone) else f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("stopped")
        return 130
    except (BrokenPipeError, SystemExit):  # whoever read our output has closed it; rich turns that into SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("finetune"):
            _print_error(f"error: the package {error.name} is missing.\n  pip install --upgrade finetune")
            return ResourceError.exit_code
        return _report_bug(error)
    return int(code)


def _print_error(text: str) -> None:
    with suppress(OSError, AttributeError):  # nobody to read it, or no standard error at all
        encoding = sys.stderr.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def _report_bug(error: Exception) -> int:
    """A bug of ours: write what is needed to fix it to a file, and print one message."""
    import tempfile
    import traceback

    details = "To see the details, add --debug to the command."
    with suppress(OSError):  # a full disk, say
        with tempfile.NamedTemporaryFile("w", prefix="finetune-bug-", suffix=".txt", delete=False) as file:
            file.write(f"finetune {finetune.__version__}, Python {sys.version}\ncommand: {sys.argv[1:2]}\n\n")
            file.write("".join(traceback.format_exception(error)))
        details = f"The details are in {file.name}; --debug shows them here."
    _print_error(f"error: this is a bug in finetune: {type(error).__name__}: {error}\n  {details}")
    return 1
