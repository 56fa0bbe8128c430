"""What people see while they wait: messages, and how far a stage is, with the time left.

    with terminal.stage("Features") as update:
        update(done, total)

In a terminal a stage is a bar that is erased at its end. Elsewhere (a log file, a scheduler, `!finetune` in a notebook)
it is a line whenever nothing was printed for `SILENCE` seconds. All of it goes to standard error; standard output
belongs to results (`finetune predict --json | jq`), which `result_console` prints above a bar.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from finetune.utils.environment import in_notebook_shell
from finetune.utils.text import format_duration

ProgressCallback = Callable[[int, int | None], None]  # (done, total); total is None while it is not known

SILENCE = 25.0  # seconds; after so long without a line people ask whether it still works
SPEED_PERIOD = 120.0  # seconds over which the speed is averaged for the time left

_screen = Console(stderr=True, highlight=False, soft_wrap=True)  # one for all: what it prints stands above its bar
_start = ExitStack()  # holds the bar of `show_start`
_last_line = time.monotonic()  # when a line was printed, by any terminal


class Terminal:
    """Messages and stages on standard error, or on `file`; with `quiet` neither is shown."""

    def __init__(self, *, quiet: bool = False, file: IO[str] | None = None) -> None:
        shared = not quiet and file is None
        self.console = _screen if shared else Console(quiet=quiet, file=file, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line."""
        _start.close()
        self._print(escape(text))

    def warn(self, text: str) -> None:
        """Print a line that begins with `warning:`."""
        _start.close()
        self._print(f"[yellow]warning:[/] {escape(text)}")

    def head(self, text: str) -> None:
        """Print a headline."""
        _start.close()
        self._print(f"[bold]{escape(text)}[/]")

    def _print(self, markup: str) -> None:
        global _last_line
        _last_line = time.monotonic()
        self.console.print(markup)

    @contextmanager
    def stage(self, title: str) -> Iterator[ProgressCallback]:
        """Show how far the block is: `with terminal.stage("Reading") as update: update(done, total)`."""
        _start.close()
        has_bar = not self.console.quiet and _is_screen(self.console.file)
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            _StateColumn(),
            console=self.console,
            transient=True,
            redirect_stdout=_results_on_screen(),
            disable=not has_bar,
            speed_estimate_period=SPEED_PERIOD,
        )
        progress.add_task(title, total=None)
        (task,) = progress.tasks
        with ExitStack() as stack:
            stack.enter_context(progress)
            if not has_bar and not self.console.quiet:
                stack.enter_context(self._lines_about(task))
            yield lambda done, total: progress.update(task.id, completed=done, total=total)

    @contextmanager
    def _lines_about(self, task: Task) -> Iterator[None]:
        """During the block, print a line about `task` after each `SILENCE`; in a thread, for a step may take long."""
        ended = threading.Event()

        def watch() -> None:
            wait = SILENCE / 5  # no line about a shorter stage
            while not ended.wait(wait):
                if time.monotonic() - _last_line >= SILENCE:
                    self._print(escape(f"{task.description}: {describe_progress(task)}"))
                wait = max(SILENCE / 5, _last_line + SILENCE - time.monotonic())

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def show_start(*, quiet: bool = False) -> Iterator[None]:
    """During the block, until anything else is shown, say that the program is starting: TensorFlow takes seconds."""
    with _start:
        if not quiet:
            _start.enter_context(Terminal().stage("Starting"))
        yield


def result_console() -> Console:
    """A console on standard output; on the screen of the messages it is theirs, so that results stand above a bar."""
    _start.close()
    return _screen if _results_on_screen() else Console(highlight=False, soft_wrap=True)


def describe_progress(task: Task) -> str:
    """`1,200 of 12,000, 9 min left`; the time so far, such as `12 s`, where the total is not known."""
    if task.total is None:
        return _whole_duration(task.elapsed or 0)
    text = f"{task.completed:,.0f} of {task.total:,.0f}"
    return text if task.time_remaining is None else f"{text}, {_whole_duration(task.time_remaining)} left"


def _whole_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 10 else format_duration(seconds)  # tenths only flicker


class _StateColumn(ProgressColumn):
    """`describe_progress` beside a bar."""

    def render(self, task: Task) -> Text:
        return Text(describe_progress(task))


def _is_screen(stream: IO[str] | None) -> bool:
    """Whether lines on `stream` can be erased: a terminal, though not the one that a notebook makes for `!finetune`."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb" and not in_notebook_shell()


def _results_on_screen() -> bool:
    """Whether standard output and standard error are the same screen."""
    both = _is_screen(sys.stdout) and _is_screen(sys.stderr)
    return both and os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
