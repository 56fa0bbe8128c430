"""What people see while they wait: messages, and progress bars with the time left.

Everything here goes to standard error; standard output belongs to results (`finetune predict --json | jq`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ProgressCallback = Callable[[int, int | None], None]  # (done, total); total is None while it is not known


class Terminal:
    """Messages and progress bars on standard error; in a pipe or a log file plain lines and no bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(escape(text))

    def warn(self, text: str) -> None:
        """Print a line that begins with `warning:`."""
        self.console.print(f"[yellow]warning:[/] {escape(text)}")

    def head(self, text: str) -> None:
        """Print a headline."""
        self.console.print(f"[bold]{escape(text)}[/]")

    @contextmanager
    def stage(self, title: str) -> Iterator[ProgressCallback]:
        """A progress bar for the block: `with terminal.stage("Reading") as update: update(done, total)`."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bar:
            task: Any = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
