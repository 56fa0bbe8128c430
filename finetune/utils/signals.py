"""Stopping without losing work: a signal sets a flag, and the work looks at it where it can stop.

    with stop_on_signals() as stop:
        for batch in batches:
            train(batch)
            stop.check()        # raises Stopped after a signal

| signal          | the first time                     | again                                                |
|-----------------|------------------------------------|------------------------------------------------------|
| SIGINT (Ctrl-C) | flag; ends at the next check (130) | KeyboardInterrupt at once; a third kills the process |
| SIGTERM, SIGHUP | flag; ends at the next check (143) | nothing new                                          |

The handlers do nothing else, so a file that is being saved when the signal comes is saved whole. Work that never
reaches a check, because it waits for a dead disk, is ended by SIGKILL, which schedulers send after some time; no
file is torn by that either (see `finetune.utils.io`).
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import FrameType
from typing import Any, TextIO, cast

from finetune.utils.errors import Stopped

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_active: "Stop | None" = None
_exits_at_once = False


class Stop:
    """`requested` is None, or the name of the first signal that came."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def check(self, hint: str = "") -> None:
        """Raise Stopped (exit code 130 for SIGINT, else 143) if a signal came; `hint` says how to resume."""
        if self.requested:
            code = 130 if self.requested == "SIGINT" else 143
            raise Stopped(f"stopped by {self.requested}", hint=hint, exit_code=code)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the third kills even where no Python code runs
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch the signals until the end of the block, then restore the old handlers.

    Nested blocks use one Stop, so that a signal stops everything. Signals that the parent process ignores (nohup)
    stay ignored. Outside the main thread Python allows no handlers: nothing is caught. A signal that the block did
    not act on is raised as Stopped at its end, never lost.
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
    handlers = {number: signal.getsignal(number) for number in numbers}
    caught = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        _active = stop
        for number in caught:
            signal.signal(number, stop.handle)
        yield stop
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
        _active = None
    stop.check()


def exit_at_once() -> None:
    """The process shall end without Python's clean-up, where threads of a library would wait for ever."""
    global _exits_at_once
    _exits_at_once = True


def exits_at_once() -> bool:
    """Whether `exit_at_once` was called; the command line then ends with `os._exit`."""
    return _exits_at_once


@contextmanager
def survive_closed_output() -> Iterator[None]:
    """Let the block continue when the reader of stdout or stderr closes it (`| head`, a closed terminal)."""
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is not None:
                stack.enter_context(redirect(cast(TextIO, _SurvivingStream(stream))))
        yield


class _SurvivingStream:
    """A text stream that, once its reader is gone, writes to the null device instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._redirect_to_null()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._redirect_to_null()

    def _redirect_to_null(self) -> None:
        """Replace the file descriptor itself, so that buffered text and what C++ prints vanish as well."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
