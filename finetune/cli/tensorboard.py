"""`finetune tensorboard`: learning curves and images of runs in the browser."""

import argparse
import os
import sys
from pathlib import Path

from finetune.utils import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune tensorboard runs"
    text = "a run, or the folder of the runs (default: %(default)s)"
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help=text)
    parser.add_argument("--host", default="localhost", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=6006, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    """Does not return: TensorBoard takes the place of this process."""
    if not arguments.folder.is_dir():
        raise UsageError(
            f"{arguments.folder}: no such folder, so there is nothing to show.",
            hint="finetune tensorboard takes a run folder, or the folder of the runs (default: runs).",
        )
    options = ["--logdir", str(arguments.folder), "--host", arguments.host, "--port", str(arguments.port)]
    every_epoch = ["--samples_per_plugin", "images=1000"]  # by default TensorBoard shows ten of a series
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *options, *every_epoch])
