"""`finetune train`: train a classifier as a config says, or resume an interrupted run."""

import argparse
import json
from pathlib import Path

from finetune.cli.options import add_assert_accuracy, add_config, add_json, positive_int
from finetune.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune train photos/ head.epochs=5"
    add_config(parser, required=False)
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="resume RUN, or the newest run")
    parser.add_argument("--output", metavar="DIR", help="the folder of the run folders (default: runs)")
    text = "resume although another computer seems to use the run"
    parser.add_argument("--break-lock", action="store_true", help=text)
    text = "train with N processes on this machine, to try it out; for several machines, see docs/scale.md"
    parser.add_argument("--nproc", type=positive_int, default=1, metavar="N", help=text)
    parser.add_argument("--accept-data-change", action="store_true", help="resume although images have changed")
    text = "the folder of this run; with --resume, the run in it is resumed if it has begun (default: runs/NAME-n)"
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help=text)
    add_json(parser, "print the run's path and its report as JSON on standard output; --quiet prints the path alone")
    add_assert_accuracy(parser)


def run(arguments: argparse.Namespace) -> int:
    """Raises CheckFailed for a test accuracy below `--assert-accuracy`, after the run is told."""
    from finetune.training import run_training, train_on_this_machine

    if arguments.nproc > 1:
        return train_on_this_machine(arguments.nproc, arguments.words)
    if arguments.output:
        arguments.overrides.append(f"output={arguments.output}")
    result = run_training(
        arguments.config,
        arguments.overrides,
        resume=arguments.resume,
        accept_data_change=arguments.accept_data_change,
        break_lock=arguments.break_lock,
        run_dir=arguments.run_dir,
        words=arguments.words,
        quiet=arguments.quiet,
    )
    from finetune.evaluation import require_accuracy

    if result is None:  # another process speaks
        return 0
    if arguments.json:
        print_json({"run": str(result.run.path), **json.loads(result.run.report_json.read_text("utf-8"))})
    elif arguments.quiet:
        print(result.run.path)
    require_accuracy(result.metrics.accuracy if result.metrics else None, arguments.assert_accuracy)
    return 0
