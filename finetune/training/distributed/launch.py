"""Several processes on this machine that train together, to try that out: `finetune train CONFIG --nproc 2`.

code = run_local_processes(2, ["train", "digits"])      # starts them, waits, and returns their exit code
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO

from finetune.utils import ResourceError

PATIENCE = 40.0  # seconds in which the others notice by themselves that one has ended, and say so


@dataclass(frozen=True)
class Worker:
    """One of the processes; `output` is None for rank 0, which writes to the terminal."""

    rank: int
    process: "subprocess.Popen[bytes]"
    output: IO[bytes] | None


def run_local_processes(count: int, words: Sequence[str]) -> int:
    """Runs `finetune WORDS` in `count` processes of this machine that train together; returns their exit code.

    Rank 0 writes to the terminal. When one is killed, the others notice and end too; those that do not are killed.
    Raises ResourceError for one that was killed or has crashed.
    """
    with ExitStack() as stack:
        environments = local_process_environments(count)
        workers = [stack.enter_context(_start(rank, place, words)) for rank, place in enumerate(environments)]
        signals = stack.enter_context(_pass_signals_on(workers))
        failed = _wait(workers)
        if failed is None:
            return 0
        if signals:
            return 128 + signals[0]
        return _explain(failed, workers)


def local_process_environments(count: int) -> list[dict[str, str]]:
    """The variables that give each of `count` processes on this machine its place, at ports that were free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    configs = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}} for rank in range(count)]
    return [{"TF_CONFIG": json.dumps(config), "LOCAL_RANK": str(rank)} for rank, config in enumerate(configs)]


@contextmanager
def _start(rank: int, place: Mapping[str, str], words: Sequence[str]) -> Iterator[Worker]:
    command = [sys.executable, "-m", "finetune.cli", *words]
    with tempfile.TemporaryFile() as file:
        output = file if rank else None
        try:
            process = subprocess.Popen(
                command, env={**os.environ, **place}, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise ResourceError(f"cannot start a process: {error}") from None
        try:
            yield Worker(rank, process, output)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _pass_signals_on(workers: Sequence[Worker]) -> Iterator[list[int]]:
    """SIGTERM and SIGHUP are sent on to the workers, Ctrl-C reaches them by itself; yields those that came."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            return
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.process.send_signal(number)

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[Worker]) -> Worker | None:
    """Waits until all have ended; the first that failed, or None."""
    failed: Worker | None = None
    deadline = float("inf")
    while True:
        running = [worker for worker in workers if worker.process.poll() is None]
        if failed is None:
            failed = next((worker for worker in workers if worker.process.returncode), None)
            if failed:
                deadline = time.monotonic() + PATIENCE
        if not running:
            return failed
        if time.monotonic() > deadline:
            for worker in running:
                worker.process.kill()
        time.sleep(0.1)


def _explain(failed: Worker, workers: Sequence[Worker]) -> int:
    """The exit code of all; ResourceError where rank 0 could not say what was wrong."""
    code = failed.process.returncode
    reported = workers[0].process.returncode > 0  # rank 0 has reported what was wrong
    if code > 0 and reported:
        return code
    if code < 0:
        name = signal.Signals(-code).name
        message = f"process {failed.rank} of {len(workers)} (id {failed.process.pid}) was ended by {name}"
    else:
        message = f"process {failed.rank} of {len(workers)} ended with exit code {code}"
    if failed.output and not reported:
        failed.output.seek(0)
        lines = failed.output.read().decode("utf-8", "replace").strip().splitlines()
        message += "".join(f"\n  {line}" for line in lines[-5:])
    raise ResourceError(message, hint="The others were ended too. Start again with --resume to go on.")
