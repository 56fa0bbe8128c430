"""`finetune tensorboard`: learning curves and images of runs in the browser."""

import argparse
import io
import time
from contextlib import redirect_stderr
from pathlib import Path

from finetune.utils import ResourceError, Terminal, UsageError, silence_cpp_logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune tensorboard runs"
    text = "a run, or the folder of the runs (default: %(default)s)"
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help=text)
    parser.add_argument("--host", default="localhost", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=6006, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    """Serves TensorBoard until Ctrl-C. Raises ResourceError where it cannot start, such as at a port in use."""
    if not arguments.folder.is_dir():
        raise UsageError(
            f"{arguments.folder}: no such folder, so there is nothing to show.",
            hint="finetune tensorboard takes a run folder, or the folder of the runs (default: runs).",
        )
    options = ["--logdir", str(arguments.folder), "--host", arguments.host, "--port", str(arguments.port)]
    every_epoch = ["--samples_per_plugin", "images=1000"]  # by default TensorBoard shows ten of a series
    with silence_cpp_logs():  # TensorBoard imports TensorFlow, which says eight lines about GPUs that are not there
        from tensorboard import default, program

        server = program.TensorBoard(default.get_plugins())
        server.configure(argv=["tensorboard", *options, *every_epoch])
        try:
            with redirect_stderr(io.StringIO()):  # a note about how it loads its data
                address = server.launch()
        except program.TensorBoardServerException as error:
            raise ResourceError(f"TensorBoard cannot start: {error.msg}", hint="--port chooses another port.") from None
        Terminal(quiet=arguments.quiet).head(f"{address}   Ctrl-C ends it")
        while True:
            time.sleep(3600)
