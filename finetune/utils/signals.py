"""Stopping politely: a signal sets a flag, and the work looks at it where it can stop and lose nothing.

    with signals.graceful() as stop:
        for batch in batches:
            train(batch)
            stop.check()        # raises errors.Stopped once somebody asked

| signal          | first                              | again                                               |
|-----------------|------------------------------------|-----------------------------------------------------|
| SIGINT (Ctrl-C) | flag; ends at the next check (130) | KeyboardInterrupt at once; a third ends the process |
| SIGTERM, SIGHUP | flag; ends at the next check (143) | nothing new; after `PATIENCE` seconds it ends so    |

The handlers do nothing else, so a save that is going on when the signal comes ends whole. Work that reaches no check,
because it waits for a dead disk, is ended from outside: nobody may be there to press Ctrl-C twice.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, TextIO, cast

from finetune.utils.errors import Stopped
from finetune.utils.io import saving

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
PATIENCE = 10.0  # seconds in which the work has to stop by itself
MORE_PATIENCE = 50.0  # for a save that is going on
HANGS = (
    "something hangs (a disk or network drive that does not answer?), so the process was ended.\n"
    "  Everything up to the last checkpoint is saved; `--resume` goes on from there."
)
_active: "Stop | None" = None


class Stop:
    """`requested` is None, or the name of the first signal that asked to stop."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._deadline = math.inf  # on the monotonic clock: from then on the work is late

    def check(self, hint: str = "") -> None:
        """Raise Stopped (exit code 130 for SIGINT, else 143) if a signal came; `hint` says how to go on."""
        if self.requested:
            code = 130 if self.requested == "SIGINT" else 143
            raise Stopped(f"stopped by {self.requested}", hint=hint, exit_code=code)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third needs no Python to act: it ends all
            raise KeyboardInterrupt
        if number != signal.SIGINT:
            self._deadline = min(self._deadline, time.monotonic() + PATIENCE)
        self.requested = self.requested or signal.Signals(number).name

    def insist(self, ended: threading.Event) -> None:
        """In a thread: ends the process when the work is late; what was committed is whole, as after kill -9."""
        while not ended.wait(0.2):
            late = time.monotonic() - self._deadline
            if late > (MORE_PATIENCE if saving() else 0):
                with suppress(OSError):
                    os.write(2, f"error: stopped by {self.requested}: {HANGS}\n".encode())
                os._exit(143)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch the signals until the end of the block, then put the old handlers back.

    Inside another `graceful` it yields the same Stop, so one request stops everything. Signals that the
    parent ignores (nohup) stay ignored. Outside the main thread Python allows no handlers: nothing is caught.
    A request that the block did not act on is raised at its end: it is never lost.
    """
    global _active
    if _active is not None:
        yield _active
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    caught = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    ended = threading.Event()
    threading.Thread(target=stop.insist, args=(ended,), name="watchdog", daemon=True).start()
    try:
        _active = stop
        for number in caught:
            signal.signal(number, stop.handle)
        yield stop
    finally:
        ended.set()
        for number, old in caught.items():
            signal.signal(number, old)
        _active = None
    stop.check()


@contextmanager
def survive_closed_output() -> Iterator[None]:
    """Let the block go on when the reader of stdout or stderr goes away (`| head`, a closed terminal)."""
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is not None:
                stack.enter_context(redirect(cast(TextIO, _Surviving(stream))))
        yield


class _Surviving:
    """A text stream that, once its reader is gone, sends everything to the null device instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Replaced below Python, so that its buffer and what C++ prints go there as well."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
