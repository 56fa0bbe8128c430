"""`finetune train`: train a classifier as a config says, or resume an interrupted run."""

import argparse

from finetune.cli.options import add_assert_accuracy, add_config, positive_int


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
    add_assert_accuracy(parser)


def run(arguments: argparse.Namespace) -> int:
    from finetune.training import run_training

    if arguments.output:
        arguments.overrides.append(f"output={arguments.output}")
    return run_training(
        arguments.config,
        arguments.overrides,
        resume=arguments.resume,
        accept_data_change=arguments.accept_data_change,
        break_lock=arguments.break_lock,
        nproc=arguments.nproc,
        assert_accuracy=arguments.assert_accuracy,
        words=arguments.words,
        quiet=arguments.quiet,
    )
